//! Output projection and cross-entropy in one: `T` tokens, `C` model width, `V` vocabulary.
//!
//! The vocabulary is taken in blocks. Forward, every block of every row gives a maximum and a sum, which are then
//! combined in order. Backward, the logits of a block are computed again and the two products continue the chains of
//! `dh` (over the vocabulary) and `dw` (over the rows), so the block sizes there do not show in the result. Where loss and
//! gradient are wanted together, the logits of a few hundred rows are kept from the one to the other.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use half::bf16;
use llamero_tensor::NO_TARGET;

use crate::exec::{Exec, Tile};
use crate::gemm::{Data, Mat, Out, PACKED, Panels, Right, gemm, pack_panels, product_ns, step, tile};
use crate::math::{exp, ln, load, store};
use crate::memory::Buffer;
use crate::path::Kernel;
use crate::quant::{Blocks, Rows};
use crate::rows::Convert;
use crate::simd::{LANES, Simd};
use crate::storage::Stored;

/// Vocabulary entries that are reduced together; part of the definition of the result.
const BLOCK: usize = 512;
/// Rows of one task.
const ROWS: usize = 192;
/// Rows whose blocks are there at once: enough that packing the weight again for the next ones is cheap.
const FORWARD_ROWS: usize = 2048;
/// Rows and vocabulary entries of the logits that the backward pass holds (8 MiB).
const BACK_ROWS: usize = 2048;
const BACK_BLOCK: usize = 1024;

/// The rows that have a target, one after another. Where pairs of rows are summed ([`Active::for_gradient`]), the row next
/// to one with a target is kept as a row of zeros, so that pairs are the same however a batch is cut into smaller ones.
struct Active<'a> {
    /// Their numbers.
    rows: Vec<usize>,
    /// [`NO_TARGET`] for a row of zeros.
    targets: Vec<u32>,
    data: Gathered<'a>,
    width: usize,
}

enum Gathered<'a> {
    All(Data<'a>),
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

fn gather<E: Stored>(exec: &Exec, h: &[E], width: usize, (rows, targets): (&[usize], &[u32])) -> Buffer<E> {
    let mut out = exec.memory.stale::<E>(rows.len() * width);
    for (out, &row) in out.chunks_exact_mut(width.max(1)).zip(rows) {
        if targets[row] == NO_TARGET {
            out.fill(E::zeroed());
        } else {
            out.copy_from_slice(&h[row * width..][..width]);
        }
    }
    out
}

impl<'a> Active<'a> {
    fn new(exec: &Exec, h: Data<'a>, width: usize, targets: &[u32]) -> Self {
        Self::of(exec, (h, width), targets, |i| targets[i] != NO_TARGET)
    }

    fn for_gradient(exec: &Exec, h: Data<'a>, width: usize, targets: &[u32]) -> Self {
        let pairs = exec.pairs() && matches!(h, Data::Bf16(_));
        let has = |i: usize| targets.get(i).is_some_and(|t| *t != NO_TARGET);
        Self::of(exec, (h, width), targets, |i| has(i) || (pairs && has(i ^ 1)))
    }

    fn of(exec: &Exec, (h, width): (Data<'a>, usize), targets: &[u32], take: impl Fn(usize) -> bool) -> Self {
        let rows: Vec<usize> = (0..targets.len()).filter(|&i| take(i)).collect();
        let data = match h {
            _ if targets.iter().all(|t| *t != NO_TARGET) => Gathered::All(h),
            Data::F32(h) => Gathered::F32(gather(exec, h, width, (&rows, targets))),
            Data::Bf16(h) => Gathered::Bf16(gather(exec, h, width, (&rows, targets))),
        };
        let targets = rows.iter().map(|&i| targets[i]).collect();
        Self { rows, targets, data, width }
    }

    /// Whether row `i` of these has a target.
    fn has_target(&self, i: usize) -> bool {
        self.targets[i] != NO_TARGET
    }

    /// Values of the active rows; 0 for a row of zeros.
    fn pick(&self, x: &[f32]) -> Vec<f32> {
        (0..self.rows.len()).map(|i| if self.has_target(i) { x[self.rows[i]] } else { 0.0 }).collect()
    }

    /// Whether products with `w` keep pairs of bf16.
    fn pairs(&self, exec: &Exec, w: Mat<'_>) -> bool {
        exec.pairs() && w.is_bf16() && self.mat().is_bf16()
    }

    /// Writes the active rows from `first` on to their places.
    fn scatter<E: Stored>(&self, exec: &Exec, first: usize, x: &[f32], out: &mut [E]) {
        for (i, x) in x.chunks_exact(self.width.max(1)).enumerate() {
            if !self.has_target(first + i) {
                continue;
            }
            let row = self.rows[first + i];
            exec.run(Convert { x, out: &mut out[row * self.width..][..self.width] });
        }
    }

    fn mat(&self) -> Mat<'_> {
        match &self.data {
            Gathered::All(data) => Mat::new(*data, self.width),
            Gathered::F32(data) => Mat::new(Data::F32(data), self.width),
            Gathered::Bf16(data) => Mat::new(Data::Bf16(data), self.width),
        }
    }
}

/// What a row's logits of one block come to.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Part {
    max: f32,
    /// Σ e^(logit − max).
    sum: f32,
    /// The target's logit, in the block that has it.
    target: f32,
}

