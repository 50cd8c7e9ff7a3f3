//! The hand-written splitter against a regex engine with the verbatim pattern.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use fancy_regex::Regex;
use llamero_tokenizer::{PATTERN, split};
use proptest::prelude::*;
use std::sync::LazyLock;

static REGEX: LazyLock<Regex> = LazyLock::new(|| Regex::new(PATTERN).unwrap());

fn expected(text: &str) -> Vec<&str> {
    REGEX.find_iter(text).map(|found| found.unwrap().as_str()).collect()
}

/// Characters between which the pattern makes a difference, and relatives of them.
#[rustfmt::skip]
const TELLING: &[char] = &[
    ' ', ' ', '\n', '\r', '\t', '\u{b}', '\u{c}', '\u{1c}', '\u{85}', '\u{a0}', '\u{200b}', '\u{2003}',
    '\u{2028}', '\u{3000}', '\u{feff}', '\'', '\'', '’', 's', 'S', 'ſ', 't', 'T', 'r', 'R', 'e', 'E', 'v',
    'V', 'm', 'M', 'l', 'L', 'ł', 'd', 'D', 'K', 'x', 'é', 'e', '\u{301}', 'ß', 'ﬆ', 'ª', 'ʰ', 'ǅ', '字',
    'ا', 'ः', '\u{94d}', 'Ⅷ', 'Ⓐ', '1', '2', '٣', '½', '²', '〇', '.', '!', '_', '-', '€', '🦙', '\u{200d}',
    '\0', '\u{ad}', '\u{e000}', '\u{10ffff}',
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn equals_the_regex_on_telling_characters(text in proptest::collection::vec(proptest::sample::select(TELLING), 0..24)) {
        let text: String = text.into_iter().collect();
        prop_assert_eq!(split(&text).collect::<Vec<_>>(), expected(&text));
    }

    #[test]
    fn equals_the_regex_on_any_text(text in any::<String>()) {
        prop_assert_eq!(split(&text).collect::<Vec<_>>(), expected(&text));
    }

    #[test]
    fn pieces_joined_are_the_text(text in any::<String>()) {
        prop_assert_eq!(split(&text).collect::<String>(), text);
    }
}

#[test]
fn every_character_splits_as_the_regex_does() {
    for c in '\0'..=char::MAX {
        // As prefix, inside, and after a space, a newline and a letter.
        let text = format!("{c}{c}a {c}\n{c}'{c}1{c}");
        assert_eq!(split(&text).collect::<Vec<_>>(), expected(&text), "{c:?}");
    }
}

#[test]
fn known_pieces() {
    for (text, pieces) in [
        ("", vec![]),
        ("Hello world", vec!["Hello", " world"]),
        ("I'll we'RE itſ it'ſ 'x", vec!["I", "'ll", " we", "'RE", " itſ", " it", "'ſ", " '", "x"]),
        ("1234567", vec!["123", "456", "7"]),
        ("a  b   ", vec!["a", " ", " b", "   "]),
        ("a \n\n  b", vec!["a", " \n\n", " ", " b"]),
        ("x = 1;\r\n\ty", vec!["x", " =", " ", "1", ";\r\n", "\ty"]),
        ("'s's", vec!["'s", "'s"]),
    ] {
        assert_eq!(split(text).collect::<Vec<_>>(), pieces, "{text:?}");
    }
}
