//! Byte-level BPE for Llama 3: encode, decode, train, file formats and the chat format.
//!
//! A [`Tokenizer`] is a list of ranks (byte strings; the rank is the token id and the merge priority, as in `tiktoken`),
//! followed by the special tokens. Text is split into pieces by Llama 3's pattern ([`PATTERN`]), and each piece is merged
//! on its own. Every byte is a token, so every text can be encoded and `decode(encode(text)) == text`.
//!
//! Text never turns into a special token unless the caller asks for it: [`Tokenizer::encode`] treats `<|eot_id|>` as
//! ten ordinary characters, [`Tokenizer::encode_with_special`] and the chat functions do not.
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
//! let prompt = tokenizer.encode_dialog_prompt(&[Message::new(Role::User, "Hello")]);
//! assert_eq!(prompt[0], tokenizer.special().begin_of_text);
//! # Ok::<(), llamero_tokenizer::Error>(())
//! ```

mod bpe;
mod chat;
mod error;
mod format;
mod special;
mod split;
mod stream;
mod tokenizer;
mod train;
mod unicode_table;

pub use chat::{CHAT_TEMPLATE, MaskedDialog, Message, Role};
pub use error::Error;
pub use special::SpecialTokens;
pub use split::{GPT2_PATTERN, PATTERN, Pieces, Split, split};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
pub use train::{TrainReport, Trainer};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
