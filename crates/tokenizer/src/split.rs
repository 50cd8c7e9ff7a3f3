//! Splits text into the pieces that BPE merges within, as the regular expression of a tokenizer does.
//!
//! The patterns need a look-ahead, and Llama 3's case folding; these splitters are written by hand so that they are linear
//! in the text and need no regex engine. The alternatives are tried in the pattern's order, each at the position where
//! the last piece ended; together they cover every character.

use crate::unicode_table::{LETTERS, NUMBERS, WHITE_SPACE};
use std::sync::LazyLock;

/// Llama 3's split pattern, verbatim.
pub const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GPT-2's split pattern, verbatim.
pub const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// How a tokenizer splits text into pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Split {
    /// All matches of [`PATTERN`].
    ///
    /// Unlike Meta's wrapper, this does not cut runs of more than 25,000 characters first: that guard protects an engine
    /// that is quadratic in such runs, and this one is not.
    #[default]
    Llama3,
    /// All matches of [`GPT2_PATTERN`].
    Gpt2,
    /// Every character of `\p{N}` is a piece; what lies between them is split by [`GPT2_PATTERN`], each stretch as a text of
    /// its own.
    SmolLm,
}

impl Split {
    /// Iterates over the pieces of `text`. Joined, they are `text`.
    pub fn pieces(self, text: &str) -> Pieces<'_> {
        Pieces { text, position: 0, split: self, classes: &CLASSES }
    }
}

/// The pieces of `text` in Llama 3's way, [`Split::Llama3`].
pub fn split(text: &str) -> Pieces<'_> {
    Split::Llama3.pieces(text)
}

/// The pieces of a text; made by [`Split::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    text: &'a str,
    position: usize,
    split: Split,
    classes: &'static Classes,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        let start = self.position;
        let (class, next) = self.class_at(start)?;
        self.position = match self.split {
            Split::Llama3 => self.llama3(start, class, next),
            Split::SmolLm if class == Class::Number => next,
            Split::Gpt2 | Split::SmolLm => self.gpt2(start, class, next),
        };
        Some(&self.text[start..self.position])
    }
}

/// Where a piece ends that begins at `start` with a character of `class`, which ends at `next`.
impl Pieces<'_> {
    /// By [`PATTERN`].
    #[inline]
    fn llama3(&self, start: usize, class: Class, next: usize) -> usize {
        match class {
            Class::Letter => self.run_end(next, Class::Letter),
            Class::Number => self.number(next),
            Class::Newline => self.white_space(start),
            Class::Space | Class::Other => self.after_prefix(start, class, next),
        }
    }

    /// By [`GPT2_PATTERN`]; where numbers are split off, a number is the end of the text.
    #[inline]
    fn gpt2(&self, start: usize, class: Class, next: usize) -> usize {
        let first = self.text.as_bytes()[start];
        if first == b'\''
            && let Some(end) = self.contraction(next, false)
        {
            return end;
        }
        // What ` ?` may stand before.
        let run = match class {
            Class::Space if first == b' ' => self.class_in_stretch(next),
            _ => Some((class, next)),
        };
        match run {
            Some((run @ (Class::Letter | Class::Number | Class::Other), after)) => self.run_end(after, run),
            _ => self.blank(start),
        }
    }

    /// `\s+(?!\S)|\s+` at `start`, where there is white space: all of the run at the end of the text, otherwise all but
    /// its last character, if it has two.
    fn blank(&self, start: usize) -> usize {
        let (mut at, mut last) = (start, start);
        loop {
            match self.class_in_stretch(at) {
                Some((Class::Space | Class::Newline, next)) => (last, at) = (at, next),
                Some(_) if last > start => return last,
                _ => return at,
            }
        }
    }

    /// [`Pieces::class_at`] within the stretch that the pattern sees.
    fn class_in_stretch(&self, at: usize) -> Option<(Class, usize)> {
        self.class_at(at).filter(|&(class, _)| self.split != Split::SmolLm || class != Class::Number)
    }
}

