//! What a message carries.

use std::borrow::Cow;
use std::ops::Deref;

use bytes::Bytes;

use crate::{CommError, Op};

/// What the bytes of a message are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Elements {
    /// Anything.
    #[default]
    Bytes,
    /// f32 values.
    F32,
    /// bf16 values.
    Bf16,
}

impl Elements {
    /// All of them.
    pub const ALL: [Elements; 3] = [Elements::Bytes, Elements::F32, Elements::Bf16];

    /// The name, as in errors.
    pub fn name(self) -> &'static str {
        match self {
            Elements::Bytes => "bytes",
            Elements::F32 => "f32",
            Elements::Bf16 => "bf16",
        }
    }
}

/// Some bytes and what they are. Clones share them, so sending the same to many ranks copies nothing, and nor does a message
/// between threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    bytes: Bytes,
    elements: Elements,
}

impl Body {
    /// These bytes, which are such elements.
    pub fn new(bytes: Bytes, elements: Elements) -> Self {
        Self { bytes, elements }
    }

    /// What the bytes are.
    pub fn elements(&self) -> Elements {
        self.elements
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes.into(), Elements::Bytes)
    }
}

/// A copy of some f32 values.
pub(crate) fn f32s(x: &[f32]) -> Body {
    Body::new(bytemuck::cast_slice::<f32, u8>(x).to_vec().into(), Elements::F32)
}

/// The f32 values that rank `from` sent in `op`, when there are `expected`; a copy where the bytes lie unevenly.
pub fn as_f32s(
    body: &Body,
    op: Op,
    (rank, from): (usize, usize),
    expected: usize,
) -> Result<Cow<'_, [f32]>, CommError> {
    let found = body.len() / size_of::<f32>();
    if body.len() != expected * size_of::<f32>() {
        return Err(CommError::Length { op: op.name(), rank, from, found, expected });
    }
    Ok(match bytemuck::try_cast_slice(body) {
        Ok(x) => Cow::Borrowed(x),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(body)),
    })
}
