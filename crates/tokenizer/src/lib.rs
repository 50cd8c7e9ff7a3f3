//! Byte-level BPE for Llama models: encode, decode, train, file formats and chat formats.
//!
//! A [`Tokenizer`] splits text into pieces ([`Split`]: Llama 3's pattern, [`PATTERN`], or another that a file asks for), and
//! merges each piece on its own. Those of Llama 3's way, which [`Trainer`] makes, are a list of ranks (byte strings; the
//! rank is the token id and the merge priority, as in `tiktoken`), followed by the special tokens; every byte is a token,
//! so every text can be encoded and `decode(encode(text)) == text`. Others come from `tokenizer.json` or GGUF files, with a
//! list of merges and ids of any order. Where such a vocabulary lacks a byte, it is left out, as by the libraries that
//! these files are from.
//!
//! Text never turns into a special token unless the caller asks for it: [`Tokenizer::encode`] treats `<|eot_id|>` as
//! ten ordinary characters, [`Tokenizer::encode_with_special`] and the chat functions do not; contents of messages never do.
//!
//! ```
//! use llamero_tokenizer::{Message, Role, Trainer};
//!
//! let docs = ["low lower lowest", "new newer newest"];
//! let (tokenizer, report) = Trainer::new(256 + 256 + 6).train(docs.iter(), &mut |_, _| ())?;
//! assert_eq!(report.vocab_size, tokenizer.vocab_size());
//!
//! let ids = tokenizer.encode("lower");
//! assert_eq!(tokenizer.decode(&ids)?, "lower");
//!
//! let prompt = tokenizer.encode_dialog_prompt(&[Message::new(Role::User, "Hello")])?;
//! assert_eq!(Some(prompt[0]), tokenizer.special().begin_of_text);
//! # Ok::<(), llamero_tokenizer::Error>(())
//! ```

mod added;
mod bpe;
mod chat;
mod error;
mod format;
mod left_out;
mod special;
mod split;
mod stream;
mod stretches;
mod template;
mod tokenizer;
mod tokens;
mod train;

pub use chat::{CHAT_TEMPLATE, MaskedDialog, Message, Role};
pub use error::Error;
pub use format::GgufVocabulary;
pub use left_out::LeftOut;
pub use special::{Release, SpecialTokens};
pub use split::{GPT2_PATTERN, PATTERN, Pieces, Split, split};
pub use stream::StreamDecoder;
pub use stretches::Stretches;
pub use template::{ChatOptions, Date};
pub use tokenizer::Tokenizer;
pub use train::{Fit, Sample, Survey, TrainReport, Trainer};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
