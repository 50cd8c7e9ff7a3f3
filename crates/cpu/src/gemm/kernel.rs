//! The micro-kernel: a tile of C held in registers, one step of depth after another.

use llamero_tensor::DType;

use crate::exec::Tile;
use crate::math::Element;
use crate::path::{Kernel, Path};
use crate::simd::{LANES, Simd};

/// Columns of a panel of B, on every path.
pub(crate) const NR: usize = 32;
/// Rows of A that are packed together, on every path.
pub(crate) const MR: usize = 12;
/// Steps of a block of depth. A panel of B of this depth (128 KiB) and the rows of A stay in the second-level cache.
pub(crate) const KC: usize = 1024;
/// Distance between the rows of a packed block; not a power of two, so that rows fall in different cache sets.
pub(crate) const STRIDE: usize = KC + 16;
/// Distance between groups of rows of a packed block.
pub(crate) const GROUP: usize = KC * MR + LANES;
/// Distance between the rows of a narrow block: the weights of attention.
pub(crate) const NARROW: usize = 64 + 16;

/// Values of the next panel of B that a strip fetches in each of its steps: 8 strips, the fewest that a task has where
/// B is large, fetch the whole of it. (Every line is asked for several times; with the loop unrolled to ask once, LLVM
/// loads A in vectors and takes it apart again, which costs a third of the speed.)
const AHEAD: usize = NR / 8;

/// Values of B that a tile of fewer than [`MR`] rows fetches ahead of their use: it waits for B more than for its products.
const FEW_ROWS_AHEAD: usize = 1024;

/// How a block of A lies in memory; `k` counts steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Step `k` of row `m` at `m · STRIDE + k`.
    Rows,
    /// The same with rows [`NARROW`] apart.
    Narrow,
    /// At `k · NARROW + m`: the transpose of `Narrow`.
    Cols,
    /// Groups of `MR` rows, `GROUP` apart; inside a group at `k · MR + m`.
    Groups,
}

/// Where the chains of a product start.
pub(crate) enum Start<'a> {
    /// At zero.
    Zero,
    /// At the values in C, which is f32.
    C,
    /// At earlier sums, elsewhere.
    Sums(Tile<'a, f32>),
}

/// `C = A B` or `C = sums + A B` for one block: `A [m, k]`, `B [k, n]` in panels, `k` in steps.
///
/// Every element of C is one chain over the depth: of fused multiply-adds, or of dot products of pairs.
pub(crate) struct Product<'a, E> {
    /// Rows.
    pub(crate) m: usize,
    /// Columns.
    pub(crate) n: usize,
    /// Steps of depth.
    pub(crate) k: usize,
    /// Whether a step is a pair of bf16.
    pub(crate) pairs: bool,
    /// The block of A and how it lies.
    pub(crate) a: (&'a [f32], Layout),
    /// Panels of B: step `k` of column `n` of panel `j` at `j · panel + k · NR + n`.
    pub(crate) b: &'a [f32],
    /// Distance between panels.
    pub(crate) panel: usize,
    /// At least `m` by `n`; each element is rounded once.
    pub(crate) c: Tile<'a, E>,
    /// Where the chains start.
    pub(crate) start: Start<'a>,
}

impl<E: Element> Product<'_, E> {
    /// One past the last element of A that is read.
    fn end_of_a(&self) -> usize {
        match self.a.1 {
            Layout::Rows => (self.m - 1) * STRIDE + self.k,
            Layout::Narrow => (self.m - 1) * NARROW + self.k,
            Layout::Cols => (self.k - 1) * NARROW + self.m,
            Layout::Groups => (self.m - 1) / MR * GROUP + (self.k - 1) * MR + (self.m - 1) % MR + 1,
        }
    }
}

impl<E: Element> Kernel for Product<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.m == 0 || self.n == 0 || self.k == 0 {
            return;
        }
        assert!(self.c.rows >= self.m && self.c.cols >= self.n, "product: C is too small");
        if let Start::Sums(sums) = &self.start {
            assert!(sums.rows >= self.m && sums.cols >= self.n, "product: the sums are too small");
        }
        let own = matches!(self.start, Start::C);
        assert!(!own || E::DTYPE == DType::F32, "product: only f32 can be added to");
        assert!(self.end_of_a() <= self.a.0.len(), "product: A is too small");
        assert!(
            (self.n.div_ceil(NR) - 1) * self.panel + self.k * NR <= self.b.len(),
            "product: B is too small"
        );
        // SAFETY: the assertions are the contract of `sweep`.
        unsafe {
            if self.pairs {
                assert!(S::PAIRS, "product: this path has no dot product of pairs");
                if S::PAIRS {
                    in_layout::<S, E, true>(s, self);
                }
            } else {
                in_layout::<S, E, false>(s, self);
            }
        }
    }
}

