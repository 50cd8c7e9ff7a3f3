//! Gradients on their way from the backward sweep to the rank that needs them.

use std::collections::{BTreeMap, VecDeque};

use llamero_autograd::{GradSink, Gradients, Param, body};
use llamero_comm::{Comm, CommError, Op, Pending};
use llamero_tensor::{Backend, DType, Shape, Tensor};

use crate::faults::{damage, flipped};
use crate::guard::GradientSeals;
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
    /// Sums of gradients that wait, where the state is guarded.
    seals: Option<GradientSeals>,
    /// Sums of the gradients of the first micro-batch, by parameter, where it is repeated.
    first: Option<BTreeMap<usize, u64>>,
    /// Whether the micro-batch is the first.
    is_first: bool,
    /// Only the sums are wanted.
    only_sums: bool,
    /// Gradients under way, oldest first: parameter, its shape, and what to wait for.
    sent: VecDeque<(usize, Shape, Pending)>,
    /// This rank's rows of the sum over ranks of what has arrived.
    own: BTreeMap<usize, Tensor>,
    /// Sums of these, where the state is guarded.
    own_seals: GradientSeals,
    failure: Option<CommError>,
}

/// Sums of gradients over all ranks.
pub(crate) struct Summed {
    /// This rank's rows, by parameter.
    pub(crate) by_id: BTreeMap<usize, Tensor>,
    /// Parameters whose gradient changed while it waited.
    pub(crate) changed: Vec<usize>,
    /// Checksums of `by_id`, where the state is guarded.
    pub(crate) sums: Option<BTreeMap<usize, u64>>,
}

impl<'b, 'r> GradientShares<'b, 'r> {
    pub(crate) fn new(backend: &'b dyn Backend, ranks: &'r Ranks, sharding: Sharding, tied: bool) -> Self {
        Self {
            backend,
            ranks,
            sharding,
            tied,
            gradients: Gradients::new(backend),
            last: false,
            seals: None,
            first: None,
            is_first: false,
            only_sums: false,
            sent: VecDeque::new(),
            own: BTreeMap::new(),
            own_seals: GradientSeals::default(),
            failure: None,
        }
    }

    /// Sums gradients while they wait (`seal`), and those of the first micro-batch to be compared (`first`).
    pub(crate) fn watched(self, seal: bool, first: bool) -> Self {
        Self { seals: seal.then(GradientSeals::default), first: first.then(BTreeMap::new), ..self }
    }

    /// For a repeat: gradients are summed and forgotten.
    pub(crate) fn only_sums(self) -> Self {
        Self { only_sums: true, first: Some(BTreeMap::new()), ..self }
    }

    /// Which of how many micro-batches the sweep that comes is about.
    pub(crate) fn micro_batch(&mut self, micro: usize, of: usize) {
        (self.is_first, self.last) = (micro == 0, micro + 1 == of);
    }

    /// Sums of the gradients of the first micro-batch.
    pub(crate) fn take_first(&mut self) -> BTreeMap<usize, u64> {
        self.first.take().unwrap_or_default()
    }

    /// Turns over a bit of a gradient that waits, if one does.
    pub(crate) fn damage(&mut self, random: u64) -> bool {
        let whole: Vec<usize> = self.gradients.iter().map(|(id, _)| id).collect();
        let (which, at) = ((random >> 40) as usize, random & 0xff_ffff_ffff);
        if !self.own.is_empty() {
            damage(self.backend, &mut self.own, random);
            return true;
        }
        let Some(&id) = whole.get(which % whole.len().max(1)) else { return false };
        if let Some(gradient) = self.gradients.take(id) {
            self.gradients.put(id, flipped(self.backend, &gradient, at));
        }
        true
    }

    /// The first failure of a message, if there was one.
    pub(crate) fn check(&mut self) -> Result<(), CommError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    fn send(&mut self, id: usize) -> Result<(), CommError> {
        let Some(gradient) = self.gradients.take(id) else { return Ok(()) };
        if let Some(seals) = &mut self.seals {
            seals.open(id, || self.backend.checksum(&gradient));
        }
        let (shards, shape) = (self.ranks.shards(), gradient.shape());
        let rows = |rank| owned_rows(shape.rows, id, (rank, shards.size()));
        let parts = (0..shards.size()).map(|rank| body(self.backend, &gradient, rows(rank))).collect();
        self.sent.push_back((id, shape, shards.start_reduce_scatter(parts)?));
        Ok(())
    }

