//! From a byte string to its id, and from two tokens to their merge. Both are open addressing over numbers into a list that
//! is there anyway, so they take few bytes per entry.

use crate::tokens::Tokens;
use crate::{Error, Result};

/// An empty slot; also no token, no merge.
pub(crate) const NONE: u32 = u32::MAX;

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Finds strings of a list of [`Tokens`].
#[derive(Debug)]
pub(crate) struct TokenIndex {
    /// A part of the string's hash, then its id.
    slots: Vec<(u32, u32)>,
    shift: u32,
}

impl TokenIndex {
    /// An index that has room for `count` strings.
    pub(crate) fn with_capacity(count: usize) -> TokenIndex {
        // At most three quarters of the slots are taken, and one is free.
        let slots = (count + count / 3 + 1).next_power_of_two();
        TokenIndex { slots: vec![(0, NONE); slots], shift: u64::BITS - slots.trailing_zeros() }
    }

    /// The id of `token`.
    #[inline]
    pub(crate) fn get(&self, tokens: &Tokens, token: &[u8]) -> Option<u32> {
        let (slot, _) = self.slot(tokens, token);
        Some(self.slots[slot].1).filter(|&id| id != NONE)
    }

    /// Adds the string `id` of `tokens`; where an equal one is there already, its id is returned.
    pub(crate) fn insert(&mut self, tokens: &Tokens, id: u32) -> Option<u32> {
        let (slot, part) = self.slot(tokens, &tokens[id as usize]);
        let there = Some(self.slots[slot].1).filter(|&other| other != NONE);
        if there.is_none() {
            self.slots[slot] = (part, id);
        }
        there
    }

    /// The slot of `token`, or the empty one where it would be, and the part of its hash that is kept.
    #[inline]
    fn slot(&self, tokens: &Tokens, token: &[u8]) -> (usize, u32) {
        let hash = hash(token);
        let (mut slot, part) = ((hash >> self.shift) as usize, hash as u32);
        loop {
            let (other, id) = self.slots[slot];
            if id == NONE || (other == part && tokens[id as usize] == *token) {
                return (slot, part);
            }
            slot = (slot + 1) % self.slots.len();
        }
    }
}

fn hash(token: &[u8]) -> u64 {
    let (chunks, rest) = token.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mut hash = token.len() as u64;
    for chunk in chunks.iter().chain([&last]) {
        let product = u128::from(hash ^ u64::from_le_bytes(*chunk)) * u128::from(MULTIPLIER);
        hash = (product as u64) ^ (product >> 64) as u64;
    }
    hash
}

/// Finds the place of the merge of two tokens.
///
/// The merges of each left token lie together, in the order of the tokens: those of frequent tokens, whose ids are low in a
/// trained vocabulary, share few lines of a core's caches. One table over all pairs would scatter them.
#[derive(Debug)]
pub(crate) struct Places {
    /// For each token where its slots begin; they end where those of the next begin.
    begins: Vec<u32>,
    /// The right token, then the place of the merge. In each group that is not empty, one at least is.
    slots: Vec<(u32, u32)>,
}

impl Places {
    /// No merges.
    pub(crate) fn none() -> Places {
        Places { begins: Vec::new(), slots: Vec::new() }
    }

    /// The merges of `pairs` of the tokens below `tokens`, each with its place. The pairs must be distinct, and fewer than about
    /// 2.8 billions.
    pub(crate) fn new(
        tokens: usize,
        pairs: impl Iterator<Item = ((u32, u32), u32)> + Clone,
    ) -> Result<Places> {
        let mut counts = vec![0u32; tokens];
        pairs.clone().for_each(|((left, _), _)| counts[left as usize] += 1);
        let mut begins = Vec::with_capacity(tokens + 1);
        let mut end = 0u32;
        for count in counts {
            begins.push(end);
            // At most two thirds are taken.
            let slots = u64::from(count) + u64::from(count.div_ceil(2));
            let next = u32::try_from(u64::from(end) + slots);
            end = next.map_err(|_| Error::Vocabulary { problem: "there are too many merges".into() })?;
        }
        begins.push(end);
        let mut places = Places { begins, slots: vec![(NONE, NONE); end as usize] };
        for ((left, right), place) in pairs {
            let slot = places.slot(places.begins[left as usize]..places.begins[left as usize + 1], right);
            places.slots[slot] = (right, place);
        }
        Ok(places)
    }

    /// The place of the merge of `left` and `right`; [`NONE`] where there is none.
    #[inline]
    pub(crate) fn get(&self, left: u32, right: u32) -> u32 {
        match self.begins.get(left as usize..left as usize + 2) {
            Some(&[begin, end]) if begin < end => self.slots[self.slot(begin..end, right)].1,
            _ => NONE,
        }
    }

    /// All pairs with the places of their merges, in no order that matters.
    pub(crate) fn iter(&self) -> impl Iterator<Item = ((u32, u32), u32)> {
        (0u32..).zip(self.begins.windows(2)).flat_map(|(left, range)| {
            let slots = &self.slots[range[0] as usize..range[1] as usize];
            slots.iter().filter(|slot| slot.0 != NONE).map(move |&(right, place)| ((left, right), place))
        })
    }

    /// The slot of `right` among those of a left token, or the empty one where it would be.
    #[inline]
    fn slot(&self, slots: std::ops::Range<u32>, right: u32) -> usize {
        let hash = u64::from(right.wrapping_mul(MULTIPLIER as u32));
        let mut slot = slots.start + ((hash * u64::from(slots.end - slots.start)) >> 32) as u32;
        loop {
            let there = self.slots[slot as usize].0;
            if there == right || there == NONE {
                return slot as usize;
            }
            slot = if slot + 1 == slots.end { slots.start } else { slot + 1 };
        }
    }
}
