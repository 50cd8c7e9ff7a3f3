//! Passes over the model.
//!
//! `T` packed rows, `C` model width, `V` vocabulary.

use std::ops::Range;

use bytes::Bytes;
use llamero_autograd::Tape;
use llamero_comm::CommError;
use llamero_model::{Input, Recompute};
use llamero_tensor::{Heads, KvLayout, Segments, Shape, Tensor};

use crate::cache::{PagedStore, Part, Pool, pages_for, segments};
use crate::draft::DraftSession;
use crate::scheduler::{Model, Output};
use crate::{Engine, SamplingParams, sample};

impl Engine {
    /// What its pages are made for.
    pub(crate) fn kv_layout(&self) -> KvLayout {
        let config = self.config();
        let heads = Heads { query: config.heads, kv: config.kv_heads, dim: config.head_dim };
        KvLayout { layers: config.layers, heads, format: self.options().kv }
    }

    /// Bytes of a page.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.backend().kv_page_bytes(self.kv_layout(), self.dtype()) as u64
    }

    fn pass(&self, ids: &[u32], segments: &Segments, parts: &mut [Part<'_>]) -> Result<Output, CommError> {
        let wanted: Vec<(usize, bool)> = parts.iter().map(|part| (part.wanted, part.logits)).collect();
        let h = {
            let mut store = PagedStore { layout: self.kv_layout(), parts };
            let mut tape = Tape::infer_with(self.backend(), &mut store);
            let h = self.model().forward(&mut tape, Input::Tokens(ids), segments, Recompute::Nothing);
            tape.check()?;
            h.value().clone()
        };
        let last = |(segment, wanted): (&llamero_tensor::Segment, usize)| {
            segment.rows.end - wanted..segment.rows.end
        };
        let rows = segments.iter().zip(&wanted).map(|(segment, (wanted, _))| last((segment, *wanted)));
        let of_logits = segments.iter().zip(&wanted).filter(|(_, (_, logits))| *logits);
        let of_logits = of_logits.map(|(segment, (wanted, _))| last((segment, *wanted)));
        let (rows, of_logits): (Vec<_>, Vec<_>) = (rows.collect(), of_logits.collect());
        let logits = if of_logits.is_empty() {
            Vec::new()
        } else {
            let logits = self.backend().linear_f32(&self.gather(&h, &of_logits), &self.head().value);
            let mut logits = self.backend().download(&logits);
            let (rows, tokens) = (self.config().vocab, self.tokenizer().vocab_size());
            if tokens < rows {
                // Rows that stand for no token are never drawn.
                let kept = logits.chunks_exact(rows).flat_map(|logits| &logits[..tokens]);
                logits = kept.copied().collect();
            }
            logits
        };
        Ok(Output { hidden: self.gather(&h, &rows), logits })
    }

    /// Some rows of `x`, one run after another.
    fn gather(&self, x: &Tensor, runs: &[Range<usize>]) -> Tensor {
        let rows = runs.iter().map(Range::len).sum();
        if rows == x.rows() {
            return x.clone();
        }
        let mut out = self.backend().zeros(Shape::new(rows, x.cols()), x.dtype());
        let mut at = 0;
        for run in runs.iter().filter(|run| !run.is_empty()) {
            self.backend().copy_rows(&mut out, at, x, run.clone(), 0..x.cols());
            at += run.len();
        }
        out
    }
}

impl Model for Engine {
    fn new_page(&self) -> Tensor {
        self.backend().kv_page(self.kv_layout(), self.dtype())
    }

    fn copy_page(&self, page: &Tensor) -> Tensor {
        self.backend().kv_copy(page)
    }

    fn save_page(&self, page: &Tensor) -> Bytes {
        self.backend().kv_save(page)
    }

    fn restore_page(&self, saved: &Bytes) -> Tensor {
        self.backend().kv_restore(saved, self.kv_layout(), self.dtype())
    }

    fn read(&self, parts: &mut [Part<'_>]) -> Result<Output, CommError> {
        let segments = segments(parts);
        let ids: Vec<u32> = parts.iter().flat_map(|part| part.ids).copied().collect();
        let mut output = None;
        self.backend().scope(&mut || output = Some(self.pass(&ids, &segments, parts)));
        let output = output.expect("the scope runs its work")?;
        for part in parts {
            part.sequence.len += part.ids.len();
        }
        Ok(output)
    }

    fn keep(&self, hidden: &Tensor, rows: Range<usize>) -> Tensor {
        self.gather(hidden, &[rows])
    }

    fn nll(&self, hidden: &[Tensor], targets: &[u32]) -> Vec<f32> {
        if let [hidden] = hidden {
            return self.nll_of(hidden, targets);
        }
        let (rows, cols) = (hidden.iter().map(Tensor::rows).sum(), hidden[0].cols());
        let mut all = self.backend().zeros(Shape::new(rows, cols), hidden[0].dtype());
        let mut at = 0;
        for rows in hidden {
            self.backend().copy_rows(&mut all, at, rows, 0..rows.rows(), 0..cols);
            at += rows.rows();
        }
        self.nll_of(&all, targets)
    }

    fn guess(
        &self,
        session: &mut DraftSession,
        ids: &[u32],
        params: &SamplingParams,
        most: usize,
    ) -> Vec<u32> {
        let pool = self.draft_pages();
        self.draft().map_or_else(Vec::new, |draft| draft.continue_draft((session, pool), ids, params, most))
    }
}

impl Engine {
    /// As a draft model: the tokens that it would draw after `ids`, with the same seed, so that it often draws what the other
    /// model draws.
    fn continue_draft(
        &self,
        (session, pool): (&mut DraftSession, &Pool),
        ids: &[u32],
        params: &SamplingParams,
        most: usize,
    ) -> Vec<u32> {
        let (mut ids, given) = (ids.to_vec(), ids.len());
        // Its last token is read after it was drawn, but the last of all.
        let most = most.min((self.context() + 1).saturating_sub(given));
        let common = session.ids.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        session.sequence.truncate(common.min(given - 1));
        while ids.len() < given + most {
            let Some(logits) = self.read_draft(session, pool, &ids) else { break };
            match sample(&logits, params, &ids, ids.len()) {
                Ok(id) => ids.push(id),
                Err(_) => break,
            }
        }
        session.ids.clear();
        session.ids.extend_from_slice(&ids);
        ids.split_off(given)
    }

    /// Reads what the session has not read of `ids`; returns the logits after the last one, if there are pages enough.
    fn read_draft(&self, session: &mut DraftSession, pool: &Pool, ids: &[u32]) -> Option<Vec<f32>> {
        if pages_for(ids.len()).saturating_sub(session.sequence.pages.len()) > pool.free() {
            return None;
        }
        let mut logits = Vec::new();
        while session.sequence.len < ids.len() {
            let len = session.sequence.len;
            let end = ids.len().min(len + self.options().rows);
            while session.sequence.pages.len() < pages_for(end) {
                session.sequence.pages.push(pool.hold(self.new_page()));
            }
            let is_last = end == ids.len();
            let part = Part {
                sequence: &mut session.sequence,
                ids: &ids[len..end],
                wanted: usize::from(is_last),
                logits: is_last,
            };
            logits = self.read(&mut [part]).ok()?.logits;
        }
        Some(logits)
    }
}
