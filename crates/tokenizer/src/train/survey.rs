//! How well a tokenizer fits texts: bytes per token and fertility by domain and language, and tokens that are not used.

use crate::{Split, Tokenizer};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How much text is encoded between two calls of `progress`.
const BATCH_BYTES: usize = 16 << 20;

/// A text, or a part of one that was cut where [`Split::safe_cut`](crate::Split::safe_cut) says, and what is known about it.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The text.
    pub text: String,
    /// What kind of text it is.
    pub domain: Option<Arc<str>>,
    /// The language it is in.
    pub lang: Option<Arc<str>>,
    /// Whether a document begins here.
    pub begins: bool,
}

impl AsRef<str> for Sample {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

/// How texts are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Documents.
    pub documents: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Words: what stands between white space.
    pub words: u64,
    /// Tokens.
    pub tokens: u64,
}

impl Fit {
    /// Bytes for each token: how much the tokenizer compresses; nothing without tokens.
    pub fn bytes_per_token(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.bytes as f64 / self.tokens as f64)
    }

    /// Tokens for each word, a word being what stands between white space; nothing without words. It says little about
    /// languages that are written without spaces.
    pub fn fertility(&self) -> Option<f64> {
        (self.words > 0).then(|| self.tokens as f64 / self.words as f64)
    }

    fn add(&mut self, other: Fit) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.words += other.words;
        self.tokens += other.tokens;
    }
}

impl Serialize for Fit {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fit = to.serialize_struct("Fit", 6)?;
        fit.serialize_field("documents", &self.documents)?;
        fit.serialize_field("bytes", &self.bytes)?;
        fit.serialize_field("words", &self.words)?;
        fit.serialize_field("tokens", &self.tokens)?;
        fit.serialize_field("bytes_per_token", &self.bytes_per_token())?;
        fit.serialize_field("fertility", &self.fertility())?;
        fit.end()
    }
}

/// What a tokenizer makes of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Survey {
    /// All texts.
    pub all: Fit,
    /// Those that have a domain, by domain.
    pub domains: BTreeMap<String, Fit>,
    /// Those that have a language, by language.
    pub languages: BTreeMap<String, Fit>,
    /// Ordinary tokens that no text was encoded to, but those of `unreachable`.
    pub unused: Vec<u32>,
    /// Ordinary tokens that no text can be encoded to: their own bytes give others, or are not part of any text.
    pub unreachable: Vec<u32>,
}

/// What one thread has found.
#[derive(Default)]
struct Found {
    domains: BTreeMap<Option<Arc<str>>, Fit>,
    languages: BTreeMap<Option<Arc<str>>, Fit>,
    used: Vec<bool>,
    ids: Vec<u32>,
}

impl Survey {
    /// Encodes `samples` on the threads of the current `rayon` pool. `progress` is called with the bytes that are done.
    pub fn new(
        tokenizer: &Tokenizer,
        mut samples: impl Iterator<Item = Sample>,
        progress: &mut dyn FnMut(u64),
    ) -> Survey {
        let mut all = Found::default();
        let mut done = 0;
        loop {
            let (mut batch, mut size) = (Vec::new(), 0);
            while size < BATCH_BYTES
                && let Some(sample) = samples.next()
            {
                size += sample.text.len();
                batch.push(sample);
            }
            if batch.is_empty() {
                break;
            }
            let found = batch.par_iter().fold(Found::default, |found, sample| found.with(tokenizer, sample));
            all = all.and(found.reduce(Found::default, Found::and));
            done += size as u64;
            progress(done);
        }
        let unreachable = unreachable(tokenizer);
        let is_used = |id: u32| all.used.get(id as usize).copied().unwrap_or(false);
        let is_unused = |id: &u32| !is_used(*id) && unreachable.binary_search(id).is_err();
        let mut survey = Survey {
            unused: tokenizer.ordinary_ids().filter(is_unused).collect(),
            unreachable,
            ..Survey::default()
        };
        all.domains.values().for_each(|&fit| survey.all.add(fit));
        let named = |(name, fit): (Option<Arc<str>>, Fit)| Some((name?.to_string(), fit));
        survey.domains = all.domains.into_iter().filter_map(named).collect();
        survey.languages = all.languages.into_iter().filter_map(named).collect();
        survey
    }
}

impl Found {
    fn with(mut self, tokenizer: &Tokenizer, sample: &Sample) -> Found {
        self.ids.clear();
        tokenizer.encode_into(&sample.text, &mut self.ids);
        self.used.resize(tokenizer.vocab_size(), false);
        self.ids.iter().for_each(|&id| self.used[id as usize] = true);
        let fit = Fit {
            documents: sample.begins.into(),
            bytes: sample.text.len() as u64,
            words: sample.text.split_whitespace().count() as u64,
            tokens: self.ids.len() as u64,
        };
        self.domains.entry(sample.domain.clone()).or_default().add(fit);
        self.languages.entry(sample.lang.clone()).or_default().add(fit);
        self
    }

