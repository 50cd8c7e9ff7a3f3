//! Attention of some rows of documents over keys and values that are all there, and its gradient.

use std::ops::Range;

use super::attention_bounds::Case;
use super::check::{Bench, DTYPES, Input, same_bits};
use crate::{Attention, Backend, DType, GatheredSegment, Heads, Segment, Segments, Shape, Tensor};

fn heads(query: usize, kv: usize, dim: usize) -> Heads {
    Heads { query, kv, dim }
}

/// Rows of all documents, divided into parts as context parallelism does (from both ends) and otherwise.
fn divisions(total: usize) -> Vec<Vec<Vec<Range<usize>>>> {
    let cut = |n: usize, of: usize| total * n / of..total * (n + 1) / of;
    let pairs = |size: usize| {
        let part = |rank: usize| vec![cut(rank, 2 * size), cut(2 * size - 1 - rank, 2 * size)];
        (0..size).map(part).collect::<Vec<_>>()
    };
    let odd = (0..total).filter(|i| i % 7 == 3).map(|i| i..i + 1).collect();
    vec![pairs(1), pairs(2), pairs(3), pairs(17), vec![odd]]
}

/// The runs of documents in some rows.
fn segments(rows: &[Range<usize>], documents: &Segments) -> Vec<GatheredSegment> {
    let mut next = 0;
    let mut found = Vec::new();
    for rows in rows {
        for document in documents.iter() {
            let (start, end) = (rows.start.max(document.rows.start), rows.end.min(document.rows.end));
            if start < end {
                let (past, first) = (start - document.rows.start, document.rows.start);
                found.push(GatheredSegment {
                    segment: Segment { rows: next..next + end - start, past },
                    first,
                });
                next += end - start;
            }
        }
    }
    found
}

/// Whole documents, and what is to be found of any part of their rows.
struct Whole<'a> {
    bench: &'a Bench<'a>,
    label: String,
    heads: Heads,
    documents: Segments,
    qkv: Input,
    dy: Input,
    kv: Tensor,
    kv_exact: Tensor,
    /// On the backend under test: output, log-sum-exp, gradient.
    got: [Vec<f32>; 3],
    /// Bounds of the gradient.
    bounds: Vec<f64>,
}

impl<'a> Whole<'a> {
    fn new(bench: &'a Bench<'a>, heads: Heads, lengths: &[usize], dtype: DType) -> Self {
        let documents = Segments::documents(lengths.iter().copied());
        let total = documents.total_rows();
        let qkv = bench.random(total as u64, Shape::new(total, heads.width()), dtype, 2.0);
        let dy = bench.random(total as u64 + 1, Shape::new(total, heads.query_width()), dtype, 1.0);
        let want = bench.oracle.attention(&qkv.exact, heads, &documents);
        let (out, lse) = (bench.exact(&want.out), bench.exact(&want.lse));
        let case =
            Case { qkv: &qkv.host, dy: &dy.host, out: &out, lse: &lse, heads, segments: &documents, dtype };
        let bounds = case.bounds().d_qkv;
        let saved = bench.backend.attention(&qkv.device, heads, &documents);
        let gradient = bench.backend.attention_backward(&dy.device, &qkv.device, &saved, heads, &documents);
        let got = [&saved.out, &saved.lse, &gradient].map(|x| bench.backend.download(x));
        let columns = |backend: &dyn Backend, qkv: &Tensor| {
            let mut kv = backend.zeros(Shape::new(total, 2 * heads.kv_width()), dtype);
            backend.copy_rows(&mut kv, 0, qkv, 0..total, heads.query_width()..heads.width());
            kv
        };
        let (kv, kv_exact) = (columns(bench.backend, &qkv.device), columns(&bench.oracle, &qkv.exact));
        let label = format!("{dtype} {heads:?} documents {lengths:?}");
        Self { bench, label, heads, documents, qkv, dy, kv, kv_exact, got, bounds }
    }

    /// Some rows of the inputs, keys and values of `qkv` replaced by NaN.
    fn part(&self, rows: &[Range<usize>]) -> [Input; 2] {
        let (heads, dtype) = (self.heads, self.qkv.exact.dtype());
        let count = rows.iter().map(Range::len).sum();
        let pick = |x: &Input| -> Vec<f32> { rows.iter().flat_map(|r| x.rows(r.clone())).copied().collect() };
        let mut qkv = pick(&self.qkv);
        qkv.chunks_exact_mut(heads.width()).for_each(|row| row[heads.query_width()..].fill(f32::NAN));
        [
            self.bench.input(&qkv, Shape::new(count, heads.width()), dtype),
            self.bench.input(&pick(&self.dy), Shape::new(count, heads.query_width()), dtype),
        ]
    }

