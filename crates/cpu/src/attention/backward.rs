//! The backward pass: weights are computed again from the saved log-sum-exp.
//!
//! Every gradient is a sequential chain: of a key or value over the query rows in order (heads of a group inside a
//! position), of a query over the keys in order. So it does not matter how documents are divided into tasks:
//! usually one task per document and group of heads makes all three gradients at once; a document too long for
//! that is divided by queries for the first and, again, by keys for the other two.

use std::ops::Range;

use llamero_tensor::{Heads, Segments};

use super::kernels::{Delta, ScoreGrad, WriteRows};
use super::{KEYS, Left, group_size, pack_keys, pack_right, query_step};
use crate::exec::{Exec, Tile};
use crate::gemm::kernel::{Layout, NARROW};
use crate::gemm::{Mat, NR, Product, onto};
use crate::math::Element;

/// What the backward pass reads and writes.
pub(crate) struct Gradient<'a, E> {
    pub(crate) heads: Heads,
    pub(crate) segments: &'a Segments,
    /// `[T, (H + 2G) D]`.
    pub(crate) qkv: Mat<'a>,
    /// `[T, H D]`.
    pub(crate) dy: &'a [E],
    /// `[T, H D]`.
    pub(crate) y: &'a [E],
    /// `[T, H]`.
    pub(crate) lse: &'a [f32],
    /// `[T, (H + 2G) D]`.
    pub(crate) out: Tile<'a, E>,
}

/// Part of the work on one document and one key/value head.
struct Task {
    first_row: usize,
    len: usize,
    kv: usize,
    keys: Range<usize>,
    queries: Range<usize>,
    for_queries: bool,
    for_keys: bool,
}

impl Task {
    /// Query–key pairs, about.
    fn cost(&self) -> usize {
        let pairs = |keys: usize| {
            let first = self.queries.start.max(keys);
            self.queries.end.saturating_sub(first) * KEYS
        };
        self.keys.clone().step_by(KEYS).map(pairs).sum()
    }
}

/// The gradient of `qkv`; `dy` is `job.dy` as a matrix.
pub(crate) fn attention_backward<E: Element>(exec: &Exec, job: &Gradient<'_, E>, dy: Mat<'_>) {
    let heads = job.heads;
    let total = job.segments.total_rows();
    let mut delta = exec.memory.stale::<f32>(total * heads.query);
    let chunk = exec.rows_per_task(total * heads.query);
    exec.chunks(&mut delta, chunk, job.dy.len() as f64 * 0.2, |task, delta| {
        for (i, delta) in delta.iter_mut().enumerate() {
            let at = (task * chunk + i) * heads.dim;
            *delta = exec.run(Delta { dy: &job.dy[at..][..heads.dim], y: &job.y[at..][..heads.dim] });
        }
    });
    let tasks = plan(exec.threads, job.segments, heads.kv);
    let cost: usize = tasks.iter().map(Task::cost).sum();
    let ns = (cost * group_size(heads) * heads.dim) as f64 * 10.0 / 50.0;
    exec.tasks(tasks.len(), ns, |i| run_task(exec, job, dy, &delta, &tasks[i]));
}

/// Divides the documents, costly tasks first.
fn plan(threads: usize, segments: &Segments, kv_heads: usize) -> Vec<Task> {
    let fair = segments.attention_pairs() * kv_heads / threads;
    let mut tasks = Vec::new();
    for segment in segments.iter().filter(|s| !s.rows.is_empty()) {
        let (first_row, len) = (segment.rows.start, segment.rows.len());
        for kv in 0..kv_heads {
            let task = |keys, queries, for_queries, for_keys| Task {
                first_row,
                len,
                kv,
                keys,
                queries,
                for_queries,
                for_keys,
            };
            if threads == 1 || len <= 2 * KEYS || len * len / 2 <= fair + fair / 4 {
                tasks.push(task(0..len, 0..len, true, true));
                continue;
            }
            let part = (len / (4 * threads)).next_multiple_of(KEYS);
            for start in (0..len).step_by(part) {
                let range = start..len.min(start + part);
                tasks.push(task(0..range.end, range.clone(), true, false));
                tasks.push(task(range, start..len, false, true));
            }
        }
    }
    tasks.sort_by_key(|t| std::cmp::Reverse(t.cost()));
    tasks
}

