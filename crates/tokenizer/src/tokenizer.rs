//! The tokenizer itself.

use crate::added::{Added, AddedTokens, Finder, Found};
use crate::bpe::{Bpe, MergeRules, Scratch};
use crate::special::{NUM_SPECIAL, Said, SpecialTokens};
use crate::template::ChatTemplate;
use crate::tokens::{Merges, Tokens};
use crate::{Error, Release, Result, Split, format};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Ids are 32 bits, and the largest means "none" inside.
pub(crate) const MAX_RANKS: usize = u32::MAX as usize - NUM_SPECIAL;

/// A byte-level BPE tokenizer. Cloning is cheap, and clones share their memory.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    split: Split,
    bpe: Bpe,
    /// How many ids are neither added nor unused.
    ordinary: usize,
    added: AddedTokens,
    unused: Vec<u32>,
    special: SpecialTokens,
    template: Option<ChatTemplate>,
    /// One for each thread that has encoded at the same time as others.
    scratches: Mutex<Vec<Scratch>>,
}

/// A tokenizer as a file describes it.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) split: Split,
    /// By id; of an added token its name.
    pub(crate) tokens: Tokens,
    pub(crate) added: Vec<Added>,
    /// Ids of `added` that are ordinary tokens as well, as when somebody makes a word of the vocabulary one that is found by
    /// its name.
    pub(crate) both: BTreeSet<u32>,
    /// Ids that no text is encoded to, beside those of `added`.
    pub(crate) unused: Vec<u32>,
    pub(crate) merges: Option<(Merges, MergeRules)>,
    pub(crate) said: Said,
    /// Nothing where it is Llama 3's own, or where there is none.
    pub(crate) template: Option<String>,
}

impl Tokenizer {
    /// A tokenizer of `ranks`, the byte string of every ordinary token in the order of the ids, with the 256 special
    /// tokens of April 2024 behind them.
    ///
    /// # Errors
    /// When a token is empty or occurs twice, or when a single byte is missing.
    pub fn from_ranks(ranks: Vec<Vec<u8>>) -> Result<Tokenizer> {
        Tokenizer::from_ranks_of(ranks, Release::April2024)
    }

    /// The same with the special tokens of a release.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_ranks`].
    pub fn from_ranks_of(ranks: Vec<Vec<u8>>, release: Release) -> Result<Tokenizer> {
        let first = ranks.len();
        let names = release.names();
        let mut tokens: Tokens = ranks.iter().collect();
        names.iter().for_each(|name| tokens.push(name.as_bytes()));
        if first > MAX_RANKS {
            return Err(Error::Vocabulary { problem: format!("`{first}` ranks do not fit 32-bit ids") });
        }
        let special = |(id, content)| Added { id, content, special: true, normalized: false };
        Tokenizer::from_parts(Parts {
            tokens,
            added: (first as u32..).zip(names).map(special).collect(),
            said: Said { bos: Some(first as u32), adds_bos: true, ..Said::default() },
            ..Parts::default()
        })
    }

    pub(crate) fn from_parts(parts: Parts) -> Result<Tokenizer> {
        let Parts { split, tokens, added, both, unused, merges, said, template } = parts;
        let added = AddedTokens::new(added)?;
        let special = SpecialTokens::new(added.list(), said, tokens.len())?;
        let mut ordinary = vec![true; tokens.len()];
        let only_added = added.list().iter().map(|token| token.id).filter(|id| !both.contains(id));
        for id in only_added.chain(unused.iter().copied()) {
            ordinary[id as usize] = false;
        }
        let count = ordinary.iter().filter(|&&ordinary| ordinary).count();
        let numbered = || (0u32..).zip(&ordinary).filter(|&(_, &ordinary)| ordinary).map(|(id, _)| id);
        let bpe = match merges {
            None => Bpe::of_ranks(tokens, count)?,
            Some((merges, rules)) => match ranks_of(&tokens, &ordinary, count, (&merges, rules)) {
                Some(bpe) => bpe,
                None => Bpe::of_merges(tokens, numbered(), &merges, rules)?,
            },
        };
        let template = template.map(|source| ChatTemplate::new(source, added.list(), &special));
        Ok(Tokenizer(Arc::new(Inner {
            split,
            bpe,
            ordinary: count,
            added,
            unused,
            special,
            template,
            scratches: Mutex::default(),
        })))
    }

