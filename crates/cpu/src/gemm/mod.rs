//! Matrix products `C [M, N] = A [M, K] B [K, N]`.
//!
//! B is packed into panels of [`NR`] columns once per product (or once for good by `pack`); each task then takes
//! a tile of C, packs the rows of A that it needs block by block in k, and runs the micro-kernel.

pub(crate) mod kernel;
pub(crate) mod pack;

use half::bf16;

pub(crate) use self::kernel::{KC, MR, NR, Product};
pub(crate) use self::pack::{Data, Mat, PackA, PackPanel, packed_a_len};
use crate::exec::{Exec, Tile};
use crate::math::Element;
use crate::memory::Buffer;
use crate::path::Kernel;
use crate::rows::Convert;
use crate::simd::Simd;

/// Most rows of C of one task: they share each panel of B that comes from memory.
const MC: usize = 384;
/// Most columns of C of one task.
const NC: usize = 2048;
/// Most elements of B packed at once (16 MiB).
pub(crate) const PACKED: usize = 1 << 22;

/// Nanoseconds that a product takes on one thread, roughly; only decides whether to wake other threads.
pub(crate) fn product_ns(m: usize, n: usize, k: usize) -> f64 {
    let flops = 2.0 * m as f64 * n as f64 * k as f64;
    let bytes = 4.0 * n as f64 * k as f64;
    flops / 100.0 + bytes / 20.0
}

/// A weight `[N, K]` transposed into panels `[N / NR][K][NR]`, padded with zeros.
pub(crate) struct Panels {
    pub(crate) data: Buffer<f32>,
    /// Depth `K`.
    pub(crate) depth: usize,
}

/// The right operand of a product, `[K, N]`.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    Mat(Mat<'a>),
    Panels(&'a Panels),
}

/// Where the product goes.
pub(crate) enum Out<'a> {
    /// Written.
    F32(&'a mut [f32]),
    /// Added to: the chains continue from the values there.
    Add(&'a mut [f32]),
    /// Written, each element rounded once.
    Bf16(&'a mut [bf16]),
}

/// Packs columns `0..n` of `mat [k, n]`.
pub(crate) fn pack_panels(exec: &Exec, mat: Mat<'_>, k: usize, n: usize) -> Panels {
    let panel = k * NR;
    let mut data = exec.memory.stale(n.div_ceil(NR) * panel);
    let group = exec.rows_per_task(n.div_ceil(NR));
    exec.chunks(&mut data, group * panel, (n * k) as f64 * 0.5, |task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(panel.max(1)).enumerate() {
            let first = (task * group + i) * NR;
            exec.run(PackPanel { mat: mat.from(0, first), k, cols: NR.min(n - first), out });
        }
    });
    Panels { data, depth: k }
}

/// `C = A B`, `C += A B`.
pub(crate) fn gemm(exec: &Exec, (m, n, k): (usize, usize, usize), a: Mat<'_>, b: Right<'_>, out: Out<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        match out {
            Out::F32(c) => c.fill(0.0),
            Out::Add(_) => {}
            Out::Bf16(c) => c.fill(bf16::ZERO),
        }
        return;
    }
    match out {
        Out::F32(c) => outer(exec, (m, n, k), a, b, (Tile::new(c, m, n, n), Finish::Write)),
        Out::Add(c) => outer(exec, (m, n, k), a, b, (Tile::new(c, m, n, n), Finish::Add)),
        Out::Bf16(c) => {
            let whole = Tile::new(c, m, n, n);
            let exact = Tile::new(&mut [], 0, 0, 0);
            outer(exec, (m, n, k), a, b, (exact, Finish::Round(whole)));
        }
    }
}

/// What happens to a tile of C.
enum Finish<'a> {
    Write,
    Add,
    /// The tile is computed beside and rounded into this array.
    Round(Tile<'a, bf16>),
}

