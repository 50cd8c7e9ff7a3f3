//! Attention of the oracle: one row and one head at a time, all scores of a row at once.

use super::{Oracle, dot, log_sum_exp, row};
use crate::kv::plain_rows;
use crate::{
    Attention, DType, GatheredSegment, Heads, KV_PAGE, KvLayout, PagedSegment, Segments, Shape, Tensor,
};

/// Panics unless `qkv` has the width of `heads` and the rows of `segments`.
pub(super) fn require_packed(op: &str, qkv: &Tensor, heads: Heads, segments: &Segments) {
    let fits = qkv.cols() == heads.width() && qkv.rows() == segments.total_rows();
    assert!(fits, "{op}: {qkv:?} does not fit {heads:?} and {} packed rows", segments.total_rows());
    let divides = heads.kv > 0 && heads.query.is_multiple_of(heads.kv) && heads.dim.is_multiple_of(2);
    assert!(divides, "{op}: {heads:?}: kv must divide query, dim must be even");
}

/// Panics unless the queries, and the keys and values of their own, fit `segments`.
fn require_gathered(op: &str, (qkv, kv): (&Tensor, &Tensor), heads: Heads, segments: &[GatheredSegment]) {
    let fits = qkv.cols() == heads.width() && kv.cols() == 2 * heads.kv_width() && kv.dtype() == qkv.dtype();
    assert!(
        fits && GatheredSegment::fit(segments, qkv.rows(), kv.rows()),
        "{op}: {qkv:?} and {kv:?} do not fit {heads:?} and {segments:?}"
    );
}

/// Where a head lies: the query in a row of `qkv`, key and value in a row whose keys begin at column `keys`.
#[derive(Clone, Copy)]
struct Columns {
    query: usize,
    key: usize,
    value: usize,
    dim: usize,
}

impl Columns {
    fn of(heads: Heads, h: usize, keys: usize) -> Self {
        let key = keys + h / (heads.query / heads.kv) * heads.dim;
        Self { query: h * heads.dim, key, value: key + heads.kv_width(), dim: heads.dim }
    }

    fn query(self, qkv: &Tensor, t: usize) -> &[f64] {
        &row(qkv, t)[self.query..self.query + self.dim]
    }

    fn key(self, kv: &Tensor, t: usize) -> &[f64] {
        &row(kv, t)[self.key..self.key + self.dim]
    }

