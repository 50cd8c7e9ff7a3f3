//! Any text: pieces joined are the text, they are those of a regex engine, and a cut changes none.
#![no_main]

use std::sync::LazyLock;

use fancy_regex::Regex;
use llamero_tokenizer::{GPT2_PATTERN, PATTERN, Split};

/// The engine goes back and forth, so long texts take it long.
const LONGEST: usize = 512;

static ENGINES: LazyLock<Vec<(Split, Regex)>> = LazyLock::new(|| {
    [(Split::Llama3, PATTERN), (Split::Gpt2, GPT2_PATTERN)]
        .into_iter()
        .filter_map(|(split, pattern)| Some((split, Regex::new(pattern).ok()?)))
        .collect()
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    assert_eq!(ENGINES.len(), 2);
    for split in [Split::Llama3, Split::Gpt2, Split::SmolLm] {
        let pieces: Vec<&str> = split.pieces(text).collect();
        assert_eq!(pieces.concat(), text);
        if let Some(cut) = split.safe_cut(text) {
            let parts = split.pieces(&text[..cut]).chain(split.pieces(&text[cut..]));
            assert!(parts.eq(pieces.iter().copied()), "{split:?} {cut}");
        }
    }
    for (split, engine) in ENGINES.iter().filter(|_| text.len() <= LONGEST) {
        let found = engine.find_iter(text).flatten().map(|found| found.as_str());
        assert!(found.eq(split.pieces(text)), "{split:?}");
    }
});
