//! Block encodings as the kernel reads them: strips of sixteen columns, in depth one chunk of [`Code::STEP`] elements after
//! another.
//!
//! A chunk holds the scales of its sixteen columns, then the elements. Elements are unsigned bytes in the products
//! (`weight = scale · (element − OFFSET)`, or `scale · element + least`); a vector of 64 bytes holds four that follow each other
//! in depth of each of the sixteen columns. Elements of 4 bits lie two vectors to one, the first in the lower halves; further
//! bits lie behind all lower ones, as masks of 64 bits.

use half::f16;
use llamero_tensor::Encoding;

use crate::simd::{LANES, Simd};

/// Bytes of one half-precision number of each column.
const HALVES: usize = 2 * LANES;
/// Bytes of the lower 4 bits of 32 elements of each column.
const NIBBLES: usize = 16 * LANES;
/// Bytes of one further bit of 32 elements of each column.
const BITS: usize = 4 * LANES;

/// An encoding.
pub(crate) trait Code: Copy + Send + Sync {
    /// Its name in files.
    const ENCODING: Encoding;
    /// Elements of a block of the file, and of a chunk in depth.
    const STEP: usize;
    /// Elements that share a scale: 32 or 16.
    const RUN: usize;
    /// Bytes of a chunk.
    const BYTES: usize;
    /// What is subtracted from every element.
    const OFFSET: i32;
    /// Whether runs have a least value.
    const LEAST: bool;

    /// The elements of a block of the file.
    fn elements(block: &[u8], out: &mut [u8]);
    /// Puts the scales of a block of the file into a chunk.
    fn put_scales(block: &[u8], column: usize, chunk: &mut [u8]);
    /// Scale and least value of a run of one column.
    fn scales(chunk: &[u8], column: usize, run: usize) -> (f32, f32);
    /// Where the lower bits begin, and where the masks of each further bit.
    const LOW: usize;
    /// Further bits beyond 4; elements of 8 bits have none.
    const MORE_BITS: usize;

    /// The scales of run `run` of the chunk at `chunk`.
    ///
    /// # Safety
    /// `chunk` is the address of [`Code::BYTES`] bytes (here and in all below), `run` one of its runs.
    unsafe fn scale<S: Simd>(s: S, chunk: *const u8, run: usize) -> S::V;
    /// The least values of a run.
    ///
    /// # Safety
    /// That of [`Code::scale`].
    unsafe fn least<S: Simd>(s: S, _chunk: *const u8, _run: usize) -> S::V {
        s.splat(0.0)
    }
    /// Vectors `2 pair` and `2 pair + 1` of 32 elements, of those from `32 part` on.
    ///
    /// # Safety
    /// That of [`Code::scale`]; `part` is below `STEP / 32` and `pair` below 4.
    #[inline(always)]
    unsafe fn pair<S: Simd>(s: S, chunk: *const u8, part: usize, pair: usize) -> (S::V, S::V) {
        // SAFETY: the lower bits of all parts begin at `LOW`, the masks behind them.
        unsafe {
            let at = chunk.add(Self::LOW + part * NIBBLES + pair * 64);
            let (mut a, mut b) = s.nibbles(s.load_bytes(at));
            for bit in 0..Self::MORE_BITS {
                let masks =
                    chunk.add(Self::LOW + Self::STEP / 32 * NIBBLES + (part * Self::MORE_BITS + bit) * BITS);
                a = s.with_bits(a, masks.add(16 * pair), 16 << bit);
                b = s.with_bits(b, masks.add(16 * pair + 8), 16 << bit);
            }
            (a, b)
        }
    }

