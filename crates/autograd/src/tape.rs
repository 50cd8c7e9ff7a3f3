//! The tape: what was computed, and how to go back through it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use llamero_comm::CommError;
use llamero_tensor::{Backend, CrossEntropy, Heads, RowLoss, Segments, Tensor};

use crate::{ContextPart, GradSink, Param};

/// A value on a tape.
#[derive(Clone)]
pub struct Var {
    id: usize,
    value: Tensor,
}

impl Var {
    /// The computed tensor.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    pub(crate) fn into_value(self) -> Tensor {
        self.value
    }

    pub(crate) fn id(&self) -> usize {
        self.id
    }
}

/// Keys and values kept between the calls of one request's forward passes. Implemented by the inference engine;
/// the model only ever says "attention of layer `l`".
pub trait KvStore {
    /// Appends the keys and values of `qkv` (rotated, `[T, (H+2G)·D]`) to layer `layer` and returns the attention
    /// output `[T, H·D]` of its queries over everything stored.
    fn attend(
        &mut self,
        backend: &dyn Backend,
        layer: usize,
        qkv: &Tensor,
        heads: Heads,
        segments: &Segments,
    ) -> Tensor;
}

/// Maps the gradient of an op's output to those of its inputs, in the order the inputs were named.
pub(crate) type Backward<'m> =
    Box<dyn FnOnce(&mut Sweep<'m, '_>, Tensor) -> Result<Vec<Tensor>, CommError> + 'm>;

/// Computes a value once more.
type Again<'m> = Rc<dyn Fn() -> Result<Tensor, CommError> + 'm>;

/// What an op remembers of a value for its backward pass.
#[derive(Clone)]
pub(crate) enum Saved<'m> {
    /// The value.
    Kept(Tensor),
    /// How to compute it: same kernel on the same inputs, so the same bits. Collectives on the way are repeated.
    Again(Again<'m>),
}

impl Saved<'_> {
    pub(crate) fn value(&self) -> Result<Tensor, CommError> {
        match self {
            Saved::Kept(value) => Ok(value.clone()),
            Saved::Again(again) => again(),
        }
    }

    /// The value, not kept here any longer.
    pub(crate) fn into_value(self) -> Result<Tensor, CommError> {
        match self {
            Saved::Kept(value) => Ok(value),
            Saved::Again(again) => again(),
        }
    }
}

struct Node<'m> {
    inputs: Vec<usize>,
    backward: Option<Backward<'m>>,
    /// Set when the value is not worth keeping.
    again: Option<Again<'m>>,
}

/// How often each parameter still has to be met before its gradient is final.
type Uses = Rc<RefCell<BTreeMap<usize, usize>>>;

/// The state of a backward sweep that ops may use.
pub(crate) struct Sweep<'m, 's> {
    pub(crate) backend: &'m dyn Backend,
    sink: &'s mut dyn GradSink,
    uses: Uses,
}

impl Sweep<'_, '_> {
    /// Lets `add` put a gradient into the buffer of `param`, and tells the sink when it was the last one.
    pub(crate) fn accumulate<R>(
        &mut self,
        param: &Param,
        add: impl FnOnce(&mut Tensor) -> Result<R, CommError>,
    ) -> Result<R, CommError> {
        let result = add(self.sink.buffer(param))?;
        let mut uses = self.uses.borrow_mut();
        if let Some(left) = uses.get_mut(&param.id) {
            *left -= 1;
            if *left == 0 {
                uses.remove(&param.id);
                self.sink.ready(param);
            }
        }
        Ok(result)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Keeps closures for the backward sweep.
    Record,
    /// Computes only.
    Infer,
    /// Computes only, but counts the uses of parameters: the first pass of a recomputed segment.
    Rehearse,
    /// Keeps closures, and does not count uses again: the second pass of a recomputed segment.
    Replay,
}

/// Runs ops on a backend and remembers the way back. `'m` is the lifetime of the model and of the inputs.
pub struct Tape<'m> {
    pub(crate) backend: &'m dyn Backend,
    mode: Mode,
    nodes: Vec<Node<'m>>,
    uses: Uses,
    /// Whether outputs of cheap ops are computed again instead of being kept.
    cheap_again: bool,
    /// Where the rows of the batch are divided among ranks.
    pub(crate) context: Option<ContextPart<'m>>,
    /// Sharded parameters that an op will gather again in the sweep: which op, in order.
    again: Vec<(usize, &'m Param)>,
    kv: Option<&'m mut dyn KvStore>,
    failure: Option<CommError>,
}

const NOT_RECORDED: usize = usize::MAX;

impl<'m> Tape<'m> {
    fn with_mode(backend: &'m dyn Backend, mode: Mode, uses: Uses) -> Self {
        Self {
            backend,
            mode,
            nodes: Vec::new(),
            uses,
            cheap_again: false,
            context: None,
            again: Vec::new(),
            kv: None,
            failure: None,
        }
    }

