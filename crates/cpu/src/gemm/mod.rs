//! Matrix products `C [M, N] = A [M, K] B [K, N]`.
//!
//! B is packed into panels of [`NR`] columns once per product (or once for good by `pack`); each task then takes
//! a tile of C, packs the rows of A that it needs block by block in depth, and runs the micro-kernel.

pub(crate) mod kernel;
pub(crate) mod pack;

use half::bf16;
use llamero_tensor::{DType, Encoding, Shape, StoredRows};

pub(crate) use self::kernel::{KC, Layout, MR, NARROW, NR, Product, Start};
pub(crate) use self::pack::{Data, Mat, PackA, PackHeads, PackPanel, packed_a_len, step};
use crate::exec::{Exec, Tile};
use crate::math::Element;
use crate::memory::Buffer;
use crate::rows::Convert;
use crate::storage::Stored;

/// Most rows of C of one task: they share each panel of B that comes from memory.
const MC: usize = 384;
/// Most steps of A of one task: 384 KiB, to stay in the second-level cache.
const A_STEPS: usize = 96 << 10;
/// Most columns of C of one task.
const NC: usize = 1024;
/// Most steps of B packed at once (64 MiB).
pub(crate) const PACKED: usize = 1 << 24;

/// Rows of C up to which tasks pack B for themselves.
const FEW_ROWS: usize = 24;
/// Most steps of B that such a task packs at once (256 KiB).
const FEW_PANELS: usize = 1 << 16;

/// Nanoseconds that a product takes on one thread, roughly; only decides whether to wake other threads.
pub(crate) fn product_ns(m: usize, n: usize, k: usize) -> f64 {
    let flops = 2.0 * m as f64 * n as f64 * k as f64;
    let bytes = 4.0 * n as f64 * k as f64;
    flops / 300.0 + bytes / 20.0
}

/// A weight `[N, K]` transposed into panels `[N / NR][steps][NR]`, padded with zeros.
pub(crate) struct Panels {
    pub(crate) data: Buffer<f32>,
    /// Depth `K`.
    pub(crate) depth: usize,
    /// Whether a step is a pair of bf16.
    pub(crate) pairs: bool,
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
pub(crate) fn pack_panels(exec: &Exec, mat: Mat<'_>, (k, n): (usize, usize), pairs: bool) -> Panels {
    let panel = k.div_ceil(step(pairs)) * NR;
    let mut data = exec.memory.stale(n.div_ceil(NR) * panel);
    let group = exec.rows_per_task(n.div_ceil(NR));
    exec.chunks(&mut data, group * panel, (n * k) as f64 * 0.5, |task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(panel.max(1)).enumerate() {
            let first = (task * group + i) * NR;
            exec.run(PackPanel { mat: mat.from(0, first), k, cols: NR.min(n - first), pairs, out });
        }
    });
    Panels { data, depth: k, pairs }
}

/// Panels of a weight as a file stores it, a panel's rows decoded at a time.
pub(crate) fn pack_rows<E: Stored>(exec: &Exec, parts: &[StoredRows<'_>], shape: Shape) -> Panels {
    let (k, n) = (shape.cols, shape.rows);
    let pairs = exec.pairs() && E::DTYPE == DType::Bf16;
    let panel = k.div_ceil(step(pairs)) * NR;
    let mut data = exec.memory.stale(n.div_ceil(NR) * panel);
    let rows: Vec<(Encoding, &[u8])> =
        parts.iter().flat_map(|part| part.rows.iter().map(|row| (part.encoding, &**row))).collect();
    exec.chunks(&mut data, panel.max(1), (n * k) as f64, |i, out| {
        let rows = &rows[i * NR..n.min((i + 1) * NR)];
        let mut values = exec.memory.stale::<f32>(k);
        let mut block = exec.memory.stale::<E>(rows.len() * k);
        for ((encoding, row), out) in rows.iter().zip(block.chunks_exact_mut(k.max(1))) {
            encoding.decode(row, &mut values);
            exec.run(Convert { x: &values[..], out });
        }
        let mat = Mat::new(E::data(&block), k).t();
        exec.run(PackPanel { mat, k, cols: rows.len(), pairs, out });
    });
    Panels { data, depth: k, pairs }
}

impl Panels {
    /// Row `row` of the weight.
    pub(crate) fn unpack<E: Element>(&self, row: usize, out: &mut [E]) {
        let panel = &self.data[row / NR * self.depth.div_ceil(step(self.pairs)) * NR..];
        for (k, out) in out.iter_mut().enumerate() {
            let value = panel[k / step(self.pairs) * NR + row % NR];
            *out = match self.pairs {
                true => E::from_f32(f32::from_bits(if k % 2 == 0 {
                    value.to_bits() << 16
                } else {
                    value.to_bits() & 0xffff_0000
                })),
                false => E::from_f32(value),
            };
        }
    }
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
        Out::F32(c) => outer(exec, (m, n, k), a, b, (Tile::new(c, m, n, n), false)),
        Out::Add(c) => outer(exec, (m, n, k), a, b, (Tile::new(c, m, n, n), true)),
        Out::Bf16(c) => outer(exec, (m, n, k), a, b, (Tile::new(c, m, n, n), false)),
    }
}

/// C, and whether the product is added to what is there.
type Target<'a, E> = (Tile<'a, E>, bool);

