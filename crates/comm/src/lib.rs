//! Collectives between the ranks of one axis of the mesh.
//!
//! [`Comm`] is all that the layers above know of other ranks. A [`Wire`] carries messages between the ranks of a world:
//! [`Threads`] for ranks that are threads of this process, and MPI (feature `mpi`) for processes and machines. Everything
//! else is here and the same on every wire: a [`World`] makes [`Group`]s, and a group exchanges messages and adds them
//! up, rank 0's values first, then rank 1's, and so on, so a result has the same bits on every rank, in every run and on
//! every wire.
//!
//! No message is lost or mixed up silently: each says which collective of which group it belongs to and how long it is,
//! and, where asked for, a hash of its bytes. No wait is for ever: after a time-out the error names the rank and the
//! collective that is missing, and the [`FlightRecorder`] tells what came before.

mod body;
mod error;
mod group;
#[cfg(feature = "mpi")]
mod mpi;
mod recorder;
mod solo;
#[cfg(test)]
mod tests;
mod threads;
mod wire;

pub use body::{Body, Elements, as_f32s};
pub use error::CommError;
pub use group::{Group, World, WorldOptions};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use recorder::{FlightRecorder, Record};
pub use solo::Solo;
pub use threads::Threads;
pub use wire::{Header, Message, Wire, WireError};

use std::ops::Range;

/// What a message is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// [`Comm::all_reduce`].
    AllReduce,
    /// [`Comm::reduce_scatter`].
    ReduceScatter,
    /// [`Comm::all_gather`].
    AllGather,
    /// [`Comm::broadcast`].
    Broadcast,
    /// [`Comm::barrier`].
    Barrier,
    /// [`Comm::send`] and [`Comm::recv`].
    Send,
}

impl Op {
    /// Every op.
    pub const ALL: [Op; 6] =
        [Op::AllReduce, Op::ReduceScatter, Op::AllGather, Op::Broadcast, Op::Barrier, Op::Send];

    /// Its name, as in errors and in the flight recorder.
    pub fn name(self) -> &'static str {
        match self {
            Op::AllReduce => "all_reduce",
            Op::ReduceScatter => "reduce_scatter",
            Op::AllGather => "all_gather",
            Op::Broadcast => "broadcast",
            Op::Barrier => "barrier",
            Op::Send => "send",
        }
    }
}

/// A collective that was started and not finished yet.
#[derive(Debug)]
#[must_use = "a collective that is not finished leaves its messages behind"]
pub struct Pending {
    op: Op,
    /// Number of the collective in its group.
    seq: u64,
    /// What this rank sends to itself.
    own: Body,
    /// Place in the flight recorder.
    record: u64,
}

/// A group of ranks. Every rank calls the same collectives in the same order.
pub trait Comm: Send + Sync {
    /// This rank, `0..size`.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Begins a collective: rank `r` will get `parts[r]`. Does not wait, so that work can go on meanwhile.
    fn start(&self, op: Op, parts: Vec<Body>) -> Result<Pending, CommError>;

    /// What every rank has sent here in a collective, in rank order. Started collectives may be finished in any order.
    fn finish(&self, pending: Pending) -> Result<Vec<Body>, CommError>;

    /// Sends to one rank without waiting for it; messages between two ranks keep their order.
    fn send(&self, to: usize, body: Body) -> Result<(), CommError>;

    /// The next message of one rank, which consists of `elements`.
    fn recv(&self, from: usize, elements: Elements) -> Result<Body, CommError>;

    /// Every rank's body, in rank order; they may differ in length.
    fn all_gather(&self, body: Body) -> Result<Vec<Body>, CommError> {
        let pending = self.start(Op::AllGather, vec![body; self.size()])?;
        self.finish(pending)
    }

    /// Begins [`Comm::reduce_scatter`]: rank `r` will get the sum of all `parts[r]`.
    fn start_reduce_scatter(&self, parts: Vec<Body>) -> Result<Pending, CommError> {
        self.start(Op::ReduceScatter, parts)
    }

