//! What can go wrong.

use std::path::PathBuf;

/// An error of this crate. Each names the file, line, key or value it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was attempted, such as "read".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason the system gave.
        source: std::io::Error,
    },
    /// A folder holds no tokenizer.
    #[error("`{path}` holds neither `tokenizer.model` nor `tokenizer.json`")]
    NotFound {
        /// The folder.
        path: PathBuf,
    },
    /// A line of a `tokenizer.model` file is wrong.
    #[error("{path}:{line}: {problem}")]
    ModelLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file is not the JSON that is expected.
    #[error("cannot parse `{path}`: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and column.
        source: serde_json::Error,
    },
    /// A `tokenizer.json` describes something that would not mean here what it means there.
    #[error("`{path}`: key `{key}`: {problem}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key inside the file.
        key: String,
        /// What was found and what is supported.
        problem: String,
    },
    /// The vocabulary in a GGUF file describes something that would not mean here what it means there.
    #[error("key `{key}`: {problem}")]
    Gguf {
        /// The key of the file's metadata.
        key: &'static str,
        /// What was found and what is supported.
        problem: String,
    },
    /// A tokenizer cannot be written as `tokenizer.model`.
    #[error(
        "cannot write `{path}`: the ids of this tokenizer are not ranks in Llama 3's way. hint: write a `tokenizer.json`"
    )]
    NoRanks {
        /// The file.
        path: PathBuf,
    },
    /// There is no chat format.
    #[error(
        "the tokenizer has no chat template, and not the special tokens of Llama 3's. hint: models that chat bring a \
         `chat_template`; continue a text instead"
    )]
    NoChatFormat,
    /// A chat template cannot be read or refuses a dialog.
    #[error("chat template: {problem}")]
    Template {
        /// The reason, with the line of the template where there is one.
        problem: String,
    },
    /// The tokens cannot make a tokenizer.
    #[error("bad vocabulary: {problem}")]
    Vocabulary {
        /// What is wrong, naming the rank, byte or token.
        problem: String,
    },
    /// A file's tokens cannot make a tokenizer.
    #[error("`{path}`: {source}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its contents.
        source: Box<Error>,
    },
    /// A text could not be read on.
    #[error("cannot read the text: {source}")]
    Read {
        /// The reason the system gave.
        source: std::io::Error,
    },
    /// A text is not UTF-8.
    #[error(
        "the text is not UTF-8: an invalid byte at offset {offset}, in line {line}. hint: give plain text, or convert it to UTF-8"
    )]
    NotUtf8 {
        /// Bytes before the invalid one.
        offset: u64,
        /// Its line, counted from 1.
        line: u64,
    },
    /// An id is not in the vocabulary.
    #[error(
        "token id `{id}` is not below the vocabulary size `{vocab_size}`: are the ids of another tokenizer?"
    )]
    UnknownId {
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// The wanted vocabulary is too small or too large to train.
    #[error(
        "vocabulary size `{wanted}` is out of range: it must hold 256 bytes and 256 special tokens, so at least \
         `512`, and at most `{max}`"
    )]
    VocabSize {
        /// The wanted size.
        wanted: usize,
        /// The largest size that is possible.
        max: usize,
    },
    /// The threads to train with could not be started.
    #[error("cannot start `{threads}` threads: {reason}")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// The reason.
        reason: String,
    },
    /// Training does not fit into the memory that it may take.
    #[error(
        "{what} take {} MiB of memory or more, and training may take {} beside what reading takes. hint: raise the cap (`--memory`), \
         leave out rare words (`--min-word-count 2`), or give less text",
        needed.div_ceil(1 << 20),
        cap >> 20
    )]
    Memory {
        /// What needs the memory.
        what: &'static str,
        /// How many bytes it needs, at least.
        needed: u64,
        /// How many bytes training may take.
        cap: u64,
    },
    /// The distinct words are more than places in them can be numbered.
    #[error(
        "the distinct words take {cells} cells, and there can be 4294967294. hint: leave out rare words (`--min-word-count \
         2`), or give less text"
    )]
    TooManyWords {
        /// Bytes of the distinct words, and one more for each.
        cells: usize,
    },
    /// The wanted vocabulary is not larger than the one that is to be extended, or too large.
    #[error(
        "vocabulary size `{wanted}` is out of range: the base has `{base}` ids with the special tokens, and there can be \
         `{max}`. hint: name the size of the extended vocabulary, not the number of new tokens"
    )]
    ExtendedSize {
        /// The wanted size.
        wanted: usize,
        /// The size of the base.
        base: usize,
        /// The largest size that is possible.
        max: usize,
    },
    /// A tokenizer that training cannot extend.
    #[error(
        "this tokenizer cannot be extended: only those in Llama 3's way can, whose ids are ranks and end with Llama 3's \
         256 special tokens. hint: give a `tokenizer.model`"
    )]
    NotExtensible,
}
