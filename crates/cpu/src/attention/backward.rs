//! The backward pass: weights are computed again from the saved log-sum-exp.
//!
//! Every gradient is a sequential chain: of a key or value over the query rows in order (heads of a group inside a
//! position), of a query over the keys in order. So it does not matter how documents are divided into tasks:
//! usually one task per document and group of heads makes all three gradients at once; a document too long for
//! that is divided by queries for the first and, again, by keys for the other two.
//!
//! A document may have several runs of query rows; they are taken one after another, and each adds to the gradients of the
//! keys and values that it sees.

use std::ops::Range;

use llamero_tensor::{GatheredSegment, Heads};

use super::kernels::{Delta, ScoreGrad, WriteRows};
use super::{Blocks, KEYS, Rows, add_weighted, group_size, padded, query_step, right_panel, scores};
use crate::exec::{Exec, Tile};
use crate::gemm::{Layout, MR, Mat, NARROW, NR, Product, Start, step};
use crate::math::Element;
use crate::memory::Buffer;

/// What the backward pass reads and writes; `E` is the type of `qkv`, `K` that of the gradient of keys and values.
pub(crate) struct Gradient<'a, E, K> {
    pub(crate) heads: Heads,
    /// Query rows, and where in `kv` their documents begin.
    pub(crate) segments: &'a [GatheredSegment],
    /// Element `(packed row, h · D + d)`.
    pub(crate) queries: Mat<'a>,
    /// Keys, then values, and the column where they begin: element `(row, column + g · D + d)` and
    /// `(row, column + (G + g) · D + d)`.
    pub(crate) kv: (Mat<'a>, usize),
    /// `[T, H D]`.
    pub(crate) dy: &'a [E],
    /// `[T, H D]`.
    pub(crate) y: &'a [E],
    /// `[T, H]`.
    pub(crate) lse: &'a [f32],
    /// `[T, H D]`.
    pub(crate) d_queries: Tile<'a, E>,
    /// `[S, 2 G D]`.
    pub(crate) d_kv: Tile<'a, K>,
    /// Whether the gradients of keys and values are added to what is there.
    pub(crate) adds: bool,
}

/// Part of the work on one run of query rows and one key/value head. Keys and queries are positions in the document.
struct Task<'a> {
    run: &'a GatheredSegment,
    kv: usize,
    keys: Range<usize>,
    queries: Range<usize>,
    for_queries: bool,
    for_keys: bool,
}

impl Task<'_> {
    /// Query–key pairs, about.
    fn cost(&self) -> usize {
        let pairs = |keys: usize| {
            let first = self.queries.start.max(keys);
            self.queries.end.saturating_sub(first) * KEYS
        };
        self.keys.clone().step_by(KEYS).map(pairs).sum()
    }

    /// Keys that the run sees.
    fn len(&self) -> usize {
        self.run.keys().len()
    }

    /// The packed row of a query.
    fn row(&self, position: usize) -> usize {
        self.run.segment.rows.start + position - self.run.segment.past
    }
}

/// The gradients of the queries and of keys and values; `dy` is `job.dy` as a matrix.
pub(crate) fn attention_backward<E: Element, K: Element>(exec: &Exec, job: &Gradient<'_, E, K>, dy: Mat<'_>) {
    let heads = job.heads;
    let mut delta = exec.memory.stale::<f32>(job.lse.len());
    let chunk = exec.rows_per_task(job.lse.len());
    exec.chunks(&mut delta, chunk, job.dy.len() as f64 * 0.2, |task, delta| {
        for (i, delta) in delta.iter_mut().enumerate() {
            let at = (task * chunk + i) * heads.dim;
            *delta = exec.run(Delta { dy: &job.dy[at..][..heads.dim], y: &job.y[at..][..heads.dim] });
        }
    });
    for runs in rounds(job.segments) {
        let tasks = plan(exec.threads, &runs, heads.kv);
        let cost: usize = tasks.iter().map(Task::cost).sum();
        let ns = (cost * group_size(heads) * heads.dim) as f64 * 10.0 / 200.0;
        exec.tasks(tasks.len(), ns, |i| run_task(exec, job, dy, &delta, &tasks[i]));
    }
}

