//! The forward pass, of whole documents and of rows whose past is in a cache.

use llamero_tensor::Heads;

use super::kernels::{Diagonal, Finish, OnlineSoftmax};
use super::{KEYS, Left, group_size, pack_keys, pack_right, query_step};
use crate::exec::{Exec, Tile};
use crate::gemm::kernel::{Layout, NARROW};
use crate::gemm::{Mat, NR, Product, onto};
use crate::math::Element;

/// Rows of one document that are queries, and where all its keys and values are.
pub(crate) struct Document<'a> {
    /// First packed row of the queries.
    pub(crate) first_row: usize,
    /// Number of query rows.
    pub(crate) rows: usize,
    /// Position of the first query row.
    pub(crate) past: usize,
    /// Element `(position, g · D + d)`.
    pub(crate) keys: Mat<'a>,
    /// Likewise.
    pub(crate) values: Mat<'a>,
}

/// A pass over some documents.
pub(crate) struct Job<'a, E> {
    pub(crate) heads: Heads,
    /// Queries: element `(packed row, h · D + d)`.
    pub(crate) queries: Mat<'a>,
    pub(crate) documents: Vec<Document<'a>>,
    /// `[T, H · D]`.
    pub(crate) out: Tile<'a, E>,
    /// `[T, H]`.
    pub(crate) lse: Tile<'a, f32>,
}

/// A block of queries of one group of heads.
struct Block {
    document: usize,
    kv: usize,
    /// Row inside the document's query rows.
    row: usize,
    positions: usize,
    cost: usize,
}

/// Attention of every query row.
pub(crate) fn attend<E: Element>(exec: &Exec, job: &Job<'_, E>) {
    let step = query_step(job.heads);
    let mut blocks = Vec::new();
    for (document, d) in job.documents.iter().enumerate() {
        let mut row = 0;
        while row < d.rows {
            let position = d.past + row;
            let positions = (step - position % step).min(d.rows - row);
            let cost = positions * (position + positions).next_multiple_of(KEYS);
            blocks.extend((0..job.heads.kv).map(|kv| Block { document, kv, row, positions, cost }));
            row += positions;
        }
    }
    // Costly blocks first, so that the threads finish together.
    blocks.sort_by_key(|b| std::cmp::Reverse(b.cost));
    let pairs: usize = blocks.iter().map(|b| b.cost).sum();
    let ns = (pairs * group_size(job.heads) * job.heads.dim) as f64 * 4.0 / 50.0;
    exec.tasks(blocks.len(), ns, |i| attend_block(exec, job, &blocks[i]));
}

fn attend_block<E: Element>(exec: &Exec, job: &Job<'_, E>, block: &Block) {
    let (dim, group) = (job.heads.dim, group_size(job.heads));
    let document = &job.documents[block.document];
    let width = dim.next_multiple_of(NR);
    let rows = block.positions * group;
    let first = document.past + block.row;
    let packed_row = document.first_row + block.row;

    let mut queries = Left::new(exec, rows, dim);
    queries.pack(exec, job.queries.from(packed_row, block.kv * group * dim), block.positions, group);
    let mut keys = exec.memory.stale::<f32>(KEYS * dim);
    let mut values = exec.memory.stale::<f32>(KEYS * width);
    let mut scores = exec.memory.stale::<f32>(rows * NARROW);
    let mut acc = exec.memory.zeros::<f32>(rows * width);
    let mut max = vec![f32::NEG_INFINITY; rows];
    let mut sum = vec![0.0f32; rows];

    let last = (first + block.positions - 1) / KEYS;
    for key_block in 0..=last {
        let start = key_block * KEYS;
        let count = KEYS.min(first + block.positions - start);
        pack_keys(exec, document.keys.from(start, block.kv * dim), count, dim, &mut keys);
        pack_right(exec, document.values.from(start, block.kv * dim), count, dim, &mut values);
        queries.times(exec, &keys, KEYS, &mut scores);
        // Keys that the first position sees; each later position sees one more.
        let visible = (first - start.min(first)) + 1;
        exec.run(OnlineSoftmax {
            scores: &mut scores,
            group,
            visible,
            scale: 1.0 / (dim as f32).sqrt(),
            max: &mut max,
            sum: &mut sum,
            acc: &mut acc,
            width,
        });
        if key_block < last {
            let (c, start) = onto(Tile::new(&mut acc, rows, width, width));
            exec.run(Product {
                m: rows,
                n: width,
                k: count,
                a: (&scores, Layout::Narrow),
                b: &values,
                panel: count * NR,
                pairs: false,
                c,
                start,
            });
        } else {
            diagonal(exec, (rows, group, visible, count), &scores, &values, &mut acc);
        }
    }
    // SAFETY: blocks have different rows or heads.
    let (out, lse) = unsafe {
        (
            job.out.sub(packed_row, block.kv * group * dim, block.positions, group * dim),
            job.lse.sub(packed_row, block.kv * group, block.positions, group),
        )
    };
    exec.run(Finish { acc: &acc, width, dim, group, max: &max, sum: &sum, out, lse });
}

/// The block that holds the rows' own positions: rows of a few positions share the keys that all of them see, then
/// each goes on alone.
fn diagonal(
    exec: &Exec,
    (rows, group, visible, count): (usize, usize, usize, usize),
    scores: &[f32],
    values: &[f32],
    acc: &mut [f32],
) {
    let width = acc.len() / rows;
    let together = (8 / group).max(1) * group;
    for row in (0..rows).step_by(together) {
        let m = together.min(rows - row);
        let shared = visible + row / group;
        let (scores, acc) = (&scores[row * NARROW..], &mut acc[row * width..][..m * width]);
        let (c, start) = onto(Tile::new(acc, m, width, width));
        exec.run(Product {
            m,
            n: width,
            k: shared,
            a: (scores, Layout::Narrow),
            b: values,
            panel: count * NR,
            pairs: false,
            c,
            start,
        });
        exec.run(Diagonal { scores, values, panel: count * NR, group, shared, acc, width });
    }
}