/// The output projection `[V, C]`.
#[derive(Clone, Copy)]
pub(crate) enum Head<'a> {
    Mat(Mat<'a>),
    Panels(&'a Panels),
    Blocks(&'a Blocks),
}

/// A run of rows of the output projection, ready to be multiplied with.
#[derive(Clone, Copy)]
enum Ready<'a> {
    Panels(&'a Panels),
    /// With the active rows in question, rounded to 8 bits.
    Blocks(&'a Blocks, &'a Rows),
}

/// Negative log-likelihoods and log-sum-exps of all rows.
pub(crate) fn forward(
    exec: &Exec,
    (h, width): (Data<'_>, usize),
    (w, vocab): (Head<'_>, usize),
    targets: &[u32],
    (nll, lse): (&mut [f32], &mut [f32]),
) {
    nll.fill(0.0);
    lse.fill(0.0);
    let active = Active::new(exec, h, width, targets);
    let blocks = vocab.div_ceil(BLOCK);
    let most = FORWARD_ROWS.min(active.rows.len());
    let mut parts = exec.memory.stale::<Part>(blocks * most);
    let mut row_lse = vec![0.0; most];
    for start in (0..active.rows.len()).step_by(FORWARD_ROWS) {
        let rows = start..active.rows.len().min(start + FORWARD_ROWS);
        let count = rows.len();
        let (parts, row_lse) = (&mut parts[..blocks * count], &mut row_lse[..count]);
        all_blocks(exec, &active, rows.clone(), (w, vocab), &Tile::new(parts, blocks, count, count));
        exec.run(Combine { parts, out: row_lse });
        for (i, at) in rows.enumerate() {
            let (row, block) = (active.rows[at], active.targets[at] as usize / BLOCK);
            lse[row] = row_lse[i];
            nll[row] = row_lse[i] - parts.get(block * count + i).map_or(0.0, |part| part.target);
        }
    }
}

/// All blocks of some of the active rows.
fn all_blocks(
    exec: &Exec,
    active: &Active<'_>,
    rows: Range<usize>,
    (w, vocab): (Head<'_>, usize),
    parts: &Tile<'_, Part>,
) {
    match w {
        Head::Panels(panels) => some_blocks(exec, active, rows, (Ready::Panels(panels), 0, vocab), parts),
        Head::Blocks(blocks) => {
            let width = active.width;
            let range = rows.start * width..rows.end * width;
            let rounded = match &active.data {
                Gathered::All(Data::F32(h)) => Rows::new(exec, &h[range], width),
                Gathered::All(Data::Bf16(h)) => Rows::new(exec, &h[range], width),
                Gathered::F32(h) => Rows::new(exec, &h[range], width),
                Gathered::Bf16(h) => Rows::new(exec, &h[range], width),
            };
            some_blocks(exec, active, rows, (Ready::Blocks(blocks, &rounded), 0, vocab), parts);
        }
        Head::Mat(w) => {
            let step = (PACKED / active.width.max(1) / BLOCK).max(1) * BLOCK;
            for first in (0..vocab).step_by(step) {
                let n = step.min(vocab - first);
                let pairs = active.pairs(exec, w);
                let panels = pack_panels(exec, w.from(first, 0).t(), (active.width, n), pairs);
                some_blocks(exec, active, rows.clone(), (Ready::Panels(&panels), first, n), parts);
            }
        }
    }
}

/// The blocks of the vocabulary entries `first .. first + n`, whose panels are given.
fn some_blocks(
    exec: &Exec,
    active: &Active<'_>,
    range: Range<usize>,
    (head, first, n): (Ready<'_>, usize, usize),
    parts: &Tile<'_, Part>,
) {
    let (count, width) = (range.len(), active.width);
    let row_tasks = count.div_ceil(ROWS);
    exec.tasks(n.div_ceil(BLOCK) * row_tasks, product_ns(count, n, width), |task| {
        let (block, row) = (task / row_tasks, task % row_tasks * ROWS);
        let (rows, cols) = (ROWS.min(count - row), BLOCK.min(n - block * BLOCK));
        let mut logits = exec.memory.stale::<f32>(rows * cols);
        let c = Tile::new(&mut logits, rows, cols, cols);
        match head {
            _ if width == 0 => logits.fill(0.0),
            Ready::Panels(panels) => {
                let part = &panels.data[block * BLOCK * width.div_ceil(step(panels.pairs))..];
                let h = active.mat().from(range.start + row, 0);
                tile(exec, (rows, cols, width), h, (part, panels.pairs), (c, false));
            }
            Ready::Blocks(blocks, h) => {
                let columns = block * BLOCK..block * BLOCK + cols;
                blocks.tile(exec, (h, row), columns, &c);
            }
        }
        // SAFETY: tasks have different blocks or rows.
        let mut out = unsafe { parts.sub(first / BLOCK + block, row, 1, rows) };
        let targets = &active.targets[range.start + row..][..rows];
        exec.run(Reduce { logits: &logits, cols, first: first + block * BLOCK, targets, out: out.row(0) });
    });
}

/// Maximum, sum and target's logit of rows of logits.
struct Reduce<'a> {
    logits: &'a [f32],
    cols: usize,
    /// The vocabulary entry of the first column.
    first: usize,
    targets: &'a [u32],
    out: &'a mut [Part],
}

impl Kernel for Reduce<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for ((x, out), target) in self.logits.chunks_exact(self.cols).zip(self.out).zip(self.targets) {
            let (max, sum) = max_and_sum(s, x);
            let target = (*target as usize).checked_sub(self.first).and_then(|i| x.get(i));
            *out = Part { max, sum, target: target.copied().unwrap_or(0.0) };
        }
    }
}

/// The largest of some logits and Σ e^(logit − largest).
#[inline(always)]
fn max_and_sum<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
    let max = s.largest(max_of(s, x));
    let mut sum = s.splat(0.0);
    for at in (0..x.len()).step_by(LANES) {
        let x = s.first(x.len() - at, load(s, x, at), s.splat(f32::NEG_INFINITY));
        sum = s.add(sum, exp(s, s.sub(x, s.splat(max))));
    }
    (max, s.sum(sum))
}

/// The largest of some logits, lane by lane.
#[inline(always)]
fn max_of<S: Simd>(s: S, x: &[f32]) -> S::V {
    let lowest = s.splat(f32::NEG_INFINITY);
    let mut max = lowest;
    for at in (0..x.len()).step_by(LANES) {
        max = s.max(max, s.first(x.len() - at, load(s, x, at), lowest));
    }
    max
}

/// The larger; `a` where `b` is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Adds the sum of a block to that of the blocks before, relative to the largest of all.
#[inline(always)]
fn add_part<S: Simd>(s: S, sum: f32, part: (f32, f32), max: f32) -> f32 {
    let scale = s.array(exp(s, s.splat(part.0 - max)))[0];
    part.1.mul_add(scale, sum)
}

/// Log-sum-exp of every row from its blocks in order.
struct Combine<'a> {
    parts: &'a [Part],
    out: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let count = self.out.len();
        for (row, out) in self.out.iter_mut().enumerate() {
            let mut max = f32::NEG_INFINITY;
            for part in self.parts[row..].iter().step_by(count) {
                max = larger(max, part.max);
            }
            let mut sum = 0.0;
            for part in self.parts[row..].iter().step_by(count) {
                sum = add_part(s, sum, (part.max, part.sum), max);
            }
            *out = max + ln(sum);
        }
    }
}

