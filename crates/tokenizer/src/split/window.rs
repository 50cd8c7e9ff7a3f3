//! A stretch of a text as bits: for each class, which bytes belong to characters of it.
//!
//! With them the end of a run of letters is found by counting ones instead of looking at byte after byte, whose varying
//! number no processor predicts.

use super::class::{CLASSES, Class, Classes};
use wide::i8x16;

/// Bits that are handled at once.
const BITS: usize = u64::BITS as usize;

/// Words of bits that a window has.
const WORDS: usize = 32;

/// The bits of the bytes of a text from `begin` to `end`, which is between two characters.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    begin: usize,
    end: usize,
    /// One word more than is filled, so that 64 bits from any place on can be read.
    bits: [[u64; WORDS + 1]; CLASSES],
}

impl Window {
    /// A window onto nothing, before the text.
    pub(crate) fn empty() -> Window {
        Window { begin: 0, end: 0, bits: [[0; WORDS + 1]; CLASSES] }
    }

    /// Where the window ends.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// Whether the byte at `at`, at or behind the window's beginning, is known to belong to a character of `class`.
    #[inline]
    pub(crate) fn has(&self, class: Class, at: usize) -> bool {
        let at = at - self.begin;
        at < WORDS * BITS && self.bits[class as usize][at / BITS] >> (at % BITS) & 1 == 1
    }

    /// Where the run of bytes of `class` ends that begins at `at`; the window's end where it goes on up to there.
    #[inline]
    pub(crate) fn run_end(&self, class: Class, at: usize) -> usize {
        let mut at = at - self.begin;
        while at < WORDS * BITS {
            let ones = read(&self.bits[class as usize], at).trailing_ones() as usize;
            at += ones;
            if ones < BITS {
                break;
            }
        }
        self.begin + at
    }

    /// The 64 bits from `at` on of the bytes of `class`; zero behind the window.
    #[inline]
    pub(crate) fn bits(&self, class: Class, at: usize) -> u64 {
        let at = at - self.begin;
        if at < WORDS * BITS { read(&self.bits[class as usize], at) } else { 0 }
    }

    /// Moves the window to `begin`, between two characters of `text`.
    pub(crate) fn fill(&mut self, text: &[u8], begin: usize, classes: &Classes) {
        self.begin = begin;
        self.bits = [[0; WORDS + 1]; CLASSES];
        let mut at = begin;
        // A block that is not ASCII ends with a whole character, up to three bytes later.
        while at < text.len() && at - begin <= (WORDS - 1) * BITS - 3 {
            let place = at - begin;
            let block = text[at..].first_chunk::<BITS>();
            let (len, found) = match block.and_then(ascii) {
                Some(found) => (BITS, found),
                None => any(&text[at..], classes),
            };
            for (bits, found) in self.bits.iter_mut().zip(found) {
                bits[place / BITS] |= found << (place % BITS);
                bits[place / BITS + 1] |= (found >> 1) >> (BITS - 1 - place % BITS);
            }
            at += len;
        }
        self.end = at;
    }
}

/// 64 bits from `at` on, which is less than the bits that are filled.
#[inline]
fn read(bits: &[u64; WORDS + 1], at: usize) -> u64 {
    let (word, shift) = (at / BITS, at % BITS);
    bits[word] >> shift | (bits[word + 1] << 1) << (BITS - 1 - shift)
}

/// The bits of each class, where all bytes are ASCII.
#[inline]
fn ascii(block: &[u8; BITS]) -> Option<[u64; CLASSES]> {
    let mut found = [0u64; CLASSES];
    let mut high = 0u32;
    for (i, bytes) in block.as_chunks::<16>().0.iter().enumerate() {
        let bytes = i8x16::new(bytes.map(|byte| byte as i8));
        let between = |bytes: i8x16, low: i8, high: i8| {
            bytes.simd_gt(i8x16::splat(low - 1)) & bytes.simd_lt(i8x16::splat(high + 1))
        };
        let is = |byte: u8| bytes.simd_eq(i8x16::splat(byte as i8));
        high |= bytes.to_bitmask();
        let letter = between(bytes | i8x16::splat(0x20), b'a' as i8, b'z' as i8);
        let number = between(bytes, b'0' as i8, b'9' as i8);
        let newline = is(b'\n') | is(b'\r');
        let space = is(b' ') | is(b'\t') | between(bytes, 0x0B, 0x0C);
        for (bits, class) in found.iter_mut().zip([letter, number, newline, space]) {
            *bits |= u64::from(class.to_bitmask()) << (16 * i);
        }
    }
    if high != 0 {
        return None;
    }
    found[Class::Other as usize] = !found[..Class::Other as usize].iter().fold(0, |all, bits| all | bits);
    Some(found)
}

/// The bits of each class of the characters that `text` begins with, of at most 64 bytes, and how many bytes these are.
fn any(text: &[u8], classes: &Classes) -> (usize, [u64; CLASSES]) {
    // The class of each byte. Each character is written as four bytes, of which the next ones take what is too much.
    let mut class_of = [CLASSES as i8; BITS + 4];
    let mut len = 0;
    while let Some((class, next)) = classes.at(text, len)
        && next <= BITS
    {
        class_of[len..][..4].fill(class as i8);
        len = next;
    }
    class_of[len..].fill(CLASSES as i8);
    let mut found = [0; CLASSES];
    for (i, bytes) in class_of.as_chunks::<16>().0.iter().enumerate() {
        for (class, bits) in (0i8..).zip(&mut found) {
            *bits |= u64::from(i8x16::new(*bytes).simd_eq(i8x16::splat(class)).to_bitmask()) << (16 * i);
        }
    }
    (len, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn bits_say_what_the_table_says(
            text in r"([ -~]{0,90}|[a-z \n]{50,90}|\PC{0,20}|[0-9\s]{0,5}){0,40}",
            begin in 0usize..3_000,
        ) {
            let begin = (0..=begin.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap();
            let mut window = Window::empty();
            window.fill(text.as_bytes(), begin, Classes::get());
            let length = text.len() - begin;
            prop_assert!(window.end() == text.len() || (1_982..=2_048).contains(&(window.end() - begin)));
            prop_assert!(text.is_char_boundary(window.end()), "{length}");
            let mut at = begin;
            while at < window.end() {
                let (class, next) = Classes::get().at(text.as_bytes(), at).unwrap();
                for byte in at..next {
                    for (other, bits) in [Class::Letter, Class::Number, Class::Newline, Class::Space, Class::Other]
                        .map(|other| (other, window.bits(other, byte)))
                    {
                        prop_assert_eq!(window.has(other, byte), other == class);
                        prop_assert_eq!(bits & 1 == 1, other == class);
                        let end = window.run_end(other, byte);
                        prop_assert!((byte..end).all(|byte| window.has(other, byte)));
                        prop_assert!(end >= window.end() || !window.has(other, end));
                    }
                }
                at = next;
            }
        }
    }
}
