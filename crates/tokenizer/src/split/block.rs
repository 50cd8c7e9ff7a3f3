//! Where pieces begin in 64 bytes of a text: all places at once, with a bit for each byte.
//!
//! Whoever goes from character to character guesses wrongly at the end of nearly every piece, and so does the processor. Here
//! every rule is a few operations on whole words of bits, whatever the text is. A block begins where a piece begins, so nothing
//! before it matters. Where it matters what comes behind a block, nothing is said, and the next block begins with the last piece
//! again.

use super::class::{Class, Classes};
use super::{Split, contraction};
use wide::i8x16;

/// Bytes of a block.
pub(super) const BLOCK: usize = u64::BITS as usize;

/// What is known of each byte of a block.
struct Bits {
    letter: u64,
    number: u64,
    /// `\r` and `\n`.
    newline: u64,
    /// All other white space.
    space: u64,
    /// U+0020.
    blank: u64,
    apostrophe: u64,
    /// What is neither letter, number nor white space.
    symbol: u64,
    /// The first bytes of characters.
    lead: u64,
    /// The bytes that are told about, the first ones of the block.
    known: u64,
}

/// Which bytes of the block of `text` at `begin` begin a piece; the first one, which does in any case, is not among them. Where
/// there is none, the first piece is too long for a block, or ends in a way that only character after character tells.
#[inline]
pub(super) fn starts(text: &[u8], begin: usize, split: Split, classes: &Classes) -> u64 {
    let Some(block) = text[begin..].first_chunk() else { return 0 };
    let bits = Bits::new(block, text, begin, split, classes);
    let Bits { letter, number, newline, space, blank, symbol, lead, known, .. } = bits;
    let white = space | newline;
    let first = |class: u64| class & !(class << 1);
    // A blank takes the symbols behind it.
    let symbols = first(symbol) & !(blank << 1);
    let mut starts = symbols;
    // Of a run of white space, what follows may take the last character, which the rest leaves to it.
    let mut last;
    match split {
        Split::Llama3 => {
            // Letters take white space before them, or a single symbol that no blank has taken.
            let mut single = symbols;
            if lead != u64::MAX {
                for _ in 0..3 {
                    single |= (single << 1) & symbol & !lead;
                }
            }
            starts |= first(letter) & !((space | single) << 1);
            starts |= threes(number);
            // Symbols take newlines behind them.
            let taken = newline & !newline.wrapping_add(newline & (symbol << 1));
            starts |= first(white & !taken) | indents(space, newline);
            last = space & !(white >> 1);
        }
        Split::Gpt2 => {
            starts |= (first(letter) | first(number)) & !(blank << 1) | first(white);
            last = white & !(white >> 1);
        }
        Split::SmolLm => {
            starts |= first(letter) & !(blank << 1) | number & lead | first(white);
            last = white & !((white | number) >> 1);
        }
    }
    while last & !lead != 0 {
        last = last & lead | (last & !lead) >> 1;
    }
    starts |= last;

    let mut contractions = bits.apostrophe & symbols & (letter >> 1);
    while contractions != 0 {
        let at = contractions.trailing_zeros();
        contractions &= contractions - 1;
        let after = begin + at as usize + 1;
        if let Some(end) = contraction(text, after, split == Split::Llama3) {
            starts &= !(2 << at);
            starts |= 1u64.checked_shl((end - begin) as u32).unwrap_or(0);
        }
    }
    // How white space is split is seen at its end.
    let settled = u64::BITS - (white | !known).leading_ones();
    starts & known & !1 & (u64::MAX >> (u64::BITS - 1).saturating_sub(settled))
}

/// Where numbers begin that are at most three digits, of one byte each.
#[inline]
fn threes(number: u64) -> u64 {
    let mut found = number & !(number << 1);
    let inside = number & (number << 1) & (number << 2);
    let mut next = (found << 3) & inside;
    while next != 0 {
        found |= next;
        next = (next << 3) & inside;
    }
    found
}

/// Where white space begins behind the last newline of its run.
#[inline]
fn indents(space: u64, newline: u64) -> u64 {
    let mut found = space & (newline << 1);
    // Adding to the first bit of a run carries to the bit behind the run.
    let mut blank_lines = space.wrapping_add(found) & newline;
    while blank_lines != 0 {
        let end = blank_lines & blank_lines.wrapping_neg();
        blank_lines ^= end;
        let before = found & (end - 1);
        found ^= (1 << 63 >> before.leading_zeros()) & before;
    }
    found
}

impl Bits {
    #[inline]
    fn new(block: &[u8; BLOCK], text: &[u8], begin: usize, split: Split, classes: &Classes) -> Bits {
        let mut bits = Bits::ascii(block);
        let mut rest = !bits.known;
        bits.known = u64::MAX;
        while rest != 0 {
            let at = rest.trailing_zeros();
            let place = begin + at as usize;
            let Some((class, next)) = classes.at(text, place) else { break };
            let len = (next - place) as u32;
            // Three digits of several bytes are too rare for rules of their own.
            if at + len > u64::BITS || class == Class::Number && split == Split::Llama3 {
                bits.known = (1 << at) - 1;
                break;
            }
            let bytes = ((1 << len) - 1) << at;
            match class {
                Class::Letter => bits.letter |= bytes,
                Class::Number => bits.number |= bytes,
                Class::Newline => bits.newline |= bytes,
                Class::Space => bits.space |= bytes,
                Class::Other => {}
            }
            bits.lead &= !bytes | 1 << at;
            rest &= !bytes;
        }
        for class in [&mut bits.letter, &mut bits.number, &mut bits.newline, &mut bits.space] {
            *class &= bits.known;
        }
        bits.symbol = bits.known & !(bits.letter | bits.number | bits.newline | bits.space);
        bits
    }

    /// The bits of ASCII characters; only these are known.
    #[inline]
    fn ascii(block: &[u8; BLOCK]) -> Bits {
        let mut bits = Bits {
            letter: 0,
            number: 0,
            newline: 0,
            space: 0,
            blank: 0,
            apostrophe: 0,
            symbol: 0,
            lead: u64::MAX,
            known: 0,
        };
        for (i, bytes) in block.as_chunks::<16>().0.iter().enumerate() {
            let bytes = i8x16::new(bytes.map(|byte| byte as i8));
            // Bytes that are not ASCII are less than all others.
            let between = |bytes: i8x16, low: u8, high: u8| {
                bytes.simd_gt(i8x16::splat(low as i8 - 1)) & bytes.simd_lt(i8x16::splat(high as i8 + 1))
            };
            let is = |byte: u8| bytes.simd_eq(i8x16::splat(byte as i8));
            let at = |class: i8x16| u64::from(class.to_bitmask() as u16) << (16 * i);
            let (newline, blank) = (is(b'\n') | is(b'\r'), is(b' '));
            bits.letter |= at(between(bytes | i8x16::splat(0x20), b'a', b'z'));
            bits.number |= at(between(bytes, b'0', b'9'));
            bits.newline |= at(newline);
            bits.space |= at(blank | is(b'\t') | between(bytes, 0x0B, 0x0C));
            bits.blank |= at(blank);
            bits.apostrophe |= at(is(b'\''));
            bits.known |= !at(bytes) & 0xFFFF << (16 * i);
        }
        bits
    }
}
