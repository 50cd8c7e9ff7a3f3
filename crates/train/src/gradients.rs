//! Gradients on their way from the backward sweep to the rank that needs them.

use std::collections::{BTreeMap, VecDeque};

use llamero_autograd::{GradSink, Gradients, Param};
use llamero_comm::{Comm, CommError, Op, Pending};
use llamero_tensor::{Backend, DType, Shape, Tensor};

use crate::optimizer::owned_rows;
use crate::{Ranks, Sharding};

/// With sharded gradients, so many messages may be under way while the sweep goes on; before the next is sent, the oldest is
/// waited for and added to this rank's rows. So no more gradients than these are whole at a time.
const UNDER_WAY: usize = 2;

/// Adds up gradients over micro-batches and ranks; every rank that divides them gets its rows of the sum. Each parameter's
/// gradient is a message of its own, sent off as soon as a sweep has finished it, so that it travels while the sweep goes
/// on: the last micro-batch's sweep, or with sharded gradients every one.
pub(crate) struct GradientShares<'b, 'r> {
    backend: &'b dyn Backend,
    ranks: &'r Ranks,
    sharding: Sharding,
    tied: bool,
    gradients: Gradients<'b>,
    last: bool,
    /// Gradients under way, oldest first: parameter, its shape, and what to wait for.
    sent: VecDeque<(usize, Shape, Pending)>,
    /// This rank's rows of the sum over ranks of what has arrived.
    own: BTreeMap<usize, Tensor>,
    failure: Option<CommError>,
}

impl<'b, 'r> GradientShares<'b, 'r> {
    pub(crate) fn new(backend: &'b dyn Backend, ranks: &'r Ranks, sharding: Sharding, tied: bool) -> Self {
        let (gradients, sent, own) = (Gradients::new(backend), VecDeque::new(), BTreeMap::new());
        Self { backend, ranks, sharding, tied, gradients, last: false, sent, own, failure: None }
    }

    /// Whether the sweep that comes is the last that adds to its gradients.
    pub(crate) fn last_micro_batch(&mut self, last: bool) {
        self.last = last;
    }

    /// The first failure of a message, if there was one.
    pub(crate) fn check(&mut self) -> Result<(), CommError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    fn send(&mut self, id: usize) -> Result<(), CommError> {
        let Some(gradient) = self.gradients.take(id) else { return Ok(()) };
        let (shards, shape) = (self.ranks.shards(), gradient.shape());
        let rows = |rank| owned_rows(shape.rows, id, (rank, shards.size()));
        let parts = (0..shards.size()).map(|rank| self.backend.download_raw(&gradient, rows(rank))).collect();
        self.sent.push_back((id, shape, shards.start_reduce_scatter(parts)?));
        Ok(())
    }

    /// Waits for the oldest messages until no more than `left` are under way.
    fn receive(&mut self, left: usize) -> Result<(), CommError> {
        let shards = self.ranks.shards();
        let (rank, size) = (shards.rank(), shards.size());
        while self.sent.len() > left {
            let Some((id, shape, pending)) = self.sent.pop_front() else { return Ok(()) };
            let bodies = shards.finish(pending)?;
            let own = Shape::new(owned_rows(shape.rows, id, (rank, size)).len(), shape.cols);
            for (from, body) in bodies.iter().enumerate() {
                let (found, expected) = (body.len() / 4, own.elements());
                if body.len() != expected * 4 {
                    let op = Op::ReduceScatter.name();
                    return Err(CommError::Length { op, rank, from, found, expected });
                }
            }
            let raw: Vec<&[u8]> = bodies.iter().map(|body| &**body).collect();
            let sum = self.backend.sum_raw(&raw, own, DType::F32);
            match self.own.get_mut(&id) {
                Some(earlier) => self.backend.add_assign(earlier, &sum),
                None => drop(self.own.insert(id, sum)),
            }
        }
        Ok(())
    }

    /// This rank's rows of the sum over all ranks, by parameter. `whole` says which parameters every tensor-parallel rank
    /// holds: each has the gradient of its rows of the activations only.
    pub(crate) fn finish(
        mut self,
        whole: impl Fn(usize) -> bool,
    ) -> Result<BTreeMap<usize, Tensor>, CommError> {
        self.check()?;
        let ranks = self.ranks;
        let mut by_id = if ranks.shards().size() == 1 {
            self.gradients.into_by_id()
        } else {
            // What was held back, or was in no sweep of the last micro-batch.
            let rest: Vec<usize> = self.gradients.iter().map(|(id, _)| id).collect();
            rest.into_iter().try_for_each(|id| self.send(id))?;
            self.receive(0)?;
            self.own
        };
        let replicated: Vec<usize> = by_id.keys().copied().filter(|&id| whole(id)).collect();
        all_reduce(self.backend, &*ranks.tp, &replicated, &mut by_id)?;
        if self.tied {
            all_reduce(self.backend, &*ranks.ends, &[0], &mut by_id)?;
        }
        Ok(by_id)
    }
}

/// Replaces some gradients by their sums over ranks, in one exchange.
fn all_reduce(
    backend: &dyn Backend,
    comm: &dyn Comm,
    ids: &[usize],
    by_id: &mut BTreeMap<usize, Tensor>,
) -> Result<(), CommError> {
    if comm.size() == 1 {
        return Ok(());
    }
    let shapes: Vec<(usize, Shape)> =
        ids.iter().filter_map(|id| Some((*id, by_id.get(id)?.shape()))).collect();
    let mut flat: Vec<f32> = shapes.iter().flat_map(|(id, _)| backend.download(&by_id[id])).collect();
    comm.all_reduce(&mut flat)?;
    let mut rest = &flat[..];
    for (id, shape) in shapes {
        let (own, tail) = rest.split_at(shape.elements());
        by_id.insert(id, backend.upload(own, shape, DType::F32));
        rest = tail;
    }
    Ok(())
}

impl GradSink for GradientShares<'_, '_> {
    fn buffer(&mut self, param: &Param) -> &mut Tensor {
        self.gradients.buffer(param)
    }

    fn ready(&mut self, param: &Param) {
        if self.ranks.shards().size() == 1 || self.failure.is_some() {
            return;
        }
        let sent = if self.sharding >= Sharding::Gradients {
            self.receive(UNDER_WAY - 1).and_then(|()| self.send(param.id))
        } else if self.last && !(self.tied && param.id == 0) {
            // A tied table may get more from another chunk of this rank.
            self.send(param.id)
        } else {
            Ok(())
        };
        if let Err(error) = sent {
            self.failure.get_or_insert(error);
        }
    }
}
