//! What can go wrong, said with the path, key or numbers it is about.

use std::path::PathBuf;

use llamero_artifact::ArtifactError;
use llamero_comm::CommError;
use llamero_model::WeightError;

/// The crate's result.
pub type Result<T, E = InferError> = std::result::Result<T, E>;

/// Every way in which opening or using a model fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// There is nothing at the path that could be opened as a model.
    #[error("no model at `{}`: {found}. hint: {hint}", path.display())]
    NotAModel {
        /// The path that was asked for.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What to do.
        hint: String,
    },
    /// A run folder holds a stage that was made from an earlier version of the stage before it.
    #[error(
        "run folder `{}`: stage `{stage}` was not made from the `{before}` that is there now. \
         hint: run the recipe again, or name the folder of the stage you want", path.display()
    )]
    Stale {
        /// The run folder.
        path: PathBuf,
        /// The later stage.
        stage: String,
        /// The stage it should have been made from.
        before: String,
    },
    /// The artifact is unfinished or damaged.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The model's files are not as they should be.
    #[error(transparent)]
    Model(#[from] WeightError),
    /// The tokenizer cannot be loaded or used.
    #[error(transparent)]
    Tokenizer(#[from] llamero_tokenizer::Error),
    /// The tokenizer belongs to another model.
    #[error(
        "the model has a vocabulary of {model} tokens, but its tokenizer one of {tokenizer}. \
         hint: put the tokenizer the model was trained with into its folder"
    )]
    Vocabulary {
        /// `vocab_size` of the model.
        model: usize,
        /// Number of ids of the tokenizer.
        tokenizer: usize,
    },
    /// A token id that the tokenizer does not have.
    #[error("token id `{id}` is not below the vocabulary size `{vocab}`")]
    UnknownToken {
        /// The id.
        id: u32,
        /// The vocabulary size.
        vocab: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty. hint: give it at least one token")]
    EmptyPrompt,
    /// There is nothing to score.
    #[error("there is nothing to score: {found}")]
    NothingToScore {
        /// What was given.
        found: String,
    },
    /// The tokens leave no room in the context. Nothing is ever cut off to make them fit.
    #[error(
        "{what} of {tokens} tokens does not fit the model's context: at most {room} of its {context} are free for it"
    )]
    TooLong {
        /// What does not fit.
        what: &'static str,
        /// Its length in tokens.
        tokens: usize,
        /// The longest that would fit.
        room: usize,
        /// The context in tokens.
        context: usize,
    },
    /// Keys and values of the tokens would need more memory than there is for all requests.
    #[error(
        "keys and values of {tokens} tokens take {needed} bytes, but there are {limit} for all requests. hint: a smaller \
         `max_tokens`, 8-bit keys and values, or a larger limit"
    )]
    Memory {
        /// Tokens of the request, as many as it may generate included.
        tokens: usize,
        /// Bytes that they need.
        needed: u64,
        /// Bytes that there are.
        limit: u64,
    },
    /// The draft model's ids mean something else than the model's.
    #[error(
        "the draft model has another tokenizer than the model ({draft} tokens for {model}). hint: both must come from the same family"
    )]
    Draft {
        /// Vocabulary of the model.
        model: usize,
        /// Vocabulary of the draft model.
        draft: usize,
    },
    /// The engine was stopped, or failed, before there was an answer.
    #[error("the engine stopped before there was an answer")]
    Stopped,
    /// The thread of a service could not be started.
    #[error("no thread for the engine: {0}")]
    Thread(std::io::Error),
    /// A sampling parameter is outside what it may be.
    #[error("sampling parameter `{key}` is `{found}`, allowed is {allowed}")]
    Parameter {
        /// Field of [`crate::SamplingParams`].
        key: &'static str,
        /// Its value.
        found: String,
        /// The values allowed, in words.
        allowed: &'static str,
    },
    /// The model computed something that is no number: its weights are damaged, or too large for the dtype.
    #[error(
        "the model computed `{value}` for token id `{id}` at position {position}. hint: its weights may be damaged; try dtype `f32`"
    )]
    NonFinite {
        /// The value.
        value: f32,
        /// The token it was computed for.
        id: u32,
        /// Position of that token in the sequence.
        position: usize,
    },
    /// A collective failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A [`crate::testing::ScriptedLm`] was asked something that is not in its script.
    #[cfg(any(test, feature = "testing"))]
    #[error("the script has no answer to a prompt that ends in `{prompt}`")]
    Unscripted {
        /// The end of the prompt.
        prompt: String,
    },
}
