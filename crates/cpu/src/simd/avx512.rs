//! Sixteen lanes in one AVX-512 register.
//!
//! SAFETY of every block here: an [`Avx512`] exists only where [`Checked::run`](crate::path::Checked::run) has
//! entered a function with the features enabled, after checking that the processor has them; loads and
//! stores go through references to sixteen elements.

use std::arch::x86_64::*;

use super::{LANES, Simd};
use crate::path::Path;

/// Proof of AVX-512 F, BW, DQ and VL, and of BF16 and VNNI where `BF16` is true.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ and VL and FMA, and AVX-512 BF16 and VNNI where `BF16` is true.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;

    const PATH: Path = if BF16 { Path::Avx512Bf16 } else { Path::Avx512 };
    const PAIRS: bool = BF16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; LANES]) {
        // SAFETY: see the module.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn shift_into_exponent(self, a: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))) }
    }

    #[inline(always)]
    fn scale(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    fn first(self, n: usize, a: __m512, b: __m512) -> __m512 {
        let mask = if n >= LANES { u16::MAX } else { (1u16 << n) - 1 };
        // SAFETY: see the module.
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: see the module.
        unsafe {
            let a = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        // SAFETY: see the module.
        unsafe {
            let a = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }

    #[inline(always)]
    fn widen(self, x: &[u16; LANES]) -> __m512 {
        // SAFETY: see the module.
        unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        }
    }

    #[inline(always)]
    fn narrow(self, v: __m512, out: &mut [u16; LANES]) {
        // SAFETY: see the module.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let rounded = _mm512_srli_epi32::<16>(sum);
            let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let rounded = _mm512_mask_blend_epi32(nan, rounded, quiet);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rounded));
        }
    }

    #[inline(always)]
    fn load_pairs(self, x: &[u16; 2 * LANES]) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn interleave(self, a: &[u16; LANES], b: &[u16; LANES]) -> __m512 {
        // SAFETY: see the module.
        unsafe {
            let a = _mm512_cvtepu16_epi32(_mm256_loadu_si256(a.as_ptr().cast()));
            let b = _mm512_cvtepu16_epi32(_mm256_loadu_si256(b.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_or_si512(a, _mm512_slli_epi32::<16>(b)))
        }
    }

    #[inline(always)]
    fn narrow_pairs(self, left: __m512, right: __m512) -> __m512 {
        assert!(BF16, "rounding to pairs needs AVX-512 BF16");
        // SAFETY: see the module. The instruction rounds to nearest even and takes denormals for zero.
        unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(right, left)) }
    }

    #[inline(always)]
    fn narrow_two(self, first: __m512, second: __m512) -> __m512 {
        assert!(BF16, "rounding to pairs needs AVX-512 BF16");
        // SAFETY: see the module. Both halves are widened to 32 bits, the second shifted up and merged.
        unsafe {
            let a = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(first));
            let b = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(second));
            let b = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(b));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(a), b))
        }
    }

    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        assert!(BF16, "the dot product of pairs needs AVX-512 BF16");
        // SAFETY: see the module; the types are the same 64 bytes.
        unsafe {
            let (a, b) =
                (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
            _mm512_dpbf16_ps(c, a, b)
        }
    }

    #[inline(always)]
    fn transpose(self, r: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: see the module. Transposes 2 × 2, then 4 × 4 inside the 128-bit lanes, then the lanes.
        unsafe {
            let mut t = r;
            for i in (0..16).step_by(2) {
                t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
                t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
            }
            let mut u = t;
            for i in (0..16).step_by(4) {
                u[i] = _mm512_shuffle_ps::<0x44>(t[i], t[i + 2]);
                u[i + 1] = _mm512_shuffle_ps::<0xee>(t[i], t[i + 2]);
                u[i + 2] = _mm512_shuffle_ps::<0x44>(t[i + 1], t[i + 3]);
                u[i + 3] = _mm512_shuffle_ps::<0xee>(t[i + 1], t[i + 3]);
            }
            // u[4 q + c], lane l: column 4 l + c of rows 4 q ..= 4 q + 3.
            let mut out = t;
            for c in 0..4 {
                let a = _mm512_shuffle_f32x4::<0x88>(u[c], u[4 + c]);
                let b = _mm512_shuffle_f32x4::<0xdd>(u[c], u[4 + c]);
                let d = _mm512_shuffle_f32x4::<0x88>(u[8 + c], u[12 + c]);
                let e = _mm512_shuffle_f32x4::<0xdd>(u[8 + c], u[12 + c]);
                out[c] = _mm512_shuffle_f32x4::<0x88>(a, d);
                out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(a, d);
                out[4 + c] = _mm512_shuffle_f32x4::<0x88>(b, e);
                out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(b, e);
            }
            out
        }
    }

    #[inline(always)]
    fn join(self, high: &[u16; LANES], low: &[i16; LANES]) -> __m512 {
        // SAFETY: see the module.
        unsafe {
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(high.as_ptr().cast()));
            let low = _mm512_cvtepi16_epi32(_mm256_loadu_si256(low.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32::<16>(high), low))
        }
    }

    #[inline(always)]
    fn split(self, v: __m512, high: &mut [u16; LANES], low: &mut [i16; LANES]) {
        // SAFETY: see the module.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)));
            let quiet = _mm512_or_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(0x40));
            let top = _mm512_mask_blend_epi32(nan, rounded, quiet);
            let rest = _mm512_maskz_sub_epi32(!nan, bits, _mm512_slli_epi32::<16>(top));
            _mm256_storeu_si256(high.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(top));
            _mm256_storeu_si256(low.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rest));
        }
    }

    #[inline(always)]
    fn widen_half(self, x: &[u16; LANES]) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn widen_bytes(self, x: &[u8; LANES]) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, at: *const u8) -> __m512 {
        // SAFETY: see the module, and the caller's for the address.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    fn nibbles(self, v: __m512) -> (__m512, __m512) {
        // SAFETY: see the module.
        unsafe {
            let (v, mask) = (_mm512_castps_si512(v), _mm512_set1_epi8(0xf));
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(v), mask);
            (_mm512_castsi512_ps(_mm512_and_si512(v, mask)), _mm512_castsi512_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn with_bits(self, v: __m512, mask: *const u8, bit: u8) -> __m512 {
        // SAFETY: see the module, and the caller's for the address. The bits are not set before, so adding sets them.
        unsafe {
            let (mask, v) = (mask.cast::<u64>().read_unaligned(), _mm512_castps_si512(v));
            _mm512_castsi512_ps(_mm512_mask_add_epi8(v, mask, v, _mm512_set1_epi8(bit as i8)))
        }
    }

    #[inline(always)]
    fn dot_bytes(self, acc: __m512, unsigned: __m512, signed: __m512) -> __m512 {
        // SAFETY: see the module; the path with bf16 has VNNI. Without it the even and the odd bytes are multiplied as 16-bit
        // numbers.
        unsafe {
            let [acc, a, b] = [acc, unsigned, signed].map(|v| _mm512_castps_si512(v));
            if BF16 {
                return _mm512_castsi512_ps(_mm512_dpbusd_epi32(acc, a, b));
            }
            let even = _mm512_and_si512(a, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(a);
            let signed_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
            let signed_odd = _mm512_srai_epi16::<8>(b);
            let sum =
                _mm512_add_epi32(_mm512_madd_epi16(even, signed_even), _mm512_madd_epi16(odd, signed_odd));
            _mm512_castsi512_ps(_mm512_add_epi32(acc, sum))
        }
    }

    #[inline(always)]
    fn ints_to_f32(self, v: __m512) -> __m512 {
        // SAFETY: see the module.
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(v)) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        // SAFETY: a prefetch of any address has no effect but on the caches.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn prefetch_later(self, at: *const f32) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
