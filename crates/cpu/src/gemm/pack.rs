//! Copies of operands in the order in which the micro-kernel reads them, widened to f32.

use half::bf16;

use super::kernel::{KC, Layout, MR, NR, STRIDE};
use crate::math::{Element, load};
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
}

/// Elements of `f32` that [`PackA`] writes for `m` rows.
pub(crate) fn packed_a_len(m: usize) -> usize {
    m.next_multiple_of(MR) * STRIDE
}

/// Copies a block `[m, k]`, `k ≤ KC`, for use as A.
pub(crate) struct PackA<'a> {
    pub(crate) mat: Mat<'a>,
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for PackA<'_> {
    type Output = Layout;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Layout {
        match self.mat.data {
            Data::F32(x) => pack_a(s, x, self.mat.stride, self.mat.transposed, (self.m, self.k), self.out),
            Data::Bf16(x) => pack_a(s, x, self.mat.stride, self.mat.transposed, (self.m, self.k), self.out),
        }
    }
}

#[inline(always)]
fn pack_a<S: Simd, E: Element>(
    s: S,
    x: &[E],
    stride: usize,
    transposed: bool,
    (m, k): (usize, usize),
    out: &mut [f32],
) -> Layout {
    assert!(k <= KC);
    if !transposed {
        for i in 0..m {
            widen(s, &x[i * stride..][..k], &mut out[i * STRIDE..][..k]);
        }
        return Layout::Rows;
    }
    for p in 0..k {
        let row = &x[p * stride..][..m];
        for (group, part) in row.chunks(MR).enumerate() {
            let to = &mut out[group * (KC * MR) + p * MR..][..part.len()];
            for (to, from) in to.iter_mut().zip(part) {
                *to = from.to_f32();
            }
        }
    }
    Layout::Groups
}

#[inline(always)]
fn widen<S: Simd, E: Element>(s: S, x: &[E], out: &mut [f32]) {
    for at in (0..x.len()).step_by(LANES) {
        crate::math::store(s, load(s, x, at), out, at);
    }
}

/// Copies columns `0 .. cols ≤ NR` of a matrix `[k, cols]` into one panel of B, `[k, NR]`, zeros beyond `cols`.
pub(crate) struct PackPanel<'a> {
    pub(crate) mat: Mat<'a>,
    pub(crate) k: usize,
    pub(crate) cols: usize,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for PackPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let size = (self.k, self.cols);
        match (self.mat.data, self.mat.transposed) {
            (Data::F32(x), false) => copy_panel(s, x, self.mat.stride, size, self.out),
            (Data::Bf16(x), false) => copy_panel(s, x, self.mat.stride, size, self.out),
            (Data::F32(x), true) => turn_panel(s, x, self.mat.stride, size, self.out),
            (Data::Bf16(x), true) => turn_panel(s, x, self.mat.stride, size, self.out),
        }
    }
}

#[inline(always)]
fn copy_panel<S: Simd, E: Element>(s: S, x: &[E], stride: usize, (k, cols): (usize, usize), out: &mut [f32]) {
    for (p, out) in out.chunks_exact_mut(NR).take(k).enumerate() {
        let row = &x[p * stride..][..cols];
        for at in (0..NR).step_by(LANES) {
            let v = if at < cols { load(s, row, at) } else { s.splat(0.0) };
            crate::math::store(s, v, out, at);
        }
    }
}

#[inline(always)]
fn turn_panel<S: Simd, E: Element>(s: S, x: &[E], stride: usize, (k, cols): (usize, usize), out: &mut [f32]) {
    for p in (0..k).step_by(LANES) {
        let depth = LANES.min(k - p);
        for half in (0..NR).step_by(LANES) {
            let mut block = [s.splat(0.0); LANES];
            if depth == LANES && half + LANES <= cols {
                for (i, v) in block.iter_mut().enumerate() {
                    let at = (half + i) * stride + p;
                    *v = E::load(s, x[at..at + LANES].try_into().expect("as long as the lanes"));
                }
            } else {
                for (i, v) in block.iter_mut().enumerate().take(cols.saturating_sub(half)) {
                    *v = load(s, &x[(half + i) * stride + p..][..depth], 0);
                }
            }
            let block = s.transpose(block);
            let out = &mut out[p * NR..][..depth * NR];
            for (v, out) in block.iter().zip(out.chunks_exact_mut(NR)) {
                crate::math::store(s, *v, out, half);
            }
        }
    }
}
