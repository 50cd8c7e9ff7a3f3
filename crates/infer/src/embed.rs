//! Texts as vectors: hidden states after the final norm, pooled.
//!
//! `C` model width.

use llamero_tensor::Segments;
use llamero_tokenizer::Tokenizer;

use crate::{Engine, InferError, Result};

/// Rows that windows are packed to. The result does not depend on it.
const PACKED_ROWS: usize = 1024;

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean over all tokens of the text.
    #[default]
    Mean,
    /// That of the last token; where a text has several windows, the mean over their last tokens.
    Last,
}

/// How texts become vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// How hidden states become one vector.
    pub pooling: Pooling,
    /// Most tokens that are read together, that which begins texts not counted; never more than the context has room for.
    pub window: usize,
    /// Tokens of a text that count, from its first on; all when absent.
    pub max_tokens: Option<usize>,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { pooling: Pooling::Mean, window: 512, max_tokens: None }
    }
}

/// A stretch of a text that is read from its beginning: `tokens` of it, after the token that begins texts where there is one.
struct Window {
    text: usize,
    ids: Vec<u32>,
    tokens: usize,
}

/// Lengths of the fewest windows of at most `most` tokens, as equal as they can be, the longer ones first.
fn lengths(tokens: usize, most: usize) -> impl Iterator<Item = usize> {
    let windows = tokens.div_ceil(most);
    (0..windows).map(move |at| tokens / windows + usize::from(at < tokens % windows))
}

impl Engine {
    /// The vector `[C]` of each text; `None` for a text that has no tokens.
    ///
    /// A text is cut into the fewest windows of at most `window` tokens, as equal in length as they can be. Each is read from
    /// its beginning, after the token that begins texts where the tokenizer has it; that token is not pooled. Sums are in
    /// f64, in the order of the tokens, so a vector has the same bits whatever is beside the text and however many threads there are.
    ///
    /// # Errors
    /// A window of no tokens, or of more than the model has room for; a result that is no number.
    pub fn embed(&self, texts: &[&str], options: &EmbedOptions) -> Result<Vec<Option<Vec<f32>>>> {
        let begin = self.tokenizer().special().begin_of_text;
        let room = self.context().saturating_sub(usize::from(begin.is_some()));
        let most = options.window.min(room);
        if most == 0 {
            return Err(InferError::Parameter {
                key: "window",
                found: options.window.to_string(),
                allowed: "1 or more",
            });
        }
        let mut windows = Vec::new();
        for (text, content) in texts.iter().enumerate() {
            let ids = tokens(self.tokenizer(), content, options.max_tokens);
            let mut rest = ids.as_slice();
            for length in lengths(ids.len(), most) {
                let (window, later) = rest.split_at(length);
                let ids = begin.iter().chain(window).copied().collect();
                windows.push(Window { text, ids, tokens: length });
                rest = later;
            }
        }
        self.pool(texts.len(), &windows, options.pooling)
    }

    /// The pooled hidden states of `texts` texts.
    fn pool(&self, texts: usize, windows: &[Window], pooling: Pooling) -> Result<Vec<Option<Vec<f32>>>> {
        let width = self.config().dim;
        let mut sums: Vec<Option<(Vec<f64>, usize)>> = vec![None; texts];
        let mut rest = windows;
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = rest.iter().take_while(|window| {
                rows += window.ids.len();
                rows <= PACKED_ROWS
            });
            let (batch, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let ids: Vec<u32> = batch.iter().flat_map(|window| &window.ids).copied().collect();
            let hidden =
                self.hidden(&ids, &Segments::documents(batch.iter().map(|window| window.ids.len())))?;
            let hidden = self.backend().download(&hidden);
            let mut end = 0;
            for window in batch {
                end += window.ids.len();
                let pooled = if pooling == Pooling::Mean { window.tokens } else { 1 };
                let (sum, count) = sums[window.text].get_or_insert_with(|| (vec![0.0; width], 0));
                for row in end - pooled..end {
                    let states = &hidden[row * width..(row + 1) * width];
                    if let Some(&value) = states.iter().find(|value| !value.is_finite()) {
                        return Err(InferError::NonFinite {
                            value,
                            id: ids[row],
                            position: row + window.ids.len() - end,
                        });
                    }
                    sum.iter_mut().zip(states).for_each(|(sum, &value)| *sum += f64::from(value));
                }
                *count += pooled;
            }
        }
        let mean = |(sum, count): (Vec<f64>, usize)| {
            sum.into_iter().map(|sum| (sum / count as f64) as f32).collect()
        };
        Ok(sums.into_iter().map(|found| found.map(mean)).collect())
    }
}

/// The tokens of a text that count.
fn tokens(tokenizer: &Tokenizer, text: &str, most: Option<usize>) -> Vec<u32> {
    let mut ids = tokenizer.encode(text);
    ids.truncate(most.unwrap_or(usize::MAX));
    ids
}

#[cfg(test)]
mod tests {
    use super::lengths;

    #[test]
    fn windows_are_few_and_of_like_length() {
        for most in 1..9 {
            for tokens in 0..60 {
                let all: Vec<usize> = lengths(tokens, most).collect();
                assert_eq!(all.iter().sum::<usize>(), tokens);
                assert_eq!(all.len(), tokens.div_ceil(most));
                assert!(all.iter().all(|&length| (1..=most).contains(&length)));
                assert!(all.iter().max().unwrap_or(&0) - all.iter().min().unwrap_or(&0) <= 1, "{all:?}");
            }
        }
    }
}
