//! A model, its tokenizer and its device.
//!
//! `T` packed rows, `C` model width, `V` vocabulary.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use llamero_artifact::{Artifact, MANIFEST};
use llamero_autograd::{Param, Tape};
use llamero_model::{Config, Input, Llama, Recompute, weights};
use llamero_tensor::{Backend, DType, Segments, Shape, Tensor};
use llamero_tokenizer::Tokenizer;

use crate::cache::KvCache;
use crate::open::{load, open_tokenizer};
use crate::{InferError, Result, resolve_model};

/// Rows of a prompt that go through the model at once. The result does not depend on it.
const PREFILL_CHUNK: usize = 512;

/// A model that is ready to be used. It is read only, so threads may share it.
pub struct Engine {
    backend: Arc<dyn Backend>,
    model: Llama,
    tokenizer: Tokenizer,
    stop: BTreeSet<u32>,
    prefill_chunk: usize,
}

impl Engine {
    /// Opens the model that [`resolve_model`] finds at `path`, with weights and activations in `dtype`, or where that is `None`
    /// in the one that the weights are stored in ([`llamero_model::Weights::dtype`]). Quantised weights stay in their blocks in `bf16`.
    ///
    /// The files of an artifact are hashed and compared with its manifest first. With `bf16`, logits are rounded to bf16
    /// before a token is drawn; scores and log-probabilities are not.
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
        Self { backend, model, tokenizer, stop, prefill_chunk: PREFILL_CHUNK }
    }

    /// The same engine with another number of rows per pass over a prompt: memory for speed, the same bits.
    pub fn with_prefill_chunk(self, rows: usize) -> Self {
        Self { prefill_chunk: rows.max(1), ..self }
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

    /// Tokens that end a text or a turn: `<|end_of_text|>`, `<|eot_id|>` and whatever else the tokenizer's or the model's
    /// files name.
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

    /// An empty sequence.
    pub(crate) fn session(&self) -> Session {
        Session { ids: Vec::new(), cache: KvCache::new(1, self.context()) }
    }

    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model.config.vocab;
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
        let mut tape = Tape::infer(&*self.backend);
        let h = self.model.forward(&mut tape, Input::Tokens(ids), segments, Recompute::Nothing);
        tape.check()?;
        Ok(h.value().clone())
    }

    /// Appends `ids` to a sequence in one pass; returns their hidden states `[T, C]`.
    pub(crate) fn extend(&self, session: &mut Session, ids: &[u32]) -> Result<Tensor> {
        let segments = session.cache.begin(&[(0, ids.len())]);
        let hidden = {
            let mut tape = Tape::infer_with(&*self.backend, &mut session.cache);
            let h = self.model.forward(&mut tape, Input::Tokens(ids), &segments, Recompute::Nothing);
            tape.check()?;
            h.value().clone()
        };
        session.cache.commit();
        session.ids.extend_from_slice(ids);
        Ok(hidden)
    }

    /// Makes `session` hold exactly `prompt`, keeping what they have in common. Returns the hidden state `[1, C]` of the
    /// last token, and how many tokens needed no computation.
    pub(crate) fn read(&self, session: &mut Session, prompt: &[u32]) -> Result<(Tensor, usize)> {
        let common = session.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always computed: its hidden state is not kept.
        let kept = common.min(prompt.len() - 1);
        session.truncate(kept);
        let mut last = None;
        for chunk in prompt[kept..].chunks(self.prefill_chunk) {
            last = Some(self.extend(session, chunk)?);
        }
        let hidden = last.expect("a prompt has a last token");
        Ok((self.rows(&hidden, hidden.rows() - 1), kept))
    }

    /// The rows of `x` from `first` on.
    pub(crate) fn rows(&self, x: &Tensor, first: usize) -> Tensor {
        let mut out = self.backend.zeros(Shape::new(x.rows() - first, x.cols()), x.dtype());
        self.backend.copy_rows(&mut out, 0, x, first..x.rows(), 0..x.cols());
        out
    }

    /// Negative log-likelihood in nats of each row's target under the output projection, by the kernel of training.
    pub(crate) fn nll(&self, hidden: &Tensor, targets: &[u32]) -> Vec<f32> {
        let result = self.backend.linear_cross_entropy(hidden, &self.head().value, targets);
        self.backend.download(&result.nll)
    }
}

fn check_vocabulary(config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    let (model, tokenizer) = (config.vocab, tokenizer.vocab_size());
    if model == tokenizer { Ok(()) } else { Err(InferError::Vocabulary { model, tokenizer }) }
}

/// One sequence: its tokens, and the keys and values of all of them.
pub(crate) struct Session {
    pub(crate) ids: Vec<u32>,
    cache: KvCache,
}

impl Session {
    /// Forgets the tokens from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.cache.truncate(0, len);
    }
}
