//! f32 master weights in two halves: bf16 weights and the 16 bits that are left.
//!
//! Rounding to nearest with ties away from zero, `(bits + 0x8000) >> 16`, leaves a remainder of −0x8000 to 0x7fff,
//! so that the sum of both halves is the number again. All arithmetic is modulo 2³², where this holds for every bit
//! pattern but for NaN, which is kept a NaN.

use half::bf16;

use crate::exec::Exec;
use crate::math::{load, store};
use crate::simd::{LANES, Simd};

/// Elements per task.
const RUN: usize = 1 << 15;

#[inline(always)]
fn split(x: f32) -> (bf16, i16) {
    let bits = x.to_bits();
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    let high = if nan { bits >> 16 | 0x40 } else { bits.wrapping_add(0x8000) >> 16 };
    let low = if nan { 0 } else { bits.wrapping_sub(high << 16) };
    (bf16::from_bits(high as u16), low as i16)
}

#[inline(always)]
fn join(high: bf16, low: i16) -> f32 {
    f32::from_bits((u32::from(high.to_bits()) << 16).wrapping_add(low as i32 as u32))
}

/// Both halves of every element of `x`.
pub(crate) fn split_all(exec: &Exec, x: &[f32], high: &mut [bf16], low: &mut [i16]) {
    let ns = x.len() as f64;
    exec.chunks(high, RUN, ns, |i, high| {
        high.iter_mut().zip(&x[i * RUN..]).for_each(|(high, x)| *high = split(*x).0);
    });
    exec.chunks(low, RUN, ns, |i, low| {
        low.iter_mut().zip(&x[i * RUN..]).for_each(|(low, x)| *low = split(*x).1)
    });
}

/// The whole numbers again.
pub(crate) fn join_all(exec: &Exec, high: &[bf16], low: &[i16], out: &mut [f32]) {
    let ns = out.len() as f64;
    exec.chunks(out, RUN, ns, |i, out| {
        let halves = high[i * RUN..].iter().zip(&low[i * RUN..]);
        out.iter_mut().zip(halves).for_each(|(out, (high, low))| *out = join(*high, *low));
    });
}

/// f32 weights that a kernel reads and writes, wherever they are.
pub(crate) trait Weights {
    fn len(&self) -> usize;
    fn load<S: Simd>(&self, s: S, at: usize) -> S::V;
    fn store<S: Simd>(&mut self, s: S, v: S::V, at: usize);
}

impl Weights for &mut [f32] {
    #[inline(always)]
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, at: usize) -> S::V {
        load(s, self, at)
    }

    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, v: S::V, at: usize) {
        store(s, v, self, at);
    }
}

/// Both halves, of one length.
pub(crate) struct Halves<'a> {
    pub(crate) high: &'a mut [bf16],
    pub(crate) low: &'a mut [i16],
}

impl Weights for Halves<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.high.len()
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, at: usize) -> S::V {
        let (high, low) = (&self.high[at..], &self.low[at..]);
        let mut whole = [0.0; LANES];
        match (high.first_chunk::<LANES>(), low.first_chunk::<LANES>()) {
            (Some(high), Some(low)) => whole = std::array::from_fn(|i| join(high[i], low[i])),
            _ => whole.iter_mut().zip(high.iter().zip(low)).for_each(|(x, (h, l))| *x = join(*h, *l)),
        }
        s.load(&whole)
    }

    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, v: S::V, at: usize) {
        let whole = s.array(v);
        let (high, low) = (&mut self.high[at..], &mut self.low[at..]);
        match (high.first_chunk_mut::<LANES>(), low.first_chunk_mut::<LANES>()) {
            (Some(high), Some(low)) => {
                for i in 0..LANES {
                    (high[i], low[i]) = split(whole[i]);
                }
            }
            _ => high.iter_mut().zip(low).zip(whole).for_each(|((h, l), x)| (*h, *l) = split(x)),
        }
    }
}
