//! How likely a text is.

use std::sync::mpsc::channel;

use llamero_tensor::{KvFormat, NO_TARGET, Segments};
use serde::{Deserialize, Serialize};

use crate::request::Cancel;
use crate::scheduler::Job;
use crate::{Engine, Event, InferError, Request, Result};

/// Rows that short documents are packed to, and most rows of a pass without pages. The result does not depend on it.
const PACKED_ROWS: usize = 1024;

/// The score of a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Tokens that were predicted: all of the text, the first from `<|begin_of_text|>`; all but the first where the tokenizer
    /// has no such token.
    pub tokens: usize,
    /// Their total negative log-likelihood in nats.
    pub nll: f64,
    /// `nll` in bits per byte of the predicted tokens, which makes it comparable between tokenizers.
    pub bits_per_byte: f64,
    /// Bytes of the predicted tokens: those of the text in UTF-8, less those of its first token where that is not predicted
    /// and those that the vocabulary has no token for.
    pub bytes: usize,
    /// Windows that the text was read in (see [`Engine::score_tokens`]): 1 where it fits the context.
    pub windows: usize,
}

/// The score of a text, and of each of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredText {
    /// The predicted tokens.
    pub ids: Vec<u32>,
    /// The negative log-likelihood in nats of each of `ids`.
    pub nll: Vec<f32>,
    /// All of them together.
    pub score: Score,
}

/// Told of how many tokens to predict how many are predicted.
pub type OnScored<'a> = &'a mut dyn FnMut(usize, usize);

/// A part of a document that is read from its beginning: tokens `start..end`, of which those from `first` on are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    document: usize,
    start: usize,
    first: usize,
    end: usize,
}

/// Windows that together score every token of a document of `len` tokens from token 1 on, each exactly once.
fn windows(document: usize, len: usize, context: usize) -> Vec<Window> {
    let stride = (context / 2).max(1);
    let mut all = Vec::new();
    let (mut start, mut first) = (0, 1);
    while first < len {
        // The last token is predicted and not read, so a window may be one longer than the context.
        let end = len.min(start + context + 1);
        all.push(Window { document, start, first, end });
        start += stride;
        first = end;
    }
    all
}

impl Engine {
    /// Negative log-likelihood in nats of every token after the first, `ids.len() − 1` values: the bits that training
    /// computes for the same tokens.
    ///
    /// Up to `context + 1` tokens are read from their beginning. A longer text is read in windows of `context` tokens that begin
    /// `context / 2` tokens apart; each scores the tokens that no earlier window has scored, so every token is scored
    /// once, and all but the first ones with at least `context / 2` tokens before it.
    ///
    /// # Errors
    /// Fewer than two tokens; an id outside the vocabulary; a result that is no number.
    pub fn score_tokens(&self, ids: &[u32]) -> Result<Vec<f32>> {
        Ok(self.score_document(ids, &mut |_, _| {})?.0)
    }

    /// [`Engine::score_tokens`], and the number of windows.
    fn score_document(&self, ids: &[u32], on_scored: OnScored<'_>) -> Result<(Vec<f32>, usize)> {
        check_length(0, ids)?;
        let windows = windows(0, ids.len(), self.context());
        let mut scores = self.score_windows(&[ids], &windows, on_scored)?;
        Ok((scores.swap_remove(0), windows.len()))
    }

    /// [`Engine::score_tokens`] of several documents, packed so that short ones share a pass. The same bits.
    ///
    /// # Errors
    /// As [`Engine::score_tokens`].
    pub fn score_batch(&self, documents: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        documents.iter().enumerate().try_for_each(|(at, ids)| check_length(at, ids))?;
        let context = self.context();
        let all = documents.iter().enumerate().flat_map(|(d, ids)| windows(d, ids.len(), context));
        self.score_windows(documents, &all.collect::<Vec<_>>(), &mut |_, _| {})
    }

    /// The score of a text as a document of its own: `<|begin_of_text|>`, where the tokenizer has it, and its tokens, see
    /// [`Engine::score_tokens`].
    ///
    /// # Errors
    /// An empty text; a result that is no number.
    pub fn score_text(&self, text: &str) -> Result<Score> {
        Ok(self.score_each(text, &mut |_, _| {})?.score)
    }