    /// Adds a sum over ranks to this rank's rows.
    fn add_to_own(&mut self, id: usize, sum: Tensor) {
        let backend = self.backend;
        match self.own.get_mut(&id) {
            Some(earlier) => {
                if self.seals.is_some() {
                    self.own_seals.open(id, || backend.checksum(earlier));
                }
                backend.add_assign(earlier, &sum);
            }
            None => drop(self.own.insert(id, sum)),
        }
        if self.seals.is_some() {
            self.own_seals.put(id, backend.checksum(&self.own[&id]));
        }
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
            self.add_to_own(id, sum);
        }
        Ok(())
    }

    /// This rank's rows of the sum over all ranks, by parameter. `whole` says which parameters every tensor-parallel rank
    /// holds: each has the gradient of its rows of the activations only.
    pub(crate) fn finish(mut self, whole: impl Fn(usize) -> bool) -> Result<Summed, CommError> {
        self.check()?;
        let (backend, ranks) = (self.backend, self.ranks);
        let mut by_id = if ranks.shards().size() == 1 {
            let by_id = self.gradients.into_by_id();
            if let Some(seals) = &mut self.seals {
                by_id.iter().for_each(|(id, gradient)| seals.open(*id, || backend.checksum(gradient)));
            }
            by_id
        } else {
            // What was held back, or was in no sweep of the last micro-batch.
            let rest: Vec<usize> = self.gradients.iter().map(|(id, _)| id).collect();
            rest.into_iter().try_for_each(|id| self.send(id))?;
            self.receive(0)?;
            self.own.iter().for_each(|(id, sum)| self.own_seals.open(*id, || backend.checksum(sum)));
            self.own
        };
        let replicated: Vec<usize> = by_id.keys().copied().filter(|&id| whole(id)).collect();
        all_reduce(self.backend, &*ranks.tp, &replicated, &mut by_id)?;
        if self.tied {
            all_reduce(self.backend, &*ranks.ends, &[0], &mut by_id)?;
        }
        let own_changed = self.own_seals.changed;
        let changed = self.seals.map(|seals| [seals.changed, own_changed].concat());
        let sum = |(id, gradient): (&usize, &Tensor)| (*id, backend.checksum(gradient));
        let sums = changed.is_some().then(|| by_id.iter().map(sum).collect());
        Ok(Summed { by_id, changed: changed.unwrap_or_default(), sums })
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
        let buffer = self.gradients.buffer(param);
        if let Some(seals) = &mut self.seals {
            seals.open(param.id, || self.backend.checksum(buffer));
        }
        buffer
    }

    fn ready(&mut self, param: &Param) {
        // A tied table may get more from another chunk of this rank.
        let held_back = self.tied && param.id == 0;
        let now = self.sharding >= Sharding::Gradients || (self.last && !held_back);
        let sent_now = now && self.ranks.shards().size() > 1 && !self.only_sums;
        if self.only_sums || (self.seals.is_some() && !sent_now) || (self.is_first && self.first.is_some()) {
            let sum = self.gradients.get(param.id).map_or(0, |gradient| self.backend.checksum(gradient));
            if let Some(first) = self.first.as_mut().filter(|_| self.is_first && !held_back) {
                first.insert(param.id, sum);
            }
            if self.only_sums {
                drop(self.gradients.take(param.id));
                return;
            }
            if let Some(seals) = self.seals.as_mut().filter(|_| !sent_now) {
                seals.put(param.id, sum);
            }
        }
        if !sent_now || self.failure.is_some() {
            return;
        }
        let room = if self.sharding >= Sharding::Gradients { self.receive(UNDER_WAY - 1) } else { Ok(()) };
        if let Err(error) = room.and_then(|()| self.send(param.id)) {
            self.failure.get_or_insert(error);
        }
    }
}
