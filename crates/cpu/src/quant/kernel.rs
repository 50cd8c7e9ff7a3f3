//! The micro-kernel: dot products of 8-bit rows and weights in blocks, exact in each run, then summed in f32 from run to run.
//!
//! Every element of the result is one chain over the runs, so it does not depend on how many rows or columns stand beside it,
//! and its steps are exact integer sums and IEEE operations, so all paths give the same bits.

use std::marker::PhantomData;
use std::ops::Range;

use super::code::Code;
use super::rows::{GROUP, Parts, RUN, Rows};
use crate::exec::Tile;
use crate::math::Element;
use crate::path::{Kernel, Path};
use crate::simd::{LANES, Simd};

/// Bytes of weights that are fetched ahead of their use where few rows use them.
const AHEAD: usize = 4096;

/// `C = rows · stripsᵀ` for some rows and some strips of sixteen columns.
pub(crate) struct Product<'a, C, E> {
    pub(crate) rows: &'a Rows,
    /// The first row; a multiple of [`GROUP`].
    pub(crate) first_row: usize,
    /// The strips, whole ones.
    pub(crate) strips: &'a [u8],
    /// Columns of the strips that are wanted.
    pub(crate) wanted: Range<usize>,
    /// `[rows, wanted]`.
    pub(crate) out: Tile<'a, E>,
    /// How the strips are encoded.
    pub(crate) code: PhantomData<C>,
}

/// A group of rows of [`Rows`], from one of its rows on.
#[derive(Clone, Copy)]
struct Group {
    bytes: *const u32,
    scales: *const f32,
    scaled_sums: *const f32,
    /// Of whole runs, or of halves where the code's runs are as short.
    sums: *const f32,
}

impl<C: Code, E: Element> Kernel for Product<'_, C, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (depth, parts) = (self.rows.depth, Parts::new(self.rows.depth));
        let strip = depth / C::STEP * C::BYTES;
        let rows = self.out.rows;
        let groups = self.first_row / GROUP..(self.first_row + rows).div_ceil(GROUP);
        let data = self.rows.groups();
        assert!(
            depth.is_multiple_of(C::STEP) && self.first_row.is_multiple_of(GROUP),
            "product: depth {depth}"
        );
        assert!(groups.end * parts.end <= data.len(), "product: the rows are too few");
        assert!(
            self.wanted.end.div_ceil(LANES) * strip <= self.strips.len()
                && self.wanted.len() <= self.out.cols
        );
        let sums = if C::RUN == RUN { parts.sums } else { parts.half_sums };
        for (index, chunks) in self.strips.chunks_exact(strip).enumerate() {
            let first = (index * LANES).max(self.wanted.start);
            let last = ((index + 1) * LANES).min(self.wanted.end);
            if first >= last {
                continue;
            }
            for group in groups.clone() {
                let done = group * GROUP - self.first_row;
                let mut left = GROUP.min(rows - done);
                let mut row = 0;
                while left > 0 {
                    // SAFETY: the group is inside, by the assertions.
                    let at = unsafe {
                        let group = data.as_ptr().add(group * parts.end + row);
                        Group {
                            bytes: group,
                            scales: group.add(parts.scales).cast(),
                            scaled_sums: group.add(parts.scaled_sums).cast(),
                            sums: group.add(sums).cast(),
                        }
                    };
                    let place = (done + row, first - index * LANES, first - self.wanted.start, last - first);
                    // SAFETY: as many rows as are left of the group, and a whole strip.
                    let now = unsafe {
                        match left {
                            12.. if wide::<S>() => some::<S, C, E, 12>(s, chunks, at, &mut self.out, place),
                            8.. if wide::<S>() => some::<S, C, E, 8>(s, chunks, at, &mut self.out, place),
                            4.. => some::<S, C, E, 4>(s, chunks, at, &mut self.out, place),
                            2.. => some::<S, C, E, 2>(s, chunks, at, &mut self.out, place),
                            _ => some::<S, C, E, 1>(s, chunks, at, &mut self.out, place),
                        }
                    };
                    (left, row) = (left - now, row + now);
                }
            }
        }
    }
}