    /// `got` of the part has the bits of the whole.
    fn same(&self, what: &str, got: &Tensor, whole: &[f32], rows: &[Range<usize>]) {
        let (stride, width) = (whole.len() / self.documents.total_rows().max(1), got.cols());
        let want: Vec<f32> = rows
            .iter()
            .flat_map(|r| r.clone())
            .flat_map(|i| &whole[i * stride..i * stride + width])
            .copied()
            .collect();
        let label = format!("attention_gathered {what} {} rows {rows:?} against whole documents", self.label);
        same_bits(&label, &self.bench.backend.download(got), &want);
    }

    fn check(&self, rows: &[Range<usize>]) {
        let (backend, oracle, heads) = (self.bench.backend, &self.bench.oracle, self.heads);
        let segments = segments(rows, &self.documents);
        let [qkv, dy] = self.part(rows);
        let saved = backend.attention_gathered(&qkv.device, &self.kv, heads, &segments);
        assert!(saved.out.dtype() == qkv.exact.dtype() && saved.lse.dtype() == DType::F32);
        self.same("out", &saved.out, &self.got[0], rows);
        self.same("lse", &saved.lse, &self.got[1], rows);

        let input = (&qkv.device, &self.kv);
        let (dq, d_kv) = backend.attention_gathered_backward(&dy.device, input, &saved, heads, &segments);
        assert!(dq.dtype() == qkv.exact.dtype(), "attention_gathered_backward {}: {dq:?}", self.label);
        self.same("gradient of queries", &dq, &self.got[2], rows);
        let exact = (&qkv.exact, &self.kv_exact);
        let want: Attention = oracle.attention_gathered(exact.0, exact.1, heads, &segments);
        let (_, want) = oracle.attention_gathered_backward(&dy.exact, exact, &want, heads, &segments);
        let label = format!("attention_gathered_backward kv {} rows {rows:?}", self.label);
        let (cols, width) = (want.cols(), heads.width());
        let seen = |row: usize| segments.iter().any(|s| s.keys().contains(&row));
        self.bench.close(&label, &d_kv, &want, |i| {
            // What the sum over all queries may be off, a part of it may.
            let bound = self.bounds[i / cols * width + heads.query_width() + i % cols];
            if seen(i / cols) { bound } else { 0.0 }
        });
    }
}

/// Any part of the rows of documents: output, log-sum-exp and gradient of the queries have the bits of whole documents; the
/// gradient of keys and values is that part's.
pub fn attention_of_parts(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    let cases = [
        (heads(1, 1, 8), vec![1]),
        (heads(4, 2, 20), vec![5, 1, 66, 17]),
        (heads(6, 3, 16), vec![130, 3]),
        (heads(8, 1, 64), vec![33, 70]),
        (heads(4, 2, 128), vec![65, 64]),
        (heads(2, 1, 16), vec![300]),
        (heads(2, 1, 192), vec![70, 3]),
        (heads(4, 2, 8), vec![]),
    ];
    for dtype in DTYPES {
        for (heads, lengths) in &cases {
            let whole = Whole::new(&bench, *heads, lengths, dtype);
            for division in divisions(whole.documents.total_rows()) {
                division.iter().for_each(|rows| whole.check(rows));
            }
        }
    }
}

/// `concat_columns`: the left as it is, the right rounded to the dtype of the left.
pub fn concat_columns(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for left_dtype in DTYPES {
        for right_dtype in DTYPES {
            for (rows, left, right) in
                [(0, 3, 2), (1, 1, 1), (7, 20, 33), (130, 64, 16), (5, 0, 7), (5, 7, 0)]
            {
                let a = bench.random(1, Shape::new(rows, left), left_dtype, 2.0);
                let b = bench.random(2, Shape::new(rows, right), right_dtype, 2.0);
                let got = backend.concat_columns(&a.device, &b.device);
                let want = bench.oracle.concat_columns(&a.exact, &b.exact);
                let label =
                    format!("concat_columns {left_dtype} [{rows}, {left}], {right_dtype} [{rows}, {right}]");
                bench.close(&label, &got, &want, |_| 0.0);
                let rounded = backend.download(&backend.cast(&b.device, left_dtype));
                let got = backend.download(&got);
                let row = |x: &[f32], i: usize, width: usize| x[i * width..(i + 1) * width].to_vec();
                let want: Vec<f32> = (0..rows)
                    .flat_map(|i| [row(&a.host, i, left), row(&rounded, i, right)].concat())
                    .collect();
                same_bits(&label, &got, &want);
            }
        }
    }
}
