//! Weights as files store them.

use std::borrow::Cow;

use super::check::{Bench, DTYPES, Input, U, rounded, rows_alone, same_bits};
use crate::testing::random;
use crate::{Backend, DType, Encoding, Shape, StoredRows};

/// Elements of activations that a backend may round to 8 bits together.
const RUN: usize = 32;

/// Parts of a weight `[N, K]`: encodings and numbers of rows.
pub(super) type Parts = Vec<(Encoding, usize)>;

/// Encoded parts of random rows, and their values.
pub(super) fn encoded(seed: u64, parts: &Parts, cols: usize) -> (Vec<StoredRows<'static>>, Vec<f32>) {
    let mut values = Vec::new();
    let parts = parts.iter().enumerate().map(|(i, &(encoding, rows))| {
        let rows = (0..rows).map(|row| {
            let row = random(seed + (1000 * i + row) as u64, cols, 0.5);
            Cow::Owned(encoding.encode(&row))
        });
        let part = StoredRows { encoding, rows: rows.collect() };
        values.extend(part.decode(cols));
        part
    });
    (parts.collect(), values)
}

/// Weights of every encoding alone in sizes on both sides of any block, then of several.
fn weights() -> Vec<(Parts, usize)> {
    let mut all = Vec::new();
    for encoding in Encoding::ALL {
        let step = encoding.block().0;
        let depths = if step == 1 { vec![1, 33, 300] } else { vec![step, 3 * step, 5 * step] };
        all.extend(
            [1, 16, 33, 130]
                .into_iter()
                .zip(depths.into_iter().cycle())
                .map(|(n, k)| (vec![(encoding, n)], k)),
        );
    }
    all.push((vec![(Encoding::Q4K, 32), (Encoding::Q4K, 16), (Encoding::Q6K, 16)], 512));
    all.push((vec![(Encoding::Q8_0, 5), (Encoding::Q4_1, 20), (Encoding::Q5_0, 7)], 96));
    all.push((vec![(Encoding::Bf16, 5), (Encoding::F16, 20), (Encoding::F32, 9)], 40));
    all.push((vec![(Encoding::Q4_0, 33), (Encoding::F32, 2)], 64));
    all
}

/// What rounding to 8 bits may cost element `(row, column)` of a product, beside that of the sums.
fn bound(x: &[f32], w: &[f32], cols: usize, (row, column): (usize, usize), rounds: bool) -> f64 {
    let (x, w) = (&x[row * cols..][..cols], &w[column * cols..][..cols]);
    let size = |v: &[f32]| v.iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs())));
    let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x * w).abs()).sum();
    let plain = (cols as f64 + 16.0) * U * sum;
    if !rounds {
        return plain;
    }
    let runs = x.chunks(RUN).zip(w.chunks(RUN));
    // Half a step of 1/127 of the largest; scale and least value of a run may be much larger than its weights.
    let rounding: f64 =
        runs.map(|(x, w)| size(x) / 253.9 * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()).sum();
    let cancelling =
        (cols as f64 + 16.0) * U * 32.0 * size(w) * x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    plain + rounding + cancelling
}

/// `linear` against the decoded weight, and look-ups.
pub fn forward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (parts, k) in weights() {
            let n = parts.iter().map(|part| part.1).sum();
            let (stored, values) = encoded(31, &parts, k);
            let packed = backend.pack_stored(&stored, Shape::new(n, k), dtype);
            let blocks = dtype == DType::Bf16 && parts.iter().all(|part| part.0.is_quantized());
            // Blocks may be kept, and are exact then; all else is rounded to the dtype.
            let values = if blocks { values } else { rounded(&values, dtype) };
            let w = bench.oracle.upload(&values, Shape::new(n, k), DType::F32);
            for t in [0, 1, 2, 13, 40] {
                let Input { host, device, .. } = bench.random(7 + t as u64, Shape::new(t, k), dtype, 1.0);
                let x = bench.oracle.upload(&host, Shape::new(t, k), DType::F32);
                let label = format!("linear {dtype} x [{t}, {k}] w {parts:?}");
                let want = bench.oracle.cast(&bench.oracle.linear(&x, &w), dtype);
                let y = backend.linear(&device, &packed);
                bench.close(&label, &y, &want, |i| bound(&host, &values, k, (i / n, i % n), blocks));
                let y = backend.linear_f32(&device, &packed);
                let want = bench.oracle.linear(&x, &w);
                let label = format!("{label}, results in f32");
                bench.close(&label, &y, &want, |i| bound(&host, &values, k, (i / n, i % n), blocks));
            }
            let ids: Vec<u32> = (0..n as u32).rev().chain([0, 0]).collect();
            let rows = backend.download(&backend.embed(&packed, &ids));
            let want: Vec<f32> =
                ids.iter().flat_map(|&id| &values[id as usize * k..][..k]).copied().collect();
            same_bits(&format!("embed {dtype} of {parts:?}"), &rows, &rounded(&want, dtype));
        }
    }
}

