//! Collectives of tensor parallelism as ops.
//!
//! Between the products of a block each rank holds its share of the rows (`llamero_comm::share`) and all columns, so norms
//! and residual sums are divided too (sequence parallelism, Korthikanti et al. 2022); within a product each rank holds all
//! rows. [`Tape::gather_rows`] and [`Tape::sum_rows`] lead from one to the other and are each other's gradient. Sums over
//! ranks are made in f32, in rank order, and rounded once.

use std::ops::Range;

use llamero_comm::{Body, Comm, CommError, Elements, Op, Pending, as_f32s, share};
use llamero_tensor::{Backend, CrossEntropy, DType, NO_TARGET, Shape, TARGET_ELSEWHERE, Tensor};

use crate::{GradSink, Param, Tape, Targets, Var};

impl<'m> Tape<'m> {
    /// The `rows` of all ranks, before a weight whose outputs are divided among ranks: `[T / n, C]` → `[T, C]`.
    pub fn gather_rows(&mut self, x: Var, rows: usize, comm: &'m dyn Comm) -> Var {
        if comm.size() == 1 {
            return x;
        }
        let backend = self.backend;
        let saved = self.saved(&x);
        let y = self.check().and_then(|()| gather(backend, x.value(), rows, comm));
        let y = self.whole_shape(y, rows, x.value());
        let y = self.op(y, [x.id()], move |sweep, dy| Ok(vec![sum_shares(sweep.backend, &dy, comm)?]));
        // Gathered once more rather than kept: the shares are n times smaller.
        self.cheap(&y, move || gather(backend, &saved.value()?, rows, comm));
        y
    }

    /// This rank's rows of the sum over ranks, after a weight whose inputs are divided among ranks: `[T, C]` → `[T / n, C]`.
    pub fn sum_rows(&mut self, x: Var, comm: &'m dyn Comm) -> Var {
        if comm.size() == 1 {
            return x;
        }
        let rows = x.value().rows();
        let y = self.check().and_then(|()| sum_shares(self.backend, x.value(), comm));
        let y = self.whole_shape(y, share(rows, comm.rank(), comm.size()).len(), x.value());
        self.op(y, [x.id()], move |sweep, dy| Ok(vec![gather(sweep.backend, &dy, rows, comm)?]))
    }

    /// The result of a collective, or, after a failure, zeros: values mean nothing then, no other collective is begun, and
    /// the sweep is never made.
    pub(crate) fn whole_shape(&mut self, y: Result<Tensor, CommError>, rows: usize, like: &Tensor) -> Tensor {
        y.unwrap_or_else(|error| {
            self.fail(error);
            self.backend.zeros(Shape::new(rows, like.cols()), like.dtype())
        })
    }

    /// [`Tape::embed`] from a table whose rows are divided among ranks (`part`): this rank's share of the rows of the
    /// result.
    pub fn embed_over_ranks(&mut self, part: VocabularyPart<'m>, ids: &'m [u32]) -> Var {
        let VocabularyPart { weight: table, ranks, .. } = part;
        if ranks.size() == 1 {
            return self.embed(table, ids);
        }
        self.uses(table);
        let backend = self.backend;
        // Where in the packed rows the ids of this rank are, and which of its rows they mean.
        let (at, local): (Vec<u32>, Vec<u32>) = (0u32..)
            .zip(ids)
            .filter_map(|(row, id)| Some((row, part.local("embed_over_ranks", *id)?)))
            .unzip();
        let found = backend.embed(&self.whole(table), &local);
        // Row by row, where the id is this rank's, and otherwise the row of zeros at the end.
        let mut padded = backend.zeros(Shape::new(local.len() + 1, found.cols()), found.dtype());
        backend.copy_rows(&mut padded, 0, &found, 0..local.len(), 0..found.cols());
        let mut place = vec![local.len() as u32; ids.len()];
        (0u32..).zip(&at).for_each(|(i, row)| place[*row as usize] = i);
        let spread = backend.embed(&padded, &place);
        let y = self.check().and_then(|()| sum_shares(backend, &spread, ranks));
        let rows = ids.len();
        let y = self.whole_shape(y, share(rows, ranks.rank(), ranks.size()).len(), &spread);
        self.op(y, [], move |sweep, dy| {
            let backend = sweep.backend;
            let dy = gather(backend, &dy, rows, ranks)?;
            let dy = backend.embed(&dy, &at);
            sweep.accumulate(table, |dtable| {
                backend.embed_backward(&dy, &local, dtable);
                Ok(())
            })?;
            Ok(vec![])
        })
    }

    /// [`Tape::finish_with_cross_entropy`] under an output projection whose rows are divided among ranks (`part`). `h` is
    /// this rank's share of the rows, `targets` are those of all rows, and so are the losses that come back.
    pub fn finish_with_cross_entropy_over_ranks(
        self,
        h: Var,
        part: VocabularyPart<'m>,
        targets: Targets<'_>,
        wanted: Option<&Var>,
        sink: &mut dyn GradSink,
    ) -> Result<(CrossEntropy, Option<Tensor>), CommError> {
        let VocabularyPart { weight: w, ranks, .. } = part;
        if ranks.size() == 1 {
            return self.finish_with_cross_entropy(h, w, targets, wanted, sink);
        }
        self.check()?;
        let Targets { ids, loss } = targets;
        self.finish(h, w, wanted, sink, |backend, (h, w), dw| {
            let h = gather(backend, h, ids.len(), ranks)?;
            let here = |id: u32| part.local("finish_with_cross_entropy_over_ranks", id);
            let local: Vec<u32> = ids
                .iter()
                .map(|&id| if id == NO_TARGET { id } else { here(id).unwrap_or(TARGET_ELSEWHERE) })
                .collect();
            let mut failure = None;
            let mut combine = |rows: &mut [[f32; 2]]| {
                if failure.is_none() {
                    failure = over_ranks(rows, ranks).err();
                }
            };
            let (found, dh) =
                backend.linear_cross_entropy_with_gradient_of_slice(loss, (&h, w), &local, dw, &mut combine);
            failure.map_or(Ok(()), Err)?;
            Ok((found, sum_shares(backend, &dh, ranks)?))
        })
    }
}

