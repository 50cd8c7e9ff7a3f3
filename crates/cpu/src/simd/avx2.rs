//! Sixteen lanes in two AVX2 registers.
//!
//! SAFETY of every block here: an [`Avx2`] exists only where [`Checked::run`](crate::path::Checked::run) has
//! entered a function with the features enabled, after checking that the processor has them; loads and
//! stores go through references to sixteen elements.

use std::arch::x86_64::*;

use super::{LANES, Simd, narrow_bits};
use crate::path::Path;

/// Proof of AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor must have AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct V(__m256, __m256);

impl Simd for Avx2 {
    type V = V;

    const PATH: Path = Path::Avx2;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        // SAFETY: see the module.
        let v = unsafe { _mm256_set1_ps(x) };
        V(v, v)
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, v: V, out: &mut [f32; LANES]) {
        // SAFETY: see the module.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), v.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), v.1);
        }
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn sqrt(self, a: V) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_sqrt_ps(a.0), _mm256_sqrt_ps(a.1)) }
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // SAFETY: see the module.
        unsafe { V(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    fn shift_into_exponent(self, a: V) -> V {
        // SAFETY: see the module.
        unsafe {
            V(
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a.0))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a.1))),
            )
        }
    }

    #[inline(always)]
    fn first(self, n: usize, a: V, b: V) -> V {
        // SAFETY: see the module.
        unsafe {
            let n = _mm256_set1_epi32(n.min(LANES) as i32);
            let low = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            V(
                _mm256_blendv_ps(b.0, a.0, _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(b.1, a.1, _mm256_castsi256_ps(high)),
            )
        }
    }

    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        // SAFETY: see the module.
        unsafe {
            let a = _mm256_add_ps(a.0, a.1);
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }

    #[inline(always)]
    fn largest(self, a: V) -> f32 {
        // SAFETY: see the module.
        unsafe {
            let a = _mm256_max_ps(a.0, a.1);
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }

    #[inline(always)]
    fn widen(self, x: &[u16; LANES]) -> V {
        // SAFETY: see the module.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(8).cast()));
            V(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    fn narrow(self, v: V, out: &mut [u16; LANES]) {
        *out = self.array(v).map(narrow_bits);
    }

    #[inline(always)]
    fn nibbles(self, v: V) -> (V, V) {
        // SAFETY: see the module.
        unsafe {
            let mask = _mm256_set1_epi8(0xf);
            let low = |v| _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(v), mask));
            let high = |v| {
                let shifted = _mm256_srli_epi16::<4>(_mm256_castps_si256(v));
                _mm256_castsi256_ps(_mm256_and_si256(shifted, mask))
            };
            (V(low(v.0), low(v.1)), V(high(v.0), high(v.1)))
        }
    }

    #[inline(always)]
    fn dot_bytes(self, acc: V, unsigned: V, signed: V) -> V {
        // SAFETY: see the module. Even and odd bytes are multiplied as 16-bit numbers, which nothing saturates.
        let half = |acc, a, b| unsafe {
            let (acc, a, b) = (_mm256_castps_si256(acc), _mm256_castps_si256(a), _mm256_castps_si256(b));
            let even = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(a);
            let signed_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
            let signed_odd = _mm256_srai_epi16::<8>(b);
            let sum =
                _mm256_add_epi32(_mm256_madd_epi16(even, signed_even), _mm256_madd_epi16(odd, signed_odd));
            _mm256_castsi256_ps(_mm256_add_epi32(acc, sum))
        };
        V(half(acc.0, unsigned.0, signed.0), half(acc.1, unsigned.1, signed.1))
    }

    #[inline(always)]
    fn ints_to_f32(self, v: V) -> V {
        // SAFETY: see the module.
        let half = |v| unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(v)) };
        V(half(v.0), half(v.1))
    }

    #[inline(always)]
    fn transpose(self, rows: [V; LANES]) -> [V; LANES] {
        let rows = rows.map(|r| self.array(r));
        std::array::from_fn(|i| self.load(&std::array::from_fn(|j| rows[j][i])))
    }
}