/// # Safety
/// That of [`sweep`].
#[inline(always)]
unsafe fn in_layout<S: Simd, E: Element, const PAIRS: bool>(s: S, p: Product<'_, E>) {
    // SAFETY: passed on.
    unsafe {
        match p.a.1 {
            Layout::Rows => sweep::<S, E, PAIRS, { MR * STRIDE }, STRIDE, 1>(s, p),
            Layout::Narrow => sweep::<S, E, PAIRS, { MR * NARROW }, NARROW, 1>(s, p),
            Layout::Cols => sweep::<S, E, PAIRS, MR, 1, NARROW>(s, p),
            Layout::Groups => sweep::<S, E, PAIRS, GROUP, 1, MR>(s, p),
        }
    }
}

/// Where a strip of up to `MR` rows and `NR` columns is.
struct Strip<E> {
    k: usize,
    a: *const f32,
    b: *const f32,
    /// A part of the next panel of B, to be fetched meanwhile.
    ahead: *const f32,
    /// Null where the chains start at zero.
    from: *const f32,
    from_stride: usize,
    c: *mut E,
    stride: usize,
}

impl<E> Clone for Strip<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Strip<E> {}

impl<E> Strip<E> {
    /// The strip without its first `rows` rows, whose elements of A are `row` apart; after the last rows its addresses
    /// may lie beyond the arrays and are not used.
    #[inline(always)]
    fn below(mut self, rows: usize, row: usize) -> Self {
        self.a = self.a.wrapping_add(rows * row);
        self.c = self.c.wrapping_add(rows * self.stride);
        self.from = self.from.wrapping_add(if self.from.is_null() { 0 } else { rows * self.from_stride });
        self
    }
}

/// All strips; step `k` of row `m` of A is at `m / MR · BLOCK + m % MR · ROW + k · DEPTH`.
///
/// # Safety
/// A, B, C and the sums must hold the elements that `Product` says.
#[inline(always)]
unsafe fn sweep<
    S: Simd,
    E: Element,
    const PAIRS: bool,
    const BLOCK: usize,
    const ROW: usize,
    const DEPTH: usize,
>(
    s: S,
    mut p: Product<'_, E>,
) {
    let c = p.c.as_mut_ptr();
    let (from, from_stride) = match &mut p.start {
        Start::Zero => (std::ptr::null(), 0),
        Start::C => (c.cast_const().cast(), p.c.stride),
        Start::Sums(sums) => (sums.as_mut_ptr().cast_const(), sums.stride),
    };
    let mut edge = [E::zeroed(); MR * NR];
    let mut edge_from = [0.0f32; MR * NR];
    let groups = p.m.div_ceil(MR);
    for panel in 0..p.n.div_ceil(NR) {
        let cols = NR.min(p.n - panel * NR);
        for group in 0..groups {
            let rows = MR.min(p.m - group * MR);
            let b = p.b.as_ptr().wrapping_add(panel * p.panel);
            // Beyond the next panel nothing is fetched that may not be needed.
            let next =
                (group < NR / AHEAD && (panel + 1) * NR < p.n).then_some(p.panel + group * p.k * AHEAD);
            if !from.is_null() {
                // The sums of the next strip may be far away.
                for r in 0..MR {
                    let row = from.wrapping_add(((group + 1) * MR + r) * from_stride + panel * NR);
                    s.prefetch(row);
                    s.prefetch(row.wrapping_add(LANES));
                }
            }
            // SAFETY: the offsets are those of elements inside A, B, C and the sums, by the contract of this function.
            // At the right edge the strip works on copies of whole width; rows and columns copied are inside.
            unsafe {
                let mut strip = Strip {
                    k: p.k,
                    a: p.a.0.as_ptr().add(group * BLOCK),
                    b,
                    ahead: b.wrapping_add(next.unwrap_or(0)),
                    from,
                    from_stride,
                    c: c.add(group * MR * p.c.stride + panel * NR),
                    stride: p.c.stride,
                };
                if !from.is_null() {
                    strip.from = from.add(group * MR * from_stride + panel * NR);
                }
                if cols.is_multiple_of(LANES) {
                    strip_rows::<S, E, PAIRS, ROW, DEPTH>(s, strip, (rows, cols));
                    continue;
                }
                let (at, at_from) = (strip.c, strip.from);
                (strip.c, strip.stride) = (edge.as_mut_ptr(), NR);
                if !from.is_null() {
                    for r in 0..rows {
                        at_from.add(r * from_stride).copy_to(edge_from.as_mut_ptr().add(r * NR), cols);
                    }
                    (strip.from, strip.from_stride) = (edge_from.as_ptr(), NR);
                }
                strip_rows::<S, E, PAIRS, ROW, DEPTH>(s, strip, (rows, cols));
                for r in 0..rows {
                    strip.c.add(r * NR).copy_to(at.add(r * p.c.stride), cols);
                }
            }
        }
    }
}

