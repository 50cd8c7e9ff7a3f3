//! Many byte strings in one piece of memory.

use crate::bpe::FixedMap;
use std::collections::BTreeSet;

/// A list of byte strings, one behind the other. A vocabulary has tens of thousands of strings of a few bytes; to allocate
/// each on its own would take several times the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Tokens {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn push(&mut self, token: &[u8]) {
        self.bytes.extend_from_slice(token);
        self.ends.push(self.bytes.len());
    }

    /// Appends the string that `bytes` makes; where one is missing nothing is appended, and `false` returned.
    pub(crate) fn push_all(&mut self, bytes: impl Iterator<Item = Option<u8>>) -> bool {
        let before = self.bytes.len();
        for byte in bytes {
            let Some(byte) = byte else {
                self.bytes.truncate(before);
                return false;
            };
            self.bytes.push(byte);
        }
        self.ends.push(self.bytes.len());
        true
    }

    pub(crate) fn pop(&mut self) {
        self.ends.pop();
        self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
    }

    /// The string at `index`.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[begin..end])
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + DoubleEndedIterator + Clone {
        (0..self.len()).map(|index| &self[index])
    }

    /// Gives back memory that is not needed.
    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

impl std::ops::Index<usize> for Tokens {
    type Output = [u8];

    #[inline]
    fn index(&self, index: usize) -> &[u8] {
        let begin = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[begin..self.ends[index]]
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for Tokens {
    fn from_iter<I: IntoIterator<Item = T>>(strings: I) -> Tokens {
        let mut tokens = Tokens::default();
        strings.into_iter().for_each(|token| tokens.push(token.as_ref()));
        tokens
    }
}

/// Pairs of byte strings that are to be joined, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Merges(Tokens);

impl Merges {
    pub(crate) fn len(&self) -> usize {
        self.0.len() / 2
    }

    /// Appends what the two sides make; `false`, and nothing appended, where a byte is missing.
    pub(crate) fn push_all<I: Iterator<Item = Option<u8>>>(&mut self, left: I, right: I) -> bool {
        if !self.0.push_all(left) {
            return false;
        }
        let whole = self.0.push_all(right);
        if !whole {
            self.0.pop();
        }
        whole
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        (0..self.len()).map(|at| (&self.0[2 * at], &self.0[2 * at + 1]))
    }

    /// The ids of those of `tokens` that texts are made of: single bytes, and what a merge takes or makes.
    pub(crate) fn made_of(&self, tokens: &FixedMap<Vec<u8>, u32>) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> =
            tokens.iter().filter(|(token, _)| token.len() == 1).map(|(_, &id)| id).collect();
        // There are many merges, and names of special tokens begin with few bytes.
        let mut begins = [false; 256];
        tokens.keys().filter_map(|token| token.first()).for_each(|&byte| begins[usize::from(byte)] = true);
        let longest = tokens.keys().map(Vec::len).max().unwrap_or(0);
        let may_be = |token: &[u8]| {
            token.len() <= longest && token.first().is_some_and(|&byte| begins[usize::from(byte)])
        };
        let mut joined = Vec::new();
        for (left, right) in self.iter() {
            joined.clear();
            if may_be(left) {
                joined.extend_from_slice(left);
                joined.extend_from_slice(right);
            }
            for token in [left, right, &joined] {
                if may_be(token)
                    && let Some(&id) = tokens.get(token)
                {
                    found.insert(id);
                }
            }
        }
        found
    }
}
