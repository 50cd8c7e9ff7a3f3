//! The optimiser's kernels.

use super::check::{Bench, DTYPES, FEW, U, same_bits};
use super::storage::edges;
use crate::testing::random;
use crate::{AdamW, AdamWState, Backend, DType, Master, Shape};

/// AdamW over several steps; each step is compared with the formula in f64 from the state before it.
pub fn adamw(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for (t, c) in [(1, 1), (3, 7), (17, 33), (130, 65), (1, 300)] {
        let shape = Shape::new(t, c);
        let mut weight = bench.random(1, shape, DType::F32, 1.0).device;
        let (mut m, mut v) = (backend.zeros(shape, DType::F32), backend.zeros(shape, DType::F32));
        for number in 1..=5 {
            let step = nth_step(number);
            // Gradients of very different sizes, and none at all.
            let scale = [1.0, 1e-6, 0.0, 1e3, 1e-3][number as usize - 1];
            let grad = bench.random(10 + number as u64, shape, DType::F32, scale);
            let before = [&weight, &m, &v].map(|x| backend.download(x));
            let [mut weight_want, mut m_want, mut v_want] =
                before.clone().map(|host| bench.oracle.upload(&host, shape, DType::F32));
            let state = AdamWState { weight: Master::F32(&mut weight), m: &mut m, v: &mut v };
            backend.adamw(state, &grad.device, &step);
            let state = AdamWState { weight: Master::F32(&mut weight_want), m: &mut m_want, v: &mut v_want };
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

fn nth_step(number: i32) -> AdamW {
    let (beta1, beta2) = (0.9f32, 0.95f32);
    AdamW {
        lr: 0.01 * number as f32,
        beta1,
        beta2,
        eps: 1e-8,
        weight_decay: if number % 2 == 0 { 0.1 } else { 0.0 },
        bias1: 1.0 - beta1.powi(number),
        bias2: 1.0 - beta2.powi(number),
        grad_scale: 1.0 / number as f32,
    }
}

/// The upper half of `x`, rounded to nearest with ties away from zero; a NaN stays one.
fn upper(x: f32) -> f32 {
    if x.is_nan() { x } else { f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000) }
}

/// `split` rounds as it says, and `join` gives the bits back: also of ties, of values that round to infinity, and of
/// every lower half.
pub fn split(backend: &dyn Backend) {
    let mut host = edges();
    for sign in [0, 0x8000_0000] {
        let around =
            [0x3f80_7fff, 0x3f80_8000, 0x3f80_8001, 0x3f81_8000, 0x0000_8000, 1, 0x7f7f_ffff, 0x7f7f_8000];
        host.extend(around.map(|bits| f32::from_bits(bits | sign)));
        host.extend([0x7f80_0001, 0x7fff_ffff].map(|bits: u32| f32::from_bits(bits | sign)));
    }
    host.extend((0..1 << 16).map(|low| f32::from_bits(0x4015_0000 + low)));
    host.extend(random(3, 300 * 257 - host.len(), 1.0));
    for shape in [Shape::new(300, 257), Shape::new(1, 1), Shape::new(0, 5), Shape::new(1, 37)] {
        let host = &host[..shape.elements()];
        let (high, low) = backend.split(&backend.upload(host, shape, DType::F32));
        let found = (high.shape(), high.dtype(), low.shape());
        assert!(found == (shape, DType::Bf16, shape), "split {shape}: result is {high:?} and {low:?}");
        let want: Vec<f32> = host.iter().map(|&x| upper(x)).collect();
        same_bits(&format!("split {shape}: upper halves"), &backend.download(&high), &want);
        let joined = backend.join(&high, &low);
        assert!(
            joined.shape() == shape && joined.dtype() == DType::F32,
            "join {shape}: result is {joined:?}"
        );
        same_bits(&format!("join of split {shape}"), &backend.download(&joined), host);
    }
}

/// AdamW on split weights gives the bits that it gives on whole ones.
pub fn adamw_split(backend: &dyn Backend) {
    for (t, c) in [(1, 1), (3, 7), (130, 65), (1, 300), (300, 257)] {
        let shape = Shape::new(t, c);
        let f32s = |seed, scale| backend.upload(&random(seed, t * c, scale), shape, DType::F32);
        let mut whole = f32s(1, 1.0);
        let (mut high, mut low) = backend.split(&whole);
        let [mut m, mut v, mut split_m, mut split_v] = [(); 4].map(|()| backend.zeros(shape, DType::F32));
        for number in 1..=5 {
            let (step, grad) = (nth_step(number), f32s(10 + number as u64, 0.1));
            let state = AdamWState { weight: Master::F32(&mut whole), m: &mut m, v: &mut v };
            backend.adamw(state, &grad, &step);
            let weight = Master::Split { high: &mut high, low: &mut low };
            backend.adamw(AdamWState { weight, m: &mut split_m, v: &mut split_v }, &grad, &step);
            let label = |part| format!("adamw on split weights {shape} step {number} {part}");
            let want = backend.download(&whole);
            same_bits(&label("weight"), &backend.download(&backend.join(&high, &low)), &want);
            let upper: Vec<f32> = want.iter().map(|&x| upper(x)).collect();
            same_bits(&label("upper half"), &backend.download(&high), &upper);
            same_bits(&label("m"), &backend.download(&split_m), &backend.download(&m));
            same_bits(&label("v"), &backend.download(&split_v), &backend.download(&v));
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
