//! A cut must not change the pieces of a text, wherever the text was read up to.

use llamero_tokenizer::Split;
use proptest::prelude::*;

const SPLITS: [Split; 3] = [Split::Llama3, Split::Gpt2, Split::SmolLm];

/// Characters of every class, with those that patterns name.
#[rustfmt::skip]
const TELLING: &[char] = &[
    ' ', ' ', ' ', '\n', '\n', '\r', '\t', '\u{b}', '\u{85}', '\u{a0}', '\u{2028}', '\u{3000}', '\'', '\'', '’', 's',
    'S', 'ſ', 't', 'r', 'e', 'v', 'm', 'l', 'L', 'd', 'x', 'é', '字', '\u{301}', 'Ⅷ', '1', '2', '½', '.', '!', '🦙',
    '\u{200d}', '\0', '\u{10ffff}',
];

/// Cuts every beginning of `text`, and expects the pieces of the whole.
fn check(split: Split, text: &str) -> Result<(), TestCaseError> {
    let whole: Vec<&str> = split.pieces(text).collect();
    for (end, _) in text.char_indices() {
        if let Some(cut) = split.safe_cut(&text[..end]) {
            prop_assert!(cut > 0 && cut < end);
            let parts: Vec<&str> = split.pieces(&text[..cut]).chain(split.pieces(&text[cut..])).collect();
            prop_assert_eq!(&parts, &whole, "{:?} cut at {} as seen up to {}", split, cut, end);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_cut_changes_pieces(text in proptest::collection::vec(proptest::sample::select(TELLING), 0..24)) {
        let text: String = text.into_iter().collect();
        for split in SPLITS {
            check(split, &text)?;
        }
    }

    #[test]
    fn no_cut_changes_pieces_of_any_text(text in any::<String>()) {
        for split in SPLITS {
            check(split, &text)?;
        }
    }

    /// What comes before does not matter: a caller may search in the end of what was read.
    #[test]
    fn a_cut_is_one_whatever_comes_before(
        before in proptest::collection::vec(proptest::sample::select(TELLING), 0..8),
        text in proptest::collection::vec(proptest::sample::select(TELLING), 0..16),
    ) {
        let (before, text): (String, String) = (before.into_iter().collect(), text.into_iter().collect());
        for split in SPLITS {
            if let Some(cut) = split.safe_cut(&text) {
                let whole = before.clone() + &text;
                prop_assert_eq!(split.safe_cut(&whole), Some(before.len() + cut));
            }
        }
    }

    /// What is not cut holds only a few runs of characters of a class, so that memory is bounded by the longest of them.
    #[test]
    fn little_is_left_behind_a_cut(text in proptest::collection::vec(proptest::sample::select(TELLING), 0..200)) {
        let text: String = text.into_iter().collect();
        for split in SPLITS {
            let left = &text[split.safe_cut(&text).unwrap_or(0)..];
            let blanks = left.split(|c: char| !c.is_whitespace()).filter(|run| !run.is_empty()).count();
            let visible = left.split_whitespace().count();
            prop_assert!(blanks <= 2 && visible <= 2, "{:?} leaves {:?}", split, left);
        }
    }
}

#[test]
fn every_pair_of_classes() {
    let one_of_each = ['a', '1', '\n', ' ', '!', '\''];
    for text in one_of_each.iter().flat_map(|a| one_of_each.iter().map(move |b| format!("{a}{b}"))) {
        for split in SPLITS {
            // A pair is a cut where all that can come next splits there, and both halves are what they were.
            let tails: Vec<String> = one_of_each
                .iter()
                .flat_map(|c| one_of_each.iter().map(move |d| format!("{c}{d}")))
                .chain([String::new()])
                .collect();
            let always = tails.iter().all(|tail| {
                let whole = format!("{text}{tail}");
                let joined: Vec<&str> = split.pieces(&whole[..1]).chain(split.pieces(&whole[1..])).collect();
                split.pieces(&whole).eq(joined.iter().copied())
            });
            let found = split.safe_cut(&text) == Some(1);
            assert!(!found || always, "{split:?} {text:?}");
        }
    }
}

#[test]
fn known_cuts() {
    for (text, llama3, gpt2, smollm) in [
        ("", None, None, None),
        ("word", None, None, None),
        ("two words", Some(3), Some(3), Some(3)),
        ("end.\n", Some(3), Some(4), Some(4)),
        ("end.\nN", Some(5), Some(4), Some(4)),
        ("}\n  }", Some(2), Some(1), Some(1)),
        ("}\n  ", None, Some(1), Some(1)),
        ("1234", None, None, Some(3)),
        ("   7", None, None, Some(3)),
        ("!s", None, Some(1), Some(1)),
        ("'s", None, None, None),
        ("      ", None, None, None),
    ] {
        let found = SPLITS.map(|split| split.safe_cut(text));
        assert_eq!(found, [llama3, gpt2, smollm], "{text:?}");
    }
}
