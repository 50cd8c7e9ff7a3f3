//! Splits text into the pieces that BPE merges within, as the regular expression of a tokenizer does.
//!
//! The patterns need a look-ahead, and Llama 3's case folding; these splitters are written by hand so that they are linear
//! in the text and need no regex engine. The alternatives are tried in the pattern's order, each at the position where
//! the last piece ended; together they cover every character.

mod block;
mod class;
mod cut;
#[cfg(test)]
mod tests;
mod unicode_table;

use class::{Class, Classes};

/// Llama 3's split pattern, verbatim.
pub const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GPT-2's split pattern, verbatim.
pub const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// How a tokenizer splits text into pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Split {
    /// All matches of [`PATTERN`].
    ///
    /// Unlike Meta's wrapper, this does not cut texts every 400,000 characters first, nor runs of more than 25,000 characters
    /// that are all or none white space: these guards protect an engine that is quadratic in such runs and fails on long
    /// texts, and this one does not. So ids differ from the wrapper's around such cuts, and are those of the pattern.
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
        Pieces { text, position: 0, split: self, classes: Classes::get(), block: 0, starts: 0 }
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
    /// Where the block begins in which pieces were looked for last.
    block: usize,
    /// A bit for each of its bytes behind `position` where a piece begins.
    starts: u64,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        let piece = self.next_range()?;
        Some(&self.text[piece])
    }
}

impl Pieces<'_> {
    /// Where the next piece is.
    #[inline]
    pub(crate) fn next_range(&mut self) -> Option<std::ops::Range<usize>> {
        let start = self.position;
        if self.starts == 0 {
            if start >= self.text.len() {
                return None;
            }
            self.look_ahead();
        }
        self.position = if self.starts == 0 {
            self.rule_end(start)
        } else {
            let next = self.block + self.starts.trailing_zeros() as usize;
            self.starts &= self.starts - 1;
            next
        };
        Some(start..self.position)
    }

    #[inline(never)]
    fn look_ahead(&mut self) {
        self.block = self.position;
        self.starts = block::starts(self.text.as_bytes(), self.block, self.split, self.classes);
    }

    /// Where the piece ends that begins at `start`.
    fn rule_end(&self, start: usize) -> usize {
        let Some((class, next)) = self.class_at(start) else { return start };
        match self.split {
            Split::Llama3 => self.llama3(start, class, next),
            Split::SmolLm if class == Class::Number => next,
            Split::Gpt2 | Split::SmolLm => self.gpt2(start, class, next),
        }
    }
}

/// Where a piece ends that begins at `start` with a character of `class`, which ends at `next`.
impl Pieces<'_> {
    /// By [`PATTERN`].
    fn llama3(&self, start: usize, class: Class, next: usize) -> usize {
        match class {
            Class::Letter => self.run_end(next, Class::Letter),
            Class::Number => self.number(next),
            Class::Newline => self.white_space(start),
            Class::Space | Class::Other => self.after_prefix(start, class, next),
        }
    }

    /// By [`GPT2_PATTERN`]; where numbers are split off, a number is the end of the text.
    fn gpt2(&self, start: usize, class: Class, next: usize) -> usize {
        let first = self.text.as_bytes()[start];
        if first == b'\''
            && let Some(end) = contraction(self.text.as_bytes(), next, false)
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
        let run = self.white_space_run(start);
        match self.class_in_stretch(run.end) {
            Some(_) if run.last > start => run.last,
            _ => run.end,
        }
    }

    /// [`Pieces::class_at`] within the stretch that the pattern sees.
    fn class_in_stretch(&self, at: usize) -> Option<(Class, usize)> {
        self.class_at(at).filter(|&(class, _)| self.split != Split::SmolLm || class != Class::Number)
    }
}

/// A run of white space.
struct WhiteSpace {
    end: usize,
    /// Where its last character begins.
    last: usize,
    /// Where its last newline ends.
    after_newline: Option<usize>,
}

impl Pieces<'_> {
    /// The class of the character at `at` and where the next one begins; nothing at the end of the text.
    #[inline]
    fn class_at(&self, at: usize) -> Option<(Class, usize)> {
        self.classes.at(self.text.as_bytes(), at)
    }

    /// The end of the run of `wanted` characters that begins at `at`.
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
            && let Some(end) = contraction(self.text.as_bytes(), next, true)
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

    /// `[^\s\p{L}\p{N}]+[\r\n]*` after its first character, which ends at `at`.
    fn symbols(&self, at: usize) -> usize {
        let end = self.run_end(at, Class::Other);
        self.run_end(end, Class::Newline)
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+` at `start`, where there is white space: up to the last newline of the run if it has
    /// one; otherwise all of the run but its last character, which is left as prefix of what follows; otherwise all.
    fn white_space(&self, start: usize) -> usize {
        let run = self.white_space_run(start);
        match run.after_newline {
            Some(end) => end,
            None if run.end == self.text.len() || run.last == start => run.end,
            None => run.last,
        }
    }

    /// The run of white space that begins at `start`.
    fn white_space_run(&self, start: usize) -> WhiteSpace {
        let mut run = WhiteSpace { end: start, last: start, after_newline: None };
        while let Some((class @ (Class::Space | Class::Newline), next)) = self.class_at(run.end) {
            if class == Class::Newline {
                run.after_newline = Some(next);
            }
            (run.last, run.end) = (run.end, next);
        }
        run
    }
}

/// Where `s|t|re|ve|m|ll|d` ends at `at`, in any case if `fold`. Case folding makes U+017F, the long s, equal to s; the other
/// letters have no such relatives.
fn contraction(text: &[u8], at: usize, fold: bool) -> Option<usize> {
    let letter = |i: usize| text.get(at + i).map(|b| if fold { b.to_ascii_lowercase() } else { *b });
    match (letter(0)?, letter(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 2),
        (0xC5, Some(0xBF)) if fold => Some(at + 2),
        _ => None,
    }
}
