//! Text that is read in parts has the ids of the whole.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use llamero_tokenizer::{Error, GgufVocabulary, Tokenizer, Trainer};
use proptest::prelude::*;
use std::io::Read;
use std::sync::LazyLock;

/// Gives at most as many bytes at a time as the list says, over and over.
struct Sips<'a>(&'a [u8], Vec<usize>, usize);

impl Read for Sips<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.2 += 1;
        let sip = self.1[self.2 % self.1.len()].min(self.0.len()).min(buffer.len());
        let (now, later) = self.0.split_at(sip);
        buffer[..sip].copy_from_slice(now);
        self.0 = later;
        Ok(sip)
    }
}

fn trained() -> Tokenizer {
    let text = "the thin thing in there, it's 1999\n\n  it isn't <|eot_id|>";
    Trainer { vocab_size: 600, min_frequency: 1, threads: None }
        .train([text].iter(), &mut |_, _| ())
        .unwrap()
        .0
}

/// Llama 3's split without added words, and the three splits with words of many shapes: plain and special ones, names within
/// names, and names that hold what texts are cut at.
static ALL: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let words: [(&str, i32); 8] =
        [(" b\n", 4), ("a b", 4), ("b", 4), ("<x>", 3), ("<x><x>a ", 3), ("\n\n ", 4), ("9.9", 4), ("é ", 3)];
    let with_words = |pre: &str| {
        let vocabulary = trained().to_gguf().unwrap();
        let mut vocabulary = GgufVocabulary { pre: pre.into(), ..vocabulary };
        for (word, kind) in words {
            // The vocabulary has the letter itself.
            if word.len() > 1 {
                vocabulary.tokens.push(word.into());
                vocabulary.token_types.push(kind);
            }
        }
        Tokenizer::from_gguf(vocabulary).unwrap()
    };
    [vec![trained()], ["llama-bpe", "gpt-2", "smollm"].map(with_words).into()].concat()
});

#[rustfmt::skip]
const PARTS: &[&str] = &[
    " ", " ", "\n", "\n", "\r\n", "a", "b", "s", "'", "'s", "the", " b\n", "a b", "<x>", "<x", ">", "<x><x>a ", "\n\n ", "9", ".",
    "9.9", "é", "é ", "字", "🦙", "!", "<|eot_id|>", "<|eot", "_id|>", "\u{301}", "\t", "\u{a0}",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn ids_are_those_of_the_whole_text(
        parts in proptest::collection::vec(proptest::sample::select(PARTS), 0..60),
        sips in proptest::collection::vec(1..20_usize, 1..5),
        size in 1..40_usize,
    ) {
        let text = parts.concat();
        for tokenizer in &*ALL {
            for special in [false, true] {
                let reader = Sips(text.as_bytes(), sips.clone(), 0);
                let stretches = tokenizer.stretches(reader).with_size(size);
                let stretches = if special { stretches.with_special() } else { stretches };
                let (mut ids, mut bytes) = (Vec::new(), 0);
                stretches
                    .encode(&mut |some, len| {
                        ids.extend_from_slice(some);
                        bytes += len;
                        Ok::<_, Error>(())
                    })
                    .unwrap();
                let whole = if special { tokenizer.encode_with_special(&text) } else { tokenizer.encode(&text) };
                prop_assert_eq!(&ids, &whole, "{:?} {:?}", tokenizer.split(), text);
                prop_assert_eq!(bytes, text.len());
            }
        }
    }

    #[test]
    fn the_first_invalid_byte_is_named(bytes in proptest::collection::vec(any::<u8>(), 0..60), sip in 1..9_usize) {
        let mut text = String::new();
        let stretches = ALL[0].stretches(Sips(&bytes, vec![sip], 0)).with_size(4);
        let mut failed = None;
        for stretch in stretches {
            match stretch {
                Ok(stretch) => text += &stretch,
                Err(error) => failed = Some(error),
            }
        }
        match std::str::from_utf8(&bytes) {
            Ok(whole) => prop_assert!(failed.is_none() && text == whole),
            Err(error) => {
                let valid = &bytes[..error.valid_up_to()];
                let newlines = valid.iter().filter(|&&byte| byte == b'\n').count() as u64;
                prop_assert!(valid.starts_with(text.as_bytes()));
                let Some(Error::NotUtf8 { offset, line }) = failed else { panic!("{failed:?}") };
                prop_assert_eq!((offset, line), (valid.len() as u64, newlines + 1));
            }
        }
    }
}

#[test]
fn stretches_are_short_where_the_text_lets_them() {
    let text = "some words, and more.\n".repeat(100_000);
    let stretches: Vec<String> = ALL[1].stretches(text.as_bytes()).map(Result::unwrap).collect();
    assert_eq!(stretches.len(), text.len().div_ceil(1 << 20));
    assert!(stretches.iter().all(|stretch| stretch.len() < (1 << 20) + (1 << 17)));
    assert!(stretches.concat() == text);
    // A word of five of them is one.
    let word = "a".repeat(5 << 20) + " b";
    let stretches: Vec<String> = ALL[0].stretches(word.as_bytes()).map(Result::unwrap).collect();
    assert!(stretches[0].len() >= 5 << 20 && stretches.concat() == word);
}

#[test]
fn a_reader_that_fails_is_told() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("unplugged"))
        }
    }
    let mut seen = 0;
    let error = ALL[0].encode_reader("some words".as_bytes().chain(Broken), &mut |_, len| {
        seen += len;
        Ok::<_, Error>(())
    });
    assert_eq!((error.unwrap_err().to_string().as_str(), seen), ("cannot read the text: unplugged", 0));
}

#[test]
fn special_tokens_are_left_out_of_decoded_text_by_choice() {
    let tokenizer = trained();
    let ids = tokenizer.encode_with_special("it<|eot_id|> é<|begin_of_text|>");
    let decode = |mut decoder: llamero_tokenizer::StreamDecoder| {
        ids.iter().map(|&id| decoder.push(id)).collect::<String>() + &decoder.finish()
    };
    let decoder = || llamero_tokenizer::StreamDecoder::new(&tokenizer);
    assert_eq!(decode(decoder()), "it<|eot_id|> é<|begin_of_text|>");
    assert_eq!(decode(decoder().without_special()), "it é");
}