    /// A tape that records for a backward sweep.
    pub fn record(backend: &'m dyn Backend) -> Self {
        Self::with_mode(backend, Mode::Record, Uses::default())
    }

    /// A tape that records nothing.
    pub fn infer(backend: &'m dyn Backend) -> Self {
        Self::with_mode(backend, Mode::Infer, Uses::default())
    }

    /// A tape that records nothing and whose attention reads and extends a store of keys and values.
    pub fn infer_with(backend: &'m dyn Backend, kv: &'m mut dyn KvStore) -> Self {
        Self { kv: Some(kv), ..Self::infer(backend) }
    }

    /// The device that runs the ops.
    pub fn backend(&self) -> &'m dyn Backend {
        self.backend
    }

    /// From here on the outputs of ops that are cheap to compute again (`rms_norm`, `swiglu`) are not kept for the
    /// backward pass; their inputs are kept anyway.
    pub fn recompute_cheap(&mut self) {
        self.cheap_again = true;
    }

    pub(crate) fn recomputes_cheap(&self) -> bool {
        self.cheap_again
    }

    /// Number of recorded ops.
    pub fn ops(&self) -> usize {
        self.nodes.len()
    }

    /// The first failure of a collective in the forward pass, if there was one. Values after it mean nothing.
    pub fn check(&self) -> Result<(), CommError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn fail(&mut self, error: CommError) {
        self.failure.get_or_insert(error);
    }

    pub(crate) fn records(&self) -> bool {
        matches!(self.mode, Mode::Record | Mode::Replay)
    }

    pub(crate) fn kv(&mut self) -> Option<&mut (dyn KvStore + 'm)> {
        self.kv.as_deref_mut()
    }

    /// A value from outside: an input, or the hidden states of an earlier pipeline stage.
    pub fn leaf(&mut self, value: Tensor) -> Var {
        if !self.records() {
            return Var { id: NOT_RECORDED, value };
        }
        self.nodes.push(Node { inputs: Vec::new(), backward: None, again: None });
        Var { id: self.nodes.len() - 1, value }
    }

    /// Notes that an op uses a parameter; each use is matched by one [`Sweep::accumulate`].
    pub(crate) fn uses(&mut self, param: &Param) {
        if matches!(self.mode, Mode::Record | Mode::Rehearse) {
            *self.uses.borrow_mut().entry(param.id).or_default() += 1;
        }
    }

    /// Notes that an op uses a parameter, and gives its whole value and what to remember of it: of a sharded one, how to
    /// gather it once more, except where the sweep is about to come by.
    pub(crate) fn weight(&mut self, param: &'m Param) -> (Tensor, Saved<'m>) {
        self.uses(param);
        let (whole, backend) = (self.whole(param), self.backend);
        if !param.is_sharded() || self.mode == Mode::Replay {
            return (whole.clone(), Saved::Kept(whole));
        }
        self.again.push((self.nodes.len(), param));
        (whole, Saved::Again(Rc::new(move || param.whole(backend))))
    }

    /// The whole value of a parameter.
    pub(crate) fn whole(&mut self, param: &Param) -> Tensor {
        let whole = self.check().and_then(|()| param.whole(self.backend));
        self.whole_shape(whole, param.shape().rows, &param.value)
    }

