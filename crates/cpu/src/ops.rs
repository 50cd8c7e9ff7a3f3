//! The row-wise ops: splitting into tasks. `T` tokens, `C` model width.

use std::borrow::Cow;

use half::bf16;
use llamero_tensor::{AdamW, Heads, RopeDirection, RopeTable, Segments};

use crate::exec::{Exec, Tile};
use crate::master::Halves;
use crate::math::Element;
use crate::rows::{
    AdamWStep, Add, AddAssign, Convert, InverseRms, RmsNorm, RmsNormInput, RmsNormWeight, Rope, SumOfSquares,
    Swiglu, SwigluBackward,
};

/// Elements per task of flat ops; a multiple of the lanes.
const RUN: usize = 1 << 15;

pub(crate) fn convert<A: Element, B: Element>(exec: &Exec, x: &[A], out: &mut [B]) {
    let ns = out.len() as f64 * 0.3;
    exec.chunks(out, RUN, ns, |i, out| exec.run(Convert { x: &x[i * RUN..][..out.len()], out }));
}

pub(crate) fn add<E: Element>(exec: &Exec, a: &[E], b: &[E], out: &mut [E]) {
    let ns = out.len() as f64 * 0.4;
    exec.chunks(out, RUN, ns, |i, out| {
        let (a, b) = (&a[i * RUN..][..out.len()], &b[i * RUN..][..out.len()]);
        exec.run(Add { a, b, out });
    });
}

pub(crate) fn add_assign<A: Element, E: Element>(exec: &Exec, acc: &mut [A], x: &[E]) {
    let ns = acc.len() as f64 * 0.3;
    exec.chunks(acc, RUN, ns, |i, acc| {
        let x = &x[i * RUN..][..acc.len()];
        exec.run(AddAssign { acc, x });
    });
}

/// Rows of two arrays side by side, each with its number of columns.
pub(crate) fn concat_columns<A: Element, B: Element>(
    exec: &Exec,
    (left, left_cols): (&[A], usize),
    (right, right_cols): (&[B], usize),
    out: &mut [A],
) {
    let cols = left_cols + right_cols;
    if cols == 0 {
        return;
    }
    let step = exec.rows_per_task(out.len() / cols);
    let ns = out.len() as f64 * 0.3;
    exec.chunks(out, step * cols, ns, |task, out| {
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            let (row, (a, b)) = (task * step + i, out.split_at_mut(left_cols));
            a.copy_from_slice(&left[row * left_cols..][..left_cols]);
            exec.run(Convert { x: &right[row * right_cols..][..right_cols], out: b });
        }
    });
}