    fn value(self, kv: &Tensor, t: usize) -> &[f64] {
        &row(kv, t)[self.value..self.value + self.dim]
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

/// Whole documents as segments over the keys and values in the same rows.
fn whole(segments: &Segments) -> Vec<GatheredSegment> {
    segments.iter().map(|s| GatheredSegment { segment: s.clone(), first: s.rows.start }).collect()
}

pub(super) fn forward(oracle: &Oracle, qkv: &Tensor, heads: Heads, segments: &Segments) -> Attention {
    require_packed("attention", qkv, heads, segments);
    assert!(segments.iter().all(|s| s.past == 0), "attention: a segment has a past: {segments:?}");
    attend_all(oracle, qkv, (qkv, heads.query_width()), heads, &whole(segments))
}

pub(super) fn gathered(
    oracle: &Oracle,
    (qkv, kv): (&Tensor, &Tensor),
    heads: Heads,
    segments: &[GatheredSegment],
) -> Attention {
    require_gathered("attention_gathered", (qkv, kv), heads, segments);
    attend_all(oracle, qkv, (kv, 0), heads, segments)
}

/// Every query over the keys and values in `kv`, which begin at a column.
fn attend_all(
    oracle: &Oracle,
    qkv: &Tensor,
    (kv, keys): (&Tensor, usize),
    heads: Heads,
    segments: &[GatheredSegment],
) -> Attention {
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for GatheredSegment { segment, first } in segments {
        for (n, i) in segment.rows.clone().enumerate() {
            let seen = *first..=first + segment.past + n;
            for h in 0..heads.query {
                let at = Columns::of(heads, h, keys);
                let keys = seen.clone().map(|j| at.key(kv, j));
                let values = seen.clone().map(|j| at.value(kv, j));
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
    require_saved("attention_backward", (dy, qkv), saved, heads);
    let at = (qkv, heads.query_width());
    let (mut d_qkv, d_kv) = gradients((dy, qkv), at, saved, heads, &whole(segments));
    d_qkv.iter_mut().zip(d_kv).for_each(|(q, kv)| *q += kv);
    oracle.make(qkv.shape(), qkv.dtype(), d_qkv)
}

pub(super) fn gathered_backward(
    oracle: &Oracle,
    dy: &Tensor,
    (qkv, kv): (&Tensor, &Tensor),
    saved: &Attention,
    (heads, segments): (Heads, &[GatheredSegment]),
) -> (Tensor, Tensor) {
    require_gathered("attention_gathered_backward", (qkv, kv), heads, segments);
    require_saved("attention_gathered_backward", (dy, qkv), saved, heads);
    let (d_qkv, d_kv) = gradients((dy, qkv), (kv, 0), saved, heads, segments);
    let d_queries = d_qkv.chunks_exact(heads.width()).flat_map(|row| &row[..heads.query_width()]);
    let d_queries = oracle.make(dy.shape(), qkv.dtype(), d_queries.copied().collect());
    (d_queries, oracle.make(kv.shape(), DType::F32, d_kv))
}

fn require_saved(op: &str, (dy, qkv): (&Tensor, &Tensor), saved: &Attention, heads: Heads) {
    let fits = dy.shape() == Shape::new(qkv.rows(), heads.query_width())
        && saved.out.shape() == dy.shape()
        && saved.lse.shape() == Shape::new(qkv.rows(), heads.query);
    assert!(fits, "{op}: {dy:?}, {:?} and {:?} do not fit {qkv:?}", saved.out, saved.lse);
}

/// Gradients of the queries, in the columns of `qkv`, and of the keys and values, in those of `kv`.
fn gradients(
    (dy, qkv): (&Tensor, &Tensor),
    (kv, keys): (&Tensor, usize),
    saved: &Attention,
    heads: Heads,
    segments: &[GatheredSegment],
) -> (Vec<f64>, Vec<f64>) {
    let (mut d_qkv, mut d_kv) = (vec![0.0; qkv.shape().elements()], vec![0.0; kv.shape().elements()]);
    for GatheredSegment { segment, first } in segments {
        for (n, i) in segment.rows.clone().enumerate() {
            for h in 0..heads.query {
                let at = Columns::of(heads, h, keys);
                let d_out = &row(dy, i)[at.query..at.query + heads.dim];
                let delta = dot(d_out, &row(&saved.out, i)[at.query..at.query + heads.dim]);
                for j in *first..=first + segment.past + n {
                    let score = scale(heads) * dot(at.query(qkv, i), at.key(kv, j));
                    let p = (score - row(&saved.lse, i)[h]).exp();
                    let d_score = scale(heads) * p * (dot(d_out, at.value(kv, j)) - delta);
                    for d in 0..heads.dim {
                        d_qkv[i * qkv.cols() + at.query + d] += d_score * at.key(kv, j)[d];
                        d_kv[j * kv.cols() + at.key + d] += d_score * at.query(qkv, i)[d];
                        d_kv[j * kv.cols() + at.value + d] += p * d_out[d];
                    }
                }
            }
        }
    }
    (d_qkv, d_kv)
}

pub(super) fn paged(
    oracle: &Oracle,
    qkv: &Tensor,
    (layout, layer): (KvLayout, usize),
    segments: &[PagedSegment<'_>],
) -> Tensor {
    let heads = layout.heads;
    let packed = Segments::new(segments.iter().map(|s| s.segment.clone()).collect());
    require_packed("attention_paged", qkv, heads, &packed);
    let [keys, values] = plain_rows(layer);
    let mut out = Vec::new();
    for PagedSegment { segment, pages } in segments {
        let (end, room) = (segment.past + segment.rows.len(), pages.len() * KV_PAGE);
        assert!(end <= room, "attention_paged: {end} positions in pages for {room}");
        for (n, i) in segment.rows.clone().enumerate() {
            for h in 0..heads.query {
                let at = Columns::of(heads, h, 0);
                let seen = 0..=segment.past + n;
                let head = |first, j| at.key(pages[j / KV_PAGE], first + j % KV_PAGE);
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
