//! A model, its tokenizer and its device.
//!
//! `T` packed rows, `C` model width, `V` vocabulary.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use llamero_artifact::{Artifact, MANIFEST};
use llamero_autograd::{Param, Tape};
use llamero_model::{Config, Input, Llama, Recompute, weights};
use llamero_tensor::{Backend, DType, Segments, Tensor};
use llamero_tokenizer::Tokenizer;

use crate::cache::Pool;
use crate::desk::Desk;
use crate::open::{load, open_tokenizer};
use crate::scheduler::{Available, Limits};
use crate::{EngineOptions, InferError, Result, resolve_model};

/// Rows beyond the tokenizer's tokens from which on it is taken for another model's.
const MOST_PADDING: usize = 1024;

/// A model that is ready to be used. It is read only, so threads may share it.
pub struct Engine {
    backend: Arc<dyn Backend>,
    model: Llama,
    tokenizer: Tokenizer,
    stop: BTreeSet<u32>,
    options: EngineOptions,
    desk: Desk,
    draft: Option<Arc<Engine>>,
    /// Room for the draft model's keys and values.
    draft_pages: Pool,
}

impl Engine {
    /// Opens the model that [`resolve_model`] finds at `path`, with weights and activations in `dtype`, or where that is `None`
    /// in the one that the weights are stored in ([`llamero_model::Weights::dtype`]). Quantised weights stay in their blocks in `bf16`.
    ///
    /// The files of an artifact are hashed and compared with its manifest first.
    ///
    /// # Errors
    /// Those of [`resolve_model`]; a damaged file; a model or a tokenizer that cannot be read; a tokenizer of another
    /// vocabulary size than the model's.
    pub fn open(path: &Path, backend: Arc<dyn Backend>, dtype: impl Into<Option<DType>>) -> Result<Self> {
        let dir = resolve_model(path)?;
        if dir.join(MANIFEST).exists() {
            Artifact::open(&dir, None)?.verify()?;
        }
        let tokenizer = open_tokenizer(&dir)?;
        let weights = weights::open(&dir)?;
        // Before gigabytes of weights are read.
        check_vocabulary(weights.config(), &tokenizer)?;
        let dtype = dtype.into().unwrap_or(weights.dtype());
        let model = load(&*weights, &*backend, dtype)?;
        let engine = Self::over(model, tokenizer, backend);
        let named = weights.stop_tokens().map_or_else(Vec::new, |tokens| tokens.stop);
        Ok(Self { stop: engine.stop.iter().copied().chain(named).collect(), ..engine })
    }

    /// An engine over a whole model that is already there. Its weights are rearranged for inference.
    ///
    /// # Errors
    /// A tokenizer of another vocabulary size than the model's.
    pub fn new(mut model: Llama, tokenizer: Tokenizer, backend: Arc<dyn Backend>) -> Result<Self> {
        let whole =
            model.embedding.is_some() && model.norm.is_some() && model.blocks.len() == model.config.layers;
        assert!(whole, "engine: the model is one stage of a pipeline");
        check_vocabulary(&model.config, &tokenizer)?;
        model.pack(&*backend);
        Ok(Self::over(model, tokenizer, backend))
    }

    /// An engine over a model that is arranged for inference.
    fn over(model: Llama, tokenizer: Tokenizer, backend: Arc<dyn Backend>) -> Self {
        let stop = tokenizer.special().ends().iter().copied().collect();
        let options = EngineOptions::default();
        let desk =
            Desk::new(Limits { rows: 1, sequences: 1, pages: 1, idle: 0, saved: 0 }, Available::unknown());
        let (draft, draft_pages) = (None, Pool::new(0));
        Self { backend, model, tokenizer, stop, options, desk, draft, draft_pages }.set_options(options)
    }

    pub(crate) fn set_options(mut self, options: EngineOptions) -> Self {
        self.options = options;
        let limits = self.limits();
        self.desk = Desk::new(limits, self.available());
        self.draft_pages = Pool::new(limits.pages);
        self
    }

    pub(crate) fn set_draft(self, draft: Arc<Engine>) -> Self {
        Self { draft: Some(draft), ..self }
    }

    /// Its options.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.desk
    }

    pub(crate) fn draft(&self) -> Option<&Engine> {
        self.draft.as_deref()
    }

    pub(crate) fn draft_pages(&self) -> &Pool {
        &self.draft_pages
    }

    pub(crate) fn model(&self) -> &Llama {
        &self.model
    }

    /// Element type of activations.
    pub fn dtype(&self) -> DType {
        self.model.norm.as_ref().expect("`new` asserts that the model is whole").value.dtype()
    }

    /// Sizes of the model.
    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Longest sequence in tokens, prompt and answer together.
    pub fn context(&self) -> usize {
        self.model.config.context
    }

    /// Tokens that end a text or a turn: those of the tokenizer's files and those that the model's files name.
    pub fn stop_tokens(&self) -> Vec<u32> {
        self.stop.iter().copied().collect()
    }

    /// The device.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The output projection `[V, C]`.
    pub(crate) fn head(&self) -> &Param {
        self.model.head().expect("`new` asserts that the model is whole")
    }

    /// Checks that all are tokens: rows of the model beyond its tokenizer's are none.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.tokenizer.vocab_size();
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(InferError::UnknownToken { id, vocab }),
            None => Ok(()),
        }
    }

    /// Checks a prompt: some tokens, all of the vocabulary, and room for one more in the context.
    pub(crate) fn check_prompt(&self, prompt: &[u32]) -> Result<()> {
        let (tokens, context) = (prompt.len(), self.context());
        if tokens == 0 {
            return Err(InferError::EmptyPrompt);
        }
        if tokens >= context {
            return Err(InferError::TooLong { what: "the prompt", tokens, room: context - 1, context });
        }
        self.check_ids(prompt)
    }

    /// Hidden states `[T, C]` of packed documents.
    pub(crate) fn hidden(&self, ids: &[u32], segments: &Segments) -> Result<Tensor> {
        let mut hidden = None;
        self.backend.scope(&mut || {
            let mut tape = Tape::infer(&*self.backend);
            let h = self.model.forward(&mut tape, Input::Tokens(ids), segments, Recompute::Nothing);
            hidden = Some(tape.check().map(|()| h.value().clone()));
        });
        Ok(hidden.expect("the scope runs its work")?)
    }

    /// Negative log-likelihood in nats of each row's target under the output projection, by the kernel of training.
    pub(crate) fn nll_of(&self, hidden: &Tensor, targets: &[u32]) -> Vec<f32> {
        let mut nll = Vec::new();
        self.backend.scope(&mut || {
            let result = self.backend.linear_cross_entropy(hidden, &self.head().value, targets);
            nll = self.backend.download(&result.nll);
        });
        nll
    }
}

/// A model may have a few rows more than its tokenizer has tokens, for a rounder number of them.
fn check_vocabulary(config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    let (model, tokenizer) = (config.vocab, tokenizer.vocab_size());
    let fits = (tokenizer..tokenizer + MOST_PADDING).contains(&model);
    if fits { Ok(()) } else { Err(InferError::Vocabulary { model, tokenizer }) }
}
