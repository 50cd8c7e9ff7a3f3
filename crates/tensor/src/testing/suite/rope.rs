//! Rotary embedding.

use super::check::{Bench, DTYPES, U, same_bits, unit};
use crate::{Backend, DType, Heads, RopeDirection, RopeTable, Segment, Segments, Shape};

/// A table for tests in Llama's proportions: angle `position · 10000^(−2i/D)`.
pub fn table(positions: usize, dim: usize) -> RopeTable {
    RopeTable::new((0..dim / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / dim as f64)).collect(), positions)
}

fn cases() -> Vec<(Heads, Segments)> {
    let heads = [(1, 1, 2), (4, 2, 8), (6, 3, 20), (8, 1, 16), (2, 1, 64), (4, 2, 128)];
    let documents = [vec![], vec![1], vec![3, 1, 7], vec![33, 65]];
    let mut cases: Vec<(Heads, Segments)> = Vec::new();
    for (query, kv, dim) in heads {
        let heads = Heads { query, kv, dim };
        cases.extend(documents.iter().map(|lengths| (heads, Segments::documents(lengths.iter().copied()))));
        let with_past = vec![
            Segment { rows: 0..5, past: 9 },
            Segment { rows: 5..6, past: 0 },
            Segment { rows: 6..7, past: 80 },
        ];
        cases.push((heads, Segments::new(with_past)));
    }
    cases
}

/// Both directions, against the oracle; values pass unchanged; segments with a past.
pub fn forward_and_backward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (heads, segments) in cases() {
            let shape = Shape::new(segments.total_rows(), heads.width());
            let table = table(100, heads.dim);
            let qkv = bench.random(1, shape, dtype, 2.0);
            for direction in [RopeDirection::Forward, RopeDirection::Backward] {
                let label = format!("rope {dtype} {direction:?} qkv {shape} {heads:?} {segments:?}");
                let got = backend.rope(qkv.device.clone(), heads, &segments, &table, direction);
                let want = bench.oracle.rope(qkv.exact.clone(), heads, &segments, &table, direction);
                let passes = heads.query_width() + heads.kv_width();
                bench.close(&label, &got, &want, |i| {
                    if i % heads.width() < passes { 2.0 * U * 4.0 } else { 0.0 }
                });
                same_bits(
                    &format!("{label}: what is shared stays"),
                    &backend.download(&qkv.device),
                    &qkv.host,
                );
                let alone = backend.upload(&qkv.host, shape, dtype);
                backend.reset_peak();
                let before = backend.memory().live_bytes;
                let in_place = backend.rope(alone, heads, &segments, &table, direction);
                let more = backend.memory().peak_bytes - before;
                let all = shape.elements() * dtype.bytes();
                // A few rows of work space are fine.
                assert!(
                    shape.rows < 90 || 2 * more < all,
                    "{label}: {more} bytes more at the peak, {all} given"
                );
                same_bits(
                    &format!("{label} in place"),
                    &backend.download(&in_place),
                    &backend.download(&got),
                );
            }
        }
    }
}

/// Forward and then backward gives back what was put in, up to the rounding of the two results.
pub fn identity(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (heads, segments) in cases() {
            let shape = Shape::new(segments.total_rows(), heads.width());
            let table = table(100, heads.dim);
            let qkv = bench.random(2, shape, dtype, 2.0);
            let turned = backend.rope(qkv.device, heads, &segments, &table, RopeDirection::Forward);
            let back = backend.rope(turned, heads, &segments, &table, RopeDirection::Backward);
            let label = format!("rope {dtype} forward and backward of {shape} {heads:?} {segments:?}");
            // The turned pair, each up to 2√2, was rounded, and the table's sines and cosines are f32.
            let stored = if dtype == DType::F32 { U } else { unit(dtype) };
            bench.close(&label, &back, &qkv.exact, |_| 4.0 * (stored + 6.0 * U) * 1.5);
        }
    }
}
