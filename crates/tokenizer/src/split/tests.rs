use super::*;
use proptest::prelude::*;

/// The pieces of `text`, each found character after character.
fn one_by_one(split: Split, text: &str) -> Vec<&str> {
    let mut pieces = split.pieces(text);
    let mut found = Vec::new();
    while pieces.position < text.len() {
        let start = pieces.position;
        pieces.position = pieces.rule_end(start);
        found.push(&text[start..pieces.position]);
    }
    found
}

/// Characters of every kind that a rule tells apart, in one and in several bytes.
const KINDS: &str = r"([ ]|[\n]|[\r]|[\t]|'|'s|'T|'re|'LL|'ſ|-|a|B|7|\u{A0}|\u{3000}|\u{85}|é|中|𝒜|٣|²|…|“|🦀|\u{0301}){0,80}";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 3_000 }))]

    #[test]
    fn blocks_begin_pieces_where_characters_do(text in KINDS, words in r"([a-z ]{0,9}[ \n.,'0-9]{0,5}){0,30}") {
        for text in [&text, &words, &format!("{words}{text}{words}")] {
            for split in [Split::Llama3, Split::Gpt2, Split::SmolLm] {
                let found: Vec<&str> = split.pieces(text).collect();
                prop_assert_eq!(found, one_by_one(split, text), "{:?}", split);
            }
        }
    }
}

#[test]
fn runs_of_every_length_end_where_they_do() {
    for run in
        ["a", " ", "\n", "\r\n", "7", "-", "'", "é", "\u{3000}", "٣", "…", " \n", "\n ", "\n  ", "- ", "-\n"]
    {
        for before in ["", "x", " ", "\n", "-", "7", "'", " -"] {
            for after in ["", "x", " x", "\n", "-", "7", "'s", " -\n x"] {
                for times in 0..140 {
                    let text = format!("{before}{}{after}", run.repeat(times));
                    for split in [Split::Llama3, Split::Gpt2, Split::SmolLm] {
                        let found: Vec<&str> = split.pieces(&text).collect();
                        assert_eq!(found, one_by_one(split, &text), "{split:?}: {text:?}");
                    }
                }
            }
        }
    }
}