    /// Puts the elements of a block, as [`Code::elements`] gave them, into a chunk.
    fn put_elements(elements: &[u8], column: usize, chunk: &mut [u8]) {
        for (part, x) in elements.as_chunks::<32>().0.iter().enumerate() {
            let low = &mut chunk[Self::LOW + part * NIBBLES..][..NIBBLES];
            for (pair, x) in x.as_chunks::<8>().0.iter().enumerate() {
                let [a, b] =
                    [&x[..4], &x[4..]].map(|x| u32::from_le_bytes([x[0], x[1], x[2], x[3]]) & 0x0f0f_0f0f);
                low[pair * 64 + 4 * column..][..4].copy_from_slice(&(a | b << 4).to_le_bytes());
            }
            for bit in 0..Self::MORE_BITS {
                let at = Self::LOW + Self::STEP / 32 * NIBBLES + (part * Self::MORE_BITS + bit) * BITS;
                let masks = &mut chunk[at..][..BITS];
                for (vector, x) in x.as_chunks::<4>().0.iter().enumerate() {
                    let bits = (0..4).fold(0, |bits, i| bits | (x[i] >> (4 + bit) & 1) << i);
                    let place = &mut masks[8 * vector + column / 2];
                    let shift = 4 * (column % 2);
                    *place = *place & !(0xf << shift) | bits << shift;
                }
            }
        }
    }

    /// Element `at` of one column of a chunk.
    fn element(chunk: &[u8], column: usize, at: usize) -> u8 {
        let (part, vector, byte) = (at / 32, at % 32 / 4, at % 4);
        let low = chunk[Self::LOW + part * NIBBLES + vector / 2 * 64 + 4 * column + byte];
        let mut x = low >> (4 * (vector % 2)) & 0xf;
        for bit in 0..Self::MORE_BITS {
            let masks = Self::LOW + Self::STEP / 32 * NIBBLES + (part * Self::MORE_BITS + bit) * BITS;
            let mask = chunk[masks + 8 * vector + column / 2];
            x |= (mask >> (4 * (column % 2) + byte) & 1) << (4 + bit);
        }
        x
    }

    /// The weights of one column of a chunk.
    fn decode(chunk: &[u8], column: usize, out: &mut [f32]) {
        for (run, out) in out.chunks_exact_mut(Self::RUN).enumerate() {
            let (scale, least) = Self::scales(chunk, column, run);
            for (i, x) in out.iter_mut().enumerate() {
                let q = i32::from(Self::element(chunk, column, run * Self::RUN + i)) - Self::OFFSET;
                *x = scale * q as f32;
                if Self::LEAST {
                    *x += least;
                }
            }
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Copies two bytes of a block to the place of a column.
fn put_half(block: &[u8], at: usize, chunk: &mut [u8], column: usize) {
    chunk[2 * column..][..2].copy_from_slice(&block[at..at + 2]);
}

/// 4-bit elements of 16 bytes: the lower halves first.
fn nibbles(bytes: &[u8], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 0xf, byte >> 4);
    }
}

/// Adds the fifth bits, one of each of 32 elements.
fn fifth(bits: u32, out: &mut [u8]) {
    for (i, x) in out.iter_mut().enumerate() {
        *x |= ((bits >> i & 1) as u8) << 4;
    }
}

/// The encodings of 32 elements: one scale, perhaps a least value, then perhaps fifth bits, then lower bits.
macro_rules! simple {
    ($name:ident, $encoding:ident, least $least:literal, offset $offset:literal, more_bits $more:literal) => {
        /// See [`Encoding`].
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Code for $name {
            const ENCODING: Encoding = Encoding::$encoding;
            const STEP: usize = 32;
            const RUN: usize = 32;
            const BYTES: usize = Self::LOW + NIBBLES + $more * BITS;
            const OFFSET: i32 = $offset;
            const LEAST: bool = $least;
            const LOW: usize = if $least { 2 * HALVES } else { HALVES };
            const MORE_BITS: usize = $more;

            #[inline(always)]
            fn elements(block: &[u8], out: &mut [u8]) {
                let block = &block[if $least { 4 } else { 2 }..];
                nibbles(&block[4 * $more..][..16], out);
                if $more == 1 {
                    fifth(u32::from_le_bytes([block[0], block[1], block[2], block[3]]), out);
                }
            }

            #[inline(always)]
            fn put_scales(block: &[u8], column: usize, chunk: &mut [u8]) {
                put_half(block, 0, chunk, column);
                if $least {
                    put_half(block, 2, &mut chunk[HALVES..], column);
                }
            }

            fn scales(chunk: &[u8], column: usize, _run: usize) -> (f32, f32) {
                let least = if $least { half(chunk, HALVES + 2 * column) } else { 0.0 };
                (half(chunk, 2 * column), least)
            }

            #[inline(always)]
            unsafe fn scale<S: Simd>(s: S, chunk: *const u8, _run: usize) -> S::V {
                // SAFETY: the chunk begins with the scales.
                s.widen_half(unsafe { &*chunk.cast() })
            }

            #[inline(always)]
            unsafe fn least<S: Simd>(s: S, chunk: *const u8, _run: usize) -> S::V {
                // SAFETY: the least values come next.
                if $least { s.widen_half(unsafe { &*chunk.add(HALVES).cast() }) } else { s.splat(0.0) }
            }
        }
    };
}

simple!(Q4_0, Q4_0, least false, offset 8, more_bits 0);
simple!(Q4_1, Q4_1, least true, offset 0, more_bits 0);
simple!(Q5_0, Q5_0, least false, offset 16, more_bits 1);
simple!(Q5_1, Q5_1, least true, offset 0, more_bits 1);

/// 32 elements of 8 bits, kept with 128 added.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl Code for Q8_0 {
    const ENCODING: Encoding = Encoding::Q8_0;
    const STEP: usize = 32;
    const RUN: usize = 32;
    const BYTES: usize = HALVES + 32 * LANES;
    const OFFSET: i32 = 128;
    const LEAST: bool = false;
    const LOW: usize = HALVES;
    const MORE_BITS: usize = 0;

