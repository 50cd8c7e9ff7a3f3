//! Rows of activations, rounded to 8 bits for products with weights in blocks.

use crate::exec::Exec;
use crate::math::{Element, load};
use crate::memory::Buffer;
use crate::path::Kernel;
use crate::simd::{LANES, ROUND, Simd};
use crate::storage::Stored;

/// Rows that lie together, as many as a tile of the kernel takes.
pub(crate) const GROUP: usize = 12;
/// Elements that share a scale.
pub(crate) const RUN: usize = 32;

/// Runs whose elements are all as small as this are taken for zeros.
const TINY: f32 = 1e-30;

/// Rows `[m, k]`, `x ≈ scale · q`, in groups of [`GROUP`] rows; the places of rows beyond the last hold anything.
pub(crate) struct Rows {
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    /// One group after another, each as [`Parts`] says.
    data: Buffer<u32>,
}

/// Where the parts of a group begin, in values of four bytes; in each, what belongs to a row of the group stands beside what
/// belongs to the next row.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    /// Of each run the scale, f32. The bytes `q` come before it: four that follow each other in depth, then the next four.
    pub(crate) scales: usize,
    /// Of each run `scale · Σ q`, f32.
    pub(crate) scaled_sums: usize,
    /// Of each run `Σ q`, f32.
    pub(crate) sums: usize,
    /// Of each half of a run `Σ q`, f32.
    pub(crate) half_sums: usize,
    /// The size of a group.
    pub(crate) end: usize,
}

impl Parts {
    pub(crate) fn new(depth: usize) -> Self {
        let (bytes, of_runs) = (depth / 4 * GROUP, depth / RUN * GROUP);
        let at = |n: usize| bytes + n * of_runs;
        Self { scales: at(0), scaled_sums: at(1), sums: at(2), half_sums: at(3), end: at(5) }
    }
}

impl Rows {
    /// Rounds `x [m, k]`, where `k` is a whole number of runs.
    pub(crate) fn new<E: Stored>(exec: &Exec, x: &[E], depth: usize) -> Self {
        assert!(
            depth > 0 && depth.is_multiple_of(RUN),
            "rows of 8 bits: depth {depth} is no multiple of {RUN}"
        );
        let (rows, parts) = (x.len() / depth, Parts::new(depth));
        let mut data = exec.memory.stale(rows.div_ceil(GROUP) * parts.end);
        exec.chunks(&mut data, parts.end, x.len() as f64 * 0.3, |group, out| {
            let first = group * GROUP * depth;
            exec.run(Round { x: &x[first..x.len().min(first + GROUP * depth)], depth, parts, out });
        });
        Self { rows, depth, data }
    }

    /// All groups.
    pub(crate) fn groups(&self) -> &[u32] {
        &self.data
    }
}

/// Rounds the rows of a group.
struct Round<'a, E> {
    x: &'a [E],
    depth: usize,
    parts: Parts,
    out: &'a mut [u32],
}

impl<E: Element> Kernel for Round<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (zero, round) = (s.splat(0.0), s.splat(ROUND));
        let Parts { scales, scaled_sums, sums, half_sums, .. } = self.parts;
        let (bytes, numbers) = self.out.split_at_mut(scales);
        let numbers: &mut [f32] = bytemuck::cast_slice_mut(numbers);
        for (row, x) in self.x.chunks_exact(self.depth).enumerate() {
            let mut faults = zero;
            for (run, x) in x.chunks_exact(RUN).enumerate() {
                let (a, b) = (load(s, x, 0), load(s, x, LANES));
                let size_a = s.max(a, s.sub(zero, a));
                let size_b = s.max(b, s.sub(zero, b));
                let most = s.largest(s.max(size_a, size_b));
                faults = s.fma(a, zero, s.fma(b, zero, faults));
                let scale = most / 127.0;
                let inverse = s.splat(if most > TINY { 127.0 / most } else { 0.0 });
                // Adding it rounds, ties to even, and leaves the integer in the lowest byte.
                let (a, b) = (s.fma(a, inverse, round), s.fma(b, inverse, round));
                let (left, right) = (s.sum(s.sub(a, round)), s.sum(s.sub(b, round)));
                let at = run * GROUP + row;
                numbers[at] = scale;
                numbers[scaled_sums - scales + at] = scale * (left + right);
                numbers[sums - scales + at] = left + right;
                numbers[half_sums - scales + 2 * run * GROUP + row] = left;
                numbers[half_sums - scales + (2 * run + 1) * GROUP + row] = right;
                let bytes = &mut bytes[run * RUN / 4 * GROUP + row..];
                put_bytes(&s.array(a), bytes);
                put_bytes(&s.array(b), &mut bytes[LANES / 4 * GROUP..]);
            }
            // Zero, or NaN where an element is no number: that must show in the result.
            numbers[row] += s.sum(faults);
        }
    }
}

/// The lowest bytes of sixteen numbers, four to each place.
#[inline(always)]
fn put_bytes(x: &[f32; LANES], out: &mut [u32]) {
    for (i, x) in x.as_chunks::<4>().0.iter().enumerate() {
        let mut four = 0;
        for (byte, x) in x.iter().enumerate() {
            four |= (x.to_bits() & 0xff) << (8 * byte);
        }
        out[i * GROUP] = four;
    }
}
