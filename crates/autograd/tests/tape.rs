//! The tape's promises: gradients are final when the sink is told so, once for each parameter; recomputation changes no
//! bit; the gradient of a wanted leaf comes back; failures of collectives are not lost.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use llamero_autograd::{GradSink, Gradients, Param, Tape, Targets, Var};
use llamero_comm::{Comm, CommError, Op, Solo, Threads, WorldOptions, share};
use llamero_tensor::testing::{Oracle, random};
use llamero_tensor::{Backend, DType, NO_TARGET, RowLoss, Shape, Tensor};

const WIDTH: usize = 5;
const ROWS: usize = 7;

fn param(backend: &dyn Backend, id: usize) -> Param {
    let shape = Shape::new(WIDTH, WIDTH);
    let values = random(id as u64 + 1, shape.elements(), 0.7);
    Param::new(id, format!("p{id}"), backend.upload(&values, shape, DType::F32))
}

fn input(backend: &dyn Backend, seed: u64) -> Tensor {
    let shape = Shape::new(ROWS, WIDTH);
    backend.upload(&random(seed, shape.elements(), 1.0), shape, DType::F32)
}

/// Counts what a sweep does to each parameter.
struct Spy<'b> {
    gradients: Gradients<'b>,
    backend: &'b dyn Backend,
    /// Times a buffer was asked for.
    added: BTreeMap<usize, usize>,
    /// Gradient at the moment it was called final.
    ready: BTreeMap<usize, Vec<f32>>,
}

impl<'b> Spy<'b> {
    fn new(backend: &'b dyn Backend) -> Self {
        Self { gradients: Gradients::new(backend), backend, added: BTreeMap::new(), ready: BTreeMap::new() }
    }
}

impl GradSink for Spy<'_> {
    fn buffer(&mut self, param: &Param) -> &mut Tensor {
        assert!(!self.ready.contains_key(&param.id), "`{}` gets more after it was final", param.name);
        *self.added.entry(param.id).or_default() += 1;
        self.gradients.buffer(param)
    }

    fn ready(&mut self, param: &Param) {
        let gradient = self.backend.download(self.gradients.get(param.id).unwrap());
        assert!(self.ready.insert(param.id, gradient).is_none(), "`{}` was final before", param.name);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Keep {
    All,
    Inputs,
    /// A segment inside a segment.
    Nested,
}

/// A chain in which `p[0]` is used outside and inside the segments, `p[1]` twice inside one, `p[2]` once in each of two,
/// and `p[3]` never.
fn chain<'m>(tape: &mut Tape<'m>, p: &'m [Param], x: Var, keep: Keep) -> Var {
    let body = |tape: &mut Tape<'m>, x: Var| {
        let h = tape.linear(x.clone(), &p[1]);
        let h = tape.add(h, x);
        let h = tape.linear(h, &p[1]);
        let h = tape.linear(h, &p[0]);
        tape.linear(h, &p[2])
    };
    let mut h = tape.linear(x, &p[0]);
    for _ in 0..2 {
        h = match keep {
            Keep::All => body(tape, h),
            Keep::Inputs => tape.recompute(h, body),
            Keep::Nested => tape.recompute(h, move |tape, x| {
                let x = tape.recompute(x, body);
                tape.add(x.clone(), x)
            }),
        };
        if keep != Keep::Nested {
            h = tape.add(h.clone(), h);
        }
    }
    tape.linear(h, &p[0])
}

/// The spy after a sweep, and the gradient of the input.
fn sweep<'b>(backend: &'b Oracle, p: &[Param], keep: Keep) -> (Spy<'b>, Vec<f32>) {
    let mut tape = Tape::record(backend);
    let x = tape.leaf(input(backend, 11));
    let y = chain(&mut tape, p, x.clone(), keep);
    let mut spy = Spy::new(backend);
    let dx = tape.backward(y, input(backend, 12), Some(&x), &mut spy).unwrap().unwrap();
    (spy, backend.download(&dx))
}