    /// Says that ops will soon use these parameters: what is elsewhere sets off while others are computed with. Each must
    /// then be used before its value changes.
    pub fn soon<'p>(&mut self, params: impl IntoIterator<Item = &'p Param>) {
        let backend = self.backend;
        let mut params = params.into_iter();
        if let Err(error) = self.check().and_then(|()| params.try_for_each(|param| param.fetch(backend))) {
            self.fail(error);
        }
    }

    pub(crate) fn op<const N: usize>(
        &mut self,
        value: Tensor,
        inputs: [usize; N],
        backward: impl FnOnce(&mut Sweep<'m, '_>, Tensor) -> Result<Vec<Tensor>, CommError> + 'm,
    ) -> Var {
        if !self.records() {
            return Var { id: NOT_RECORDED, value };
        }
        self.nodes.push(Node { inputs: inputs.into(), backward: Some(Box::new(backward)), again: None });
        Var { id: self.nodes.len() - 1, value }
    }

    /// What to remember of `x`.
    pub(crate) fn saved(&self, x: &Var) -> Saved<'m> {
        match self.nodes.get(x.id).and_then(|node| node.again.clone()) {
            Some(again) => Saved::Again(again),
            None => Saved::Kept(x.value.clone()),
        }
    }

    /// Notes how the value of `y` is computed, so that [`Tape::saved`] need not keep it.
    pub(crate) fn cheap(&mut self, y: &Var, again: impl Fn() -> Result<Tensor, CommError> + 'm) {
        if let Some(node) = self.nodes.get_mut(y.id).filter(|_| self.cheap_again) {
            node.again = Some(Rc::new(again));
        }
    }

    /// Runs `segment` without keeping its activations and runs it again, recording, when the backward sweep
    /// comes by (Chen et al. 2016). Same kernels on the same inputs, so the gradients have the same bits.
    pub fn recompute(&mut self, x: Var, segment: impl Fn(&mut Tape<'m>, Var) -> Var + 'm) -> Var {
        if !self.records() {
            return segment(self, x);
        }
        let rehearsal = if self.mode == Mode::Record { Mode::Rehearse } else { Mode::Infer };
        let mut first = Tape::with_mode(self.backend, rehearsal, Rc::clone(&self.uses));
        first.failure.clone_from(&self.failure);
        first.context.clone_from(&self.context);
        let input = first.leaf(x.value.clone());
        let y = segment(&mut first, input).value;
        if let Some(error) = first.failure {
            self.fail(error);
        }
        let here = self.nodes.len();
        self.again.extend(first.again.into_iter().map(|(_, param)| (here, param)));
        let (saved, cheap_again, context) = (self.saved(&x), self.cheap_again, self.context.clone());
        self.op(y, [x.id], move |sweep, dy| {
            let mut again = Tape::with_mode(sweep.backend, Mode::Replay, Rc::clone(&sweep.uses));
            again.cheap_again = cheap_again;
            again.context = context;
            let input = again.leaf(saved.into_value()?);
            let wanted = input.id;
            let y = segment(&mut again, input);
            again.check()?;
            let from = y.seeded(&dy);
            let dx = run((again.nodes, again.again), (from, dy), Some(wanted), sweep)?;
            Ok(dx.into_iter().collect())
        })
    }

    /// The backward sweep from `from` with gradient `seed`. Gradients of parameters go to `sink`; the gradient of
    /// `wanted` (a leaf) is returned when given and reached.
    pub fn backward(
        mut self,
        from: Var,
        seed: Tensor,
        wanted: Option<&Var>,
        sink: &mut dyn GradSink,
    ) -> Result<Option<Tensor>, CommError> {
        self.check()?;
        assert!(self.records(), "backward: this tape records nothing");
        fetch_before(&mut self.again, usize::MAX, self.backend)?;
        let mut sweep = Sweep { backend: self.backend, sink, uses: self.uses };
        let from = from.seeded(&seed);
        run((self.nodes, self.again), (from, seed), wanted.map(|w| w.id), &mut sweep)
    }
}

/// The end of a training pass whose loss is `Σ d_row · (nll + z · lse²)` with `d_row` known beforehand.
#[derive(Clone, Copy)]
pub struct Targets<'a> {
    /// Target of each row; [`llamero_tensor::NO_TARGET`] where it does not count.
    pub ids: &'a [u32],
    /// The loss of each row.
    pub loss: RowLoss<'a>,
}

