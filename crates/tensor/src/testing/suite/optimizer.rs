//! The optimiser's kernels.

use super::check::{Bench, DTYPES, FEW, U};
use crate::{AdamW, AdamWState, Backend, DType, Shape};

/// AdamW over several steps; each step is compared with the formula in f64 from the state before it.
pub fn adamw(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for (t, c) in [(1, 1), (3, 7), (17, 33), (130, 65), (1, 300)] {
        let shape = Shape::new(t, c);
        let mut weight = bench.random(1, shape, DType::F32, 1.0).device;
        let (mut m, mut v) = (backend.zeros(shape, DType::F32), backend.zeros(shape, DType::F32));
        for number in 1..=5 {
            let (beta1, beta2) = (0.9f32, 0.95f32);
            let step = AdamW {
                lr: 0.01 * number as f32,
                beta1,
                beta2,
                eps: 1e-8,
                weight_decay: if number % 2 == 0 { 0.1 } else { 0.0 },
                bias1: 1.0 - beta1.powi(number),
                bias2: 1.0 - beta2.powi(number),
                grad_scale: 1.0 / number as f32,
            };
            // Gradients of very different sizes, and none at all.
            let scale = [1.0, 1e-6, 0.0, 1e3, 1e-3][number as usize - 1];
            let grad = bench.random(10 + number as u64, shape, DType::F32, scale);
            let before = [&weight, &m, &v].map(|x| backend.download(x));
            let [mut weight_want, mut m_want, mut v_want] =
                before.clone().map(|host| bench.oracle.upload(&host, shape, DType::F32));
            let state = AdamWState { weight: &mut weight, m: &mut m, v: &mut v };
            backend.adamw(state, &grad.device, &step);
            let state = AdamWState { weight: &mut weight_want, m: &mut m_want, v: &mut v_want };
            bench.oracle.adamw(state, &grad.exact, &step);

            let label = |part| format!("adamw f32 {shape} step {number} {part}");
            let gradient = |i: usize| f64::from(grad.host[i] * step.grad_scale).abs();
            let m_sum = |i: usize| f64::from(before[1][i]).abs() + gradient(i);
            bench.close(&label("m"), &m, &m_want, |i| 4.0 * U * m_sum(i));
            bench.close(&label("v"), &v, &v_want, |i| {
                8.0 * U * (f64::from(before[2][i]) + gradient(i).powi(2))
            });
            let second = bench.exact(&v_want);
            bench.close(&label("weight"), &weight, &weight_want, |i| {
                let root = (second[i] / f64::from(step.bias2)).sqrt() + f64::from(step.eps);
                let update = f64::from(step.lr) * m_sum(i) / f64::from(step.bias1) / root;
                FEW * U * (f64::from(before[0][i]).abs() + update)
            });
        }
    }
}

/// Σ x² is accumulated in f64, the same bits each time, and a NaN or an infinity is never lost.
pub fn sum_of_squares(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, c) in [(0, 3), (1, 1), (3, 7), (17, 33), (130, 257), (257, 300)] {
            let shape = Shape::new(t, c);
            let mut x = bench.random(1, shape, dtype, 1.0);
            if let Some(first) = x.host.first().copied() {
                // One large element: a sum in f32 would lose the rest.
                let mut host = x.host.clone();
                host[0] = first.signum() * 4096.0;
                x = bench.input(&host, shape, dtype);
            }
            let (got, want) = (backend.sum_of_squares(&x.device), bench.oracle.sum_of_squares(&x.exact));
            let tolerance = (shape.elements() as f64 + 2.0) * f64::EPSILON / 2.0 * want;
            let label = format!("sum_of_squares {dtype} {shape}");
            assert!(
                (got - want).abs() <= tolerance,
                "{label}: got {got:e}, want {want:e}, tolerance {tolerance:e}"
            );
            let again = backend.sum_of_squares(&x.device);
            assert!(
                again.to_bits() == got.to_bits(),
                "{label}: got {again:e} the second time, {got:e} the first"
            );
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let mut host = bench.random(2, Shape::new(7, 37), dtype, 1.0).host;
            host[130] = bad;
            let got = backend.sum_of_squares(&backend.upload(&host, Shape::new(7, 37), dtype));
            assert!(!got.is_finite(), "sum_of_squares {dtype} [7, 37] with {bad}: got {got}");
        }
    }
}
