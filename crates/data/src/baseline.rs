//! Unigram and bigram models of the training tokens: what counting alone would score.

use std::collections::HashMap;

use crate::{DataError, Loader};

/// Counts of tokens and of adjacent pairs.
///
/// Unigram: add-one smoothing. Bigram: Witten–Bell, `p(w|h) = (c(h,w) + t(h)·p(w)) / (c(h) + t(h))` with `t(h)` the
/// number of different tokens seen after `h`. Counts come from the very sequences that a model is trained on.
pub struct NgramBaseline {
    unigrams: Vec<u64>,
    total: u64,
    pairs: HashMap<(u32, u32), u32>,
    followed: Vec<u64>,
    followers: Vec<u64>,
}

impl NgramBaseline {
    /// Counts the first `sequences` sequences of a loader, but at most one pass over its store.
    pub fn count(loader: &Loader, sequences: u64) -> Result<Self, DataError> {
        let vocab = loader.store().vocab();
        let mut counts = Self {
            unigrams: vec![0; vocab],
            total: 0,
            pairs: HashMap::new(),
            followed: vec![0; vocab],
            followers: vec![0; vocab],
        };
        for i in 0..sequences.min(loader.sequences_per_epoch()) {
            let sequence = loader.sequence(i)?;
            for (&h, &w) in sequence.tokens.iter().zip(&sequence.targets).filter(|(_, w)| **w != u32::MAX) {
                counts.add(h, w);
            }
        }
        Ok(counts)
    }

    fn add(&mut self, h: u32, w: u32) {
        self.unigrams[w as usize] += 1;
        self.total += 1;
        self.followed[h as usize] += 1;
        let seen = self.pairs.entry((h, w)).or_default();
        if *seen == 0 {
            self.followers[h as usize] += 1;
        }
        *seen += 1;
    }

    fn unigram(&self, w: u32) -> f64 {
        (self.unigrams[w as usize] + 1) as f64 / (self.total + self.unigrams.len() as u64) as f64
    }

    fn bigram(&self, h: u32, w: u32) -> f64 {
        let (followed, kinds) = (self.followed[h as usize] as f64, self.followers[h as usize] as f64);
        if followed == 0.0 {
            return self.unigram(w);
        }
        let pair = f64::from(self.pairs.get(&(h, w)).copied().unwrap_or(0));
        (pair + kinds * self.unigram(w)) / (followed + kinds)
    }

    /// Negative log-likelihood in nats of all but the first token of a document: (unigram, bigram).
    pub fn nll(&self, ids: &[u32]) -> (f64, f64) {
        ids.windows(2).fold((0.0, 0.0), |(one, two), pair| {
            (one - libm::log(self.unigram(pair[1])), two - libm::log(self.bigram(pair[0], pair[1])))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Domain, TokenStore, TokenWriter};

    #[test]
    fn probabilities_sum_to_one_and_counting_helps() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = TokenWriter::create(dir.path(), "train", 7, "test").unwrap();
        writer.push(&[0, 1, 2, 3, 1, 2, 3, 1, 2, 4], 10, Domain::Code).unwrap();
        writer.finish().unwrap();
        let loader = Loader::new(TokenStore::open(dir.path(), "train").unwrap(), 10, 1).unwrap();
        let counts = NgramBaseline::count(&loader, 5).unwrap();
        assert_eq!(counts.total, 9, "one pass counts every target once");
        assert!(((0..7).map(|w| counts.unigram(w)).sum::<f64>() - 1.0).abs() < 1e-12);
        for h in 0..7 {
            let sum: f64 = (0..7).map(|w| counts.bigram(h, w)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{h}: {sum}");
        }
        let (one, two) = counts.nll(&[1, 2, 3, 1, 2]);
        assert!(two < one, "{two} {one}");
    }
}
