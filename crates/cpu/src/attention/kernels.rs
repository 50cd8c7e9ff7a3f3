//! Row kernels of attention. Rows are `position · group + head`.

use super::KEYS;
use crate::exec::Tile;
use crate::gemm::NARROW;
use crate::math::{Element, dot, exp, ln, load, store};
use crate::path::Kernel;
use crate::simd::{LANES, Simd};

/// Vectors in a row of a block of keys.
const PARTS: usize = KEYS / LANES;

/// Turns a block of scores into weights relative to the running maximum, and rescales what came before.
///
/// A block whose keys a row does not see leaves that row as it is, bit for bit.
pub(super) struct OnlineSoftmax<'a> {
    /// In: products. Out: weights, 0 where masked, as f32 or pairs of bf16. Rows `NARROW` apart, `KEYS` columns.
    pub(super) scores: &'a mut [f32],
    pub(super) pairs: bool,
    pub(super) group: usize,
    /// Keys that the rows of the first position see; each later position sees one more.
    pub(super) visible: usize,
    pub(super) scale: f32,
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) acc: &'a mut [f32],
    pub(super) width: usize,
}

impl Kernel for OnlineSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scale, hidden) = (s.splat(self.scale), s.splat(f32::NEG_INFINITY));
        let state = self.max.iter_mut().zip(self.sum).zip(self.acc.chunks_exact_mut(self.width));
        for (row, ((max, sum), acc)) in state.enumerate() {
            let scores = &mut self.scores[row * NARROW..][..KEYS];
            let visible = self.visible + row / self.group;
            let mut v = [hidden; PARTS];
            for (part, v) in v.iter_mut().enumerate() {
                let x = s.mul(load(s, scores, part * LANES), scale);
                *v = s.first(visible.saturating_sub(part * LANES), x, hidden);
            }
            let high = s.largest(s.max(s.max(v[0], v[2]), s.max(v[1], v[3])));
            let high = if high > *max { high } else { *max };
            if high != *max {
                let shrink = exp(s, s.splat(*max - high));
                *sum *= s.array(shrink)[0];
                for at in (0..acc.len()).step_by(LANES) {
                    store(s, s.mul(load(s, acc, at), shrink), acc, at);
                }
                *max = high;
            }
            for (part, v) in v.iter_mut().enumerate() {
                // The weight of a hidden key is 0 without calculation.
                let seen = part * LANES < visible;
                *v = if seen { exp(s, s.sub(*v, s.splat(high))) } else { s.splat(0.0) };
            }
            put_row(s, &v, self.pairs, scores);
            *sum += s.sum(s.add(s.add(v[0], v[2]), s.add(v[1], v[3])));
        }
    }
}

/// Writes the weights of a row as f32 or as pairs of neighbours.
#[inline(always)]
fn put_row<S: Simd>(s: S, v: &[S::V; PARTS], pairs: bool, out: &mut [f32]) {
    if pairs {
        for (i, two) in v.as_chunks::<2>().0.iter().enumerate() {
            store(s, s.narrow_pairs(two[0], two[1]), out, i * LANES);
        }
    } else {
        for (i, v) in v.iter().enumerate() {
            store(s, *v, out, i * LANES);
        }
    }
}

/// Divides by the sums and writes the rows.
pub(super) struct Finish<'a, E> {
    pub(super) acc: &'a [f32],
    pub(super) width: usize,
    pub(super) dim: usize,
    pub(super) group: usize,
    pub(super) max: &'a [f32],
    pub(super) sum: &'a [f32],
    pub(super) out: Tile<'a, E>,
    pub(super) lse: Tile<'a, f32>,
}

impl<E: Element> Kernel for Finish<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for (row, acc) in self.acc.chunks_exact(self.width).enumerate() {
            let (position, head) = (row / self.group, row % self.group);
            let sum = s.splat(self.sum[row]);
            let out = &mut self.out.row(position)[head * self.dim..][..self.dim];
            for at in (0..self.dim).step_by(LANES) {
                store(s, s.div(load(s, acc, at), sum), out, at);
            }
            self.lse.row(position)[head] = self.max[row] + ln(self.sum[row]);
        }
    }
}

