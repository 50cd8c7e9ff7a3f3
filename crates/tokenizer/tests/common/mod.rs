//! Where tests find files that the repository does not hold, and the metadata of GGUF files.

use llamero_tokenizer::GgufVocabulary;
use std::path::{Path, PathBuf};

/// The folder `tokenizer` below `LLAMERO_TEST_DATA`. Where that is not set there is no such file, and the reason names it.
pub(crate) fn data() -> PathBuf {
    let root = std::env::var_os("LLAMERO_TEST_DATA").unwrap_or_else(|| "$LLAMERO_TEST_DATA".into());
    PathBuf::from(root).join("tokenizer")
}

/// A file that `cargo xtask fixtures` fetches.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let root = std::env::var_os("LLAMERO_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures"), PathBuf::from);
    root.join(name)
}

/// `path` if it is there, or a printed reason.
pub(crate) fn present(path: PathBuf) -> Option<PathBuf> {
    if !path.exists() {
        println!("skipped: no `{}`", path.display());
        return None;
    }
    Some(path)
}

#[derive(Debug)]
enum Value {
    Number(u64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
    Other,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, n: usize) -> &[u8] {
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 | 1 => Value::Number(u64::from(self.take(1)[0])),
            2 | 3 => Value::Number(u64::from(u16::from_le_bytes(self.take(2).try_into().unwrap()))),
            4 | 5 => Value::Number(u64::from(self.u32())),
            6 => {
                self.take(4);
                Value::Other
            }
            7 => Value::Bool(self.take(1)[0] != 0),
            8 => Value::Text(self.text()),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                Value::List((0..len).map(|_| self.value(kind)).collect())
            }
            10 | 11 => Value::Number(self.u64()),
            12 => {
                self.take(8);
                Value::Other
            }
            other => panic!("type {other}"),
        }
    }
}

/// The vocabulary in a good GGUF file.
pub(crate) fn vocabulary(path: &Path) -> GgufVocabulary {
    let contents = std::fs::read(path).unwrap();
    let mut reader = Reader(&contents);
    assert_eq!(reader.take(4), b"GGUF");
    reader.take(12);
    let mut vocabulary = GgufVocabulary::default();
    for _ in 0..reader.u64() {
        let key = reader.text();
        let kind = reader.u32();
        let value = reader.value(kind);
        match (key.trim_start_matches("tokenizer."), value) {
            ("ggml.model", Value::Text(text)) => vocabulary.model = text,
            ("ggml.pre", Value::Text(text)) => vocabulary.pre = text,
            ("chat_template", Value::Text(text)) => vocabulary.chat_template = Some(text),
            ("ggml.bos_token_id", Value::Number(id)) => vocabulary.bos = Some(id as u32),
            ("ggml.eos_token_id", Value::Number(id)) => vocabulary.eos = Some(id as u32),
            ("ggml.add_bos_token", Value::Bool(add)) => vocabulary.add_bos = Some(add),
            ("ggml.tokens", Value::List(list)) => vocabulary.tokens = texts(list),
            ("ggml.merges", Value::List(list)) => vocabulary.merges = texts(list),
            ("ggml.token_type", Value::List(list)) => {
                let kind = |value| match value {
                    Value::Number(kind) => kind as i32,
                    other => panic!("{other:?}"),
                };
                vocabulary.token_types = list.into_iter().map(kind).collect();
            }
            _ => {}
        }
    }
    vocabulary
}

fn texts(list: Vec<Value>) -> Vec<String> {
    let text = |value| match value {
        Value::Text(text) => text,
        other => panic!("{other:?}"),
    };
    list.into_iter().map(text).collect()
}

/// The texts and ids of one of llama.cpp's files of test vectors, such as `gpt-2`.
pub(crate) fn vectors(name: &str) -> Option<Vec<(String, Vec<u32>)>> {
    let file = |ending: &str| data().join(format!("llama.cpp-vectors/ggml-vocab-{name}.gguf.{ending}"));
    let read = |ending| std::fs::read_to_string(file(ending)).unwrap();
    present(file("out"))?;
    let (texts, expected) = (read("inp"), read("out"));
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned);
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let expected: Vec<Vec<u32>> = expected.lines().map(ids).collect();
    // What follows the last separator is no text.
    assert!(!expected.is_empty() && (0..2).contains(&(texts.clone().count() - expected.len())));
    Some(texts.zip(expected).collect())
}
