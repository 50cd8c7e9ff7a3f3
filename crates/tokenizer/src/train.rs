//! Learning a vocabulary from text.
//!
//! The text is split into words by the split pattern and equal words are counted once. Then, again and again, the most
//! frequent pair of neighbouring tokens becomes a token; of equally frequent pairs it is the one whose two byte strings
//! are the greatest, compared in order. So the result depends on the counts only, not on the order of the documents or
//! the number of threads.

use crate::bpe::FixedMap;
use crate::format::hf::byte_chars;
use crate::special::NUM_SPECIAL;
use crate::tokenizer::MAX_RANKS;
use crate::{Error, Result, Tokenizer, split};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BinaryHeap;
use std::rc::Rc;

/// How much text the threads count between two merges of their counts.
const BATCH_BYTES: usize = 32 << 20;

/// The settings of training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trainer {
    /// The wanted number of ids, which includes the 256 bytes and the 256 special tokens.
    pub vocab_size: usize,
    /// A pair less frequent than this is not made a token.
    pub min_frequency: u64,
    /// How many threads split and count, by default those of the current `rayon` pool. The result is the same.
    pub threads: Option<usize>,
}

/// What training found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TrainReport {
    /// Documents read.
    pub documents: u64,
    /// Bytes of text read.
    pub bytes: u64,
    /// Words the text was split into.
    pub words: u64,
    /// Distinct words of two bytes or more, from which the merges were learned.
    pub distinct_words: u64,
    /// Tokens the text has with the learned vocabulary.
    pub tokens: u64,
    /// The wanted vocabulary size.
    pub wanted_vocab_size: usize,
    /// The size reached: smaller than wanted when no pair was frequent enough any more.
    pub vocab_size: usize,
}

impl TrainReport {
    /// Whether the vocabulary has the wanted size. If not, the text is too small for it.
    pub fn reached_size(&self) -> bool {
        self.vocab_size == self.wanted_vocab_size
    }
}

impl Trainer {
    /// Trains to `vocab_size` ids, with every pair that occurs twice or more, on all threads.
    pub fn new(vocab_size: usize) -> Trainer {
        Trainer { vocab_size, min_frequency: 2, threads: None }
    }

    /// Learns a tokenizer from `docs`. Memory grows with the number of distinct words, not with the text.
    ///
    /// `progress` is called with (bytes read, 0) while reading, then with (merges learned, merges wanted).
    ///
    /// Text too small for the wanted size gives a smaller vocabulary, which the report says.
    ///
    /// # Errors
    /// When `vocab_size` is below 512 or beyond what ids can hold, or when threads cannot be started.
    pub fn train<I, T>(&self, docs: I, progress: &mut dyn FnMut(u64, u64)) -> Result<(Tokenizer, TrainReport)>
    where
        I: Iterator<Item = T>,
        T: AsRef<str> + Send,
    {
        let max = MAX_RANKS + NUM_SPECIAL;
        if !(256 + NUM_SPECIAL..=max).contains(&self.vocab_size) {
            return Err(Error::VocabSize { wanted: self.vocab_size, max });
        }
        let (counts, mut report) = self.count_words(docs, progress, &llama3_words)?;
        let wanted = self.vocab_size - NUM_SPECIAL;
        let (ranks, tokens) = Merger::new(counts).learn(wanted, self.min_frequency, progress);
        let tokenizer = Tokenizer::from_ranks(ranks)?;
        report.tokens = tokens;
        report.wanted_vocab_size = self.vocab_size;
        report.vocab_size = tokenizer.vocab_size();
        Ok((tokenizer, report))
    }

