//! The hand-written splitters against a regex engine with the verbatim patterns.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use fancy_regex::Regex;
use llamero_tokenizer::{GPT2_PATTERN, PATTERN, Split, split};
use proptest::prelude::*;
use std::sync::LazyLock;

static LLAMA3: LazyLock<Regex> = LazyLock::new(|| Regex::new(PATTERN).unwrap());
static GPT2: LazyLock<Regex> = LazyLock::new(|| Regex::new(GPT2_PATTERN).unwrap());
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\p{N}").unwrap());

const SPLITS: [Split; 3] = [Split::Llama3, Split::Gpt2, Split::SmolLm];

fn matches<'a>(regex: &Regex, text: &'a str) -> Vec<&'a str> {
    regex.find_iter(text).map(|found| found.unwrap().as_str()).collect()
}

fn expected(split: Split, text: &str) -> Vec<&str> {
    match split {
        Split::Llama3 => matches(&LLAMA3, text),
        Split::Gpt2 => matches(&GPT2, text),
        Split::SmolLm => {
            let (mut pieces, mut rest) = (Vec::new(), 0);
            for number in NUMBER.find_iter(text).map(Result::unwrap) {
                pieces.extend(matches(&GPT2, &text[rest..number.start()]));
                pieces.push(number.as_str());
                rest = number.end();
            }
            pieces.extend(matches(&GPT2, &text[rest..]));
            pieces
        }
    }
}

fn found(split: Split, text: &str) -> Vec<&str> {
    split.pieces(text).collect()
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
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Longer than what is looked at once, with runs across the borders.
    #[test]
    fn equal_the_regex_on_long_texts(
        runs in proptest::collection::vec((proptest::sample::select(TELLING), 0usize..90), 40..90),
    ) {
        let text: String = runs.into_iter().flat_map(|(c, count)| std::iter::repeat_n(c, count)).collect();
        for split in SPLITS {
            prop_assert_eq!(found(split, &text), expected(split, &text), "{:?}", split);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn equal_the_regex_on_telling_characters(text in proptest::collection::vec(proptest::sample::select(TELLING), 0..24)) {
        let text: String = text.into_iter().collect();
        for split in SPLITS {
            prop_assert_eq!(found(split, &text), expected(split, &text), "{:?}", split);
        }
    }

    #[test]
    fn equal_the_regex_on_any_text(text in any::<String>()) {
        for split in SPLITS {
            prop_assert_eq!(found(split, &text), expected(split, &text), "{:?}", split);
        }
    }

    #[test]
    fn pieces_joined_are_the_text(text in any::<String>()) {
        for split in SPLITS {
            prop_assert_eq!(split.pieces(&text).collect::<String>(), text.as_str());
        }
    }
}

#[test]
fn every_character_splits_as_the_regex_does() {
    for c in '\0'..=char::MAX {
        // As prefix, inside, and after a space, a newline and a letter.
        let text = format!("{c}{c}a {c}\n{c}'{c}1{c}");
        for split in SPLITS {
            assert_eq!(found(split, &text), expected(split, &text), "{split:?} {c:?}");
        }
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

#[test]
fn known_pieces_of_other_splits() {
    for (text, gpt2, smollm) in [
        ("I'll we'RE", vec!["I", "'ll", " we", "'", "RE"], vec!["I", "'ll", " we", "'", "RE"]),
        ("in 1999", vec!["in", " 1999"], vec!["in", " ", "1", "9", "9", "9"]),
        ("a  1 b", vec!["a", " ", " 1", " b"], vec!["a", "  ", "1", " b"]),
        ("x;\n\n  y", vec!["x", ";", "\n\n ", " y"], vec!["x", ";", "\n\n ", " y"]),
        ("a\nb  ", vec!["a", "\n", "b", "  "], vec!["a", "\n", "b", "  "]),
    ] {
        assert_eq!(found(Split::Gpt2, text), gpt2, "{text:?}");
        assert_eq!(found(Split::SmolLm, text), smollm, "{text:?}");
    }
}
