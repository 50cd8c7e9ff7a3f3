//! Continuing a prompt.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use serde::{Deserialize, Serialize};

use crate::request::Cancel;
use crate::scheduler::Job;
use crate::{Engine, Event, InferError, Logprobs, Request, Result, SamplingParams, Task};

/// Called with every generated token but a stop token; `Break` ends the generation.
pub type OnToken<'a> = &'a mut dyn FnMut(u32) -> ControlFlow<()>;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model said a stop token, which is the last of the generated ids.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// Prompt and answer fill the context.
    Context,
    /// The caller did not want more.
    Cancelled,
}

/// What a model said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Every token that was drawn, a stop token included.
    pub ids: Vec<u32>,
    /// Log-probability in nats of each of `ids` under the model itself, before temperature and filters: unless keys and
    /// values are kept in 8 bits, the bits of [`Engine::score_tokens`] over prompt and answer. Empty where they were not asked for.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt whose keys and values were there from other requests.
    pub cached: usize,
}

impl Generation {
    /// The generated tokens without the stop token.
    pub fn content(&self) -> &[u32] {
        let stop = usize::from(self.finish == Finish::Stop);
        &self.ids[..self.ids.len() - stop]
    }
}

impl Engine {
    /// Continues `prompt` until a stop token, `max_tokens`, the end of the context, or until `on_token` breaks.
    ///
    /// The answer is a function of model, prompt and parameters: not of threads, chunks, other requests, or what was cached.
    /// Works in the calling thread; with several callers, each pass is for all of them.
    ///
    /// # Errors
    /// An empty prompt; one that leaves no room in the context; an id outside the vocabulary; a parameter out of range;
    /// logits that are no numbers; prompt and answer need more memory than there is for keys and values.
    pub fn generate(
        &self,
        prompt: &[u32],
        params: &SamplingParams,
        on_token: OnToken<'_>,
    ) -> Result<Generation> {
        self.continue_with(prompt, params, Logprobs::AtEnd, on_token)
    }

    /// [`Engine::generate`] with or without log-probabilities.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub fn continue_with(
        &self,
        prompt: &[u32],
        params: &SamplingParams,
        logprobs: Logprobs,
        on_token: OnToken<'_>,
    ) -> Result<Generation> {
        self.continue_until(prompt, params, logprobs, (&Cancel::default(), on_token))
    }

    /// [`Engine::continue_with`] that `cancel` ends, too, while the prompt is read as well.
    pub(crate) fn continue_until(
        &self,
        prompt: &[u32],
        params: &SamplingParams,
        logprobs: Logprobs,
        (cancel, on_token): (&Cancel, OnToken<'_>),
    ) -> Result<Generation> {
        let task = Task::Generate { params: params.clone(), logprobs, guess: self.options().guess };
        let request = Request { ids: prompt.to_vec(), task, priority: 0, stream: true };
        self.check(&request)?;
        let (sender, events) = channel();
        self.desk().submit([Job::new(request, self.context(), sender, cancel.clone())]);
        let _guard = OnDrop(cancel);
        // Tokens that the caller has seen when it wanted no more.
        let (mut seen, mut enough) = (0, false);
        loop {
            match self.next_event(&events) {
                Event::Token { .. } if enough => {}
                Event::Token { id, .. } => {
                    seen += 1;
                    enough = on_token(id).is_break();
                    if enough {
                        cancel.cancel();
                    }
                }
                Event::Done(mut generation) if enough => {
                    generation.ids.truncate(seen);
                    generation.logprobs.truncate(seen);
                    return Ok(Generation { finish: Finish::Cancelled, ..generation });
                }
                Event::Done(generation) => return Ok(generation),
                Event::Failed(error) => return Err(error),
                Event::Scored(_) => panic!("generate: the answer is a score"),
            }
        }
    }

    /// Works until there is an event.
    pub(crate) fn next_event(&self, events: &Receiver<Event>) -> Event {
        loop {
            match events.try_recv() {
                Ok(event) => return event,
                Err(TryRecvError::Disconnected) => return Event::Failed(InferError::Stopped),
                Err(TryRecvError::Empty) => {
                    self.desk().work(self);
                }
            }
        }
    }

    /// Checks a request before it is handed in.
    pub(crate) fn check(&self, request: &Request) -> Result<()> {
        let Request { ids, task, .. } = request;
        match task {
            Task::Generate { params, .. } => {
                params.validate()?;
                self.check_prompt(ids)?;
                self.check_ids(&params.stop)?;
                self.check_ids(&params.logit_bias.keys().copied().collect::<Vec<_>>())?;
                // The last token is not read.
                let longest = ids.len().saturating_add(params.max_tokens - 1).min(self.context());
                self.check_memory(longest)
            }
            Task::Score { from } => {
                if *from == 0 {
                    return Err(InferError::EmptyPrompt);
                }
                self.check_continuation(*from, ids.get(*from..).unwrap_or(&[]))?;
                self.check_ids(ids)?;
                self.check_memory(ids.len() - 1)
            }
        }
    }
}

/// Cancels a request whose caller unwinds.
struct OnDrop<'a>(&'a Cancel);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