impl Pieces<'_> {
    /// The class of the character at `at` and where the next one begins; nothing at the end of the text.
    #[inline]
    fn class_at(&self, at: usize) -> Option<(Class, usize)> {
        let bytes = self.text.as_bytes();
        let lead = *bytes.get(at)?;
        if lead < 0x80 {
            return Some((self.classes.ascii[usize::from(lead)], at + 1));
        }
        // The text is valid UTF-8, so the continuation bytes are there.
        let tail = |i: usize| u32::from(bytes[at + i] & 0x3F);
        let (code, len) = match lead {
            ..0xE0 => (u32::from(lead & 0x1F) << 6 | tail(1), 2),
            0xE0..0xF0 => (u32::from(lead & 0x0F) << 12 | tail(1) << 6 | tail(2), 3),
            0xF0.. => (u32::from(lead & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
        };
        Some((self.classes.of(code), at + len))
    }

    /// The end of the run of `wanted` characters that begins at `at`.
    #[inline]
    fn run_end(&self, mut at: usize, wanted: Class) -> usize {
        while let Some((class, next)) = self.class_at(at)
            && class == wanted
        {
            at = next;
        }
        at
    }

    /// `\p{N}{1,3}` after its first character, which ends at `at`.
    fn number(&self, mut at: usize) -> usize {
        for _ in 0..2 {
            match self.class_at(at) {
                Some((Class::Number, next)) => at = next,
                _ => break,
            }
        }
        at
    }

    /// The alternatives for a character at `start` that can precede letters: neither letter, number nor newline.
    fn after_prefix(&self, start: usize, class: Class, next: usize) -> usize {
        let first = self.text.as_bytes()[start];
        if first == b'\''
            && let Some(end) = self.contraction(next, true)
        {
            return end;
        }
        match self.class_at(next) {
            Some((Class::Letter, after)) => self.run_end(after, Class::Letter),
            Some((Class::Other, after)) if first == b' ' => self.symbols(after),
            _ if class == Class::Other => self.symbols(next),
            _ => self.white_space(start),
        }
    }

    /// `s|t|re|ve|m|ll|d` at `at`, in any case if `fold`. Case folding makes U+017F, the long s, equal to s; the other letters
    /// have no such relatives.
    fn contraction(&self, at: usize, fold: bool) -> Option<usize> {
        let rest = &self.text.as_bytes()[at..];
        let letter = |i: usize| rest.get(i).map(|b| if fold { b.to_ascii_lowercase() } else { *b });
        match (letter(0)?, letter(1)) {
            (b's' | b't' | b'm' | b'd', _) => Some(at + 1),
            (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 2),
            (0xC5, Some(0xBF)) if fold => Some(at + 2),
            _ => None,
        }
    }

    /// `[^\s\p{L}\p{N}]+[\r\n]*` after its first character, which ends at `at`.
    fn symbols(&self, at: usize) -> usize {
        self.run_end(self.run_end(at, Class::Other), Class::Newline)
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+` at `start`, where there is white space: up to the last newline of the run if it has
    /// one; otherwise all of the run but its last character, which is left as prefix of what follows; otherwise all.
    fn white_space(&self, start: usize) -> usize {
        let (mut at, mut last, mut after_newline) = (start, start, None);
        while let Some((class @ (Class::Space | Class::Newline), next)) = self.class_at(at) {
            if class == Class::Newline {
                after_newline = Some(next);
            }
            (last, at) = (at, next);
        }
        match after_newline {
            Some(end) => end,
            None if at == self.text.len() || last == start => at,
            None => last,
        }
    }
}

/// What the pattern tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    /// `\r` and `\n`.
    Newline,
    /// Other white space.
    Space,
    Other,
}

const PAGE: usize = 256;

/// The class of every code point, in pages of which equal ones are kept once.
#[derive(Debug)]
struct Classes {
    ascii: [Class; 128],
    page_of: Vec<u16>,
    pages: Vec<[Class; PAGE]>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::new);

impl Classes {
    fn new() -> Classes {
        let mut all = vec![Class::Other; 0x11_0000];
        for (bounds, class) in
            [(LETTERS, Class::Letter), (NUMBERS, Class::Number), (WHITE_SPACE, Class::Space)]
        {
            for range in bounds.chunks_exact(2) {
                all[range[0] as usize..range[1] as usize].fill(class);
            }
        }
        all[usize::from(b'\r')] = Class::Newline;
        all[usize::from(b'\n')] = Class::Newline;

        let mut ascii = [Class::Other; 128];
        ascii.copy_from_slice(&all[..128]);
        let (mut page_of, mut pages) = (Vec::with_capacity(all.len() / PAGE), Vec::<[Class; PAGE]>::new());
        for chunk in all.as_chunks::<PAGE>().0 {
            let page = pages.iter().position(|page| page == chunk).unwrap_or_else(|| {
                pages.push(*chunk);
                pages.len() - 1
            });
            page_of.push(page as u16);
        }
        Classes { ascii, page_of, pages }
    }

    #[inline]
    fn of(&self, code: u32) -> Class {
        let code = code as usize;
        self.pages[usize::from(self.page_of[code / PAGE])][code % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_the_class_that_the_regex_engine_gives_it() {
        let mut expected = vec![Class::Other; 0x11_0000];
        for (pattern, class) in [
            (r"\p{L}", Class::Letter),
            (r"\p{N}", Class::Number),
            (r"\s", Class::Space),
            (r"[\r\n]", Class::Newline),
        ] {
            let hir = regex_syntax::parse(pattern).unwrap();
            let regex_syntax::hir::HirKind::Class(found) = hir.kind() else {
                panic!("{pattern} is no class")
            };
            let regex_syntax::hir::Class::Unicode(found) = found else {
                panic!("{pattern} is no Unicode class")
            };
            for range in found.ranges() {
                expected[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        for c in '\0'..=char::MAX {
            let text = c.to_string();
            let found = split(&text).class_at(0);
            assert_eq!(found, Some((expected[c as usize], c.len_utf8())), "{c:?}");
        }
    }
}
