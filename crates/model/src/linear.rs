//! Weights that may be divided over the ranks of the tensor-parallel axis.

use std::sync::Arc;

use llamero_autograd::{Param, Tape, Var, VocabularyPart};
use llamero_comm::{Comm, share};

use crate::Shard;

/// `y = x wᵀ`. With `Shard::Rows` each rank computes its share of the outputs from all rows of the input, which are gathered
/// first; with `Shard::Columns` each rank computes from its share of the inputs, and the results are summed, of which it
/// keeps its share of the rows. A `Rows` layer followed by a `Columns` layer needs one collective each in each direction.
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

    /// `[T, K]` → `[T, N]`, with `rows` = T.
    pub fn forward<'m>(&'m self, tape: &mut Tape<'m>, x: Var, rows: usize) -> Var {
        match self.shard {
            Shard::Whole => tape.linear(x, &self.weight),
            Shard::Rows => {
                let x = tape.gather_rows(x, rows, &*self.ranks);
                tape.linear(x, &self.weight)
            }
            Shard::Columns => {
                let y = tape.linear(x, &self.weight);
                tape.sum_rows(y, &*self.ranks)
            }
        }
    }
}

/// How tables over the vocabulary, embedding and output projection, are divided.
pub struct Vocabulary {
    /// The entry of this rank's first row.
    first: usize,
    entries: usize,
    ranks: Arc<dyn Comm>,
}

impl Vocabulary {
    /// Of `entries`.
    pub fn new(entries: usize, ranks: Arc<dyn Comm>) -> Self {
        Self { first: share(entries, ranks.rank(), ranks.size()).start, entries, ranks }
    }

    /// This rank's part of a table.
    pub fn part<'m>(&'m self, weight: &'m Param) -> VocabularyPart<'m> {
        VocabularyPart { weight, first: self.first, entries: self.entries, ranks: &*self.ranks }
    }
}
