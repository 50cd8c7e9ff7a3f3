//! What `bench train` trains on: made-up tokens, or the bytes of a file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use llamero_data::Sequence;

use super::hash;

/// Seed of everything drawn here.
const SEED: u64 = 1;

/// Where tokens come from. The same on every call, whatever runs beside it.
pub(super) enum Tokens {
    /// Uniform draws from the vocabulary.
    Random {
        /// Ids are below this.
        vocab: usize,
    },
    /// Bytes of a file, each an id; a sequence starts at a drawn place.
    Text(Vec<u8>),
}

impl Tokens {
    /// The bytes of a file, for sequences of `seq` tokens.
    ///
    /// # Errors
    /// A file that cannot be read or is shorter than one sequence.
    pub(super) fn of_file(path: &Path, seq: usize) -> Result<Self> {
        let name = path.display();
        let bytes = std::fs::read(path).with_context(|| format!("`{name}`"))?;
        if bytes.len() <= seq {
            let found = bytes.len();
            bail!(
                "`{name}` has {found} bytes, but a sequence takes {}. hint: give a longer file or a shorter --seq",
                seq + 1
            );
        }
        Ok(Self::Text(bytes))
    }

    /// `seq + 1` consecutive ids: those of sequence number `index`, and the one that follows them.
    pub(super) fn window(&self, index: u64, seq: usize) -> Vec<u32> {
        match self {
            Self::Random { vocab } => {
                let draw = |i| (hash(SEED, index * (seq as u64 + 1) + i) % *vocab as u64) as u32;
                (0..=seq as u64).map(draw).collect()
            }
            Self::Text(bytes) => {
                let start = (hash(SEED, index) % (bytes.len() - seq) as u64) as usize;
                bytes[start..=start + seq].iter().map(|&b| u32::from(b)).collect()
            }
        }
    }
}

/// A window as one document, in which every token has a target.
pub(super) fn sequence(window: &[u32]) -> Sequence {
    let seq = window.len() - 1;
    Sequence { tokens: window[..seq].to_vec(), targets: window[1..].to_vec(), documents: vec![seq] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_fixed_and_inside() {
        let random = Tokens::Random { vocab: 10 };
        let window = random.window(3, 50);
        assert_eq!(window, random.window(3, 50));
        assert_ne!(window, random.window(4, 50));
        assert_eq!(window.len(), 51);
        assert!(window.iter().all(|&id| id < 10));
        // The shortest file that holds a sequence has one place for it.
        let text = Tokens::Text((0..51).collect());
        assert_eq!(text.window(7, 50), (0..51).collect::<Vec<u32>>());
    }

    #[test]
    fn every_token_has_the_next_as_target() {
        let sequence = sequence(&[4, 5, 6, 7]);
        assert_eq!((sequence.tokens, sequence.targets), (vec![4, 5, 6], vec![5, 6, 7]));
        assert_eq!(sequence.documents, [3]);
    }
}
