//! Messages between two ranks: all that a transport has to provide.

use std::time::Instant;

use crate::{Body, Op};

/// What a message says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the collective in its group, or of the message between two ranks.
    pub seq: u64,
    /// What it is part of.
    pub op: Op,
    /// Hash of the body; 0 when it was not asked for.
    pub hash: u64,
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it says about itself.
    pub header: Header,
    /// What it carries.
    pub body: Body,
}

/// Why a message could not be sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The peer is gone.
    Lost,
    /// The deadline has passed.
    Late,
}

/// Carries messages between the ranks of a world. Messages of one channel between two ranks arrive whole, once and in
/// order; different channels do not wait for each other.
pub trait Wire: Send + Sync {
    /// This rank, `0..size`.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Hands a message over without waiting for the receiver.
    fn send(&self, to: usize, channel: u32, message: Message) -> Result<(), WireError>;

    /// The next message of a rank on a channel, if it comes before the deadline.
    fn recv(&self, from: usize, channel: u32, deadline: Instant) -> Result<Message, WireError>;
}