/// The runs that are not empty: first those that are the first of their document, then the second ones, and so on. Those of a
/// round share no key.
fn rounds(segments: &[GatheredSegment]) -> Vec<Vec<&GatheredSegment>> {
    let mut rounds: Vec<Vec<&GatheredSegment>> = Vec::new();
    let (mut document, mut round) = (None, 0);
    for run in segments.iter().filter(|s| !s.segment.rows.is_empty()) {
        round = if document == Some(run.first) { round + 1 } else { 0 };
        document = Some(run.first);
        if rounds.len() == round {
            rounds.push(Vec::new());
        }
        rounds[round].push(run);
    }
    rounds
}

/// Divides the runs, costly tasks first.
fn plan<'a>(threads: usize, runs: &[&'a GatheredSegment], kv_heads: usize) -> Vec<Task<'a>> {
    let pairs =
        |run: &GatheredSegment| (run.segment.past + run.segment.rows.len() / 2) * run.segment.rows.len();
    let fair = runs.iter().map(|run| pairs(run)).sum::<usize>() * kv_heads / threads;
    let mut tasks = Vec::new();
    for run in runs {
        let (past, len) = (run.segment.past, run.keys().len());
        for kv in 0..kv_heads {
            let mut task = |keys: Range<usize>, queries: Range<usize>, for_queries, for_keys| {
                let queries = queries.start.max(past)..queries.end;
                if !queries.is_empty() {
                    tasks.push(Task { run, kv, keys, queries, for_queries, for_keys });
                }
            };
            if threads == 1 || len <= 2 * KEYS || pairs(run) <= fair + fair / 4 {
                task(0..len, past..len, true, true);
                continue;
            }
            let part = (len / (4 * threads)).max(1).next_multiple_of(KEYS);
            for start in (0..len).step_by(part) {
                let range = start..len.min(start + part);
                task(0..range.end, range.clone(), true, false);
                task(range, start..len, false, true);
            }
        }
    }
    tasks.sort_by_key(|t| std::cmp::Reverse(t.cost()));
    tasks
}

/// Blocks of keys that share a pass over the queries.
const CHUNK: usize = 4;

fn run_task<E: Element, K: Element>(
    exec: &Exec,
    job: &Gradient<'_, E, K>,
    dy: Mat<'_>,
    delta: &[f32],
    task: &Task<'_>,
) {
    let heads = job.heads;
    let (dim, group, width) = (heads.dim, group_size(heads), padded(heads.dim));
    let mut w = Work::new(exec, job, dy, task);
    let mut dq =
        exec.memory.zeros::<f32>(if task.for_queries { task.queries.len() * group * width } else { 0 });
    let [mut dk, mut dv] = [(); 2].map(|()| exec.memory.stale::<f32>(CHUNK * KEYS * width));
    // Blocks of queries are brought near once for each chunk of keys.
    for chunk in task.keys.clone().step_by(CHUNK * KEYS) {
        let end = task.keys.end.min(chunk + CHUNK * KEYS);
        dk.fill(0.0);
        dv.fill(0.0);
        let mut position = w.first.max(chunk);
        while position < task.queries.end {
            // To the end of a block, as if the document's queries were all here.
            let positions = (w.step - position % w.step).min(task.queries.end - position);
            for start in (chunk..end.min(position + positions)).step_by(KEYS) {
                let at = At { position, positions, start, count: KEYS.min(task.len() - start) };
                w.weights(exec, job, delta, task, &at);
                if task.for_keys {
                    let first = (start - chunk) * width;
                    w.add_to_keys(exec, &at, (&mut dk[first..], &mut dv[first..]));
                }
                if task.for_queries {
                    let row = (position - task.queries.start) * group * width;
                    w.add_to_queries(exec, &at, &mut dq[row..][..positions * group * width]);
                }
            }
            position += positions;
        }
        if task.for_keys {
            for (x, head) in [(&dk, task.kv), (&dv, heads.kv + task.kv)] {
                // SAFETY: tasks of a round that write keys have different documents, key blocks or heads.
                let out = unsafe { job.d_kv.sub(task.run.first + chunk, head * dim, end - chunk, dim) };
                exec.run(WriteRows { x, width, dim, out, adds: job.adds });
            }
        }
    }
    if task.for_queries {
        let (row, rows) = (task.row(task.queries.start), task.queries.len());
        // SAFETY: tasks that write queries have different query rows or heads.
        let out = unsafe { job.d_queries.sub(row, task.kv * group * dim, rows, group * dim) };
        exec.run(WriteRows { x: &dq, width, dim, out, adds: false });
    }
}