    /// [`Engine::score_text`] with the score of every token. `on_scored` is called before the first pass and after each.
    ///
    /// # Errors
    /// As there.
    pub fn score_each(&self, text: &str, on_scored: OnScored<'_>) -> Result<ScoredText> {
        if text.is_empty() {
            return Err(InferError::NothingToScore { found: "the text is empty".into() });
        }
        let tokenizer = self.tokenizer();
        let mut ids = Vec::from_iter(tokenizer.special().begin_of_text);
        tokenizer.encode_into(text, &mut ids);
        let (nll, windows) = self.score_document(&ids, on_scored)?;
        let ids = ids.split_off(1);
        let bytes = ids.iter().filter_map(|&id| tokenizer.token_bytes(id)).map(<[u8]>::len).sum();
        let total: f64 = nll.iter().copied().map(f64::from).sum();
        let bits_per_byte = total / std::f64::consts::LN_2 / bytes as f64;
        Ok(ScoredText {
            score: Score { tokens: nll.len(), nll: total, bits_per_byte, bytes, windows },
            ids,
            nll,
        })
    }

    /// Log-probability in nats of each token of `continuation` after `context`, in one pass.
    ///
    /// # Errors
    /// An empty `context` or `continuation`; both together longer than the model's context.
    pub fn score_continuation(&self, context: &[u32], continuation: &[u32]) -> Result<Vec<f32>> {
        if context.is_empty() {
            return Err(InferError::EmptyPrompt);
        }
        self.check_continuation(context.len(), continuation)?;
        let ids = [context, continuation].concat();
        let window = Window { document: 0, start: 0, first: context.len(), end: ids.len() };
        let mut nll = self.score_windows(&[&ids], &[window], &mut |_, _| {})?;
        Ok(nll.swap_remove(0).into_iter().map(|x| -x).collect())
    }

    /// Total log-probability in nats of each of `choices` after `prompt`, which goes through the model once.
    ///
    /// # Errors
    /// An empty prompt; an empty choice; a prompt that does not fit the context together with a choice.
    pub fn choose(&self, prompt: &[u32], choices: &[Vec<u32>]) -> Result<Vec<f64>> {
        self.check_prompt(prompt)?;
        for choice in choices {
            self.check_continuation(prompt.len(), choice)?;
            self.check_ids(choice)?;
        }
        let choice_ids = |choice: &Vec<u32>| [prompt, choice.as_slice()].concat();
        for choice in choices {
            self.check_memory(prompt.len() + choice.len() - 1)?;
        }
        if choices.len() > 1 && prompt.len() > 1 {
            // Scores nothing, and leaves keys and values of the prompt for all choices.
            self.score_requests([Request::score(prompt.to_vec(), prompt.len())])?;
        }
        let requests = choices.iter().map(|choice| Request::score(choice_ids(choice), prompt.len()));
        let scores = self.score_requests(requests)?;
        Ok(scores.into_iter().map(|scores| scores.into_iter().map(f64::from).sum()).collect())
    }

    /// Log-probabilities of requests that were checked, all worked on together.
    fn score_requests(&self, requests: impl IntoIterator<Item = Request>) -> Result<Vec<Vec<f32>>> {
        let cancel = Cancel::default();
        let submit = |request| {
            let (sender, events) = channel();
            (Job::new(request, self.context(), sender, cancel.clone()), events)
        };
        let (jobs, events): (Vec<_>, Vec<_>) = requests.into_iter().map(submit).unzip();
        self.desk().submit(jobs);
        let scores = events.iter().map(|events| match self.next_event(events) {
            Event::Scored(scores) => Ok(scores),
            Event::Failed(error) => Err(error),
            Event::Token { .. } | Event::Done(_) => panic!("score: the answer is a text"),
        });
        let scores: Result<Vec<_>> = scores.collect();
        if scores.is_err() {
            // The others are not wanted any more, and need not keep their pages until somebody comes.
            cancel.cancel();
            self.desk().work(self);
        }
        scores
    }

    pub(crate) fn check_continuation(&self, before: usize, continuation: &[u32]) -> Result<()> {
        let (tokens, context) = (continuation.len(), self.context());
        if tokens == 0 {
            return Err(InferError::NothingToScore { found: "the continuation is empty".into() });
        }
        let room = context.saturating_sub(before);
        if tokens > room {
            return Err(InferError::TooLong { what: "the continuation", tokens, room, context });
        }
        Ok(())
    }

