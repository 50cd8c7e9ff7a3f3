//! Reading. What would not mean here what it means there is refused by the key it has there.

use super::byte_chars;
use crate::added::Added;
use crate::bpe::MergeRules;
use crate::format::{in_file, io};
use crate::special::Said;
use crate::tokenizer::Parts;
use crate::tokens::{Merges, Tokens};
use crate::{CHAT_TEMPLATE, Error, GPT2_PATTERN, PATTERN, Result, Split, Tokenizer};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<ReadAdded>,
    model: ReadModel,
}

#[derive(Deserialize)]
struct ReadAdded {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct ReadModel {
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
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

/// A key and what is wrong there.
type Refusal = (String, String);

fn refuse<T>(key: impl Into<String>, problem: impl Into<String>) -> Result<T, Refusal> {
    Err((key.into(), problem.into()))
}

/// Reads a `tokenizer.json` whose contents are given, and what lies in the folder `beside`.
pub(crate) fn read_tokenizer_json(contents: &[u8], path: &Path, beside: Option<&Path>) -> Result<Tokenizer> {
    let read: Read = from_json(contents, path)?;
    let refused = |path: &Path, (key, problem)| Error::Unsupported { path: path.into(), key, problem };
    let mut parts = parts(read).map_err(|refusal| refused(path, refusal))?;
    if let Some(dir) = beside {
        let config_path = dir.join("tokenizer_config.json");
        if let Some(config) = read_beside(&config_path)? {
            let config: Config = from_json(&config, &config_path)?;
            add_config(&mut parts, config).map_err(|refusal| refused(&config_path, refusal))?;
        }
        let template_path = dir.join("chat_template.jinja");
        if let Some(template) = read_beside(&template_path)? {
            let not_text = |_| ("chat_template".to_owned(), "the file is not UTF-8".to_owned());
            let template = String::from_utf8(template).map_err(not_text);
            parts.template = Some(template.map_err(|refusal| refused(&template_path, refusal))?);
        }
    }
    parts.template = parts.template.filter(|template| template != CHAT_TEMPLATE);
    Tokenizer::from_parts(parts).map_err(|error| in_file(path, error))
}

fn from_json<'a, T: Deserialize<'a>>(contents: &'a [u8], path: &Path) -> Result<T> {
    serde_json::from_slice(contents).map_err(|source| Error::Json { path: path.into(), source })
}

fn read_beside(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

/// What a `tokenizer.json` says, checked key by key.
fn parts(read: Read) -> Result<Parts, Refusal> {
    let Read { normalizer, pre_tokenizer, post_processor, decoder, added_tokens, model } = read;
    check_model(&model)?;
    if !steps(&normalizer, "normalizers").iter().all(Value::is_null) {
        return refuse("normalizer", format!("found `{}`, only `null` is supported", kind(&normalizer)));
    }
    if kind(&decoder) != "ByteLevel" {
        return refuse("decoder", format!("found `{}`, only `ByteLevel` is supported", kind(&decoder)));
    }
    let split = read_split(&pre_tokenizer)?;
    let added = read_added(added_tokens)?;
    let merges = read_merges(&model.merges)?;
    let both = both(&model.vocab, &added, &merges);
    let tokens = read_vocab(&model.vocab, &added, &both)?;
    let bos = read_post_processor(&post_processor)?;
    if let Some(id) = bos.filter(|&id| id as usize >= tokens.len()) {
        return refuse("post_processor", format!("the id `{id}` is not in the vocabulary"));
    }
    let unknown = match &model.unk_token {
        None => None,
        Some(name) => match model.vocab.get(name) {
            None => return refuse("model.unk_token", format!("`{name}` is not in the vocabulary")),
            Some(_) if model.fuse_unk => return refuse("model.fuse_unk", "only `false` is supported"),
            id => id.copied(),
        },
    };
    let rules = MergeRules { whole_pieces: model.ignore_merges, unknown };
    Ok(Parts {
        split,
        tokens,
        added,
        both,
        unused: Vec::new(),
        merges: Some((merges, rules)),
        said: Said { bos, adds_bos: bos.is_some(), ..Said::default() },
        template: None,
    })
}

/// The type of a step, or what it is instead.
fn kind(step: &Value) -> &str {
    match step {
        Value::Null => "null",
        step => step["type"].as_str().unwrap_or("a step without type"),
    }
}

fn check_model(model: &ReadModel) -> Result<(), Refusal> {
    let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    match model.r#type.as_deref() {
        None | Some("BPE") => {}
        Some(other) => return refuse("model.type", format!("found `{other}`, only `BPE` is supported")),
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return refuse("model.dropout", "only `null` is supported");
    }
    if model.byte_fallback {
        return refuse("model.byte_fallback", "only `false` is supported");
    }
    if !empty(&model.continuing_subword_prefix) {
        return refuse("model.continuing_subword_prefix", "only `null` is supported");
    }
    if !empty(&model.end_of_word_suffix) {
        return refuse("model.end_of_word_suffix", "only `null` is supported");
    }
    Ok(())
}

/// The steps of a sequence; of anything else the one step that it is.
fn steps<'a>(step: &'a Value, list: &str) -> &'a [Value] {
    match step[list].as_array() {
        Some(steps) if kind(step) == "Sequence" => steps,
        _ => std::slice::from_ref(step),
    }
}

