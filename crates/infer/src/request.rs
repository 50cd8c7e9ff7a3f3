//! What is asked of an engine, and what it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Generation, InferError, SamplingParams};

/// Something to do with a model.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tokens to continue or to score.
    pub ids: Vec<u32>,
    /// What to do with them.
    pub task: Task,
    /// A request of higher priority goes first and may take the memory of others, which then wait. Of equals the one that came
    /// first goes first. Who was passed over for long counts as a little higher, so that all come to an end.
    pub priority: i32,
    /// Whether every token is told as soon as it is there.
    pub stream: bool,
}

/// What to do with the tokens of a [`Request`].
#[derive(Clone, Debug)]
pub enum Task {
    /// Continue them.
    Generate {
        /// How.
        params: SamplingParams,
        /// Whether and when the log-probabilities of the answer are computed.
        logprobs: Logprobs,
        /// How tokens are guessed.
        guess: Guess,
    },
    /// The log-probability of each token from this one on, which is not the first.
    Score {
        /// The first token that is scored.
        from: usize,
    },
}

/// Whether and when log-probabilities of generated tokens are computed. Their bits are those of scoring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logprobs {
    /// Not at all.
    #[default]
    Off,
    /// Many tokens at a time, for the [`Generation`] at the end.
    AtEnd,
    /// With each token; costs a second product with the vocabulary a token.
    EachToken,
}

/// How the next tokens are guessed, so that several can be read in one pass. What is generated does not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guess {
    /// They are not.
    #[default]
    Off,
    /// What followed the last tokens where they occurred before.
    Lookup,
    /// What the engine's draft model would say.
    Draft,
}

impl Request {
    /// A request to continue a prompt, of priority 0, that tells every token.
    pub fn generate(prompt: Vec<u32>, params: SamplingParams) -> Self {
        let task = Task::Generate { params, logprobs: Logprobs::Off, guess: Guess::Off };
        Self { ids: prompt, task, priority: 0, stream: true }
    }

    /// A request for the log-probabilities of the tokens from `from` on, of priority 0.
    pub fn score(ids: Vec<u32>, from: usize) -> Self {
        Self { ids, task: Task::Score { from }, priority: 0, stream: false }
    }
}

/// What an engine says about a request. The last one is any but [`Event::Token`].
#[derive(Debug)]
pub enum Event {
    /// A token was generated; not told of a stop token, and only where the request says `stream`.
    Token {
        /// The token.
        id: u32,
        /// Its log-probability in nats, with [`Logprobs::EachToken`].
        logprob: Option<f32>,
    },
    /// The answer is complete, or was cancelled.
    Done(Generation),
    /// Log-probabilities in nats of the scored tokens.
    Scored(Vec<f32>),
    /// There will be no answer.
    Failed(InferError),
}

/// Whether somebody still wants an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel {
    /// This one is not wanted.
    one: Arc<AtomicBool>,
    /// None of several is.
    all: Arc<AtomicBool>,
}

impl Cancel {
    /// One of those that `all` ends.
    pub(crate) fn one_of(all: &Arc<AtomicBool>) -> Self {
        Self { one: Arc::default(), all: Arc::clone(all) }
    }

    pub(crate) fn cancel(&self) {
        self.one.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.one.load(Ordering::Relaxed) || self.all.load(Ordering::Relaxed)
    }
}
