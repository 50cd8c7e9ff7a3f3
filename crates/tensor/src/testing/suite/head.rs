//! The fused output projection and cross-entropy.

use super::check::{Bench, DTYPES, FEW, Input, U, operand_unit, rows_alone, same_bits};
use crate::testing::{random, random_ids};
use crate::{Backend, CrossEntropy, DType, NO_TARGET, RowLoss, Shape, TARGET_ELSEWHERE, Tensor};

/// Losses, `dh`, and `dw` added to, from `(h, w)`, the loss of a row and targets.
type Gradient =
    fn(&dyn Backend, (&Tensor, &Tensor), RowLoss<'_>, &[u32], &mut Tensor) -> (CrossEntropy, Tensor);

/// Both ways to the gradient.
const WAYS: [(&str, Gradient); 2] =
    [("linear_cross_entropy_backward", separately), ("linear_cross_entropy_with_gradient", at_once)];

fn separately(
    backend: &dyn Backend,
    (h, w): (&Tensor, &Tensor),
    loss: RowLoss<'_>,
    targets: &[u32],
    dw: &mut Tensor,
) -> (CrossEntropy, Tensor) {
    let found = backend.linear_cross_entropy(h, w, targets);
    let dh = backend.linear_cross_entropy_backward(loss, (h, w), targets, &found.lse, dw);
    (found, dh)
}

fn at_once(
    backend: &dyn Backend,
    input: (&Tensor, &Tensor),
    loss: RowLoss<'_>,
    targets: &[u32],
    dw: &mut Tensor,
) -> (CrossEntropy, Tensor) {
    backend.linear_cross_entropy_with_gradient(loss, input, targets, dw)
}

/// `(T, C, V)`.
const SIZES: [(usize, usize, usize); 16] = [
    (0, 8, 16),
    (1, 1, 1),
    (1, 3, 7),
    (3, 7, 17),
    (7, 17, 3),
    (17, 33, 65),
    (33, 65, 130),
    (65, 20, 257),
    (130, 16, 33),
    (2, 300, 257),
    (5, 128, 300),
    (130, 64, 1),
    (300, 8, 40),
    (9, 16, 1100),
    (3, 8, 9000),
    (9, 2300, 70),
];

/// One case: random inputs, random targets, every fourth row without one, every seventh with one elsewhere.
struct Run {
    label: String,
    h: Input,
    w: Input,
    d_nll: Input,
    /// Coefficient of the z-loss.
    z: f32,
    targets: Vec<u32>,
    dtype: DType,
}

impl Run {
    fn new(bench: &Bench<'_>, (t, c, v): (usize, usize, usize), dtype: DType, scale: f32) -> Self {
        let mut targets = random_ids(v as u64, t, v as u32);
        targets.iter_mut().skip(3).step_by(4).for_each(|t| *t = NO_TARGET);
        targets.iter_mut().skip(5).step_by(7).for_each(|t| *t = TARGET_ELSEWHERE);
        Self {
            label: format!("{dtype} h [{t}, {c}] w [{v}, {c}]"),
            h: bench.random(t as u64, Shape::new(t, c), dtype, scale),
            w: bench.random(v as u64 + 1, Shape::new(v, c), dtype, 1.0),
            d_nll: bench.random(t as u64 + 2, Shape::new(t, 1), DType::F32, 1.5),
            z: 0.0,
            targets,
            dtype,
        }
    }

    fn loss(&self) -> RowLoss<'_> {
        RowLoss { d_row: &self.d_nll.device, z: self.z }
    }

    fn exact_loss(&self) -> RowLoss<'_> {
        RowLoss { d_row: &self.d_nll.exact, z: self.z }
    }

    fn exact(&self, bench: &Bench<'_>) -> CrossEntropy {
        bench.oracle.linear_cross_entropy(&self.h.exact, &self.w.exact, &self.targets)
    }

    /// For every row, how far its worst logit may be off.
    fn logit_errors(&self, bench: &Bench<'_>) -> Vec<f64> {
        let sums = bench.oracle.linear(&self.h.magnitude(&bench.oracle), &self.w.magnitude(&bench.oracle));
        let (sums, v) = (bench.exact(&sums), self.w.exact.rows());
        let terms = self.h.exact.cols() as f64 + FEW;
        let worst = |row: &[f64]| row.iter().fold(0.0, |a: f64, &b| a.max(b)) * terms * U;
        sums.chunks(v).map(worst).collect()
    }

    /// Bound of the log-sum-exp of a row.
    fn lse_error(&self, logit_error: f64, lse: f64) -> f64 {
        logit_error + (self.w.exact.rows() as f64 + FEW) * U + 4.0 * U * lse.abs()
    }

    fn check_forward(&self, bench: &Bench<'_>) {
        let got = bench.backend.linear_cross_entropy(&self.h.device, &self.w.device, &self.targets);
        self.check_losses(bench, "linear_cross_entropy", &got);
        let packed = bench.backend.pack(&self.w.device);
        let packed = bench.backend.linear_cross_entropy(&self.h.device, &packed, &self.targets);
        for (part, got, plain) in [("lse", &packed.lse, &got.lse), ("nll", &packed.nll, &got.nll)] {
            let label = format!("linear_cross_entropy {part} {} with a packed weight", self.label);
            same_bits(&label, &bench.backend.download(got), &bench.backend.download(plain));
        }
    }

    fn check_losses(&self, bench: &Bench<'_>, op: &str, got: &CrossEntropy) {
        let want = self.exact(bench);
        let (lse, logits) = (bench.exact(&want.lse), self.logit_errors(bench));
        let counts = |i: usize| f64::from(u8::from(self.targets[i] != NO_TARGET));
        let label = |part| format!("{op} {part} {}", self.label);
        bench.close(&label("lse"), &got.lse, &want.lse, |i| counts(i) * self.lse_error(logits[i], lse[i]));
        bench.close(&label("nll"), &got.nll, &want.nll, |i| {
            counts(i) * (self.lse_error(logits[i], lse[i]) + logits[i])
        });
    }

    fn check_backward(&self, bench: &Bench<'_>, (op, gradient): (&str, Gradient)) {
        let (t, c, v) = (self.h.exact.rows(), self.h.exact.cols(), self.w.exact.rows());
        let mut dw = bench.random(9, Shape::new(v, c), DType::F32, 2.0);
        let want = self.exact(bench);
        let (dh_bound, dw_bound) = self.gradient_bounds(bench, &bench.exact(&want.lse), &dw.host);
        let inputs = (&self.h.exact, &self.w.exact);
        let dh_want = bench.oracle.linear_cross_entropy_backward(
            self.exact_loss(),
            inputs,
            &self.targets,
            &want.lse,
            &mut dw.exact,
        );
        let inputs = (&self.h.device, &self.w.device);
        let (loss, dh) = gradient(bench.backend, inputs, self.loss(), &self.targets, &mut dw.device);
        debug_assert_eq!(dh_bound.len(), t * c);
        self.check_losses(bench, op, &loss);
        let label = |part| format!("{op} {part} {}", self.label);
        bench.close(&label("dh"), &dh, &dh_want, |i| dh_bound[i]);
        bench.close(&label("dw"), &dw.device, &dw.exact, |i| dw_bound[i]);
        let uploaded = bench.backend.upload(&vec![0.0; v * c], Shape::new(v, c), DType::F32);
        let made = bench.backend.zeros(Shape::new(v, c), DType::F32);
        let [made, uploaded] = [made, uploaded].map(|mut dw| {
            gradient(bench.backend, inputs, self.loss(), &self.targets, &mut dw);
            bench.backend.download(&dw)
        });
        same_bits(&format!("{}, into zeros", label("dw")), &made, &uploaded);
    }

    /// Bounds of `dh` and `dw`; see the parent module.
    fn gradient_bounds(&self, bench: &Bench<'_>, lse: &[f64], dw: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let (t, c, v) = (self.h.exact.rows(), self.h.exact.cols(), self.w.exact.rows());
        let logits = bench.exact(&bench.oracle.linear(&self.h.exact, &self.w.exact));
        let logit_errors = self.logit_errors(bench);
        let mut dh = vec![0.0; t * c];
        let mut dw: Vec<f64> = dw.iter().map(|&dw| (t as f64 + 2.0) * U * f64::from(dw).abs()).collect();
        for row in (0..t).filter(|&row| self.targets[row] != NO_TARGET) {
            let lse_error = self.lse_error(logit_errors[row], lse[row]);
            let exponent = logit_errors[row] + lse_error;
            let d_lse = 1.0 + 2.0 * f64::from(self.z) * lse[row];
            let d_lse_error = 2.0 * f64::from(self.z) * (lse_error + FEW * U * lse[row].abs());
            let d = f64::from(self.d_nll.host[row]).abs();
            for token in 0..v {
                let p = (logits[row * v + token] - lse[row]).exp();
                let hit = if token == self.targets[row] as usize { 1.0 } else { 0.0 };
                let d_logit = d * (d_lse * p - hit).abs();
                let error = d
                    * (p * (d_lse.abs() * (exponent.exp_m1() + FEW * U) + d_lse_error) + 2.0 * U * hit)
                    + operand_unit(self.dtype) * d_logit;
                for k in 0..c {
                    let (h, w) = (f64::from(self.h.host[row * c + k]), f64::from(self.w.host[token * c + k]));
                    dh[row * c + k] += (error + (v as f64 + 4.0) * U * d_logit) * w.abs();
                    dw[token * c + k] += (error + (t as f64 + 4.0) * U * d_logit) * h.abs();
                }
            }
        }
        (dh, dw)
    }
}