    /// Counts the words that `for_each_word` finds.
    fn count_words<I, T>(
        &self,
        mut docs: I,
        progress: &mut dyn FnMut(u64, u64),
        for_each_word: &ForEachWord,
    ) -> Result<(WordCounts, TrainReport)>
    where
        I: Iterator<Item = T>,
        T: AsRef<str> + Send,
    {
        let pool = match self.threads {
            None => None,
            Some(threads) => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads.max(1))
                    .build()
                    .map_err(|error| Error::Threads { threads, reason: error.to_string() })?,
            ),
        };
        let mut counts = WordCounts::default();
        let mut report = TrainReport::default();
        loop {
            let mut batch = Vec::new();
            let mut size = 0;
            while size < BATCH_BYTES
                && let Some(doc) = docs.next()
            {
                size += doc.as_ref().len();
                batch.push(doc);
            }
            if batch.is_empty() {
                break;
            }
            report.documents += batch.len() as u64;
            report.bytes += size as u64;
            let found = match &pool {
                Some(pool) => pool.install(|| count_batch(batch, for_each_word)),
                None => count_batch(batch, for_each_word),
            };
            add_counts(&mut counts, found);
            progress(report.bytes, 0);
        }
        report.words = counts.values().sum();
        report.distinct_words = counts.keys().filter(|word| word.len() > 1).count() as u64;
        Ok((counts, report))
    }
}

/// Calls a function with each word of a text.
type ForEachWord = dyn Fn(&str, &mut dyn FnMut(&str)) + Sync;

type WordCounts = FixedMap<Box<str>, u64>;

fn llama3_words(text: &str, each: &mut dyn FnMut(&str)) {
    split(text).for_each(each);
}

fn count_batch<T: AsRef<str> + Send>(batch: Vec<T>, for_each_word: &ForEachWord) -> WordCounts {
    // Few large parts: each has a map of its own, and the maps have to be added up.
    let part = batch.len().div_ceil(2 * rayon::current_num_threads());
    let count = |mut counts: WordCounts, doc: T| {
        for_each_word(doc.as_ref(), &mut |word| match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                counts.insert(word.into(), 1);
            }
        });
        counts
    };
    let parts = batch.into_par_iter().with_min_len(part).fold(WordCounts::default, count);
    parts.reduce(WordCounts::default, |mut a, mut b| {
        if a.len() < b.len() {
            std::mem::swap(&mut a, &mut b);
        }
        add_counts(&mut a, b);
        a
    })
}

fn add_counts(counts: &mut WordCounts, more: WordCounts) {
    for (word, count) in more {
        *counts.entry(word).or_default() += count;
    }
}

type Pair = (u32, u32);

/// A pair that may become a token. The derived order is the one that training follows.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// At least the pair's present count: merges make old pairs rarer, never more frequent.
    count: u64,
    left: Rc<[u8]>,
    right: Rc<[u8]>,
    pair: Pair,
}

#[derive(Default)]
struct Occurrences {
    count: u64,
    /// The words that hold the pair, and perhaps some that did.
    words: Vec<u32>,
}

struct Word {
    tokens: Vec<u32>,
    count: u64,
}

/// The state of learning.
struct Merger {
    tokens: Vec<Rc<[u8]>>,
    words: Vec<Word>,
    pairs: FixedMap<Pair, Occurrences>,
    queue: BinaryHeap<Candidate>,
    total: u64,
}

impl Merger {
    fn new(counts: WordCounts) -> Merger {
        let tokens = byte_order().map(|byte| Rc::from([byte])).to_vec();
        let mut id_of = [0; 256];
        for (id, byte) in (0..).zip(byte_order()) {
            id_of[usize::from(byte)] = id;
        }
        let mut total = 0;
        let mut counts: Vec<(Box<str>, u64)> = counts.into_iter().collect();
        // The order has no influence on the result; a fixed one makes runs alike to the last step.
        counts.sort_unstable();
        let words = counts.into_iter().filter_map(|(word, count)| {
            total += word.len() as u64 * count;
            let tokens = word.bytes().map(|byte| id_of[usize::from(byte)]).collect();
            (word.len() > 1).then_some(Word { tokens, count })
        });
        let words: Vec<Word> = words.collect();
        let mut pairs = FixedMap::<Pair, Occurrences>::default();
        for (index, word) in (0..).zip(&words) {
            for two in word.tokens.windows(2) {
                pairs.entry((two[0], two[1])).or_default().add(word.count, index);
            }
        }
        Merger { tokens, words, pairs, queue: BinaryHeap::new(), total }
    }

