//! The ends of the context, and input that cannot be used.

use std::ops::ControlFlow;
use std::sync::Arc;

use llamero_comm::{Comm, Solo};
use llamero_model::{Config, Llama, Placement, initial_values};
use llamero_tensor::DType;

use super::{CONTEXT, backend, config, engine, engine_of, generate, ids};
use crate::testing::{ScriptedLm, byte_tokenizer};
use crate::{Engine, EngineOptions, Finish, InferError, Lm, SamplingParams};

fn try_generate(lm: &dyn Lm, prompt: &[u32]) -> String {
    lm.generate(prompt, &SamplingParams::greedy(5), &mut |_| ControlFlow::Continue(()))
        .unwrap_err()
        .to_string()
}

#[test]
fn prompt_and_answer_may_fill_the_context_and_no_more() {
    let engine = engine();
    for prompt in [CONTEXT - 1, CONTEXT - 2, CONTEXT - 10] {
        let answer = generate(&engine, &ids(1, prompt), &SamplingParams::greedy(50));
        assert_eq!((answer.ids.len(), answer.finish), (CONTEXT - prompt, Finish::Context));
    }
    let exact = generate(&engine, &ids(1, CONTEXT - 10), &SamplingParams::greedy(10));
    assert_eq!((exact.ids.len(), exact.finish), (10, Finish::Length));
}

#[test]
fn any_number_of_tokens_may_be_asked_for() {
    let endless = SamplingParams::greedy(usize::MAX);
    let answer = generate(&engine(), &ids(1, 100), &endless);
    assert_eq!((answer.ids.len(), answer.finish), (CONTEXT - 100, Finish::Context));
    // A whole context is what may come of it.
    let engine = engine();
    let kv_bytes = Some(engine.page_bytes());
    let engine = engine.with_options(EngineOptions { kv_bytes, ..EngineOptions::default() });
    let error = engine.generate(&ids(1, 5), &endless, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, InferError::Memory { tokens: CONTEXT, .. }), "{error}");
}

#[test]
fn input_that_does_not_fit_is_an_error_that_says_by_how_much() {
    let engine = engine();
    let fake = ScriptedLm::new(byte_tokenizer(), CONTEXT);
    for lm in [&engine as &dyn Lm, &fake] {
        for tokens in [CONTEXT, CONTEXT + 7] {
            let expected = format!(
                "the prompt of {tokens} tokens does not fit the model's context: at most 159 of its 160 are free for it"
            );
            assert_eq!(try_generate(lm, &ids(1, tokens)), expected);
        }
        assert!(matches!(
            lm.score(&ids(1, CONTEXT - 4), &ids(2, 5)),
            Err(InferError::TooLong { tokens: 5, room: 4, context: CONTEXT, .. })
        ));
        assert_eq!(lm.score(&ids(1, CONTEXT - 4), &ids(2, 4)).unwrap().len(), 4);
        assert!(matches!(lm.score(&[], &[1]), Err(InferError::EmptyPrompt)));
        assert!(matches!(lm.score(&[1], &[]), Err(InferError::NothingToScore { .. })));
        assert!(try_generate(lm, &[]).starts_with("the prompt is empty"));
        assert_eq!(lm.context(), CONTEXT);
        assert_eq!(lm.tokenizer().vocab_size(), 512);
    }
    assert!(matches!(
        engine.choose(&ids(1, CONTEXT - 4), &[ids(1, 1), ids(1, 5)]),
        Err(InferError::TooLong { tokens: 5, room: 4, .. })
    ));
    assert!(matches!(engine.choose(&[1], &[vec![]]), Err(InferError::NothingToScore { .. })));
    assert!(matches!(engine.score_tokens(&[1]), Err(InferError::NothingToScore { .. })));
    assert!(matches!(engine.score_text(""), Err(InferError::NothingToScore { .. })));
}

#[test]
fn ids_of_another_vocabulary_are_named() {
    name_other_ids(&engine());
    // Rows that only pad the model's matrices are no tokens.
    name_other_ids(&engine_of(&Config { vocab: 520, ..config() }, DType::F32));
}

fn name_other_ids(engine: &Engine) {
    let named = |result: Result<(), InferError>| match result {
        Err(InferError::UnknownToken { id: 512, vocab: 512 }) => {}
        other => panic!("{other:?}"),
    };
    named(engine.score_tokens(&[1, 512]).map(drop));
    named(engine.score(&[512], &[1]).map(drop));
    named(engine.choose(&[1], &[vec![1, 512]]).map(drop));
    let mut ignore = |_| ControlFlow::Continue(());
    named(engine.generate(&[512], &SamplingParams::default(), &mut ignore).map(drop));
    let stop = SamplingParams { stop: vec![512], ..SamplingParams::default() };
    named(engine.generate(&[1], &stop, &mut ignore).map(drop));
}

#[test]
fn weights_that_overflow_are_an_error_and_not_an_answer() {
    let backend = backend();
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    let model = Llama::build(
        &config(),
        &Placement::whole(&config()),
        (&*backend, DType::F32),
        &ranks,
        |spec, rows| {
            let scale = if spec.name == "output.weight" { 1e38 } else { 1.0 };
            Ok::<_, std::convert::Infallible>(
                initial_values(spec, rows, 1).iter().map(|x| x * scale).collect(),
            )
        },
    )
    .unwrap();
    let engine = Engine::new(model, byte_tokenizer(), backend).unwrap();
    assert!(try_generate(&engine, &[1, 2, 3]).contains("weights may be damaged"));
    let whole = engine.score_tokens(&ids(1, 60)).unwrap_err();
    assert!(matches!(whole, InferError::NonFinite { .. }), "{whole}");
    assert!(engine.choose(&[1], &[ids(1, 60)]).is_err());
}

#[test]
fn a_script_is_followed() {
    let lm = ScriptedLm::new(byte_tokenizer(), CONTEXT).reply("capital", "Lima").like("capital", "Lima");
    let tokenizer = byte_tokenizer();
    let prompt = tokenizer.encode("The capital of Peru?");
    let params = SamplingParams { stop: vec![tokenizer.special().eot], ..SamplingParams::default() };
    let mut streamed = Vec::new();
    let mut keep = |id| {
        streamed.push(id);
        ControlFlow::Continue(())
    };
    let answer = lm.generate(&prompt, &params, &mut keep).unwrap();
    assert_eq!((answer.finish, tokenizer.decode(answer.content()).unwrap().as_str()), (Finish::Stop, "Lima"));
    assert_eq!(streamed, answer.content());
    let liked = |text: &str| lm.score(&prompt, &tokenizer.encode(text)).unwrap();
    assert!(liked("Lima")[0] > liked("Rome")[0]);
    let totals = lm.choose(&prompt, &[tokenizer.encode("Rome"), tokenizer.encode("Lima")]).unwrap();
    assert_eq!(totals, [-20.0, -2.0]);
    let unknown = try_generate(&lm, &tokenizer.encode("Who are you?"));
    assert_eq!(unknown, "the script has no answer to a prompt that ends in `Who are you?`");
}