    /// Loads a `tokenizer.model` (one line per rank: base64, space, rank), a Hugging Face `tokenizer.json` (any file that
    /// ends in `.json`), or the one that a folder holds; `tokenizer.json` where it holds both, for it says more.
    ///
    /// Tokens that begin and end a text, and the chat template, are read from `tokenizer_config.json` and
    /// `chat_template.jinja` beside it, where these are there. `truncation` and `padding` in a `tokenizer.json` are not read: they
    /// say what is done with a batch of texts, and ids of a text do not depend on them.
    ///
    /// # Errors
    /// When a file is absent, damaged, or not a byte-level BPE with one of the splits of [`Split`]; the error names the
    /// line or key.
    pub fn load(path: impl AsRef<Path>) -> Result<Tokenizer> {
        Tokenizer::load_of(path, Release::April2024)
    }

    /// [`Tokenizer::load`], but a `tokenizer.model` gets the special tokens of a release.
    ///
    /// # Errors
    /// Those of [`Tokenizer::load`].
    pub fn load_of(path: impl AsRef<Path>, release: Release) -> Result<Tokenizer> {
        format::load(path.as_ref(), release)
    }

    /// The tokenizer that the contents of a `tokenizer.json` describe, without anything beside it. Errors call it
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// Those of [`Tokenizer::load`].
    pub fn from_json(contents: &[u8]) -> Result<Tokenizer> {
        format::hf::read_tokenizer_json(contents, Path::new("tokenizer.json"), None)
    }

