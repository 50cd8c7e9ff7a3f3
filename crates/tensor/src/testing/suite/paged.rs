//! Attention over pages of keys and values.

use std::ops::Range;

use super::check::{DTYPES, rounded, same_bits};
use crate::testing::random;
use crate::{
    Backend, DType, Heads, KV_PAGE, KvFormat, KvLayout, PagedSegment, Segment, Segments, Shape, Tensor,
    kv_int8,
};

/// A request whose rows arrive in chunks.
struct Request {
    qkv: Vec<f32>,
    chunks: Vec<usize>,
    pages: Vec<Tensor>,
    done: usize,
    /// What each layer gives over the whole document.
    want: Vec<Vec<f32>>,
}

/// `qkv` with keys and values as a page of `layout` keeps them.
fn kept(qkv: &[f32], layout: KvLayout, dtype: DType) -> Vec<f32> {
    let (heads, mut out) = (layout.heads, qkv.to_vec());
    if layout.format == KvFormat::Int8 {
        let mut q = vec![0; heads.dim];
        for row in out.chunks_exact_mut(heads.width()) {
            for head in row[heads.query_width()..].chunks_exact_mut(heads.dim) {
                let scale = kv_int8(head, &mut q);
                head.iter_mut().zip(&q).for_each(|(x, q)| *x = f32::from(*q) * scale);
            }
        }
    }
    rounded(&out, dtype)
}

/// The rows of a layer: those of the first, turned round in sign and order.
fn of_layer(qkv: &[f32], layer: usize) -> Vec<f32> {
    if layer == 0 { qkv.to_vec() } else { qkv.iter().rev().map(|x| -x).collect() }
}

impl Request {
    fn new(backend: &dyn Backend, layout: KvLayout, chunks: &[usize], dtype: DType) -> Self {
        let (heads, total) = (layout.heads, chunks.iter().sum::<usize>());
        let qkv = rounded(&random(total as u64, total * heads.width(), 2.0), dtype);
        let want = (0..layout.layers).map(|layer| {
            let rows = kept(&of_layer(&qkv, layer), layout, dtype);
            let rows = backend.upload(&rows, Shape::new(total, heads.width()), dtype);
            backend.download(&backend.attention(&rows, heads, &Segments::documents([total])).out)
        });
        Self { want: want.collect(), qkv, chunks: chunks.to_vec(), pages: Vec::new(), done: 0 }
    }

    /// Rows of step `step`, none when the request is finished.
    fn rows(&self, step: usize) -> Range<usize> {
        self.done..self.done + self.chunks.get(step).copied().unwrap_or(0)
    }

    /// Appends rows of a packed batch.
    fn append(&mut self, backend: &dyn Backend, layer: (KvLayout, usize), qkv: &Tensor, rows: Range<usize>) {
        let mut next = rows.start;
        while next < rows.end {
            let position = self.done + next - rows.start;
            let at = position % KV_PAGE;
            let count = (KV_PAGE - at).min(rows.end - next);
            if self.pages.len() == position / KV_PAGE {
                self.pages.push(backend.kv_page(layer.0, qkv.dtype()));
            }
            backend.kv_append(&mut self.pages[position / KV_PAGE], layer, at, qkv, next..next + count);
            next += count;
        }
    }
}

/// Prefill, chunked prefill and one-row decoding of several requests at once give the bits of whole documents, whatever
/// became of the pages meanwhile: copied, or saved and restored.
pub fn attention(backend: &dyn Backend) {
    let mut decode = vec![70, 33];
    decode.extend([1; 30]);
    let plans: [&[usize]; 4] = [&decode, &[1, 1, 64, 1, 2, 1, 65], &[5, 1, 1, 1], &[130, 1, 7]];
    for (format, dtype) in [KvFormat::Same, KvFormat::Int8].iter().flat_map(|f| DTYPES.map(|d| (*f, d))) {
        for (query, kv, dim) in [(1, 1, 8), (4, 2, 20), (8, 1, 16), (6, 3, 64), (4, 2, 128)] {
            let layout = KvLayout { layers: 2, heads: Heads { query, kv, dim }, format };
            let mut requests = plans.map(|chunks| Request::new(backend, layout, chunks, dtype));
            for step in 0..decode.len() {
                paged_step(backend, layout, dtype, &mut requests, step);
            }
        }
    }
}

