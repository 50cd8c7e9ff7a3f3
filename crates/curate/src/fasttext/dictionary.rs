//! From text to rows of the input matrix.

use std::collections::HashMap;

/// Marks the end of a text; a word of its own.
pub(super) const END: &[u8] = b"</s>";
/// What labels begin with in a file.
pub(super) const LABEL: &str = "__label__";
/// Put around a word before it is cut into pieces.
const WORD_BEGIN: u8 = b'<';
const WORD_END: u8 = b'>';
/// Multiplies the hash of a word n-gram before the next word's is added. Part of the format.
const NGRAM_FACTOR: u64 = 116_049_371;

/// The words a model knows, its labels, and how n-grams are hashed.
#[derive(Debug)]
pub(super) struct Dictionary {
    /// Words, then labels, each with how often it was seen.
    entries: Vec<(Box<[u8]>, i64)>,
    words: usize,
    /// Row or place by hash: open addressing, `EMPTY` where there is nothing.
    slots: Vec<u32>,
    /// Words seen in training.
    pub(super) tokens: i64,
    pub(super) shape: Ngrams,
    /// Which hashed rows were kept when the model was made small, and where they are now; `None` when all were.
    pub(super) kept: Option<HashMap<u32, u32>>,
}

/// How n-grams are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ngrams {
    /// Longest n-gram of words.
    pub(super) words: u32,
    /// Shortest and longest piece of a word, in characters; 0 for none.
    pub(super) min_piece: u32,
    pub(super) max_piece: u32,
    /// Rows that hashes fall into.
    pub(super) buckets: u32,
}

const EMPTY: u32 = u32::MAX;

/// 32-bit FNV-1a with bytes taken as signed, as the format has it.
pub(super) fn hash(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(2_166_136_261, |hash, &byte| (hash ^ i32::from(byte as i8) as u32).wrapping_mul(16_777_619))
}

impl Dictionary {
    /// Of `words` words followed by labels.
    pub(super) fn new(
        entries: Vec<(Box<[u8]>, i64)>,
        words: usize,
        tokens: i64,
        shape: Ngrams,
    ) -> Dictionary {
        let mut slots = vec![EMPTY; (entries.len() * 2).next_power_of_two().max(2)];
        for (place, (text, _)) in entries.iter().enumerate() {
            let slot = find(&slots, &entries, text, hash(text));
            slots[slot] = place as u32;
        }
        Dictionary { entries, words, slots, tokens, shape, kept: None }
    }

    pub(super) fn entries(&self) -> &[(Box<[u8]>, i64)] {
        &self.entries
    }

    pub(super) fn words(&self) -> usize {
        self.words
    }

    pub(super) fn labels(&self) -> usize {
        self.entries.len() - self.words
    }

    /// Name of a label.
    pub(super) fn label(&self, label: usize) -> &str {
        let name = std::str::from_utf8(&self.entries[self.words + label].0).unwrap_or_default();
        name.strip_prefix(LABEL).unwrap_or(name)
    }

    /// How often each label was seen.
    pub(super) fn label_counts(&self) -> Vec<i64> {
        self.entries[self.words..].iter().map(|entry| entry.1).collect()
    }

    /// Appends the rows whose mean stands for the text. Words end at ASCII white space and at zero bytes. Unlike fastText,
    /// `</s>` inside a text does not hide what follows it.
    pub(super) fn rows(&self, text: &str, rows: &mut Vec<u32>) {
        let mut hashes = Vec::new();
        let mut piece = Vec::new();
        let words = text
            .as_bytes()
            .split(|&byte| matches!(byte, 0 | b' ' | b'\t'..=b'\r'))
            .filter(|word| !word.is_empty());
        for word in words.chain([END]) {
            let hash = hash(word);
            match self.slots[find(&self.slots, &self.entries, word, hash)] {
                EMPTY if word == END => {}
                EMPTY if word.starts_with(LABEL.as_bytes()) => continue,
                EMPTY => self.pieces(word, &mut piece, rows),
                place if place as usize >= self.words => continue,
                place => {
                    rows.push(place);
                    if word != END {
                        self.pieces(word, &mut piece, rows);
                    }
                }
            }
            hashes.push(hash);
        }
        // Hashes are widened with their sign.
        let wide = |hash: u32| i64::from(hash as i32) as u64;
        for (at, &first) in hashes.iter().enumerate() {
            let mut ngram = wide(first);
            for &next in hashes.iter().skip(at + 1).take((self.shape.words as usize).saturating_sub(1)) {
                ngram = ngram.wrapping_mul(NGRAM_FACTOR).wrapping_add(wide(next));
                self.bucket((ngram % u64::from(self.shape.buckets)) as u32, rows);
            }
        }
    }

    /// The row of a bucket, if it was kept.
    fn bucket(&self, bucket: u32, rows: &mut Vec<u32>) {
        let place = match &self.kept {
            None => Some(bucket),
            Some(kept) => kept.get(&bucket).copied(),
        };
        rows.extend(place.map(|place| self.words as u32 + place));
    }

    /// Rows of the pieces of a word: all runs of `min_piece` to `max_piece` characters, but not its marks alone.
    fn pieces(&self, word: &[u8], marked: &mut Vec<u8>, rows: &mut Vec<u32>) {
        let (min, max) = (self.shape.min_piece, self.shape.max_piece);
        if max == 0 {
            return;
        }
        marked.clear();
        marked.push(WORD_BEGIN);
        marked.extend_from_slice(word);
        marked.push(WORD_END);
        let continues = |at: usize| marked.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
        for from in (0..marked.len()).filter(|&at| !continues(at)) {
            let (mut to, mut hash) = (from, 2_166_136_261_u32);
            for characters in 1..=max {
                if to == marked.len() {
                    break;
                }
                loop {
                    hash = (hash ^ i32::from(marked[to] as i8) as u32).wrapping_mul(16_777_619);
                    to += 1;
                    if !continues(to) {
                        break;
                    }
                }
                let is_mark = characters == 1 && (from == 0 || to == marked.len());
                if characters >= min && !is_mark {
                    self.bucket(hash % self.shape.buckets, rows);
                }
            }
        }
    }
}

/// Where a text is in the table, or the free slot where it would be.
fn find(slots: &[u32], entries: &[(Box<[u8]>, i64)], text: &[u8], hash: u32) -> usize {
    let mask = slots.len() - 1;
    let mut slot = hash as usize & mask;
    while slots[slot] != EMPTY && *entries[slots[slot] as usize].0 != *text {
        slot = (slot + 1) & mask;
    }
    slot
}
