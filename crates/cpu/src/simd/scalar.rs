//! Portable lanes: plain Rust on arrays.

use super::{LANES, Simd, narrow_bits};
use crate::path::Path;

/// Needs nothing of the processor.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

type V = [f32; LANES];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn tree(a: V, f: impl Fn(f32, f32) -> f32) -> f32 {
    let a: [f32; 8] = std::array::from_fn(|i| f(a[i], a[i + 8]));
    let a: [f32; 4] = std::array::from_fn(|i| f(a[i], a[i + 4]));
    f(f(a[0], a[2]), f(a[1], a[3]))
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Simd for Scalar {
    type V = V;

    const PATH: Path = Path::Scalar;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> V {
        *x
    }

    #[inline(always)]
    fn store(self, v: V, out: &mut [f32; LANES]) {
        *out = v;
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn sqrt(self, a: V) -> V {
        a.map(f32::sqrt)
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, greater)
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn shift_into_exponent(self, a: V) -> V {
        a.map(|x| f32::from_bits(x.to_bits() << 23))
    }

    #[inline(always)]
    fn first(self, n: usize, a: V, b: V) -> V {
        std::array::from_fn(|i| if i < n { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        tree(a, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self, a: V) -> f32 {
        tree(a, greater)
    }

    #[inline(always)]
    fn widen(self, x: &[u16; LANES]) -> V {
        x.map(|x| f32::from_bits(u32::from(x) << 16))
    }

    #[inline(always)]
    fn narrow(self, v: V, out: &mut [u16; LANES]) {
        *out = v.map(narrow_bits);
    }

    #[inline(always)]
    fn transpose(self, rows: [V; LANES]) -> [V; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }
}
