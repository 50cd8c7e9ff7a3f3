//! Where a text may be cut so that its parts have the pieces of the whole.
//!
//! A text may be cut
//!
//! 1. between a character that is no white space and a space (white space other than `\r` and `\n`): no alternative of a
//!    pattern has a space after another kind of character, so a piece ends there in the whole text too; and
//! 2. with Llama 3's pattern, between a newline (`\r` or `\n`) and a character that is no white space: only `[\r\n]*` and
//!    `[\r\n]+` match newlines, and nothing but the end of a piece follows them.
//!
//! Pieces before the cut see the end of the text where they saw more of it. That matters to `\s+(?!\S)` alone, which asks
//! what follows white space: before a cut of the first kind there is none, and before one of the second kind
//! `\s*[\r\n]+`, which comes first, has taken it. Pieces after the cut do not look back.

use crate::Split;

/// The last place in `text`, behind its beginning, where it may be cut; none if there is none.
///
/// The pieces of both parts are those of the whole, whatever follows the text: see the rule at the top of the file.
pub fn last_cut(split: Split, text: &str) -> Option<usize> {
    // What stands behind the text is unknown, so only places inside count.
    let mut after: Option<(usize, char)> = None;
    for (at, c) in text.char_indices().rev() {
        if let Some((cut, next)) = after
            && may_cut(split, c, next)
        {
            return Some(cut);
        }
        after = Some((at, c));
    }
    None
}

/// The first place at or behind `from` where `text` may be cut, otherwise its end. `from` is the boundary of a character.
pub(super) fn next_cut(split: Split, text: &str, from: usize) -> usize {
    let Some(mut before) = text[..from].chars().next_back() else { return text.len() };
    for (at, c) in text[from..].char_indices() {
        if may_cut(split, before, c) {
            return from + at;
        }
        before = c;
    }
    text.len()
}

fn may_cut(split: Split, before: char, after: char) -> bool {
    let is_newline = |c| matches!(c, '\r' | '\n');
    match (before.is_whitespace(), after.is_whitespace()) {
        (false, true) => !is_newline(after),
        (true, false) => split == Split::Llama3 && is_newline(before),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts() -> impl Strategy<Value = String> {
        let chars = proptest::sample::select(
            " \t\n\r\u{a0}\u{3000}\u{85}aé's中1٣!-\u{200d}".chars().collect::<Vec<_>>(),
        );
        proptest::collection::vec(chars, 0..40).prop_map(|chars| chars.into_iter().collect())
    }

    proptest! {
        #[test]
        fn the_parts_have_the_pieces_of_the_whole(text in texts(), from in 0usize..40) {
            for split in [Split::Llama3, Split::Gpt2, Split::SmolLm] {
                let whole: Vec<&str> = split.pieces(&text).collect();
                let cuts = [last_cut(split, &text), text.char_indices().nth(from).map(|(at, _)| next_cut(split, &text, at))];
                for cut in cuts.into_iter().flatten() {
                    let (first, second) = text.split_at(cut);
                    let parts: Vec<&str> = split.pieces(first).chain(split.pieces(second)).collect();
                    prop_assert_eq!(&parts, &whole, "cut at {}", cut);
                }
            }
        }

        #[test]
        fn what_follows_a_cut_does_not_matter(text in texts(), more in texts()) {
            let Some(cut) = last_cut(Split::Llama3, &text) else { return Ok(()) };
            let whole = format!("{text}{more}");
            let parts = Split::Llama3.pieces(&whole[..cut]).chain(Split::Llama3.pieces(&whole[cut..]));
            prop_assert!(parts.eq(Split::Llama3.pieces(&whole)));
        }
    }

    #[test]
    fn real_text_can_be_cut_at_words_and_lines() {
        assert_eq!(last_cut(Split::Llama3, "one two"), Some(3));
        assert_eq!(last_cut(Split::Llama3, "一\n\n二三"), Some(5));
        assert_eq!(last_cut(Split::Gpt2, "一\n\n二三"), None);
        assert_eq!(last_cut(Split::Llama3, "aaaa  \n"), Some(4));
        assert_eq!(last_cut(Split::Llama3, "aaaa"), None);
    }
}
