//! What can go wrong between ranks.

use std::time::Duration;

/// What can go wrong between ranks. Ranks are numbers inside the group, unless said otherwise.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommError {
    /// The buffers of a collective do not fit together.
    #[error("`{op}` on rank {rank}: rank {from} has {found} values where {expected} were expected")]
    Length {
        /// Name of the collective.
        op: &'static str,
        /// Rank that noticed.
        rank: usize,
        /// Rank whose buffer it is.
        from: usize,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// The number of parts is not the number of ranks.
    #[error("`{op}` on rank {rank}: {found} parts for a group of {size}")]
    Parts {
        /// Name of the collective.
        op: &'static str,
        /// This rank.
        rank: usize,
        /// Parts given.
        found: usize,
        /// Ranks in the group.
        size: usize,
    },
    /// Ranks called different collectives at the same time.
    #[error(
        "group `{group}`, collective {seq}: rank {rank} called `{found}` while rank {other} called `{expected}`"
    )]
    Mismatch {
        /// Name of the group.
        group: String,
        /// Number of the collective in the group.
        seq: u64,
        /// Rank that noticed.
        rank: usize,
        /// Its collective.
        found: &'static str,
        /// The other rank.
        other: usize,
        /// The other rank's collective.
        expected: &'static str,
    },
    /// A rank sent other elements than this one did, or waited for.
    #[error(
        "group `{group}`, `{op}` {seq} on rank {rank}: rank {from} sent {found} where {expected} was expected"
    )]
    Elements {
        /// Name of the group.
        group: String,
        /// Name of the collective.
        op: &'static str,
        /// Its number in the group.
        seq: u64,
        /// Rank that noticed.
        rank: usize,
        /// The other rank.
        from: usize,
        /// What it sent.
        found: &'static str,
        /// What this rank sent, or waited for.
        expected: &'static str,
    },
    /// A message came out of turn: one was lost, or sent twice.
    #[error("group `{group}` on rank {rank}: message {found} of rank {from} came where {expected} was due")]
    OutOfTurn {
        /// Name of the group.
        group: String,
        /// Rank that noticed.
        rank: usize,
        /// Sender.
        from: usize,
        /// Number found.
        found: u64,
        /// Number due.
        expected: u64,
    },
    /// The bytes that arrived are not those that were sent.
    #[error(
        "group `{group}`, `{op}` {seq} on rank {rank}: the message of rank {from} was changed on its way \
         (hash {found:016x}, sent as {expected:016x})"
    )]
    Damaged {
        /// Name of the group.
        group: String,
        /// Name of the collective.
        op: &'static str,
        /// Number of the collective in the group.
        seq: u64,
        /// Rank that noticed.
        rank: usize,
        /// Sender.
        from: usize,
        /// Hash of what arrived.
        found: u64,
        /// Hash of what was sent.
        expected: u64,
    },
    /// A peer sent nothing for too long.
    #[error(
        "group `{group}`, `{op}` {seq} on rank {rank}: nothing from rank {from} (rank {world} of the world) for \
         {waited:?}; it hangs, is dead, or has not come to this collective"
    )]
    Timeout {
        /// Name of the group.
        group: String,
        /// Name of the collective.
        op: &'static str,
        /// Number of the collective in the group.
        seq: u64,
        /// Rank that waited.
        rank: usize,
        /// Rank waited for.
        from: usize,
        /// Its number in the world.
        world: usize,
        /// How long.
        waited: Duration,
    },
    /// A peer left the group: its thread ended or panicked.
    #[error("`{op}` on rank {rank}: rank {peer} of the world has left")]
    PeerLost {
        /// Name of the collective.
        op: &'static str,
        /// Rank that noticed.
        rank: usize,
        /// The rank of the world that left.
        peer: usize,
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
