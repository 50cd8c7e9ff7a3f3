//! The vocabulary that a GGUF file brings along.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Contents, GgufArray, GgufFile, GgufStrings, GgufValue};
use crate::weights::{StopTokens, WeightError};

/// A vocabulary as GGUF files hold it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// Kind of tokenizer; `gpt2` is byte-level BPE.
    pub model: String,
    /// Name of the rule that splits texts before merging, such as `llama-bpe`; empty where the file names none.
    pub pre: String,
    /// Tokens in the printable letters of byte-level BPE, by id.
    pub tokens: Vec<String>,
    /// Kind of each token: 1 normal, 3 control, 4 user-defined, 6 byte.
    pub token_types: Vec<i32>,
    /// Pairs of tokens to merge, separated by a space, best first.
    pub merges: Vec<String>,
    /// Begins every text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Whether texts begin with `bos`.
    pub add_bos: Option<bool>,
    /// Jinja template of dialogs.
    pub chat_template: Option<String>,
}

/// The type of a token that is no text.
const CONTROL: i32 = 3;
/// Control tokens that end a text or a turn, whatever else the metadata names.
const ENDINGS: [&str; 5] = ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"];

/// The vocabulary of a file.
///
/// # Errors
/// No vocabulary; a key of another type; an id that is none of its tokens.
pub fn vocabulary(file: &GgufFile) -> Result<GgufVocabulary, WeightError> {
    let keys = Tokenizer { path: file.path(), metadata: file.metadata() };
    let Some(tokens) = keys.strings("tokens")?.filter(|tokens| !tokens.is_empty()) else {
        return Err(WeightError::config(keys.path, "`tokenizer.ggml.tokens` is missing: no vocabulary"));
    };
    let token_types = keys.token_types(tokens.len())?;
    Ok(GgufVocabulary {
        model: keys.text("tokenizer.ggml.model")?.unwrap_or_default(),
        pre: keys.text("tokenizer.ggml.pre")?.unwrap_or_default(),
        merges: keys.strings("merges")?.map_or_else(Vec::new, GgufStrings::to_vec),
        bos: keys.id("bos", tokens.len())?,
        eos: keys.id("eos", tokens.len())?,
        eot: keys.id("eot", tokens.len())?,
        add_bos: keys.flag("tokenizer.ggml.add_bos_token")?,
        chat_template: keys.text("tokenizer.chat_template")?,
        tokens: tokens.to_vec(),
        token_types,
    })
}

/// Tokens that begin a text and that end a generation; `None` where the file names none.
pub(super) fn stop_tokens(path: &Path, contents: &Contents) -> Result<Option<StopTokens>, WeightError> {
    let keys = Tokenizer { path, metadata: &contents.metadata };
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

/// The metadata about the vocabulary.
struct Tokenizer<'a> {
    path: &'a Path,
    metadata: &'a BTreeMap<String, GgufValue>,
}

impl<'a> Tokenizer<'a> {
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

    fn text(&self, key: &str) -> Result<Option<String>, WeightError> {
        self.get(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, WeightError> {
        self.get(key, "a truth value", GgufValue::as_bool)
    }

    fn strings(&self, name: &str) -> Result<Option<&'a GgufStrings>, WeightError> {
        self.get(&format!("tokenizer.ggml.{name}"), "an array of strings", |value| match value {
            GgufValue::Array(GgufArray::String(strings)) => Some(strings),
            _ => None,
        })
    }

    fn token_types(&self, tokens: usize) -> Result<Vec<i32>, WeightError> {
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

    /// The id of a token with a role. Some writers mean none by the largest number.
    fn id(&self, role: &str, tokens: usize) -> Result<Option<u32>, WeightError> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let none = u64::from(u32::MAX);
        let id = self.get(&key, "the id of a token", |value| {
            value.as_u64().filter(|&id| id == none || id < tokens as u64)
        })?;
        Ok(id.filter(|&id| id != none).map(|id| id as u32))
    }
}
