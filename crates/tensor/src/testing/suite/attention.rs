//! Causal attention inside packed documents, and its gradient.

use super::attention_bounds::Case;
use super::check::{Bench, DTYPES, Input, same_bits};
use crate::testing::random;
use crate::{Attention, Backend, DType, Heads, Segments, Shape, Tensor};

const HEADS: [(usize, usize); 4] = [(1, 1), (4, 2), (6, 3), (8, 1)];
const DIMS: [usize; 6] = [2, 8, 16, 20, 64, 128];

fn heads(query: usize, kv: usize, dim: usize) -> Heads {
    Heads { query, kv, dim }
}

/// Short documents for every head layout and width, documents longer than any block for some.
fn cases() -> Vec<(Heads, Vec<usize>)> {
    let mut cases = Vec::new();
    for (query, kv) in HEADS {
        for dim in DIMS {
            for lengths in [vec![1], vec![1, 7, 1, 17], vec![33, 3]] {
                cases.push((heads(query, kv, dim), lengths));
            }
        }
    }
    let long =
        [heads(1, 1, 64), heads(4, 2, 16), heads(6, 3, 20), heads(8, 1, 8), heads(4, 2, 128), heads(2, 1, 2)];
    for heads in long {
        for lengths in [vec![65, 1, 33], vec![64, 64], vec![130], vec![1, 129, 2, 70]] {
            cases.push((heads, lengths));
        }
    }
    cases.push((heads(2, 1, 16), vec![300]));
    // Wider than what a kernel may take at a time.
    cases.push((heads(2, 1, 192), vec![70, 3]));
    cases.push((heads(2, 1, 2100), vec![5, 2]));
    cases.push((heads(4, 2, 8), vec![]));
    cases
}

/// Inputs and exact results of one case.
struct Run {
    label: String,
    heads: Heads,
    segments: Segments,
    dtype: DType,
    qkv: Input,
    dy: Input,
    want: Attention,
}

impl Run {
    fn new(bench: &Bench<'_>, heads: Heads, lengths: &[usize], dtype: DType, scale: f32) -> Self {
        let segments = Segments::documents(lengths.iter().copied());
        let rows = segments.total_rows();
        let qkv = bench.random(rows as u64, Shape::new(rows, heads.width()), dtype, scale);
        let dy = bench.random(rows as u64 + 1, Shape::new(rows, heads.query_width()), dtype, 1.0);
        let Heads { query, kv, dim } = heads;
        let label =
            format!("{dtype} qkv [{rows}, {}] heads {query}/{kv}x{dim} documents {lengths:?}", heads.width());
        let want = bench.oracle.attention(&qkv.exact, heads, &segments);
        Self { label, heads, segments, dtype, qkv, dy, want }
    }

    fn bounds(&self, bench: &Bench<'_>) -> super::attention_bounds::Bounds {
        let (out, lse) = (bench.exact(&self.want.out), bench.exact(&self.want.lse));
        let (qkv, dy) = (&self.qkv.host, &self.dy.host);
        let (heads, segments, dtype) = (self.heads, &self.segments, self.dtype);
        Case { qkv, dy, out: &out, lse: &lse, heads, segments, dtype }.bounds()
    }

    fn check_forward(&self, bench: &Bench<'_>) {
        let bounds = self.bounds(bench);
        let got = bench.backend.attention(&self.qkv.device, self.heads, &self.segments);
        let label = &self.label;
        bench.close(&format!("attention out {label}"), &got.out, &self.want.out, |i| bounds.out[i]);
        bench.close(&format!("attention lse {label}"), &got.lse, &self.want.lse, |i| bounds.lse[i]);
    }

    fn check_backward(&self, bench: &Bench<'_>) {
        let bounds = self.bounds(bench);
        let (heads, segments) = (self.heads, &self.segments);
        let saved = bench.backend.attention(&self.qkv.device, heads, segments);
        let got =
            bench.backend.attention_backward(&self.dy.device, &self.qkv.device, &saved, heads, segments);
        let want =
            bench.oracle.attention_backward(&self.dy.exact, &self.qkv.exact, &self.want, heads, segments);
        bench.close(&format!("attention_backward {}", self.label), &got, &want, |i| bounds.d_qkv[i]);
    }
}

