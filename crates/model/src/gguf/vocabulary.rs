//! The vocabulary that a GGUF file brings along.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Contents, GgufArray, GgufFile, GgufStrings, GgufValue};
use crate::weights::{StopTokens, WeightError};

/// The type of a token that is no text.
const CONTROL: i32 = 3;
/// Control tokens that end a text or a turn, whatever else the metadata names.
const ENDINGS: [&str; 5] = ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"];

/// Tokens that begin a text and that end a generation; `None` where the file names none.
pub(super) fn stop_tokens(path: &Path, contents: &Contents) -> Result<Option<StopTokens>, WeightError> {
    let keys = GgufTokenizer { path, metadata: &contents.metadata };
    let Some(tokens) = keys.strings("tokens")? else { return Ok(None) };
    let named = ["eos", "eot", "eom"].map(|role| keys.id(role, tokens.len()));
    let named = named.into_iter().collect::<Result<Vec<_>, _>>()?;
    let types = keys.token_types(tokens.len())?;
    let endings = (0u32..)
        .zip(tokens.iter())
        .zip(types)
        .filter_map(|((id, token), kind)| (kind == CONTROL && ENDINGS.contains(&token)).then_some(id));
    let mut stop: Vec<u32> = named.into_iter().flatten().chain(endings).collect();
    stop.sort_unstable();
    stop.dedup();
    let bos = keys.id("bos", tokens.len())?;
    Ok(StopTokens::named(bos, stop))
}

/// What a GGUF file says about its tokenizer, key by key, borrowed from its metadata: a vocabulary has a hundred thousand strings.
/// What it means is the business of whoever makes a tokenizer of it.
///
/// Every method fails where its key is of another type than it must be, or an id is none of the tokens.
#[derive(Clone, Copy)]
pub struct GgufTokenizer<'a> {
    path: &'a Path,
    metadata: &'a BTreeMap<String, GgufValue>,
}

impl<'a> GgufTokenizer<'a> {
    /// That of a file.
    pub fn of(file: &'a GgufFile) -> Self {
        Self { path: file.path(), metadata: file.metadata() }
    }

    /// Kind of tokenizer; `gpt2` is byte-level BPE. Empty where the file names none.
    ///
    /// # Errors
    /// See [`GgufTokenizer`].
    pub fn model(&self) -> Result<&'a str, WeightError> {
        Ok(self.text("tokenizer.ggml.model")?.unwrap_or_default())
    }

    /// Name of the rule that splits texts before merging, such as `llama-bpe`; empty where the file names none.
    ///
    /// # Errors
    /// See [`GgufTokenizer`].
    pub fn pre(&self) -> Result<&'a str, WeightError> {
        Ok(self.text("tokenizer.ggml.pre")?.unwrap_or_default())
    }

    /// Tokens in the printable letters of byte-level BPE, by id.
    ///
    /// # Errors
    /// No tokens; see [`GgufTokenizer`].
    pub fn tokens(&self) -> Result<&'a GgufStrings, WeightError> {
        self.strings("tokens")?.filter(|tokens| !tokens.is_empty()).ok_or_else(|| {
            WeightError::config(self.path, "`tokenizer.ggml.tokens` is missing: no vocabulary")
        })
    }

    /// Pairs of tokens to merge, separated by a space, best first.
    ///
    /// # Errors
    /// See [`GgufTokenizer`].
    pub fn merges(&self) -> Result<Option<&'a GgufStrings>, WeightError> {
        self.strings("merges")
    }

    /// Kind of each of so many tokens: 1 normal, 3 control, 4 user-defined, 6 byte.
    ///
    /// # Errors
    /// See [`GgufTokenizer`].
    pub fn token_types(&self, tokens: usize) -> Result<Vec<i32>, WeightError> {
        let key = "tokenizer.ggml.token_type";
        let types = self.get(key, "an array of numbers, one for each token", |value| match value {
            GgufValue::Array(GgufArray::I32(types)) if types.len() == tokens => Some(types.clone()),
            GgufValue::Array(GgufArray::U32(types)) if types.len() == tokens => {
                types.iter().map(|&t| i32::try_from(t).ok()).collect()
            }
            _ => None,
        })?;
        Ok(types.unwrap_or_else(|| vec![1; tokens]))
    }

    /// The id of a token with a role: `bos` begins a text, `eos` ends one, `eot` a turn. Some writers mean none by the largest
    /// number.
    ///
    /// # Errors
    /// See [`GgufTokenizer`].
    pub fn id(&self, role: &str, tokens: usize) -> Result<Option<u32>, WeightError> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let none = u64::from(u32::MAX);
        let id = self.get(&key, "the id of a token", |value| {
            value.as_u64().filter(|&id| id == none || id < tokens as u64)
        })?;
        Ok(id.filter(|&id| id != none).map(|id| id as u32))
    }

    /// Whether texts begin with the token that begins a text.
    ///
    /// # Errors
    /// See [`GgufTokenizer`].
    pub fn add_bos(&self) -> Result<Option<bool>, WeightError> {
        self.get("tokenizer.ggml.add_bos_token", "a truth value", GgufValue::as_bool)
    }

    /// Jinja template of dialogs.
    ///
    /// # Errors
    /// See [`GgufTokenizer`].
    pub fn chat_template(&self) -> Result<Option<&'a str>, WeightError> {
        self.text("tokenizer.chat_template")
    }

    fn get<T>(
        &self,
        key: &str,
        what: &str,
        of: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, WeightError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match of(value) {
            Some(value) => Ok(Some(value)),
            None => {
                let reason = format!("`{key}` is {}; it must be {what}", value.describe());
                Err(WeightError::config(self.path, reason))
            }
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, WeightError> {
        self.get(key, "a string", GgufValue::as_str)
    }

    fn strings(&self, name: &str) -> Result<Option<&'a GgufStrings>, WeightError> {
        self.get(&format!("tokenizer.ggml.{name}"), "an array of strings", |value| match value {
            GgufValue::Array(GgufArray::String(strings)) => Some(strings),
            _ => None,
        })
    }
}
