//! Attention of the oracle: one row and one head at a time, all scores of a row at once.

use super::{Oracle, dot, log_sum_exp, row};
use crate::{Attention, CachedSegment, DType, Heads, Segments, Shape, Tensor};

/// Panics unless `qkv` has the width of `heads` and the rows of `segments`.
pub(super) fn require_packed(op: &str, qkv: &Tensor, heads: Heads, segments: &Segments) {
    let fits = qkv.cols() == heads.width() && qkv.rows() == segments.total_rows();
    assert!(fits, "{op}: {qkv:?} does not fit {heads:?} and {} packed rows", segments.total_rows());
    let divides = heads.kv > 0 && heads.query.is_multiple_of(heads.kv) && heads.dim.is_multiple_of(2);
    assert!(divides, "{op}: {heads:?}: kv must divide query, dim must be even");
}

/// Where a head lies in a row of `qkv`.
#[derive(Clone, Copy)]
struct Columns {
    query: usize,
    key: usize,
    value: usize,
    dim: usize,
}

impl Columns {
    fn of(heads: Heads, h: usize) -> Self {
        let group = h / (heads.query / heads.kv);
        Self {
            query: h * heads.dim,
            key: heads.query_width() + group * heads.dim,
            value: heads.query_width() + heads.kv_width() + group * heads.dim,
            dim: heads.dim,
        }
    }

    fn query(self, qkv: &Tensor, t: usize) -> &[f64] {
        &row(qkv, t)[self.query..self.query + self.dim]
    }

    fn key(self, qkv: &Tensor, t: usize) -> &[f64] {
        &row(qkv, t)[self.key..self.key + self.dim]
    }

    fn value(self, qkv: &Tensor, t: usize) -> &[f64] {
        &row(qkv, t)[self.value..self.value + self.dim]
    }
}

fn scale(heads: Heads) -> f64 {
    1.0 / (heads.dim as f64).sqrt()
}

/// Softmax attention of one query over keys and values; returns the output and the log-sum-exp of the scores.
fn attend<'a>(
    query: &[f64],
    keys: impl Iterator<Item = &'a [f64]>,
    values: impl Iterator<Item = &'a [f64]>,
) -> (Vec<f64>, f64) {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let scores: Vec<f64> = keys.map(|k| scale * dot(query, k)).collect();
    let lse = log_sum_exp(&scores);
    let mut out = vec![0.0; query.len()];
    for (score, value) in scores.iter().zip(values) {
        let p = (score - lse).exp();
        out.iter_mut().zip(value).for_each(|(o, v)| *o += p * v);
    }
    (out, lse)
}

pub(super) fn forward(oracle: &Oracle, qkv: &Tensor, heads: Heads, segments: &Segments) -> Attention {
    require_packed("attention", qkv, heads, segments);
    assert!(segments.iter().all(|s| s.past == 0), "attention: a segment has a past: {segments:?}");
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for document in segments.iter() {
        for i in document.rows.clone() {
            let seen = document.rows.start..=i;
            for h in 0..heads.query {
                let at = Columns::of(heads, h);
                let keys = seen.clone().map(|j| at.key(qkv, j));
                let values = seen.clone().map(|j| at.value(qkv, j));
                let (o, l) = attend(at.query(qkv, i), keys, values);
                out.extend(o);
                lse.push(l);
            }
        }
    }
    Attention {
        out: oracle.make(Shape::new(qkv.rows(), heads.query_width()), qkv.dtype(), out),
        lse: oracle.make(Shape::new(qkv.rows(), heads.query), DType::F32, lse),
    }
}

pub(super) fn backward(
    oracle: &Oracle,
    dy: &Tensor,
    qkv: &Tensor,
    saved: &Attention,
    (heads, segments): (Heads, &Segments),
) -> Tensor {
    require_packed("attention_backward", qkv, heads, segments);
    let fits = dy.shape() == Shape::new(qkv.rows(), heads.query_width())
        && saved.out.shape() == dy.shape()
        && saved.lse.shape() == Shape::new(qkv.rows(), heads.query);
    assert!(fits, "attention_backward: {dy:?}, {:?} and {:?} do not fit {qkv:?}", saved.out, saved.lse);
    let mut d_qkv = vec![0.0; qkv.shape().elements()];
    for document in segments.iter() {
        for i in document.rows.clone() {
            for h in 0..heads.query {
                let at = Columns::of(heads, h);
                let d_out = &row(dy, i)[at.query..at.query + heads.dim];
                let delta = dot(d_out, &row(&saved.out, i)[at.query..at.query + heads.dim]);
                for j in document.rows.start..=i {
                    let score = scale(heads) * dot(at.query(qkv, i), at.key(qkv, j));
                    let p = (score - row(&saved.lse, i)[h]).exp();
                    let d_score = scale(heads) * p * (dot(d_out, at.value(qkv, j)) - delta);
                    for d in 0..heads.dim {
                        d_qkv[i * qkv.cols() + at.query + d] += d_score * at.key(qkv, j)[d];
                        d_qkv[j * qkv.cols() + at.key + d] += d_score * at.query(qkv, i)[d];
                        d_qkv[j * qkv.cols() + at.value + d] += p * d_out[d];
                    }
                }
            }
        }
    }
    oracle.make(qkv.shape(), qkv.dtype(), d_qkv)
}

pub(super) fn cached(oracle: &Oracle, qkv: &Tensor, heads: Heads, segments: &[CachedSegment<'_>]) -> Tensor {
    let packed = Segments::new(segments.iter().map(|s| s.segment.clone()).collect());
    require_packed("attention_cached", qkv, heads, &packed);
    let mut out = Vec::new();
    for CachedSegment { segment, keys, values } in segments {
        let end = segment.past + segment.rows.len();
        let fits = [keys, values].iter().all(|c| c.cols() == heads.kv_width() && c.rows() >= end);
        assert!(fits, "attention_cached: {keys:?} and {values:?} do not hold {end} rows of {heads:?}");
        for (n, i) in segment.rows.clone().enumerate() {
            for h in 0..heads.query {
                let at = Columns::of(heads, h);
                let group = at.key - heads.query_width();
                let seen = 0..=segment.past + n;
                let head = |cache, j| &row(cache, j)[group..group + heads.dim];
                let (o, _) = attend(
                    at.query(qkv, i),
                    seen.clone().map(|j| head(keys, j)),
                    seen.clone().map(|j| head(values, j)),
                );
                out.extend(o);
            }
        }
    }
    oracle.make(Shape::new(qkv.rows(), heads.query_width()), qkv.dtype(), out)
}
