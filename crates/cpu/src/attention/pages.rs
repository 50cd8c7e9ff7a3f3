//! Pages of keys and values in the order in which attention reads them: a page is a block of keys, so decoding packs nothing.

use half::bf16;
use llamero_tensor::{DType, KV_PAGE, KvFormat, KvLayout, kv_int8};

use super::{Blocks, KEYS, Packed, pack_right, right_panel};
use crate::exec::Exec;
use crate::gemm::{Data, Mat, NR, PackPanel, step};
use crate::memory::Buffer;
use crate::simd::narrow_bits;

const _: () = assert!(KV_PAGE == KEYS, "a page is a block of keys");

/// Keys and values of [`KEYS`] positions in all layers.
pub(crate) struct Page {
    layout: KvLayout,
    dtype: DType,
    pairs: bool,
    elements: Elements,
}

enum Elements {
    /// Of each layer and head the panels of the keys, turned, then those of the values.
    Ready(Buffer<f32>),
    /// Of each layer and head the keys of each position, then the values; and their scales.
    Int8(Buffer<i8>, Buffer<f32>),
}

/// Values of four bytes of the keys and of the values of one head of one layer.
fn sizes(layout: KvLayout, pairs: bool) -> (usize, usize) {
    let dim = layout.heads.dim;
    (dim.div_ceil(step(pairs)) * NR * (KEYS / NR), right_panel(KEYS, pairs) * dim.div_ceil(NR))
}

impl Page {
    /// An empty page.
    pub(crate) fn new(exec: &Exec, layout: KvLayout, dtype: DType) -> Self {
        let pairs = exec.pairs() && dtype == DType::Bf16;
        let places = layout.layers * layout.heads.kv;
        let elements = match layout.format {
            KvFormat::Same => {
                let (keys, values) = sizes(layout, pairs);
                Elements::Ready(exec.memory.zeros(places * (keys + values)))
            }
            KvFormat::Int8 => Elements::Int8(
                exec.memory.zeros(places * 2 * KEYS * layout.heads.dim),
                exec.memory.zeros(places * 2 * KEYS),
            ),
        };
        Self { layout, dtype, pairs, elements }
    }

    /// Bytes of a page.
    pub(crate) fn bytes(exec: &Exec, layout: KvLayout, dtype: DType) -> usize {
        let places = layout.layers * layout.heads.kv;
        match layout.format {
            KvFormat::Same => {
                let (keys, values) = sizes(layout, exec.pairs() && dtype == DType::Bf16);
                places * (keys + values) * 4
            }
            KvFormat::Int8 => places * 2 * KEYS * (layout.heads.dim + 4),
        }
    }

    /// Whether it is a page for this.
    pub(crate) fn fits(&self, layout: KvLayout, dtype: DType) -> bool {
        self.layout == layout && self.dtype == dtype
    }

    /// A page with the same contents.
    pub(crate) fn copy(&self, exec: &Exec) -> Self {
        let mut copy = Self::new(exec, self.layout, self.dtype);
        match (&mut copy.elements, &self.elements) {
            (Elements::Ready(to), Elements::Ready(from)) => to.copy_from_slice(from),
            (Elements::Int8(to, scales), Elements::Int8(from, from_scales)) => {
                to.copy_from_slice(from);
                scales.copy_from_slice(from_scales);
            }
            _ => unreachable!("the layout is the same"),
        }
        copy
    }

    /// Everything it holds.
    pub(crate) fn save(&self) -> Vec<u8> {
        match &self.elements {
            Elements::Ready(x) => bytemuck::cast_slice(x).to_vec(),
            Elements::Int8(q, scales) => {
                let (q, scales): (&[u8], &[u8]) = (bytemuck::cast_slice(q), bytemuck::cast_slice(scales));
                [q, scales].concat()
            }
        }
    }

    /// Fills it with what [`Page::save`] gave.
    pub(crate) fn restore(&mut self, saved: &[u8]) {
        let parts: [&mut [u8]; 2] = match &mut self.elements {
            Elements::Ready(x) => [bytemuck::cast_slice_mut(x), &mut []],
            Elements::Int8(q, scales) => [bytemuck::cast_slice_mut(q), bytemuck::cast_slice_mut(scales)],
        };
        let size = parts[0].len() + parts[1].len();
        assert!(saved.len() == size, "kv_restore: {} bytes do not make a page of {size}", saved.len());
        let (first, rest) = saved.split_at(parts[0].len());
        let [to_first, to_rest] = parts;
        to_first.copy_from_slice(first);
        to_rest.copy_from_slice(rest);
    }

    /// Puts the keys and values of `count` rows, whose queries, keys and values begin at `qkv`, at positions `at ..`.
    pub(crate) fn append(&mut self, exec: &Exec, layer: usize, at: usize, qkv: Mat<'_>, count: usize) {
        let (heads, pairs) = (self.layout.heads, self.pairs);
        let (dim, layout) = (heads.dim, self.layout);
        let (first, ns) = (heads.query_width(), (count * heads.kv_width()) as f64);
        match &mut self.elements {
            Elements::Ready(x) => {
                let (keys_len, values_len) = sizes(layout, pairs);
                let size = keys_len + values_len;
                let own = &mut x[layer * heads.kv * size..][..heads.kv * size];
                exec.chunks(own, size, ns, |head, out| {
                    let (keys, values) = out.split_at_mut(keys_len);
                    let from = |i: usize| qkv.from(0, first + (i * heads.kv + head) * dim);
                    put_keys(exec, (from(0), count, dim), at, pairs, keys);
                    put_values(exec, (from(1), count, dim), at, pairs, values);
                });
            }
            Elements::Int8(q, scales) => {
                let mut x = exec.memory.stale::<f32>(dim);
                for (row, i, head) in each(count, heads.kv) {
                    qkv.from(row, first + (i * heads.kv + head) * dim).read_row(&mut x);
                    let place = ((layer * heads.kv + head) * 2 + i) * KEYS + at + row;
                    scales[place] = kv_int8(&x, &mut q[place * dim..][..dim]);
                }
            }
        }
    }

