//! What an engine may use.

use std::sync::Arc;

use llamero_tensor::KvFormat;

use crate::cache::pages_for;
use crate::memory;
use crate::request::Guess;
use crate::scheduler::{Counts, Limits};
use crate::{Engine, InferError, Result};

/// How an engine keeps keys and values, and how much it does at a time. What it computes does not depend on it, but for `kv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Most bytes that keys and values take; absent means what memory there is when the engine opens, less a reserve.
    pub kv_bytes: Option<u64>,
    /// Most bytes of keys and values that are kept for later requests that begin alike; absent means those of one whole context.
    pub prefix_bytes: Option<u64>,
    /// Rows of a pass, about: more are faster and take more memory.
    pub rows: usize,
    /// Requests that are worked on at a time.
    pub sequences: usize,
    /// How the tokens of [`Engine::generate`] are guessed.
    pub guess: Guess,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            kv: KvFormat::Same,
            kv_bytes: None,
            prefix_bytes: None,
            rows: 512,
            sequences: 256,
            guess: Guess::Off,
        }
    }
}

impl Engine {
    /// The same engine with other options, without keys and values of earlier requests.
    pub fn with_options(self, options: EngineOptions) -> Self {
        let options =
            EngineOptions { rows: options.rows.max(1), sequences: options.sequences.max(1), ..options };
        self.set_options(options)
    }

    /// The same engine with another number of rows per pass over a prompt: memory for speed, the same bits.
    pub fn with_prefill_chunk(self, rows: usize) -> Self {
        let options = EngineOptions { rows, ..*self.options() };
        self.with_options(options)
    }

    /// The same engine with a model that guesses its tokens ([`Guess::Draft`]). Options other than its `rows` do not matter.
    ///
    /// # Errors
    /// A draft model with another tokenizer.
    pub fn with_draft(self, draft: Arc<Engine>) -> Result<Self> {
        if self.tokenizer().fingerprint() != draft.tokenizer().fingerprint() {
            return Err(InferError::Draft {
                model: self.tokenizer().vocab_size(),
                draft: draft.tokenizer().vocab_size(),
            });
        }
        let options = EngineOptions { guess: Guess::Draft, ..*self.options() };
        Ok(self.set_draft(draft).with_options(options))
    }

    /// What it did since its options were set.
    pub fn counts(&self) -> Counts {
        self.desk().counts()
    }

    /// Bytes of keys and values at their peak, those kept for later included.
    pub fn peak_kv_bytes(&self) -> u64 {
        self.counts().peak_pages as u64 * self.page_bytes()
    }

    /// The options in pages.
    pub(crate) fn limits(&self) -> Limits {
        let (EngineOptions { kv_bytes, prefix_bytes, rows, sequences, .. }, page) =
            (*self.options(), self.page_bytes().max(1));
        let context = pages_for(self.context());
        let bytes = kv_bytes.or_else(memory::usable);
        // A system that tells nothing gets a few contexts.
        let pages = bytes.map_or(8 * context, |bytes| usize::try_from(bytes / page).unwrap_or(usize::MAX));
        let idle = prefix_bytes.map_or(context, |bytes| usize::try_from(bytes / page).unwrap_or(usize::MAX));
        Limits { rows, sequences, pages: pages.max(1), idle }
    }

    /// Checks that a sequence of `tokens` fits the memory for keys and values.
    pub(crate) fn check_memory(&self, tokens: usize) -> Result<()> {
        let (needed, limit) = (pages_for(tokens), self.desk().pages());
        if needed <= limit {
            return Ok(());
        }
        let page = self.page_bytes();
        Err(InferError::Memory { tokens, needed: needed as u64 * page, limit: limit as u64 * page })
    }
}
