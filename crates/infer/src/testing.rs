//! For the tests of other crates: a model that says what it is told to.

use llamero_tokenizer::Tokenizer;

use crate::{Finish, Generation, InferError, Lm, OnToken, Result, SamplingParams};

/// A tokenizer of 512 ids: every byte, and the special tokens.
pub fn byte_tokenizer() -> Tokenizer {
    Tokenizer::from_ranks((0..=255).map(|byte| vec![byte]).collect()).expect("every byte is there once")
}

/// An [`Lm`] that answers from a script. It has no state, so the order of questions does not matter.
#[derive(Clone, Debug)]
pub struct ScriptedLm {
    tokenizer: Tokenizer,
    context: usize,
    replies: Vec<(String, String)>,
    likes: Vec<(String, String)>,
}

impl ScriptedLm {
    /// Log-probability of each token of a continuation that the script likes.
    pub const LIKED: f32 = -0.5;
    /// Log-probability of each token of any other continuation.
    pub const DISLIKED: f32 = -5.0;

    /// A model with nothing to say.
    pub fn new(tokenizer: Tokenizer, context: usize) -> Self {
        Self { tokenizer, context, replies: Vec::new(), likes: Vec::new() }
    }

    /// Answers a prompt that contains `prompt` with `answer`, and then with the first stop token if any is asked for;
    /// otherwise the answer ends as if it were cut at its length. The first rule that fits is taken.
    pub fn reply(mut self, prompt: &str, answer: &str) -> Self {
        self.replies.push((prompt.into(), answer.into()));
        self
    }

    /// Finds the text `continuation` likely after a context that contains `context`.
    pub fn like(mut self, context: &str, continuation: &str) -> Self {
        self.likes.push((context.into(), continuation.into()));
        self
    }

    fn too_long(&self, what: &'static str, tokens: usize, room: usize) -> InferError {
        InferError::TooLong { what, tokens, room, context: self.context }
    }
}

impl Lm for ScriptedLm {
    fn score(&self, context: &[u32], continuation: &[u32]) -> Result<Vec<f32>> {
        if context.is_empty() {
            return Err(InferError::EmptyPrompt);
        }
        if continuation.is_empty() {
            return Err(InferError::NothingToScore { found: "the continuation is empty".into() });
        }
        let room = self.context.saturating_sub(context.len());
        if continuation.len() > room {
            return Err(self.too_long("the continuation", continuation.len(), room));
        }
        let (before, text) = (self.tokenizer.decode(context)?, self.tokenizer.decode(continuation)?);
        let liked = self.likes.iter().any(|(part, like)| before.contains(part.as_str()) && *like == text);
        Ok(vec![if liked { Self::LIKED } else { Self::DISLIKED }; continuation.len()])
    }

    fn generate(&self, prompt: &[u32], params: &SamplingParams, on_token: OnToken<'_>) -> Result<Generation> {
        params.validate()?;
        if prompt.is_empty() {
            return Err(InferError::EmptyPrompt);
        }
        if prompt.len() >= self.context {
            return Err(self.too_long("the prompt", prompt.len(), self.context - 1));
        }
        let text = self.tokenizer.decode(prompt)?;
        let Some((_, answer)) = self.replies.iter().find(|(part, _)| text.contains(part.as_str())) else {
            let skipped = text.chars().count().saturating_sub(80);
            return Err(InferError::Unscripted { prompt: text.chars().skip(skipped).collect() });
        };
        let (mut ids, mut finish) = (Vec::new(), Finish::Length);
        for id in self.tokenizer.encode(answer).into_iter().chain(params.stop.first().copied()) {
            ids.push(id);
            if params.stop.contains(&id) {
                finish = Finish::Stop;
            } else if on_token(id).is_break() {
                finish = Finish::Cancelled;
            } else if ids.len() == params.max_tokens {
                finish = Finish::Length;
            } else if prompt.len() + ids.len() == self.context {
                finish = Finish::Context;
            } else {
                continue;
            }
            break;
        }
        Ok(Generation { logprobs: vec![Self::LIKED; ids.len()], ids, finish, cached: 0 })
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn context(&self) -> usize {
        self.context
    }
}