/// Turns scores into probabilities and `dP` into the gradient of the unscaled scores, for `positions · group` rows.
pub(super) struct ScoreGrad<'a> {
    /// In: products of queries and keys. Out, without pairs: probabilities, 0 where masked.
    pub(super) scores: &'a mut [f32],
    /// In: products of output gradients and values. Out: gradients of the scores, with pairs as pairs of keys.
    pub(super) grads: &'a mut [f32],
    /// Out, with pairs: probabilities and gradients of the scores as pairs of rows, pair `r` at `r · NARROW`.
    pub(super) turned: Option<[&'a mut [f32]; 2]>,
    pub(super) group: usize,
    /// Keys that the rows of the first position see; each later position sees one more.
    pub(super) visible: usize,
    pub(super) scale: f32,
    pub(super) lse: &'a [f32],
    /// Σ dy · y of every row.
    pub(super) delta: &'a [f32],
}

impl ScoreGrad<'_> {
    /// Probabilities and gradients of one row.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) -> [[S::V; PARTS]; 2] {
        let (zero, scale) = (s.splat(0.0), s.splat(self.scale));
        let (mut p_row, mut d_row) = ([zero; PARTS], [zero; PARTS]);
        let Some((lse, delta)) = self.lse.get(row).zip(self.delta.get(row)) else { return [p_row, d_row] };
        let (scores, grads) = (&self.scores[row * NARROW..][..KEYS], &self.grads[row * NARROW..][..KEYS]);
        let visible = self.visible + row / self.group;
        for (part, (p_out, d_out)) in p_row.iter_mut().zip(&mut d_row).enumerate() {
            let at = part * LANES;
            let here = visible.saturating_sub(at);
            if here > 0 {
                let p = exp(s, s.sub(s.mul(load(s, scores, at), scale), s.splat(*lse)));
                let p = s.first(here, p, zero);
                let d = s.sub(load(s, grads, at), s.splat(*delta));
                *p_out = p;
                *d_out = s.first(here, s.mul(s.mul(p, d), scale), zero);
            }
        }
        [p_row, d_row]
    }
}

impl Kernel for ScoreGrad<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Some([p_turned, d_turned]) = self.turned.take() else {
            for row in 0..self.lse.len() {
                let [p, d] = self.row(s, row);
                put_row(s, &p, false, &mut self.scores[row * NARROW..]);
                put_row(s, &d, false, &mut self.grads[row * NARROW..]);
            }
            return;
        };
        for row in (0..self.lse.len()).step_by(2) {
            let ([p0, d0], [p1, d1]) = (self.row(s, row), self.row(s, row + 1));
            for part in 0..PARTS {
                let at = row / 2 * NARROW + part * LANES;
                store(s, s.narrow_two(p0[part], p1[part]), p_turned, at);
                store(s, s.narrow_two(d0[part], d1[part]), d_turned, at);
            }
            put_row(s, &d0, true, &mut self.grads[row * NARROW..]);
            if row + 1 < self.lse.len() {
                put_row(s, &d1, true, &mut self.grads[(row + 1) * NARROW..]);
            }
        }
    }
}

/// Σ dy · y of one row and head.
pub(super) struct Delta<'a, E> {
    pub(super) dy: &'a [E],
    pub(super) y: &'a [E],
}

impl<E: Element> Kernel for Delta<'_, E> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        dot(s, self.dy, self.y)
    }
}

/// Writes rows of `width` elements, of which `dim` are used, into a tile with one or more heads per row.
pub(super) struct WriteRows<'a, E> {
    pub(super) x: &'a [f32],
    pub(super) width: usize,
    pub(super) dim: usize,
    pub(super) out: Tile<'a, E>,
    /// Whether they are added to what is there.
    pub(super) adds: bool,
}

impl<E: Element> Kernel for WriteRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let group = self.out.cols / self.dim;
        for position in 0..self.out.rows {
            let rows = self.x.chunks_exact(self.width).skip(position * group);
            for (x, out) in rows.zip(self.out.row(position).chunks_exact_mut(self.dim)) {
                for at in (0..self.dim).step_by(LANES) {
                    let x = load(s, x, at);
                    let x = if self.adds { s.add(load(s, out, at), x) } else { x };
                    store(s, x, out, at);
                }
            }
        }
    }
}
