//! Causal attention in blocks: `T` tokens, `H` query heads, `G` key/value heads, `D` head width.
//!
//! Keys are taken in blocks of [`KEYS`] counted from the start of the document, and the query rows of one task lie
//! in one such block, so every row meets the same blocks in the same order however rows are grouped. Query rows are
//! numbered `position · group + head` inside the heads that share a key/value head. In the block on the diagonal, work is
//! cut to strips of [`MR`] rows and to the keys that a strip can see, so that short documents cost what they should.
//!
//! Keys, values and, in the backward pass, query rows are packed once per task or document, as operands of the
//! products (`crate::gemm`); weights stay pairs of bf16 where the path has a dot product for them.

mod backward;
mod forward;
mod kernels;
mod pages;

use std::ops::Range;

use half::bf16;
use llamero_tensor::Heads;

pub(crate) use self::backward::{Gradient, attention_backward};
use self::forward::Packed;
pub(crate) use self::forward::{Document, Job, Source, attend};
pub(crate) use self::pages::Page;
use crate::exec::{Exec, Tile};
use crate::gemm::{
    Data, KC, Layout, MR, Mat, NARROW, NR, PackHeads, PackPanel, Product, Start, packed_a_len, step,
};
use crate::memory::Buffer;
use crate::simd::LANES;

/// Keys of a block.
pub(crate) const KEYS: usize = 64;
/// Query rows (positions times heads of a group) of a block of queries, at most if a position allows it.
const QUERIES: usize = 192;

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

/// Columns that products of width `D` are computed for: whole vectors.
fn padded(dim: usize) -> usize {
    dim.next_multiple_of(LANES)
}

/// Operands B, one of equal size per block of [`KEYS`] rows.
struct Blocks {
    data: Buffer<f32>,
    block: usize,
    first: usize,
}

impl Blocks {
    /// Room for blocks `range` of `block` values each.
    fn new(exec: &Exec, range: Range<usize>, block: usize) -> Self {
        Self { data: exec.memory.stale(range.len() * block), block, first: range.start }
    }

    fn get(&self, block: usize) -> &[f32] {
        &self.data[(block - self.first) * self.block..][..self.block]
    }

    /// The one block that there is.
    fn only(&self) -> &[f32] {
        self.get(self.first)
    }

    fn get_mut(&mut self, block: usize) -> &mut [f32] {
        &mut self.data[(block - self.first) * self.block..][..self.block]
    }

    /// Rows `[.., D]` of the blocks in `range` as `[D, KEYS]`, zeros beyond row `len`: panels of depth `D`.
    fn turned(
        exec: &Exec,
        mat: Mat<'_>,
        (len, dim): (usize, usize),
        range: Range<usize>,
        pairs: bool,
    ) -> Self {
        let panel = dim.div_ceil(step(pairs)) * NR;
        let mut blocks = Self::new(exec, range.clone(), panel * (KEYS / NR));
        for block in range {
            for (i, out) in blocks.get_mut(block).chunks_exact_mut(panel).enumerate() {
                let first = block * KEYS + i * NR;
                let cols = len.saturating_sub(first).min(NR);
                if cols == 0 {
                    out.fill(0.0);
                } else {
                    exec.run(PackPanel { mat: mat.from(first, 0).t(), k: dim, cols, pairs, out });
                }
            }
        }
        blocks
    }

    /// Rows `[.., D]` of the blocks in `range` as they are: panels of depth [`KEYS`], zeros beyond row `len`.
    fn upright(
        exec: &Exec,
        mat: Mat<'_>,
        (len, dim): (usize, usize),
        range: Range<usize>,
        pairs: bool,
    ) -> Self {
        let panel = right_panel(KEYS, pairs);
        let mut blocks = Self::new(exec, range.clone(), panel * dim.div_ceil(NR));
        for block in range {
            let rows = KEYS.min(len - block * KEYS);
            pack_right(exec, mat.from(block * KEYS, 0), (rows, dim), pairs, (blocks.get_mut(block), panel));
        }
        blocks
    }
}

/// Values in a panel of `rows` rows used as depth.
fn right_panel(rows: usize, pairs: bool) -> usize {
    rows.div_ceil(step(pairs)) * NR
}

/// Packs `mat [rows, cols]` into panels of `panel` values, zeros below the rows.
fn pack_right(
    exec: &Exec,
    mat: Mat<'_>,
    (rows, cols): (usize, usize),
    pairs: bool,
    (out, panel): (&mut [f32], usize),
) {
    let used = right_panel(rows, pairs);
    for (i, out) in out.chunks_exact_mut(panel).take(cols.div_ceil(NR)).enumerate() {
        let mat = mat.from(0, i * NR);
        exec.run(PackPanel { mat, k: rows, cols: NR.min(cols - i * NR), pairs, out });
        out[used..].fill(0.0);
    }
}

/// Query rows as operand A: `[rows, D]`.
struct Rows {
    data: Buffer<f32>,
    layout: Layout,
    /// Distance between blocks of depth; there is one unless heads are wider than [`KC`] steps.
    block: usize,
    dim: usize,
    pairs: bool,
}

