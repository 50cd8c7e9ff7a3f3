//! What a message carries.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{CommError, Op};

/// Some bytes. Clones share them, so sending the same to many ranks copies nothing, and nor does a message between threads.
pub type Body = Bytes;

/// A copy of some f32 values.
pub(crate) fn f32s(x: &[f32]) -> Body {
    bytemuck::cast_slice::<f32, u8>(x).to_vec().into()
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