#[test]
fn a_gradient_is_final_once_and_after_its_last_use() {
    let oracle = Oracle::rounding();
    let p: Vec<Param> = (0..4).map(|id| param(&oracle, id)).collect();
    let (canonical, dx) = sweep(&oracle, &p, Keep::All);
    for keep in [Keep::All, Keep::Inputs, Keep::Nested] {
        let (spy, found) = sweep(&oracle, &p, keep);
        assert_eq!(spy.added, BTreeMap::from([(0, 4), (1, 4), (2, 2)]));
        assert_eq!(
            spy.ready.keys().copied().collect::<Vec<_>>(),
            [0, 1, 2],
            "used parameters, and only those"
        );
        for (id, at_ready) in &spy.ready {
            assert_eq!(*at_ready, oracle.download(spy.gradients.get(*id).unwrap()), "p{id} changed later");
        }
        assert!(spy.ready == canonical.ready, "recomputation changed a bit of a gradient");
        assert_eq!(found, dx, "recomputation changed a bit of the input's gradient");
    }
}

#[test]
fn recomputation_keeps_fewer_ops() {
    let oracle = Oracle::rounding();
    let p: Vec<Param> = (0..4).map(|id| param(&oracle, id)).collect();
    let ops = |keep| {
        let mut tape = Tape::record(&oracle);
        let x = tape.leaf(input(&oracle, 11));
        chain(&mut tape, &p, x, keep);
        tape.ops()
    };
    assert_eq!((ops(Keep::All), ops(Keep::Inputs), ops(Keep::Nested)), (15, 7, 5));
}

#[test]
fn a_tape_that_infers_keeps_nothing_and_computes_the_same() {
    let oracle = Oracle::rounding();
    let p: Vec<Param> = (0..4).map(|id| param(&oracle, id)).collect();
    let mut values = Vec::new();
    for mut tape in [Tape::record(&oracle), Tape::infer(&oracle)] {
        let recording = values.is_empty();
        let x = tape.leaf(input(&oracle, 11));
        let y = chain(&mut tape, &p, x, Keep::Inputs);
        assert_eq!(tape.ops() > 0, recording);
        values.push(oracle.download(y.value()));
    }
    assert_eq!(values[0], values[1]);
}

#[test]
fn gradients_add_up_over_sweeps_until_cleared() {
    let oracle = Oracle::exact();
    let p = param(&oracle, 2);
    let mut gradients = Gradients::new(&oracle);
    let once = |gradients: &mut Gradients<'_>| {
        let mut tape = Tape::record(&oracle);
        let x = tape.leaf(input(&oracle, 1));
        let y = tape.linear(x, &p);
        tape.backward(y, input(&oracle, 2), None, gradients).unwrap();
    };
    once(&mut gradients);
    let first = oracle.download_f64(gradients.get(2).unwrap());
    once(&mut gradients);
    let both = oracle.download_f64(gradients.get(2).unwrap());
    assert_eq!(gradients.iter().map(|(id, _)| id).collect::<Vec<_>>(), [2]);
    assert!(gradients.get(0).is_none() && gradients.get(9).is_none());
    for (first, both) in first.iter().zip(both) {
        assert!((2.0 * first - both).abs() < 1e-12);
    }
    gradients.clear();
    once(&mut gradients);
    assert_eq!(oracle.download_f64(gradients.get(2).unwrap()), first);
}

#[test]
fn collectives_of_one_rank_are_no_ops() {
    let oracle = Oracle::rounding();
    let mut tape = Tape::record(&oracle);
    let x = tape.leaf(input(&oracle, 1));
    let before = tape.ops();
    let y = tape.gather_rows(x.clone(), ROWS, &Solo);
    let y = tape.sum_rows(y, &Solo);
    assert_eq!(tape.ops(), before);
    assert_eq!(oracle.download(y.value()), oracle.download(x.value()));
}

