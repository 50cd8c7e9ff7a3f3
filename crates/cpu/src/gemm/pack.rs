//! Copies of operands in the order in which the micro-kernel reads them.
//!
//! The kernel goes through the depth in *steps* of four bytes: one f32, or two bf16 that follow each other in depth (a
//! pair, where the path has a dot product for it; elsewhere bf16 is widened and a step is one element).

use half::bf16;

use super::kernel::{GROUP, KC, Layout, MR, NARROW, NR, STRIDE};
use crate::math::{Element, load, store};
use crate::path::Kernel;
use crate::simd::{LANES, Simd};

/// Elements of either type.
#[derive(Clone, Copy)]
pub(crate) enum Data<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Data<'a> {
    /// From element `at` on.
    pub(crate) fn from(self, at: usize) -> Self {
        match self {
            Data::F32(x) => Data::F32(&x[at..]),
            Data::Bf16(x) => Data::Bf16(&x[at..]),
        }
    }
}

/// A matrix that is read through a distance between rows; may be transposed for free.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: Data<'a>,
    stride: usize,
    transposed: bool,
}

impl<'a> Mat<'a> {
    /// Element `(i, j)` at `i · stride + j`.
    pub(crate) fn new(data: Data<'a>, stride: usize) -> Self {
        Self { data, stride, transposed: false }
    }

    /// Rows and columns exchanged.
    pub(crate) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// The matrix whose element `(0, 0)` is this one's `(row, col)`.
    pub(crate) fn from(self, row: usize, col: usize) -> Self {
        let at = if self.transposed { col * self.stride + row } else { row * self.stride + col };
        Self { data: self.data.from(at), ..self }
    }

    /// The first `cols` elements of the first row; not of a transposed view.
    pub(crate) fn row(self, cols: usize) -> Data<'a> {
        assert!(!self.transposed, "row: the matrix is transposed");
        match self.data {
            Data::F32(x) => Data::F32(&x[..cols]),
            Data::Bf16(x) => Data::Bf16(&x[..cols]),
        }
    }

    /// The first elements of the first row, as f32.
    pub(crate) fn read_row(self, out: &mut [f32]) {
        match self.row(out.len()) {
            Data::F32(x) => out.copy_from_slice(x),
            Data::Bf16(x) => out.iter_mut().zip(x).for_each(|(out, x)| *out = x.to_f32()),
        }
    }

    /// Whether this is a transposed view.
    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Panics when pairs are wanted of elements that are not bf16: the operands of a product have different dtypes.
    fn check(&self, pairs: bool) {
        assert!(!pairs || self.is_bf16(), "pack: f32 does not fit an operand that is packed as bf16");
    }

    /// Whether the elements are bf16.
    pub(crate) fn is_bf16(&self) -> bool {
        matches!(self.data, Data::Bf16(_))
    }
}

/// Elements of depth in a step.
pub(crate) fn step(pairs: bool) -> usize {
    if pairs { 2 } else { 1 }
}

/// Values of four bytes that [`PackA`] writes for `m` rows.
pub(crate) fn packed_a_len(m: usize) -> usize {
    (m.next_multiple_of(MR) * STRIDE).max(m.div_ceil(MR) * GROUP)
}

/// Copies a block `[m, k]` of at most [`KC`] steps, for use as A.
pub(crate) struct PackA<'a> {
    pub(crate) mat: Mat<'a>,
    pub(crate) m: usize,
    pub(crate) k: usize,
    /// Whether to keep pairs of bf16; only for bf16, and only where the path has the dot product.
    pub(crate) pairs: bool,
    /// `Rows` or `Narrow`, or, for a transposed matrix, `Groups`.
    pub(crate) layout: Layout,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for PackA<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.mat.check(self.pairs);
        let (room, apart) = match self.layout {
            Layout::Rows | Layout::Groups => (KC, STRIDE),
            Layout::Narrow | Layout::Cols => (NARROW, NARROW),
        };
        assert!(
            self.k.div_ceil(step(self.pairs)) <= room,
            "pack: depth {} does not fit {:?}",
            self.k,
            self.layout
        );
        assert!(
            self.mat.transposed == (self.layout == Layout::Groups),
            "pack: wrong layout {:?}",
            self.layout
        );
        let size = (self.m, self.k);
        let (stride, out) = (self.mat.stride, self.out);
        match (self.mat.data, self.mat.transposed) {
            (Data::F32(x), false) => rows(s, (x, stride), size, (out, apart)),
            (Data::Bf16(x), false) if self.pairs => pair_rows(s, (x, stride), size, (out, apart)),
            (Data::Bf16(x), false) => rows(s, (x, stride), size, (out, apart)),
            (Data::F32(x), true) => groups(s, size, out, |p, at| load(s, &x[p * stride..][..size.0], at)),
            (Data::Bf16(x), true) if self.pairs => {
                let depth = size.1;
                let row = |p: usize| if p < depth { &x[p * stride..][..size.0] } else { &[] };
                let size = (size.0, depth.div_ceil(2));
                groups(s, size, out, |p, at| interleaved(s, row(2 * p), row(2 * p + 1), at));
            }
            (Data::Bf16(x), true) => groups(s, size, out, |p, at| load(s, &x[p * stride..][..size.0], at)),
        }
    }
}

