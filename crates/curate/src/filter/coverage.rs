//! Duplicated n-gram coverage of lines.
//!
//! Llama 3 (section 3.1.1) takes away lines of repeated content, such as logs and error messages, which can be long and unique, so that no
//! line deduplication sees them. The ratio is that of Gopher's table A1, taken inside one line; the paper gives no threshold.

use serde::{Deserialize, Serialize};

use super::analysis::{Analysis, lines, words_for_one};
use super::gopher::{ngrams, with_counter};
use super::{check_share, share};
use crate::{CurateError, Dropped};

/// Takes away lines that repeat themselves.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct NgramCoverage {
    /// Words in an n-gram.
    pub ngram: usize,
    /// A line goes when more of its words are in n-grams that come twice or more in it.
    pub max_line: f64,
    /// Shorter lines stay, in words.
    pub min_words: usize,
    /// More of the document's characters gone with such lines: the document is dropped as `ngram_coverage`.
    pub max_removed: f64,
}

impl Default for NgramCoverage {
    fn default() -> Self {
        Self { ngram: 3, max_line: 0.5, min_words: 20, max_removed: 0.5 }
    }
}

impl NgramCoverage {
    /// Checks every value.
    pub(super) fn validate(&self) -> Result<(), CurateError> {
        check_share("ngram_coverage.max_line", Some(self.max_line), 1.0)?;
        check_share("ngram_coverage.max_removed", Some(self.max_removed), 1.0)?;
        if (1..=64).contains(&self.ngram) {
            return Ok(());
        }
        let (found, allowed) = (self.ngram.to_string(), "from 1 to 64".to_owned());
        Err(CurateError::BadFilter { key: "ngram_coverage.ngram".to_owned(), found, allowed })
    }

    /// The text that is left, or why there is none. `None` where every line stays.
    pub(super) fn apply(&self, analysis: &Analysis) -> Result<Option<String>, Dropped> {
        let text = analysis.text;
        let mut kept: Option<String> = None;
        let (mut copied, mut removed, mut word) = (0, 0, 0);
        for (start, end) in lines(text) {
            let first = word;
            while analysis.words.get(word).is_some_and(|word| word.start < end) {
                word += 1;
            }
            let words = &analysis.words[first..word];
            if words.len() < self.min_words || self.covered(words) <= self.max_line {
                continue;
            }
            removed += end - start;
            let kept = kept.get_or_insert_default();
            kept.push_str(&text[copied..start]);
            copied = end;
        }
        let Some(mut kept) = kept else { return Ok(None) };
        let found = share(removed, text.len());
        if found > self.max_removed {
            let detail = format!(
                "{found:.3} of the text is in lines that repeat themselves, limit {}",
                self.max_removed
            );
            return Err(Dropped::new("ngram_coverage", detail));
        }
        kept.push_str(&text[copied..]);
        Ok(Some(kept))
    }

    /// Share of the words that are in an n-gram which comes twice or more.
    fn covered(&self, words: &[super::analysis::Word]) -> f64 {
        with_counter(|counter| {
            let length = self.ngram * words_for_one(words);
            counter.reset(words.len());
            ngrams(words, length, |_, hash| {
                counter.add(hash);
            });
            let (mut covered, mut until) = (0, 0);
            ngrams(words, length, |at, hash| {
                if counter.count(hash) > 1 {
                    covered += at + length - until.max(at);
                    until = at + length;
                }
            });
            share(covered, words.len())
        })
    }
}