/// Packs B, as much at a time as is reasonable.
fn outer<E: Element>(
    exec: &Exec,
    (m, n, k): (usize, usize, usize),
    a: Mat<'_>,
    b: Right<'_>,
    c: Target<'_, E>,
) {
    let b = match b {
        Right::Panels(panels) => {
            assert!(!panels.pairs || a.is_bf16(), "product: f32 rows do not fit a weight packed as bf16");
            let steps = k.div_ceil(step(panels.pairs));
            assert!(panels.depth == k && panels.data.len() >= n.div_ceil(NR) * NR * steps);
            return tiles(exec, (m, n, k), a, (&panels.data, panels.pairs), (&c, 0));
        }
        Right::Mat(b) => b,
    };
    let pairs = exec.pairs() && a.is_bf16() && b.is_bf16();
    if m <= FEW_ROWS {
        return few_rows(exec, (m, n, k), a, (b, pairs), &c);
    }
    let at_once = (PACKED / k.div_ceil(step(pairs)) / NR).max(1) * NR;
    for first in (0..n).step_by(at_once) {
        let cols = at_once.min(n - first);
        let panels = pack_panels(exec, b.from(0, first), (k, cols), pairs);
        tiles(exec, (m, cols, k), a, (&panels.data, pairs), (&c, first));
    }
}

/// A product with so few rows that packing B costs as much as multiplying: each task packs what it needs into a small
/// space of its own, so that B comes from memory once and its panels never go back there.
fn few_rows<E: Element>(
    exec: &Exec,
    (m, n, k): (usize, usize, usize),
    a: Mat<'_>,
    (b, pairs): (Mat<'_>, bool),
    c: &Target<'_, E>,
) {
    let panel = k.div_ceil(step(pairs)) * NR;
    let panels = n.div_ceil(NR);
    let group = (FEW_PANELS / panel).clamp(1, panels.div_ceil(4 * exec.threads).max(1));
    exec.tasks(panels.div_ceil(group), product_ns(m, n, k), |task| {
        let first = task * group * NR;
        let cols = (group * NR).min(n - first);
        let mut packed = exec.memory.stale::<f32>(cols.div_ceil(NR) * panel);
        for (i, out) in packed.chunks_exact_mut(panel).enumerate() {
            let at = first + i * NR;
            exec.run(PackPanel { mat: b.from(0, at), k, cols: NR.min(n - at), pairs, out });
        }
        // SAFETY: tasks have different columns.
        let part = unsafe { c.0.sub(0, first, m, cols) };
        tile(exec, (m, cols, k), a, (&packed, pairs), (part, c.1));
    });
}

/// All tiles of columns `first .. first + n` of C.
fn tiles<E: Element>(
    exec: &Exec,
    (m, n, k): (usize, usize, usize),
    a: Mat<'_>,
    (b, pairs): (&[f32], bool),
    (c, first): (&Target<'_, E>, usize),
) {
    let panels = n.div_ceil(NR);
    let steps = k.div_ceil(step(pairs));
    let most = (A_STEPS / steps.min(KC)).clamp(4 * MR, MC);
    let height = m.div_ceil(m.div_ceil(most)).next_multiple_of(MR);
    let row_tasks = m.div_ceil(height);
    let ns = product_ns(m, n, k);
    let wanted = if exec.threads == 1 { 1 } else { (4 * exec.threads).div_ceil(row_tasks) };
    let group = panels.div_ceil(wanted).clamp(1, NC / NR);
    let col_tasks = panels.div_ceil(group);
    exec.tasks(row_tasks * col_tasks, ns, |task| {
        let (row, panel) = (task / col_tasks * height, task % col_tasks * group);
        let col = panel * NR;
        let (rows, cols) = (height.min(m - row), (group * NR).min(n - col));
        let (a, b) = (a.from(row, 0), &b[panel * steps * NR..]);
        // SAFETY: tasks have different rectangles.
        let part = unsafe { c.0.sub(row, first + col, rows, cols) };
        tile(exec, (rows, cols, k), a, (b, pairs), (part, c.1));
    });
}

/// One tile on the calling thread: the whole depth, block by block.
pub(crate) fn tile<E: Element>(
    exec: &Exec,
    (m, n, k): (usize, usize, usize),
    a: Mat<'_>,
    (b, pairs): (&[f32], bool),
    (c, add): Target<'_, E>,
) {
    let step = step(pairs);
    let steps = k.div_ceil(step);
    let mut packed = exec.memory.stale::<f32>(packed_a_len(m));
    // Sums between blocks are kept in C where it is f32, and beside it elsewhere.
    let blocks = steps.div_ceil(KC);
    let in_c = E::DTYPE == DType::F32;
    let rows = if blocks > 1 && !in_c { m } else { 0 };
    let mut beside = exec.memory.stale::<f32>(rows * n);
    let beside = Tile::new(&mut beside, rows, n, n);
    let layout = if a.is_transposed() { Layout::Groups } else { Layout::Rows };
    for block in 0..blocks {
        let first = block * KC;
        let depth = KC.min(steps - first);
        let (at, elements) = (first * step, (depth * step).min(k - first * step));
        exec.run(PackA { mat: a.from(0, at), m, k: elements, pairs, layout, out: &mut packed });
        let (a, b, panel) = ((&packed[..], layout), &b[first * NR..], steps * NR);
        let own = if block > 0 || add { Start::C } else { Start::Zero };
        // SAFETY (all three): the same rectangle, one product after another.
        if in_c {
            let c = unsafe { c.sub(0, 0, m, n) };
            exec.run(Product { m, n, k: depth, pairs, a, b, panel, c, start: own });
        } else if block + 1 < blocks {
            let c = unsafe { beside.sub(0, 0, m, n) };
            exec.run(Product { m, n, k: depth, pairs, a, b, panel, c, start: own });
        } else {
            let sums = || Start::Sums(unsafe { beside.sub(0, 0, m, n) });
            let start = if block > 0 { sums() } else { own };
            let c = unsafe { c.sub(0, 0, m, n) };
            exec.run(Product { m, n, k: depth, pairs, a, b, panel, c, start });
        }
    }
}