/// The gradient that comes in and what is needed from the forward pass.
pub(crate) struct Saved<'a> {
    pub(crate) d_row: &'a [f32],
    /// Coefficient of the z-loss.
    pub(crate) z: f32,
    pub(crate) lse: &'a [f32],
    pub(crate) targets: &'a [u32],
}

/// Writes `dh [T, C]` and adds into `dw [V, C]`.
pub(crate) fn backward<E: Stored>(
    exec: &Exec,
    (h, width): (Data<'_>, usize),
    w: Mat<'_>,
    saved: &Saved<'_>,
    (dh, dw): (&mut [E], &mut [f32]),
) {
    let active = Active::for_gradient(exec, h, width, saved.targets);
    let count = active.rows.len();
    let (d_row, lse) = (active.pick(saved.d_row), active.pick(saved.lse));
    let pairs = active.pairs(exec, w);
    let mut grad = exec.memory.zeros::<f32>(count * width);
    let vocab = dw.len() / width.max(1);
    let mut logits = exec.memory.stale::<f32>(BACK_ROWS.min(count) * BACK_BLOCK.min(vocab));
    for first in (0..vocab).step_by(BACK_BLOCK) {
        let cols = BACK_BLOCK.min(vocab - first);
        let w = w.from(first, 0);
        let dw = &mut dw[first * width..][..cols * width];
        let panels = pack_panels(exec, w.t(), (width, cols), pairs);
        let panels_back = pack_panels(exec, w, (cols, width), pairs);
        for row in (0..count).step_by(BACK_ROWS) {
            let rows = BACK_ROWS.min(count - row);
            let logits = &mut logits[..rows * cols];
            let h = active.mat().from(row, 0);
            gemm(exec, (rows, cols, width), h, Right::Panels(&panels), Out::F32(logits));
            let step = exec.rows_per_task(rows);
            exec.chunks(logits, step * cols, (rows * cols) as f64, |task, logits| {
                let at = row + task * step;
                for (i, logits) in logits.chunks_exact_mut(cols).enumerate() {
                    let target = active.targets[at + i] as usize;
                    let (target, row) = (target.checked_sub(first), (lse[at + i], d_row[at + i]));
                    exec.run(LogitGrad { logits, pairs, target, row, z: saved.z });
                }
            });
            let logits = gradients(logits, cols, pairs);
            let grad = &mut grad[row * width..][..rows * width];
            gemm(exec, (rows, width, cols), logits, Right::Panels(&panels_back), Out::Add(grad));
            gemm(exec, (cols, width, rows), logits.t(), Right::Mat(h), Out::Add(dw));
        }
    }
    if saved.targets.contains(&NO_TARGET) {
        dh.fill(E::zeroed());
    }
    active.scatter(exec, 0, &grad, dh);
}

/// Rows whose logits are kept from loss to gradient: enough that going through `dw` once for each such chunk is cheap.
const CHUNK: usize = 512;

/// What [`with_gradient`] writes: per row, except `dw [V, C]`, which is added to.
pub(crate) struct Outputs<'a, E> {
    pub(crate) nll: &'a mut [f32],
    pub(crate) lse: &'a mut [f32],
    pub(crate) dh: &'a mut [E],
    pub(crate) dw: &'a mut [f32],
    /// Whether `dw` stands for zeros, whatever its elements are.
    pub(crate) dw_is_zero: bool,
}

