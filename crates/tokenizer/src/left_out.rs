//! Bytes of texts that no token stands for.

use crate::Tokenizer;
use std::collections::BTreeSet;
use std::fmt;

/// Counts bytes that [`Tokenizer::encode`] left out of texts, because the vocabulary has no token for them.
#[derive(Clone, Debug)]
pub struct LeftOut {
    tokenizer: Tokenizer,
    /// Whether the vocabulary lacks any.
    lacks: bool,
    count: u64,
    bytes: BTreeSet<u8>,
}

impl LeftOut {
    /// Nothing yet, of texts that `tokenizer` encodes.
    pub fn new(tokenizer: &Tokenizer) -> LeftOut {
        let lacks = !tokenizer.missing_bytes().is_empty();
        LeftOut { tokenizer: tokenizer.clone(), lacks, count: 0, bytes: BTreeSet::new() }
    }

    /// Counts what `ids`, those of `text`, do not stand for.
    pub fn add(&mut self, text: &str, ids: &[u32]) {
        if !self.lacks {
            return;
        }
        let tokens = ids.iter().filter_map(|&id| self.tokenizer.token_bytes(id));
        let mut kept = tokens.flatten().copied().peekable();
        for byte in text.bytes() {
            // What is kept is in its order. Of equal bytes it does not matter which is left out.
            if kept.next_if_eq(&byte).is_none() {
                self.count += 1;
                self.bytes.insert(byte);
            }
        }
    }

    /// Counts what encoding `text` leaves out. Where the vocabulary has all bytes, nothing is encoded.
    pub fn add_text(&mut self, text: &str) {
        if self.lacks {
            self.add(text, &self.tokenizer.encode(text));
        }
    }

    /// How many bytes were left out.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Which these were, in order.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.bytes.iter().copied()
    }
}

/// What was left out, as a sentence.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<String> = self.bytes().map(|byte| format!("0x{byte:02x}")).collect();
        let (count, bytes) = (self.count, bytes.join(", "));
        match count {
            1 => write!(f, "1 byte that the tokenizer has no token for was left out ({bytes})"),
            _ => write!(f, "{count} bytes that the tokenizer has no token for were left out ({bytes})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GgufVocabulary;
    use proptest::prelude::*;

    /// Has `a`, `b` and `é`, and the word `x é` with a letter that it lacks otherwise.
    fn small() -> Tokenizer {
        let tokens = ["<|endoftext|>", "a", "b", "Ã", "©", "Ã©", "x é"].map(String::from).to_vec();
        Tokenizer::from_gguf(GgufVocabulary {
            model: "gpt2".into(),
            pre: "gpt-2".into(),
            token_types: vec![3, 1, 1, 1, 1, 1, 4],
            tokens,
            merges: vec!["Ã ©".into()],
            ..GgufVocabulary::default()
        })
        .unwrap()
    }

    #[test]
    fn what_is_left_out_is_counted_and_named() {
        let mut left = LeftOut::new(&small());
        left.add_text("ab é");
        assert_eq!((left.count(), left.bytes().collect::<Vec<_>>()), (1, vec![b' ']));
        assert_eq!(left.to_string(), "1 byte that the tokenizer has no token for was left out (0x20)");
        left.add_text("x éx\u{e8}");
        assert_eq!(
            left.to_string(),
            "3 bytes that the tokenizer has no token for were left out (0x20, 0x78, 0xa8)"
        );
        let ranks = Tokenizer::from_ranks((0..=255).map(|byte| vec![byte]).collect()).unwrap();
        let mut left = LeftOut::new(&ranks);
        left.add_text("any text");
        assert_eq!(left.count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_kept_and_what_is_left_out_are_the_text(text in "[abx é]{0,30}") {
            let tokenizer = small();
            let mut left = LeftOut::new(&tokenizer);
            left.add_text(&text);
            let kept = tokenizer.decode_bytes(&tokenizer.encode(&text)).unwrap();
            prop_assert_eq!(kept.len() as u64 + left.count(), text.len() as u64);
            prop_assert!(left.bytes().all(|byte| b" x".contains(&byte)));
        }
    }
}
