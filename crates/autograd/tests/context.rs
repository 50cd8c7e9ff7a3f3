//! Attention over the rows of several ranks is that of one rank with all rows.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::ops::Range;
use std::sync::Arc;

use llamero_autograd::{ContextPart, Gradients, Tape};
use llamero_comm::{Body, Comm, CommError, Elements, Solo, Threads};
use llamero_tensor::testing::{Oracle, random};
use llamero_tensor::{Backend, DType, GatheredSegment, Heads, Segment, Segments, Shape, Tensor};

const HEADS: Heads = Heads { query: 4, kv: 2, dim: 4 };
const ROWS: usize = 16;

fn whole(backend: &dyn Backend, seed: u64, cols: usize, dtype: DType) -> Tensor {
    backend.upload(&random(seed, ROWS * cols, 1.0), Shape::new(ROWS, cols), dtype)
}

/// Some rows of `x`.
fn pick(backend: &dyn Backend, x: &Tensor, rows: &[Range<usize>]) -> Tensor {
    let mut out = backend.zeros(Shape::new(rows.iter().map(Range::len).sum(), x.cols()), x.dtype());
    let mut at = 0;
    for run in rows {
        backend.copy_rows(&mut out, at, x, run.clone(), 0..x.cols());
        at += run.len();
    }
    out
}

/// Documents of 3 and of 13 rows; rank 0 has the outer rows, rank 1 the inner ones.
fn parts(rank: usize, ranks: &dyn Comm) -> ContextPart<'_> {
    let of = |rows, past, first| GatheredSegment { segment: Segment { rows, past }, first };
    let outer = vec![of(0..3, 0, 0), of(3..4, 0, 3), of(4..8, 9, 3)];
    let segments = if rank == 0 { outer } else { vec![of(0..8, 1, 3)] };
    ContextPart { ranks, rows: rows().into(), segments: segments.into() }
}

fn rows() -> Vec<Vec<Range<usize>>> {
    vec![vec![0..4, 12..16], vec![4..12]]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Keep {
    Everything,
    NotWhatIsCheap,
    Nothing,
}

/// Attention and the gradient of its input.
fn sweep(
    backend: &dyn Backend,
    (qkv, dy): (Tensor, Tensor),
    part: Option<ContextPart<'_>>,
    keep: Keep,
) -> Result<[Vec<f32>; 2], CommError> {
    let mut tape = Tape::record(backend);
    if keep != Keep::Everything {
        tape.recompute_cheap();
    }
    if let Some(part) = part {
        tape.divide_context(part);
    }
    let segments = Segments::documents([3, 13]);
    let x = tape.leaf(qkv);
    let y = if keep == Keep::Nothing {
        tape.recompute(x.clone(), move |tape, x| tape.attention(0, x, HEADS, &segments))
    } else {
        tape.attention(0, x.clone(), HEADS, &segments)
    };
    let value = backend.download(y.value());
    let dx = tape.backward(y, dy, Some(&x), &mut Gradients::new(backend))?.unwrap();
    assert_eq!(dx.dtype(), x.value().dtype());
    Ok([value, backend.download(&dx)])
}

#[test]
fn attention_over_ranks_is_that_of_one() {
    for dtype in [DType::F32, DType::Bf16] {
        let oracle = Oracle::rounding();
        let input = |backend: &dyn Backend| {
            (whole(backend, 1, HEADS.width(), dtype), whole(backend, 2, HEADS.query_width(), dtype))
        };
        let expected = sweep(&oracle, input(&oracle), None, Keep::Everything).unwrap();
        for keep in [Keep::Everything, Keep::NotWhatIsCheap, Keep::Nothing] {
            let found: Vec<[Vec<f32>; 2]> = std::thread::scope(|scope| {
                let ranks: Vec<_> = Threads::group(2)
                    .into_iter()
                    .map(|comm| {
                        scope.spawn(move || {
                            let backend = Oracle::rounding();
                            let (qkv, dy) = input(&backend);
                            let own = &rows()[comm.rank()];
                            let own = (pick(&backend, &qkv, own), pick(&backend, &dy, own));
                            sweep(&backend, own, Some(parts(comm.rank(), &comm)), keep).unwrap()
                        })
                    })
                    .collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            for (rank, [value, gradient]) in found.iter().enumerate() {
                let shape = |cols| Shape::new(ROWS, cols);
                let own = |x: &[f32], cols| {
                    oracle.download(&pick(&oracle, &oracle.upload(x, shape(cols), DType::F32), &rows()[rank]))
                };
                assert_eq!(*value, own(&expected[0], HEADS.query_width()), "{dtype}, {keep:?}, rank {rank}");
                // Parts of the gradients of keys and values are rounded to f32 before they are added up.
                let tolerance = if dtype == DType::F32 { 1e-6 } else { 4e-3 };
                for (i, (f, e)) in gradient.iter().zip(own(&expected[1], HEADS.width())).enumerate() {
                    let of_queries = i % HEADS.width() < HEADS.query_width();
                    let bound = if of_queries { 0.0 } else { tolerance * e.abs().max(0.5) };
                    assert!((f - e).abs() <= bound, "{dtype}, {keep:?}, rank {rank}, element {i}: {f} {e}");
                }
            }
        }
    }
}

#[test]
fn a_lost_rank_is_an_error() {
    let oracle = Oracle::rounding();
    let input = || {
        let own = &rows()[0];
        let qkv = pick(&oracle, &whole(&oracle, 1, HEADS.width(), DType::F32), own);
        (qkv, pick(&oracle, &whole(&oracle, 2, HEADS.query_width(), DType::F32), own))
    };
    for keep in [Keep::Everything, Keep::Nothing] {
        let mut group = Threads::group(2);
        drop(group.pop());
        let error = sweep(&oracle, input(), Some(parts(0, &group[0])), keep).unwrap_err();
        assert!(matches!(error, CommError::PeerLost { .. }), "{error}");
    }
    // A peer that has another number of rows.
    let [ours, theirs] = <[_; 2]>::try_from(Threads::group(2)).ok().unwrap();
    let three = Body::new(vec![0; 12].into(), Elements::F32);
    let _ = theirs.start(llamero_comm::Op::AllGather, vec![three; 2]).unwrap();
    let error = sweep(&oracle, input(), Some(parts(0, &ours)), Keep::Everything).unwrap_err();
    assert!(matches!(error, CommError::Length { from: 1, found: 3, expected: 128, .. }), "{error}");
}

/// One rank that has everything takes the same way.
#[test]
fn one_rank_gathers_from_itself() {
    let oracle = Oracle::rounding();
    let input =
        || (whole(&oracle, 1, HEADS.width(), DType::F32), whole(&oracle, 2, HEADS.query_width(), DType::F32));
    let segments: Arc<[GatheredSegment]> = Segments::documents([3, 13])
        .iter()
        .map(|s| GatheredSegment { segment: s.clone(), first: s.rows.start })
        .collect();
    let part = ContextPart { ranks: &Solo, rows: [std::iter::once(0..ROWS).collect()].into(), segments };
    let found = sweep(&oracle, input(), Some(part), Keep::Everything).unwrap();
    assert_eq!(found, sweep(&oracle, input(), None, Keep::Everything).unwrap());
}
