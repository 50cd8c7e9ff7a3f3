//! Hugging Face's `tokenizer.json` and `tokenizer_config.json`.
//!
//! The model there is BPE over characters that stand for bytes. Ranks become merges in the way `transformers` itself
//! converts `tiktoken` files: every way to split a token in two tokens is a merge, in the order of the tokens' ranks.
//! `ignore_merges` gives "a piece that is a token is that token".

use super::in_file;
use crate::{CHAT_TEMPLATE, Error, PATTERN, Result, Tokenizer};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

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

#[derive(Serialize, Deserialize)]
struct Added {
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
    added_tokens: Vec<Added>,
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
    unk_token: (),
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "in_order_of_ids")]
    vocab: &'a [String],
    merges: Vec<String>,
}

fn in_order_of_ids<S: Serializer>(tokens: &&[String], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(tokens.len()))?;
    for (token, id) in tokens.iter().zip(0u32..) {
        map.serialize_entry(token, &id)?;
    }
    map.end()
}

fn pre_tokenizer() -> Value {
    json!({
        "type": "Sequence",
        "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": PATTERN }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ],
    })
}

/// The contents of a `tokenizer.json`.
pub(crate) fn tokenizer_json(tokenizer: &Tokenizer) -> Vec<u8> {
    let chars = byte_chars();
    let spell = |token: &[u8]| token.iter().map(|&byte| chars[usize::from(byte)]).collect::<String>();
    let vocab: Vec<String> = tokenizer.bpe().tokens().iter().map(|token| spell(token)).collect();
    let merges = tokenizer.bpe().merges().into_iter();
    let merges = merges.map(|(_, left, right)| format!("{} {}", vocab[left as usize], vocab[right as usize]));
    let added_tokens = tokenizer.special().iter().map(|(id, name)| Added {
        id,
        content: name.to_owned(),
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
    });
    let (bos, bos_id) = ("<|begin_of_text|>", tokenizer.special().begin_of_text);
    let first = json!({ "SpecialToken": { "id": bos, "type_id": 0 } });
    let second = json!({ "SpecialToken": { "id": bos, "type_id": 1 } });
    let (a, b) = (
        json!({ "Sequence": { "id": "A", "type_id": 0 } }),
        json!({ "Sequence": { "id": "B", "type_id": 1 } }),
    );
    to_json(&Written {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: added_tokens.collect(),
        normalizer: (),
        pre_tokenizer: pre_tokenizer(),
        post_processor: json!({
            "type": "TemplateProcessing",
            "single": [first, a],
            "pair": [first, a, second, b],
            "special_tokens": { bos: { "id": bos, "ids": [bos_id], "tokens": [bos] } },
        }),
        decoder: json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        }),
        model: WrittenModel {
            r#type: "BPE",
            dropout: (),
            unk_token: (),
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: true,
            vocab: &vocab,
            merges: merges.collect(),
        },
    })
}

/// The contents of a `tokenizer_config.json`.
pub(crate) fn tokenizer_config_json(tokenizer: &Tokenizer) -> Vec<u8> {
    let special = tokenizer.special();
    to_json(&json!({
        "bos_token": special.name(special.begin_of_text),
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": special.name(special.eot),
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }))
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut text =
        serde_json::to_vec_pretty(value).expect("strings, numbers and string keys always serialize");
    text.push(b'\n');
    text
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    added_tokens: Vec<ReadAdded>,
    model: ReadModel,
}