/// `linear_cross_entropy_with_gradient_of_slice` on two slices of the vocabulary against all of it.
pub fn of_slice(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (size @ (t, c, v), cut) in
            [((34, 33, 65), 20), ((600, 16, 130), 64), ((2, 7, 9), 1), ((8, 40, 1300), 600)]
        {
            let mut run = Run::new(&bench, size, dtype, 1.5);
            run.z = if t == 600 { 0.0 } else { 0.03 };
            run.targets = random_ids(11, t, v as u32);
            let slices = [0..cut, cut..v].map(|rows| {
                let targets: Vec<u32> = (run.targets.iter())
                    .map(|&id| {
                        if rows.contains(&(id as usize)) { id - rows.start as u32 } else { TARGET_ELSEWHERE }
                    })
                    .collect();
                (run.w.upload_rows(backend, rows.clone()), targets, rows)
            });
            // What each slice knows of every row.
            let own = slices.each_ref().map(|(w, targets, _)| {
                let loss = backend.linear_cross_entropy(&run.h.device, w, targets);
                let (lse, nll) = (backend.download(&loss.lse), backend.download(&loss.nll));
                lse.into_iter()
                    .zip(nll)
                    .map(|(lse, nll)| [f64::from(lse), f64::from(lse - nll)])
                    .collect::<Vec<_>>()
            });
            let want = run.exact(&bench);
            let zeros = vec![0.0; v * c];
            let (dh_bound, dw_bound) = run.gradient_bounds(&bench, &bench.exact(&want.lse), &zeros);
            let mut dw_want = bench.oracle.zeros(Shape::new(v, c), DType::F32);
            let dh_want = bench.oracle.linear_cross_entropy_backward(
                run.exact_loss(),
                (&run.h.exact, &run.w.exact),
                &run.targets,
                &want.lse,
                &mut dw_want,
            );
            let (dh_want, dw_want) = (bench.exact(&dh_want), bench.exact(&dw_want));
            let mut dh_found = vec![0.0; t * c];
            for (w, targets, rows) in &slices {
                let mut next = 0;
                let mut combine = |stats: &mut [[f32; 2]]| {
                    for row in stats {
                        let [[a, x], [b, y]] = [own[0][next], own[1][next]];
                        let max = a.max(b);
                        *row = [(max + ((a - max).exp() + (b - max).exp()).ln()) as f32, (x + y) as f32];
                        next += 1;
                    }
                };
                let mut dw = backend.zeros(Shape::new(rows.len(), c), DType::F32);
                let (loss, dh) = backend.linear_cross_entropy_with_gradient_of_slice(
                    run.loss(),
                    (&run.h.device, w),
                    targets,
                    &mut dw,
                    &mut combine,
                );
                assert_eq!(next, t, "every row is combined once");
                let label = format!("slice {rows:?} of {}", run.label);
                run.check_losses(&bench, &label, &loss);
                for (i, (found, want)) in
                    backend.download(&dw).iter().zip(&dw_want[rows.start * c..rows.end * c]).enumerate()
                {
                    let bound = 2.0 * dw_bound[rows.start * c + i] + 1e-12;
                    assert!(
                        (f64::from(*found) - want).abs() <= bound,
                        "{label}: dw {i}: {found}, want {want}"
                    );
                }
                backend.download(&dh).iter().zip(&mut dh_found).for_each(|(x, sum)| *sum += f64::from(*x));
            }
            for (i, (found, want)) in dh_found.iter().zip(&dh_want).enumerate() {
                // Each slice is rounded once.
                let rounding = if dtype == DType::F32 { 1e-6 } else { 1.0 / 128.0 };
                let largest =
                    dh_want[i / c * c..(i / c + 1) * c].iter().fold(0.0, |a: f64, x| a.max(x.abs()));
                let bound = 2.0 * dh_bound[i] + rounding * (want.abs() + largest);
                assert!((found - want).abs() <= bound, "{}: dh {i}: {found}, want {want}", run.label);
            }
        }
    }
}