/// A row alone gives the bits it gives in a batch, in `linear` and in `linear_cross_entropy`.
pub fn row_invariance(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for (encoding, k, n) in [
        (Encoding::Q4_1, 96, 600),
        (Encoding::Q8_0, 64, 33),
        (Encoding::Q5_0, 160, 50),
        (Encoding::Q4K, 256, 1030),
        (Encoding::Q6K, 512, 17),
        (Encoding::Bf16, 77, 50),
    ] {
        let (stored, _) = encoded(5, &vec![(encoding, n)], k);
        let w = backend.pack_stored(&stored, Shape::new(n, k), DType::Bf16);
        let t = 41;
        let x = bench.random(7, Shape::new(t, k), DType::Bf16, 1.0);
        rows_alone(&format!("linear of {encoding} [{n}, {k}]"), t, |rows| {
            backend.download(&backend.linear(&x.upload_rows(backend, rows), &w))
        });
        rows_alone(&format!("linear_cross_entropy of {encoding} [{n}, {k}]"), t, |rows| {
            let targets: Vec<u32> = rows.clone().map(|row| (row * 37 % n) as u32).collect();
            backend.download(&backend.linear_cross_entropy(&x.upload_rows(backend, rows), &w, &targets).nll)
        });
    }
}

/// Losses of a packed head against those of its logits.
pub fn head(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for encoding in [Encoding::Q4_1, Encoding::Q8_0, Encoding::Q6K, Encoding::F16] {
        let (t, k, n) = (19, 256, 1100);
        let (stored, _) = encoded(9, &vec![(encoding, n)], k);
        for dtype in DTYPES {
            let w = backend.pack_stored(&stored, Shape::new(n, k), dtype);
            let x = bench.random(3, Shape::new(t, k), dtype, 1.0);
            let targets: Vec<u32> = (0..t).map(|row| (row * 131 % n) as u32).collect();
            let losses = backend.linear_cross_entropy(&x.device, &w, &targets);
            let (nll, logits) =
                (backend.download(&losses.nll), backend.download(&backend.linear(&x.device, &w)));
            for (row, logits) in logits.chunks(n).enumerate() {
                let most = logits.iter().fold(f32::MIN, |a, b| a.max(*b));
                let sum: f64 = logits.iter().map(|x| f64::from(x - most).exp()).sum();
                let want = f64::from(most) + sum.ln() - f64::from(logits[targets[row] as usize]);
                // Logits are rounded to the dtype here and not there.
                let allowed = 1e-5
                    + 2.0
                        * super::check::unit(dtype)
                        * f64::from(most.abs() + logits[targets[row] as usize].abs());
                let off = (f64::from(nll[row]) - want).abs();
                assert!(
                    off <= allowed,
                    "head {encoding} {dtype} row {row}: {} for {want}, off by {off}",
                    nll[row]
                );
            }
        }
    }
}

/// A NaN or an infinity in a row of activations reaches every result of that row, and no other.
pub fn non_finite(backend: &dyn Backend) {
    let (t, k, n) = (19, 256, 21);
    for encoding in [Encoding::Q4_1, Encoding::Q8_0, Encoding::Q6K] {
        let (stored, _) = encoded(9, &vec![(encoding, n)], k);
        let w = backend.pack_stored(&stored, Shape::new(n, k), DType::Bf16);
        for (bad, at) in [(f32::NAN, 0), (f32::NAN, 255), (f32::INFINITY, 40), (f32::NEG_INFINITY, 31)] {
            let mut x = random(1, t * k, 1.0);
            x[11 * k + at] = bad;
            let y = backend.download(&backend.linear(&backend.upload(&x, Shape::new(t, k), DType::Bf16), &w));
            for (i, y) in y.iter().enumerate() {
                assert!(
                    y.is_finite() == (i / n != 11),
                    "linear of {encoding}, {bad} at {at}: element {i} is {y}"
                );
            }
        }
    }
}
