//! Continuing a prompt.

use std::ops::ControlFlow;

use llamero_tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

use crate::engine::Session;
use crate::score::check_finite;
use crate::{Engine, Result, SamplingParams, sample};

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
    /// Log-probability in nats of each of `ids` under the model itself, before temperature and filters: the bits of
    /// [`Engine::score_tokens`] over prompt and answer.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt whose keys and values were cached from before.
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
    /// The answer is a function of model, prompt and parameters: not of threads, chunks, or what was cached.
    ///
    /// # Errors
    /// An empty prompt; one that leaves no room in the context; an id outside the vocabulary; a parameter out of range;
    /// logits that are no numbers.
    pub fn generate(
        &self,
        prompt: &[u32],
        params: &SamplingParams,
        on_token: OnToken<'_>,
    ) -> Result<Generation> {
        self.generate_in(&mut self.session(), prompt, params, on_token)
    }

    /// [`Engine::generate`] that uses what `session` holds of the prompt, and leaves prompt and answer there.
    pub(crate) fn generate_in(
        &self,
        session: &mut Session,
        prompt: &[u32],
        params: &SamplingParams,
        on_token: OnToken<'_>,
    ) -> Result<Generation> {
        params.validate()?;
        self.check_prompt(prompt)?;
        self.check_ids(&params.stop)?;
        self.check_ids(&params.logit_bias.keys().copied().collect::<Vec<_>>())?;
        let (mut hidden, cached) = self.read(session, prompt)?;
        let (mut ids, mut rows) = (Vec::new(), Vec::new());
        let finish = loop {
            let position = prompt.len() + ids.len();
            let logits = self.backend().linear(&hidden, &self.head().value);
            let id = sample(&self.backend().download(&logits), params, &session.ids, position)?;
            rows.push(hidden);
            ids.push(id);
            if params.stop.contains(&id) {
                break Finish::Stop;
            }
            if on_token(id).is_break() {
                break Finish::Cancelled;
            }
            if ids.len() == params.max_tokens {
                break Finish::Length;
            }
            if position + 1 == self.context() {
                break Finish::Context;
            }
            hidden = self.extend(session, &[id])?;
        };
        let nll = self.nll(&self.stack(&rows), &ids);
        check_finite(&nll, &ids, prompt.len())?;
        Ok(Generation { ids, logprobs: nll.into_iter().map(|x| -x).collect(), finish, cached })
    }

    /// One tensor of the rows `[1, C]`: the output projection is read once for all of them.
    fn stack(&self, rows: &[Tensor]) -> Tensor {
        let (cols, dtype) = (rows[0].cols(), rows[0].dtype());
        let mut all = self.backend().zeros(Shape::new(rows.len(), cols), dtype);
        for (at, row) in rows.iter().enumerate() {
            self.backend().copy_rows(&mut all, at, row, 0..1, 0..cols);
        }
        all
    }
}