    #[inline(always)]
    fn elements(block: &[u8], out: &mut [u8]) {
        for (x, out) in block[2..].iter().zip(out) {
            *out = x ^ 0x80;
        }
    }

    #[inline(always)]
    fn put_scales(block: &[u8], column: usize, chunk: &mut [u8]) {
        put_half(block, 0, chunk, column);
    }

    fn scales(chunk: &[u8], column: usize, _run: usize) -> (f32, f32) {
        (half(chunk, 2 * column), 0.0)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, chunk: *const u8, _run: usize) -> S::V {
        // SAFETY: the chunk begins with the scales.
        s.widen_half(unsafe { &*chunk.cast() })
    }

    #[inline(always)]
    unsafe fn pair<S: Simd>(s: S, chunk: *const u8, _part: usize, pair: usize) -> (S::V, S::V) {
        // SAFETY: eight vectors of 64 bytes begin at `LOW`.
        unsafe {
            let at = chunk.add(Self::LOW + pair * 128);
            (s.load_bytes(at), s.load_bytes(at.add(64)))
        }
    }

    #[inline(always)]
    fn put_elements(elements: &[u8], column: usize, chunk: &mut [u8]) {
        for (vector, x) in elements.as_chunks::<4>().0.iter().enumerate() {
            chunk[Self::LOW + 64 * vector + 4 * column..][..4].copy_from_slice(x);
        }
    }

    fn element(chunk: &[u8], column: usize, at: usize) -> u8 {
        chunk[Self::LOW + at / 4 * 64 + 4 * column + at % 4]
    }
}

/// Scale and least value of run `i` of a block of 256: 6 bits each, in 12 bytes.
#[inline(always)]
fn six_bits(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        return (packed[i] & 63, packed[i + 4] & 63);
    }
    let (scale, least) = (packed[i + 4] & 0xf, packed[i + 4] >> 4);
    (scale | packed[i - 4] >> 6 << 4, least | packed[i] >> 6 << 4)
}