/// `linear_cross_entropy`: losses and log-sum-exps; a packed weight gives the same bits.
pub fn forward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        SIZES.iter().for_each(|&size| Run::new(&bench, size, dtype, 1.5).check_forward(&bench));
    }
}

/// `linear_cross_entropy_backward`; the weight's gradient is added into a buffer that is not zero.
pub fn backward(backend: &dyn Backend) {
    check_gradients(backend, WAYS[0]);
}

/// `linear_cross_entropy_with_gradient`: losses as in `forward`, gradients as in `backward`.
pub fn with_gradient(backend: &dyn Backend) {
    check_gradients(backend, WAYS[1]);
}

fn check_gradients(backend: &dyn Backend, way: (&str, Gradient)) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        SIZES.iter().for_each(|&size| Run::new(&bench, size, dtype, 1.5).check_backward(&bench, way));
    }
}

/// Both gradients with a z-loss; losses are those without.
pub fn z_loss(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for (dtype, way) in DTYPES.into_iter().flat_map(|d| WAYS.map(|way| (d, way))) {
        for size in [(1, 1, 1), (7, 17, 3), (33, 65, 130), (65, 20, 257), (9, 16, 1100), (9, 300, 70)] {
            let mut run = Run::new(&bench, size, dtype, 1.5);
            run.z = 0.03;
            run.label += ", z 0.03";
            run.check_backward(&bench, way);
        }
    }
}

