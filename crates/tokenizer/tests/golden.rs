//! Conformance with Llama 3's own tokenizer file, which the project cannot contain; skipped where it is absent.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use flate2::read::GzDecoder;
use llamero_tokenizer::{Message, PATTERN, Role, Tokenizer};
use serde_json::Value;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The folder `tokenizer` below `LLAMERO_TEST_DATA`. Where that is not set there is no such file, and the reason names it.
fn data() -> PathBuf {
    let root = std::env::var_os("LLAMERO_TEST_DATA").unwrap_or_else(|| "$LLAMERO_TEST_DATA".into());
    PathBuf::from(root).join("tokenizer")
}

/// Llama 3's `tokenizer.model`: with the test data, or where `cargo xtask fixtures` puts it.
fn model_file() -> Option<PathBuf> {
    let fixtures = std::env::var_os("LLAMERO_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures"), PathBuf::from);
    let places = [data().join("llama3/tokenizer.model"), fixtures.join("tokenizer.model")];
    places.into_iter().find(|path| path.exists())
}

static LLAMA3: LazyLock<Option<Tokenizer>> =
    LazyLock::new(|| model_file().map(|path| Tokenizer::load(path).unwrap()));

/// The real tokenizer, or a printed reason.
fn llama3() -> Option<&'static Tokenizer> {
    if LLAMA3.is_none() {
        println!(
            "skipped: no `llama3/tokenizer.model` in `{}`, and none of `cargo xtask fixtures`",
            data().display()
        );
    }
    LLAMA3.as_ref()
}

/// The text of a file that comes with the test data only, or a printed reason.
fn text_of(name: &str) -> Option<Vec<u8>> {
    let path = data().join(name);
    let found = std::fs::read(&path).ok();
    if found.is_none() {
        println!("skipped: no `{}`", path.display());
    }
    found
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn the_400_golden_texts_are_exact() {
    let (Some(tokenizer), Some(packed)) = (llama3(), text_of("llama3/golden_tiktoken.jsonl.gz")) else {
        return;
    };
    let mut lines = String::new();
    GzDecoder::new(packed.as_slice()).read_to_string(&mut lines).unwrap();
    assert_eq!(lines.lines().count(), 400);
    for line in lines.lines() {
        let golden: Value = serde_json::from_str(line).unwrap();
        let text = golden["text"].as_str().unwrap();
        let found = tokenizer.encode(text);
        assert_eq!(found, ids(&golden["ids"]), "{}: {text:?}", golden["source"]);
        assert_eq!(tokenizer.decode(&found).unwrap(), text);
    }
}

#[test]
fn the_specification_is_met() {
    let (Some(tokenizer), Some(spec)) = (llama3(), text_of("llama3/spec.json")) else { return };
    let spec: Value = serde_json::from_slice(&spec).unwrap();
    assert_eq!(spec["pattern"], PATTERN);
    assert_eq!(spec["n_mergeable"], tokenizer.num_ranks());
    assert_eq!(tokenizer.vocab_size(), 128_256);
    let special = spec["special_tokens"].as_object().unwrap();
    assert_eq!(special.len(), 256);
    for (name, id) in special {
        assert_eq!(tokenizer.special().id(name), id.as_u64().map(|id| id as u32), "{name}");
    }
    let dialog = [
        Message::new(Role::System, "You are a helpful assistant."),
        Message::new(Role::User, "What is 2+2?"),
    ];
    let expected = ids(&spec["chat_ids"]);
    assert_eq!(tokenizer.encode_dialog_prompt(&dialog).unwrap(), expected);
    assert_eq!(tokenizer.encode_with_special(spec["chat_text"].as_str().unwrap()), expected);
}

#[test]
fn the_vectors_of_llama_cpp_are_exact() {
    let Some(tokenizer) = llama3() else { return };
    let read = |ending: &str| text_of(&format!("llama.cpp-vectors/ggml-vocab-llama-bpe.gguf.{ending}"));
    let (Some(texts), Some(expected)) = (read("inp"), read("out")) else { return };
    let (texts, expected) = (String::from_utf8(texts).unwrap(), String::from_utf8(expected).unwrap());
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    // What follows the last separator is no text.
    let expected: Vec<&str> = expected.lines().collect();
    assert!(!expected.is_empty() && (texts.len() == expected.len() || texts.len() == expected.len() + 1));
    for (text, line) in texts.iter().zip(expected) {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text), expected, "{text:?}");
    }
}

#[test]
fn the_real_file_round_trips() {
    let Some(tokenizer) = llama3() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tokenizer.model");
    tokenizer.save_model(&model).unwrap();
    let original = std::fs::read(model_file().unwrap()).unwrap();
    assert!(std::fs::read(&model).unwrap() == original, "not the same bytes");
    tokenizer.save_hf(dir.path()).unwrap();
    let read = Tokenizer::load(dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(read.fingerprint(), tokenizer.fingerprint());
    let read = Tokenizer::from_gguf(tokenizer.to_gguf().unwrap()).unwrap();
    assert_eq!(read.fingerprint(), tokenizer.fingerprint());
}
