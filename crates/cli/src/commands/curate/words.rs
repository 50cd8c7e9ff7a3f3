//! Text of strangers on a terminal.

/// A text on one line: what a terminal would act on becomes a space.
pub(super) fn line(text: &str) -> String {
    text.chars().map(plain).collect()
}

/// The lines of a text behind a mark.
pub(super) fn indented(text: &str, mark: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(|own| format!("{mark}{}", line(own))).collect();
    lines.join("\n")
}

/// Controls, and marks that turn the direction of what follows.
fn plain(c: char) -> char {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || turns { ' ' } else { c }
}