type Target<'a> = (Tile<'a, f32>, Finish<'a>);

/// Packs B, as much at a time as is reasonable.
fn outer(exec: &Exec, (m, n, k): (usize, usize, usize), a: Mat<'_>, b: Right<'_>, c: Target<'_>) {
    let b = match b {
        Right::Panels(panels) => {
            assert!(panels.depth == k && panels.data.len() >= n.div_ceil(NR) * NR * k);
            return tiles(exec, (m, n, k), a, &panels.data, (&c, 0));
        }
        Right::Mat(b) => b,
    };
    let step = (PACKED / k / NR).max(1) * NR;
    for first in (0..n).step_by(step) {
        let cols = step.min(n - first);
        let panels = pack_panels(exec, b.from(0, first), k, cols);
        tiles(exec, (m, cols, k), a, &panels.data, (&c, first));
    }
}

/// All tiles of columns `first .. first + n` of C.
fn tiles(
    exec: &Exec,
    (m, n, k): (usize, usize, usize),
    a: Mat<'_>,
    b: &[f32],
    (c, first): (&Target<'_>, usize),
) {
    let panels = n.div_ceil(NR);
    let height = m.div_ceil(m.div_ceil(MC)).next_multiple_of(MR);
    let row_tasks = m.div_ceil(height);
    let ns = product_ns(m, n, k);
    let wanted = if exec.threads == 1 { 1 } else { (4 * exec.threads).div_ceil(row_tasks) };
    let group = panels.div_ceil(wanted).clamp(1, NC / NR);
    let col_tasks = panels.div_ceil(group);
    exec.tasks(row_tasks * col_tasks, ns, |task| {
        let (row, panel) = (task / col_tasks * height, task % col_tasks * group);
        let col = panel * NR;
        let (rows, cols) = (height.min(m - row), (group * NR).min(n - col));
        let (exact, finish) = c;
        let (a, b) = (a.from(row, 0), &b[panel * k * NR..]);
        // SAFETY: tasks have different rectangles.
        unsafe {
            match finish {
                Finish::Write => {
                    tile(exec, (rows, cols, k), a, b, exact.sub(row, first + col, rows, cols), false)
                }
                Finish::Add => {
                    tile(exec, (rows, cols, k), a, b, exact.sub(row, first + col, rows, cols), true)
                }
                Finish::Round(whole) => {
                    let mut beside = exec.memory.stale::<f32>(rows * cols);
                    tile(exec, (rows, cols, k), a, b, Tile::new(&mut beside, rows, cols, cols), false);
                    exec.run(RoundTile { x: &beside, out: whole.sub(row, first + col, rows, cols) });
                }
            }
        }
    });
}

/// One tile on the calling thread: the whole depth, block by block.
pub(crate) fn tile(
    exec: &Exec,
    (m, n, k): (usize, usize, usize),
    a: Mat<'_>,
    b: &[f32],
    c: Tile<'_, f32>,
    continues: bool,
) {
    let mut packed = exec.memory.stale::<f32>(packed_a_len(m));
    for first in (0..k).step_by(KC) {
        let depth = KC.min(k - first);
        let layout = exec.run(PackA { mat: a.from(0, first), m, k: depth, out: &mut packed });
        // SAFETY: the same rectangle, one product after another.
        let c = unsafe { c.sub(0, 0, m, n) };
        exec.run(Product {
            m,
            n,
            k: depth,
            a: (&packed, layout),
            b: &b[first * NR..],
            panel: k * NR,
            c,
            continues: continues || first > 0,
        });
    }
}

/// Rounds an array into a tile of the same size.
struct RoundTile<'a, E> {
    x: &'a [f32],
    out: Tile<'a, E>,
}

impl<E: Element> Kernel for RoundTile<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for (i, x) in self.x.chunks_exact(self.out.cols).enumerate() {
            Convert { x, out: self.out.row(i) }.run(s);
        }
    }
}
