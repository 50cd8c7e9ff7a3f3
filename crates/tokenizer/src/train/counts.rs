//! Counts of words, each word kept once in one stretch of memory.

use std::hash::{BuildHasher, Hasher};

const EMPTY: u32 = u32::MAX;

/// Words in the order in which they were first added, and how often each was.
#[derive(Default)]
pub(super) struct WordList {
    bytes: Vec<u8>,
    words: Vec<Word>,
}

#[derive(Clone, Copy)]
struct Word {
    /// It ends where the next one starts.
    start: usize,
    count: u64,
}

impl WordList {
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// Bytes of all words.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn push(&mut self, word: &[u8], count: u64) {
        self.words.push(Word { start: self.bytes.len(), count });
        self.bytes.extend_from_slice(word);
    }

    pub(super) fn get(&self, index: usize) -> (&[u8], u64) {
        let end = self.words.get(index + 1).map_or(self.bytes.len(), |next| next.start);
        let Word { start, count } = self.words[index];
        (&self.bytes[start..end], count)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// The places of the words, the most frequent first.
    pub(super) fn by_count(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(self.words[index as usize].count));
        order
    }

    /// The places of the words, sorted by their bytes.
    pub(super) fn by_bytes(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_unstable_by_key(|&index| self.get(index as usize).0);
        order
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.words.capacity() * size_of::<Word>()
    }
}

/// A list of words with a hash table over it.
#[derive(Default)]
pub(super) struct WordCounts {
    list: WordList,
    /// Half of each word's hash, and its place; a power of two of them, a quarter or more [`EMPTY`].
    slots: Vec<(u32, u32)>,
    hasher: foldhash::fast::FixedState,
}

impl WordCounts {
    #[inline]
    pub(super) fn add(&mut self, word: &[u8], count: u64) {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(word);
        let hash = hasher.finish();
        self.add_hashed(word, (hash ^ hash >> 32) as u32, count);
    }

    #[inline]
    fn add_hashed(&mut self, word: &[u8], hash: u32, count: u64) {
        if self.list.len() * 4 >= self.slots.len() * 3 {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let (other, index) = self.slots[slot];
            if index == EMPTY {
                self.slots[slot] = (hash, self.list.len() as u32);
                return self.list.push(word, count);
            }
            if other == hash && self.list.get(index as usize).0 == word {
                self.list.words[index as usize].count += count;
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let old = std::mem::take(&mut self.slots);
        self.slots = vec![(0, EMPTY); (old.len() * 2).max(1024)];
        let mask = self.slots.len() - 1;
        for (hash, index) in old.into_iter().filter(|&(_, index)| index != EMPTY) {
            let mut slot = hash as usize & mask;
            while self.slots[slot].1 != EMPTY {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = (hash, index);
        }
    }

    /// Both together.
    pub(super) fn merged(mut self, mut other: WordCounts) -> WordCounts {
        if self.list.len() < other.list.len() {
            std::mem::swap(&mut self, &mut other);
        }
        for (word, count) in other.list.iter() {
            self.add(word, count);
        }
        self
    }

    /// Bytes of memory, and of what the next growth may take beside it.
    pub(super) fn memory(&self) -> usize {
        self.list.memory() + self.slots.len() * 2 * size_of::<(u32, u32)>()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn into_list(self) -> WordList {
        self.list
    }
}