/// Replaces log-sum-exp and target's logit of rows over a slice of the vocabulary by those over all of it.
pub(crate) type OverSlices<'a> = &'a mut dyn FnMut(&mut [[f32; 2]]);

/// [`forward`] and [`backward`] in one, each logit computed once.
pub(crate) fn with_gradient<E: Stored>(
    exec: &Exec,
    (h, width): (Data<'_>, usize),
    w: Mat<'_>,
    (d_row, z, targets): (&[f32], f32, &[u32]),
    (out, mut combine): (Outputs<'_, E>, Option<OverSlices<'_>>),
) {
    out.nll.fill(0.0);
    out.lse.fill(0.0);
    let active = Active::for_gradient(exec, h, width, targets);
    let (count, vocab) = (active.rows.len(), out.dw.len() / width.max(1));
    if targets.contains(&NO_TARGET) {
        out.dh.fill(E::zeroed());
    }
    if vocab == 0 || count == 0 {
        if out.dw_is_zero {
            out.dw.fill(0.0);
        }
        return;
    }
    let d_row = active.pick(d_row);
    let pairs = active.pairs(exec, w);
    let panels = pack_panels(exec, w.t(), (width, vocab), pairs);
    let panels_back = pack_panels(exec, w, (vocab, width), pairs);
    let most = CHUNK.min(count);
    let mut logits = exec.memory.stale::<f32>(most * vocab);
    let mut grad = exec.memory.stale::<f32>(most * width);
    let mut row_stats = vec![[0.0f32; 2]; most];
    let whole = combine.is_none();
    for first in (0..count).step_by(CHUNK) {
        let rows = CHUNK.min(count - first);
        let logits = &mut logits[..rows * vocab];
        let h = active.mat().from(first, 0);
        gemm(exec, (rows, vocab, width), h, Right::Panels(&panels), Out::F32(logits));
        let row_stats = &mut row_stats[..rows];
        let all = Tile::new(logits, rows, vocab, vocab);
        let gradient = |row: usize, lse: f32| {
            let (target, row_of) = (active.targets[first + row] as usize, (lse, d_row[first + row]));
            // SAFETY: tasks have different rows.
            let mut logits = unsafe { all.sub(row, 0, 1, vocab) };
            exec.run(LogitGrad { logits: logits.row(0), pairs, target: Some(target), row: row_of, z });
        };
        exec.chunks(row_stats, 4, (rows * vocab) as f64 * 1.5, |task, out| {
            for (i, out) in out.iter_mut().enumerate() {
                let row = task * 4 + i;
                let target = active.targets[first + row] as usize;
                // SAFETY: tasks have different rows.
                let mut logits = unsafe { all.sub(row, 0, 1, vocab) };
                let logits = logits.row(0);
                let lse = exec.run(LogSumExp(logits));
                *out = [lse, logits.get(target).copied().unwrap_or(0.0)];
                if whole {
                    gradient(row, lse);
                }
            }
        });
        if let Some(combine) = &mut combine {
            combine(row_stats);
            let stats = &*row_stats;
            exec.tasks(rows.div_ceil(4), (rows * vocab) as f64, |task| {
                for (row, [lse, _]) in stats.iter().enumerate().skip(task * 4).take(4) {
                    gradient(row, *lse);
                }
            });
        }
        for (i, [lse, target]) in row_stats.iter().enumerate().filter(|(i, _)| active.has_target(first + i)) {
            let row = active.rows[first + i];
            (out.nll[row], out.lse[row]) = (lse - target, *lse);
        }
        let d_logits = gradients(logits, vocab, pairs);
        let grad = &mut grad[..rows * width];
        gemm(exec, (rows, width, vocab), d_logits, Right::Panels(&panels_back), Out::F32(grad));
        active.scatter(exec, first, grad, out.dh);
        let dw = if out.dw_is_zero && first == 0 { Out::F32(out.dw) } else { Out::Add(out.dw) };
        gemm(exec, (vocab, width, rows), d_logits.t(), Right::Mat(h), dw);
    }
}

/// What [`LogitGrad`] has left in the place of logits.
fn gradients(logits: &[f32], cols: usize, pairs: bool) -> Mat<'_> {
    if pairs {
        Mat::new(Data::Bf16(bytemuck::cast_slice(logits)), 2 * cols)
    } else {
        Mat::new(Data::F32(logits), cols)
    }
}

