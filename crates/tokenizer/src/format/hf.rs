//! Hugging Face's `tokenizer.json` and `tokenizer_config.json`.
//!
//! The model there is BPE over characters that stand for bytes. Ranks become merges in the way `transformers` itself
//! converts `tiktoken` files: every way to split a token in two tokens is a merge, in the order of the tokens' ranks.
//! `ignore_merges` gives "a piece that is a token is that token".

mod read;

pub(crate) use read::read_tokenizer_json;

use crate::added::Added;
use crate::{Error, PATTERN, Result, Split, Tokenizer};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::HashSet;

/// The character that stands for each byte: itself where it is printable in Latin-1, otherwise one of those from U+0100
/// on, in order.
pub(crate) fn byte_chars() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => char::from(byte),
        // There are 68 such bytes, and the range goes on far longer.
        _ => others.next().unwrap_or_default(),
    })
}

/// The token's bytes as such characters.
pub(crate) fn spell(token: &[u8], chars: &[char; 256]) -> String {
    token.iter().map(|&byte| chars[usize::from(byte)]).collect()
}

#[derive(Serialize)]
struct WrittenAdded {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

/// Fields in the order that they are written in; the maps inside JSON values here have at most a few keys.
#[derive(Serialize)]
struct Written<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<WrittenAdded>,
    normalizer: (),
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: WrittenModel<'a>,
}

#[derive(Serialize)]
struct WrittenModel<'a> {
    r#type: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "as_map")]
    vocab: &'a [(String, u32)],
    merges: Vec<String>,
}

fn as_map<S: Serializer>(tokens: &&[(String, u32)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(tokens.len()))?;
    for (token, id) in *tokens {
        map.serialize_entry(token, id)?;
    }
    map.end()
}

fn pre_tokenizer(split: Split) -> Value {
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    match split {
        Split::Llama3 => json!({
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": PATTERN }, "behavior": "Isolated", "invert": false },
                byte_level(false),
            ],
        }),
        Split::Gpt2 => byte_level(true),
        Split::SmolLm => json!({
            "type": "Sequence",
            "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level(true)],
        }),
    }
}

/// Puts the beginning-of-text token, where texts begin with one, before each text.
fn post_processor(tokenizer: &Tokenizer) -> Value {
    let special = tokenizer.special();
    let Some((bos, bos_id)) = special.begin_of_text.and_then(|id| Some((special.name(id)?, id))) else {
        return json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true,
        });
    };
    let first = json!({ "SpecialToken": { "id": bos, "type_id": 0 } });
    let second = json!({ "SpecialToken": { "id": bos, "type_id": 1 } });
    let (a, b) = (
        json!({ "Sequence": { "id": "A", "type_id": 0 } }),
        json!({ "Sequence": { "id": "B", "type_id": 1 } }),
    );
    json!({
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, second, b],
        "special_tokens": { bos: { "id": bos, "ids": [bos_id], "tokens": [bos] } },
    })
}

/// The contents of a `tokenizer.json`. The format has no ids that no text is encoded to; they are written as special tokens, which
/// only their names in trusted text give.
pub(crate) fn tokenizer_json(tokenizer: &Tokenizer) -> Result<Vec<u8>> {
    let chars = byte_chars();
    let tokens = tokenizer.tokens();
    let merges = tokenizer.bpe().merges().into_iter().map(|(_, left, right)| {
        format!("{} {}", spell(&tokens[left as usize], &chars), spell(&tokens[right as usize], &chars))
    });
    let added = added_of(tokenizer)?;
    // Ids that follow the vocabulary's are given by the order of the added tokens; all others the vocabulary must give.
    let unknown = tokenizer.bpe().unknown();
    let is_behind = |&(id, token): &(u32, &Added)| {
        let is_ordinary = tokenizer.bpe().id(&tokens[id as usize]) == Some(id);
        id == token.id && !is_ordinary && Some(id) != unknown
    };
    let behind = (0..tokens.len() as u32).rev().zip(added.iter().rev()).take_while(is_behind).count();
    let vocab: Vec<(String, u32)> = (0u32..)
        .zip(tokens.iter().take(tokens.len() - behind))
        .map(|(id, token)| match added.binary_search_by_key(&id, |token| token.id) {
            Ok(at) => (added[at].content.clone(), id),
            Err(_) => (spell(token, &chars), id),
        })
        .collect();
    let unknown = unknown.and_then(|unknown| Some(vocab.get(unknown as usize)?.0.as_str()));
    let added_tokens = added.iter().map(|token| WrittenAdded {
        id: token.id,
        content: token.content.clone(),
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: token.normalized,
        special: token.special,
    });
    Ok(to_json(&Written {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: added_tokens.collect(),
        normalizer: (),
        pre_tokenizer: pre_tokenizer(tokenizer.split()),
        post_processor: post_processor(tokenizer),
        decoder: json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        }),
        model: WrittenModel {
            r#type: "BPE",
            dropout: (),
            unk_token: unknown,
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: tokenizer.bpe().whole_pieces(),
            vocab: &vocab,
            merges: merges.collect(),
        },
    }))
}

/// Added tokens and ids that are not used, in the order of their ids.
fn added_of(tokenizer: &Tokenizer) -> Result<Vec<Added>> {
    let mut added = tokenizer.added().list().to_vec();
    let mut names: HashSet<String> = added.iter().map(|token| token.content.clone()).collect();
    for &id in tokenizer.unused() {
        let content = String::from_utf8_lossy(&tokenizer.tokens()[id as usize]).into_owned();
        if content.is_empty() || !names.insert(content.clone()) {
            let problem = format!(
                "the id `{id}`, which is not used, cannot be written: its name `{content}` is empty or occurs twice"
            );
            return Err(Error::Vocabulary { problem });
        }
        added.push(Added { id, content, special: true, normalized: false });
    }
    added.sort_by_key(|token| token.id);
    Ok(added)
}

/// The contents of a `tokenizer_config.json`.
pub(crate) fn tokenizer_config_json(tokenizer: &Tokenizer) -> Vec<u8> {
    let special = tokenizer.special();
    let mut config = json!({
        "clean_up_tokenization_spaces": false,
        "eos_token": special.name(special.eos()),
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    if let Some(bos) = special.bos().and_then(|id| special.name(id)) {
        config["bos_token"] = bos.into();
    }
    if let Some(template) = tokenizer.chat_template() {
        config["chat_template"] = template.into();
    }
    to_json(&config)
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut text =
        serde_json::to_vec_pretty(value).expect("strings, numbers and string keys always serialize");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_distinct_visible_characters() {
        let mut chars = byte_chars().to_vec();
        assert_eq!((chars[0x20], chars[0x0A], chars[0xAD], chars[0x41]), ('Ġ', 'Ċ', '\u{143}', 'A'));
        chars.sort_unstable();
        chars.dedup();
        assert_eq!(chars.len(), 256);
        assert!(chars.iter().all(|c| !c.is_whitespace() && !c.is_control()));
    }
}
