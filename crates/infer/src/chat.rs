//! Conversations of several turns.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use llamero_tokenizer::{Message, Role, StreamDecoder};

use crate::request::Cancel;
use crate::{Engine, Finish, InferError, Logprobs, OnToken, Result, SamplingParams, StopText};

/// A conversation with a model in its tokenizer's chat format.
///
/// The engine keeps keys and values of the turns before as long as it has room, so a new turn costs its own tokens only.
pub struct ChatSession<'e> {
    engine: &'e Engine,
    params: SamplingParams,
    stop_text: StopText,
    messages: Vec<Message>,
}

/// The model's turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// What it said, as it was streamed.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens it said, a stop token included.
    pub tokens: usize,
    /// Tokens of the conversation before it.
    pub prompt_tokens: usize,
    /// How many of these were cached from the turns before.
    pub cached_tokens: usize,
    /// Says that and how many of the oldest messages were dropped to make room, if that was necessary.
    pub notice: Option<String>,
}

impl<'e> ChatSession<'e> {
    /// An empty conversation, with instructions for the whole of it if given. The model's own stop tokens end a turn, and
    /// those of `params` too.
    ///
    /// # Errors
    /// A parameter out of range; a model without a chat format, or one that refuses a conversation of these instructions and
    /// a message.
    pub fn new(engine: &'e Engine, mut params: SamplingParams, system: Option<&str>) -> Result<Self> {
        params.validate()?;
        params.stop.extend(engine.stop_tokens());
        let messages: Vec<_> = system.map(|text| Message::new(Role::System, text)).into_iter().collect();
        let first = [messages.clone(), vec![Message::new(Role::User, "Hello")]].concat();
        engine.tokenizer().encode_dialog_prompt(&first)?;
        Ok(Self { engine, params, stop_text: StopText::default(), messages })
    }

    /// The same conversation, whose answers also end before any of these strings. They are not part of an answer.
    pub fn with_stop_text(self, stop_text: StopText) -> Self {
        Self { stop_text, ..self }
    }

    /// The messages so far, without those that were dropped.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Forgets all but the instructions.
    pub fn clear(&mut self) {
        self.messages.truncate(self.instructions());
    }

    /// Says `text` to the model and streams its answer to `on_text`, which may `Break` to end it.
    ///
    /// Where the conversation does not fit the context with room for an answer of `max_tokens` tokens or a quarter of
    /// the context, whichever is less, its oldest turns are dropped, and the reply says so.
    ///
    /// # Errors
    /// A message that does not fit the context even alone; those of [`Engine::generate`]. The conversation is then as
    /// it was before.
    pub fn reply(&mut self, text: &str, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<Reply> {
        self.reply_until(text, None, on_text)
    }

    /// [`ChatSession::reply`] that also ends when somebody sets `end`, while the prompt is still read, too. An answer that ends
    /// before it begins leaves the conversation as it was before.
    ///
    /// # Errors
    /// As there.
    pub fn reply_until(
        &mut self,
        text: &str,
        end: Option<&Arc<AtomicBool>>,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let before = self.messages.clone();
        self.messages.push(Message::new(Role::User, text));
        let cancel = end.map_or_else(Cancel::default, Cancel::one_of);
        let reply = self.answer(&cancel, on_text);
        match &reply {
            Ok(reply) if reply.finish == Finish::Cancelled && reply.text.is_empty() => self.messages = before,
            Ok(reply) => self.messages.push(Message::new(Role::Assistant, reply.text.as_str())),
            Err(_) => self.messages = before,
        }
        reply
    }

    fn answer(&mut self, cancel: &Cancel, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<Reply> {
        let (prompt, notice) = self.fitting_prompt()?;
        let mut decoder = StreamDecoder::new(self.engine.tokenizer());
        let mut text = String::new();
        let mut say = |piece: String| {
            if piece.is_empty() {
                return ControlFlow::Continue(());
            }
            text.push_str(&piece);
            on_text(&piece)
        };
        let mut stop = self.stop_text.clone();
        let mut on_token = |id| {
            let said = say(stop.push(&decoder.push(id)));
            if stop.found() { ControlFlow::Break(()) } else { said }
        };
        let ends: (_, OnToken<'_>) = (cancel, &mut on_token);
        let generation = self.engine.continue_until(&prompt, &self.params, Logprobs::Off, ends)?;
        // The answer is over, so whether more of it is wanted no longer matters.
        let last = stop.push(&decoder.finish());
        let finish = if stop.found() { Finish::Stop } else { generation.finish };
        let _ = say(last + &stop.finish());
        Ok(Reply {
            text,
            finish,
            tokens: generation.ids.len(),
            prompt_tokens: prompt.len(),
            cached_tokens: generation.cached,
            notice,
        })
    }

    /// Number of messages at the front that are never dropped.
    fn instructions(&self) -> usize {
        usize::from(self.messages.first().is_some_and(|m| m.role == Role::System))
    }

    /// The prompt, after dropping oldest turns until it fits, and what to tell about that.
    fn fitting_prompt(&mut self) -> Result<(Vec<u32>, Option<String>)> {
        let context = self.engine.context();
        let room = context - self.params.max_tokens.min(context / 4).max(1);
        let encode = |messages: &[Message]| self.engine.tokenizer().encode_dialog_prompt(messages);
        let first = self.instructions();
        let mut prompt = encode(&self.messages)?;
        let mut dropped = 0;
        while prompt.len() > room && self.messages.len() > first + 1 {
            // A question and its answer.
            let end = (first + 2).min(self.messages.len() - 1);
            dropped += self.messages.drain(first..end).len();
            prompt = encode(&self.messages)?;
        }
        if prompt.len() >= context {
            let (what, tokens) = ("the message with its chat format", prompt.len());
            return Err(InferError::TooLong { what, tokens, room: context - 1, context });
        }
        let notice = (dropped > 0).then(|| {
            format!("dropped the {dropped} oldest messages: the conversation no longer fits the context of {context} tokens")
        });
        Ok((prompt, notice))
    }
}