    /// Ends [`Comm::reduce_scatter`]: this rank's sum.
    fn finish_reduce_scatter(&self, pending: Pending, output: &mut [f32]) -> Result<(), CommError> {
        let op = pending.op;
        let parts = self.finish(pending)?;
        sum(op, self.rank(), &parts, output)
    }

    /// Sums `input` over ranks, added in rank order, and leaves this rank's share of equal length in `output`.
    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]) -> Result<(), CommError> {
        let (size, expected) = (self.size(), output.len() * self.size());
        if input.len() != expected {
            let (rank, found) = (self.rank(), input.len());
            return Err(CommError::Length {
                op: Op::ReduceScatter.name(),
                rank,
                from: rank,
                found,
                expected,
            });
        }
        let parts = if output.is_empty() {
            vec![body::f32s(&[]); size]
        } else {
            input.chunks_exact(output.len()).map(body::f32s).collect()
        };
        let pending = self.start_reduce_scatter(parts)?;
        self.finish_reduce_scatter(pending, output)
    }

    /// Replaces `x` by the sum over ranks, added in rank order.
    fn all_reduce(&self, x: &mut [f32]) -> Result<(), CommError> {
        let (rank, size) = (self.rank(), self.size());
        if size == 1 {
            return Ok(());
        }
        if x.len() <= SMALL {
            let pending = self.start(Op::AllReduce, vec![body::f32s(x); size])?;
            let parts = self.finish(pending)?;
            return sum(Op::AllReduce, rank, &parts, x);
        }
        // Each rank adds up its share, then all shares go to all.
        let parts = (0..size).map(|r| body::f32s(&x[share(x.len(), r, size)])).collect();
        let pending = self.start(Op::AllReduce, parts)?;
        let parts = self.finish(pending)?;
        let mut own = vec![0.0; share(x.len(), rank, size).len()];
        sum(Op::AllReduce, rank, &parts, &mut own)?;
        let shares = self.start(Op::AllReduce, vec![body::f32s(&own); size])?;
        let shares = self.finish(shares)?;
        for (r, body) in shares.iter().enumerate() {
            let here = share(x.len(), r, size);
            x[here.clone()].copy_from_slice(&as_f32s(body, Op::AllReduce, (rank, r), here.len())?);
        }
        Ok(())
    }

    /// Copies `root`'s `x` to every rank.
    fn broadcast(&self, x: &mut [f32], root: usize) -> Result<(), CommError> {
        if root >= self.size() {
            return Err(CommError::NoSuchPeer { op: Op::Broadcast.name(), rank: root, size: self.size() });
        }
        let own = if self.rank() == root { body::f32s(x) } else { body::f32s(&[]) };
        let pending = self.start(Op::Broadcast, vec![own; self.size()])?;
        let bodies = self.finish(pending)?;
        x.copy_from_slice(&as_f32s(&bodies[root], Op::Broadcast, (self.rank(), root), x.len())?);
        Ok(())
    }

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<(), CommError> {
        let pending = self.start(Op::Barrier, vec![body::f32s(&[]); self.size()])?;
        self.finish(pending).map(drop)
    }
}

/// The part of `0..n` that belongs to rank `rank` of `size`: parts follow each other and differ in length by one at most.
pub fn share(n: usize, rank: usize, size: usize) -> Range<usize> {
    n * rank / size..n * (rank + 1) / size
}

/// Values up to which ranks send each other all they have, which needs one exchange instead of two.
const SMALL: usize = 1 << 12;

/// The sum of the parts in order.
fn sum(op: Op, rank: usize, parts: &[Body], output: &mut [f32]) -> Result<(), CommError> {
    let mut first = true;
    for (from, part) in parts.iter().enumerate() {
        let part = as_f32s(part, op, (rank, from), output.len())?;
        if std::mem::take(&mut first) {
            output.copy_from_slice(&part);
        } else {
            output.iter_mut().zip(part.iter()).for_each(|(sum, x)| *sum += x);
        }
    }
    Ok(())
}
