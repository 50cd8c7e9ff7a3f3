//! The forward pass, of whole documents and of rows whose past is in a cache.

use std::ops::Range;

use llamero_tensor::Heads;

use super::kernels::{Finish, OnlineSoftmax};
use super::{Blocks, KEYS, Page, Rows, add_weighted, group_size, padded, query_step, scores};
use crate::exec::{Exec, Tile};
use crate::gemm::{Mat, NARROW};
use crate::math::Element;

/// Rows of one document that are queries, and where all its keys and values are.
pub(crate) struct Document<'a> {
    /// First packed row of the queries.
    pub(crate) first_row: usize,
    /// Number of query rows.
    pub(crate) rows: usize,
    /// Position of the first query row.
    pub(crate) past: usize,
    pub(crate) source: Source<'a>,
}

/// Where the keys and values of a document are.
pub(crate) enum Source<'a> {
    Rows {
        /// Element `(position, g · D + d)`.
        keys: Mat<'a>,
        /// Likewise.
        values: Mat<'a>,
    },
    /// A layer of pages from position 0 on.
    Pages { pages: Vec<&'a Page>, layer: usize },
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

impl<E: Element> Job<'_, E> {
    /// Whether weights and operands stay pairs of bf16.
    fn pairs(&self, exec: &Exec) -> bool {
        exec.pairs() && self.queries.is_bf16()
    }
}

/// Keys and values of a document, or of some of its blocks, for one head.
pub(super) struct Packed {
    pub(super) keys: Blocks,
    pub(super) values: Blocks,
}

impl Packed {
    fn new(
        exec: &Exec,
        document: &Document<'_>,
        (kv, dim): (usize, usize),
        blocks: Range<usize>,
        pairs: bool,
    ) -> Self {
        let size = (document.past + document.rows, dim);
        let (keys, values) = match &document.source {
            Source::Rows { keys, values } => (keys.from(0, kv * dim), values.from(0, kv * dim)),
            Source::Pages { pages, layer } => {
                let count = KEYS.min(size.0 - blocks.start * KEYS);
                return pages[blocks.start].pack(exec, *layer, kv, count);
            }
        };
        Self {
            keys: Blocks::turned(exec, keys, size, blocks.clone(), pairs),
            values: Blocks::upright(exec, values, size, blocks, pairs),
        }
    }
}

/// Attention of every query row.
pub(crate) fn attend<E: Element>(exec: &Exec, job: &Job<'_, E>) {
    let (step, kv_heads, dim) = (query_step(job.heads), job.heads.kv, job.heads.dim);
    let mut blocks = Vec::new();
    for (document, d) in job.documents.iter().enumerate() {
        let mut row = 0;
        while row < d.rows {
            let position = d.past + row;
            let positions = (step - position % step).min(d.rows - row);
            let cost = positions * (position + positions).next_multiple_of(KEYS);
            blocks.extend((0..kv_heads).map(|kv| Block { document, kv, row, positions, cost }));
            row += positions;
        }
    }
    // Costly blocks first, so that the threads finish together.
    blocks.sort_by_key(|b| std::cmp::Reverse(b.cost));
    let pairs: usize = blocks.iter().map(|b| b.cost).sum();
    // A block of keys costs something however few rows look at it.
    let ns = (pairs * group_size(job.heads) * dim) as f64 * 4.0 / 200.0 + (pairs / KEYS) as f64 * 600.0;

    // Packed once where several blocks of queries need them; a decoded row packs the blocks that it meets one by one, and
    // so needs no copy of its whole past.
    let mut packed: Vec<Option<Packed>> = Vec::new();
    packed.resize_with(job.documents.len() * kv_heads, || None);
    exec.chunks(&mut packed, 1, ns, |i, slot| {
        let document = &job.documents[i / kv_heads];
        if document.rows > step && matches!(document.source, Source::Rows { .. }) {
            let all = 0..(document.past + document.rows).div_ceil(KEYS);
            slot[0] = Some(Packed::new(exec, document, (i % kv_heads, dim), all, job.pairs(exec)));
        }
    });
    exec.tasks(blocks.len(), ns, |i| {
        let block = &blocks[i];
        attend_block(exec, job, block, packed[block.document * kv_heads + block.kv].as_ref());
    });
}

fn attend_block<E: Element>(exec: &Exec, job: &Job<'_, E>, block: &Block, packed: Option<&Packed>) {
    let (dim, group, pairs) = (job.heads.dim, group_size(job.heads), job.pairs(exec));
    let document = &job.documents[block.document];
    let width = padded(dim);
    let rows = block.positions * group;
    let first = document.past + block.row;
    let packed_row = document.first_row + block.row;

    let mut queries = Rows::new(exec, rows, dim, pairs);
    let from = job.queries.from(packed_row, block.kv * group * dim);
    queries.pack(exec, 0, from, (block.positions, group));
    let mut weights = exec.memory.stale::<f32>(rows * NARROW);
    let mut acc = exec.memory.zeros::<f32>(rows * width);
    let mut max = vec![f32::NEG_INFINITY; rows];
    let mut sum = vec![0.0f32; rows];

    let last = (first + block.positions - 1) / KEYS;
    for key_block in 0..=last {
        let start = key_block * KEYS;
        let count = KEYS.min(first + block.positions - start);
        // Keys that the first position sees; each later position sees one more.
        let visible = (first - start.min(first)) + 1;
        let diagonal = (key_block == last).then_some((group, visible));
        let ready = match (&document.source, packed) {
            (_, Some(packed)) => Some((packed.keys.get(key_block), packed.values.get(key_block))),
            (Source::Pages { pages, layer }, None) => pages[key_block].panels(*layer, block.kv),
            (Source::Rows { .. }, None) => None,
        };
        let own = match ready {
            Some(_) => None,
            None => Some(Packed::new(exec, document, (block.kv, dim), key_block..key_block + 1, pairs)),
        };
        let own = own.as_ref().map(|own| (own.keys.only(), own.values.only()));
        let Some((keys, values)) = ready.or(own) else { unreachable!("one of the two is there") };
        scores(exec, &queries, (0, rows), keys, diagonal, &mut weights);
        exec.run(OnlineSoftmax {
            scores: &mut weights,
            pairs,
            group,
            visible,
            scale: 1.0 / (dim as f32).sqrt(),
            max: &mut max,
            sum: &mut sum,
            acc: &mut acc,
            width,
        });
        add_weighted(exec, (&weights, pairs), (rows, count), values, diagonal, (&mut acc, width));
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
