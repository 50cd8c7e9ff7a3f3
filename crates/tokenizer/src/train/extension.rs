//! Tokens added to a vocabulary that is there.
//!
//! Words are encoded with the base vocabulary, and merges are learned over its tokens. The new tokens get the ids, that
//! is the ranks, behind those of the base. Then
//!
//! 1. every token of the base keeps its id;
//! 2. inside a piece all merges of the base happen before any new one, so the new encoding of any text is the old one with
//!    neighbours joined: with each new token written as the base tokens it stands for, it *is* the old encoding;
//! 3. every new token is what the merges make of its own bytes, so it is reached inside longer pieces as well as by the
//!    rule that a piece that is a token is that token.
//!
//! One thing could break this. A base may hold a token that its own merges do not make (it is used for whole pieces only).
//! When its bytes become two tokens by new merges, these two have a merge all at once, with a rank of the base. A pair
//! that would bring such a token there is passed over.

use super::merging::{Corpus, Pair};
use super::{TrainReport, Trainer};
use crate::special::NUM_SPECIAL;
use crate::tokenizer::MAX_RANKS;
use crate::{Error, Release, Result, Split, Tokenizer};
use rayon::prelude::*;
use std::collections::HashMap;
use std::rc::Rc;

/// How many words are encoded at once.
const BLOCK: usize = 1 << 16;

impl Trainer {
    /// Learns tokens from `docs` that come behind those of `base`, until there are `vocab_size` ids with those of the base
    /// and the 256 special tokens, whose ids move up by the number of new tokens. Ids of the base's ordinary tokens keep their meaning.
    ///
    /// Any text is encoded as by the base, with some neighbours joined: a new token stands for two tokens or more of the
    /// base, always the same ones. Each is what the merges make of its bytes.
    ///
    /// # Errors
    /// Those of [`Trainer::train`]; when `base` is not a tokenizer in Llama 3's way ([`Tokenizer::has_ranks`]) with Llama 3's
    /// special tokens, or is as large as `vocab_size` already.
    pub fn extend<I, T>(
        &self,
        base: &Tokenizer,
        docs: I,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Tokenizer, TrainReport)>
    where
        I: Iterator<Item = T>,
        T: AsRef<str> + Send + Sync,
    {
        let release = release_of(base)?;
        let max = MAX_RANKS + NUM_SPECIAL;
        if !(base.vocab_size() + 1..=max).contains(&self.vocab_size) {
            let base = base.vocab_size();
            return Err(Error::ExtendedSize { wanted: self.vocab_size, base, max });
        }
        let (words, mut report) = self.count(docs, Split::Llama3, progress)?;
        let order = words.by_count();
        let cells = words.bytes() + words.len();
        self.afford("the distinct words", words.memory() + order.len() * 4 + cells * 4)?;
        let mut corpus = Corpus::new(cells)?;
        for block in order.chunks(BLOCK) {
            let encoded = block.par_iter().map(|&index| base.encode_word(words.get(index as usize).0));
            for (ids, &index) in encoded.collect::<Vec<_>>().into_iter().zip(block) {
                let (word, count) = words.get(index as usize);
                report.distinct_words += u64::from(word.len() > 1);
                corpus.push(ids.into_iter(), count);
            }
        }
        drop((words, order));
        let tokens: Vec<Rc<[u8]>> = base.tokens().iter().take(base.num_ranks()).map(Rc::from).collect();
        let mut guard = Guard::new(base);
        let mut refuse = |pair, new| guard.refuses(pair, new);
        let (ranks, tokens) = self.learn(tokens, corpus, &mut refuse, progress)?;
        let tokenizer = Tokenizer::from_ranks_of(ranks, release)?;
        report.tokens = tokens;
        report.wanted_vocab_size = self.vocab_size;
        report.vocab_size = tokenizer.vocab_size();
        Ok((tokenizer, report))
    }
}

/// Whose special tokens these are.
fn release_of(base: &Tokenizer) -> Result<Release> {
    let first = base.num_ranks() as u32;
    let has = |release: Release| {
        let names = release.names();
        base.has_ranks()
            && base.vocab_size() == base.num_ranks() + names.len()
            && (first..).zip(&names).all(|(id, name)| base.special().name(id) == Some(name))
    };
    [Release::April2024, Release::July2024]
        .into_iter()
        .find(|&release| has(release))
        .ok_or(Error::NotExtensible)
}

impl Tokenizer {
    /// The ids of a word that a split found.
    fn encode_word(&self, word: &[u8]) -> Vec<u32> {
        match std::str::from_utf8(word) {
            Ok(word) => self.encode(word),
            // Words are parts of texts.
            Err(_) => Vec::new(),
        }
    }
}

/// Tokens of the base that its merges do not make, as what they make instead.
struct Guard {
    words: Vec<Vec<u32>>,
    /// Where each pair of neighbours is, and perhaps where some were.
    places: HashMap<Pair, Vec<usize>>,
}

impl Guard {
    fn new(base: &Tokenizer) -> Guard {
        let mut guard = Guard { words: Vec::new(), places: HashMap::new() };
        for token in base.tokens().iter().take(base.num_ranks()) {
            let made = base.bpe().merged(token);
            if made.len() > 1 {
                let place = guard.words.len();
                guard.words.push(made);
                guard.note(place);
            }
        }
        guard
    }

    fn note(&mut self, place: usize) {
        for two in self.words[place].windows(2) {
            self.places.entry((two[0], two[1])).or_default().push(place);
        }
    }

