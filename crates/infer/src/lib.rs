//! Using a model: score text, continue it, choose between answers, chat.
//!
//! [`Engine::open`] takes a run folder, an artifact folder or an exported folder, checks it, and arranges the weights
//! once. Everything after that is the forward pass of training (`llamero_model::Llama`) with another store of keys and
//! values, so scores and the log-probabilities of sampled tokens have the bits that training would have computed for
//! the same tokens, whatever was cached and however the prompt was cut into chunks.
//!
//! Requests of all callers share passes over the model and pages of keys and values ([`EngineOptions`]): [`Engine::generate`] works
//! in the calling thread, a [`Service`] in one of its own. None of that shows in an answer.
//!
//! Callers that only need answers ask for [`Lm`], which a scripted fake (feature `testing`) implements too.
//!
//! Nothing is cut off silently: a prompt that does not fit is an error, a text longer than the context is scored in
//! windows as [`Engine::score_tokens`] says, and a conversation that loses its oldest turns says so.

mod cache;
mod chat;
mod desk;
mod draft;
mod embed;
mod engine;
mod error;
mod generate;
mod lm;
mod memory;
mod open;
mod options;
mod pass;
mod prefix;
mod request;
mod sampler;
mod scheduler;
mod score;
mod service;
mod stop;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use chat::{ChatSession, Reply};
pub use embed::{EmbedOptions, Pooling};
pub use engine::Engine;
pub use error::{InferError, Result};
pub use generate::{Finish, Generation, OnToken};
pub use lm::Lm;
pub use open::{MODEL_STAGES, open_tokenizer, resolve_model};
pub use options::EngineOptions;
pub use request::{Event, Guess, Logprobs, Request, Task};
pub use sampler::{FORBID, SamplingParams, sample};
pub use scheduler::Counts;
pub use score::{OnScored, Score, ScoredText};
pub use service::{Handle, Service};
pub use stop::StopText;
pub use vocabulary::gguf_vocabulary;
