//! Conversations.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llamero_model::Config;
use llamero_tensor::DType;
use llamero_tokenizer::{Message, Role, Tokenizer};

use super::{backend, config, engine_of, generate, model};
use crate::testing::byte_tokenizer;
use crate::{ChatSession, Engine, Finish, InferError, SamplingParams, StopText};

fn engine(context: usize) -> Engine {
    engine_of(&Config { context, ..config() }, DType::F32)
}

fn params(max_tokens: usize) -> SamplingParams {
    SamplingParams { max_tokens, temperature: 1.0, ..SamplingParams::default() }
}

fn roles(chat: &ChatSession<'_>) -> Vec<Role> {
    chat.messages().iter().map(|m| m.role).collect()
}

#[test]
fn turns_are_answered_from_the_whole_conversation_and_reuse_it() {
    let engine = engine(1000);
    let mut chat = ChatSession::new(&engine, params(20), Some("Be brief.")).unwrap();
    let mut conversation = vec![Message::new(Role::System, "Be brief.")];
    let mut previous = 0;
    for text in ["Hello", "And then?", "Why?"] {
        conversation.push(Message::new(Role::User, text));
        let prompt = engine.tokenizer().encode_dialog_prompt(&conversation).unwrap();
        let with_stop = SamplingParams { stop: engine.stop_tokens(), ..params(20) };
        let expected = generate(&engine, &prompt, &with_stop);

        let mut streamed = String::new();
        let reply = chat
            .reply(text, &mut |piece| {
                streamed.push_str(piece);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(reply.text, engine.tokenizer().decode(expected.content()).unwrap());
        assert_eq!(streamed, reply.text);
        assert_eq!((reply.finish, reply.tokens), (expected.finish, expected.ids.len()));
        assert_eq!((reply.prompt_tokens, reply.notice), (prompt.len(), None));
        // At least what was read for the turn before is not read again.
        assert!(reply.cached_tokens >= previous, "{} of {previous}", reply.cached_tokens);
        previous = reply.prompt_tokens;
        conversation.push(Message::new(Role::Assistant, reply.text));
        assert_eq!(chat.messages(), conversation);
    }
    chat.clear();
    assert_eq!(chat.messages(), &conversation[..1]);
}

#[test]
fn the_oldest_turns_go_when_the_context_is_full_and_it_is_said() {
    // A turn takes about 20 bytes of format, 12 of header names and its text.
    let engine = engine(240);
    let mut chat = ChatSession::new(&engine, params(10), Some("Be brief.")).unwrap();
    let mut notices = 0;
    for turn in 0..8 {
        let before = chat.messages().len();
        let text = format!("Question number {turn}, somewhat long.");
        let reply = chat.reply(&text, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(reply.prompt_tokens + reply.tokens <= 240);
        let roles = roles(&chat);
        assert_eq!(roles[0], Role::System, "the instructions stay");
        assert!(roles[1..].chunks(2).all(|pair| pair == [Role::User, Role::Assistant]), "{roles:?}");
        assert_eq!(chat.messages()[roles.len() - 2].content, text);
        let dropped = before + 2 - chat.messages().len();
        match reply.notice {
            Some(notice) => {
                assert!(notice.starts_with(&format!("dropped the {dropped} oldest messages")), "{notice}");
                assert!(notice.contains("240"), "{notice}");
                notices += 1;
            }
            None => assert_eq!(dropped, 0, "messages went without a word"),
        }
    }
    assert!(notices > 1, "{notices}");
}

#[test]
fn a_message_that_does_not_fit_changes_nothing() {
    let engine = engine(200);
    let mut chat = ChatSession::new(&engine, params(5), None).unwrap();
    let mut ignore = |_: &str| ControlFlow::Continue(());
    chat.reply("Hello", &mut ignore).unwrap();
    let before = chat.messages().to_vec();
    match chat.reply(&"x".repeat(300), &mut ignore) {
        Err(InferError::TooLong { tokens, context: 200, .. }) => assert!(tokens > 300),
        other => panic!("{other:?}"),
    }
    assert_eq!(chat.messages(), before);
    assert_eq!(chat.reply("Still there?", &mut ignore).unwrap().notice, None);
    assert!(ChatSession::new(&engine, SamplingParams { top_p: 2.0, ..params(5) }, None).is_err());
}

#[test]
fn a_listener_may_end_an_answer() {
    let engine = engine(400);
    let mut chat = ChatSession::new(&engine, params(100), None).unwrap();
    let mut pieces = 0;
    let reply = chat
        .reply("Hello", &mut |_| {
            pieces += 1;
            if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(reply.finish, Finish::Cancelled);
    assert_eq!(chat.messages()[1].content, reply.text);
    assert!(!chat.reply("Go on", &mut |_| ControlFlow::Break(())).unwrap().text.is_empty());
}

#[test]
fn an_answer_ends_before_a_stop_string_and_the_conversation_goes_on() {
    let engine = engine(1000);
    let mut ignore = |_: &str| ControlFlow::Continue(());
    let free = ChatSession::new(&engine, params(40), None).unwrap().reply("Hello", &mut ignore).unwrap();
    let chars: Vec<(usize, char)> = free.text.char_indices().collect();
    let (from, to) = (chars[chars.len() / 2].0, chars[chars.len() / 2 + 2].0);
    let stop = &free.text[from..to];
    let expected = &free.text[..free.text.find(stop).unwrap()];
    let stop_text = StopText::new(vec![stop.to_owned()]).unwrap();
    let mut chat = ChatSession::new(&engine, params(40), None).unwrap().with_stop_text(stop_text);
    let mut streamed = String::new();
    let reply = chat
        .reply("Hello", &mut |piece| {
            streamed.push_str(piece);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((reply.text.as_str(), streamed.as_str(), reply.finish), (expected, expected, Finish::Stop));
    assert!(reply.tokens < free.tokens);
    assert_eq!(chat.messages()[1].content, expected);
    // The next answer may begin with what the last one ended at.
    let next = chat.reply("And?", &mut ignore).unwrap();
    assert!(!next.text.contains(stop) && next.cached_tokens > 0);
}

/// An engine whose tokenizer has another chat format than Llama 3's.
fn templated(template: &str) -> Engine {
    let mut vocabulary = byte_tokenizer().to_gguf().unwrap();
    vocabulary.chat_template = Some(template.into());
    let (config, backend) = (Config { context: 400, ..config() }, backend());
    let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
    Engine::new(model(&config, &*backend, DType::F32, 1), tokenizer, backend).unwrap()
}

#[test]
fn a_template_of_the_tokenizer_is_used() {
    let engine = templated(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no instructions') }}{% endif %}\
         [{{ m.role }}] {{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
    );
    let mut chat = ChatSession::new(&engine, params(5), None).unwrap();
    let mut ignore = |_: &str| ControlFlow::Continue(());
    let reply = chat.reply("Say <|eot_id|>", &mut ignore).unwrap();
    let tokenizer = engine.tokenizer();
    let text = "[user] Say <|eot_id|><|eot_id|>[assistant] ";
    // Each byte is a token, and so is the special token that is not in the message.
    assert_eq!(reply.prompt_tokens, text.len() - "<|eot_id|>".len() + 1);
    let prompt = tokenizer.encode_dialog_prompt(&[Message::new(Role::User, "Say <|eot_id|>")]).unwrap();
    assert_eq!(tokenizer.decode(&prompt).unwrap(), text);

    let refused = ChatSession::new(&engine, params(5), Some("Be brief.")).err().unwrap().to_string();
    assert_eq!(refused, "chat template: line 1: no instructions");
}

#[test]
fn a_message_that_the_template_refuses_leaves_the_conversation_as_it_was() {
    let engine = templated(
        "{% for m in messages %}{% if m.content == 'No.' %}{{ raise_exception('not that') }}{% endif %}\
         [{{ m.role }}] {{ m.content }}{% endfor %}",
    );
    let mut chat = ChatSession::new(&engine, params(5), Some("Be brief.")).unwrap();
    let mut ignore = |_: &str| ControlFlow::Continue(());
    let error = chat.reply("No.", &mut ignore).unwrap_err().to_string();
    assert_eq!(error, "chat template: line 1: not that");
    assert_eq!(roles(&chat), [Role::System]);
    chat.reply("Yes.", &mut ignore).unwrap();
    assert_eq!(roles(&chat), [Role::System, Role::User, Role::Assistant]);
}

#[test]
fn an_answer_can_be_ended_from_outside() {
    let engine = engine(1000);
    let mut chat = ChatSession::new(&engine, params(200), None).unwrap();
    let end = Arc::new(AtomicBool::new(true));
    // While the prompt is read: nothing was said.
    let reply = chat.reply_until("Hello", Some(&end), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((reply.finish, reply.text.as_str()), (Finish::Cancelled, ""));
    assert!(chat.messages().is_empty());
    // While it speaks: what was said stays.
    end.store(false, Ordering::Relaxed);
    let mut pieces = 0;
    let mut on_text = |_: &str| {
        pieces += 1;
        end.store(pieces == 3, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let reply = chat.reply_until("Hello", Some(&end), &mut on_text).unwrap();
    assert_eq!(reply.finish, Finish::Cancelled);
    assert!(reply.tokens < 200 && !reply.text.is_empty(), "{reply:?}");
    assert_eq!(roles(&chat), [Role::User, Role::Assistant]);
}
