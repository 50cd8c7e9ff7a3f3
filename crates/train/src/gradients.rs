//! Gradients on their way from the backward sweep to the rank that needs them.

use std::collections::BTreeMap;

use llamero_autograd::{GradSink, Gradients, Param};
use llamero_comm::{Comm, CommError, Op, Pending};
use llamero_tensor::{Backend, DType, Shape, Tensor};

use crate::Ranks;
use crate::faults::flipped;
use crate::guard::GradientSeals;
use crate::optimizer::owned_rows;

/// Adds up gradients over micro-batches. In the sweep of the last one each gradient is sent off as soon as it is final,
/// so that messages travel while the sweep goes on; every data-parallel rank gets its rows of the sum.
pub(crate) struct GradientShares<'b, 'r> {
    backend: &'b dyn Backend,
    ranks: &'r Ranks,
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
    /// Gradients under way: parameter, its shape, and what to wait for.
    sent: Vec<(usize, Shape, Pending)>,
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
    pub(crate) fn new(backend: &'b dyn Backend, ranks: &'r Ranks, tied: bool) -> Self {
        let gradients = Gradients::new(backend);
        Self {
            backend,
            ranks,
            tied,
            gradients,
            last: false,
            seals: None,
            first: None,
            is_first: false,
            only_sums: false,
            sent: Vec::new(),
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
        let waiting: Vec<usize> = self.gradients.iter().map(|(id, _)| id).collect();
        let Some(&id) = waiting.get((random >> 40) as usize % waiting.len().max(1)) else { return false };
        if let Some(gradient) = self.gradients.take(id) {
            self.gradients.put(id, flipped(self.backend, &gradient, random & 0xff_ffff_ffff));
        }
        true
    }

    /// The first failure of a message, if there was one.
    pub(crate) fn check(&mut self) -> Result<(), CommError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    fn send(&mut self, id: usize) {
        let Some(gradient) = self.gradients.take(id) else { return };
        if let Some(seals) = &mut self.seals {
            seals.open(id, || self.backend.checksum(&gradient));
        }
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
    pub(crate) fn finish(mut self, whole: impl Fn(usize) -> bool) -> Result<Summed, CommError> {
        self.check()?;
        let (backend, ranks) = (self.backend, self.ranks);
        let mut by_id = BTreeMap::new();
        if ranks.dp.size() == 1 {
            by_id = self.gradients.into_by_id();
            if let Some(seals) = &mut self.seals {
                by_id.iter().for_each(|(id, gradient)| seals.open(*id, || backend.checksum(gradient)));
            }
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
        let changed = self.seals.map(|seals| seals.changed);
        let sum = |(id, gradient): (&usize, &Tensor)| (*id, backend.checksum(gradient));
        let sums = changed.is_some().then(|| by_id.iter().map(sum).collect());
        Ok(Summed { by_id, changed: changed.unwrap_or_default(), sums })
    }
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
        let sent_now = self.last && self.ranks.dp.size() > 1 && !held_back;
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
        if sent_now {
            self.send(param.id);
        }
    }
}