/// Logits far outside the range of `exp` in f32 neither overflow nor vanish.
pub fn large_logits(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        Run::new(&bench, (9, 16, 70), dtype, 500.0).check_forward(&bench);
    }
}

/// Rows without a target have loss 0 and gradient 0, and add nothing to the weight's gradient, whatever they hold.
pub fn no_target(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    let (t, c, v) = (21, 33, 65);
    for (dtype, (op, gradient)) in DTYPES.into_iter().flat_map(|d| WAYS.map(|way| (d, way))) {
        let label = format!("{op} {dtype} h [{t}, {c}] w [{v}, {c}], rows without a target");
        let w = bench.random(1, Shape::new(v, c), dtype, 1.0).device;
        let mut targets = random_ids(2, t, v as u32);
        let kept = [4, 5, 20];
        let masked: Vec<usize> = (0..t).filter(|row| !kept.contains(row)).collect();
        masked.iter().for_each(|&row| targets[row] = NO_TARGET);
        let d_nll = bench.random(4, Shape::new(t, 1), DType::F32, 1.0).device;
        let before = random(5, v * c, 1.0);
        let run = |filler: f32, targets: &[u32]| {
            let mut host = random(3, t * c, 1.0);
            masked.iter().for_each(|row| host[row * c..(row + 1) * c].fill(filler));
            let h = backend.upload(&host, Shape::new(t, c), dtype);
            let mut dw = backend.upload(&before, Shape::new(v, c), DType::F32);
            let (loss, dh) = gradient(backend, (&h, &w), RowLoss::cross_entropy(&d_nll), targets, &mut dw);
            [&loss.nll, &loss.lse, &dh, &dw].map(|x| backend.download(x))
        };
        let [nll, lse, dh, dw] = run(3000.0, &targets);
        for &row in &masked {
            same_bits(&format!("{label}: nll and lse of row {row}"), &[nll[row], lse[row]], &[0.0; 2]);
            let zero = dh[row * c..(row + 1) * c].iter().all(|&v| v == 0.0);
            assert!(zero, "{label}: dh of row {row}: got {:?}, want 0", &dh[row * c..(row + 1) * c]);
        }
        let counted = kept.iter().all(|&row| nll[row].is_finite() && nll[row] > 0.0);
        assert!(counted, "{label}: nll of rows {kept:?}: got {:?}", kept.map(|row| nll[row]));
        assert!(dw != before, "{label}: dw took nothing of the rows with a target");
        let blank = run(0.0, &targets);
        for (part, got, want) in [("nll", &nll, &blank[0]), ("dh", &dh, &blank[2]), ("dw", &dw, &blank[3])] {
            same_bits(&format!("{label}: {part} with large values in them against zeros"), got, want);
        }
        let none = run(1.0, &vec![NO_TARGET; t]);
        same_bits(&format!("{label}: dw without any target"), &none[3], &before);
    }
}

