//! Exponential, logarithm and loops over rows, from exact IEEE operations only.

use std::f64::consts::LN_2;

use bytemuck::Pod;
use half::bf16;
use llamero_tensor::DType;

use crate::simd::{LANES, ROUND, Simd, narrow_bits};

/// An element type of tensors. Computation is in f32.
pub(crate) trait Element: Pod + Send + Sync {
    const DTYPE: DType;

    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::V;
    fn store<S: Simd>(s: S, v: S::V, out: &mut [Self; LANES]);
    fn to_f32(self) -> f32;
    /// Rounded to nearest even.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::V {
        s.load(x)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, out: &mut [f32; LANES]) {
        s.store(v, out);
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[bf16; LANES]) -> S::V {
        s.widen(bytemuck::cast_ref(x))
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, out: &mut [bf16; LANES]) {
        s.narrow(v, bytemuck::cast_mut(out));
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_bits(narrow_bits(x))
    }
}

/// Lanes `at ..` of `x`; zeros beyond its end.
#[inline(always)]
pub(crate) fn load<S: Simd, E: Element>(s: S, x: &[E], at: usize) -> S::V {
    let rest = &x[at..];
    match rest.first_chunk() {
        Some(full) => E::load(s, full),
        None => {
            let mut part = [E::zeroed(); LANES];
            part[..rest.len()].copy_from_slice(rest);
            E::load(s, &part)
        }
    }
}

/// Writes lanes to `out[at ..]`, as many as fit.
#[inline(always)]
pub(crate) fn store<S: Simd, E: Element>(s: S, v: S::V, out: &mut [E], at: usize) {
    let rest = &mut out[at..];
    match rest.first_chunk_mut() {
        Some(full) => E::store(s, v, full),
        None => {
            let mut part = [E::zeroed(); LANES];
            E::store(s, v, &mut part);
            let n = rest.len();
            rest.copy_from_slice(&part[..n]);
        }
    }
}

/// Σ a·b: lane `l` sums the elements `l`, `l + 16`, … in order, then the lanes are added by a fixed tree.
#[inline(always)]
pub(crate) fn dot<S: Simd, A: Element, B: Element>(s: S, a: &[A], b: &[B]) -> f32 {
    let mut sum = s.splat(0.0);
    for at in (0..a.len()).step_by(LANES) {
        sum = s.fma(load(s, a, at), load(s, b, at), sum);
    }
    s.sum(sum)
}

/// e^x within about 1 ulp; 0 below −104 and infinity above 88.73; NaN stays NaN.
///
/// `x = n ln 2 + r`, a polynomial of degree 6 in `r` (interpolated at Chebyshev nodes, relative error 2e-9), and
/// a multiplication by `2^n` that rounds once, in the denormal range too.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-106.0), s.min(s.splat(90.0), x));
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND)), s.splat(ROUND));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.394_111_9e-3);
    for c in [8.375_134e-3, 4.166_635e-2, 1.666_641_5e-1, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.scale(p, n)
}

/// ln x, computed in f64 and rounded once; −infinity at 0, NaN below.
pub(crate) fn ln(x: f32) -> f32 {
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == f32::INFINITY {
        return x;
    }
    let bits = f64::from(x).to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh(z), |z| < 0.172: the first term left out is 3e-18.
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let square = z * z;
    let mut sum = 0.0;
    for odd in (1..=21).rev().step_by(2) {
        sum = sum * square + 1.0 / f64::from(odd);
    }
    (exponent as f64 * LN_2 + 2.0 * z * sum) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{Checked, Kernel, Path};

    struct Exp<'a>(&'a mut [f32]);
    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for at in (0..self.0.len()).step_by(LANES) {
                let y = exp(s, load(s, self.0, at));
                store(s, y, self.0, at);
            }
        }
    }

    fn ulps(got: f32, want: f64) -> f64 {
        let rounded = want as f32;
        if got == rounded || (got.is_nan() && rounded.is_nan()) {
            return 0.0;
        }
        let spacing = f64::from(f32::from_bits(rounded.abs().to_bits() + 1)) - f64::from(rounded.abs());
        (f64::from(got) - want).abs() / spacing
    }

    #[test]
    fn exp_is_accurate_and_the_same_on_every_path() {
        let mut x: Vec<f32> = (0..400_000).map(|i| (i as f32 - 210_000.0) * 5e-4).collect();
        x.extend([
            0.0,
            -0.0,
            1e-30,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            88.72,
            88.73,
            -87.4,
            -103.9,
            -104.1,
        ]);
        x.extend([1e30, -1e30, f32::MIN_POSITIVE, 1e-45]);
        let mut first: Option<Vec<u32>> = None;
        for path in Path::available() {
            let mut y = x.clone();
            Checked::new(path).unwrap().run(Exp(&mut y));
            for (x, y) in x.iter().zip(&y) {
                assert!(ulps(*y, f64::from(*x).exp()) < 1.5, "{path:?}: exp({x}) = {y}");
            }
            let bits: Vec<u32> = y.iter().map(|y| if y.is_nan() { 0 } else { y.to_bits() }).collect();
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{path:?}");
        }
    }

    #[test]
    fn ln_is_accurate() {
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i * 1063 + 1);
            if x.is_finite() {
                assert!(ulps(ln(x), f64::from(x).ln()) < 0.51, "ln({x}) = {}", ln(x));
            }
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f32::NEG_INFINITY);
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert!(ln(-1.0).is_nan() && ln(f32::NAN).is_nan());
    }
}