/// `attention`: output and log-sum-exp.
pub fn forward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (heads, lengths) in cases() {
            Run::new(&bench, heads, &lengths, dtype, 3.0).check_forward(&bench);
        }
    }
}

/// `attention_backward`, from what the backend's own forward saved.
pub fn backward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (heads, lengths) in cases() {
            Run::new(&bench, heads, &lengths, dtype, 2.0).check_backward(&bench);
        }
    }
}

/// Scores far outside the range of `exp` in f32 neither overflow nor vanish.
pub fn large_scores(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for lengths in [vec![7], vec![70, 3]] {
            Run::new(&bench, heads(2, 1, 8), &lengths, dtype, 60.0).check_forward(&bench);
        }
    }
}

fn forward_and_gradient(
    backend: &dyn Backend,
    qkv: &Tensor,
    dy: &Tensor,
    heads: Heads,
    lengths: &[usize],
) -> [Vec<f32>; 3] {
    let segments = Segments::documents(lengths.iter().copied());
    let saved = backend.attention(qkv, heads, &segments);
    let gradient = backend.attention_backward(dy, qkv, &saved, heads, &segments);
    [&saved.out, &saved.lse, &gradient].map(|x| backend.download(x))
}

/// Packed documents give the bits of separate ones, forward and backward; a NaN in one does not reach another.
pub fn packed_documents(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    let layouts = [
        (heads(1, 1, 16), vec![5, 1, 3]),
        (heads(4, 2, 20), vec![1, 66, 17, 130]),
        (heads(8, 1, 64), vec![33, 1, 64, 2]),
    ];
    for dtype in DTYPES {
        for (heads, lengths) in &layouts {
            for poisoned in [false, true] {
                let heads = *heads;
                let total: usize = lengths.iter().sum();
                let mut host = random(3, total * heads.width(), 2.0);
                if poisoned {
                    host[..lengths[0] * heads.width()].fill(f32::NAN);
                }
                let qkv = bench.input(&host, Shape::new(total, heads.width()), dtype);
                let dy = bench.random(4, Shape::new(total, heads.query_width()), dtype, 1.0);
                let packed = forward_and_gradient(backend, &qkv.device, &dy.device, heads, lengths);
                let mut start = 0;
                for &length in lengths {
                    let rows = start..start + length;
                    let [qkv, dy] = [&qkv, &dy].map(|x| x.upload_rows(backend, rows.clone()));
                    let alone = forward_and_gradient(backend, &qkv, &dy, heads, &[length]);
                    for (part, (alone, packed)) in
                        ["out", "lse", "d_qkv"].iter().zip(alone.iter().zip(&packed))
                    {
                        let width = packed.len() / total;
                        let label = format!(
                            "attention {dtype} {heads:?} {part}, document of rows {rows:?} packed in {lengths:?} against alone, first document NaN: {poisoned}"
                        );
                        same_bits(&label, &packed[rows.start * width..rows.end * width], alone);
                    }
                    start += length;
                }
            }
        }
    }
}

/// A row does not change when later rows of its document change or are cut off.
pub fn causal(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    let (heads, total) = (heads(4, 2, 16), 140);
    for dtype in DTYPES {
        let qkv = bench.random(5, Shape::new(total, heads.width()), dtype, 2.0);
        let whole = backend.attention(&qkv.device, heads, &Segments::documents([total]));
        let whole = [&whole.out, &whole.lse].map(|x| backend.download(x));
        for keep in [1, 2, 7, 63, 64, 65, 128, 139] {
            let cut =
                backend.attention(&qkv.upload_rows(backend, 0..keep), heads, &Segments::documents([keep]));
            let mut host = qkv.host.clone();
            host[keep * heads.width()..].fill(1e4);
            let changed = backend.upload(&host, qkv.exact.shape(), dtype);
            let changed = backend.attention(&changed, heads, &Segments::documents([total]));
            for (how, got) in [("cut off", cut), ("changed", changed)] {
                for (part, (got, want)) in ["out", "lse"].iter().zip([&got.out, &got.lse].iter().zip(&whole))
                {
                    let label =
                        format!("attention {dtype} {heads:?} {part}, rows after {keep} of {total} {how}");
                    let n = want.len() / total * keep;
                    same_bits(&label, &backend.download(got)[..n], &want[..n]);
                }
            }
        }
    }
}
