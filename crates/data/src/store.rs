//! Token files: `NAME.tokens` (little-endian u16 or u32, document after document) and `NAME.index` (16 bytes per
//! document: end offset in tokens u64, bytes of text u32, domain u32), described by `NAME.json`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use llamero_artifact::MappedFile;
use serde::{Deserialize, Serialize};

use crate::{DataError, Domain};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    token_bytes: usize,
    vocab: usize,
    tokenizer: String,
    documents: u64,
    tokens: u64,
}

const FORMAT: u32 = 1;
const ENTRY: usize = 16;

/// One document of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentEntry {
    /// Its tokens in the store.
    pub tokens: Range<u64>,
    /// Bytes of its text.
    pub text_bytes: u32,
    /// Prose or code.
    pub domain: Domain,
}

/// Writes a store document by document.
pub struct TokenWriter {
    dir: PathBuf,
    name: String,
    header: Header,
    tokens: BufWriter<File>,
    index: BufWriter<File>,
}

impl TokenWriter {
    /// Starts `name` in `dir` for ids below `vocab` made by the tokenizer with this fingerprint.
    pub fn create(dir: &Path, name: &str, vocab: usize, tokenizer: &str) -> Result<Self, DataError> {
        let open = |extension: &str| {
            let path = dir.join(format!("{name}.{extension}"));
            File::create(&path).map(BufWriter::new).map_err(DataError::io(&path))
        };
        let token_bytes = if vocab <= 1 << 16 { 2 } else { 4 };
        let header = Header {
            format: FORMAT,
            token_bytes,
            vocab,
            tokenizer: tokenizer.into(),
            documents: 0,
            tokens: 0,
        };
        Ok(Self {
            dir: dir.into(),
            name: name.into(),
            header,
            tokens: open("tokens")?,
            index: open("index")?,
        })
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.name))
    }

    /// Appends a document.
    pub fn push(&mut self, ids: &[u32], text_bytes: usize, domain: Domain) -> Result<(), DataError> {
        let bytes: Vec<u8> = if self.header.token_bytes == 2 {
            ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect()
        } else {
            ids.iter().flat_map(|id| id.to_le_bytes()).collect()
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.header.vocab) {
            return Err(DataError::store(
                &self.path("tokens"),
                format!("token {id} is not below the vocabulary of {}", self.header.vocab),
            ));
        }
        self.tokens.write_all(&bytes).map_err(DataError::io(&self.path("tokens")))?;
        self.header.documents += 1;
        self.header.tokens += ids.len() as u64;
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&self.header.tokens.to_le_bytes());
        entry[8..12].copy_from_slice(&u32::try_from(text_bytes).unwrap_or(u32::MAX).to_le_bytes());
        entry[12..].copy_from_slice(&(domain as u32).to_le_bytes());
        self.index.write_all(&entry).map_err(DataError::io(&self.path("index")))
    }

    /// Writes what is buffered and the description; returns (documents, tokens).
    pub fn finish(mut self) -> Result<(u64, u64), DataError> {
        self.tokens.flush().map_err(DataError::io(&self.path("tokens")))?;
        self.index.flush().map_err(DataError::io(&self.path("index")))?;
        let path = self.path("json");
        let text = serde_json::to_vec_pretty(&self.header).map_err(|e| DataError::io(&path)(e.into()))?;
        std::fs::write(&path, text).map_err(DataError::io(&path))?;
        Ok((self.header.documents, self.header.tokens))
    }
}

/// A memory-mapped store.
#[derive(Debug)]
pub struct TokenStore {
    tokens: MappedFile,
    index: MappedFile,
    tokens_path: PathBuf,
    token_bytes: usize,
    vocab: usize,
    tokenizer: String,
}

