//! Gradients on their way from the backward sweep to the rank that needs them.

use std::collections::BTreeMap;

use llamero_autograd::{GradSink, Gradients, Param};
use llamero_comm::{Comm, CommError, Op, Pending};
use llamero_tensor::{Backend, DType, Shape, Tensor};

use crate::Ranks;
use crate::optimizer::owned_rows;

/// Adds up gradients over micro-batches. In the sweep of the last one each gradient is sent off as soon as it is final,
/// so that messages travel while the sweep goes on; every data-parallel rank gets its rows of the sum.
pub(crate) struct GradientShares<'b, 'r> {
    backend: &'b dyn Backend,
    ranks: &'r Ranks,
    tied: bool,
    gradients: Gradients<'b>,
    last: bool,
    /// Gradients under way: parameter, its shape, and what to wait for.
    sent: Vec<(usize, Shape, Pending)>,
    failure: Option<CommError>,
}

impl<'b, 'r> GradientShares<'b, 'r> {
    pub(crate) fn new(backend: &'b dyn Backend, ranks: &'r Ranks, tied: bool) -> Self {
        let gradients = Gradients::new(backend);
        Self { backend, ranks, tied, gradients, last: false, sent: Vec::new(), failure: None }
    }

    /// Whether the sweep that comes is the last that adds to its gradients.
    pub(crate) fn last_micro_batch(&mut self, last: bool) {
        self.last = last;
    }

    /// The first failure of a message, if there was one.
    pub(crate) fn check(&mut self) -> Result<(), CommError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    fn send(&mut self, id: usize) {
        let Some(gradient) = self.gradients.take(id) else { return };
        let (dp, shape) = (&self.ranks.dp, gradient.shape());
        let rows = |rank| owned_rows(shape.rows, id, (rank, dp.size()));
        let parts = (0..dp.size()).map(|rank| self.backend.download_raw(&gradient, rows(rank))).collect();
        match dp.start_reduce_scatter(parts) {
            Ok(pending) => self.sent.push((id, shape, pending)),
            Err(error) => {
                self.failure.get_or_insert(error);
            }
        }
    }

    /// This rank's rows of the sum over all ranks, by parameter. `whole` says which parameters every tensor-parallel rank
    /// holds: each has the gradient of its rows of the activations only.
    pub(crate) fn finish(
        mut self,
        whole: impl Fn(usize) -> bool,
    ) -> Result<BTreeMap<usize, Tensor>, CommError> {
        self.check()?;
        let (backend, ranks) = (self.backend, self.ranks);
        let mut by_id = BTreeMap::new();
        if ranks.dp.size() == 1 {
            by_id = self.gradients.into_by_id();
        } else {
            // What was held back, or was in no sweep of the last micro-batch.
            let rest: Vec<usize> = self.gradients.iter().map(|(id, _)| id).collect();
            rest.into_iter().for_each(|id| self.send(id));
            self.check()?;
            for (id, shape, pending) in self.sent {
                let (rank, size) = (ranks.dp.rank(), ranks.dp.size());
                let bodies = ranks.dp.finish(pending)?;
                let own = Shape::new(owned_rows(shape.rows, id, (rank, size)).len(), shape.cols);
                for (from, body) in bodies.iter().enumerate() {
                    let (found, expected) = (body.len() / 4, own.elements());
                    if body.len() != expected * 4 {
                        let op = Op::ReduceScatter.name();
                        return Err(CommError::Length { op, rank, from, found, expected });
                    }
                }
                let raw: Vec<&[u8]> = bodies.iter().map(|body| &**body).collect();
                by_id.insert(id, backend.sum_raw(&raw, own, DType::F32));
            }
        }
        let all_reduce = |comm: &dyn Comm, ids: &[usize], by_id: &mut BTreeMap<usize, Tensor>| {
            if comm.size() == 1 {
                return Ok(());
            }
            let mut flat: Vec<f32> =
                ids.iter().filter_map(|id| by_id.get(id)).flat_map(|g| backend.download(g)).collect();
            comm.all_reduce(&mut flat)?;
            let mut rest = &flat[..];
            for gradient in
                ids.iter().filter_map(|id| by_id.get(id).map(|g| (*id, g.shape()))).collect::<Vec<_>>()
            {
                let (id, shape) = gradient;
                let (own, tail) = rest.split_at(shape.elements());
                by_id.insert(id, backend.upload(own, shape, DType::F32));
                rest = tail;
            }
            Ok::<_, CommError>(())
        };
        let replicated: Vec<usize> = by_id.keys().copied().filter(|&id| whole(id)).collect();
        all_reduce(&*ranks.tp, &replicated, &mut by_id)?;
        if self.tied {
            all_reduce(&*ranks.ends, &[0], &mut by_id)?;
        }
        Ok(by_id)
    }
}

impl GradSink for GradientShares<'_, '_> {
    fn buffer(&mut self, param: &Param) -> &mut Tensor {
        self.gradients.buffer(param)
    }

    fn ready(&mut self, param: &Param) {
        // A tied table may get more from another chunk of this rank.
        let held_back = self.tied && param.id == 0;
        if self.last && self.ranks.dp.size() > 1 && !held_back {
            self.send(param.id);
        }
    }
}