impl Rows {
    fn new(exec: &Exec, rows: usize, dim: usize, pairs: bool) -> Self {
        let steps = dim.div_ceil(step(pairs));
        let (layout, block) = if steps <= NARROW {
            (Layout::Narrow, rows * NARROW)
        } else {
            (Layout::Rows, packed_a_len(rows))
        };
        Self { data: exec.memory.stale(steps.div_ceil(KC) * block), layout, block, dim, pairs }
    }

    fn apart(&self) -> usize {
        if self.layout == Layout::Narrow { NARROW } else { packed_a_len(MR) / MR }
    }

    /// Packs `positions` rows of `heads` heads each from the first row and head of `mat` to row `at`.
    fn pack(&mut self, exec: &Exec, at: usize, mat: Mat<'_>, (positions, heads): (usize, usize)) {
        let (step, pairs, dim, apart) = (step(self.pairs), self.pairs, self.dim, self.apart());
        for (i, out) in self.data.chunks_exact_mut(self.block).enumerate() {
            let first = i * KC * step;
            let k = (KC * step).min(dim - first);
            let (mat, out) = (mat.from(0, first), &mut out[at * apart..]);
            exec.run(PackHeads { mat, positions, heads, dim, k, pairs, out, apart });
        }
    }

    /// Packs `rows` rows from `at` once more as operand B, with the rows as depth.
    fn pack_upright(&self, exec: &Exec, at: usize, rows: usize, (out, panel): (&mut [f32], usize)) {
        let apart = self.apart();
        for (i, data) in self.data.chunks_exact(self.block).enumerate() {
            let first = i * KC * step(self.pairs);
            let cols = (KC * step(self.pairs)).min(self.dim - first);
            let data = &data[at * apart..];
            let mat = if self.pairs {
                Mat::new(Data::Bf16(bytemuck::cast_slice::<f32, bf16>(data)), 2 * apart)
            } else {
                Mat::new(Data::F32(data), apart)
            };
            let out = &mut out[first / NR * panel..];
            pack_right(exec, mat, (rows, cols), self.pairs, (out, panel));
        }
    }

    /// `c = rows · b`: `rows` rows from `at`, the first `n` of [`KEYS`] columns; rows of `c` are [`NARROW`] apart.
    fn times(&self, exec: &Exec, (at, rows): (usize, usize), (b, n): (&[f32], usize), c: &mut [f32]) {
        let steps = self.dim.div_ceil(step(self.pairs));
        for (i, data) in self.data.chunks_exact(self.block).enumerate() {
            let first = i * KC;
            exec.run(Product {
                m: rows,
                n,
                k: KC.min(steps - first),
                pairs: self.pairs,
                a: (&data[at * self.apart()..], self.layout),
                b: &b[first * NR..],
                panel: steps * NR,
                c: Tile::new(c, rows, n, NARROW),
                start: if i > 0 { Start::C } else { Start::Zero },
            });
        }
    }
}

/// A strip of the block on the diagonal.
#[derive(Clone, Copy)]
struct Strip {
    row: usize,
    rows: usize,
    /// Keys that the last row sees.
    seen: usize,
}

/// The rows of a block of queries in strips; the first position sees `visible` keys and each later one sees one more.
fn strips(rows: usize, group: usize, visible: usize) -> impl Iterator<Item = Strip> {
    (0..rows).step_by(MR).map(move |row| {
        let n = MR.min(rows - row);
        Strip { row, rows: n, seen: (visible + (row + n - 1) / group).min(KEYS) }
    })
}

/// Scores of a block of queries and a block of keys: everything, or on the diagonal what is seen.
fn scores(
    exec: &Exec,
    queries: &Rows,
    (at, rows): (usize, usize),
    keys: &[f32],
    diagonal: Option<(usize, usize)>,
    out: &mut [f32],
) {
    match diagonal {
        None => queries.times(exec, (at, rows), (keys, KEYS), out),
        Some((group, visible)) => {
            for s in strips(rows, group, visible) {
                let out = &mut out[s.row * NARROW..];
                queries.times(exec, (at + s.row, s.rows), (keys, padded(s.seen)), out);
            }
        }
    }
}

/// `acc += weights · b` for a block of queries and a block of keys: everything, or on the diagonal what is seen.
/// `b` has panels of depth [`KEYS`].
fn add_weighted(
    exec: &Exec,
    (weights, pairs): (&[f32], bool),
    (rows, count): (usize, usize),
    b: &[f32],
    diagonal: Option<(usize, usize)>,
    (acc, width): (&mut [f32], usize),
) {
    let mut part = |row: usize, m: usize, keys: usize| {
        exec.run(Product {
            m,
            n: width,
            k: keys.div_ceil(step(pairs)),
            pairs,
            a: (&weights[row * NARROW..], Layout::Narrow),
            b,
            panel: right_panel(KEYS, pairs),
            c: Tile::new(&mut acc[row * width..], m, width, width),
            start: Start::C,
        });
    };
    match diagonal {
        None => part(0, rows, count),
        Some((group, visible)) => strips(rows, group, visible).for_each(|s| part(s.row, s.rows, s.seen)),
    }
}
