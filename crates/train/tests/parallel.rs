//! A model divided over ranks (tensor parallel, pipeline stages, both) against the same model on one rank.
//!
//! Ranks are threads here. Pipeline stages compute what the single rank computes, so their gradients have the same bits.
//! Tensor parallelism adds up products in two halves, so its numbers agree to rounding; what every rank holds
//! (embedding, norms, output) must still have the same gradient bits on every rank.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Made, config, llama};
use llamero_autograd::{Gradients, Tape};
use llamero_comm::{Comm, CommError, Solo, Threads};
use llamero_cpu::Cpu;
use llamero_data::{Batch, Sequence};
use llamero_model::{Config, Input, Llama, ParamSpec, Placement, Recompute, Shard};
use llamero_tensor::{Backend, DType, Segments, Shape, Tensor};
use llamero_train::SequenceSource;

/// Largest difference between one rank and two tensor-parallel ones, relative to the largest element; 1.1e-6 was
/// seen.
const TOLERANCE: f64 = 3e-6;

/// Losses of the rows, at the last stage, and gradients by parameter.
type Computed = (Option<Vec<f32>>, BTreeMap<usize, Vec<f32>>);

/// What one rank computed.
struct Rank {
    place: Placement,
    /// Losses of the rows, at the last stage.
    nll: Option<Vec<f32>>,
    gradients: BTreeMap<usize, Vec<f32>>,
}

fn batch() -> Batch {
    Batch::pack((0..3).map(|i| -> Sequence { Made.sequence(i).unwrap() }))
}

fn receive(backend: &dyn Backend, pipe: &dyn Comm, from: usize, shape: Shape) -> Result<Tensor, CommError> {
    let mut host = vec![0.0; shape.elements()];
    pipe.recv(from, &mut host)?;
    Ok(backend.upload(&host, shape, DType::F32))
}

/// Forward and backward of one stage; its neighbours are the neighbouring ranks of `pipe`.
fn stage(
    backend: &dyn Backend,
    model: &Llama,
    batch: &Batch,
    pipe: &dyn Comm,
    recompute: Recompute,
) -> Result<Computed, CommError> {
    let segments = Segments::documents(batch.documents.iter().copied());
    let hidden = Shape::new(batch.tokens.len(), model.config.dim);
    let (this, last) = (pipe.rank(), pipe.size() - 1);
    let mut tape = Tape::record(backend);
    let (input, leaf) = if this == 0 {
        (Input::Tokens(&batch.tokens), None)
    } else {
        let leaf = tape.leaf(receive(backend, pipe, this - 1, hidden)?);
        (Input::Hidden(leaf.clone()), Some(leaf))
    };
    let h = model.forward(&mut tape, input, &segments, recompute);
    let mut gradients = Gradients::new(backend);
    let (from, seed, nll) = match model.head() {
        Some(head) => {
            let nll = tape.linear_cross_entropy(h, head, &batch.targets);
            let shape = nll.value().shape();
            let seed = backend.upload(&vec![1.0 / batch.num_targets() as f32; shape.rows], shape, DType::F32);
            let rows = backend.download(nll.value());
            (nll, seed, Some(rows))
        }
        None => {
            assert!(this < last);
            pipe.send(this + 1, &backend.download(h.value()))?;
            let seed = receive(backend, pipe, this + 1, hidden)?;
            (h, seed, None)
        }
    };
    let d_input = tape.backward(from, seed, leaf.as_ref(), &mut gradients)?;
    if this > 0 {
        pipe.send(this - 1, &backend.download(&d_input.unwrap()))?;
    }
    // A rank that leaves ends the group for all, also for stages that still wait for others.
    pipe.barrier()?;
    Ok((nll, gradients.iter().map(|(id, g)| (id, backend.download(g))).collect()))
}

fn one_rank(config: &Config) -> Rank {
    let backend = Cpu::new(1).unwrap();
    let place = Placement::whole(config);
    let model = llama(config, &place, (&backend, DType::F32), Arc::new(Solo));
    let (nll, gradients) = stage(&backend, &model, &batch(), &Solo, Recompute::Nothing).unwrap();
    assert_eq!(gradients.len(), config.params().len());
    Rank { place, nll, gradients }
}