/// A block of queries and a block of keys.
struct At {
    position: usize,
    positions: usize,
    start: usize,
    count: usize,
}

impl At {
    /// Keys that the first position sees.
    fn visible(&self) -> usize {
        self.position - self.start + 1
    }

    /// Group size and visible keys, in the block on the diagonal.
    fn diagonal(&self, group: usize) -> Option<(usize, usize)> {
        (self.position < self.start + KEYS).then_some((group, self.visible()))
    }
}

/// Packed operands of a task, and the weights of a block of queries and a block of keys.
struct Work {
    pairs: bool,
    dim: usize,
    group: usize,
    /// Positions of a block of queries.
    step: usize,
    /// Position of the first packed query row.
    first: usize,
    keys: Blocks,
    values: Blocks,
    /// Keys once more, for the gradient of the queries.
    keys_upright: Option<Blocks>,
    queries: Rows,
    grads: Rows,
    /// Query rows and their gradients once more, for the gradients of keys and values: a block of queries each.
    upright: Option<[Blocks; 2]>,
    weights: Buffer<f32>,
    score_grads: Buffer<f32>,
    /// The same in pairs of rows.
    turned: Option<[Buffer<f32>; 2]>,
}

impl Work {
    fn new<E, K>(exec: &Exec, job: &Gradient<'_, E, K>, dy: Mat<'_>, task: &Task<'_>) -> Self {
        let heads = job.heads;
        let (dim, group) = (heads.dim, group_size(heads));
        let pairs = exec.pairs() && job.queries.is_bf16() && dy.is_bf16();
        let (kv, column) = job.kv;
        let [keys, values] =
            [task.kv, heads.kv + task.kv].map(|head| kv.from(task.run.first, column + head * dim));
        let blocks = task.keys.start / KEYS..task.keys.end.div_ceil(KEYS);
        let size = (task.len(), dim);

        let first = task.queries.start.max(task.keys.start);
        let positions = task.queries.end - first;
        let [mut queries, mut grads] = [(); 2].map(|()| Rows::new(exec, positions * group, dim, pairs));
        let (row, head) = (task.row(first), task.kv * group);
        queries.pack(exec, 0, job.queries.from(row, head * dim), (positions, group));
        grads.pack(exec, 0, dy.from(row, head * dim), (positions, group));

        let step = query_step(heads);
        let most = step * group;
        let panel = right_panel(most, pairs);
        let upright = task.for_keys.then(|| {
            [&queries, &grads].map(|rows| {
                let range = first / step..task.queries.end.div_ceil(step);
                let mut out = Blocks::new(exec, range.clone(), panel * dim.div_ceil(NR));
                for block in range {
                    let here = first.max(block * step)..task.queries.end.min((block + 1) * step);
                    let (at, n) = ((here.start - first) * group, here.len() * group);
                    rows.pack_upright(exec, at, n, (out.get_mut(block), panel));
                }
                out
            })
        });
        Self {
            pairs,
            dim,
            group,
            step,
            first,
            keys: Blocks::turned(exec, keys, size, blocks.clone(), pairs),
            values: Blocks::turned(exec, values, size, blocks.clone(), pairs),
            keys_upright: task.for_queries.then(|| Blocks::upright(exec, keys, size, blocks, pairs)),
            queries,
            grads,
            upright,
            weights: exec.memory.stale(most * NARROW),
            score_grads: exec.memory.stale(most * NARROW),
            turned: pairs.then(|| [(); 2].map(|()| exec.memory.stale(most.div_ceil(2) * NARROW))),
        }
    }