/// Whether there are registers for tiles of many rows.
#[inline(always)]
fn wide<S: Simd>() -> bool {
    matches!(S::PATH, Path::Avx512 | Path::Avx512Bf16)
}

/// `R` rows of a strip; `place` is the row of the result, the strip's first column that is wanted, its column in the result and
/// how many. Returns `R`.
///
/// # Safety
/// That of [`tile`].
#[inline(always)]
unsafe fn some<S: Simd, C: Code, E: Element, const R: usize>(
    s: S,
    chunks: &[u8],
    at: Group,
    out: &mut Tile<'_, E>,
    (row, from, to, count): (usize, usize, usize, usize),
) -> usize {
    // SAFETY: passed on.
    let sums = unsafe { tile::<S, C, R>(s, chunks, at) };
    for (r, v) in sums.into_iter().enumerate() {
        let out = &mut out.row(row + r)[to..][..count];
        match out.first_chunk_mut() {
            Some(whole) => E::store(s, v, whole),
            None => {
                let mut part = [E::zeroed(); LANES];
                E::store(s, v, &mut part);
                out.copy_from_slice(&part[from..][..count]);
            }
        }
    }
    R
}

/// Sums of `R` rows and the sixteen columns of a strip.
///
/// # Safety
/// `at` is inside a group of rows with `R` more rows, of the depth that `chunks` has.
#[expect(clippy::needless_range_loop, reason = "the constant ranges are what is unrolled into registers")]
#[inline(always)]
unsafe fn tile<S: Simd, C: Code, const R: usize>(s: S, chunks: &[u8], mut at: Group) -> [S::V; R] {
    let offset = s.splat(-C::OFFSET as f32);
    let mut sums = [s.splat(0.0); R];
    for chunk in chunks.chunks_exact(C::BYTES) {
        let chunk = chunk.as_ptr();
        if R < 4 {
            // So few rows wait for the weights, and what comes next is known.
            for line in (0..C::BYTES).step_by(64) {
                s.prefetch(chunk.wrapping_add(line + AHEAD).cast());
            }
        }
        for run in 0..C::STEP / C::RUN {
            let (part, pairs) = match C::RUN {
                32 => (run, 0..4),
                _ => (run / 2, 2 * (run % 2)..2 * (run % 2) + 2),
            };
            // SAFETY: the chunk is whole; the pointers stay inside the group, for they move by one run's worth at a time.
            unsafe {
                let mut whole = [s.splat(0.0); R];
                for pair in pairs {
                    let (a, b) = C::pair(s, chunk, part, pair);
                    for r in 0..R {
                        let x = s.splat(f32::from_bits(*at.bytes.add(r)));
                        whole[r] = s.dot_bytes(whole[r], a, x);
                    }
                    for r in 0..R {
                        let x = s.splat(f32::from_bits(*at.bytes.add(GROUP + r)));
                        whole[r] = s.dot_bytes(whole[r], b, x);
                    }
                    at.bytes = at.bytes.add(2 * GROUP);
                }
                let scale = C::scale(s, chunk, run);
                for r in 0..R {
                    let mut q = s.ints_to_f32(whole[r]);
                    if C::OFFSET != 0 {
                        q = s.fma(s.splat(*at.sums.add(r)), offset, q);
                    }
                    sums[r] = s.fma(q, s.mul(scale, s.splat(*at.scales.add(r))), sums[r]);
                }
                if C::LEAST {
                    let least = C::least(s, chunk, run);
                    for r in 0..R {
                        sums[r] = s.fma(least, s.splat(*at.scaled_sums.add(r)), sums[r]);
                    }
                }
                // After the last run these may lie behind the arrays.
                at.sums = at.sums.wrapping_add(GROUP);
                if C::RUN == RUN || run % 2 == 1 {
                    at.scales = at.scales.wrapping_add(GROUP);
                    at.scaled_sums = at.scaled_sums.wrapping_add(GROUP);
                }
            }
        }
    }
    sums
}