/// Runs the same on both ranks of a group.
fn both<R: Send>(f: impl Fn(usize, &dyn Comm) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let ranks = Threads::group(2).into_iter();
        let handles: Vec<_> = ranks.map(|comm| scope.spawn(|| f(comm.rank(), &{ comm }))).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

#[test]
fn each_collective_is_the_other_in_reverse() {
    let oracle = Oracle::rounding();
    let host = |seed: u64| oracle.download(&input(&oracle, seed));
    let own = |rank: usize| share(ROWS, rank, 2).start * WIDTH..share(ROWS, rank, 2).end * WIDTH;
    let sum = |a: u64| -> Vec<f32> { host(a).iter().zip(host(a + 1)).map(|(x, y)| x + y).collect() };
    // Shares of one tensor, as each rank holds them.
    let shares = |backend: &dyn Backend, seed: u64, rank: usize| {
        let rows = share(ROWS, rank, 2);
        let mut part = backend.zeros(Shape::new(rows.len(), WIDTH), DType::F32);
        backend.copy_rows(&mut part, 0, &input(backend, seed), rows, 0..WIDTH);
        part
    };
    let results = both(|rank, comm| {
        let backend = Oracle::rounding();
        let mut out = Vec::new();
        for reduce_first in [true, false] {
            let mut tape = Tape::record(&backend);
            let (x, y, seed);
            if reduce_first {
                x = tape.leaf(input(&backend, 20 + rank as u64));
                y = tape.sum_rows(x.clone(), comm);
                seed = shares(&backend, 30, rank);
            } else {
                x = tape.leaf(shares(&backend, 40, rank));
                y = tape.gather_rows(x.clone(), ROWS, comm);
                seed = input(&backend, 50 + rank as u64);
            }
            let value = backend.download(y.value());
            let dx = tape.backward(y, seed, Some(&x), &mut Gradients::new(&backend)).unwrap().unwrap();
            out.push((value, backend.download(&dx)));
        }
        out
    });
    for (rank, found) in results.into_iter().enumerate() {
        let expected = [(sum(20)[own(rank)].to_vec(), host(30)), (host(40), sum(50)[own(rank)].to_vec())];
        assert_eq!(found, expected, "rank {rank}");
    }
}

#[test]
fn a_lost_rank_is_an_error_forwards_and_backwards() {
    let oracle = Oracle::rounding();
    let mut group = Threads::group(2);
    drop(group.pop());
    let alone = group.pop().unwrap();
    let p = param(&oracle, 0);
    for recompute in [false, true] {
        // Forwards the failure is kept, also that of a segment, and the sweep refuses to start.
        let mut tape = Tape::record(&oracle);
        let x = tape.leaf(input(&oracle, 1));
        let y = if recompute {
            tape.recompute(x, |tape, x| tape.sum_rows(x, &alone))
        } else {
            tape.sum_rows(x, &alone)
        };
        assert!(matches!(tape.check(), Err(CommError::PeerLost { .. })));
        let mut spy = Spy::new(&oracle);
        let error = tape.backward(y, input(&oracle, 2), None, &mut spy).unwrap_err();
        assert!(matches!(error, CommError::PeerLost { .. }));
        // Backwards the sweep stops with it: this peer goes forwards only.
        let [ours, theirs] = <[_; 2]>::try_from(Threads::group(2)).ok().unwrap();
        let peer = std::thread::spawn(move || {
            let oracle = Oracle::rounding();
            let mut tape = Tape::infer(&oracle);
            let x = tape.leaf(input(&oracle, 1));
            tape.gather_rows(x, 2 * ROWS, &theirs);
            tape.check().unwrap();
        });
        let mut tape = Tape::record(&oracle);
        let x = tape.leaf(input(&oracle, 1));
        let y = if recompute {
            tape.recompute(x, |tape, x| tape.gather_rows(x, 2 * ROWS, &ours))
        } else {
            tape.gather_rows(x, 2 * ROWS, &ours)
        };
        let y = tape.linear(y, &p);
        tape.check().unwrap();
        peer.join().unwrap();
        let shape = y.value().shape();
        let seed = oracle.upload(&vec![1.0; shape.elements()], shape, DType::F32);
        let error = tape.backward(y, seed, None, &mut spy).unwrap_err();
        assert!(matches!(error, CommError::PeerLost { .. }));
    }
}

/// A rank's rows of [`param`].
fn shard(backend: &dyn Backend, id: usize, comm: &Arc<dyn Comm>) -> Param {
    let Param { name, value, .. } = param(backend, id);
    let rows = share(WIDTH, comm.rank(), comm.size());
    let mut own = backend.zeros(Shape::new(rows.len(), WIDTH), DType::F32);
    backend.copy_rows(&mut own, 0, &value, rows, 0..WIDTH);
    Param::new(id, name, own).sharded(value.shape(), Arc::clone(comm))
}

/// Notes which parameters are on their way whenever a gradient is added to.
struct Watch<'b, 'm> {
    gradients: Gradients<'b>,
    params: &'m [Param],
    seen: Vec<(usize, Vec<usize>)>,
}

impl GradSink for Watch<'_, '_> {
    fn buffer(&mut self, param: &Param) -> &mut Tensor {
        let under_way = self.params.iter().filter(|p| p.is_under_way()).map(|p| p.id).collect();
        self.seen.push((param.id, under_way));
        self.gradients.buffer(param)
    }

    fn ready(&mut self, _: &Param) {}
}

/// Products with `p[0]`, with `p[1]` and `p[2]` in a segment, and with `p[3]`: value, gradients, and what was under way.
type Swept = (Vec<f32>, Vec<Vec<f32>>, Vec<(usize, Vec<usize>)>);

fn swept<'m>(backend: &'m Oracle, p: &'m [Param], recompute: bool) -> Swept {
    let mut tape = Tape::record(backend);
    tape.soon(p);
    assert!(p.iter().all(|p| p.is_under_way() == p.is_sharded()), "what is soon used sets off");
    let x = tape.leaf(input(backend, 11));
    let x = tape.linear(x, &p[0]);
    let segment = |tape: &mut Tape<'m>, x| {
        let x = tape.linear(x, &p[1]);
        tape.linear(x, &p[2])
    };
    let x = if recompute { tape.recompute(x, segment) } else { segment(&mut tape, x) };
    let y = tape.linear(x, &p[3]);
    assert!(!p.iter().any(Param::is_under_way), "what was used is here");
    let value = backend.download(y.value());
    let mut watch = Watch { gradients: Gradients::new(backend), params: p, seen: Vec::new() };
    tape.backward(y, input(backend, 12), None, &mut watch).unwrap();
    assert!(!p.iter().any(Param::is_under_way), "the sweep leaves no gather behind");
    let gradients = p.iter().map(|p| backend.download(watch.gradients.get(p.id).unwrap())).collect();
    (value, gradients, watch.seen)
}