/// A row alone gives the bits it gives in a batch, whatever other rows count.
pub fn row_invariance(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for size @ (t, c, v) in [(67, 33, 65), (40, 16, 1100), (37, 130, 7)] {
            let run = Run::new(&bench, size, dtype, 1.0);
            let packed = backend.pack(&run.w.device);
            for (how, w) in [("plain", &run.w.device), ("packed", &packed)] {
                rows_alone(&format!("linear_cross_entropy nll {} {how}", run.label), t, |rows| {
                    let h = run.h.upload_rows(backend, rows.clone());
                    backend.download(&backend.linear_cross_entropy(&h, w, &run.targets[rows]).nll)
                });
            }
            for (op, gradient) in WAYS {
                rows_alone(&format!("{op} dh and nll {}", run.label), t, |rows| {
                    let [h, d_nll] = [&run.h, &run.d_nll].map(|x| x.upload_rows(backend, rows.clone()));
                    let mut dw = backend.zeros(Shape::new(v, c), DType::F32);
                    let input = (&h, &run.w.device);
                    let loss = RowLoss::cross_entropy(&d_nll);
                    let (loss, dh) = gradient(backend, input, loss, &run.targets[rows], &mut dw);
                    let (dh, nll) = (backend.download(&dh), backend.download(&loss.nll));
                    dh.chunks(c).zip(nll).flat_map(|(dh, nll)| dh.iter().copied().chain([nll])).collect()
                });
            }
        }
    }
}

/// A NaN in a row makes that row's loss NaN and no other; a NaN in the weight makes every loss NaN, also when it is
/// not the target's row.
pub fn non_finite(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    let (t, c, v) = (19, 37, 70);
    for dtype in DTYPES {
        for at in [0, 17, c - 1] {
            let label = format!("linear_cross_entropy {dtype} h [{t}, {c}] w [{v}, {c}], NaN at column {at}");
            let h = bench.random(1, Shape::new(t, c), dtype, 1.0);
            let w = bench.random(2, Shape::new(v, c), dtype, 1.0);
            let targets = random_ids(3, t, 60);
            let mut bad = h.host.clone();
            bad[11 * c + at] = f32::NAN;
            let bad = backend.upload(&bad, Shape::new(t, c), dtype);
            let nll = backend.download(&backend.linear_cross_entropy(&bad, &w.device, &targets).nll);
            for (row, nll) in nll.iter().enumerate() {
                assert!(nll.is_nan() == (row == 11), "{label} of h row 11: nll element {row}: got {nll}");
            }
            nan_of_gradient(backend, &label, (&bad, &w.device), &targets, |row| row == 11);
            for bad_row in [0, 65, v - 1] {
                let mut bad = w.host.clone();
                bad[bad_row * c + at] = f32::NAN;
                let bad = backend.upload(&bad, Shape::new(v, c), dtype);
                nan_of_gradient(backend, &label, (&h.device, &bad), &targets, |_| true);
                for (how, bad) in [("plain", bad.clone()), ("packed", backend.pack(&bad))] {
                    let nll = backend.download(&backend.linear_cross_entropy(&h.device, &bad, &targets).nll);
                    for (row, nll) in nll.iter().enumerate() {
                        assert!(
                            nll.is_nan(),
                            "{label} of {how} w row {bad_row}: nll element {row}: got {nll}"
                        );
                    }
                }
            }
        }
    }
}

/// Fails unless the losses and `dh` of the rows that `is_nan` says, and of no others, are NaN when both are computed at
/// once, and `dw` is NaN somewhere.
fn nan_of_gradient(
    backend: &dyn Backend,
    label: &str,
    (h, w): (&Tensor, &Tensor),
    targets: &[u32],
    is_nan: impl Fn(usize) -> bool,
) {
    let mut dw = backend.zeros(w.shape(), DType::F32);
    let d_nll = backend.upload(&vec![1.0; h.rows()], Shape::new(h.rows(), 1), DType::F32);
    let (loss, dh) = at_once(backend, (h, w), RowLoss::cross_entropy(&d_nll), targets, &mut dw);
    let (nll, dh) = (backend.download(&loss.nll), backend.download(&dh));
    for (row, (nll, dh)) in nll.iter().zip(dh.chunks(h.cols())).enumerate() {
        let found = (nll.is_nan(), dh.iter().any(|x| x.is_nan()));
        let want = is_nan(row);
        assert!(found == (want, want), "{label}, with gradient: row {row}: NaN in (nll, dh) is {found:?}");
    }
    assert!(backend.download(&dw).iter().any(|x| x.is_nan()), "{label}, with gradient: no NaN in dw");
}
