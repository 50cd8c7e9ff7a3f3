//! The micro-kernel: a tile of C held in registers, one k after another.

use crate::exec::Tile;
use crate::path::{Kernel, Path};
use crate::simd::{LANES, Simd};

/// Columns of a panel of B, on every path.
pub(crate) const NR: usize = 32;
/// Rows of A that are packed together, on every path.
pub(crate) const MR: usize = 12;
/// Depth of a block: a panel of B of this depth stays in the first-level cache.
pub(crate) const KC: usize = 256;
/// Distance between the rows of a packed block; not a power of two, so that rows fall in different cache sets.
pub(crate) const STRIDE: usize = KC + 16;

/// How a block of A lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Element `(m, k)` at `m · STRIDE + k`.
    Rows,
    /// Element `(m, k)` at `k · STRIDE + m`: the transpose of `Rows`.
    Cols,
    /// Groups of `MR` rows, `KC · MR` elements apart; inside a group element `(m, k)` at `k · MR + m`.
    Groups,
}

/// `C = A B` or `C += A B` for one block: `A [m, k]`, `B [k, n]` in panels.
///
/// Every element of C is one chain of fused multiply-adds in the order of k, starting from 0 or, with
/// `continues`, from the value in C.
pub(crate) struct Product<'a> {
    /// Rows.
    pub(crate) m: usize,
    /// Columns.
    pub(crate) n: usize,
    /// Depth.
    pub(crate) k: usize,
    /// The block of A and how it lies.
    pub(crate) a: (&'a [f32], Layout),
    /// Panels of B: element `(k, n)` of panel `j` at `j · panel + k · NR + n`.
    pub(crate) b: &'a [f32],
    /// Distance between panels.
    pub(crate) panel: usize,
    /// At least `m` by `n`.
    pub(crate) c: Tile<'a, f32>,
    /// Whether C is added to.
    pub(crate) continues: bool,
}

impl Product<'_> {
    /// One past the last element of A that is read.
    fn end_of_a(&self) -> usize {
        match self.a.1 {
            Layout::Rows => (self.m - 1) * STRIDE + self.k,
            Layout::Cols => (self.k - 1) * STRIDE + self.m,
            Layout::Groups => (self.m - 1) / MR * (KC * MR) + (self.k - 1) * MR + (self.m - 1) % MR + 1,
        }
    }
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.m == 0 || self.n == 0 || self.k == 0 {
            return;
        }
        assert!(self.c.rows >= self.m && self.c.cols >= self.n, "product: C is too small");
        assert!(self.end_of_a() <= self.a.0.len(), "product: A is too small");
        assert!(
            (self.n.div_ceil(NR) - 1) * self.panel + self.k * NR <= self.b.len(),
            "product: B is too small"
        );
        // SAFETY: the three assertions are the contract of `sweep`.
        unsafe {
            match self.a.1 {
                Layout::Rows => sweep::<S, { MR * STRIDE }, STRIDE, 1>(s, self),
                Layout::Cols => sweep::<S, MR, 1, STRIDE>(s, self),
                Layout::Groups => sweep::<S, { KC * MR }, 1, MR>(s, self),
            }
        }
    }
}

/// Where a strip of up to `MR` rows and `NR` columns is.
#[derive(Clone, Copy)]
struct Strip {
    k: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    continues: bool,
}

/// All strips; element `(m, k)` of A is at `m / MR · GROUP + m % MR · ROW + k · DEPTH`.
///
/// # Safety
/// A, B and C must hold the elements that `Product` says.
#[inline(always)]
unsafe fn sweep<S: Simd, const GROUP: usize, const ROW: usize, const DEPTH: usize>(s: S, mut p: Product<'_>) {
    let c = p.c.as_mut_ptr();
    let mut edge = [0.0f32; MR * NR];
    let groups = p.m.div_ceil(MR);
    for panel in 0..p.n.div_ceil(NR) {
        let cols = NR.min(p.n - panel * NR);
        for group in 0..groups {
            if groups >= FEW {
                let next = p.b.as_ptr().wrapping_add((panel + 1) * p.panel);
                fetch(s, next, (group * p.k / groups * NR, (group + 1) * p.k / groups * NR));
                for r in 0..MR {
                    let row = c.wrapping_add(((group + 1) * MR + r) * p.c.stride + panel * NR);
                    fetch(s, row, (0, NR));
                }
            }
            let rows = MR.min(p.m - group * MR);
            // SAFETY: the offsets are those of elements inside A, B and C, by the contract of this function. At
            // the right edge the strip works on a copy of whole width; rows and columns copied are inside C.
            unsafe {
                let at = c.add(group * MR * p.c.stride + panel * NR);
                let whole = cols == NR;
                let strip = Strip {
                    k: p.k,
                    a: p.a.0.as_ptr().add(group * GROUP),
                    b: p.b.as_ptr().add(panel * p.panel),
                    c: if whole { at } else { edge.as_mut_ptr() },
                    stride: if whole { p.c.stride } else { NR },
                    continues: p.continues,
                };
                if !whole && p.continues {
                    for r in 0..rows {
                        at.add(r * p.c.stride).copy_to(strip.c.add(r * NR), cols);
                    }
                }
                strip_rows::<S, ROW, DEPTH>(s, strip, rows);
                if !whole {
                    for r in 0..rows {
                        strip.c.add(r * NR).copy_to(at.add(r * p.c.stride), cols);
                    }
                }
            }
        }
    }
}