    /// Makes tokens until there are `wanted` or no pair occurs `min_frequency` times. Gives them in the order of their
    /// ranks, and how many of them the text takes.
    fn learn(
        mut self,
        wanted: usize,
        min_frequency: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> (Vec<Vec<u8>>, u64) {
        let least = min_frequency.max(1);
        let all: Vec<Pair> = self.pairs.keys().copied().collect();
        all.into_iter().for_each(|pair| self.enqueue(pair, least));
        let merges = (wanted - self.tokens.len()) as u64;
        progress(0, merges);
        while self.tokens.len() < wanted
            && let Some(best) = self.queue.pop()
        {
            let now = self.pairs.get(&best.pair).map_or(0, |found| found.count);
            if now == best.count {
                self.merge(best, least);
                progress((self.tokens.len() - 256) as u64, merges);
            } else if now >= least {
                self.enqueue(best.pair, least);
            } else {
                self.pairs.remove(&best.pair);
            }
        }
        (self.tokens.iter().map(|token| token.to_vec()).collect(), self.total)
    }

    fn enqueue(&mut self, pair: Pair, least: u64) {
        let count = self.pairs.get(&pair).map_or(0, |found| found.count);
        if count >= least {
            let [left, right] = [pair.0, pair.1].map(|id| self.tokens[id as usize].clone());
            self.queue.push(Candidate { count, left, right, pair });
        }
    }

    /// Makes a token of `best` and replaces the pair in all words. No two pairs make the same token: inside a stretch
    /// of text that becomes one token, all merges happen in the order of the ranks, the same in every word.
    fn merge(&mut self, best: Candidate, least: u64) {
        let new = self.tokens.len() as u32;
        self.tokens.push([&*best.left, &*best.right].concat().into());
        let Some(Occurrences { words, .. }) = self.pairs.remove(&best.pair) else { return };
        let mut made = Vec::new();
        for index in words {
            let word = &mut self.words[index as usize];
            let pairs = &mut self.pairs;
            let merged = replace_pair(&mut word.tokens, best.pair, new, &mut |change| match change {
                Change::Gone(pair) => {
                    if let Some(found) = pairs.get_mut(&pair) {
                        found.count -= word.count;
                    }
                }
                Change::Made(pair) => {
                    let found = pairs.entry(pair).or_default();
                    if found.words.is_empty() {
                        made.push(pair);
                    }
                    found.add(word.count, index);
                }
            });
            self.total -= merged * word.count;
        }
        made.into_iter().for_each(|pair| self.enqueue(pair, least));
    }
}

impl Occurrences {
    fn add(&mut self, count: u64, word: u32) {
        self.count += count;
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

/// A pair of neighbours that a replacement removed or created.
enum Change {
    Gone(Pair),
    Made(Pair),
}

/// Replaces `pair` by `new` from the left, telling each change of other pairs; returns how many were replaced.
fn replace_pair(tokens: &mut Vec<u32>, pair: Pair, new: u32, change: &mut dyn FnMut(Change)) -> u64 {
    let (mut read, mut write) = (0, 0);
    while read < tokens.len() {
        if read + 1 == tokens.len() || (tokens[read], tokens[read + 1]) != pair {
            tokens[write] = tokens[read];
            (read, write) = (read + 1, write + 1);
            continue;
        }
        if write > 0 {
            let before = tokens[write - 1];
            change(Change::Gone((before, pair.0)));
            change(Change::Made((before, new)));
        }
        if let Some(&after) = tokens.get(read + 2) {
            change(Change::Gone((pair.1, after)));
            change(Change::Made((new, after)));
        }
        tokens[write] = new;
        (read, write) = (read + 2, write + 1);
    }
    tokens.truncate(write);
    (read - write) as u64
}

/// The bytes in the order of their ranks, which is that of Llama 3's own file.
fn byte_order() -> [u8; 256] {
    let chars = byte_chars();
    let mut bytes: [u8; 256] = std::array::from_fn(|byte| byte as u8);
    bytes.sort_unstable_by_key(|&byte| chars[usize::from(byte)]);
    bytes
}

#[cfg(test)]
mod tests;
