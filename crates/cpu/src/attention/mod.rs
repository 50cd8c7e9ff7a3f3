//! Causal attention in blocks: `T` tokens, `H` query heads, `G` key/value heads, `D` head width.
//!
//! Keys are taken in blocks of [`KEYS`] counted from the start of the document, and the query rows of one task lie
//! in one such block, so every row meets the same blocks in the same order however rows are grouped. Scores
//! and outputs are the sequential chains of the micro-kernel; a row's chain of values ends at its own position.

mod backward;
mod forward;
mod kernels;

use llamero_tensor::Heads;

pub(crate) use self::backward::{Gradient, attention_backward};
pub(crate) use self::forward::{Document, Job, attend};
use crate::exec::Exec;
use crate::exec::Tile;
use crate::gemm::kernel::{Layout, NARROW, STRIDE};
use crate::gemm::{Data, KC, Mat, NR, PackA, PackPanel, Product, Start, onto, packed_a_len};
use crate::memory::Buffer;

/// Keys of a block.
pub(crate) const KEYS: usize = 64;
/// Query rows (positions times heads of a group) of a task, about.
const QUERIES: usize = 128;

/// The query heads that share a key/value head.
fn group_size(heads: Heads) -> usize {
    heads.query / heads.kv
}

/// Positions per block of queries; divides [`KEYS`].
fn query_step(heads: Heads) -> usize {
    let mut step = KEYS;
    while step > 1 && step * group_size(heads) > QUERIES {
        step /= 2;
    }
    step
}

/// Rows for use as A: `[rows, D]` in blocks of depth.
struct Left {
    data: Buffer<f32>,
    rows: usize,
    depth: usize,
}

impl Left {
    fn new(exec: &Exec, rows: usize, depth: usize) -> Self {
        Self { data: exec.memory.stale(depth.div_ceil(KC) * packed_a_len(rows)), rows, depth }
    }

    /// Packs rows `i · heads + h` from row `i`, head `h` of `mat`, whose columns start at the first head.
    fn pack(&mut self, exec: &Exec, mat: Mat<'_>, positions: usize, heads: usize) {
        self.rows = positions * heads;
        let block = packed_a_len(self.rows);
        for first in (0..self.depth).step_by(KC) {
            let k = KC.min(self.depth - first);
            let out = &mut self.data[first / KC * block..][..block];
            for row in 0..self.rows {
                let mat = mat.from(row / heads, row % heads * self.depth + first);
                let out = &mut out[row * STRIDE..];
                exec.run(PackA { mat, m: 1, k, pairs: false, out });
            }
        }
    }

    /// Packs the rows once more, for use as B: panels `[rows, NR]`.
    fn turn(&self, exec: &Exec, out: &mut [f32]) {
        for (panel, out) in out.chunks_exact_mut(self.rows * NR).take(self.depth.div_ceil(NR)).enumerate() {
            let col = panel * NR;
            let block = &self.data[col / KC * packed_a_len(self.rows)..];
            let mat = Mat::new(Data::F32(block), STRIDE).from(0, col % KC);
            exec.run(PackPanel { mat, k: self.rows, cols: NR.min(self.depth - col), pairs: false, out });
        }
    }

    /// `c = self · b` where `b [D, n]` is in panels.
    fn times(&self, exec: &Exec, b: &[f32], n: usize, c: &mut [f32]) {
        for first in (0..self.depth).step_by(KC) {
            let k = KC.min(self.depth - first);
            let a = &self.data[first / KC * packed_a_len(self.rows)..];
            let (c, sums) = onto(Tile::new(c, self.rows, n, NARROW));
            exec.run(Product {
                m: self.rows,
                n,
                k,
                pairs: false,
                a: (a, Layout::Rows),
                b: &b[first * NR..],
                panel: self.depth * NR,
                c,
                start: if first > 0 { sums } else { Start::Zero },
            });
        }
    }
}

/// Packs columns `0..cols` of `mat [k, cols]` into panels of `k · NR` elements.
fn pack_right(exec: &Exec, mat: Mat<'_>, k: usize, cols: usize, out: &mut [f32]) {
    for (panel, out) in out.chunks_exact_mut(k * NR).take(cols.div_ceil(NR)).enumerate() {
        let first = panel * NR;
        exec.run(PackPanel { mat: mat.from(0, first), k, cols: NR.min(cols - first), pairs: false, out });
    }
}

/// Packs the first `keys` rows of `mat [keys, D]` transposed, with zeros up to [`KEYS`] columns.
fn pack_keys(exec: &Exec, mat: Mat<'_>, keys: usize, depth: usize, out: &mut [f32]) {
    for (panel, out) in out.chunks_exact_mut(depth * NR).take(KEYS / NR).enumerate() {
        let cols = keys.saturating_sub(panel * NR).min(NR);
        if cols == 0 {
            out.fill(0.0);
        } else {
            exec.run(PackPanel { mat: mat.from(panel * NR, 0).t(), k: depth, cols, pairs: false, out });
        }
    }
}
