//! Tensors and the one trait every device implements.
//!
//! A [`Tensor`] is a two-dimensional array whose storage only its backend can read. [`Backend`] lists the
//! coarse kernels a Llama needs, each forward beside its backward; the model, the tape and the optimiser are
//! written over `&dyn Backend`, so they never name a device. Dispatch through the trait object costs
//! nanoseconds against kernels of micro- to milliseconds.
//!
//! Shape legend used by every crate: `T` packed tokens, `C` model width, `H` query heads, `G` key/value heads,
//! `D` head width, `F` feed-forward width, `V` vocabulary.
//!
//! Feature `testing` adds the scalar oracle and the op suite that every backend must pass.

mod backend;
mod checked;
mod checksum;
mod kv;
mod layout;
mod stored;
mod tensor;
#[cfg(feature = "testing")]
pub mod testing;

pub use backend::{
    AdamW, AdamWState, Attention, Backend, CrossEntropy, Master, Memory, NO_TARGET, RowLoss, TARGET_ELSEWHERE,
};
pub use checked::CheckedProducts;
pub use checksum::checksum;
pub use kv::{KV_PAGE, KvFormat, KvLayout, PagedSegment, kv_int8};
pub use layout::{GatheredSegment, Heads, RopeDirection, RopeTable, Segment, Segments, pieces};
pub use stored::{Encoding, StoredRows};
pub use tensor::{DType, LowHalves, Shape, Tensor};
