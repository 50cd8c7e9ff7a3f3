//! Learning a vocabulary from text.
//!
//! The text is split into words by the split pattern and equal words are counted once. Then, again and again, the most
//! frequent pair of neighbouring tokens becomes a token; of equally frequent pairs it is the one whose two byte strings
//! are the greatest, compared in order. So the result depends on the counts only, not on the order of the documents or
//! the number of threads.

mod counting;
mod counts;
mod extension;
mod merging;
mod queue;
mod runs;
mod survey;

pub use survey::{Fit, Sample, Survey};

use crate::format::hf::byte_chars;
use crate::special::NUM_SPECIAL;
use crate::tokenizer::MAX_RANKS;
use crate::{Error, Result, Split, Tokenizer};
use counting::{Counted, Counting};
use counts::WordList;
use merging::{Corpus, Merger};
use serde::Serialize;
use std::path::PathBuf;
use std::rc::Rc;

/// The settings of training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trainer {
    /// The wanted number of ids, which includes the 256 bytes and the 256 special tokens.
    pub vocab_size: usize,
    /// A pair less frequent than this is not made a token.
    pub min_frequency: u64,
    /// Words less frequent than this are left out, which changes the result; 1 keeps all.
    pub min_word_count: u64,
    /// How many threads split and count, by default as many as the current `rayon` pool has. The result is the same.
    pub threads: Option<usize>,
    /// How many bytes of memory training may take, beside the documents that are being read. Counts that take more than their
    /// share go to disk; the result is the same.
    pub memory: Option<u64>,
    /// The folder for counts that go to disk, by default that of the system for temporary files.
    pub scratch: Option<PathBuf>,
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
    /// Tokens the text has with the learned vocabulary; without the words that were left out.
    pub tokens: u64,
    /// The wanted vocabulary size.
    pub wanted_vocab_size: usize,
    /// The size reached: smaller than wanted when no pair was frequent enough any more.
    pub vocab_size: usize,
    /// Bytes of counts that went to disk.
    #[serde(skip)]
    pub spilled_bytes: u64,
}

impl TrainReport {
    /// Whether the vocabulary has the wanted size. If not, the text is too small for it.
    pub fn reached_size(&self) -> bool {
        self.vocab_size == self.wanted_vocab_size
    }
}

impl Trainer {
    /// Trains to `vocab_size` ids, with every pair that occurs twice or more, on all threads, in as much memory as it takes.
    pub fn new(vocab_size: usize) -> Trainer {
        Trainer {
            vocab_size,
            min_frequency: 2,
            min_word_count: 1,
            threads: None,
            memory: None,
            scratch: None,
        }
    }

    /// Learns a tokenizer from `docs`. Memory grows with the number of distinct words, not with the text.
    ///
    /// `progress` is called with (bytes read, 0) while reading, then with (merges learned, merges wanted).
    ///
    /// Text too small for the wanted size gives a smaller vocabulary, which the report says.
    ///
    /// # Errors
    /// When `vocab_size` is below 512 or beyond what ids can hold, or when threads cannot be started; when the distinct
    /// words do not fit into `memory`, or counts cannot be written to `scratch`.
    pub fn train<I, T>(&self, docs: I, progress: &mut dyn FnMut(u64, u64)) -> Result<(Tokenizer, TrainReport)>
    where
        I: Iterator<Item = T>,
        T: AsRef<str> + Send + Sync,
    {
        let max = MAX_RANKS + NUM_SPECIAL;
        if !(256 + NUM_SPECIAL..=max).contains(&self.vocab_size) {
            return Err(Error::VocabSize { wanted: self.vocab_size, max });
        }
        let (words, mut report) = self.count(docs, Split::Llama3, progress)?;
        let corpus = self.corpus(words, &mut report)?;
        let (ranks, tokens) = self.learn(byte_tokens(), corpus, &mut |_, _| false, progress)?;
        let tokenizer = Tokenizer::from_ranks(ranks)?;
        report.tokens = tokens;
        report.wanted_vocab_size = self.vocab_size;
        report.vocab_size = tokenizer.vocab_size();
        Ok((tokenizer, report))
    }

    /// The distinct words of the documents.
    fn count<I, T>(
        &self,
        docs: I,
        split: Split,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(WordList, TrainReport)>
    where
        I: Iterator<Item = T>,
        T: AsRef<str> + Send + Sync,
    {
        let counting = Counting {
            split,
            threads: self.threads.unwrap_or_else(rayon::current_num_threads),
            memory: self.memory.map(|memory| memory as usize / 2),
            scratch: self.scratch.clone().unwrap_or_else(std::env::temp_dir),
        };
        let counted = counting.count(docs, &mut |bytes| progress(bytes, 0))?;
        let Counted { documents, bytes, words, ref runs, .. } = counted;
        let report =
            TrainReport { documents, bytes, words, spilled_bytes: runs.bytes, ..TrainReport::default() };
        let words = counted.into_words(&counting, self.min_word_count, &|list| {
            self.afford("the distinct words", list.memory())
        })?;
        Ok((words, report))
    }

    /// The words as bytes, to be merged.
    fn corpus(&self, words: WordList, report: &mut TrainReport) -> Result<Corpus> {
        let mut id_of = [0; 256];
        for (id, byte) in (0..).zip(byte_order()) {
            id_of[usize::from(byte)] = id;
        }
        let order = words.by_count();
        let cells = words.bytes() + words.len();
        self.afford("the distinct words", words.memory() + order.len() * 4 + cells * 4)?;
        let mut corpus = Corpus::new(cells)?;
        for index in order {
            let (word, count) = words.get(index as usize);
            report.distinct_words += u64::from(word.len() > 1);
            corpus.push(word.iter().map(|&byte| id_of[usize::from(byte)]), count);
        }
        Ok(corpus)
    }

    /// Tokens made of those that `corpus` consists of, in the order of their ids, and how many of them the text takes.
    fn learn(
        &self,
        tokens: Vec<Rc<[u8]>>,
        corpus: Corpus,
        refuse: &mut dyn FnMut((u32, u32), u32) -> bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Vec<Vec<u8>>, u64)> {
        let merger = Merger::new(tokens, corpus, (self.min_frequency, self.memory), refuse)?;
        merger.learn(self.vocab_size - NUM_SPECIAL, progress)
    }

    fn afford(&self, what: &'static str, needed: usize) -> Result<()> {
        match self.memory {
            Some(cap) if needed as u64 > cap => Err(Error::Memory { what, needed: needed as u64, cap }),
            _ => Ok(()),
        }
    }
}

fn byte_tokens() -> Vec<Rc<[u8]>> {
    byte_order().map(|byte| Rc::from([byte])).to_vec()
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
