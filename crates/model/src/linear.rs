//! A weight matrix that may be divided over the ranks of the tensor-parallel axis.

use std::sync::Arc;

use llamero_autograd::{Param, Tape, Var};
use llamero_comm::Comm;

use crate::Shard;

/// `y = x wᵀ`. With `Shard::Rows` each rank computes its share of the outputs from all inputs; with `Shard::Columns` each
/// rank computes from its share of the inputs and the results are summed. A `Rows` layer followed by a `Columns` layer
/// needs one collective in each direction.
pub struct Linear {
    /// This rank's slice of the weight `[N, K]`.
    pub weight: Param,
    shard: Shard,
    ranks: Arc<dyn Comm>,
}

impl Linear {
    /// A layer over this rank's slice.
    pub fn new(weight: Param, shard: Shard, ranks: Arc<dyn Comm>) -> Self {
        Self { weight, shard, ranks }
    }

    /// `[T, K]` → `[T, N]`.
    pub fn forward<'m>(&'m self, tape: &mut Tape<'m>, x: Var) -> Var {
        match self.shard {
            Shard::Whole => tape.linear(x, &self.weight),
            Shard::Rows => {
                let x = tape.copy_to_ranks(x, &*self.ranks);
                tape.linear(x, &self.weight)
            }
            Shard::Columns => {
                let y = tape.linear(x, &self.weight);
                tape.sum_over_ranks(y, &*self.ranks)
            }
        }
    }
}