    fn and(mut self, other: Found) -> Found {
        for (ours, theirs) in [(&mut self.domains, other.domains), (&mut self.languages, other.languages)] {
            theirs.into_iter().for_each(|(name, fit)| ours.entry(name).or_default().add(fit));
        }
        let len = self.used.len().max(other.used.len());
        self.used.resize(len, false);
        self.used.iter_mut().zip(other.used).for_each(|(ours, theirs)| *ours |= theirs);
        self
    }
}

/// Ordinary tokens that no text can be encoded to. A token is reached inside a piece when the merges make it of its own
/// bytes, for what they do there does not depend on what is around; or it is a whole piece.
///
/// With a list of merges, tokens of incomplete characters are taken to be reached.
fn unreachable(tokenizer: &Tokenizer) -> Vec<u32> {
    let ranks = tokenizer.has_ranks();
    let is_made = |id: u32, token: &[u8]| !ranks || tokenizer.bpe().merged(token) == [id];
    let is_reachable = |id: u32| {
        let token = &tokenizer.tokens()[id as usize];
        if token.iter().any(|byte| matches!(byte, 0xC0 | 0xC1 | 0xF5..=0xFF)) {
            // UTF-8 does not use these bytes.
            return false;
        }
        match std::str::from_utf8(token) {
            Ok(text) if tokenizer.encode(text) == [id] => true,
            Ok(text) => ranks && may_be_in_a_piece(tokenizer.split(), text) && is_made(id, token),
            Err(_) => is_made(id, token),
        }
    };
    let ids: Vec<u32> = tokenizer.ordinary_ids().collect();
    ids.into_par_iter().filter(|&id| !is_reachable(id)).collect()
}

/// Whether a piece can hold this text: it is one, or white space that a newline holds together.
fn may_be_in_a_piece(split: Split, text: &str) -> bool {
    split.pieces(&format!("{text}\n")).next().is_some_and(|first| first.len() >= text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Trainer;

    fn sample(text: &str, domain: &str, lang: Option<&str>, begins: bool) -> Sample {
        Sample { text: text.into(), domain: Some(domain.into()), lang: lang.map(Into::into), begins }
    }

    #[test]
    fn texts_are_counted_by_domain_and_language() {
        let (tokenizer, _) = Trainer::new(512 + 2).train(["ab ab ab abc"].iter(), &mut |_, _| ()).unwrap();
        let samples = [
            sample("ab ab", "prose", Some("en"), true),
            sample(" xy", "prose", Some("en"), false),
            sample("ab", "code", None, true),
        ];
        let mut done = 0;
        let survey = Survey::new(&tokenizer, samples.into_iter(), &mut |bytes| done = bytes);
        let prose = Fit { documents: 1, bytes: 8, words: 3, tokens: 5 };
        let code = Fit { documents: 1, bytes: 2, words: 1, tokens: 1 };
        assert_eq!((survey.domains["prose"], survey.domains["code"]), (prose, code));
        assert_eq!(survey.languages.into_iter().collect::<Vec<_>>(), [("en".to_owned(), prose)]);
        assert_eq!((survey.all, done), (Fit { documents: 2, bytes: 10, words: 4, tokens: 6 }, 10));
        assert_eq!((code.bytes_per_token(), prose.fertility()), (Some(2.0), Some(5.0 / 3.0)));
        assert_eq!((Fit::default().bytes_per_token(), Fit::default().fertility()), (None, None));
        assert_eq!(survey.unreachable.len(), 13);
        // "ab", " ab", "x", "y" and the space are used.
        assert_eq!(survey.unused.len(), 256 + 2 - 13 - 5);
    }

    #[test]
    fn ids_of_a_list_of_merges_may_begin_with_special_tokens() {
        let tokens = ["<|endoftext|>", "<x>", "a", "b", "ab", "c"].map(String::from).to_vec();
        let vocabulary = crate::GgufVocabulary {
            model: "gpt2".into(),
            pre: "gpt-2".into(),
            tokens,
            token_types: vec![3, 3, 1, 1, 1, 1],
            merges: vec!["a b".into()],
            ..crate::GgufVocabulary::default()
        };
        let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
        let survey = Survey::new(&tokenizer, [sample("ab", "x", None, true)].into_iter(), &mut |_| ());
        assert_eq!((survey.unused, survey.unreachable), (vec![2, 3, 5], vec![]));
    }

    #[test]
    fn tokens_that_no_text_has_are_unreachable() {
        let more = ["abc", "  a", "12", "1234", "\n ", "\n", "é", "x\u{7ff}"];
        let bytes = (0..=255u8).map(|byte| vec![byte]).filter(|byte| byte != b"\n");
        let ranks = bytes
            .chain([b"\n".to_vec()])
            .chain(more.iter().filter(|&&t| t != "\n").map(|t| t.as_bytes().to_vec()));
        let tokenizer = Tokenizer::from_ranks(ranks.collect()).unwrap();
        let survey = Survey::new(&tokenizer, std::iter::empty(), &mut |_| ());
        let found = survey.unreachable.iter().filter(|&&id| id >= 256);
        let found: Vec<_> =
            found.map(|&id| std::str::from_utf8(&tokenizer.tokens()[id as usize]).unwrap()).collect();
        // Spaces before letters and four digits are more than a piece; `x` and a whole character can be one.
        assert_eq!(found, ["  a", "1234", "x\u{7ff}"]);
    }
}
