//! The tape: what was computed, and how to go back through it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use llamero_comm::CommError;
use llamero_tensor::{Backend, Heads, Segments, Tensor};

use crate::{GradSink, Param};

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
    Box<dyn FnOnce(&mut Sweep<'m, '_>, &Tensor) -> Result<Vec<Tensor>, CommError> + 'm>;

struct Node<'m> {
    inputs: Vec<usize>,
    backward: Option<Backward<'m>>,
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
    pub(crate) fn accumulate<R>(&mut self, param: &Param, add: impl FnOnce(&mut Tensor) -> R) -> R {
        let result = add(self.sink.buffer(param));
        let mut uses = self.uses.borrow_mut();
        if let Some(left) = uses.get_mut(&param.id) {
            *left -= 1;
            if *left == 0 {
                uses.remove(&param.id);
                self.sink.ready(param);
            }
        }
        result
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
    kv: Option<&'m mut dyn KvStore>,
    failure: Option<CommError>,
}

const NOT_RECORDED: usize = usize::MAX;

impl<'m> Tape<'m> {
    fn with_mode(backend: &'m dyn Backend, mode: Mode, uses: Uses) -> Self {
        Self { backend, mode, nodes: Vec::new(), uses, kv: None, failure: None }
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
        self.nodes.push(Node { inputs: Vec::new(), backward: None });
        Var { id: self.nodes.len() - 1, value }
    }

    /// Notes that an op uses a parameter; each use is matched by one [`Sweep::accumulate`].
    pub(crate) fn uses(&mut self, param: &Param) {
        if matches!(self.mode, Mode::Record | Mode::Rehearse) {
            *self.uses.borrow_mut().entry(param.id).or_default() += 1;
        }
    }

    pub(crate) fn op<const N: usize>(
        &mut self,
        value: Tensor,
        inputs: [&Var; N],
        backward: impl FnOnce(&mut Sweep<'m, '_>, &Tensor) -> Result<Vec<Tensor>, CommError> + 'm,
    ) -> Var {
        if !self.records() {
            return Var { id: NOT_RECORDED, value };
        }
        let inputs = inputs.iter().map(|v| v.id).collect();
        self.nodes.push(Node { inputs, backward: Some(Box::new(backward)) });
        Var { id: self.nodes.len() - 1, value }
    }

    /// Runs `segment` without keeping its activations and runs it again, recording, when the backward sweep
    /// comes by (Chen et al. 2016). Same kernels on the same inputs, so the gradients have the same bits.
    pub fn recompute(&mut self, x: &Var, segment: impl Fn(&mut Tape<'m>, &Var) -> Var + 'm) -> Var {
        if !self.records() {
            return segment(self, x);
        }
        let rehearsal = if self.mode == Mode::Record { Mode::Rehearse } else { Mode::Infer };
        let mut first = Tape::with_mode(self.backend, rehearsal, Rc::clone(&self.uses));
        let input = first.leaf(x.value.clone());
        let y = segment(&mut first, &input).value;
        if let Some(error) = first.failure {
            self.fail(error);
        }
        let saved = x.value.clone();
        self.op(y, [x], move |sweep, dy| {
            let mut again = Tape::with_mode(sweep.backend, Mode::Replay, Rc::clone(&sweep.uses));
            let input = again.leaf(saved);
            let y = segment(&mut again, &input);
            again.check()?;
            let nodes = std::mem::take(&mut again.nodes);
            let dx = run(nodes, &y, dy.clone(), Some(&input), sweep)?;
            Ok(dx.into_iter().collect())
        })
    }

    /// The backward sweep from `from` with gradient `seed`. Gradients of parameters go to `sink`; the gradient of
    /// `wanted` (a leaf) is returned when given and reached.
    pub fn backward(
        self,
        from: &Var,
        seed: Tensor,
        wanted: Option<&Var>,
        sink: &mut dyn GradSink,
    ) -> Result<Option<Tensor>, CommError> {
        self.check()?;
        assert!(self.records(), "backward: this tape records nothing");
        let mut sweep = Sweep { backend: self.backend, sink, uses: self.uses };
        run(self.nodes, from, seed, wanted, &mut sweep)
    }
}

fn run<'m>(
    nodes: Vec<Node<'m>>,
    from: &Var,
    seed: Tensor,
    wanted: Option<&Var>,
    sweep: &mut Sweep<'m, '_>,
) -> Result<Option<Tensor>, CommError> {
    assert_eq!(seed.shape(), from.value.shape(), "backward: the seed has another shape than the value");
    let mut gradients: Vec<Option<Tensor>> = vec![None; nodes.len()];
    gradients[from.id] = Some(seed);
    let mut found = None;
    for (id, node) in nodes.into_iter().enumerate().rev() {
        let Some(dy) = gradients[id].take() else { continue };
        if let Some(backward) = node.backward {
            for (input, dx) in node.inputs.into_iter().zip(backward(sweep, &dy)?) {
                gradients[input] = Some(match gradients[input].take() {
                    Some(earlier) => sweep.backend.add(&earlier, &dx),
                    None => dx,
                });
            }
        } else if wanted.is_some_and(|w| w.id == id) {
            found = Some(dy);
        }
    }
    Ok(found)
}
