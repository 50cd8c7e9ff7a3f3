//! Matrix products.

use super::check::{Bench, DTYPES, rows_alone, same_bits, sum_bound};
use crate::{Backend, DType, Shape};

/// `(T, K, N)`: every combination of small odd sizes, then sizes on both sides of any block, and no rows at all.
fn sizes() -> Vec<(usize, usize, usize)> {
    let small = [1, 3, 7, 17];
    let mut sizes: Vec<_> =
        small.iter().flat_map(|&t| small.iter().flat_map(move |&k| small.map(|n| (t, k, n)))).collect();
    sizes.extend([(0, 17, 33), (0, 1, 1), (33, 65, 130), (130, 33, 65), (65, 130, 257), (257, 3, 130)]);
    sizes.extend([(130, 257, 7), (1, 300, 257), (2, 300, 130), (17, 257, 65), (65, 300, 33), (5, 128, 128)]);
    sizes.extend([(64, 64, 64), (130, 130, 130), (1, 1, 257), (33, 1, 33), (1, 288, 64), (13, 299, 47)]);
    sizes
}

fn seed((t, k, n): (usize, usize, usize)) -> u64 {
    (t * 1_000_000 + k * 1000 + n) as u64
}

/// `linear`, with the weight as it is and packed (same bits).
pub fn forward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for size @ (t, k, n) in sizes() {
            let x = bench.random(seed(size), Shape::new(t, k), dtype, 1.0);
            let w = bench.random(seed(size) + 1, Shape::new(n, k), dtype, 0.5);
            let label = format!("linear {dtype} x [{t}, {k}] w [{n}, {k}]");
            let y = backend.linear(&x.device, &w.device);
            let want = bench.oracle.linear(&x.exact, &w.exact);
            let sums = bench.oracle.linear(&x.magnitude(&bench.oracle), &w.magnitude(&bench.oracle));
            let sums = bench.exact(&sums);
            bench.close(&label, &y, &want, |i| sum_bound(k, sums[i]));
            let whole = backend.linear_f32(&x.device, &w.device);
            assert!(whole.dtype() == DType::F32, "{label}: {whole:?}");
            same_bits(
                &format!("{label}, f32 rounded"),
                &backend.download(&backend.cast(&whole, dtype)),
                &backend.download(&y),
            );
            let packed = backend.linear(&x.device, &backend.pack(&w.device));
            let label = format!("{label}, packed weight against plain");
            same_bits(&label, &backend.download(&packed), &backend.download(&y));
        }
    }
}

/// `linear_backward_input`.
pub fn backward_input(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for size @ (t, k, n) in sizes() {
            let dy = bench.random(seed(size) + 2, Shape::new(t, n), dtype, 1.0);
            let w = bench.random(seed(size) + 3, Shape::new(n, k), dtype, 0.5);
            let label = format!("linear_backward_input {dtype} dy [{t}, {n}] w [{n}, {k}]");
            let want = bench.oracle.linear_backward_input(&dy.exact, &w.exact);
            let (dy_abs, w_abs) = (dy.magnitude(&bench.oracle), w.magnitude(&bench.oracle));
            let sums = bench.exact(&bench.oracle.linear_backward_input(&dy_abs, &w_abs));
            let dx = backend.linear_backward_input(&dy.device, &w.device);
            bench.close(&label, &dx, &want, |i| sum_bound(n, sums[i]));
        }
    }
}