/// With fewer groups of rows there is too little work per panel to fetch ahead.
const FEW: usize = 4;

/// Fetches a range of elements ahead of their use.
#[inline(always)]
fn fetch<S: Simd>(s: S, from: *const f32, (start, end): (usize, usize)) {
    for at in (start..end).step_by(LANES) {
        s.prefetch(from.wrapping_add(at));
    }
}

/// A strip of `rows` rows, by tiles of the size that fits the registers.
///
/// # Safety
/// The strip must be inside A, B and C.
#[inline(always)]
unsafe fn strip_rows<S: Simd, const ROW: usize, const DEPTH: usize>(s: S, strip: Strip, rows: usize) {
    // SAFETY: the tiles cover exactly `rows` rows and `NR` columns of the strip.
    unsafe {
        if matches!(S::PATH, Path::Avx512) {
            if rows == MR {
                return tile::<S, MR, 2, ROW, DEPTH>(s, strip);
            }
            let mut rest = strip;
            let mut left = rows;
            while left > 0 {
                let done = match left {
                    8.. => {
                        tile::<S, 8, 2, ROW, DEPTH>(s, rest);
                        8
                    }
                    4.. => {
                        tile::<S, 4, 2, ROW, DEPTH>(s, rest);
                        4
                    }
                    2.. => {
                        tile::<S, 2, 2, ROW, DEPTH>(s, rest);
                        2
                    }
                    _ => {
                        tile::<S, 1, 2, ROW, DEPTH>(s, rest);
                        1
                    }
                };
                left -= done;
                rest.a = rest.a.add(done * ROW);
                rest.c = rest.c.add(done * rest.stride);
            }
        } else {
            for half in 0..2 {
                let mut rest = strip;
                rest.b = rest.b.add(half * LANES);
                rest.c = rest.c.add(half * LANES);
                let mut left = rows;
                while left > 0 {
                    let done = match left {
                        6.. => {
                            tile::<S, 6, 1, ROW, DEPTH>(s, rest);
                            6
                        }
                        3.. => {
                            tile::<S, 3, 1, ROW, DEPTH>(s, rest);
                            3
                        }
                        _ => {
                            tile::<S, 1, 1, ROW, DEPTH>(s, rest);
                            1
                        }
                    };
                    left -= done;
                    rest.a = rest.a.add(done * ROW);
                    rest.c = rest.c.add(done * rest.stride);
                }
            }
        }
    }
}

/// `R` rows by `W` vectors.
///
/// # Safety
/// The tile must be inside A, B and C.
#[expect(clippy::needless_range_loop, reason = "the constant ranges are what is unrolled into registers")]
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const W: usize, const ROW: usize, const DEPTH: usize>(
    s: S,
    t: Strip,
) {
    let mut acc = [[s.splat(0.0); W]; R];
    // SAFETY: elements (r, k) of A, (k, 16 w ..) of B and (r, 16 w ..) of C of the tile.
    unsafe {
        if t.continues {
            for r in 0..R {
                for w in 0..W {
                    acc[r][w] = s.load(&*t.c.add(r * t.stride + w * LANES).cast());
                }
            }
        }
        let mut a = t.a;
        let mut b = t.b;
        for _ in 0..t.k {
            let mut row = [s.splat(0.0); W];
            for w in 0..W {
                row[w] = s.load(&*b.add(w * LANES).cast());
            }
            for r in 0..R {
                let x = s.splat(*a.add(r * ROW));
                for w in 0..W {
                    acc[r][w] = s.fma(x, row[w], acc[r][w]);
                }
            }
            a = a.add(DEPTH);
            b = b.add(NR);
        }
        for r in 0..R {
            for w in 0..W {
                s.store(acc[r][w], &mut *t.c.add(r * t.stride + w * LANES).cast());
            }
        }
    }
}