/// Every rank of a mesh, one thread each. `cuts` are the first blocks of the stages after the first.
fn mesh(config: &Config, tp: usize, cuts: &[usize], recompute: Recompute) -> Vec<Rank> {
    let stages = cuts.len() + 1;
    let mut tensor_groups: Vec<Vec<Arc<dyn Comm>>> = (0..stages).map(|_| group(tp)).collect();
    let mut pipes: Vec<Vec<Arc<dyn Comm>>> = (0..tp).map(|_| group(stages)).collect();
    std::thread::scope(|scope| {
        let mut ranks = Vec::new();
        for s in (0..stages).rev() {
            for tp_rank in (0..tp).rev() {
                let (tensor, pipe) = (tensor_groups[s].pop().unwrap(), pipes[tp_rank].pop().unwrap());
                let start = if s == 0 { 0 } else { cuts[s - 1] };
                let layers = start..cuts.get(s).copied().unwrap_or(config.layers);
                let place = Placement { layers, tp_rank, tp_size: tp };
                ranks.push(scope.spawn(move || {
                    let backend = Cpu::new(1).unwrap();
                    let model = llama(config, &place, (&backend, DType::F32), tensor);
                    let (nll, gradients) = stage(&backend, &model, &batch(), &*pipe, recompute).unwrap();
                    Rank { place, nll, gradients }
                }));
            }
        }
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn group(size: usize) -> Vec<Arc<dyn Comm>> {
    Threads::group(size).into_iter().map(|rank| Arc::new(rank) as Arc<dyn Comm>).collect()
}

fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
    let apart = found.iter().zip(expected).fold(0.0, |a: f32, (f, e)| a.max((f - e).abs()));
    assert!(largest > 0.0 && apart.is_finite());
    f64::from(apart / largest)
}

/// Puts the slices of the ranks that hold a parameter together again.
fn gathered(spec: &ParamSpec, slices: &[(usize, &[f32])]) -> Vec<f32> {
    let (rows, cols) = (spec.shape.rows, spec.shape.cols);
    let mut whole = vec![f32::NAN; rows * cols];
    let tp = slices.len();
    for &(rank, slice) in slices {
        let width = if spec.shard == Shard::Columns { cols / tp } else { cols };
        let mut local = slice.chunks(width);
        let mut first = 0;
        for part in &spec.parts {
            let own = match spec.shard {
                Shard::Rows => first + rank * part.rows / tp..first + (rank + 1) * part.rows / tp,
                Shard::Whole | Shard::Columns => first..first + part.rows,
            };
            let left = if spec.shard == Shard::Columns { rank * width } else { 0 };
            for row in own {
                let at = row * cols + left;
                whole[at..at + width].copy_from_slice(local.next().unwrap());
            }
            first += part.rows;
        }
        assert!(local.next().is_none());
    }
    whole
}

/// Compares a mesh with one rank; `tp` and `cuts` as for [`mesh`].
fn compare(config: &Config, tp: usize, cuts: &[usize], recompute: Recompute) {
    let alone = one_rank(config);
    let ranks = mesh(config, tp, cuts, recompute);
    let nll: Vec<_> = ranks.iter().filter_map(|r| r.nll.as_ref()).collect();
    assert_eq!(nll.len(), tp, "the last stage has the losses");
    assert!(nll.iter().all(|n| *n == nll[0]), "the losses have the same bits on every rank");
    let expected = alone.nll.as_ref().unwrap();
    assert!(if tp == 1 { nll[0] == expected } else { distance(nll[0], expected) < TOLERANCE });
    for spec in config.params() {
        let held: Vec<(usize, &[f32])> = ranks
            .iter()
            .filter_map(|r| Some((r.place.tp_rank, r.gradients.get(&spec.id)?.as_slice())))
            .collect();
        assert_eq!(held.len(), tp, "`{}`", spec.name);
        if spec.shard == Shard::Whole {
            assert!(held.iter().all(|(_, g)| *g == held[0].1), "`{}` differs between ranks", spec.name);
        }
        let (found, expected) = (gathered(&spec, &held), &alone.gradients[&spec.id]);
        if tp == 1 {
            assert!(found == *expected, "`{}` differs", spec.name);
        } else {
            let apart = distance(&found, expected);
            assert!(apart < TOLERANCE, "`{}`: {apart:e} apart", spec.name);
        }
    }
}

#[test]
fn pipeline_stages_have_the_bits_of_one_rank() {
    for cuts in [&[1][..], &[2], &[1, 2]] {
        compare(&config(), 1, cuts, Recompute::Nothing);
    }
    compare(&config(), 1, &[2], Recompute::Selective);
    compare(&config(), 1, &[2], Recompute::Blocks);
}

#[test]
fn tensor_parallel_ranks_agree_with_one_rank() {
    compare(&config(), 2, &[], Recompute::Nothing);
    compare(&config(), 2, &[], Recompute::Blocks);
}

#[test]
fn stages_of_tensor_parallel_ranks_agree_with_one_rank() {
    compare(&config(), 2, &[1], Recompute::Nothing);
    compare(&config(), 2, &[1, 2], Recompute::Blocks);
}

#[test]
fn recomputation_repeats_the_collectives_and_changes_no_bit() {
    let by_place = |mut ranks: Vec<Rank>| {
        ranks.sort_by_key(|r| (r.place.layers.start, r.place.tp_rank));
        ranks
    };
    let kept = by_place(mesh(&config(), 2, &[1], Recompute::Nothing));
    for recompute in [Recompute::Selective, Recompute::Blocks] {
        let again = by_place(mesh(&config(), 2, &[1], recompute));
        for (kept, again) in kept.iter().zip(&again) {
            assert_eq!(kept.place, again.place);
            let same = kept.nll == again.nll && kept.gradients == again.gradients;
            assert!(same, "{recompute:?}, {:?}", kept.place);
        }
    }
}

/// The first stage looks tokens up in the table, the last multiplies by it: the two gradients add up to the whole one.
#[test]
fn both_stages_hold_a_tied_table_and_their_gradients_add_up() {
    let tied = Config { tied: true, ..config() };
    let alone = one_rank(&tied);
    let stages = mesh(&tied, 1, &[2], Recompute::Nothing);
    let shares: Vec<&Vec<f32>> = stages.iter().map(|s| &s.gradients[&0]).collect();
    assert_eq!(shares.len(), 2);
    let sum: Vec<f32> = shares[0].iter().zip(shares[1]).map(|(a, b)| a + b).collect();
    let apart = distance(&sum, &alone.gradients[&0]);
    assert!(apart < TOLERANCE, "{apart:e}");
    for s in &stages {
        for (id, gradient) in s.gradients.iter().filter(|(id, _)| **id != 0) {
            assert!(*gradient == alone.gradients[id], "parameter {id} differs");
        }
    }
}
