//! The group of one rank.

use crate::{Body, Comm, CommError, Elements, Op, Pending};

/// The group of one rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Comm for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn start(&self, op: Op, parts: Vec<Body>) -> Result<Pending, CommError> {
        let [own] = <[Body; 1]>::try_from(parts).map_err(|parts| CommError::Parts {
            op: op.name(),
            rank: 0,
            found: parts.len(),
            size: 1,
        })?;
        Ok(Pending { op, seq: 0, own, record: 0 })
    }

    fn finish(&self, pending: Pending) -> Result<Vec<Body>, CommError> {
        Ok(vec![pending.own])
    }

    fn send(&self, to: usize, _: Body) -> Result<(), CommError> {
        Err(CommError::NoSuchPeer { op: "send", rank: to, size: 1 })
    }

    fn recv(&self, from: usize, _: Elements) -> Result<Body, CommError> {
        Err(CommError::NoSuchPeer { op: "recv", rank: from, size: 1 })
    }
}
