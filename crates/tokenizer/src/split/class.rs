//! The class of every character.

use super::unicode_table::{LETTERS, NUMBERS, WHITE_SPACE};
use std::sync::LazyLock;

/// What the patterns tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
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
pub(crate) struct Classes {
    ascii: [Class; 128],
    page_of: Vec<u16>,
    pages: Vec<[Class; PAGE]>,
}

static ALL: LazyLock<Classes> = LazyLock::new(Classes::new);

impl Classes {
    /// The only ones.
    pub(crate) fn get() -> &'static Classes {
        &ALL
    }

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

    /// The class of the character that begins at `at` in `text`, which is UTF-8, and where the next one begins; nothing at
    /// the end of the text.
    #[inline]
    pub(crate) fn at(&self, text: &[u8], at: usize) -> Option<(Class, usize)> {
        let lead = *text.get(at)?;
        if lead < 0x80 {
            return Some((self.ascii[usize::from(lead)], at + 1));
        }
        // The text is valid UTF-8, so the continuation bytes are there.
        let tail = |i: usize| u32::from(text[at + i] & 0x3F);
        let (code, len) = match lead {
            ..0xE0 => (u32::from(lead & 0x1F) << 6 | tail(1), 2),
            0xE0..0xF0 => (u32::from(lead & 0x0F) << 12 | tail(1) << 6 | tail(2), 3),
            0xF0.. => (u32::from(lead & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
        };
        Some((self.of(code), at + len))
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
            let found = Classes::get().at(text.as_bytes(), 0);
            assert_eq!(found, Some((expected[c as usize], c.len_utf8())), "{c:?}");
        }
    }
}