/// `linear_backward_weight`, added into a buffer that is not zero, and into zeros of either origin.
pub fn backward_weight(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for size @ (t, k, n) in sizes() {
            let dy = bench.random(seed(size) + 4, Shape::new(t, n), dtype, 1.0);
            let x = bench.random(seed(size) + 5, Shape::new(t, k), dtype, 0.5);
            let mut dw = bench.random(seed(size) + 6, Shape::new(n, k), DType::F32, 2.0);
            let label = format!("linear_backward_weight {dtype} dy [{t}, {n}] x [{t}, {k}]");
            let (dy_abs, x_abs) = (dy.magnitude(&bench.oracle), x.magnitude(&bench.oracle));
            let mut sums = dw.magnitude(&bench.oracle);
            bench.oracle.linear_backward_weight(&dy_abs, &x_abs, &mut sums);
            let sums = bench.exact(&sums);
            bench.oracle.linear_backward_weight(&dy.exact, &x.exact, &mut dw.exact);
            backend.linear_backward_weight(&dy.device, &x.device, &mut dw.device);
            bench.close(&label, &dw.device, &dw.exact, |i| sum_bound(t + 1, sums[i]));
            let shape = Shape::new(n, k);
            let uploaded = backend.upload(&vec![0.0; n * k], shape, DType::F32);
            let [made, uploaded] = [backend.zeros(shape, DType::F32), uploaded].map(|mut dw| {
                backend.linear_backward_weight(&dy.device, &x.device, &mut dw);
                backend.download(&dw)
            });
            same_bits(&format!("{label}, into zeros"), &made, &uploaded);
        }
    }
}

/// A row alone gives the bits it gives in a batch, with plain and packed weights, forward and backward.
pub fn row_invariance(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, k, n) in [(67, 65, 33), (35, 300, 130), (130, 17, 7), (40, 128, 64)] {
            let x = bench.random(7, Shape::new(t, k), dtype, 1.0);
            let w = bench.random(8, Shape::new(n, k), dtype, 1.0);
            let packed = backend.pack(&w.device);
            let label = format!("linear {dtype} x [{t}, {k}] w [{n}, {k}]");
            rows_alone(&label, t, |rows| {
                backend.download(&backend.linear(&x.upload_rows(backend, rows), &w.device))
            });
            rows_alone(&format!("{label} packed"), t, |rows| {
                backend.download(&backend.linear(&x.upload_rows(backend, rows), &packed))
            });
            let dy = bench.random(9, Shape::new(t, n), dtype, 1.0);
            let label = format!("linear_backward_input {dtype} dy [{t}, {n}] w [{n}, {k}]");
            rows_alone(&label, t, |rows| {
                backend.download(&backend.linear_backward_input(&dy.upload_rows(backend, rows), &w.device))
            });
        }
    }
}

/// A NaN or an infinity in a row of either operand reaches every result of that row, and no other.
pub fn non_finite(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    let (t, k, n) = (19, 37, 21);
    for dtype in DTYPES {
        for (bad, at) in [(f32::NAN, 0), (f32::NAN, k - 1), (f32::NAN, 17), (f32::INFINITY, 5)] {
            let (bad_row, bad_output) = (11, 18);
            let mut x = bench.random(10, Shape::new(t, k), dtype, 1.0).host;
            let mut w = bench.random(11, Shape::new(n, k), dtype, 1.0).host;
            x[bad_row * k + at] = bad;
            w[bad_output * k + at] = bad;
            let x = backend.upload(&x, Shape::new(t, k), dtype);
            let w = backend.upload(&w, Shape::new(n, k), dtype);
            for (how, w) in [("plain", w.clone()), ("packed", backend.pack(&w))] {
                let y = backend.download(&backend.linear(&x, &w));
                for (i, &got) in y.iter().enumerate() {
                    let tainted = i / n == bad_row || i % n == bad_output;
                    let right = if !tainted {
                        got.is_finite()
                    } else if bad.is_nan() {
                        got.is_nan()
                    } else {
                        !got.is_finite()
                    };
                    let label =
                        format!("linear {dtype} x [{t}, {k}] w [{n}, {k}] {how}, {bad} at column {at}");
                    assert!(right, "{label}: element {i}: got {got}, want finite: {}", !tainted);
                }
            }
            let dy = backend.upload(&vec![1.0; t * n], Shape::new(t, n), dtype);
            let mut dw = backend.zeros(Shape::new(n, k), DType::F32);
            backend.linear_backward_weight(&dy, &x, &mut dw);
            for (i, &got) in backend.download(&dw).iter().enumerate() {
                let label = format!(
                    "linear_backward_weight {dtype} dy [{t}, {n}] x [{t}, {k}], {bad} at column {at}"
                );
                assert!(got.is_finite() == (i % k != at), "{label}: element {i}: got {got}");
            }
        }
    }
}