/// Copies the heads of some positions for use as A: row `position · heads + head`, heads next to each other in `mat`.
pub(crate) struct PackHeads<'a> {
    /// From the first position and head on; not transposed.
    pub(crate) mat: Mat<'a>,
    pub(crate) positions: usize,
    pub(crate) heads: usize,
    /// Distance between heads.
    pub(crate) dim: usize,
    /// Depth to copy.
    pub(crate) k: usize,
    pub(crate) pairs: bool,
    pub(crate) out: &'a mut [f32],
    /// Distance between the rows of `out`.
    pub(crate) apart: usize,
}

impl Kernel for PackHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.mat.check(self.pairs);
        let (size, apart) = ((self.heads, self.k), self.apart);
        for position in 0..self.positions {
            let at = position * self.mat.stride;
            let out = &mut self.out[position * self.heads * apart..];
            match self.mat.data {
                Data::F32(x) => rows(s, (&x[at..], self.dim), size, (out, apart)),
                Data::Bf16(x) if self.pairs => pair_rows(s, (&x[at..], self.dim), size, (out, apart)),
                Data::Bf16(x) => rows(s, (&x[at..], self.dim), size, (out, apart)),
            }
        }
    }
}

#[inline(always)]
fn rows<S: Simd, E: Element>(
    s: S,
    (x, stride): (&[E], usize),
    (m, k): (usize, usize),
    (out, apart): (&mut [f32], usize),
) {
    for i in 0..m {
        let (x, out) = (&x[i * stride..][..k], &mut out[i * apart..][..k]);
        for at in (0..k).step_by(LANES) {
            store(s, load(s, x, at), out, at);
        }
    }
}

#[inline(always)]
fn pair_rows<S: Simd>(
    s: S,
    (x, stride): (&[bf16], usize),
    (m, k): (usize, usize),
    (out, apart): (&mut [f32], usize),
) {
    for i in 0..m {
        let (x, out) = (&x[i * stride..][..k], &mut out[i * apart..][..k.div_ceil(2)]);
        for at in (0..out.len()).step_by(LANES) {
            store(s, load_pairs(s, x, 2 * at), out, at);
        }
    }
}

/// Groups of [`MR`] columns of `k` steps; `lanes(p, at)` gives columns `at ..` of step `p`.
///
/// Sixteen lanes are written where twelve are wanted: the rest is overwritten by the next step, and the
/// last step's lies between groups.
#[inline(always)]
fn groups<S: Simd>(s: S, (m, k): (usize, usize), out: &mut [f32], lanes: impl Fn(usize, usize) -> S::V) {
    for p in 0..k {
        for (group, at) in (0..m).step_by(MR).enumerate() {
            store(s, lanes(p, at), &mut out[group * GROUP + p * MR..][..LANES], 0);
        }
    }
}

/// Pairs `x[at], x[at + 1]` and so on; zeros beyond the end.
#[inline(always)]
fn load_pairs<S: Simd>(s: S, x: &[bf16], at: usize) -> S::V {
    let rest: &[u16] = bytemuck::cast_slice(&x[at..]);
    match rest.first_chunk() {
        Some(full) => s.load_pairs(full),
        None => {
            let mut part = [0; 2 * LANES];
            part[..rest.len()].copy_from_slice(rest);
            s.load_pairs(&part)
        }
    }
}