/// The split that a pre-tokenizer does, whatever it says about offsets.
fn read_split(found: &Value) -> Result<Split, Refusal> {
    let steps = steps(found, "pretokenizers");
    let isolates = |step: &Value, pattern: &str| {
        kind(step) == "Split"
            && step["pattern"]["Regex"] == pattern
            && step["behavior"] == "Isolated"
            && step["invert"] == false
    };
    // What is missing is true there.
    let bytes = |step: &Value, use_regex: bool| {
        kind(step) == "ByteLevel"
            && step["add_prefix_space"] == false
            && step["use_regex"].as_bool().unwrap_or(true) == use_regex
    };
    match steps {
        [first, second] if isolates(first, PATTERN) && bytes(second, false) => Ok(Split::Llama3),
        [first, second] if isolates(first, GPT2_PATTERN) && bytes(second, false) => Ok(Split::Gpt2),
        [only] if bytes(only, true) => Ok(Split::Gpt2),
        [first, second]
            if kind(first) == "Digits" && first["individual_digits"] == true && bytes(second, true) =>
        {
            Ok(Split::SmolLm)
        }
        _ => {
            let found: Vec<&str> = steps.iter().map(kind).collect();
            refuse(
                "pre_tokenizer",
                format!(
                    "found `{}`; supported are `ByteLevel` with its own pattern, that after `Digits` one by one, and \
                     `Split` with Llama 3's or GPT-2's pattern before `ByteLevel` without one, all without a space put first",
                    found.join("`, `")
                ),
            )
        }
    }
}

/// The token that is put before a text, if one is.
fn read_post_processor(found: &Value) -> Result<Option<u32>, Refusal> {
    let key = "post_processor";
    let mut bos = None;
    for step in steps(found, "processors") {
        match kind(step) {
            "null" | "ByteLevel" => {}
            "TemplateProcessing" if bos.is_none() => bos = read_processing(step)?,
            other => {
                return refuse(
                    key,
                    format!("found `{other}`, supported are `ByteLevel` and one `TemplateProcessing`"),
                );
            }
        }
    }
    Ok(bos)
}

fn read_processing(step: &Value) -> Result<Option<u32>, Refusal> {
    let is_text = |piece: &Value| piece["Sequence"]["id"] == "A";
    let (first, text) = match step["single"].as_array().map(Vec::as_slice) {
        Some([text]) => (None, text),
        Some([first, text]) => (first["SpecialToken"]["id"].as_str(), text),
        _ => (None, &Value::Null),
    };
    let id = |name: &str| match step["special_tokens"][name]["ids"].as_array().map(Vec::as_slice) {
        Some([id]) => id.as_u64().and_then(|id| u32::try_from(id).ok()),
        _ => None,
    };
    match (first, step["single"].as_array().map(Vec::len)) {
        (None, Some(1)) if is_text(text) => Ok(None),
        (Some(name), _) if is_text(text) && id(name).is_some() => Ok(id(name)),
        _ => refuse("post_processor.single", "only at most one special token before the text is supported"),
    }
}

fn read_added(added: Vec<ReadAdded>) -> Result<Vec<Added>, Refusal> {
    let read = |(at, token): (usize, ReadAdded)| {
        for (set, key) in
            [(token.single_word, "single_word"), (token.lstrip, "lstrip"), (token.rstrip, "rstrip")]
        {
            if set {
                let problem = format!("`{}` has `true`, only `false` is supported", token.content);
                return refuse(format!("added_tokens[{at}].{key}"), problem);
            }
        }
        let ReadAdded { id, content, normalized, special, .. } = token;
        Ok(Added { id, content, special, normalized })
    };
    added.into_iter().enumerate().map(read).collect()
}

