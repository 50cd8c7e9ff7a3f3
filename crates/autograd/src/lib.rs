//! Reverse-mode differentiation over coarse ops.
//!
//! A [`Tape`] runs an op on the backend at once and, when it records, keeps a closure that maps the gradient of the
//! op's output to the gradients of its inputs. Every op's backward is written by hand beside its forward (`ops`),
//! and is one or two backend kernels. [`Tape::infer`] records nothing, so training, scoring and decoding share one
//! forward.
//!
//! Parameters are not variables on the tape: ops take them as [`Param`] and add their gradients straight into the
//! buffers of a [`GradSink`], which is told when a gradient is final. Data parallelism and optimiser sharding live
//! behind that trait; collectives of tensor parallelism are ops like any other (`collectives`), and those of
//! context parallelism are part of attention (`context`). A parameter may be sharded: ops gather it when they use it,
//! forwards and backwards, and the tape sees to it that the next one is on its way.

mod collectives;
mod context;
mod ops;
mod param;
mod tape;

pub use collectives::{VocabularyPart, body, elements};
pub use context::ContextPart;
pub use param::{GradSink, Gradients, Param, Shards};
pub use tape::{KvStore, Tape, Targets, Var};
