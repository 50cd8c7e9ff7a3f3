//! A language model as its users see it.

use llamero_tokenizer::Tokenizer;

use crate::{Engine, Generation, OnToken, Result, SamplingParams};

/// What evaluation, alignment and guarding ask of a model.
pub trait Lm: Send + Sync {
    /// Log-probability in nats of each token of `continuation` after `context`. Nothing is cut off.
    ///
    /// # Errors
    /// Either is empty; both together do not fit the model's context.
    fn score(&self, context: &[u32], continuation: &[u32]) -> Result<Vec<f32>>;

    /// Total log-probability in nats of each of `choices` after `prompt`. A model that can reads the prompt only once.
    ///
    /// # Errors
    /// Those of [`Lm::score`].
    fn choose(&self, prompt: &[u32], choices: &[Vec<u32>]) -> Result<Vec<f64>> {
        let total = |choice: &Vec<u32>| Ok(self.score(prompt, choice)?.into_iter().map(f64::from).sum());
        choices.iter().map(total).collect()
    }

    /// Continues `prompt`; see [`Engine::generate`].
    ///
    /// # Errors
    /// The prompt is empty or leaves no room in the context; a parameter is out of range.
    fn generate(&self, prompt: &[u32], params: &SamplingParams, on_token: OnToken<'_>) -> Result<Generation>;

    /// The tokenizer that makes its ids.
    fn tokenizer(&self) -> &Tokenizer;

    /// Longest sequence in tokens.
    fn context(&self) -> usize;
}

impl Lm for Engine {
    fn score(&self, context: &[u32], continuation: &[u32]) -> Result<Vec<f32>> {
        self.score_continuation(context, continuation)
    }

    fn choose(&self, prompt: &[u32], choices: &[Vec<u32>]) -> Result<Vec<f64>> {
        Engine::choose(self, prompt, choices)
    }

    fn generate(&self, prompt: &[u32], params: &SamplingParams, on_token: OnToken<'_>) -> Result<Generation> {
        Engine::generate(self, prompt, params, on_token)
    }

    fn tokenizer(&self) -> &Tokenizer {
        Engine::tokenizer(self)
    }

    fn context(&self) -> usize {
        Engine::context(self)
    }
}
