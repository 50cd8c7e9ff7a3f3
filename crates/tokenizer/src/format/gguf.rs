//! The vocabulary that a GGUF file holds, as plain values; the file itself is read and written elsewhere.

use super::hf::{byte_chars, spell};
use crate::added::Added;
use crate::bpe::MergeRules;
use crate::special::Said;
use crate::tokenizer::Parts;
use crate::tokens::Merges;
use crate::{CHAT_TEMPLATE, Error, Result, Split, Tokenizer};
use std::collections::{BTreeSet, HashMap};

/// What the keys `tokenizer.ggml.…` of a GGUF file say. Tokens are spelled with the characters that stand for bytes. Texts are of
/// type `S`: `&str` for those that a file is read into, which need no copy here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufVocabulary<S = String> {
    /// `model`: `gpt2` is byte-level BPE.
    pub model: S,
    /// `pre`: how text is split.
    pub pre: S,
    /// `tokens`, by id.
    pub tokens: Vec<S>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused. Empty where all are normal.
    pub token_types: Vec<i32>,
    /// `merges`: two tokens with a space between them, the first to be joined first.
    pub merges: Vec<S>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`.
    pub eot: Option<u32>,
    /// `add_bos_token`: whether texts begin with `bos`.
    pub add_bos: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<S>,
}

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Names of `pre` with the split that they mean, whether a piece that is a token is that token, and whether texts begin
/// with `bos` unless the file says otherwise. The first name of a split is the one that is written.
const PRES: [(&str, Split, bool, bool); 5] = [
    ("llama-bpe", Split::Llama3, true, true),
    ("llama3", Split::Llama3, true, true),
    ("llama-v3", Split::Llama3, true, true),
    ("gpt-2", Split::Gpt2, false, false),
    ("smollm", Split::SmolLm, false, false),
];

impl Tokenizer {
    /// The tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// When it is no byte-level BPE, or split in a way that is not known here; when its lists do not fit together. The
    /// error names the key.
    pub fn from_gguf<S: AsRef<str>>(vocabulary: GgufVocabulary<S>) -> Result<Tokenizer> {
        Tokenizer::from_parts(parts(&vocabulary)?)
    }

    /// What a GGUF file is to say about this tokenizer.
    ///
    /// # Errors
    /// When it is not one that the format has a name for: Llama 3's split without its rule that a piece that is a token is
    /// that token, another split with it; when bytes become an unknown token, which readers of the format leave out.
    pub fn to_gguf(&self) -> Result<GgufVocabulary> {
        let whole = self.bpe().whole_pieces();
        let pre =
            PRES.iter().find(|(_, split, whole_pieces, _)| (*split, *whole_pieces) == (self.split(), whole));
        let Some((pre, ..)) = pre else {
            let problem =
                format!("there is no name for the split `{:?}` with `ignore_merges` = {whole}", self.split());
            return refuse("tokenizer.ggml.pre", problem);
        };
        if let Some(id) = self.bpe().unknown().filter(|_| self.bpe().lacks_a_byte()) {
            let problem = format!(
                "bytes without a token become the token `{id}` here, and would be left out by readers of the file"
            );
            return refuse("tokenizer.ggml.unknown_token_id", problem);
        }
        let chars = byte_chars();
        let mut tokens: Vec<String> = self.tokens().iter().map(|token| spell(token, &chars)).collect();
        let mut token_types = vec![NORMAL; tokens.len()];
        for Added { id, content, special, .. } in self.added().list() {
            tokens[*id as usize].clone_from(content);
            token_types[*id as usize] = if *special { CONTROL } else { USER_DEFINED };
        }
        for &id in self.unused() {
            tokens[id as usize] = String::from_utf8_lossy(&self.tokens()[id as usize]).into_owned();
            token_types[id as usize] = UNUSED;
        }
        let joined = |(_, left, right)| format!("{} {}", tokens[left as usize], tokens[right as usize]);
        let merges = self.bpe().merges().into_iter().map(joined).collect();
        let special = self.special();
        Ok(GgufVocabulary {
            model: "gpt2".into(),
            pre: (*pre).into(),
            merges,
            tokens,
            token_types,
            bos: special.bos(),
            eos: Some(special.eos()),
            eot: Some(special.eot),
            add_bos: Some(special.begin_of_text.is_some()),
            chat_template: self.chat_template().map(str::to_owned),
        })
    }
}

fn refuse<T>(key: &'static str, problem: String) -> Result<T> {
    Err(Error::Gguf { key, problem })
}

fn parts<S: AsRef<str>>(vocabulary: &GgufVocabulary<S>) -> Result<Parts> {
    let GgufVocabulary { tokens, token_types, merges, chat_template, .. } = vocabulary;
    let (model, pre) = (vocabulary.model.as_ref(), vocabulary.pre.as_ref());
    if model != "gpt2" {
        let problem = format!("found `{model}`, only `gpt2` (byte-level BPE) is supported");
        return refuse("tokenizer.ggml.model", problem);
    }
    let Some(&(_, split, whole_pieces, begins)) = PRES.iter().find(|(name, ..)| *name == pre) else {
        let names: Vec<&str> = PRES.iter().map(|(name, ..)| *name).collect();
        let problem = format!("found `{pre}`, supported are `{}`", names.join("`, `"));
        return refuse("tokenizer.ggml.pre", problem);
    };
    if !token_types.is_empty() && token_types.len() != tokens.len() {
        let problem = format!("`{}` types for `{}` tokens", token_types.len(), tokens.len());
        return refuse("tokenizer.ggml.token_type", problem);
    }
    if u32::try_from(tokens.len()).is_err() {
        return refuse("tokenizer.ggml.tokens", format!("`{}` tokens do not fit 32-bit ids", tokens.len()));
    }
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", vocabulary.bos),
        ("tokenizer.ggml.eos_token_id", vocabulary.eos),
        ("tokenizer.ggml.eot_token_id", vocabulary.eot),
    ] {
        if let Some(id) = id.filter(|&id| id as usize >= tokens.len()) {
            return refuse(key, format!("`{id}` is not below the number of tokens, `{}`", tokens.len()));
        }
    }
    // Without merges every text would fall apart into bytes, and nothing would say so.
    let is_word = |(id, token): (usize, &S)| {
        token_types.get(id).is_none_or(|kind| *kind == NORMAL) && token.as_ref().chars().nth(1).is_some()
    };
    if merges.is_empty() && tokens.iter().enumerate().any(is_word) {
        let problem = "it is missing or empty, but there are tokens of several bytes".to_owned();
        return refuse("tokenizer.ggml.merges", problem);
    }
    let merges = read_merges(merges)?;
    let both = both(tokens, token_types, &merges);
    let mut parts = Parts {
        split,
        both,
        merges: Some((merges, MergeRules { whole_pieces, unknown: None })),
        said: Said {
            bos: vocabulary.bos,
            adds_bos: vocabulary.add_bos.unwrap_or(begins),
            eos: vocabulary.eos,
            eot: vocabulary.eot,
        },
        template: chat_template
            .as_ref()
            .map(AsRef::as_ref)
            .filter(|t| *t != CHAT_TEMPLATE)
            .map(str::to_owned),
        ..Parts::default()
    };
    read_tokens(tokens, token_types, &mut parts)?;
    Ok(parts)
}

fn read_tokens<S: AsRef<str>>(tokens: &[S], types: &[i32], parts: &mut Parts) -> Result<()> {
    let bytes = bytes_of();
    for (id, token) in (0u32..).zip(tokens.iter().map(AsRef::as_ref)) {
        let kind = types.get(id as usize).copied().unwrap_or(NORMAL);
        match kind {
            NORMAL => {
                if !parts.tokens.push_all(read_token(token, &bytes)) {
                    let problem = format!("token `{id}`, `{token}`: a character in it stands for no byte");
                    return refuse("tokenizer.ggml.tokens", problem);
                }
            }
            UNKNOWN | CONTROL | USER_DEFINED => {
                let special = kind != USER_DEFINED;
                parts.added.push(Added { id, content: token.to_owned(), special, normalized: false });
                if !parts.both.contains(&id) || !parts.tokens.push_all(read_token(token, &bytes)) {
                    parts.tokens.push(token.as_bytes());
                }
            }
            UNUSED => {
                parts.unused.push(id);
                parts.tokens.push(token.as_bytes());
            }
            other => {
                let problem =
                    format!("token `{id}`, `{token}`, has type `{other}`, supported are `1` to `5`");
                return refuse("tokenizer.ggml.token_type", problem);
            }
        }
    }
    Ok(())
}

/// Added tokens that texts are made of, because no other token is what they spell; see the reader of `tokenizer.json`.
fn both<S: AsRef<str>>(tokens: &[S], types: &[i32], merges: &Merges) -> BTreeSet<u32> {
    let bytes = bytes_of();
    let numbered = || (0u32..).zip(tokens.iter().map(AsRef::as_ref));
    let kind = |id: u32| types.get(id as usize).copied().unwrap_or(NORMAL);
    let is_added = |id: u32| !matches!(kind(id), NORMAL | UNUSED);
    let spelled = |(id, token)| Some((read_token(token, &bytes).collect::<Option<Vec<u8>>>()?, id));
    let mut both = merges.made_of(&numbered().filter(|&(id, _)| is_added(id)).filter_map(spelled).collect());
    if !both.is_empty() {
        let names: HashMap<&str, u32> =
            numbered().filter(|(id, _)| both.contains(id)).map(|(id, name)| (name, id)).collect();
        for (_, token) in numbered().filter(|&(id, _)| kind(id) == NORMAL) {
            names.get(token).map(|id| both.remove(id));
        }
    }
    both
}

fn bytes_of() -> HashMap<char, u8> {
    byte_chars().into_iter().zip(0..=255).collect()
}

/// The bytes that the characters of `text` stand for.
fn read_token(text: &str, bytes: &HashMap<char, u8>) -> impl Iterator<Item = Option<u8>> {
    text.chars().map(|c| bytes.get(&c).copied())
}

fn read_merges<S: AsRef<str>>(merges: &[S]) -> Result<Merges> {
    let bytes = bytes_of();
    let mut read = Merges::default();
    for (at, merge) in merges.iter().map(AsRef::as_ref).enumerate() {
        let pair = merge.split_once(' ');
        let token = |text| read_token(text, &bytes);
        if !pair.is_some_and(|(left, right)| read.push_all(token(left), token(right))) {
            return refuse("tokenizer.ggml.merges", format!("merge `{at}`, `{merge}`: expected two tokens"));
        }
    }
    Ok(read)
}