/// Puts log-sum-exps over the whole vocabulary, and the logits of targets from the rank that has them, in the place of
/// those of this rank's slice.
fn over_ranks(rows: &mut [[f32; 2]], ranks: &dyn Comm) -> Result<(), CommError> {
    let own: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_ne_bytes()).collect();
    let bodies = ranks.all_gather(own.into())?;
    let parts = (0..ranks.size())
        .map(|from| as_f32s(&bodies[from], Op::AllGather, (ranks.rank(), from), 2 * rows.len()))
        .collect::<Result<Vec<_>, _>>()?;
    for (i, row) in rows.iter_mut().enumerate() {
        let of_ranks = |column: usize| parts.iter().map(move |part| f64::from(part[2 * i + column]));
        let max = of_ranks(0).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = of_ranks(0).map(|lse| libm::exp(lse - max)).sum();
        *row = [(max + libm::log(sum)) as f32, of_ranks(1).sum::<f64>() as f32];
    }
    Ok(())
}

/// This rank's rows of a table over the vocabulary.
#[derive(Clone, Copy)]
pub struct VocabularyPart<'m> {
    /// The rows.
    pub weight: &'m Param,
    /// The vocabulary entry of the first of them.
    pub first: usize,
    /// Entries of the whole vocabulary.
    pub entries: usize,
    /// The ranks that have the others.
    pub ranks: &'m dyn Comm,
}

impl VocabularyPart<'_> {
    /// The row of an entry, if it is one of these. An entry outside the vocabulary panics, as on one rank.
    fn local(&self, op: &str, id: u32) -> Option<u32> {
        assert!((id as usize) < self.entries, "{op}: id {id} is outside a vocabulary of {}", self.entries);
        id.checked_sub(self.first as u32).filter(|row| (*row as usize) < self.weight.shape().rows)
    }
}

/// Some rows of a tensor as a message.
pub fn body(backend: &dyn Backend, x: &Tensor, rows: Range<usize>) -> Body {
    Body::new(backend.download_raw(x, rows), elements(x.dtype()))
}

/// What the values of a dtype are in a message.
pub fn elements(dtype: DType) -> Elements {
    match dtype {
        DType::F32 => Elements::F32,
        DType::Bf16 => Elements::Bf16,
    }
}

/// All ranks' rows in rank order, of which there are `rows`.
fn gather(backend: &dyn Backend, x: &Tensor, rows: usize, comm: &dyn Comm) -> Result<Tensor, CommError> {
    let own = body(backend, x, 0..x.rows());
    let pending = comm.start(Op::AllGather, vec![own; comm.size()])?;
    gathered(backend, pending, (Shape::new(rows, x.cols()), x.dtype()), comm)
}

/// What comes of a gather of shares of the rows of a tensor.
pub(crate) fn gathered(
    backend: &dyn Backend,
    pending: Pending,
    (whole, dtype): (Shape, DType),
    comm: &dyn Comm,
) -> Result<Tensor, CommError> {
    let bodies = comm.finish(pending)?;
    let raw: Vec<&[u8]> = bodies.iter().map(|body| &**body).collect();
    for (from, part) in raw.iter().enumerate() {
        let found = part.len() / dtype.bytes();
        let expected = share(whole.rows, from, comm.size()).len() * whole.cols;
        if part.len() != expected * dtype.bytes() {
            return Err(length(Op::AllGather, comm.rank(), from, (found, expected)));
        }
    }
    Ok(backend.upload_raw(&raw, whole, dtype))
}

/// This rank's rows of the sum over ranks.
fn sum_shares(backend: &dyn Backend, x: &Tensor, comm: &dyn Comm) -> Result<Tensor, CommError> {
    let (rank, size) = (comm.rank(), comm.size());
    let parts = (0..size).map(|r| body(backend, x, share(x.rows(), r, size))).collect();
    let pending = comm.start_reduce_scatter(parts)?;
    let bodies = comm.finish(pending)?;
    let shape = Shape::new(share(x.rows(), rank, size).len(), x.cols());
    for (from, body) in bodies.iter().enumerate() {
        let (found, expected) = (body.len(), shape.elements() * x.dtype().bytes());
        if found != expected {
            let element = x.dtype().bytes();
            return Err(length(Op::ReduceScatter, rank, from, (found / element, expected / element)));
        }
    }
    let raw: Vec<&[u8]> = bodies.iter().map(|body| &**body).collect();
    let sum = backend.sum_raw(&raw, shape, x.dtype());
    Ok(if x.dtype() == DType::F32 { sum } else { backend.cast(&sum, x.dtype()) })
}

fn length(op: Op, rank: usize, from: usize, (found, expected): (usize, usize)) -> CommError {
    CommError::Length { op: op.name(), rank, from, found, expected }
}