/// Pairs of columns `at ..` of two rows; zeros beyond their ends.
#[inline(always)]
fn interleaved<S: Simd>(s: S, a: &[bf16], b: &[bf16], at: usize) -> S::V {
    let (a, b): (&[u16], &[u16]) = (bytemuck::cast_slice(a), bytemuck::cast_slice(b));
    let (a, b) = (&a[at.min(a.len())..], &b[at.min(b.len())..]);
    if let (Some(a), Some(b)) = (a.first_chunk(), b.first_chunk()) {
        return s.interleave(a, b);
    }
    let mut whole = [[0; LANES]; 2];
    for (whole, part) in whole.iter_mut().zip([a, b]) {
        let n = part.len().min(LANES);
        whole[..n].copy_from_slice(&part[..n]);
    }
    s.interleave(&whole[0], &whole[1])
}

/// Copies columns `0 .. cols ≤ NR` of a matrix `[k, cols]` into one panel of B, `[steps, NR]`, zeros beyond `cols`.
pub(crate) struct PackPanel<'a> {
    pub(crate) mat: Mat<'a>,
    pub(crate) k: usize,
    pub(crate) cols: usize,
    /// As in [`PackA`].
    pub(crate) pairs: bool,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for PackPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.mat.check(self.pairs);
        let size = (self.k, self.cols);
        let stride = self.mat.stride;
        match (self.mat.data, self.mat.transposed) {
            (Data::F32(x), false) => copy_panel(s, x, stride, size, self.out),
            (Data::F32(x), true) => {
                turn_panel(s, size, self.out, |n, p| load(s, &x[n * stride..][..self.k], p));
            }
            (Data::Bf16(x), false) if self.pairs => interleave_panel(s, x, stride, size, self.out),
            (Data::Bf16(x), true) if self.pairs => {
                let size = (self.k.div_ceil(2), self.cols);
                turn_panel(s, size, self.out, |n, p| {
                    let row = &x[n * stride..][..self.k];
                    // More rows than the processor recognises as streams.
                    s.prefetch(row.as_ptr().wrapping_add(2 * p + AHEAD).cast());
                    load_pairs(s, row, 2 * p)
                });
            }
            (Data::Bf16(x), false) => copy_panel(s, x, stride, size, self.out),
            (Data::Bf16(x), true) => {
                turn_panel(s, size, self.out, |n, p| load(s, &x[n * stride..][..self.k], p));
            }
        }
    }
}

/// Elements of bf16 that a row is fetched ahead of its use.
const AHEAD: usize = 4 * 32;

#[inline(always)]
fn copy_panel<S: Simd, E: Element>(s: S, x: &[E], stride: usize, (k, cols): (usize, usize), out: &mut [f32]) {
    for (p, out) in out.chunks_exact_mut(NR).take(k).enumerate() {
        let row = &x[p * stride..][..cols];
        for at in (0..NR).step_by(LANES) {
            let v = if at < cols { load(s, row, at) } else { s.splat(0.0) };
            store(s, v, out, at);
        }
    }
}

#[inline(always)]
fn interleave_panel<S: Simd>(s: S, x: &[bf16], stride: usize, (k, cols): (usize, usize), out: &mut [f32]) {
    let row = |p: usize| if p < k { &x[p * stride..][..cols] } else { &[] };
    for (p, out) in out.chunks_exact_mut(NR).take(k.div_ceil(2)).enumerate() {
        for ahead in [2 * p + 16, 2 * p + 17] {
            s.prefetch(x.as_ptr().wrapping_add(ahead * stride).cast());
        }
        for at in (0..NR).step_by(LANES) {
            store(s, interleaved(s, row(2 * p), row(2 * p + 1), at), out, at);
        }
    }
}

/// `lanes(n, p)` gives steps `p ..` of column `n`, zeros beyond the end.
#[inline(always)]
fn turn_panel<S: Simd>(
    s: S,
    (k, cols): (usize, usize),
    out: &mut [f32],
    lanes: impl Fn(usize, usize) -> S::V,
) {
    for p in (0..k).step_by(LANES) {
        let depth = LANES.min(k - p);
        for half in (0..NR).step_by(LANES) {
            let mut block = [s.splat(0.0); LANES];
            for (i, v) in block.iter_mut().enumerate().take(cols.saturating_sub(half)) {
                *v = lanes(half + i, p);
            }
            let block = s.transpose(block);
            let out = &mut out[p * NR..][..depth * NR];
            for (v, out) in block.iter().zip(out.chunks_exact_mut(NR)) {
                store(s, *v, out, half);
            }
        }
    }
}
