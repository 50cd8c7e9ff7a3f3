//! Output projection and cross-entropy in one: `T` tokens, `C` model width, `V` vocabulary.
//!
//! The vocabulary is taken in blocks. Forward, every block of every row gives a maximum and a sum, which are then
//! combined in order. Backward, the logits of a block are computed again and the two products continue the chains of
//! `dh` (over the vocabulary) and `dw` (over the rows), so the block sizes there do not show in the result.

use half::bf16;
use llamero_tensor::NO_TARGET;

use crate::exec::{Exec, Tile};
use crate::gemm::{Data, Mat, Out, PACKED, Panels, Right, gemm, pack_panels, product_ns, step, tile};
use crate::math::{exp, ln, load, store};
use crate::memory::Buffer;
use crate::path::Kernel;
use crate::rows::Convert;
use crate::simd::{LANES, Simd};
use crate::storage::Stored;

/// Vocabulary entries that are reduced together; part of the definition of the result.
const BLOCK: usize = 512;
/// Rows of one task.
const ROWS: usize = 192;
/// Rows and vocabulary entries of the logits that the backward pass holds (8 MiB).
const BACK_ROWS: usize = 2048;
const BACK_BLOCK: usize = 1024;

/// The rows that have a target, one after another.
struct Active<'a> {
    /// Their numbers.
    rows: Vec<usize>,
    targets: Vec<u32>,
    data: Gathered<'a>,
    width: usize,
}