    /// The scored tokens of every window, appended to those of their documents.
    fn score_windows(
        &self,
        documents: &[&[u32]],
        windows: &[Window],
        on_scored: OnScored<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        for ids in documents {
            self.check_ids(ids)?;
        }
        let mut scores = vec![Vec::new(); documents.len()];
        let tokens = |windows: &[Window]| windows.iter().map(|w| w.end - w.first).sum::<usize>();
        let (mut rest, all) = (windows, tokens(windows));
        on_scored(0, all);
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = rest.iter().take_while(|w| {
                rows += w.end - 1 - w.start;
                rows <= PACKED_ROWS
            });
            let count = fits.count();
            let (batch, later) = rest.split_at(count.max(1));
            match batch {
                [long] if count == 0 => self.score_long(documents, long, &mut scores)?,
                _ => self.score_pass(documents, batch, &mut scores)?,
            }
            rest = later;
            on_scored(all - tokens(rest), all);
        }
        Ok(scores)
    }

    /// A window of more rows than go through the layers at once: in chunks, as a prompt is read, so that its activations need
    /// no more memory than those of any request. The same bits, unless keys and values are kept as integers; then it is one pass.
    fn score_long(&self, documents: &[&[u32]], window: &Window, scores: &mut [Vec<f32>]) -> Result<()> {
        if self.kv_layout().format == KvFormat::Int8 {
            return self.score_pass(documents, std::slice::from_ref(window), scores);
        }
        self.check_memory(window.end - 1 - window.start)?;
        let ids = documents[window.document][window.start..window.end].to_vec();
        let mut found = self.score_requests([Request::score(ids, window.first - window.start)])?;
        scores[window.document].extend(found.swap_remove(0).into_iter().map(|logprob| -logprob));
        Ok(())
    }

    fn score_pass(&self, documents: &[&[u32]], batch: &[Window], scores: &mut [Vec<f32>]) -> Result<()> {
        let (mut ids, mut targets) = (Vec::new(), Vec::new());
        for w in batch {
            let tokens = &documents[w.document][..w.end];
            ids.extend_from_slice(&tokens[w.start..w.end - 1]);
            targets.extend(std::iter::repeat_n(NO_TARGET, w.first - w.start - 1));
            targets.extend_from_slice(&tokens[w.first..]);
        }
        let segments = Segments::documents(batch.iter().map(|w| w.end - 1 - w.start));
        let hidden = self.hidden(&ids, &segments)?;
        let nll = self.nll_of(&hidden, &targets);
        for (w, segment) in batch.iter().zip(segments.iter()) {
            let scored = &nll[segment.rows.end - (w.end - w.first)..segment.rows.end];
            check_finite(scored, &documents[w.document][w.first..w.end], w.first)?;
            scores[w.document].extend_from_slice(scored);
        }
        Ok(())
    }
}

/// Checks that something of a document can be predicted.
fn check_length(at: usize, ids: &[u32]) -> Result<()> {
    if ids.len() < 2 {
        let found = format!("document {at} has {} tokens, and the first is never predicted", ids.len());
        return Err(InferError::NothingToScore { found });
    }
    Ok(())
}

/// Checks the scores of `tokens`, the first of which is at `position`.
pub(crate) fn check_finite(nll: &[f32], tokens: &[u32], position: usize) -> Result<()> {
    match nll.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(InferError::NonFinite { value: nll[at], id: tokens[at], position: position + at }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_score_every_token_once_with_enough_before_it() {
        for context in 1..9 {
            for len in 0..40 {
                let all = windows(3, len, context);
                let mut next = 1;
                for w in &all {
                    assert_eq!((w.document, w.first), (3, next), "context {context}, {len} tokens");
                    assert!(w.start < w.first && w.first < w.end, "{w:?}");
                    assert!(w.end - 1 - w.start <= context, "{w:?}");
                    let before = w.first - w.start;
                    assert!(w.start == 0 || before >= context / 2, "{w:?}");
                    next = w.end;
                }
                assert_eq!(next.max(1), len.max(1));
                assert_eq!(all.len() <= 1, len <= context + 1);
            }
        }
    }
}
