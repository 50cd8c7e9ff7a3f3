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
    /// `q`: four elements that follow each other in depth of each row of the group, then the next four.
    pub(crate) bytes: Buffer<u32>,
    /// For each run of 32 elements, each row of the group.
    pub(crate) scales: Buffer<f32>,
    /// Likewise `scale · Σ q`.
    pub(crate) scaled_sums: Buffer<f32>,
    /// Likewise `Σ q`.
    pub(crate) sums: Buffer<f32>,
    /// Likewise for each run of 16 elements.
    pub(crate) half_sums: Buffer<f32>,
}

impl Rows {
    /// Rounds `x [m, k]`, where `k` is a whole number of runs.
    pub(crate) fn new<E: Stored>(exec: &Exec, x: &[E], depth: usize) -> Self {
        assert!(
            depth > 0 && depth.is_multiple_of(RUN),
            "rows of 8 bits: depth {depth} is no multiple of {RUN}"
        );
        let rows = x.len() / depth;
        let (groups, runs) = (rows.div_ceil(GROUP), depth / RUN);
        let per_run = || exec.memory.stale::<f32>(groups * runs * GROUP);
        let mut out = Self {
            rows,
            depth,
            bytes: exec.memory.stale(groups * depth / 4 * GROUP),
            scales: per_run(),
            scaled_sums: per_run(),
            sums: per_run(),
            half_sums: exec.memory.stale(groups * runs * 2 * GROUP),
        };
        let places = Places {
            bytes: &mut out.bytes,
            scales: &mut out.scales,
            scaled_sums: &mut out.scaled_sums,
            sums: &mut out.sums,
            half_sums: &mut out.half_sums,
        };
        let mut groups: Vec<(&[E], Places<'_>)> = x.chunks(depth * GROUP).zip(places.groups(runs)).collect();
        exec.chunks(&mut groups, 1, x.len() as f64 * 0.3, |_, group| {
            for (x, places) in group {
                exec.run(Round { x, depth, places });
            }
        });
        out
    }
}

/// Where the results of some groups go.
struct Places<'a> {
    bytes: &'a mut [u32],
    scales: &'a mut [f32],
    scaled_sums: &'a mut [f32],
    sums: &'a mut [f32],
    half_sums: &'a mut [f32],
}

impl<'a> Places<'a> {
    /// Those of each group.
    fn groups(self, runs: usize) -> impl Iterator<Item = Places<'a>> {
        let bytes = self.bytes.chunks_exact_mut(runs * RUN / 4 * GROUP);
        let [scales, scaled_sums, sums] =
            [self.scales, self.scaled_sums, self.sums].map(|x| x.chunks_exact_mut(runs * GROUP));
        let half_sums = self.half_sums.chunks_exact_mut(2 * runs * GROUP);
        bytes.zip(scales).zip(scaled_sums).zip(sums).zip(half_sums).map(
            |((((bytes, scales), scaled_sums), sums), half_sums)| Places {
                bytes,
                scales,
                scaled_sums,
                sums,
                half_sums,
            },
        )
    }
}

/// Rounds the rows of a group.
struct Round<'a, 'b, E> {
    x: &'a [E],
    depth: usize,
    places: &'a mut Places<'b>,
}

impl<E: Element> Kernel for Round<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (zero, round) = (s.splat(0.0), s.splat(ROUND));
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
                self.places.scales[at] = scale;
                self.places.sums[at] = left + right;
                self.places.scaled_sums[at] = scale * (left + right);
                self.places.half_sums[2 * run * GROUP + row] = left;
                self.places.half_sums[(2 * run + 1) * GROUP + row] = right;
                let bytes = &mut self.places.bytes[run * RUN / 4 * GROUP + row..];
                put_bytes(&s.array(a), bytes);
                put_bytes(&s.array(b), &mut bytes[LANES / 4 * GROUP..]);
            }
            // Zero, or NaN where an element is no number: that must show in the result.
            self.places.scales[row] += s.sum(faults);
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