/// The encodings of 256 elements with scales and least values of 6 bits.
macro_rules! super_block {
    ($name:ident, $encoding:ident, more_bits $more:literal) => {
        /// See [`Encoding`].
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Code for $name {
            const ENCODING: Encoding = Encoding::$encoding;
            const STEP: usize = 256;
            const RUN: usize = 32;
            const BYTES: usize = Self::LOW + 8 * (NIBBLES + $more * BITS);
            const OFFSET: i32 = 0;
            const LEAST: bool = true;
            const LOW: usize = 2 * HALVES + 16 * LANES;
            const MORE_BITS: usize = $more;

            #[inline(always)]
            fn elements(block: &[u8], out: &mut [u8]) {
                let (high, low) = block[16..].split_at(32 * $more);
                for (i, out) in out.chunks_exact_mut(64).enumerate() {
                    nibbles(&low[32 * i..][..32], out);
                    if $more == 1 {
                        for (j, x) in out.iter_mut().enumerate() {
                            *x |= (high[j % 32] >> (2 * i + j / 32) & 1) << 4;
                        }
                    }
                }
            }

            #[inline(always)]
            fn put_scales(block: &[u8], column: usize, chunk: &mut [u8]) {
                put_half(block, 0, chunk, column);
                put_half(block, 2, &mut chunk[HALVES..], column);
                for run in 0..8 {
                    let (scale, least) = six_bits(&block[4..16], run);
                    chunk[2 * HALVES + run * LANES + column] = scale;
                    chunk[2 * HALVES + (8 + run) * LANES + column] = least;
                }
            }

            fn scales(chunk: &[u8], column: usize, run: usize) -> (f32, f32) {
                let small = |i: usize| f32::from(chunk[2 * HALVES + i * LANES + column]);
                let (scale, least) = (half(chunk, 2 * column), half(chunk, HALVES + 2 * column));
                (scale * small(run), -(least * small(8 + run)))
            }

            #[inline(always)]
            unsafe fn scale<S: Simd>(s: S, chunk: *const u8, run: usize) -> S::V {
                // SAFETY: the chunk begins with the scales; those of 6 bits follow behind the least values.
                unsafe {
                    let all = s.widen_half(&*chunk.cast());
                    s.mul(all, s.widen_bytes(&*chunk.add(2 * HALVES + run * LANES).cast()))
                }
            }

            #[inline(always)]
            unsafe fn least<S: Simd>(s: S, chunk: *const u8, run: usize) -> S::V {
                // SAFETY: the least values come after the scales, those of 6 bits after the scales of 6 bits.
                unsafe {
                    let all = s.widen_half(&*chunk.add(HALVES).cast());
                    let own = s.widen_bytes(&*chunk.add(2 * HALVES + (8 + run) * LANES).cast());
                    s.sub(s.splat(0.0), s.mul(all, own))
                }
            }
        }
    };
}

super_block!(Q4K, Q4K, more_bits 0);
super_block!(Q5K, Q5K, more_bits 1);

/// 256 elements of 6 bits, 16 scales of 8 bits.
#[derive(Clone, Copy)]
pub(crate) struct Q6K;

impl Code for Q6K {
    const ENCODING: Encoding = Encoding::Q6K;
    const STEP: usize = 256;
    const RUN: usize = 16;
    const BYTES: usize = Self::LOW + 8 * (NIBBLES + 2 * BITS);
    const OFFSET: i32 = 32;
    const LEAST: bool = false;
    const LOW: usize = HALVES + 16 * LANES;
    const MORE_BITS: usize = 2;

    #[inline(always)]
    fn elements(block: &[u8], out: &mut [u8]) {
        let (low, high) = block.split_at(128);
        for (half, out) in out.chunks_exact_mut(128).enumerate() {
            for (i, x) in out.iter_mut().enumerate() {
                let (run, at) = (i / 32, i % 32);
                let byte = low[64 * half + 32 * (run % 2) + at];
                let lower = if run < 2 { byte & 0xf } else { byte >> 4 };
                *x = lower | (high[32 * half + at] >> (2 * run) & 3) << 4;
            }
        }
    }

    #[inline(always)]
    fn put_scales(block: &[u8], column: usize, chunk: &mut [u8]) {
        put_half(block, 208, chunk, column);
        for run in 0..16 {
            // The sign is turned round, so that the byte less 128 is the scale.
            chunk[HALVES + run * LANES + column] = block[192 + run] ^ 0x80;
        }
    }

    fn scales(chunk: &[u8], column: usize, run: usize) -> (f32, f32) {
        let own = f32::from(chunk[HALVES + run * LANES + column]) - 128.0;
        (half(chunk, 2 * column) * own, 0.0)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, chunk: *const u8, run: usize) -> S::V {
        // SAFETY: the chunk begins with the scales of the blocks, those of the runs follow.
        unsafe {
            let all = s.widen_half(&*chunk.cast());
            let own = s.widen_bytes(&*chunk.add(HALVES + run * LANES).cast());
            s.mul(all, s.sub(own, s.splat(128.0)))
        }
    }
}
