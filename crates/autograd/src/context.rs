//! Attention of a batch whose rows are divided among ranks (context parallelism, "The Llama 3 Herd of Models" §3.3.2).
//!
//! Every rank has the queries of some rows. Keys and values of all rows are gathered before attention, and each rank's part
//! of their gradients is summed afterwards: with grouped heads keys and values are narrow, and a mask of documents needs
//! nothing special. Everything else in a block goes row by row and needs no other rank.

use std::ops::Range;
use std::sync::Arc;

use llamero_comm::{Body, Comm, CommError, Elements, Op};
use llamero_tensor::{Attention, Backend, DType, GatheredSegment, Heads, Shape, Tensor};

use crate::collectives::body;
use crate::{Tape, Var};

/// Which rows of a batch each rank has.
#[derive(Clone)]
pub struct ContextPart<'m> {
    /// The ranks that have all rows together.
    pub ranks: &'m dyn Comm,
    /// By rank, rows of the whole batch, in the order in which the rank has them. Together they are all rows, each once.
    pub rows: Arc<[Vec<Range<usize>>]>,
    /// The runs of documents in this rank's rows, and where in the whole batch their documents begin.
    pub segments: Arc<[GatheredSegment]>,
}

impl ContextPart<'_> {
    /// Rows of the batch.
    fn total(&self) -> usize {
        self.rows.iter().flatten().map(Range::len).sum()
    }

    /// Rows of a rank.
    fn count(&self, rank: usize) -> usize {
        self.rows[rank].iter().map(Range::len).sum()
    }

    /// Keys and values of all ranks, `[S, 2·G·D]`, in the order of the batch.
    fn gather(&self, backend: &dyn Backend, qkv: &Tensor, heads: Heads) -> Result<Tensor, CommError> {
        let width = 2 * heads.kv_width();
        let mut own = backend.zeros(Shape::new(qkv.rows(), width), qkv.dtype());
        backend.copy_rows(&mut own, 0, qkv, 0..qkv.rows(), heads.query_width()..heads.width());
        let bodies = self.ranks.all_gather(body(backend, &own, 0..own.rows()))?;
        let element = qkv.dtype().bytes();
        let mut runs = Vec::new();
        for (from, body) in bodies.iter().enumerate() {
            self.expect(Op::AllGather, from, (body.len(), self.count(from) * width), element)?;
            let mut at = 0;
            for run in &self.rows[from] {
                let end = at + run.len() * width * element;
                runs.push((run.start, &body[at..end]));
                at = end;
            }
        }
        runs.sort_by_key(|(start, _)| *start);
        let raw: Vec<&[u8]> = runs.into_iter().map(|(_, raw)| raw).collect();
        Ok(backend.upload_raw(&raw, Shape::new(self.total(), width), qkv.dtype()))
    }

    /// This rank's rows of the sum over ranks of f32s, in rank order.
    fn sum(&self, backend: &dyn Backend, x: &Tensor) -> Result<Tensor, CommError> {
        let part = |rows: &Vec<Range<usize>>| {
            let runs: Vec<_> = rows.iter().map(|run| backend.download_raw(x, run.clone())).collect();
            Body::new(runs.concat().into(), Elements::F32)
        };
        let pending = self.ranks.start_reduce_scatter(self.rows.iter().map(part).collect())?;
        let bodies = self.ranks.finish(pending)?;
        let shape = Shape::new(self.count(self.ranks.rank()), x.cols());
        for (from, body) in bodies.iter().enumerate() {
            self.expect(Op::ReduceScatter, from, (body.len(), shape.elements()), DType::F32.bytes())?;
        }
        let raw: Vec<&[u8]> = bodies.iter().map(|body| &**body).collect();
        Ok(backend.sum_raw(&raw, shape, DType::F32))
    }

    fn expect(
        &self,
        op: Op,
        from: usize,
        (bytes, expected): (usize, usize),
        element: usize,
    ) -> Result<(), CommError> {
        if bytes == expected * element {
            return Ok(());
        }
        let (op, rank, found) = (op.name(), self.ranks.rank(), bytes / element);
        Err(CommError::Length { op, rank, from, found, expected })
    }
}

impl<'m> Tape<'m> {
    /// From here on attention is that of some rows of a batch over the keys and values of all of them.
    pub fn divide_context(&mut self, part: ContextPart<'m>) {
        self.context = Some(part);
    }

    /// [`Tape::attention`] of this rank's rows.
    pub(crate) fn attention_over_ranks(&mut self, qkv: Var, heads: Heads, part: ContextPart<'m>) -> Var {
        let backend = self.backend;
        let gathered = self.check().and_then(|()| part.gather(backend, qkv.value(), heads));
        let (result, kv) = match gathered {
            Ok(kv) => (backend.attention_gathered(qkv.value(), &kv, heads, &part.segments), Some(kv)),
            Err(error) => {
                // As after any collective that failed: the values mean nothing, and the sweep is never made.
                self.fail(error);
                let zeros = |cols, dtype| backend.zeros(Shape::new(qkv.value().rows(), cols), dtype);
                let out = zeros(heads.query_width(), qkv.value().dtype());
                (Attention { out, lse: zeros(heads.query, DType::F32) }, None)
            }
        };
        // Gathered once more rather than kept, where activations are not: the own rows are n times smaller.
        let kept = kv.filter(|_| !self.recomputes_cheap());
        let (y, saved) = (result.out.clone(), self.saved(&qkv));
        self.op(y, [qkv.id()], move |sweep, dy| {
            let (backend, qkv) = (sweep.backend, saved.into_value()?);
            let kv = kept.map_or_else(|| part.gather(backend, &qkv, heads), Ok)?;
            let input = (&qkv, &kv);
            let (d_queries, d_kv) =
                backend.attention_gathered_backward(&dy, input, &result, heads, &part.segments);
            drop((qkv, kv, dy, result));
            let d_kv = part.sum(backend, &d_kv)?;
            Ok(vec![backend.concat_columns(&d_queries, &d_kv)])
        })
    }
}