#[derive(Deserialize)]
struct ReadAdded {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct ReadModel {
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

/// Reads a `tokenizer.json`, and refuses one that would not mean here what it means there.
pub(super) fn read_tokenizer_json(contents: &[u8], path: &Path) -> Result<Tokenizer> {
    let read: Read =
        serde_json::from_slice(contents).map_err(|source| Error::Json { path: path.into(), source })?;
    let check = |good: bool, key: &str, problem: &str| {
        let (path, key, problem) = (path.into(), key.into(), problem.into());
        if good { Ok(()) } else { Err(Error::Unsupported { path, key, problem }) }
    };
    check(read.model.r#type.as_deref().is_none_or(|t| t == "BPE"), "model.type", "only `BPE` is supported")?;
    check(read.model.ignore_merges, "model.ignore_merges", "only `true` is supported")?;
    check(read.normalizer.is_null(), "normalizer", "only `null` is supported")?;
    check(
        same_split(&read.pre_tokenizer),
        "pre_tokenizer",
        "expected a `Split` with Llama 3's pattern and then `ByteLevel` without one",
    )?;
    let ranks = read_vocab(&read.model.vocab, path)?;
    let special = read_added(read.added_tokens, ranks.len(), path)?;
    let tokenizer = Tokenizer::new(ranks, special).map_err(|error| in_file(path, error))?;
    check(
        same_merges(&tokenizer, &read.model),
        "model.merges",
        "expected every way to join two tokens to a third, in the order of the third's id; these merges encode differently",
    )?;
    Ok(tokenizer)
}

/// Whether the two steps are ours, whatever else they say about offsets.
fn same_split(found: &Value) -> bool {
    let step = |index: usize, key: &str| &found["pretokenizers"][index][key];
    found["pretokenizers"].as_array().is_some_and(|steps| steps.len() == 2)
        && step(0, "type") == "Split"
        && step(0, "pattern")["Regex"] == PATTERN
        && step(0, "behavior") == "Isolated"
        && step(0, "invert") == false
        && step(1, "type") == "ByteLevel"
        && step(1, "add_prefix_space") == false
        && step(1, "use_regex") == false
}

fn read_vocab(vocab: &HashMap<String, u32>, path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let problem = |token: &str, problem: String| {
        Err(Error::Unsupported { path: path.into(), key: format!("model.vocab.{token}"), problem })
    };
    // In the order of the ids, so that which error is told does not depend on the map.
    let mut entries: Vec<(u32, &str)> = vocab.iter().map(|(token, &id)| (id, token.as_str())).collect();
    entries.sort_unstable();
    let mut ranks = Vec::with_capacity(entries.len());
    for (expected, (id, token)) in (0u32..).zip(entries) {
        if id != expected {
            return problem(
                token,
                format!("id `{id}` where `{expected}` is next; ids must be 0, 1, 2 …, each once"),
            );
        }
        match token.chars().map(|c| bytes.get(&c).copied()).collect() {
            Some(token) => ranks.push(token),
            None => return problem(token, "a character in it stands for no byte".to_owned()),
        }
    }
    Ok(ranks)
}

fn read_added(mut added: Vec<ReadAdded>, num_ranks: usize, path: &Path) -> Result<Vec<String>> {
    added.sort_by_key(|token| token.id);
    for (expected, ReadAdded { id, content }) in (num_ranks..).zip(&added) {
        if *id as usize != expected {
            return Err(Error::Unsupported {
                path: path.into(),
                key: "added_tokens".to_owned(),
                problem: format!(
                    "`{content}` has id `{id}` where `{expected}` is next; they must follow the vocabulary"
                ),
            });
        }
    }
    Ok(added.into_iter().map(|token| token.content).collect())
}

fn same_merges(tokenizer: &Tokenizer, model: &ReadModel) -> bool {
    let pair = |merge: &Merge| {
        let (left, right) = match merge {
            Merge::Joined(both) => both.split_once(' ')?,
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
        };
        let (left, right) = (*model.vocab.get(left)?, *model.vocab.get(right)?);
        Some((tokenizer.bpe().join(left, right)?, left, right))
    };
    let found: Option<Vec<_>> = model.merges.iter().map(pair).collect();
    let Some(mut found) = found else { return false };
    let sorted = found.is_sorted_by_key(|&(id, ..)| id);
    found.sort_unstable();
    sorted && found == tokenizer.bpe().merges()
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
