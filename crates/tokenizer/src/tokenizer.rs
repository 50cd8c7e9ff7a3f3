//! The tokenizer itself.

use crate::bpe::{Bpe, Scratch};
use crate::special::{NUM_SPECIAL, SpecialTokens, april_2024_names};
use crate::{Error, Result, format, split};
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// Ids are 32 bits, and the largest means "none" inside.
pub(crate) const MAX_RANKS: usize = u32::MAX as usize - NUM_SPECIAL;

/// A byte-level BPE tokenizer in Llama 3's way. Cloning is cheap, and clones share their memory.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bpe: Bpe,
    special: SpecialTokens,
}

impl Tokenizer {
    /// A tokenizer of `ranks`, the byte string of every ordinary token in the order of the ids, with the 256 special
    /// tokens of April 2024 behind them.
    ///
    /// # Errors
    /// When a token is empty or occurs twice, or when a single byte is missing.
    pub fn from_ranks(ranks: Vec<Vec<u8>>) -> Result<Tokenizer> {
        Tokenizer::new(ranks, april_2024_names())
    }

    pub(crate) fn new(ranks: Vec<Vec<u8>>, special: Vec<String>) -> Result<Tokenizer> {
        let bpe = Bpe::new(ranks)?;
        let special = SpecialTokens::new(bpe.tokens().len() as u32, special)?;
        Ok(Tokenizer(Arc::new(Inner { bpe, special })))
    }

    /// Loads a `tokenizer.model` (one line per rank: base64, space, rank), a Hugging Face `tokenizer.json` (any file that
    /// ends in `.json`), or the one that a folder holds; `tokenizer.model` where it holds both.
    ///
    /// # Errors
    /// When the file is absent, damaged, or not a byte-level BPE with Llama 3's split pattern; the error names the line
    /// or key.
    pub fn load(path: impl AsRef<Path>) -> Result<Tokenizer> {
        format::load(path.as_ref())
    }

    /// Writes a `tokenizer.model` to the file `path`, whole or not at all. The format has no special tokens; reading it
    /// gives those of April 2024.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_model(&self, path: impl AsRef<Path>) -> Result<()> {
        format::write(path.as_ref(), &format::model_file(self))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into the folder `dir`, as `transformers` reads them. The
    /// configuration names `<|eot_id|>` as end token and holds the chat template.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_hf(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        format::write(&dir.join("tokenizer.json"), &format::hf::tokenizer_json(self))?;
        format::write(&dir.join("tokenizer_config.json"), &format::hf::tokenizer_config_json(self))
    }

    /// The ids of `text`. A special token spelled in the text is ordinary text. Nothing is put before or after.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, &mut ids);
        ids
    }

    /// Appends the ids of `text` to `out`; see [`Tokenizer::encode`].
    pub fn encode_into(&self, text: &str, out: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        for piece in split(text) {
            self.0.bpe.encode(piece.as_bytes(), &mut scratch, out);
        }
    }

    /// The ids of each of `texts`, in the same order, computed by all threads of the current `rayon` pool.
    pub fn encode_batch(&self, texts: &[&str]) -> Vec<Vec<u32>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    /// The ids of `text`, in which the name of a special token stands for that token. For trusted text only.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut rest = text;
        while let Some((start, end, id)) = self.0.special.find(rest) {
            self.encode_into(&rest[..start], &mut ids);
            ids.push(id);
            rest = &rest[end..];
        }
        self.encode_into(rest, &mut ids);
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

    /// The number of ids: the ranks and the special tokens.
    pub fn vocab_size(&self) -> usize {
        self.num_ranks() + self.0.special.iter().len()
    }

    /// The number of ordinary tokens; their ids come before those of the special tokens.
    pub fn num_ranks(&self) -> usize {
        self.0.bpe.tokens().len()
    }

    /// The special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.0.special
    }

    /// The bytes of the token `id`; for a special token those of its name; nothing where there is no such token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        match self.0.bpe.tokens().get(id as usize) {
            Some(token) => Some(token),
            None => self.0.special.name(id).map(str::as_bytes),
        }
    }

    /// A hash (blake3, hexadecimal) of all tokens: equal for two tokenizers exactly when every id means the same.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.num_ranks() as u64).to_le_bytes());
        for id in 0..self.vocab_size() as u32 {
            let token = self.token_bytes(id).unwrap_or_default();
            hasher.update(&(token.len() as u64).to_le_bytes()).update(token);
        }
        hasher.finalize().to_hex().to_string()
    }

    pub(crate) fn bpe(&self) -> &Bpe {
        &self.0.bpe
    }
}