enum Gathered<'a> {
    All(Data<'a>),
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

fn gather<E: Stored>(exec: &Exec, h: &[E], width: usize, rows: &[usize]) -> Buffer<E> {
    let mut out = exec.memory.stale::<E>(rows.len() * width);
    for (out, &row) in out.chunks_exact_mut(width.max(1)).zip(rows) {
        out.copy_from_slice(&h[row * width..][..width]);
    }
    out
}

impl<'a> Active<'a> {
    fn new(exec: &Exec, h: Data<'a>, width: usize, targets: &[u32]) -> Self {
        let rows: Vec<usize> = (0..targets.len()).filter(|&i| targets[i] != NO_TARGET).collect();
        let data = match h {
            _ if rows.len() == targets.len() => Gathered::All(h),
            Data::F32(h) => Gathered::F32(gather(exec, h, width, &rows)),
            Data::Bf16(h) => Gathered::Bf16(gather(exec, h, width, &rows)),
        };
        let targets = rows.iter().map(|&i| targets[i]).collect();
        Self { rows, targets, data, width }
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
#[derive(Clone, Copy)]
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
    let count = active.rows.len();
    let blocks = vocab.div_ceil(BLOCK);
    let mut parts = vec![Part { max: 0.0, sum: 0.0, target: 0.0 }; blocks * count];
    let all = Tile::new(&mut parts, blocks, count, count);
    match w {
        Head::Panels(panels) => some_blocks(exec, &active, (panels, 0, vocab), &all),
        Head::Mat(w) => {
            let step = (PACKED / width.max(1) / BLOCK).max(1) * BLOCK;
            for first in (0..vocab).step_by(step) {
                let n = step.min(vocab - first);
                let pairs = exec.pairs() && w.is_bf16() && active.mat().is_bf16();
                let panels = pack_panels(exec, w.from(first, 0).t(), (width, n), pairs);
                some_blocks(exec, &active, (&panels, first, n), &all);
            }
        }
    }
    let mut row_lse = vec![0.0; count];
    exec.run(Combine { parts: &parts, out: &mut row_lse });
    for (i, &row) in active.rows.iter().enumerate() {
        let block = active.targets[i] as usize / BLOCK;
        lse[row] = row_lse[i];
        nll[row] = row_lse[i] - parts[block * count + i].target;
    }
}

/// The blocks of the vocabulary entries `first .. first + n`, whose panels are given.
fn some_blocks(
    exec: &Exec,
    active: &Active<'_>,
    (panels, first, n): (&Panels, usize, usize),
    parts: &Tile<'_, Part>,
) {
    let (count, width) = (active.rows.len(), active.width);
    let row_tasks = count.div_ceil(ROWS);
    exec.tasks(n.div_ceil(BLOCK) * row_tasks, product_ns(count, n, width), |task| {
        let (block, row) = (task / row_tasks, task % row_tasks * ROWS);
        let (rows, cols) = (ROWS.min(count - row), BLOCK.min(n - block * BLOCK));
        let mut logits = exec.memory.stale::<f32>(rows * cols);
        let part = &panels.data[block * BLOCK * width.div_ceil(step(panels.pairs))..];
        let c = Tile::new(&mut logits, rows, cols, cols);
        if width == 0 {
            logits.fill(0.0);
        } else {
            tile(exec, (rows, cols, width), active.mat().from(row, 0), (part, panels.pairs), c, None);
        }
        // SAFETY: tasks have different blocks or rows.
        let mut out = unsafe { parts.sub(first / BLOCK + block, row, 1, rows) };
        let targets = &active.targets[row..row + rows];
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
        let lowest = s.splat(f32::NEG_INFINITY);
        let part = |x: &[f32], at: usize| s.first(x.len() - at, load(s, x, at), lowest);
        for ((x, out), target) in self.logits.chunks_exact(self.cols).zip(self.out).zip(self.targets) {
            let mut max = lowest;
            for at in (0..x.len()).step_by(LANES) {
                max = s.max(max, part(x, at));
            }
            let max = s.largest(max);
            let mut sum = s.splat(0.0);
            for at in (0..x.len()).step_by(LANES) {
                sum = s.add(sum, exp(s, s.sub(part(x, at), s.splat(max))));
            }
            let target = (*target as usize).checked_sub(self.first).and_then(|i| x.get(i));
            *out = Part { max, sum: s.sum(sum), target: target.copied().unwrap_or(0.0) };
        }
    }
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
            let parts = self.parts[row..].iter().step_by(count);
            let max = parts.clone().fold(f32::NEG_INFINITY, |m, p| if p.max > m { p.max } else { m });
            let sum = parts.fold(0.0, |sum: f32, p| {
                let scale = s.array(exp(s, s.splat(p.max - max)))[0];
                p.sum.mul_add(scale, sum)
            });
            *out = max + ln(sum);
        }
    }
}

/// The gradient that comes in and what is needed from the forward pass.
pub(crate) struct Saved<'a> {
    pub(crate) d_nll: &'a [f32],
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
    let active = Active::new(exec, h, width, saved.targets);
    let count = active.rows.len();
    let pick = |x: &[f32]| -> Vec<f32> { active.rows.iter().map(|&i| x[i]).collect() };
    let (d_nll, lse) = (pick(saved.d_nll), pick(saved.lse));
    let mut grad = exec.memory.zeros::<f32>(count * width);
    let vocab = dw.len() / width.max(1);
    let mut logits = exec.memory.stale::<f32>(BACK_ROWS.min(count) * BACK_BLOCK.min(vocab));
    for first in (0..vocab).step_by(BACK_BLOCK) {
        let cols = BACK_BLOCK.min(vocab - first);
        let w = w.from(first, 0);
        let dw = &mut dw[first * width..][..cols * width];
        let pairs = exec.pairs() && w.is_bf16() && active.mat().is_bf16();
        let panels = pack_panels(exec, w.t(), (width, cols), pairs);
        let panels_back = pack_panels(exec, w, (cols, width), false);
        for row in (0..count).step_by(BACK_ROWS) {
            let rows = BACK_ROWS.min(count - row);
            let logits = &mut logits[..rows * cols];
            let h = active.mat().from(row, 0);
            gemm(exec, (rows, cols, width), h, Right::Panels(&panels), Out::F32(logits));
            let step = exec.rows_per_task(rows);
            exec.chunks(logits, step * cols, (rows * cols) as f64, |task, logits| {
                let at = row + task * step;
                let targets = &active.targets[at..];
                exec.run(LogitGrad { logits, cols, first, targets, lse: &lse[at..], d_nll: &d_nll[at..] });
            });
            let logits = Mat::new(Data::F32(logits), cols);
            let grad = &mut grad[row * width..][..rows * width];
            gemm(exec, (rows, width, cols), logits, Right::Panels(&panels_back), Out::Add(grad));
            gemm(exec, (cols, width, rows), logits.t(), Right::Mat(h), Out::Add(dw));
        }
    }
    if count < saved.targets.len() {
        dh.fill(E::zeroed());
    }
    for (x, &row) in grad.chunks_exact(width.max(1)).zip(&active.rows) {
        exec.run(Convert { x, out: &mut dh[row * width..][..width] });
    }
}

/// Turns logits into their gradients.
struct LogitGrad<'a> {
    logits: &'a mut [f32],
    cols: usize,
    first: usize,
    targets: &'a [u32],
    lse: &'a [f32],
    d_nll: &'a [f32],
}

impl Kernel for LogitGrad<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, x) in self.logits.chunks_exact_mut(self.cols).enumerate() {
            let (lse, d) = (s.splat(self.lse[row]), s.splat(self.d_nll[row]));
            let target = (self.targets[row] as usize).checked_sub(self.first).filter(|t| *t < x.len());
            let logit = target.map(|t| x[t]);
            for at in (0..x.len()).step_by(LANES) {
                let p = exp(s, s.sub(load(s, x, at), lse));
                store(s, s.mul(p, d), x, at);
            }
            if let (Some(t), Some(logit)) = (target, logit) {
                let p = exp(s, s.sub(s.splat(logit), lse));
                x[t] = s.array(s.mul(s.sub(p, s.splat(1.0)), d))[0];
            }
        }
    }
}