impl TokenStore {
    /// Opens `name` in `dir` and checks that sizes and index agree.
    pub fn open(dir: &Path, name: &str) -> Result<Self, DataError> {
        let path = dir.join(format!("{name}.json"));
        let text = std::fs::read(&path).map_err(DataError::io(&path))?;
        let header: Header =
            serde_json::from_slice(&text).map_err(|e| DataError::store(&path, e.to_string()))?;
        if header.format != FORMAT || !matches!(header.token_bytes, 2 | 4) {
            let found = (header.format, header.token_bytes);
            return Err(DataError::store(&path, format!("unknown format and token width {found:?}")));
        }
        let map = |extension: &str| {
            let path = dir.join(format!("{name}.{extension}"));
            MappedFile::open(&path).map_err(DataError::io(&path))
        };
        let store = Self {
            tokens: map("tokens")?,
            index: map("index")?,
            tokens_path: dir.join(format!("{name}.tokens")),
            token_bytes: header.token_bytes,
            vocab: header.vocab,
            tokenizer: header.tokenizer,
        };
        store.check(header.documents, header.tokens, &dir.join(format!("{name}.index")))?;
        Ok(store)
    }

    fn check(&self, documents: u64, tokens: u64, index_path: &Path) -> Result<(), DataError> {
        let size = self.tokens.bytes().len() as u64;
        if tokens.checked_mul(self.token_bytes as u64) != Some(size) {
            let reason =
                format!("{size} bytes, but {tokens} tokens of {} bytes are described", self.token_bytes);
            return Err(DataError::store(&self.tokens_path, reason));
        }
        let size = self.index.bytes().len() as u64;
        if documents.checked_mul(ENTRY as u64) != Some(size) {
            let reason = format!("{size} bytes, but {documents} documents of {ENTRY} bytes are described");
            return Err(DataError::store(index_path, reason));
        }
        let mut end = 0;
        for (i, entry) in self.index.bytes().chunks_exact(ENTRY).enumerate() {
            let next = u64_at(entry, 0);
            if next < end || next > tokens || u32_at(entry, 12) > 1 {
                return Err(DataError::store(index_path, format!("entry {i} is damaged")));
            }
            end = next;
        }
        if end != tokens {
            return Err(DataError::store(index_path, format!("ends at token {end} of {tokens}")));
        }
        Ok(())
    }

    /// Number of documents.
    pub fn num_documents(&self) -> usize {
        self.index.bytes().len() / ENTRY
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> u64 {
        (self.tokens.bytes().len() / self.token_bytes) as u64
    }

    /// Vocabulary that the ids are below.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Fingerprint of the tokenizer that made the ids.
    pub fn tokenizer(&self) -> &str {
        &self.tokenizer
    }

    /// Document `i`; panics when there is none.
    pub fn document(&self, i: usize) -> DocumentEntry {
        let bytes = self.index.bytes();
        let entry = &bytes[i * ENTRY..(i + 1) * ENTRY];
        let start = if i == 0 { 0 } else { u64_at(&bytes[(i - 1) * ENTRY..], 0) };
        DocumentEntry {
            tokens: start..u64_at(entry, 0),
            text_bytes: u32_at(entry, 8),
            domain: Domain::ALL[u32_at(entry, 12) as usize],
        }
    }

    /// Appends the tokens of a range to `out`; an id outside the vocabulary is an error.
    pub fn read(&self, range: Range<u64>, out: &mut Vec<u32>) -> Result<(), DataError> {
        let bytes = &self.tokens.bytes()
            [range.start as usize * self.token_bytes..range.end as usize * self.token_bytes];
        let start = out.len();
        if self.token_bytes == 2 {
            out.extend(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))));
        } else {
            out.extend(bytes.chunks_exact(4).map(|b| u32_at(b, 0)));
        }
        match out[start..].iter().position(|&id| id as usize >= self.vocab) {
            None => Ok(()),
            Some(at) => {
                let (id, at) = (out[start + at], range.start + at as u64);
                let reason = format!("token {at} is {id}, not below the vocabulary of {}", self.vocab);
                Err(DataError::store(&self.tokens_path, reason))
            }
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}