/// Added tokens that are tokens of the vocabulary with the same id, and that texts are made of: somebody made the padding token of
/// `!`, or a word that is found by its name of one that is there. Names of special tokens are often in the vocabulary too, but
/// no merge makes them.
fn both(vocab: &HashMap<String, u32>, added: &[Added], merges: &Merges) -> BTreeSet<u32> {
    let bytes: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let spelled = |token: &Added| {
        let found = vocab.get(&token.content) == Some(&token.id);
        let token_bytes =
            || token.content.chars().map(|c| bytes.get(&c).copied()).collect::<Option<Vec<u8>>>();
        Some((token_bytes().filter(|_| found)?, token.id))
    };
    merges.made_of(&added.iter().filter_map(spelled).collect())
}

/// The bytes of every id. Ids must be 0, 1, 2 …, each once, those of added tokens included.
fn read_vocab(
    vocab: &HashMap<String, u32>,
    added: &[Added],
    both: &BTreeSet<u32>,
) -> Result<Tokens, Refusal> {
    // Sorted, so that which error is told does not depend on the map.
    let mut entries: Vec<(u32, bool, &str)> =
        vocab.iter().map(|(token, &id)| (id, false, token.as_str())).collect();
    for Added { id, content, .. } in added {
        match vocab.get(content) {
            None => entries.push((*id, true, content)),
            Some(found) if found == id => {}
            Some(found) => {
                let problem = format!("`{content}` has id `{id}`, but `{found}` in `model.vocab`");
                return refuse("added_tokens", problem);
            }
        }
    }
    entries.sort_unstable();
    let only_added = added.iter().filter(|token| !both.contains(&token.id));
    let names: HashSet<&str> = only_added.map(|token| token.content.as_str()).collect();
    let bytes: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let mut tokens = Tokens::default();
    for (expected, (id, is_added, token)) in (0u32..).zip(entries) {
        let key = || if is_added { "added_tokens".to_owned() } else { format!("model.vocab.{token}") };
        if id != expected {
            let problem = format!(
                "`{token}` has id `{id}` where `{expected}` is next; ids must be 0, 1, 2 …, each once"
            );
            return refuse(key(), problem);
        }
        if names.contains(token) {
            tokens.push(token.as_bytes());
        } else if !tokens.push_all(token.chars().map(|c| bytes.get(&c).copied())) {
            return refuse(key(), "a character in it stands for no byte");
        }
    }
    Ok(tokens)
}

fn read_merges(merges: &[Merge]) -> Result<Merges, Refusal> {
    let bytes: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let token = |text| str::chars(text).map(|c| bytes.get(&c).copied());
    let mut read = Merges::default();
    for (at, merge) in merges.iter().enumerate() {
        let pair = match merge {
            Merge::Joined(both) => both.split_once(' '),
            Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
        };
        if !pair.is_some_and(|(left, right)| read.push_all(token(left), token(right))) {
            return refuse(format!("model.merges[{at}]"), "expected two tokens");
        }
    }
    Ok(read)
}

/// A `tokenizer_config.json`.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    bos_token: Value,
    #[serde(default)]
    eos_token: Value,
    #[serde(default)]
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

fn add_config(parts: &mut Parts, config: Config) -> Result<(), Refusal> {
    let id = |key: &str, token: &Value| {
        // A string, or an object that holds it.
        let Some(name) = token.as_str().or(token["content"].as_str()) else { return Ok(None) };
        match parts.tokens.iter().position(|token| *token == *name.as_bytes()) {
            Some(id) => Ok(Some(id as u32)),
            None => refuse(key, format!("`{name}` is not in the vocabulary")),
        }
    };
    let bos = id("bos_token", &config.bos_token)?;
    parts.said.eos = id("eos_token", &config.eos_token)?;
    parts.said.bos = parts.said.bos.or(bos);
    parts.template = match config.chat_template {
        None => None,
        Some(Templates::One(template)) => Some(template),
        Some(Templates::Named(all)) => Some(default_template(all)?),
    };
    Ok(())
}

/// Of several templates the one called `default`, or the only one.
fn default_template(mut all: Vec<NamedTemplate>) -> Result<String, Refusal> {
    let at = match all.iter().position(|named| named.name == "default") {
        None if all.len() == 1 => Some(0),
        found => found,
    };
    match at {
        Some(at) => Ok(all.swap_remove(at).template),
        None => {
            let names: Vec<&str> = all.iter().map(|named| named.name.as_str()).collect();
            refuse("chat_template", format!("none of `{}` is called `default`", names.join("`, `")))
        }
    }
}
