//! Any bytes as a text that is read in parts: the ids of the whole, or the place of the first byte that is not UTF-8.
#![no_main]

use std::sync::LazyLock;

use llamero_tokenizer::{Error, GgufVocabulary, Tokenizer, Trainer};

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let text = "the thing's in there, it isn't 1999\n\n  fn main() { println!(\"{}\"); } 字字 🦙🦙 aaaaaaaa";
    let trained = Trainer::new(700).train([text, text].iter(), &mut |_, _| ());
    let Some(vocabulary) = trained.ok().and_then(|(tokenizer, _)| tokenizer.to_gguf().ok()) else {
        return Vec::new();
    };
    let with_words = |pre: &str| {
        let mut vocabulary = GgufVocabulary { pre: pre.into(), ..vocabulary.clone() };
        for (word, kind) in [(" b\n", 4), ("a b", 4), ("<x>", 3), ("<x><x>a ", 3), ("\n\n ", 4), ("9.9", 4)] {
            vocabulary.tokens.push(word.into());
            vocabulary.token_types.push(kind);
        }
        Tokenizer::from_gguf(vocabulary).ok()
    };
    ["llama-bpe", "gpt-2", "smollm"].into_iter().filter_map(with_words).collect()
});

libfuzzer_sys::fuzz_target!(|input: (u8, bool, &[u8])| {
    let (size, special, bytes) = input;
    assert_eq!(TOKENIZERS.len(), 3);
    for tokenizer in &*TOKENIZERS {
        let stretches = tokenizer.stretches(bytes).with_size(size.into());
        let stretches = if special { stretches.with_special() } else { stretches };
        let mut ids = Vec::new();
        let encoded = stretches.encode(&mut |some, _| {
            ids.extend_from_slice(some);
            Ok::<_, Error>(())
        });
        match (std::str::from_utf8(bytes), encoded) {
            (Ok(text), Ok(())) => {
                let whole =
                    if special { tokenizer.encode_with_special(text) } else { tokenizer.encode(text) };
                assert_eq!(ids, whole);
            }
            (Err(error), Err(Error::NotUtf8 { offset, .. })) => {
                assert_eq!(offset, error.valid_up_to() as u64)
            }
            (_, encoded) => panic!("{encoded:?}"),
        }
    }
});