fn run_task<E: Element>(exec: &Exec, job: &Gradient<'_, E>, dy: Mat<'_>, delta: &[f32], task: &Task) {
    let heads = job.heads;
    let (dim, group) = (heads.dim, group_size(heads));
    let width = dim.next_multiple_of(NR);
    let most = query_step(heads) * group;
    let mut w = Work {
        keys: exec.memory.stale(KEYS * dim),
        values: exec.memory.stale(KEYS * dim),
        keys_right: exec.memory.stale(KEYS * width),
        queries: Left::new(exec, most, dim),
        grads: Left::new(exec, most, dim),
        right: exec.memory.stale(most * width),
        scores: exec.memory.stale(most * NARROW),
        score_grads: exec.memory.stale(most * NARROW),
    };
    let mut dq =
        exec.memory.zeros::<f32>(if task.for_queries { task.queries.len() * group * width } else { 0 });
    let mut dk = exec.memory.stale::<f32>(KEYS * width);
    let mut dv = exec.memory.stale::<f32>(KEYS * width);
    let columns = [task.kv * group, heads.query + task.kv, heads.query + heads.kv + task.kv].map(|h| h * dim);
    for start in task.keys.clone().step_by(KEYS) {
        let count = KEYS.min(task.len - start);
        let keys = job.qkv.from(task.first_row + start, columns[1]);
        pack_keys(exec, keys, count, dim, &mut w.keys);
        pack_right(exec, keys, count, dim, &mut w.keys_right);
        pack_keys(exec, job.qkv.from(task.first_row + start, columns[2]), count, dim, &mut w.values);
        dk.fill(0.0);
        dv.fill(0.0);
        let mut position = task.queries.start.max(start);
        while position < task.queries.end {
            let positions = query_step(heads).min(task.queries.end - position);
            w.weights(exec, job, dy, delta, (task, position, positions, start));
            if task.for_keys {
                w.add_to_keys(exec, count, (&mut dk, &mut dv));
            }
            if task.for_queries {
                let at = (position - task.queries.start) * group * width;
                w.add_to_queries(exec, count, &mut dq[at..][..positions * group * width]);
            }
            position += positions;
        }
        if task.for_keys {
            for (x, col) in [(&dk, columns[1]), (&dv, columns[2])] {
                // SAFETY: tasks that write keys have different key blocks or heads.
                let out = unsafe { job.out.sub(task.first_row + start, col, count, dim) };
                exec.run(WriteRows { x, width, dim, out });
            }
        }
    }
    if task.for_queries {
        let (row, rows) = (task.first_row + task.queries.start, task.queries.len());
        // SAFETY: tasks that write queries have different query rows or heads.
        let out = unsafe { job.out.sub(row, columns[0], rows, group * dim) };
        exec.run(WriteRows { x: &dq, width, dim, out });
    }
}

/// Packed operands of a block of keys and a block of queries.
struct Work {
    keys: crate::memory::Buffer<f32>,
    values: crate::memory::Buffer<f32>,
    keys_right: crate::memory::Buffer<f32>,
    queries: Left,
    grads: Left,
    right: crate::memory::Buffer<f32>,
    scores: crate::memory::Buffer<f32>,
    score_grads: crate::memory::Buffer<f32>,
}

impl Work {
    /// Probabilities and gradients of the scores of `positions` from `position` on for the keys from `start` on.
    fn weights<E: Element>(
        &mut self,
        exec: &Exec,
        job: &Gradient<'_, E>,
        dy: Mat<'_>,
        delta: &[f32],
        (task, position, positions, start): (&Task, usize, usize, usize),
    ) {
        let (dim, group) = (job.heads.dim, group_size(job.heads));
        let (row, head) = (task.first_row + position, task.kv * group);
        self.queries.pack(exec, job.qkv.from(row, head * dim), positions, group);
        self.grads.pack(exec, dy.from(row, head * dim), positions, group);
        self.queries.times(exec, &self.keys, KEYS, &mut self.scores);
        self.grads.times(exec, &self.values, KEYS, &mut self.score_grads);
        let gather = |x: &[f32]| -> Vec<f32> {
            let rows = x.chunks_exact(job.heads.query).skip(row).take(positions);
            rows.flat_map(|x| &x[head..head + group]).copied().collect()
        };
        exec.run(ScoreGrad {
            scores: &mut self.scores,
            grads: &mut self.score_grads,
            group,
            visible: position - start + 1,
            scale: 1.0 / (dim as f32).sqrt(),
            lse: &gather(job.lse),
            delta: &gather(delta),
        });
    }

    /// `dK += dSᵀ Q`, `dV += Pᵀ dY`.
    fn add_to_keys(&mut self, exec: &Exec, count: usize, (dk, dv): (&mut [f32], &mut [f32])) {
        for (weights, left, out) in [(&self.score_grads, &self.queries, dk), (&self.scores, &self.grads, dv)]
        {
            let width = out.len() / KEYS;
            left.turn(exec, &mut self.right);
            let (c, start) = onto(Tile::new(out, count, width, width));
            exec.run(Product {
                m: count,
                n: width,
                k: left.rows,
                a: (weights, Layout::Cols),
                b: &self.right,
                panel: left.rows * NR,
                pairs: false,
                c,
                start,
            });
        }
    }

    /// `dQ += dS K`.
    fn add_to_queries(&mut self, exec: &Exec, count: usize, dq: &mut [f32]) {
        let rows = self.queries.rows;
        let width = dq.len() / rows;
        let (c, start) = onto(Tile::new(dq, rows, width, width));
        exec.run(Product {
            m: rows,
            n: width,
            k: count,
            a: (&self.score_grads, Layout::Narrow),
            b: &self.keys_right,
            panel: count * NR,
            pairs: false,
            c,
            start,
        });
    }
}