impl<'m> Tape<'m> {
    /// [`Tape::linear_cross_entropy`] of `h` and the backward sweep in one: the logits are computed once, and `h` is
    /// gone before the sweep begins. Returns the losses of the rows, and the gradient of `wanted` as [`Tape::backward`]
    /// does.
    pub fn finish_with_cross_entropy(
        self,
        h: Var,
        w: &'m Param,
        targets: Targets<'_>,
        wanted: Option<&Var>,
        sink: &mut dyn GradSink,
    ) -> Result<(CrossEntropy, Option<Tensor>), CommError> {
        let Targets { ids, loss } = targets;
        self.finish(h, w, wanted, sink, |backend, input, dw| {
            Ok(backend.linear_cross_entropy_with_gradient(loss, input, ids, dw))
        })
    }

    /// The end of a training pass: `loss` gives the losses of the rows of `h` under the whole of `w` and its gradient, and adds
    /// that of `w` to the buffer that it is given; then the sweep begins.
    pub(crate) fn finish(
        mut self,
        h: Var,
        w: &'m Param,
        wanted: Option<&Var>,
        sink: &mut dyn GradSink,
        loss: impl FnOnce(
            &dyn Backend,
            (&Tensor, &Tensor),
            &mut Tensor,
        ) -> Result<(CrossEntropy, Tensor), CommError>,
    ) -> Result<(CrossEntropy, Option<Tensor>), CommError> {
        self.check()?;
        assert!(self.records(), "finish: this tape records nothing");
        // Counted like any other use, so that a table that is also the embedding's is not final yet.
        self.uses(w);
        let backend = self.backend;
        let mut sweep = Sweep { backend, sink, uses: self.uses };
        let whole = w.whole(backend)?;
        fetch_before(&mut self.again, usize::MAX, backend)?;
        let (found, dh) = sweep.accumulate(w, |dw| loss(backend, (h.value(), &whole), dw))?;
        drop(whole);
        let from = h.seeded(&dh);
        let d_wanted = run((self.nodes, self.again), (from, dh), wanted.map(|w| w.id), &mut sweep)?;
        Ok((found, d_wanted))
    }
}

impl Var {
    /// Lets go of the value: its gradient `seed` is all that the sweep needs.
    fn seeded(self, seed: &Tensor) -> usize {
        assert_eq!(seed.shape(), self.value.shape(), "backward: the seed has another shape than the value");
        self.id
    }
}

/// Lets what the op next below `id` gathers set off, and forgets what is above.
fn fetch_before(again: &mut Vec<(usize, &Param)>, id: usize, backend: &dyn Backend) -> Result<(), CommError> {
    while again.pop_if(|(op, _)| *op >= id).is_some() {}
    let Some(&(next, _)) = again.last() else { return Ok(()) };
    let first = again.partition_point(|(op, _)| *op < next);
    again[first..].iter().try_for_each(|(_, param)| param.fetch(backend))
}

fn run<'m>(
    (nodes, mut fetches): (Vec<Node<'m>>, Vec<(usize, &'m Param)>),
    (from, seed): (usize, Tensor),
    wanted: Option<usize>,
    sweep: &mut Sweep<'m, '_>,
) -> Result<Option<Tensor>, CommError> {
    let mut gradients: Vec<Option<Tensor>> = vec![None; nodes.len()];
    gradients[from] = Some(seed);
    let mut found = None;
    for (id, Node { inputs, backward, again }) in nodes.into_iter().enumerate().rev() {
        drop(again);
        let Some(dy) = gradients[id].take() else { continue };
        fetch_before(&mut fetches, id, sweep.backend)?;
        if let Some(backward) = backward {
            for (input, dx) in inputs.into_iter().zip(backward(sweep, dy)?) {
                gradients[input] = Some(match gradients[input].take() {
                    Some(earlier) => sum(sweep.backend, earlier, dx),
                    None => dx,
                });
            }
        } else if wanted == Some(id) {
            found = Some(dy);
        }
    }
    Ok(found)
}

/// `a + b`, in the storage of one of them where nothing else needs it.
pub(crate) fn sum(backend: &dyn Backend, mut a: Tensor, mut b: Tensor) -> Tensor {
    if !a.is_shared() {
        backend.add_assign(&mut a, &b);
        a
    } else if !b.is_shared() {
        backend.add_assign(&mut b, &a);
        b
    } else {
        backend.add(&a, &b)
    }
}