/// Log-sum-exp of a row of logits; the same as by [`Reduce`] and [`Combine`].
struct LogSumExp<'a>(&'a [f32]);

impl Kernel for LogSumExp<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        // Loops and not closures: only what is inlined here may use the instructions.
        let mut high = f32::NEG_INFINITY;
        for x in self.0.chunks(BLOCK) {
            high = larger(high, s.largest(max_of(s, x)));
        }
        let mut sum = 0.0;
        for x in self.0.chunks(BLOCK) {
            sum = add_part(s, sum, max_and_sum(s, x), high);
        }
        high + ln(sum)
    }
}

/// Turns the logits of one row into their gradients, in place: f32, or bf16 at the beginning of the row.
struct LogitGrad<'a> {
    logits: &'a mut [f32],
    pairs: bool,
    /// The target's place, which may lie beyond this row.
    target: Option<usize>,
    /// Its log-sum-exp, and the derivative of the whole loss by that of the row.
    row: (f32, f32),
    /// Coefficient of the z-loss.
    z: f32,
}

impl Kernel for LogitGrad<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (lse, d_nll) = self.row;
        // Without a z-loss nothing of it may show, not even the NaN of 0 · ∞.
        let d_z = if self.z == 0.0 { 0.0 } else { 2.0 * self.z * lse * d_nll };
        let (lse, d) = (s.splat(lse), s.splat(d_nll + d_z));
        let x = self.logits;
        let target = self.target.filter(|t| *t < x.len());
        let logit = s.splat(target.map_or(0.0, |t| x[t]));
        let p = exp(s, s.sub(logit, lse));
        let mut at_target = s.array(s.mul(s.sub(p, s.splat(1.0)), s.splat(d_nll)))[0];
        if self.z != 0.0 {
            at_target += s.array(p)[0] * d_z;
        }
        for at in (0..x.len()).step_by(LANES) {
            let g = s.mul(exp(s, s.sub(load(s, x, at), lse)), d);
            if self.pairs {
                // The first half of the row; what is there was read before.
                let len = x.len();
                store(s, g, &mut bytemuck::cast_slice_mut::<f32, bf16>(x)[..len], at);
            } else {
                store(s, g, x, at);
            }
        }
        match target {
            Some(t) if self.pairs => bytemuck::cast_slice_mut::<f32, bf16>(x)[t] = bf16::from_f32(at_target),
            Some(t) => x[t] = at_target,
            None => {}
        }
    }
}
