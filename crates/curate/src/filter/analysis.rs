//! What the heuristics look at, found in one pass over a text and shared by all of them.

use super::characters::{is_symbol, is_terminal, is_unmarked};
use super::words::words;
use crate::dedup::minhash::is_word_alone;

/// A word of a text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    /// Byte range.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Of its bytes.
    pub(crate) hash: u64,
    pub(crate) characters: u32,
    flags: u8,
}

const ALPHABETIC: u8 = 1;
const SYMBOLIC: u8 = 2;
const TERMINAL: u8 = 4;
const PUNCTUATION: u8 = 8;
const ALONE: u8 = 16;
const UNMARKED: u8 = 32;

impl Word {
    fn new(text: &str, start: usize, end: usize) -> Word {
        let word = &text[start..end];
        let bytes = word.as_bytes();
        let (mut characters, mut alphabetic, mut symbols, mut terminal, mut punctuation) =
            (0, false, true, false, true);
        let (mut alone, mut unmarked) = (false, false);
        if bytes.iter().all(u8::is_ascii_alphabetic) {
            (characters, alphabetic, symbols, punctuation) = (bytes.len() as u32, true, false, false);
        } else {
            for c in word.chars() {
                characters += 1;
                let symbol = is_symbol(c);
                symbols &= symbol;
                alphabetic |= c.is_alphabetic();
                // Unicode counts these as signs, not as punctuation.
                punctuation &=
                    symbol && !c.is_control() && !matches!(c, '$' | '+' | '<'..='>' | '^' | '`' | '|' | '~');
                terminal |= is_terminal(c);
            }
            terminal &= characters == 1;
            alone = word.starts_with(is_word_alone);
            unmarked = alone && word.starts_with(is_unmarked);
        }
        let flags = [
            (alphabetic, ALPHABETIC),
            (symbols, SYMBOLIC),
            (terminal, TERMINAL),
            (punctuation, PUNCTUATION),
            (alone, ALONE),
            (unmarked, UNMARKED),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        Word { start, end, hash: hash(bytes), characters, flags }
    }

    /// It has a letter.
    pub(crate) fn is_alphabetic(&self) -> bool {
        self.flags & ALPHABETIC != 0
    }

    /// It is one character of a script without spaces between words.
    pub(crate) fn is_alone(&self) -> bool {
        self.flags & ALONE != 0
    }

    /// It is made of marks alone.
    pub(crate) fn is_symbolic(&self) -> bool {
        self.flags & SYMBOLIC != 0
    }
}

/// A 64-bit hash of some bytes, the same on every platform and in every version: hashes are written to files.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut state = (bytes.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        state = mix(state ^ u64::from_le_bytes(eight));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(state ^ u64::from_le_bytes(last))
}

/// One round of a strong integer hash.
pub(crate) fn mix(x: u64) -> u64 {
    let product = u128::from(x ^ 0xA076_1D64_78BD_642F) * 0xE703_7ED1_A0B4_28DB;
    (product >> 64) as u64 ^ product as u64
}

/// A text with its words.
pub(crate) struct Analysis<'a> {
    pub(crate) text: &'a str,
    /// Length of the text in characters.
    pub(crate) characters: usize,
    pub(crate) words: Vec<Word>,
}

impl<'a> Analysis<'a> {
    pub(crate) fn new(text: &'a str) -> Analysis<'a> {
        // About one word in six bytes of English.
        let mut found = Vec::with_capacity(text.len() / 5 + 1);
        words(text, &mut |start, end| found.push(Word::new(text, start, end)));
        Analysis { text, characters: characters(text), words: found }
    }
}

/// Words of an n-gram that stand for one: two where most words are characters, as words of such scripts have about two.
pub(crate) fn words_for_one(words: &[Word]) -> usize {
    let alone = words.iter().filter(|word| word.is_alone()).count();
    if alone * 2 > words.len() { 2 } else { 1 }
}

/// Number of characters.
pub(crate) fn characters(text: &str) -> usize {
    text.bytes().filter(|byte| byte & 0xC0 != 0x80).count()
}

/// Sentences among some words: a sentence begins with a word that is no mark after a mark that ends one; in scripts without such
/// marks, after a space.
pub(crate) fn sentences(words: &[Word]) -> usize {
    let (mut count, mut ended) = (usize::from(!words.is_empty()), false);
    for (at, word) in words.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| &words[at]);
        ended |= word.flags & UNMARKED != 0
            && before.is_some_and(|before| before.flags & UNMARKED != 0 && before.end < word.start);
        if word.flags & TERMINAL != 0 {
            ended = true;
        } else if ended && word.flags & PUNCTUATION == 0 {
            count += 1;
            ended = false;
        }
    }
    count
}

/// Byte ranges of the lines of a text, at every kind of line end that Unicode knows.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, usize)> + '_ {
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == bytes.len() {
            return None;
        }
        let mut at = start;
        while at < bytes.len() {
            let length = match bytes[at] {
                b'\r' if bytes.get(at + 1) == Some(&b'\n') => 2,
                b'\n'..=b'\r' | 0x1c..=0x1e => 1,
                0xC2 if bytes.get(at + 1) == Some(&0x85) => 2,
                0xE2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => 3,
                0xE2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => 3,
                _ => 0,
            };
            if length > 0 {
                let line = (start, at);
                start = at + length;
                return Some(line);
            }
            at += 1;
        }
        let line = (start, at);
        start = at;
        Some(line)
    })
}

/// A set of hashes that is emptied at no cost.
#[derive(Default)]
pub(crate) struct HashCounter {
    /// Hash, the generation it was put in, its count.
    slots: Vec<(u64, u32, u32)>,
    generation: u32,
}

impl HashCounter {
    /// Empties it and makes room for `count` hashes.
    pub(crate) fn reset(&mut self, count: usize) {
        let wanted = (count * 2).next_power_of_two().max(64);
        if self.slots.len() < wanted {
            self.slots = vec![(0, 0, 0); wanted];
            self.generation = 0;
        }
        if self.generation == u32::MAX {
            self.slots.fill((0, 0, 0));
            self.generation = 0;
        }
        self.generation += 1;
    }

    /// Counts a hash, and says how often it was counted until now.
    pub(crate) fn add(&mut self, hash: u64) -> u32 {
        let mask = self.slots.len() - 1;
        let mut slot = Self::home(hash) & mask;
        loop {
            let entry = &mut self.slots[slot];
            if entry.1 != self.generation {
                *entry = (hash, self.generation, 1);
                return 0;
            }
            if entry.0 == hash {
                entry.2 += 1;
                return entry.2 - 1;
            }
            slot = (slot + 1) & mask;
        }
    }
    /// How often a hash was counted.
    pub(crate) fn count(&self, hash: u64) -> u32 {
        let mask = self.slots.len() - 1;
        let mut slot = Self::home(hash) & mask;
        loop {
            let (found, generation, count) = self.slots[slot];
            if generation != self.generation {
                return 0;
            }
            if found == hash {
                return count;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Where the search for a hash begins: the upper bits of a product depend on all bits below.
    fn home(hash: u64) -> usize {
        (hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize
    }
}
