//! Any text: decoding undoes encoding, at once and token by token, with and without special tokens.
#![no_main]

use std::sync::LazyLock;

use llamero_tokenizer::{StreamDecoder, Tokenizer, Trainer};

static TOKENIZER: LazyLock<Option<Tokenizer>> = LazyLock::new(|| {
    let text = "the thing's in there, it isn't 1999\n\n  fn main() { println!(\"{}\"); } 字字 🦙🦙 aaaaaaaa";
    Some(Trainer::new(700).train([text, text].iter(), &mut |_, _| ()).ok()?.0)
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Some(tokenizer) = &*TOKENIZER else { panic!("no tokenizer") };
    for ids in [tokenizer.encode(text), tokenizer.encode_with_special(text)] {
        assert_eq!(tokenizer.decode(&ids).ok().as_deref(), Some(text));
        let mut decoder = StreamDecoder::new(tokenizer);
        let streamed: String = ids.iter().map(|&id| decoder.push(id)).collect();
        assert_eq!(streamed + &decoder.finish(), text);
    }
    assert!(tokenizer.encode(text).iter().all(|&id| !tokenizer.special().contains(id)));
});
