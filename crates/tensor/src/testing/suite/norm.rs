//! Root-mean-square norm.

use super::check::{Bench, DTYPES, FEW, U, operand_unit, rows_alone, sum_bound, unit};
use crate::{Backend, DType, Shape};

const SIZES: [(usize, usize); 12] = [
    (0, 7),
    (1, 1),
    (1, 3),
    (3, 7),
    (7, 17),
    (17, 33),
    (33, 65),
    (65, 130),
    (130, 257),
    (2, 300),
    (257, 16),
    (5, 1),
];

const EPS: f32 = 1e-5;

/// `rms_norm`, rows of very different size among them.
pub fn forward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, c) in SIZES {
            for scale in [1.0, 1e-4, 1e4] {
                let x = bench.random((t * 1000 + c) as u64, Shape::new(t, c), dtype, scale);
                let w = bench.random(c as u64, Shape::new(1, c), dtype, 1.5);
                let label = format!("rms_norm {dtype} x [{t}, {c}], values up to {scale}");
                let want = bench.oracle.rms_norm(&x.exact, &w.exact, EPS);
                let exact = bench.exact(&want);
                // The norm is rounded to the dtype once before the weight is applied.
                let relative = (c as f64 / 2.0 + FEW) * U + unit(dtype);
                bench.close(&label, &backend.rms_norm(&x.device, &w.device, EPS), &want, |i| {
                    relative * exact[i].abs()
                });
            }
        }
    }
}

/// `rms_norm_backward`; the weight's gradient is added into a buffer that is not zero.
pub fn backward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, c) in SIZES {
            let x = bench.random((t * 1000 + c) as u64 + 1, Shape::new(t, c), dtype, 2.0);
            let dy = bench.random((t * 1000 + c) as u64 + 2, Shape::new(t, c), dtype, 1.0);
            let w = bench.random(c as u64, Shape::new(1, c), dtype, 1.5);
            let mut dw = bench.random(c as u64 + 3, Shape::new(1, c), DType::F32, 2.0);
            let label = format!("rms_norm_backward {dtype} x [{t}, {c}]");
            let (dx_sums, dw_sums) = magnitudes(&x.host, &dy.host, &w.host, (t, c));
            let want = bench.oracle.rms_norm_backward(&dy.exact, &x.exact, &w.exact, EPS, &mut dw.exact);
            let before = dw.host.clone();
            let dx = backend.rms_norm_backward(&dy.device, &x.device, &w.device, EPS, &mut dw.device);
            // The row's own mean costs C units; a bf16 backend may use the norm as it was stored.
            let relative = (2.0 * c as f64 + 2.0 * FEW) * U + 2.0 * operand_unit(dtype);
            bench.close(&format!("{label} dx"), &dx, &want, |i| relative * dx_sums[i]);
            bench.close(&format!("{label} dw"), &dw.device, &dw.exact, |i| {
                relative * dw_sums[i] + sum_bound(t + 1, dw_sums[i] + f64::from(before[i]).abs())
            });
        }
    }
}

/// Magnitude sums of `dx` and of what is added to `dw`.
fn magnitudes(x: &[f32], dy: &[f32], w: &[f32], (t, c): (usize, usize)) -> (Vec<f64>, Vec<f64>) {
    let [x, dy, w] = [x, dy, w].map(|v| v.iter().map(|&v| f64::from(v).abs()).collect::<Vec<_>>());
    let (mut dx, mut dw) = (Vec::new(), vec![0.0; c]);
    for row in 0..t {
        let at = row * c..(row + 1) * c;
        let (x, dy) = (&x[at.clone()], &dy[at]);
        let inverse = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / c as f64 + f64::from(EPS)).sqrt();
        let mean = (0..c).map(|c| dy[c] * w[c] * x[c] * inverse).sum::<f64>() / c as f64;
        dx.extend((0..c).map(|c| inverse * (dy[c] * w[c] + x[c] * inverse * mean)));
        (0..c).for_each(|c| dw[c] += dy[c] * x[c] * inverse);
    }
    (dx, dw)
}

/// A row alone gives the bits it gives in a batch, forward and backward.
pub fn row_invariance(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, c) in [(66, 33), (40, 130), (130, 7)] {
            let x = bench.random(1, Shape::new(t, c), dtype, 1.0);
            let dy = bench.random(2, Shape::new(t, c), dtype, 1.0);
            let w = bench.random(3, Shape::new(1, c), dtype, 1.0);
            rows_alone(&format!("rms_norm {dtype} x [{t}, {c}]"), t, |rows| {
                backend.download(&backend.rms_norm(&x.upload_rows(backend, rows), &w.device, EPS))
            });
            rows_alone(&format!("rms_norm_backward {dtype} x [{t}, {c}] dx"), t, |rows| {
                let mut dw = backend.zeros(Shape::new(1, c), DType::F32);
                let [dy, x] = [&dy, &x].map(|v| v.upload_rows(backend, rows.clone()));
                backend.download(&backend.rms_norm_backward(&dy, &x, &w.device, EPS, &mut dw))
            });
        }
    }
}
