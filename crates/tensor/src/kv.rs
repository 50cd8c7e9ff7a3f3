//! Pages of keys and values: what earlier positions of a request leave for later ones.

use std::ops::Range;

use crate::{Backend, Heads, Segment, Shape, Tensor};

/// Positions of a page.
pub const KV_PAGE: usize = 64;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// In the dtype of the activations.
    #[default]
    Same,
    /// As 8-bit integers with one f32 scale for each position, head, and keys or values: half the memory of bf16 and a little.
    /// `x` becomes `round(x / s) · s` with `s = max |x| / 127` over the head, ties to even; nothing else changes.
    Int8,
}

/// What a page of keys and values is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Blocks of the model.
    pub layers: usize,
    /// Heads of a row.
    pub heads: Heads,
    /// How elements are kept.
    pub format: KvFormat,
}

/// A request's rows in a packed batch, and the pages that hold its keys and values: position `p` is in page `p / KV_PAGE`.
/// Those of the batch's own rows are appended already.
pub struct PagedSegment<'a> {
    /// The rows and the number of earlier positions.
    pub segment: Segment,
    /// Pages from position 0 on, enough for all positions.
    pub pages: Vec<&'a Tensor>,
}

/// `x` as [`KvFormat::Int8`] keeps it: the integers and the scale of one head at one position. The scale is NaN where an
/// element is no finite number, so that this shows in the result.
pub fn kv_int8(head: &[f32], out: &mut [i8]) -> f32 {
    let most = head.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let fault: f32 = head.iter().map(|x| x * 0.0).sum();
    let scale = most / 127.0 + fault;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (q, x) in out.iter_mut().zip(head) {
        *q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}

/// The rows of one layer's keys, then its values, in the plain page of [`Backend::kv_page`]'s default.
pub(crate) fn plain_rows(layer: usize) -> [usize; 2] {
    [2 * layer * KV_PAGE, (2 * layer + 1) * KV_PAGE]
}

/// Rows of `qkv` as [`KvFormat::Int8`] rounds them: the keys and values of `rows`, `[rows, 2·G·D]`.
pub(crate) fn rounded<B: Backend + ?Sized>(
    backend: &B,
    qkv: &Tensor,
    rows: Range<usize>,
    heads: Heads,
) -> Tensor {
    let (width, first) = (heads.width(), heads.query_width());
    let all = backend.download(qkv);
    let mut out = Vec::with_capacity(rows.len() * 2 * heads.kv_width());
    let mut q = vec![0i8; heads.dim];
    for row in rows.clone() {
        for head in all[row * width + first..(row + 1) * width].chunks_exact(heads.dim) {
            let scale = kv_int8(head, &mut q);
            out.extend(q.iter().map(|q| f32::from(*q) * scale));
        }
    }
    backend.upload(&out, Shape::new(rows.len(), 2 * heads.kv_width()), qkv.dtype())
}
