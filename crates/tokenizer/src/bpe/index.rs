//! From a byte string to its id, and from two tokens to their merge. Both are open addressing over numbers into a list that
//! is there anyway, so they take few bytes per entry.

use crate::tokens::Tokens;

/// An empty slot; also no token, no merge.
pub(crate) const NONE: u32 = u32::MAX;

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Finds strings of a list of [`Tokens`].
#[derive(Debug)]
pub(crate) struct TokenIndex {
    slots: Vec<u32>,
    shift: u32,
}

impl TokenIndex {
    /// An index that has room for `count` strings.
    pub(crate) fn with_capacity(count: usize) -> TokenIndex {
        let (slots, shift) = slots(count);
        TokenIndex { slots: vec![NONE; slots], shift }
    }

    /// The id of `token`.
    #[inline]
    pub(crate) fn get(&self, tokens: &Tokens, token: &[u8]) -> Option<u32> {
        let mut slot = self.first_slot(token);
        loop {
            match self.slots[slot] {
                NONE => return None,
                id if tokens[id as usize] == *token => return Some(id),
                _ => slot = (slot + 1) % self.slots.len(),
            }
        }
    }

    /// Adds the string `id` of `tokens`; where an equal one is there already, its id is returned.
    pub(crate) fn insert(&mut self, tokens: &Tokens, id: u32) -> Option<u32> {
        let token = &tokens[id as usize];
        let mut slot = self.first_slot(token);
        loop {
            match self.slots[slot] {
                NONE => break,
                other if tokens[other as usize] == *token => return Some(other),
                _ => slot = (slot + 1) % self.slots.len(),
            }
        }
        self.slots[slot] = id;
        None
    }

    #[inline]
    fn first_slot(&self, token: &[u8]) -> usize {
        let (chunks, rest) = token.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let mut hash = token.len() as u64;
        for chunk in chunks.iter().chain([&last]) {
            hash = mix(hash ^ u64::from_le_bytes(*chunk));
        }
        (hash >> self.shift) as usize
    }
}

/// Finds the merge of two tokens.
#[derive(Debug)]
pub(crate) struct PairIndex {
    /// A part of the pair's hash, then the number of the pair.
    slots: Vec<(u32, u32)>,
    shift: u32,
}

impl PairIndex {
    /// An index that has room for `count` pairs.
    pub(crate) fn with_capacity(count: usize) -> PairIndex {
        let (slots, shift) = slots(count);
        PairIndex { slots: vec![(0, NONE); slots], shift }
    }

    /// The number of `pair` in the list of `pairs`.
    #[inline]
    pub(crate) fn get(&self, pairs: &[(u32, u32)], pair: (u32, u32)) -> u32 {
        let (mut slot, part) = self.first_slot(pair);
        loop {
            let (other, number) = self.slots[slot];
            if number == NONE || (other == part && pairs[number as usize] == pair) {
                return number;
            }
            slot = (slot + 1) % self.slots.len();
        }
    }

    /// Adds the pair `number` of the list of `pairs`; where an equal one is there already, its number is returned.
    pub(crate) fn insert(&mut self, pairs: &[(u32, u32)], number: u32) -> Option<u32> {
        let pair = pairs[number as usize];
        let (mut slot, part) = self.first_slot(pair);
        loop {
            let (other, there) = self.slots[slot];
            if there == NONE {
                break;
            }
            if other == part && pairs[there as usize] == pair {
                return Some(there);
            }
            slot = (slot + 1) % self.slots.len();
        }
        self.slots[slot] = (part, number);
        None
    }

    #[inline]
    fn first_slot(&self, (left, right): (u32, u32)) -> (usize, u32) {
        let hash = mix(u64::from(left) << 32 | u64::from(right));
        ((hash >> self.shift) as usize, hash as u32)
    }
}

/// How many slots hold `count` entries so that at most half are taken, a power of two, and by how much to shift a hash to the
/// right to get one of them.
fn slots(count: usize) -> (usize, u32) {
    let slots = (2 * count).next_power_of_two().max(2);
    (slots, u64::BITS - slots.trailing_zeros())
}

/// Every bit of the result's upper half depends on every bit of `value`.
#[inline]
fn mix(value: u64) -> u64 {
    let product = u128::from(value ^ MULTIPLIER.rotate_left(32)) * u128::from(MULTIPLIER);
    (product as u64) ^ (product >> 64) as u64
}
