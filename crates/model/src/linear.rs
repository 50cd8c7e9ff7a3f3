//! Weights that may be divided over ranks.

use std::ops::Range;
use std::sync::Arc;

use llamero_autograd::{Param, Tape, Var, VocabularyPart};
use llamero_comm::{Comm, share};
use llamero_tensor::{Backend, DType, Shape, pieces};

use crate::{ParamSpec, Placement, Shard};

/// The ranks that weights are divided over.
#[derive(Clone)]
pub struct Division {
    /// Those that compute with slices of the same weights (tensor parallelism).
    pub slices: Arc<dyn Comm>,
    /// Those that compute with the same slices and keep some rows each between uses; `None` where each keeps all.
    pub shards: Option<Arc<dyn Comm>>,
}

impl From<&Arc<dyn Comm>> for Division {
    fn from(slices: &Arc<dyn Comm>) -> Self {
        Self { slices: Arc::clone(slices), shards: None }
    }
}

impl Division {
    /// What this rank keeps of a parameter, from `values`, which gives runs of rows of the whole tensor. One with fewer rows
    /// than there are ranks (a norm) is kept by all.
    pub fn param<E>(
        &self,
        spec: &ParamSpec,
        place: &Placement,
        (backend, dtype): (&dyn Backend, DType),
        values: &mut impl FnMut(&ParamSpec, Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Param, E> {
        let slice = spec.local_shape(place);
        let shards = self.shards.as_ref().filter(|s| s.size() > 1 && slice.rows >= s.size());
        let own = shards.map_or(0..slice.rows, |s| share(slice.rows, s.rank(), s.size()));
        let mut value = backend.zeros(Shape::new(own.len(), slice.cols), dtype);
        let (cols, mut at) = (spec.shape.cols, 0);
        for rows in spec.rows_of_slice(place, own).flat_map(|run| pieces(run, cols)) {
            let part = Shape::new(rows.len(), cols);
            let piece = backend.upload(&values(spec, rows)?, part, dtype);
            backend.copy_rows(&mut value, at, &piece, 0..part.rows, spec.local_cols(place));
            at += part.rows;
        }
        let param = Param::new(spec.id, spec.name.clone(), value);
        Ok(match shards {
            Some(ranks) => param.sharded(slice, Arc::clone(ranks)),
            None => param,
        })
    }
}

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
