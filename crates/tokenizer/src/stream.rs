//! Decoding one token at a time.

use crate::Tokenizer;

/// Turns ids into text as they come, holding back the bytes of a character until it is complete.
///
/// The pieces joined are what [`Tokenizer::decode`] gives for all ids at once.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    pending: Vec<u8>,
    skips_special: bool,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: &Tokenizer) -> StreamDecoder {
        StreamDecoder { tokenizer: tokenizer.clone(), pending: Vec::new(), skips_special: false }
    }

    /// The same, but special tokens give no text.
    #[must_use]
    pub fn without_special(self) -> StreamDecoder {
        StreamDecoder { skips_special: true, ..self }
    }

    /// The text that `id` completes; empty while a character is incomplete. A special token gives its name, unless they are
    /// left out. Bytes that are not UTF-8, and ids outside the vocabulary, give U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        if self.skips_special && self.tokenizer.special().contains(id) {
            return String::new();
        }
        // 0xFF never occurs in UTF-8.
        self.pending.extend_from_slice(self.tokenizer.token_bytes(id).unwrap_or(&[0xFF]));
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(len) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        text
    }

    /// The text of what is still held back, after which the decoder is at the start of a text again.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}
