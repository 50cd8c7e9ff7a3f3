//! Sixteen lanes of `f32`, once per instruction set.
//!
//! Every kernel is written once over [`Simd`]. All operations are exact IEEE operations (fused multiply-add
//! included) and reductions use one fixed tree, so the implementations agree bit for bit. The exception is the bf16 dot
//! product, which flushes denormals and rounds in its own way.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;

use crate::path::Path;

/// Number of lanes.
pub(crate) const LANES: usize = 16;

/// 1.5 · 2^23: adding it rounds to an integer held in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Operations on sixteen lanes.
///
/// A value of an implementing type is a proof that the processor has the instructions: it is only made by
/// [`Checked::run`](crate::path::Checked::run), so the methods are safe.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Sixteen lanes.
    type V: Copy;

    /// Which path this is.
    const PATH: Path;
    /// Whether bf16 operands of products stay pairs of bf16 in each lane ([`Simd::dot_pairs`]); if not, they are widened.
    const PAIRS: bool = false;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`: `b` where one is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`: `b` where one is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The bits of every lane shifted left by 23: moves an integer into the exponent.
    fn shift_into_exponent(self, a: Self::V) -> Self::V;
    /// `a · 2^n` rounded once, for integers `n` from −160 to 160 and `a` of ordinary size.
    #[inline(always)]
    fn scale(self, a: Self::V, n: Self::V) -> Self::V {
        // n = half + rest, each of which is the exponent of a normal number; only the second product can round.
        let half = self.sub(self.fma(n, self.splat(0.5), self.splat(ROUND)), self.splat(ROUND));
        let rest = self.sub(n, half);
        let pow2 = |n| self.shift_into_exponent(self.add(n, self.splat(ROUND + 127.0)));
        self.mul(self.mul(a, pow2(half)), pow2(rest))
    }
    /// The first `n` lanes of `a`, the others of `b`.
    fn first(self, n: usize, a: Self::V, b: Self::V) -> Self::V;
    /// Sum of the lanes; lane `i` is added to lane `i + 8`, then `+ 4`, `+ 2`, `+ 1`.
    fn sum(self, a: Self::V) -> f32;
    /// Largest lane, by the same tree.
    fn largest(self, a: Self::V) -> f32;
    /// Widens sixteen bf16 values given by their bits.
    fn widen(self, x: &[u16; LANES]) -> Self::V;
    /// Rounds to the bits of bf16, to nearest even; NaN stays NaN.
    fn narrow(self, v: Self::V, out: &mut [u16; LANES]);
    /// Loads sixteen pairs of bf16.
    #[inline(always)]
    fn load_pairs(self, x: &[u16; 2 * LANES]) -> Self::V {
        self.load(&std::array::from_fn(|i| pair(x[2 * i], x[2 * i + 1])))
    }
    /// Lane `i` is the pair `(a[i], b[i])`.
    #[inline(always)]
    fn interleave(self, a: &[u16; LANES], b: &[u16; LANES]) -> Self::V {
        self.load(&std::array::from_fn(|i| pair(a[i], b[i])))
    }
    /// Rounds 32 values to bf16, in order: lane `i` of the result holds values `2 i` and `2 i + 1`.
    #[inline(always)]
    fn narrow_pairs(self, left: Self::V, right: Self::V) -> Self::V {
        let mut out = [0; 2 * LANES];
        let (a, b) = out.split_at_mut(LANES);
        self.narrow(left, a.try_into().expect("half of the lanes"));
        self.narrow(right, b.try_into().expect("half of the lanes"));
        self.load_pairs(&out)
    }
    /// Rounds to bf16: lane `i` of the result is the pair `(first[i], second[i])`.
    #[inline(always)]
    fn narrow_two(self, first: Self::V, second: Self::V) -> Self::V {
        let (mut a, mut b) = ([0; LANES], [0; LANES]);
        self.narrow(first, &mut a);
        self.narrow(second, &mut b);
        self.interleave(&a, &b)
    }
    /// `c + a₀ b₀ + a₁ b₁` where each lane of `a` and `b` is a pair of bf16.
    #[inline(always)]
    fn dot_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let (a, b, c) = (self.array(a), self.array(b), self.array(c));
        self.load(&std::array::from_fn(|i| {
            let ([a0, a1], [b0, b1]) = (unpair(a[i]), unpair(b[i]));
            a1.mul_add(b1, a0.mul_add(b0, c[i]))
        }))
    }
    /// The number of two halves ([`crate::master`]).
    #[inline(always)]
    fn join(self, high: &[u16; LANES], low: &[i16; LANES]) -> Self::V {
        self.load(&std::array::from_fn(|i| join(high[i], low[i])))
    }
    /// Both halves of a number.
    #[inline(always)]
    fn split(self, v: Self::V, high: &mut [u16; LANES], low: &mut [i16; LANES]) {
        let whole = self.array(v);
        for i in 0..LANES {
            (high[i], low[i]) = split(whole[i]);
        }
    }
    /// Sixteen half-precision numbers, given by their bits, widened.
    #[inline(always)]
    fn widen_half(self, x: &[u16; LANES]) -> Self::V {
        self.load(&x.map(|x| half::f16::from_bits(x).to_f32()))
    }
    /// Sixteen unsigned bytes as numbers.
    #[inline(always)]
    fn widen_bytes(self, x: &[u8; LANES]) -> Self::V {
        self.load(&x.map(f32::from))
    }
    /// Four bytes to a lane.
    ///
    /// # Safety
    /// `at` is the address of 64 bytes.
    #[inline(always)]
    unsafe fn load_bytes(self, at: *const u8) -> Self::V {
        // SAFETY: the caller's; nothing is asked of the alignment.
        self.load(&unsafe { at.cast::<[f32; LANES]>().read_unaligned() })
    }
    /// The lower and the upper halves of all bytes.
    #[inline(always)]
    fn nibbles(self, v: Self::V) -> (Self::V, Self::V) {
        let part = |shift: u32| self.map_bits(v, |x| x >> shift & 0x0f0f_0f0f);
        (part(0), part(4))
    }
    /// Sets `bit` in the bytes that a mask of 64 bits names; byte `b` of lane `i` is bit `4 i + b`.
    ///
    /// # Safety
    /// `mask` is the address of 8 bytes.
    #[inline(always)]
    unsafe fn with_bits(self, v: Self::V, mask: *const u8, bit: u8) -> Self::V {
        // SAFETY: the caller's.
        let mask = u64::from_le_bytes(unsafe { mask.cast::<[u8; 8]>().read_unaligned() });
        let mut lane = 0;
        self.map_bits(v, |x| {
            let bits = (mask >> (4 * lane) & 0xf) as u32;
            lane += 1;
            // One bit to each byte: multiplying copies the four bits to every byte, of which each keeps its own.
            let spread = bits.wrapping_mul(0x0020_4081) & 0x0101_0101;
            x | (spread * u32::from(bit))
        })
    }
    /// To the integer in each lane of `acc` the products of four unsigned and four signed bytes are added. No sum may leave 32
    /// bits.
    #[inline(always)]
    fn dot_bytes(self, acc: Self::V, unsigned: Self::V, signed: Self::V) -> Self::V {
        let (acc, a, b) = (self.array(acc), self.array(unsigned), self.array(signed));
        self.load(&std::array::from_fn(|i| {
            let (a, b) = (a[i].to_bits().to_le_bytes(), b[i].to_bits().to_le_bytes());
            let sum: i32 = (0..4).map(|j| i32::from(a[j]) * i32::from(b[j] as i8)).sum();
            f32::from_bits(acc[i].to_bits().wrapping_add(sum as u32))
        }))
    }
    /// Integers of 32 bits as the nearest numbers.
    #[inline(always)]
    fn ints_to_f32(self, v: Self::V) -> Self::V {
        self.load(&self.array(v).map(|x| x.to_bits() as i32 as f32))
    }
    /// The bits of every lane, changed.
    #[inline(always)]
    fn map_bits(self, v: Self::V, mut f: impl FnMut(u32) -> u32) -> Self::V {
        self.load(&self.array(v).map(|x| f32::from_bits(f(x.to_bits()))))
    }
    /// Asks for the cache line at an address, which need not be valid, to be brought near.
    fn prefetch(self, _at: *const f32) {}
    /// The same for what is needed later: brought into the second-level cache, so that it takes no room in the first.
    fn prefetch_later(self, _at: *const f32) {}
    /// Row `i` of the result is column `i` of the argument.
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES];

    /// The lanes as an array.
    #[inline(always)]
    fn array(self, v: Self::V) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        self.store(v, &mut out);
        out
    }
}

/// The nearest bf16, ties away from zero, and what is left, modulo 2³²; see [`crate::master`].
#[inline(always)]
pub(crate) fn split(x: f32) -> (u16, i16) {
    let bits = x.to_bits();
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    let high = if nan { bits >> 16 | 0x40 } else { bits.wrapping_add(0x8000) >> 16 };
    let low = if nan { 0 } else { bits.wrapping_sub(high << 16) };
    (high as u16, low as i16)
}

/// The number whose halves these are.
#[inline(always)]
pub(crate) fn join(high: u16, low: i16) -> f32 {
    f32::from_bits((u32::from(high) << 16).wrapping_add(low as i32 as u32))
}

/// Two bf16 in the place of an f32, the first in the lower half.
#[inline(always)]
fn pair(first: u16, second: u16) -> f32 {
    f32::from_bits(u32::from(first) | u32::from(second) << 16)
}

/// The two bf16 of a pair, widened.
#[inline(always)]
fn unpair(x: f32) -> [f32; 2] {
    [f32::from_bits(x.to_bits() << 16), f32::from_bits(x.to_bits() & 0xffff_0000)]
}

/// Rounds to the bits of bf16, to nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn narrow_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}
