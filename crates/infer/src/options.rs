//! What an engine may use.

use std::sync::Arc;
use std::time::Duration;

use llamero_tensor::KvFormat;

use crate::cache::pages_for;
use crate::memory;
use crate::request::Guess;
use crate::scheduler::{Available, Counts, Limits};
use crate::{Engine, InferError, Result};

/// How an engine keeps keys and values, and how much it does at a time. What it computes does not depend on it, but for `kv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Most bytes that keys and values take, those of a draft model included; absent means what memory there is when the engine
    /// opens, less a reserve and [`EngineOptions::host_bytes`]. Then a request also waits while others go on where less is there by
    /// now: the system is asked again when requests come, at most once a second.
    pub kv_bytes: Option<u64>,
    /// Most bytes of the host's memory that keys and values of requests take that had to give theirs to others; beyond, they are
    /// computed again. Absent means a quarter of [`EngineOptions::kv_bytes`].
    pub host_bytes: Option<u64>,
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
            host_bytes: None,
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

    /// Bytes of keys and values at their peak, those kept for later included, those of a draft model not.
    pub fn peak_kv_bytes(&self) -> u64 {
        self.counts().peak_pages as u64 * self.page_bytes()
    }

    /// The options in pages.
    pub(crate) fn limits(&self) -> Limits {
        let EngineOptions { kv_bytes, host_bytes, prefix_bytes, rows, sequences, .. } = *self.options();
        let pages_in = |bytes: u64, page: u64| usize::try_from(bytes / page.max(1)).unwrap_or(usize::MAX);
        let (page, context) = (self.page_bytes(), pages_for(self.context()));
        let found = || usable(host_bytes);
        // A system that tells nothing gets a few contexts.
        let pages =
            kv_bytes.or_else(found).map_or(8 * context, |bytes| pages_in(bytes, self.kv_page_bytes()));
        let idle = prefix_bytes.map_or(context, |bytes| pages_in(bytes, page));
        let saved = host_bytes.map_or(pages / 4, |bytes| pages_in(bytes, page));
        Limits { rows, sequences, pages: pages.max(1), idle, saved }
    }

    /// What the system has room for when a request comes; the options say it where they name a limit.
    pub(crate) fn available(&self) -> Available {
        let EngineOptions { kv_bytes, host_bytes, .. } = *self.options();
        if kv_bytes.is_some() {
            return Available::unknown();
        }
        let page = self.kv_page_bytes().max(1);
        let pages = move || usize::try_from(usable(host_bytes)? / page).ok();
        Available::new(Duration::from_secs(1), Box::new(pages))
    }

    /// Bytes of the keys and values of [`llamero_tensor::KV_PAGE`] tokens, the least that is kept of a request; those of the
    /// draft model, which has as many pages, included.
    pub fn kv_page_bytes(&self) -> u64 {
        self.page_bytes() + self.draft().map_or(0, Self::page_bytes)
    }

    /// Checks that a sequence of `tokens` fits the memory for keys and values.
    pub(crate) fn check_memory(&self, tokens: usize) -> Result<()> {
        let (needed, limit) = (pages_for(tokens), self.desk().pages());
        if needed <= limit {
            return Ok(());
        }
        let page = self.kv_page_bytes();
        Err(InferError::Memory { tokens, needed: needed as u64 * page, limit: limit as u64 * page })
    }
}

/// Bytes that keys and values may take of the memory that is available now: what is saved of them is in the same memory.
fn usable(host_bytes: Option<u64>) -> Option<u64> {
    memory::usable().map(|all| all.saturating_sub(host_bytes.unwrap_or(all / 5)))
}