/// The sum of several arrays, in order.
pub(crate) fn sum<E: Element>(exec: &Exec, parts: &[Cow<'_, [E]>], out: &mut [f32]) {
    let Some((first, rest)) = parts.split_first() else { return out.fill(0.0) };
    let ns = out.len() as f64 * 0.3 * parts.len() as f64;
    exec.chunks(out, RUN, ns, |i, out| {
        let here = i * RUN..i * RUN + out.len();
        exec.run(Convert { x: &first[here.clone()], out });
        for x in rest {
            exec.run(AddAssign { acc: &mut *out, x: &x[here.clone()] });
        }
    });
}

pub(crate) fn rms_norm<E: Element, W: Element>(exec: &Exec, x: &[E], w: &[W], eps: f32, out: &mut [E]) {
    if w.is_empty() {
        return;
    }
    let chunk = exec.rows_per_task(out.len() / w.len()) * w.len();
    let ns = out.len() as f64 * 0.4;
    exec.chunks(out, chunk, ns, |i, out| exec.run(RmsNorm { x: &x[i * chunk..][..out.len()], w, eps, out }));
}

pub(crate) fn rms_norm_backward<E: Element, W: Element>(
    exec: &Exec,
    (dy, x): (&[E], &[E]),
    w: &[W],
    eps: f32,
    (dx, dw): (&mut [E], &mut [f32]),
) {
    if w.is_empty() {
        return;
    }
    let cols = w.len();
    let rows = x.len() / cols;
    let step = exec.rows_per_task(rows);
    let ns = x.len() as f64;
    exec.chunks(dx, step * cols, ns, |i, dx| {
        let at = i * step * cols;
        let (dy, x) = (&dy[at..][..dx.len()], &x[at..][..dx.len()]);
        exec.run(RmsNormInput { dy, x, w, eps, dx });
    });
    let mut inverse = exec.memory.stale::<f32>(rows);
    exec.chunks(&mut inverse, step, ns * 0.3, |i, out| {
        let x = &x[i * step * cols..][..out.len() * cols];
        exec.run(InverseRms { x, cols, eps, out });
    });
    // Threads take stripes of columns, so that the rows are summed in order whatever the number of threads.
    let stripe = cols.div_ceil(exec.threads).next_multiple_of(64);
    exec.chunks(dw, stripe, ns, |i, dw| {
        exec.run(RmsNormWeight { dy, x, inverse: &inverse, cols, first: i * stripe, dw });
    });
}

/// In place.
pub(crate) fn rope<E: Element>(
    exec: &Exec,
    qkv: &mut [E],
    heads: Heads,
    (segments, table, direction): (&Segments, &RopeTable, RopeDirection),
) {
    let width = heads.width();
    if width == 0 {
        return;
    }
    let positions: Vec<usize> = segments.positions().collect();
    let turned = (heads.query + heads.kv) * heads.dim;
    let sign = if direction == RopeDirection::Forward { 1.0 } else { -1.0 };
    let step = exec.rows_per_task(positions.len());
    let ns = qkv.len() as f64 * 0.4;
    exec.chunks(qkv, step * width, ns, |i, rows| {
        let mut before = exec.memory.stale::<E>(turned);
        for (row, out) in rows.chunks_exact_mut(width).enumerate() {
            before.copy_from_slice(&out[..turned]);
            let (cos, sin) = table.row(positions[i * step + row]);
            exec.run(Rope { heads: &before, cos, sin, sign, out: &mut out[..turned] });
        }
    });
}

pub(crate) fn swiglu<E: Element>(exec: &Exec, gate_up: &[E], width: usize, out: &mut [E]) {
    if width == 0 {
        return;
    }
    let chunk = exec.rows_per_task(out.len() / width) * width;
    let ns = out.len() as f64;
    exec.chunks(out, chunk, ns, |i, out| {
        exec.run(Swiglu { gate_up: &gate_up[2 * i * chunk..][..2 * out.len()], width, out });
    });
}

/// In the place of `x`, which holds gate and up.
pub(crate) fn swiglu_backward<E: Element>(exec: &Exec, dy: &[E], width: usize, x: &mut [E]) {
    if width == 0 {
        return;
    }
    let chunk = exec.rows_per_task(dy.len() / width) * width;
    let ns = x.len() as f64;
    exec.chunks(x, 2 * chunk, ns, |i, x| {
        exec.run(SwigluBackward { dy: &dy[i * chunk..][..x.len() / 2], width, x });
    });
}

pub(crate) fn embed<E: Element>(exec: &Exec, table: &[E], ids: &[u32], width: usize, out: &mut [E]) {
    let step = exec.rows_per_task(ids.len());
    let ns = out.len() as f64 * 0.3;
    exec.chunks(out, step * width, ns, |i, out| {
        for (out, id) in out.chunks_exact_mut(width.max(1)).zip(&ids[i * step..]) {
            out.copy_from_slice(&table[*id as usize * width..][..width]);
        }
    });
}

pub(crate) fn embed_backward<E: Element>(
    exec: &Exec,
    dy: &[E],
    ids: &[u32],
    width: usize,
    dtable: &mut [f32],
) {
    // Tasks take ranges of the vocabulary and look for them in all rows, in order.
    let step = exec.rows_per_task(dtable.len() / width.max(1));
    let ns = dy.len() as f64 * 0.4;
    let part = if exec.threads == 1 { dtable.len() } else { step * width };
    exec.chunks(dtable, part, ns, |i, part_of| {
        let first = i * part;
        for (row, id) in ids.iter().enumerate() {
            let at = *id as usize * width;
            if at >= first && at < first + part_of.len() {
                let acc = &mut part_of[at - first..][..width];
                exec.run(AddAssign { acc, x: &dy[row * width..][..width] });
            }
        }
    });
}

/// Master weights, whole or in halves.
pub(crate) enum MasterMut<'a> {
    F32(&'a mut [f32]),
    Split(&'a mut [bf16], &'a mut [i16]),
}

pub(crate) fn adamw(
    exec: &Exec,
    weight: MasterMut<'_>,
    (m, v): (&mut [f32], &mut [f32]),
    grad: &[f32],
    step: &AdamW,
) {
    enum Tiles<'a> {
        F32(Tile<'a, f32>),
        Split(Tile<'a, bf16>, Tile<'a, i16>),
    }
    let n = grad.len();
    let [m, v] = [m, v].map(|x| Tile::new(x, 1, n, n));
    let weight = match weight {
        MasterMut::F32(weight) => Tiles::F32(Tile::new(weight, 1, n, n)),
        MasterMut::Split(high, low) => Tiles::Split(Tile::new(high, 1, n, n), Tile::new(low, 1, n, n)),
    };
    exec.tasks(n.div_ceil(RUN), n as f64 * 1.5, |i| {
        let at = i * RUN;
        let len = RUN.min(n - at);
        let grad = &grad[at..][..len];
        // SAFETY: tasks have different columns.
        let [mut m, mut v] = unsafe { [&m, &v].map(|x| x.sub(0, at, 1, len)) };
        let (m, v) = (m.row(0), v.row(0));
        match &weight {
            Tiles::F32(weight) => {
                // SAFETY: as above.
                let mut weight = unsafe { weight.sub(0, at, 1, len) };
                exec.run(AdamWStep { weight: weight.row(0), m, v, grad, step });
            }
            Tiles::Split(high, low) => {
                // SAFETY: as above.
                let (mut high, mut low) = unsafe { (high.sub(0, at, 1, len), low.sub(0, at, 1, len)) };
                let weight = Halves { high: high.row(0), low: low.row(0) };
                exec.run(AdamWStep { weight, m, v, grad, step });
            }
        }
    });
}

pub(crate) fn sum_of_squares<E: Element>(exec: &Exec, x: &[E]) -> f64 {
    let mut sums = vec![0.0; x.len().div_ceil(RUN)];
    exec.chunks(&mut sums, 1, x.len() as f64 * 0.3, |i, sum| {
        let run = &x[i * RUN..x.len().min((i + 1) * RUN)];
        sum[0] = exec.run(SumOfSquares(run));
    });
    sums.iter().sum()
}

/// [`llamero_tensor::checksum`] on all threads.
pub(crate) fn checksum(exec: &Exec, bytes: &[u8]) -> u64 {
    const PART: usize = 1 << 18;
    let mut sums = vec![0; bytes.len().div_ceil(PART)];
    exec.chunks(&mut sums, 1, bytes.len() as f64 * 0.1, |i, sum| {
        let part = &bytes[i * PART..bytes.len().min((i + 1) * PART)];
        sum[0] = llamero_tensor::checksum(part, (i * PART / 8) as u64);
    });
    sums.into_iter().fold(0, u64::wrapping_add)
}
