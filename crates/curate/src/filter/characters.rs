//! Classes of characters that the rules speak of.

use std::cmp::Ordering;

use unicode_normalization::char::is_combining_mark;

/// Characters that end a sentence in some script: Unicode's `Sentence_Terminal` and three Khmer signs, as FineWeb takes them.
const TERMINAL: [(u32, u32); 82] = [
    (0x21, 0x21),
    (0x2e, 0x2e),
    (0x3f, 0x3f),
    (0x589, 0x589),
    (0x61d, 0x61f),
    (0x6d4, 0x6d4),
    (0x700, 0x702),
    (0x7f9, 0x7f9),
    (0x837, 0x837),
    (0x839, 0x839),
    (0x83d, 0x83e),
    (0x964, 0x965),
    (0x104a, 0x104b),
    (0x1362, 0x1362),
    (0x1367, 0x1368),
    (0x166e, 0x166e),
    (0x1735, 0x1736),
    (0x17d4, 0x17d6),
    (0x17d9, 0x17da),
    (0x1803, 0x1803),
    (0x1809, 0x1809),
    (0x1944, 0x1945),
    (0x1aa8, 0x1aab),
    (0x1b5a, 0x1b5b),
    (0x1b5e, 0x1b5f),
    (0x1b7d, 0x1b7e),
    (0x1c3b, 0x1c3c),
    (0x1c7e, 0x1c7f),
    (0x203c, 0x203d),
    (0x2047, 0x2049),
    (0x2e2e, 0x2e2e),
    (0x2e3c, 0x2e3c),
    (0x2e53, 0x2e54),
    (0x3002, 0x3002),
    (0xa4ff, 0xa4ff),
    (0xa60e, 0xa60f),
    (0xa6f3, 0xa6f3),
    (0xa6f7, 0xa6f7),
    (0xa876, 0xa877),
    (0xa8ce, 0xa8cf),
    (0xa92f, 0xa92f),
    (0xa9c8, 0xa9c9),
    (0xaa5d, 0xaa5f),
    (0xaaf0, 0xaaf1),
    (0xabeb, 0xabeb),
    (0xfe52, 0xfe52),
    (0xfe56, 0xfe57),
    (0xff01, 0xff01),
    (0xff0e, 0xff0e),
    (0xff1f, 0xff1f),
    (0xff61, 0xff61),
    (0x10a56, 0x10a57),
    (0x10f55, 0x10f59),
    (0x10f86, 0x10f89),
    (0x11047, 0x11048),
    (0x110be, 0x110c1),
    (0x11141, 0x11143),
    (0x111c5, 0x111c6),
    (0x111cd, 0x111cd),
    (0x111de, 0x111df),
    (0x11238, 0x11239),
    (0x1123b, 0x1123c),
    (0x112a9, 0x112a9),
    (0x1144b, 0x1144c),
    (0x115c2, 0x115c3),
    (0x115c9, 0x115d7),
    (0x11641, 0x11642),
    (0x1173c, 0x1173e),
    (0x11944, 0x11944),
    (0x11946, 0x11946),
    (0x11a42, 0x11a43),
    (0x11a9b, 0x11a9c),
    (0x11c41, 0x11c42),
    (0x11ef7, 0x11ef8),
    (0x11f43, 0x11f44),
    (0x16a6e, 0x16a6f),
    (0x16af5, 0x16af5),
    (0x16b37, 0x16b38),
    (0x16b44, 0x16b44),
    (0x16e98, 0x16e98),
    (0x1bc9f, 0x1bc9f),
    (0x1da88, 0x1da88),
];

/// Punctuation and control characters: the set that CCNet (Wenzek et al. 2020) takes away before it compares texts.
const SYMBOL: [(u32, u32); 28] = [
    (0x0, 0x8),
    (0xb, 0x1f),
    (0x21, 0x2f),
    (0x3a, 0x40),
    (0x5b, 0x60),
    (0x7b, 0x9f),
    (0xab, 0xab),
    (0xb4, 0xb4),
    (0xbb, 0xbb),
    (0x2013, 0x2014),
    (0x2019, 0x2019),
    (0x201c, 0x201e),
    (0x2026, 0x2026),
    (0x2236, 0x2236),
    (0x2501, 0x2501),
    (0x25ba, 0x25ba),
    (0x3001, 0x3002),
    (0x3008, 0x300d),
    (0x3010, 0x3011),
    (0xff01, 0xff01),
    (0xff05, 0xff05),
    (0xff08, 0xff09),
    (0xff0c, 0xff0c),
    (0xff0e, 0xff0e),
    (0xff11, 0xff11),
    (0xff1a, 0xff1b),
    (0xff1f, 0xff1f),
    (0xff5e, 0xff5e),
];

fn is_in(ranges: &[(u32, u32)], c: char) -> bool {
    let c = c as u32;
    let place = |&(first, last): &(u32, u32)| match (c < first, c > last) {
        (true, _) => Ordering::Greater,
        (_, true) => Ordering::Less,
        _ => Ordering::Equal,
    };
    ranges.binary_search_by(place).is_ok()
}

/// Ends a sentence, in any script.
pub(crate) fn is_terminal(c: char) -> bool {
    is_in(&TERMINAL, c)
}

/// Punctuation, a control character, or the end of a sentence: a word of nothing else is no word.
pub(crate) fn is_symbol(c: char) -> bool {
    is_in(&SYMBOL, c) || is_terminal(c)
}

/// Signs above, below and behind a character of Thai, Lao, Burmese, Khmer or kana that are no characters of their own.
pub(crate) fn is_attached(c: char) -> bool {
    matches!(c, '\u{e31}' | '\u{e34}'..='\u{e3a}' | '\u{e47}'..='\u{e4e}' | '\u{eb1}' | '\u{eb4}'..='\u{ebc}'
        | '\u{ec8}'..='\u{ece}' | '\u{102b}'..='\u{103e}' | '\u{17b4}'..='\u{17d3}' | '\u{17dd}'
        | '\u{3099}'..='\u{309a}')
}

/// A sign on the letter before it (an accent, a virama, the vowel of an abugida), an invisible joiner, or a hyphen that shows only
/// where a line ends: none is a letter, and none ends a word.
pub(crate) fn is_inside_word(c: char) -> bool {
    !c.is_ascii() && (is_combining_mark(c) || matches!(c, '\u{ad}' | '\u{200c}' | '\u{200d}'))
}

/// Thai and Lao: they have no mark for the end of a sentence, and a space between two of their words is the end of a clause.
pub(crate) fn is_unmarked(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}')
}

/// Whether a line ends like a sentence of its script: with a mark that ends one, also before closing quotes and brackets of
/// scripts that are not Latin, or with a word of a script that has no such mark.
pub(crate) fn ends_sentence(line: &str) -> bool {
    let closing = ['”', '’', '」', '』', '）', '》', '】'];
    let inside = line.trim_end_matches(closing);
    match inside.chars().next_back() {
        // In Latin script the published rules stand: `.”` at the end of a line is none of their marks.
        Some(c) => is_terminal(c) && (inside.len() == line.len() || !c.is_ascii()) || is_unmarked(c),
        None => false,
    }
}

/// White space, the separators of files and records among it.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// A text without white space at its ends.
pub(crate) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}
