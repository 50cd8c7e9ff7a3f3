//! Error bounds of attention: how far rounding may move each element, see the parent module.

use super::check::{FEW, U, operand_unit, unit};
use crate::{DType, Heads, Segments};

/// Bounds of the forward results and of the gradient, element by element.
pub(super) struct Bounds {
    pub(super) out: Vec<f64>,
    pub(super) lse: Vec<f64>,
    pub(super) d_qkv: Vec<f64>,
}

/// One case: its inputs on the host as the dtype holds them, and the exact forward results.
pub(super) struct Case<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) dy: &'a [f32],
    pub(super) out: &'a [f64],
    pub(super) lse: &'a [f64],
    pub(super) heads: Heads,
    pub(super) segments: &'a Segments,
    pub(super) dtype: DType,
}

/// One query row and head of a case.
#[derive(Clone, Copy)]
struct At {
    row: usize,
    head: usize,
    /// First row of the document.
    first: usize,
}

/// One score of a row: its key's row and its probability.
struct Score {
    key_row: usize,
    p: f64,
}

impl Case<'_> {
    fn width(&self) -> usize {
        self.heads.width()
    }

    fn query(&self, at: At) -> usize {
        at.row * self.width() + at.head * self.heads.dim
    }

    fn key(&self, at: At, row: usize) -> usize {
        let group = at.head / (self.heads.query / self.heads.kv);
        row * self.width() + self.heads.query_width() + group * self.heads.dim
    }

    fn value(&self, at: At, row: usize) -> usize {
        self.key(at, row) + self.heads.kv_width()
    }

    /// `(Σ a b, Σ |a b|)` over a head of `a` at `i` and `b` at `j`.
    fn dots(&self, a: &[f32], i: usize, b: &[f32], j: usize) -> (f64, f64) {
        let products = (0..self.heads.dim).map(|d| f64::from(a[i + d]) * f64::from(b[j + d]));
        products.fold((0.0, 0.0), |(sum, magnitude), p| (sum + p, magnitude + p.abs()))
    }

    /// The scores of a row, and how far the largest error of one of them may be.
    fn scores(&self, at: At) -> (Vec<Score>, f64) {
        let scale = 1.0 / (self.heads.dim as f64).sqrt();
        let lse = self.lse[at.row * self.heads.query + at.head];
        let mut error: f64 = 0.0;
        let scores = (at.first..=at.row).map(|key_row| {
            let (sum, magnitude) = self.dots(self.qkv, self.query(at), self.qkv, self.key(at, key_row));
            // The product itself, the scaling, and differences of scores while the maximum moves.
            error = error.max((self.heads.dim as f64 + 2.0 * FEW) * U * magnitude * scale);
            Score { key_row, p: (sum * scale - lse).exp() }
        });
        (scores.collect(), error)
    }

    /// Bounds of this case.
    pub(super) fn bounds(&self) -> Bounds {
        let mut bounds = Bounds {
            out: vec![0.0; self.out.len()],
            lse: vec![0.0; self.lse.len()],
            d_qkv: vec![0.0; self.qkv.len()],
        };
        for document in self.segments.iter() {
            for row in document.rows.clone() {
                for head in 0..self.heads.query {
                    let at = At { row, head, first: document.rows.start };
                    self.row(at, document.rows.len(), &mut bounds);
                }
            }
        }
        bounds
    }

    fn row(&self, at: At, length: usize, bounds: &mut Bounds) {
        let dim = self.heads.dim;
        let (scores, score_error) = self.scores(at);
        let terms = (scores.len() as f64 + FEW) * U;
        // Probabilities relative to their exact values.
        let relative = (2.0 * score_error).exp_m1() + terms + operand_unit(self.dtype);
        let out = at.row * self.heads.query_width() + at.head * dim;
        for s in &scores {
            let value = self.value(at, s.key_row);
            (0..dim)
                .for_each(|d| bounds.out[out + d] += relative * s.p * f64::from(self.qkv[value + d]).abs());
        }
        let lse = at.row * self.heads.query + at.head;
        bounds.lse[lse] = score_error + terms + 4.0 * U * self.lse[lse].abs();
        self.row_backward(at, length, &scores, score_error + bounds.lse[lse], bounds);
    }

    /// Adds this row's part of the gradient's bounds; `exponent` bounds the error of `score − lse`.
    fn row_backward(&self, at: At, length: usize, scores: &[Score], exponent: f64, bounds: &mut Bounds) {
        let dim = self.heads.dim;
        let out = at.row * self.heads.query_width() + at.head * dim;
        let (mut delta, mut delta_error) = (0.0, 0.0);
        for d in 0..dim {
            let (dy, o) = (f64::from(self.dy[out + d]), self.out[out + d]);
            delta += dy * o;
            // The saved output is off by its own bound and by its storing.
            let stored = bounds.out[out + d] * 1.01 + unit(self.dtype) * o.abs();
            delta_error += dy.abs() * ((dim as f64 + 4.0) * U * o.abs() + stored);
        }
        let relative = exponent.exp_m1() + FEW * U;
        // Terms of the sums over keys, and over the queries of a key's whole group.
        let query_terms = (scores.len() as f64 + 4.0) * U;
        let key_terms = ((length * self.heads.query / self.heads.kv) as f64 + 4.0) * U;
        let scale = 1.0 / (dim as f64).sqrt();
        let (rounding, query) = (operand_unit(self.dtype), self.query(at));
        for s in scores {
            let (key, value) = (self.key(at, s.key_row), self.value(at, s.key_row));
            let (d_p, d_p_magnitude) = self.dots(self.dy, out, self.qkv, value);
            let off = (dim as f64 + 4.0) * U * d_p_magnitude + delta_error;
            let d_score = s.p * (d_p - delta).abs();
            let d_score_error = s.p * off * (1.0 + relative) + d_score * (relative + 4.0 * U + rounding);
            for d in 0..dim {
                let (q, k) = (f64::from(self.qkv[query + d]).abs(), f64::from(self.qkv[key + d]).abs());
                let dy = f64::from(self.dy[out + d]).abs();
                bounds.d_qkv[query + d] += scale * (d_score_error + query_terms * d_score) * k;
                bounds.d_qkv[key + d] += scale * (d_score_error + key_terms * d_score) * q;
                bounds.d_qkv[value + d] += s.p * (relative + rounding + key_terms) * dy;
            }
        }
    }
}