fn paged_step(backend: &dyn Backend, layout: KvLayout, dtype: DType, requests: &mut [Request], step: usize) {
    let (width, out) = (layout.heads.width(), layout.heads.query_width());
    for layer in 0..layout.layers {
        let (mut packed, mut segments) = (Vec::new(), Vec::new());
        for request in requests.iter() {
            let (rows, start) = (request.rows(step), packed.len() / width);
            let qkv = of_layer(&request.qkv, layer);
            packed.extend_from_slice(&qkv[rows.start * width..rows.end * width]);
            segments.push(Segment { rows: start..start + rows.len(), past: request.done });
        }
        let qkv = backend.upload(&packed, Shape::new(packed.len() / width, width), dtype);
        for (request, segment) in requests.iter_mut().zip(&segments) {
            request.append(backend, (layout, layer), &qkv, segment.rows.clone());
        }
        // Finished requests leave the batch.
        let present = requests.iter().zip(&segments).filter(|(_, segment)| !segment.rows.is_empty());
        let paged: Vec<PagedSegment<'_>> = present
            .map(|(r, segment)| PagedSegment { segment: segment.clone(), pages: r.pages.iter().collect() })
            .collect();
        let got = backend.attention_paged(&qkv, (layout, layer), &paged);
        let shape = Shape::new(qkv.rows(), out);
        assert!(got.shape() == shape && got.dtype() == dtype, "attention_paged: {got:?}");
        let got = backend.download(&got);
        for (n, (request, segment)) in requests.iter().zip(&segments).enumerate() {
            let rows = request.rows(step);
            let label = format!(
                "attention_paged {dtype} {layout:?} layer {layer} step {step}, request {n}, positions {rows:?}, against \
                 the whole document"
            );
            let want = &request.want[layer][rows.start * out..rows.end * out];
            same_bits(&label, &got[segment.rows.start * out..segment.rows.end * out], want);
        }
    }
    for request in requests {
        request.done = request.rows(step).end;
        for page in &mut request.pages {
            match step % 3 {
                0 => *page = backend.kv_copy(page),
                1 => *page = backend.kv_restore(&backend.kv_save(page), layout, dtype),
                _ => {}
            }
        }
    }
}

/// A page that a shorter request leaves behind is used again: what is beyond the positions in question does not matter.
pub fn leftovers(backend: &dyn Backend) {
    let heads = Heads { query: 4, kv: 2, dim: 16 };
    for (format, dtype) in [KvFormat::Same, KvFormat::Int8].iter().flat_map(|f| DTYPES.map(|d| (*f, d))) {
        let layout = KvLayout { layers: 1, heads, format };
        let rows = |seed: u64, n: usize| {
            backend.upload(&random(seed, n * heads.width(), 3.0), Shape::new(n, heads.width()), dtype)
        };
        let (old, new) = (rows(1, KV_PAGE), rows(2, 9));
        let run = |fill: bool| {
            let mut page = backend.kv_page(layout, dtype);
            if fill {
                backend.kv_append(&mut page, (layout, 0), 0, &old, 0..KV_PAGE);
            }
            backend.kv_append(&mut page, (layout, 0), 0, &new, 0..8);
            backend.kv_append(&mut page, (layout, 0), 8, &new, 8..9);
            let segment = Segment { rows: 0..9, past: 0 };
            let segments = [PagedSegment { segment, pages: vec![&page] }];
            backend.download(&backend.attention_paged(&new, (layout, 0), &segments))
        };
        same_bits(&format!("attention_paged {dtype} {format:?}, a used page"), &run(true), &run(false));
    }
}

/// A number that is none in a key or a value reaches the rows that see it, however pages keep it.
pub fn non_finite(backend: &dyn Backend) {
    let (heads, n) = (Heads { query: 2, kv: 1, dim: 8 }, 5);
    for (format, dtype) in [KvFormat::Same, KvFormat::Int8].iter().flat_map(|f| DTYPES.map(|d| (*f, d))) {
        let layout = KvLayout { layers: 1, heads, format };
        for (bad, column) in [(f32::NAN, 16), (f32::NAN, 31), (f32::INFINITY, 27)] {
            let mut rows = random(3, n * heads.width(), 1.0);
            rows[2 * heads.width() + column] = bad;
            let qkv = backend.upload(&rows, Shape::new(n, heads.width()), dtype);
            let mut page = backend.kv_page(layout, dtype);
            backend.kv_append(&mut page, (layout, 0), 0, &qkv, 0..n);
            let segments = [PagedSegment { segment: Segment { rows: 0..n, past: 0 }, pages: vec![&page] }];
            let got = backend.download(&backend.attention_paged(&qkv, (layout, 0), &segments));
            let finite: Vec<bool> =
                got.chunks(heads.query_width()).map(|row| row.iter().all(|x| x.is_finite())).collect();
            let label = format!("attention_paged {dtype} {format:?}, {bad} in column {column}");
            // Rows before it have no use for it, but a block of values may be multiplied as a whole.
            assert_eq!(finite[2..], [false; 3], "{label}");
        }
    }
}
