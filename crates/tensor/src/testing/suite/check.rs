//! Inputs in two backends at once, error bounds, and comparisons that say what differs.

use std::ops::Range;

use half::bf16;

use crate::testing::{Oracle, random};
use crate::{Backend, DType, Shape, Tensor};

/// Both dtypes.
pub(super) const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Unit roundoff of `f32`, the type that sums are accumulated in.
pub(super) const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Units of `f32` that an elementary function and the few products around it may cost.
pub(super) const FEW: f64 = 16.0;

/// Allowed everywhere: results this small may be flushed to zero.
const TINY: f64 = 1e-34;

/// Unit roundoff of storing in `dtype`.
pub(super) fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => U,
        DType::Bf16 => 1.0 / 256.0,
    }
}

/// What rounding to `dtype` before a product may cost: nothing for f32.
pub(super) fn operand_unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 0.0,
        DType::Bf16 => unit(dtype),
    }
}

/// The values as `dtype` holds them.
pub(super) fn rounded(host: &[f32], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => host.to_vec(),
        DType::Bf16 => host.iter().map(|&v| bf16::from_f32(v).to_f32()).collect(),
    }
}

/// The same values on the host, in the backend under test and in the exact oracle.
pub(super) struct Input {
    /// The values as the dtype holds them.
    pub(super) host: Vec<f32>,
    /// In the backend under test.
    pub(super) device: Tensor,
    /// In the oracle.
    pub(super) exact: Tensor,
}

impl Input {
    /// Absolute values, for magnitude sums.
    pub(super) fn magnitude(&self, oracle: &Oracle) -> Tensor {
        magnitude(oracle, &self.exact)
    }

    /// Rows `rows` of the host values.
    pub(super) fn rows(&self, rows: Range<usize>) -> &[f32] {
        let cols = self.exact.cols();
        &self.host[rows.start * cols..rows.end * cols]
    }

    /// Rows `rows` as a tensor of their own.
    pub(super) fn upload_rows(&self, backend: &dyn Backend, rows: Range<usize>) -> Tensor {
        let shape = Shape::new(rows.len(), self.exact.cols());
        backend.upload(self.rows(rows), shape, self.exact.dtype())
    }
}

/// Absolute values of an oracle's tensor.
pub(super) fn magnitude(oracle: &Oracle, x: &Tensor) -> Tensor {
    let values: Vec<f64> = oracle.download_f64(x).iter().map(|v| v.abs()).collect();
    oracle.upload_f64(&values, x.shape(), x.dtype())
}

/// The backend under test beside the exact oracle.
pub(super) struct Bench<'a> {
    /// Under test.
    pub(super) backend: &'a dyn Backend,
    /// The reference.
    pub(super) oracle: Oracle,
}

impl<'a> Bench<'a> {
    pub(super) fn new(backend: &'a dyn Backend) -> Self {
        Self { backend, oracle: Oracle::exact() }
    }

    /// Random values in `[−scale, scale)`.
    pub(super) fn random(&self, seed: u64, shape: Shape, dtype: DType, scale: f32) -> Input {
        self.input(&random(seed, shape.elements(), scale), shape, dtype)
    }

    /// The given values, rounded to `dtype`.
    pub(super) fn input(&self, host: &[f32], shape: Shape, dtype: DType) -> Input {
        let host = rounded(host, dtype);
        Input {
            device: self.backend.upload(&host, shape, dtype),
            exact: self.oracle.upload(&host, shape, dtype),
            host,
        }
    }

    /// Values of an oracle's tensor.
    pub(super) fn exact(&self, x: &Tensor) -> Vec<f64> {
        self.oracle.download_f64(x)
    }

    /// Fails unless `got` has the shape and dtype of `want` and every element is within `bound` of it, plus the
    /// rounding of the result itself.
    pub(super) fn close(&self, label: &str, got: &Tensor, want: &Tensor, bound: impl Fn(usize) -> f64) {
        assert!(
            got.shape() == want.shape(),
            "{label}: result has shape {}, want {}",
            got.shape(),
            want.shape()
        );
        assert!(got.dtype() == want.dtype(), "{label}: result is {}, want {}", got.dtype(), want.dtype());
        let (values, exact) = (self.backend.download(got), self.exact(want));
        assert!(
            values.len() == exact.len(),
            "{label}: {} elements downloaded, want {}",
            values.len(),
            exact.len()
        );
        let store = unit(got.dtype());
        for (i, (&g, &w)) in values.iter().zip(&exact).enumerate() {
            let tolerance = bound(i) * (1.0 + store) + store * w.abs() + TINY;
            let off = (f64::from(g) - w).abs();
            let at = (i / want.cols(), i % want.cols());
            assert!(
                off <= tolerance,
                "{label}: element {i} {at:?}: got {g:e}, want {w:e}, off by {off:e}, tolerance {tolerance:e}"
            );
        }
    }
}

/// Bound of a sum of `terms` products accumulated in `f32`, from the sum of their magnitudes.
pub(super) fn sum_bound(terms: usize, magnitude: f64) -> f64 {
    (terms as f64 + 2.0) * U * magnitude
}

/// Fails unless the values are the same bits; a NaN equals any NaN.
pub(super) fn same_bits(label: &str, got: &[f32], want: &[f32]) {
    assert!(got.len() == want.len(), "{label}: {} elements, want {}", got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
        let bits = (g.to_bits(), w.to_bits());
        assert!(same, "{label}: element {i}: got {g:e}, want {w:e} (bits {bits:08x?}), tolerance 0");
    }
}

/// Fails unless `f(rows)` gives for any run of rows the bits it gives for them among all `total` rows.
pub(super) fn rows_alone(label: &str, total: usize, f: impl Fn(Range<usize>) -> Vec<f32>) {
    let all = f(0..total);
    let width = all.len() / total;
    for count in [1, 2, 3, 5, 8, 16, 31] {
        // One row at a time meets every row; longer runs are sampled at odd offsets.
        let step = if count == 1 { 1 } else { count + 6 };
        for start in (0..total.saturating_sub(count - 1)).step_by(step) {
            let rows = start..start + count;
            let label = format!("{label}, rows {rows:?} alone against the same rows among {total}");
            same_bits(&label, &f(rows.clone()), &all[rows.start * width..rows.end * width]);
        }
    }
}
