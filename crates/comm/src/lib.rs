//! Collectives between the ranks of one axis of the mesh.
//!
//! [`Comm`] is all that the layers above know of other ranks. [`Solo`] is the group of one; [`Threads`] joins ranks
//! that are threads of this process and is the reference the other transports are compared with. Reductions add
//! rank 0's values first, then rank 1's, and so on, so the result has the same bits on every rank and in every run.

mod threads;

pub use threads::Threads;

/// What can go wrong between ranks.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommError {
    /// The buffers of a collective do not fit together.
    #[error("`{op}` on rank {rank} of {size}: buffer of {found} values where {expected} were expected")]
    Length {
        /// Name of the collective.
        op: &'static str,
        /// Rank that noticed.
        rank: usize,
        /// Ranks in the group.
        size: usize,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// Ranks called different collectives at the same time.
    #[error("rank {rank} called `{found}` while rank {other} called `{expected}`")]
    Mismatch {
        /// Rank that noticed.
        rank: usize,
        /// Its collective.
        found: &'static str,
        /// The other rank.
        other: usize,
        /// The other rank's collective.
        expected: &'static str,
    },
    /// A peer left the group: its thread ended or panicked.
    #[error("`{op}` on rank {rank}: another rank has left the group")]
    PeerLost {
        /// Name of the collective.
        op: &'static str,
        /// Rank that noticed.
        rank: usize,
    },
    /// A rank outside the group, or the rank itself, as peer.
    #[error("`{op}`: rank {rank} is not a peer in a group of {size}")]
    NoSuchPeer {
        /// Name of the operation.
        op: &'static str,
        /// The peer asked for.
        rank: usize,
        /// Ranks in the group.
        size: usize,
    },
}

/// A group of ranks. Every rank calls the same collectives in the same order.
pub trait Comm: Send + Sync {
    /// This rank, `0..size`.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Replaces `x` by the sum over ranks, added in rank order.
    fn all_reduce(&self, x: &mut [f32]) -> Result<(), CommError>;

    /// Sums `input` over ranks and leaves this rank's share of equal length in `output`.
    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]) -> Result<(), CommError>;

    /// Concatenates every rank's `input` in rank order.
    fn all_gather(&self, input: &[f32], output: &mut [f32]) -> Result<(), CommError>;

    /// Copies `root`'s `x` to every rank.
    fn broadcast(&self, x: &mut [f32], root: usize) -> Result<(), CommError>;

    /// Sends to one rank; messages between two ranks keep their order.
    fn send(&self, to: usize, x: &[f32]) -> Result<(), CommError>;

    /// Receives the next message of one rank.
    fn recv(&self, from: usize, x: &mut [f32]) -> Result<(), CommError>;

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<(), CommError>;
}

/// The group of one rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Solo {
    fn copy(op: &'static str, input: &[f32], output: &mut [f32]) -> Result<(), CommError> {
        if input.len() != output.len() {
            return Err(CommError::Length {
                op,
                rank: 0,
                size: 1,
                found: output.len(),
                expected: input.len(),
            });
        }
        output.copy_from_slice(input);
        Ok(())
    }
}

impl Comm for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &mut [f32]) -> Result<(), CommError> {
        Ok(())
    }

    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]) -> Result<(), CommError> {
        Self::copy("reduce_scatter", input, output)
    }

    fn all_gather(&self, input: &[f32], output: &mut [f32]) -> Result<(), CommError> {
        Self::copy("all_gather", input, output)
    }

    fn broadcast(&self, _: &mut [f32], root: usize) -> Result<(), CommError> {
        if root == 0 { Ok(()) } else { Err(CommError::NoSuchPeer { op: "broadcast", rank: root, size: 1 }) }
    }

    fn send(&self, to: usize, _: &[f32]) -> Result<(), CommError> {
        Err(CommError::NoSuchPeer { op: "send", rank: to, size: 1 })
    }

    fn recv(&self, from: usize, _: &mut [f32]) -> Result<(), CommError> {
        Err(CommError::NoSuchPeer { op: "recv", rank: from, size: 1 })
    }

    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }
}
