//! f32 master weights in two halves: bf16 weights and the 16 bits that are left.
//!
//! Rounding to nearest with ties away from zero, `(bits + 0x8000) >> 16`, leaves a remainder of −0x8000 to 0x7fff,
//! so that the sum of both halves is the number again. All arithmetic is modulo 2³², where this holds for every bit
//! pattern but for NaN, which is kept a NaN.

use half::bf16;

use crate::exec::Exec;
use crate::math::{load, store};
use crate::simd::{LANES, Simd, join, split};

/// Elements per task.
const RUN: usize = 1 << 15;

/// Both halves of every element of `x`.
pub(crate) fn split_all(exec: &Exec, x: &[f32], high: &mut [bf16], low: &mut [i16]) {
    let ns = x.len() as f64;
    exec.chunks(high, RUN, ns, |i, high| {
        high.iter_mut().zip(&x[i * RUN..]).for_each(|(high, x)| *high = bf16::from_bits(split(*x).0));
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
        out.iter_mut().zip(halves).for_each(|(out, (high, low))| *out = join(high.to_bits(), *low));
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
        let (high, low): (&[u16], _) = (bytemuck::cast_slice(&self.high[at..]), &self.low[at..]);
        if let (Some(high), Some(low)) = (high.first_chunk(), low.first_chunk()) {
            return s.join(high, low);
        }
        let (mut whole_high, mut whole_low) = ([0; LANES], [0; LANES]);
        whole_high[..high.len()].copy_from_slice(high);
        whole_low[..low.len()].copy_from_slice(low);
        s.join(&whole_high, &whole_low)
    }

    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, v: S::V, at: usize) {
        let (high, low): (&mut [u16], _) =
            (bytemuck::cast_slice_mut(&mut self.high[at..]), &mut self.low[at..]);
        if let (Some(high), Some(low)) = (high.first_chunk_mut(), low.first_chunk_mut()) {
            return s.split(v, high, low);
        }
        let (mut whole_high, mut whole_low) = ([0; LANES], [0; LANES]);
        s.split(v, &mut whole_high, &mut whole_low);
        high.copy_from_slice(&whole_high[..high.len()]);
        low.copy_from_slice(&whole_low[..low.len()]);
    }
}