/// A strip of `rows` rows and `cols` columns, in whole vectors, by tiles of the size that fits the registers.
///
/// # Safety
/// The strip must be inside A, B, C and the sums.
#[inline(always)]
unsafe fn strip_rows<S: Simd, E: Element, const PAIRS: bool, const ROW: usize, const DEPTH: usize>(
    s: S,
    strip: Strip<E>,
    (rows, cols): (usize, usize),
) {
    // SAFETY: the tiles cover exactly the rows of the strip and its columns in whole vectors.
    unsafe {
        if matches!(S::PATH, Path::Avx512 | Path::Avx512Bf16) {
            if cols > LANES {
                wide_rows::<S, E, PAIRS, 2, ROW, DEPTH>(s, strip, rows);
            } else {
                wide_rows::<S, E, PAIRS, 1, ROW, DEPTH>(s, strip, rows);
            }
        } else {
            for half in 0..cols.div_ceil(LANES) {
                let mut rest = strip;
                rest.b = rest.b.add(half * LANES);
                rest.c = rest.c.add(half * LANES);
                rest.from = rest.from.wrapping_add(if rest.from.is_null() { 0 } else { half * LANES });
                let mut left = rows;
                while left > 0 {
                    let done = match left {
                        6.. => {
                            tile::<S, E, PAIRS, 6, 1, ROW, DEPTH>(s, rest);
                            6
                        }
                        3.. => {
                            tile::<S, E, PAIRS, 3, 1, ROW, DEPTH>(s, rest);
                            3
                        }
                        _ => {
                            tile::<S, E, PAIRS, 1, 1, ROW, DEPTH>(s, rest);
                            1
                        }
                    };
                    left -= done;
                    rest = rest.below(done, ROW);
                }
            }
        }
    }
}

/// A strip of `rows` rows and `W` vectors by tiles that fill 32 registers.
///
/// # Safety
/// The strip must be inside A, B, C and the sums.
#[inline(always)]
unsafe fn wide_rows<
    S: Simd,
    E: Element,
    const PAIRS: bool,
    const W: usize,
    const ROW: usize,
    const DEPTH: usize,
>(
    s: S,
    strip: Strip<E>,
    rows: usize,
) {
    let mut rest = strip;
    let mut left = rows;
    // SAFETY: the tiles cover exactly `rows` rows of the strip.
    unsafe {
        while left > 0 {
            let done = match left {
                MR.. => {
                    tile::<S, E, PAIRS, MR, W, ROW, DEPTH>(s, rest);
                    MR
                }
                8.. => {
                    tile::<S, E, PAIRS, 8, W, ROW, DEPTH>(s, rest);
                    8
                }
                4.. => {
                    tile::<S, E, PAIRS, 4, W, ROW, DEPTH>(s, rest);
                    4
                }
                2.. => {
                    tile::<S, E, PAIRS, 2, W, ROW, DEPTH>(s, rest);
                    2
                }
                _ => {
                    tile::<S, E, PAIRS, 1, W, ROW, DEPTH>(s, rest);
                    1
                }
            };
            left -= done;
            rest = rest.below(done, ROW);
        }
    }
}

/// `R` rows by `W` vectors.
///
/// # Safety
/// The tile must be inside A, B, C and the sums.
#[expect(clippy::needless_range_loop, reason = "the constant ranges are what is unrolled into registers")]
#[inline(always)]
unsafe fn tile<
    S: Simd,
    E: Element,
    const PAIRS: bool,
    const R: usize,
    const W: usize,
    const ROW: usize,
    const DEPTH: usize,
>(
    s: S,
    t: Strip<E>,
) {
    let mut acc = [[s.splat(0.0); W]; R];
    // SAFETY: steps (r, k) of A, (k, 16 w ..) of B and elements (r, 16 w ..) of C and the sums of the tile.
    unsafe {
        if !t.from.is_null() {
            for r in 0..R {
                for w in 0..W {
                    acc[r][w] = s.load(&*t.from.add(r * t.from_stride + w * LANES).cast());
                }
            }
        }
        let mut a = t.a;
        let mut b = t.b;
        let mut ahead = if R < MR { t.b.wrapping_add(FEW_ROWS_AHEAD) } else { t.ahead };
        for _ in 0..t.k {
            if R < MR {
                s.prefetch(ahead);
                s.prefetch(ahead.wrapping_add(LANES));
                ahead = ahead.wrapping_add(NR);
            } else {
                s.prefetch_later(ahead);
                ahead = ahead.wrapping_add(AHEAD);
            }
            let mut row = [s.splat(0.0); W];
            for w in 0..W {
                row[w] = s.load(&*b.add(w * LANES).cast());
            }
            for r in 0..R {
                let x = s.splat(*a.add(r * ROW));
                for w in 0..W {
                    acc[r][w] =
                        if PAIRS { s.dot_pairs(x, row[w], acc[r][w]) } else { s.fma(x, row[w], acc[r][w]) };
                }
            }
            // After the last step these may lie beyond the arrays.
            a = a.wrapping_add(DEPTH);
            b = b.wrapping_add(NR);
        }
        for r in 0..R {
            for w in 0..W {
                E::store(s, acc[r][w], &mut *t.c.add(r * t.stride + w * LANES).cast());
            }
        }
    }
}
