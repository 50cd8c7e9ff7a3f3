//! Encoding text as it is read.

use crate::added::{Finder, Found};
use crate::{Error, Result, Tokenizer};
use rayon::prelude::*;
use std::io::{ErrorKind, Read};

/// How much text is handed out at a time, about, in bytes.
const STRETCH: usize = 1 << 20;

/// How much is read at a time.
const READ: usize = 1 << 16;

/// Text from a reader in stretches whose ids, one after the other, are those of the whole text; made by
/// [`Tokenizer::stretches`].
///
/// A stretch ends where a piece ends in any case ([`Split::safe_cut`](crate::Split::safe_cut)) and within no name of an
/// added token. It is about a mebibyte, and about two are held. Where a text has no such place, as in a single word, number
/// or run of white space of many mebibytes, all of that is held: its ids can depend on its last byte.
#[derive(Debug)]
pub struct Stretches<R> {
    tokenizer: Tokenizer,
    reader: R,
    special: bool,
    size: usize,
    /// What was read and not handed out.
    text: String,
    /// The bytes of a character that is not complete yet.
    partial: Vec<u8>,
    /// Bytes and newlines before `partial`.
    offset: u64,
    newlines: u64,
    ended: bool,
}

impl Tokenizer {
    /// The text of `reader` in stretches that can be encoded one by one.
    pub fn stretches<R: Read>(&self, reader: R) -> Stretches<R> {
        Stretches {
            tokenizer: self.clone(),
            reader,
            special: false,
            size: STRETCH,
            text: String::new(),
            partial: Vec::new(),
            offset: 0,
            newlines: 0,
            ended: false,
        }
    }

    /// Encodes the text of `reader` with all threads of the current `rayon` pool, and hands over the ids in order, with the
    /// bytes of text that they stand for: what [`Tokenizer::encode`] gives for the whole. See [`Stretches`] on memory.
    ///
    /// # Errors
    /// Those of [`Stretches::next`], and what `on` returns.
    pub fn encode_reader<E: From<Error>>(
        &self,
        reader: impl Read,
        on: impl FnMut(&[u32], usize) -> Result<(), E>,
    ) -> Result<(), E> {
        self.stretches(reader).encode(on)
    }
}

impl<R: Read> Stretches<R> {
    /// The name of a special token stands for that token: for trusted text only.
    #[must_use]
    pub fn with_special(self) -> Stretches<R> {
        Stretches { special: true, ..self }
    }

    /// The size of a stretch in bytes, about, instead of a mebibyte.
    #[must_use]
    pub fn with_size(self, size: usize) -> Stretches<R> {
        Stretches { size: size.max(1), ..self }
    }

    /// Encodes all stretches; see [`Tokenizer::encode_reader`].
    ///
    /// # Errors
    /// Those of [`Stretches::next`], and what `on` returns.
    pub fn encode<E: From<Error>>(self, mut on: impl FnMut(&[u32], usize) -> Result<(), E>) -> Result<(), E> {
        self.encode_texts(|ids, text| on(ids, text.len()))
    }

    /// [`Stretches::encode`] that hands over the texts, too.
    ///
    /// # Errors
    /// As there.
    pub fn encode_texts<E: From<Error>>(
        mut self,
        mut on: impl FnMut(&[u32], &str) -> Result<(), E>,
    ) -> Result<(), E> {
        let (tokenizer, special) = (self.tokenizer.clone(), self.special);
        let encode = |text: &String| {
            if special { tokenizer.encode_with_special(text) } else { tokenizer.encode(text) }
        };
        let threads = rayon::current_num_threads();
        let mut texts = Vec::with_capacity(threads);
        let mut failed = None;
        while failed.is_none() {
            texts.clear();
            for stretch in self.by_ref().take(threads) {
                match stretch {
                    Ok(text) => texts.push(text),
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            if texts.is_empty() {
                break;
            }
            let ids: Vec<Vec<u32>> = texts.par_iter().map(encode).collect();
            for (ids, text) in ids.iter().zip(&texts) {
                on(ids, text)?;
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Reads until `text` holds `wanted` bytes or the reader has ended.
    fn fill(&mut self, wanted: usize) -> Result<()> {
        let mut bytes = vec![0; READ];
        while self.text.len() < wanted && !self.ended {
            let read = match self.reader.read(&mut bytes) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Read { source }),
            };
            self.ended = read == 0;
            self.partial.extend_from_slice(&bytes[..read]);
            let (valid, bad) = match std::str::from_utf8(&self.partial) {
                Ok(text) => (text, false),
                Err(error) => {
                    let valid = self.partial.get(..error.valid_up_to()).unwrap_or_default();
                    (
                        std::str::from_utf8(valid).unwrap_or_default(),
                        error.error_len().is_some() || self.ended,
                    )
                }
            };
            self.offset += valid.len() as u64;
            self.newlines += valid.bytes().filter(|&byte| byte == b'\n').count() as u64;
            self.text.push_str(valid);
            let valid = valid.len();
            self.partial.drain(..valid);
            if bad {
                return Err(Error::NotUtf8 { offset: self.offset, line: self.newlines + 1 });
            }
        }
        Ok(())
    }

    /// Where what was read can be cut, whatever comes.
    fn cut(&self) -> Option<usize> {
        let (text, added) = (&self.text, self.tokenizer.added());
        let names = added.list().iter().filter(|token| self.special || !token.special);
        let longest = names.map(|token| token.content.len()).max().unwrap_or(0);
        // A name that begins before the cut must be seen whole, and so must one that overlaps with that.
        let seen = text.floor_char_boundary(text.len().checked_sub(2 * longest)?);
        let cut = self.tokenizer.split().safe_cut(&text[..seen])?;
        if longest == 0 {
            return Some(cut);
        }
        let finder = if self.special { added.all() } else { added.plain() };
        let names = Names { tokenizer: &self.tokenizer, finder };
        match names.around(text, cut) {
            None => Some(cut),
            Some((0, end)) => Some(end),
            Some((start, _)) => Some(start),
        }
    }
}

impl<R: Read> Iterator for Stretches<R> {
    type Item = Result<String>;

    /// The next stretch, which is not empty.
    ///
    /// # Errors
    /// When the reader fails, or when its bytes are not UTF-8, with their place; there is nothing after that.
    fn next(&mut self) -> Option<Result<String>> {
        let mut wanted = self.size;
        loop {
            if let Err(error) = self.fill(wanted) {
                self.text.clear();
                self.ended = true;
                return Some(Err(error));
            }
            if self.ended {
                let rest = std::mem::take(&mut self.text);
                return (!rest.is_empty()).then_some(Ok(rest));
            }
            if let Some(cut) = self.cut() {
                let rest = self.text.split_off(cut);
                return Some(Ok(std::mem::replace(&mut self.text, rest)));
            }
            // Twice as much, so that the search takes time in the length of the text.
            wanted = self.text.len() * 2;
        }
    }
}

/// The added tokens that a text spells.
struct Names<'a> {
    tokenizer: &'a Tokenizer,
    finder: &'a Finder,
}

impl Names<'_> {
    /// Where the name begins and ends that has `position` inside, if one has.
    fn around(&self, text: &str, position: usize) -> Option<(usize, usize)> {
        let (mut at, mut around) = (0, None);
        self.finder.split(text, &mut |found| {
            let len = match found {
                Found::Text(text) => text.len(),
                Found::Token(id) => self.tokenizer.token_bytes(id).map_or(0, <[u8]>::len),
            };
            if matches!(found, Found::Token(_)) && at < position && position < at + len {
                around = Some((at, at + len));
            }
            at += len;
        });
        around
    }
}