    /// Whether `pair` as the token `new` would leave but two parts of a token of the base. If not, it is made that token.
    fn refuses(&mut self, pair: Pair, new: u32) -> bool {
        let Some(mut places) = self.places.remove(&pair) else { return false };
        places.sort_unstable();
        places.dedup();
        let replaced: Vec<_> = places.iter().map(|&place| replaced(&self.words[place], pair, new)).collect();
        if replaced.iter().any(|word| word.len() < 3) {
            return true;
        }
        for (place, word) in places.into_iter().zip(replaced) {
            self.words[place] = word;
            self.note(place);
        }
        false
    }
}

fn replaced(word: &[u32], pair: Pair, new: u32) -> Vec<u32> {
    let (mut out, mut at) = (Vec::with_capacity(word.len()), 0);
    while let Some(&id) = word.get(at) {
        let here = id == pair.0 && word.get(at + 1) == Some(&pair.1);
        out.push(if here { new } else { id });
        at += if here { 2 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Texts of few letters, so that pieces are long and overlap.
    fn documents() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[abc]{0,9}( [abc]{1,7}){0,6}", 1..8)
    }

    /// Bytes, and some tokens of a few letters in any order, so that merges do not make all of them.
    fn bases() -> impl Strategy<Value = Tokenizer> {
        proptest::collection::btree_map("[abc]{2,5}", any::<u32>(), 0..25).prop_map(|tokens| {
            let mut tokens: Vec<_> = tokens.into_iter().map(|(token, order)| (order, token)).collect();
            tokens.sort();
            let bytes = (0..=255u8).map(|byte| vec![byte]);
            Tokenizer::from_ranks(
                bytes.chain(tokens.into_iter().map(|(_, token)| token.into_bytes())).collect(),
            )
            .unwrap()
        })
    }

    fn check(base: &Tokenizer, extended: &Tokenizer, texts: &[String]) -> Result<(), TestCaseError> {
        let old = base.num_ranks();
        for id in 0..old as u32 {
            prop_assert_eq!(base.token_bytes(id), extended.token_bytes(id));
        }
        let tokens: Vec<&[u8]> = extended.tokens().iter().take(extended.num_ranks()).collect();
        for (id, token) in (0..).zip(&tokens).skip(old) {
            prop_assert_eq!(
                extended.bpe().merged(token),
                vec![id],
                "{} is not reached",
                token.escape_ascii()
            );
        }
        for text in texts {
            let new = extended.encode(text);
            let stands_for = |id: u32| match id < old as u32 {
                true => vec![id],
                false => base.bpe().merged(tokens[id as usize]),
            };
            let joined: Vec<u32> = new.iter().copied().flat_map(stands_for).collect();
            prop_assert_eq!(joined, base.encode(text), "{:?} as {:?}", text, new);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn the_base_shows_through(base in bases(), docs in documents(), others in documents(), merges in 0usize..30) {
            let trainer = Trainer { min_frequency: 1, ..Trainer::new(base.vocab_size() + 1 + merges) };
            let (extended, report) = trainer.extend(&base, docs.iter(), &mut |_, _| ()).unwrap();
            prop_assert!(extended.vocab_size() <= trainer.vocab_size);
            let tokens: usize = docs.iter().map(|doc| extended.encode(doc).len()).sum();
            prop_assert_eq!(report.tokens, tokens as u64);
            check(&base, &extended, &docs)?;
            check(&base, &extended, &others)?;
        }

        #[test]
        fn extending_what_was_trained_is_training_more(docs in documents(), first in 0usize..20, more in 0usize..20) {
            let (base, _) = Trainer::new(512 + first).train(docs.iter(), &mut |_, _| ()).unwrap();
            let trainer = Trainer::new(base.vocab_size() + 1 + more);
            let (at_once, _) = trainer.train(docs.iter(), &mut |_, _| ()).unwrap();
            let (extended, _) = trainer.extend(&base, docs.iter(), &mut |_, _| ()).unwrap();
            prop_assert_eq!(at_once.fingerprint(), extended.fingerprint());
        }
    }

    #[test]
    fn a_pair_that_would_bring_a_base_token_there_is_passed_over() {
        // The bytes `a`, `b` and `c` have no merge, so `abc` is for whole pieces only.
        let bytes = (0..=255u8).map(|byte| vec![byte]);
        let base = Tokenizer::from_ranks(bytes.chain([b"abc".to_vec()]).collect()).unwrap();
        let docs = ["xab", "xab", "xab", "abcx", "abcx"].map(str::to_owned);
        let (extended, _) =
            Trainer::new(base.vocab_size() + 2).extend(&base, docs.iter(), &mut |_, _| ()).unwrap();
        let tokens: Vec<_> = [257, 258].map(|id| String::from_utf8_lossy(&extended.tokens()[id])).to_vec();
        // `ab` is the most frequent pair.
        assert_eq!(tokens, ["xa", "xab"]);
        check(&base, &extended, &docs).unwrap();
    }

    #[test]
    fn special_tokens_move_up() {
        let (base, _) = Trainer::new(514).train(["ab ab ab"].iter(), &mut |_, _| ()).unwrap();
        let july = Tokenizer::from_ranks_of(
            base.tokens().iter().take(base.num_ranks()).map(<[u8]>::to_vec).collect(),
            Release::July2024,
        )
        .unwrap();
        let (extended, _) = Trainer::new(515).extend(&july, ["cd cd cd"].iter(), &mut |_, _| ()).unwrap();
        assert_eq!(extended.vocab_size(), 515);
        assert_eq!(extended.special().id("<|eom_id|>"), july.special().id("<|eom_id|>").map(|id| id + 1));
        // There must be room for a token.
        for wanted in [513, 514] {
            let error =
                Trainer::new(wanted).extend(&base, ["x"].iter(), &mut |_, _| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("`{wanted}`")) && error.contains("`514`"), "{error}");
        }
    }
}