    /// Writes a `tokenizer.model` to the file `path`, whole or not at all. The format has no special tokens; reading it
    /// gives those of April 2024.
    ///
    /// # Errors
    /// When the file cannot be written; when the tokenizer is not one of ranks and Llama 3's split, see
    /// [`Tokenizer::has_ranks`].
    pub fn save_model(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if !self.has_ranks() {
            return Err(Error::NoRanks { path: path.into() });
        }
        format::write(path, &format::model_file(self))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into the folder `dir`, as `transformers` reads them. The
    /// configuration names the end token (in a tokenizer of ours `<|eot_id|>`) and holds the chat template.
    ///
    /// Ids that no text is encoded to, which a GGUF file may have, become special tokens.
    ///
    /// # Errors
    /// When a file cannot be written; when an id that is not used has the name of another token.
    pub fn save_hf(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        format::write(&dir.join("tokenizer.json"), &format::hf::tokenizer_json(self)?)?;
        format::write(&dir.join("tokenizer_config.json"), &format::hf::tokenizer_config_json(self))
    }

    /// The ids of `text`. A special token spelled in the text is ordinary text. Nothing is put before or after.
    ///
    /// Some vocabularies of others lack tokens for single bytes. Such a byte is left out where no merge and no unknown token
    /// covers it, as `transformers` and llama.cpp do, so that ids mean the same everywhere; see
    /// [`Tokenizer::missing_bytes`].
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, &mut ids);
        ids
    }

    /// Appends the ids of `text` to `out`; see [`Tokenizer::encode`].
    pub fn encode_into(&self, text: &str, out: &mut Vec<u32>) {
        self.encode_finding(self.0.added.plain(), text, out);
    }

    /// Appends the ids of `text`, in which the names that `finder` knows are tokens.
    pub(crate) fn encode_finding(&self, finder: &Finder, text: &str, out: &mut Vec<u32>) {
        let mut scratch = self.scratches().pop().unwrap_or_default();
        scratch.prepare(text.len());
        finder.split(text, &mut |found| match found {
            Found::Token(id) => out.push(id),
            Found::Text(text) => {
                let mut pieces = self.0.split.pieces(text);
                self.0.bpe.encode(text.as_bytes(), || pieces.next_range(), &mut scratch, out);
            }
        });
        self.scratches().push(scratch);
    }

    fn scratches(&self) -> std::sync::MutexGuard<'_, Vec<Scratch>> {
        // Whoever holds the lock only adds or takes one.
        self.0.scratches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids of each of `texts`, in the same order, computed by all threads of the current `rayon` pool.
    pub fn encode_batch(&self, texts: &[&str]) -> Vec<Vec<u32>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    /// The ids of `text`, in which the name of a special token stands for that token. For trusted text only.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_finding(self.0.added.all(), text, &mut ids);
        ids
    }

    /// The bytes that `ids` stand for; a special token gives its name.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            let token = self.token_bytes(id);
            bytes.extend(token.ok_or(Error::UnknownId { id, vocab_size: self.vocab_size() })?);
        }
        Ok(bytes)
    }

    /// The text that `ids` stand for, with U+FFFD for bytes that are not UTF-8; a special token gives its name.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes = self.decode_bytes(ids)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Bytes that texts can contain and that have no token, so that [`Tokenizer::encode`] leaves them out. None in a tokenizer of
    /// ranks.
    pub fn missing_bytes(&self) -> Vec<u8> {
        self.0.bpe.missing_bytes()
    }

    /// The number of ids: ordinary tokens, special tokens, and others that a file may have.
    pub fn vocab_size(&self) -> usize {
        self.0.bpe.tokens().len()
    }

    /// The number of ordinary tokens. In a tokenizer of ranks their ids come before those of the special tokens.
    pub fn num_ranks(&self) -> usize {
        self.0.ordinary
    }

    /// Whether this is a tokenizer in Llama 3's way: its split, ids that are ranks, special tokens behind them. Only these
    /// have a `tokenizer.model`.
    pub fn has_ranks(&self) -> bool {
        self.0.bpe.has_ranks() && self.0.split == Split::Llama3
    }

    /// How text is split.
    pub fn split(&self) -> Split {
        self.0.split
    }

    /// The special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.0.special
    }

    /// The bytes of the token `id`; for a special token those of its name; nothing where there is no such token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.bpe.tokens().get(id as usize)
    }

    /// A hash (blake3, hexadecimal) of all tokens and what else decides about ids: the bytes of every id, merges, split, added
    /// tokens with how they are found, ids that are not used, and the unknown token where bytes become one. Equal for two
    /// tokenizers exactly when every id means the same.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.num_ranks() as u64).to_le_bytes());
        for token in self.0.bpe.tokens().iter() {
            hasher.update(&(token.len() as u64).to_le_bytes()).update(token);
        }
        // What Llama 3's way has without saying is not hashed, so that its tokenizers keep their fingerprints.
        let Inner { split, bpe, added, unused, .. } = &*self.0;
        let ordinary = self.num_ranks();
        let unusual = |token: &Added| !token.special || token.normalized || (token.id as usize) < ordinary;
        if !self.has_ranks() || added.list().iter().any(unusual) {
            hasher.update(format!("{split:?} {} {}", bpe.whole_pieces(), bpe.has_ranks()).as_bytes());
            for (_, left, right) in bpe.merges() {
                hasher.update(&left.to_le_bytes()).update(&right.to_le_bytes());
            }
            for token in added.list() {
                hasher
                    .update(&token.id.to_le_bytes())
                    .update(&[token.special.into(), token.normalized.into()]);
            }
        }
        for id in unused {
            hasher.update(b"unused").update(&id.to_le_bytes());
        }
        if let Some(id) = bpe.unknown().filter(|_| bpe.lacks_a_byte()) {
            hasher.update(b"unknown").update(&id.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The ids that texts are made of, in order; those of added tokens that are nothing else are not among them.
    pub fn ordinary_ids(&self) -> impl Iterator<Item = u32> {
        let bpe = &self.0.bpe;
        (0u32..).zip(bpe.tokens().iter()).filter(|&(id, token)| bpe.id(token) == Some(id)).map(|(id, _)| id)
    }

    pub(crate) fn bpe(&self) -> &Bpe {
        &self.0.bpe
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        self.0.bpe.tokens()
    }

    pub(crate) fn added(&self) -> &AddedTokens {
        &self.0.added
    }

    /// Ids that no text is encoded to, beside those of added tokens.
    pub(crate) fn unused(&self) -> &[u32] {
        &self.0.unused
    }

    pub(crate) fn template(&self) -> Option<&ChatTemplate> {
        self.0.template.as_ref()
    }
}

/// The vocabulary of ranks that a list of merges describes, if it does: pieces that are tokens are these, ids are 0, 1, 2 …,
/// and every way to join two tokens to a third is a merge, in the order of the third's id.
fn ranks_of(
    tokens: &Tokens,
    ordinary: &[bool],
    count: usize,
    (merges, rules): (&Merges, MergeRules),
) -> Option<Bpe> {
    if !rules.whole_pieces || !ordinary[..count].iter().all(|&ordinary| ordinary) {
        return None;
    }
    let bpe = Bpe::of_ranks(tokens.clone(), count).ok()?;
    let triple = |(left, right): (&[u8], &[u8])| {
        Some((bpe.id(&[left, right].concat())?, bpe.id(left)?, bpe.id(right)?))
    };
    let mut found: Vec<_> = merges.iter().map(triple).collect::<Option<_>>()?;
    let in_order = found.is_sorted_by_key(|&(id, ..)| id);
    found.sort_unstable();
    (in_order && found == bpe.merges()).then_some(bpe)
}