#[test]
fn sharded_parameters_come_ahead_of_their_use_and_change_no_bit() {
    let oracle = Oracle::rounding();
    let whole: Vec<Param> = (0..4).map(|id| param(&oracle, id)).collect();
    let (value, gradients, seen) = swept(&oracle, &whole, false);
    assert!(seen.iter().all(|(_, under_way)| under_way.is_empty()));
    for recompute in [false, true] {
        let worlds = Threads::world(2, WorldOptions::default()).into_iter();
        let results: Vec<Swept> = std::thread::scope(|scope| {
            let ranks = worlds.map(|world| {
                scope.spawn(move || {
                    let backend = Oracle::rounding();
                    let comm: Arc<dyn Comm> = Arc::new(world.group("shards", 0, vec![0, 1]));
                    let p: Vec<Param> = (0..4).map(|id| shard(&backend, id, &comm)).collect();
                    assert!(p.iter().all(|p| p.shape() == Shape::new(WIDTH, WIDTH)));
                    let swept = swept(&backend, &p, recompute);
                    comm.barrier().unwrap();
                    // Each forwards and backwards; a segment that is run again keeps what it gathers.
                    let records = world.recorder().records();
                    assert_eq!(records.iter().filter(|r| r.op == Op::AllGather).count(), 8);
                    swept
                })
            });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        // Its own rows are not needed yet where a weight gets its gradient, unless its segment was just run again.
        let ahead = if recompute {
            [(3, vec![1, 2, 3]), (2, vec![0]), (1, vec![0]), (0, vec![0])]
        } else {
            [(3, vec![2, 3]), (2, vec![1, 2]), (1, vec![0, 1]), (0, vec![0])]
        };
        for (found, of_params, seen) in results {
            assert!(found == value && of_params == gradients, "recompute {recompute}: other bits");
            assert_eq!(seen, ahead, "recompute {recompute}");
        }
    }
}

#[test]
fn a_lost_rank_with_rows_of_a_parameter_is_an_error() {
    let oracle = Oracle::rounding();
    for ahead in [false, true] {
        let mut group = Threads::group(2);
        drop(group.pop());
        let alone: Arc<dyn Comm> = Arc::new(group.pop().unwrap());
        let p = shard(&oracle, 0, &alone);
        let mut tape = Tape::record(&oracle);
        if ahead {
            tape.soon([&p]);
        }
        let x = tape.leaf(input(&oracle, 1));
        let y = tape.linear(x, &p);
        assert_eq!(y.value().shape(), Shape::new(ROWS, WIDTH), "values mean nothing, but shapes fit");
        let error = tape.backward(y, input(&oracle, 2), None, &mut Spy::new(&oracle)).unwrap_err();
        assert!(matches!(error, CommError::PeerLost { .. }), "{error}");
    }
}

/// Two blocks of norm, product and gate, some of whose values are used twice.
fn gated<'m>(tape: &mut Tape<'m>, p: &'m [Param], norm: &'m Param, mut x: Var) -> Var {
    for _ in 0..2 {
        let h = tape.rms_norm(x.clone(), norm, 1e-5);
        let a = tape.linear(h.clone(), &p[0]);
        let b = tape.linear(h, &p[1]);
        let h = tape.add(a, b);
        let h = tape.rms_norm(h, norm, 1e-5);
        // A cheap value of a cheap value.
        let h = tape.rms_norm(h, norm, 1e-5);
        let h = tape.linear(h, &p[2]);
        x = tape.add(x, h);
    }
    tape.linear(x, &p[0])
}

#[test]
fn cheap_values_computed_again_change_no_bit_and_are_not_kept() {
    let oracle = Oracle::rounding();
    let p: Vec<Param> = (0..3).map(|id| param(&oracle, id)).collect();
    let values = random(7, WIDTH, 1.0);
    let norm = Param::new(3, "norm", oracle.upload(&values, Shape::new(1, WIDTH), DType::F32));
    let run = |again: bool| {
        let mut tape = Tape::record(&oracle);
        if again {
            tape.recompute_cheap();
        }
        let before = oracle.memory().live_bytes;
        let x = tape.leaf(input(&oracle, 11));
        let y = gated(&mut tape, &p, &norm, x.clone());
        let kept = oracle.memory().live_bytes - before;
        let mut spy = Spy::new(&oracle);
        let dx = tape.backward(y, input(&oracle, 12), Some(&x), &mut spy).unwrap().unwrap();
        (kept, spy.ready, oracle.download(&dx))
    };
    let ((all, ready, dx), (fewer, found_ready, found)) = (run(false), run(true));
    assert!(found_ready == ready && found == dx, "recomputation changed a bit");
    // Of three norms in each of two blocks, none keeps its output.
    assert_eq!(all - fewer, 2 * 3 * ROWS * WIDTH * 4);
}

#[test]
fn storage_is_overwritten_only_when_nothing_else_needs_it() {
    let oracle = Oracle::rounding();
    let host = |seed| oracle.download(&input(&oracle, seed));
    let want: Vec<f32> = host(1).iter().zip(host(2)).map(|(a, b)| a + b).collect();
    for (keep_a, keep_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut tape = Tape::infer(&oracle);
        let (a, b) = (tape.leaf(input(&oracle, 1)), tape.leaf(input(&oracle, 2)));
        let kept = (keep_a.then(|| a.clone()), keep_b.then(|| b.clone()));
        let before = oracle.memory().live_bytes;
        let sum = tape.add(a, b);
        let more = oracle.memory().live_bytes as i64 - before as i64;
        assert_eq!(oracle.download(sum.value()), want);
        assert_eq!(more / (ROWS * WIDTH * 4) as i64, i64::from(keep_a) + i64::from(keep_b) - 1);
        for (kept, seed) in [(kept.0, 1), (kept.1, 2)] {
            assert!(kept.is_none_or(|k| oracle.download(k.value()) == host(seed)), "an input changed");
        }
    }
}

/// The table is looked up at the start and multiplied by at the end.
#[test]
fn finishing_with_the_loss_is_the_loss_and_then_the_sweep() {
    let oracle = Oracle::rounding();
    let (table, inner) = (param(&oracle, 0), param(&oracle, 1));
    let ids = [0, 4, 2, 2, 1, 3, 0];
    let targets = [1, NO_TARGET, 0, 4, 2, 2, NO_TARGET];
    let d_nll = || oracle.upload(&random(5, ROWS, 1.0), Shape::new(ROWS, 1), DType::F32);
    fn hidden<'m>(tape: &mut Tape<'m>, table: &'m Param, inner: &'m Param, ids: &'m [u32]) -> Var {
        let x = tape.embed(table, ids);
        tape.linear(x, inner)
    }
    let mut tape = Tape::record(&oracle);
    let h = hidden(&mut tape, &table, &inner, &ids);
    let nll = tape.linear_cross_entropy(h, &table, &targets);
    let expected_nll = oracle.download(nll.value());
    let mut expected = Spy::new(&oracle);
    tape.backward(nll, d_nll(), None, &mut expected).unwrap();

    let mut tape = Tape::record(&oracle);
    let h = hidden(&mut tape, &table, &inner, &ids);
    let mut spy = Spy::new(&oracle);
    let d_nll = d_nll();
    let targets = Targets { ids: &targets, loss: RowLoss::cross_entropy(&d_nll) };
    let (loss, _) = tape.finish_with_cross_entropy(h, &table, targets, None, &mut spy).unwrap();
    assert_eq!(oracle.download(&loss.nll), expected_nll);
    // The spy also checks that the table's gradient is not called final between its two uses.
    assert!(spy.ready == expected.ready && spy.ready.len() == 2);
    assert_eq!(spy.added, expected.added);

    // The gradient of a wanted leaf comes back.
    let mut tape = Tape::record(&oracle);
    let x = tape.leaf(input(&oracle, 3));
    let mut spy = Spy::new(&oracle);
    let (_, dx) = tape.finish_with_cross_entropy(x.clone(), &table, targets, Some(&x), &mut spy).unwrap();
    let loss = oracle.linear_cross_entropy(x.value(), &table.value, targets.ids);
    let mut dw = oracle.zeros(table.value.shape(), DType::F32);
    let input = (x.value(), &table.value);
    let want = oracle.linear_cross_entropy_backward(targets.loss, input, targets.ids, &loss.lse, &mut dw);
    assert_eq!(oracle.download(&dx.unwrap()), oracle.download(&want));
}