    /// The panels of one head of one layer: of keys and of values; `None` where they have to be made by [`Page::pack`].
    pub(super) fn panels(&self, layer: usize, head: usize) -> Option<(&[f32], &[f32])> {
        let Elements::Ready(x) = &self.elements else { return None };
        let (keys, values) = sizes(self.layout, self.pairs);
        let at = (layer * self.layout.heads.kv + head) * (keys + values);
        Some(x[at..][..keys + values].split_at(keys))
    }

    /// The panels of the first `count` positions.
    pub(super) fn pack(&self, exec: &Exec, layer: usize, head: usize, count: usize) -> Packed {
        let Elements::Int8(q, scales) = &self.elements else { panic!("pages: the panels are there") };
        let dim = self.layout.heads.dim;
        let rows = |i: usize| {
            let first = ((layer * self.layout.heads.kv + head) * 2 + i) * KEYS;
            let mut out = exec.memory.stale::<f32>(count * dim);
            for (row, out) in out.chunks_exact_mut(dim).enumerate() {
                let scale = scales[first + row];
                for (x, q) in out.iter_mut().zip(&q[(first + row) * dim..]) {
                    *x = f32::from(*q) * scale;
                }
            }
            out
        };
        let (size, pairs) = ((count, dim), self.pairs);
        let packed = |keys: Mat<'_>, values: Mat<'_>| Packed {
            keys: Blocks::turned(exec, keys, size, 0..1, pairs),
            values: Blocks::upright(exec, values, size, 0..1, pairs),
        };
        let (keys, values) = (rows(0), rows(1));
        match self.dtype {
            DType::F32 => packed(Mat::new(Data::F32(&keys), dim), Mat::new(Data::F32(&values), dim)),
            DType::Bf16 => {
                let narrow =
                    |x: &[f32]| -> Vec<bf16> { x.iter().map(|x| bf16::from_bits(narrow_bits(*x))).collect() };
                let (keys, values) = (narrow(&keys), narrow(&values));
                packed(Mat::new(Data::Bf16(&keys), dim), Mat::new(Data::Bf16(&values), dim))
            }
        }
    }
}

/// Rows, keys or values, and heads.
fn each(rows: usize, heads: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..rows).flat_map(move |row| (0..2).flat_map(move |i| (0..heads).map(move |head| (row, i, head))))
}

/// Puts keys in the panels of [`Blocks::turned`].
fn put_keys(
    exec: &Exec,
    (mat, count, dim): (Mat<'_>, usize, usize),
    at: usize,
    pairs: bool,
    out: &mut [f32],
) {
    let panel = dim.div_ceil(step(pairs)) * NR;
    if at == 0 && count > 1 {
        for (i, out) in out.chunks_exact_mut(panel).enumerate().take(count.div_ceil(NR)) {
            let (first, cols) = (i * NR, NR.min(count - i * NR));
            exec.run(PackPanel { mat: mat.from(first, 0).t(), k: dim, cols, pairs, out });
        }
        return;
    }
    for row in 0..count {
        let column = &mut out[(at + row) / NR * panel + (at + row) % NR..];
        let places = column.iter_mut().step_by(NR);
        match mat.from(row, 0).row(dim) {
            Data::F32(x) => places.zip(x).for_each(|(out, x)| *out = *x),
            Data::Bf16(x) if pairs => places.zip(x.chunks(2)).for_each(|(out, x)| {
                let second = x.get(1).map_or(0, |x| x.to_bits());
                *out = f32::from_bits(u32::from(x[0].to_bits()) | u32::from(second) << 16);
            }),
            Data::Bf16(x) => places.zip(x).for_each(|(out, x)| *out = x.to_f32()),
        }
    }
}

/// Puts values in the panels of [`Blocks::upright`].
fn put_values(
    exec: &Exec,
    (mat, count, dim): (Mat<'_>, usize, usize),
    at: usize,
    pairs: bool,
    out: &mut [f32],
) {
    let panel = right_panel(KEYS, pairs);
    if at == 0 && count > 1 {
        pack_right(exec, mat, (count, dim), pairs, (out, panel));
        return;
    }
    for row in 0..count {
        let position = at + row;
        for (i, out) in out.chunks_exact_mut(panel).enumerate() {
            let cols = NR.min(dim - i * NR);
            let step = &mut out[position / step(pairs) * NR..][..cols];
            match mat.from(row, i * NR).row(cols) {
                Data::F32(x) => step.copy_from_slice(x),
                Data::Bf16(x) if pairs => {
                    let shift = position % 2 * 16;
                    for (out, x) in step.iter_mut().zip(x) {
                        let kept = out.to_bits() & !(0xffff << shift);
                        *out = f32::from_bits(kept | u32::from(x.to_bits()) << shift);
                    }
                }
                Data::Bf16(x) => step.iter_mut().zip(x).for_each(|(out, x)| *out = x.to_f32()),
            }
        }
    }
}