    /// Probabilities and gradients of the scores.
    fn weights<E, K>(
        &mut self,
        exec: &Exec,
        job: &Gradient<'_, E, K>,
        delta: &[f32],
        task: &Task<'_>,
        at: &At,
    ) {
        let (group, diagonal) = (self.group, at.diagonal(self.group));
        let rows = ((at.position - self.first) * group, at.positions * group);
        let block = at.start / KEYS;
        scores(exec, &self.queries, rows, self.keys.get(block), diagonal, &mut self.weights);
        scores(exec, &self.grads, rows, self.values.get(block), diagonal, &mut self.score_grads);
        let (row, head) = (task.row(at.position), task.kv * group);
        let gather = |x: &[f32]| -> Vec<f32> {
            let rows = x.chunks_exact(job.heads.query).skip(row).take(at.positions);
            rows.flat_map(|x| &x[head..head + group]).copied().collect()
        };
        exec.run(ScoreGrad {
            scores: &mut self.weights,
            grads: &mut self.score_grads,
            turned: self.turned.as_mut().map(|[p, d]| [&mut p[..], &mut d[..]]),
            group,
            visible: at.visible(),
            scale: 1.0 / (self.dim as f32).sqrt(),
            lse: &gather(job.lse),
            delta: &gather(delta),
        });
    }

    /// `dK += dSᵀ Q`, `dV += Pᵀ dY`; on the diagonal a key is met by the rows from its own position on.
    fn add_to_keys(&self, exec: &Exec, at: &At, (dk, dv): (&mut [f32], &mut [f32])) {
        let Some([queries, grads]) = &self.upright else { return };
        let (p, ds) = match &self.turned {
            Some([p, ds]) => (p, ds),
            None => (&self.weights, &self.score_grads),
        };
        let (width, step) = (padded(self.dim), step(self.pairs));
        let steps = (at.positions * self.group).div_ceil(step);
        let strip = if at.diagonal(self.group).is_some() { MR } else { KEYS };
        let block = at.position / self.step;
        for (weights, right, out) in [(ds, queries, dk), (p, grads, dv)] {
            let right = right.get(block);
            let panel = right.len() / self.dim.div_ceil(NR);
            for key in (0..at.count).step_by(strip) {
                let m = strip.min(at.count - key);
                let skipped = (key + 1).saturating_sub(at.visible()) * self.group / step;
                if strip == KEYS || skipped < steps {
                    let skipped = if strip == KEYS { 0 } else { skipped };
                    exec.run(Product {
                        m,
                        n: width,
                        k: steps - skipped,
                        pairs: self.pairs,
                        a: (&weights[skipped * NARROW + key..], Layout::Cols),
                        b: &right[skipped * NR..],
                        panel,
                        c: Tile::new(&mut out[key * width..], m, width, width),
                        start: Start::C,
                    });
                }
            }
        }
    }

    /// `dQ += dS K`.
    fn add_to_queries(&self, exec: &Exec, at: &At, dq: &mut [f32]) {
        let Some(keys) = &self.keys_upright else { return };
        let (rows, width) = (at.positions * self.group, padded(self.dim));
        let (weights, keys) = ((&self.score_grads[..], self.pairs), keys.get(at.start / KEYS));
        let diagonal = at.diagonal(self.group);
        add_weighted(exec, weights, (rows, at.count), keys, diagonal, (dq, width));
    }
}
