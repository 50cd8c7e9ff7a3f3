//! AdamW over f32 master weights, of which each data-parallel rank updates its share (ZeRO, Rajbhandari et al. 2020).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use llamero_autograd::{Param, body};
use llamero_comm::{Comm, CommError, Op, Pending, share};
use llamero_model::{Group, Llama};
use llamero_tensor::{AdamW, AdamWState, Backend, DType, LowHalves, Master, Shape, Tensor};

use crate::{OptimizerConfig, TrainError};

/// State of one parameter, or of this rank's share of its rows.
pub(crate) struct State {
    pub(crate) group: Group,
    /// Rows of the parameter that this rank updates.
    pub(crate) rows: Range<usize>,
    /// What the model's bf16 weights lack to be f32 master weights; f32 weights lack nothing.
    pub(crate) low: Option<LowHalves>,
    pub(crate) m: Tensor,
    pub(crate) v: Tensor,
    /// Sum of the masters, from the first that goes into an average on.
    pub(crate) sum: Option<Tensor>,
}

impl State {
    /// The f32 master weights of this rank's rows of a parameter.
    pub(crate) fn master(&self, value: &Tensor, backend: &dyn Backend) -> Tensor {
        let own = part(backend, value, self.rows.clone());
        match &self.low {
            None => own,
            Some(low) => backend.join(&own, low),
        }
    }
}

/// First and second moments, and the lower halves of f32 master weights where the model computes in bf16: with the
/// weights, 12 bytes a parameter either way.
pub struct Optimizer {
    /// In the order of the model's parameters.
    pub(crate) states: Vec<State>,
    /// Updates done.
    pub(crate) updates: u64,
}

/// So many parameters' new rows may be under way while the next are computed; all at once would be a copy of the weights.
const UNDER_WAY: usize = 2;

/// The rows of parameter `id` that rank `rank` of `size` data-parallel ones updates. A parameter with fewer rows than there
/// are ranks belongs to one of them.
pub(crate) fn owned_rows(rows: usize, id: usize, (rank, size): (usize, usize)) -> Range<usize> {
    if rows >= size {
        share(rows, rank, size)
    } else if id % size == rank {
        0..rows
    } else {
        0..0
    }
}

impl Optimizer {
    /// Zero moments for this rank's share of every parameter of `stages`; masters start as their weights.
    pub(crate) fn new(stages: &[Llama], backend: &dyn Backend, dp: &dyn Comm) -> Self {
        let mut states = Vec::new();
        for stage in stages {
            let table = stage.config.params();
            states.extend(stage.params().map(|p| {
                let rows = owned_rows(p.shape().rows, p.id, (dp.rank(), dp.size()));
                let own = part(backend, &p.value, rows.clone());
                let zeros = || backend.zeros(own.shape(), DType::F32);
                let low =
                    (own.dtype() != DType::F32).then(|| backend.split(&backend.cast(&own, DType::F32)).1);
                State { group: table[p.id].group(), rows, low, m: zeros(), v: zeros(), sum: None }
            }));
        }
        Self { states, updates: 0 }
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One update with gradients scaled by `grad_scale`, each of this rank's rows; then the ranks of `dp` send each other
    /// their rows of what is not sharded, which travel while the next are computed. Parameters without a gradient are left
    /// alone.
    pub(crate) fn step(
        &mut self,
        stages: &mut [Llama],
        gradients: &BTreeMap<usize, Tensor>,
        (backend, dp): (&dyn Backend, &dyn Comm),
        config: &OptimizerConfig,
        rate: (f64, f64),
    ) -> Result<(), TrainError> {
        let (lr, grad_scale) = rate;
        self.updates += 1;
        let power = self.updates.min(i32::MAX as u64) as f64;
        let bias = |beta: f64| (1.0 - libm::pow(beta, power)) as f32;
        let mut step = AdamW {
            lr: lr as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.eps as f32,
            weight_decay: 0.0,
            bias1: bias(config.beta1),
            bias2: bias(config.beta2),
            grad_scale: grad_scale as f32,
        };
        let mut sent = VecDeque::new();
        let params = stages.iter_mut().flat_map(Llama::params_mut);
        for (param, state) in params.zip(&mut self.states) {
            let Some(grad) = gradients.get(&param.id) else { continue };
            step.weight_decay = config.decay_of(state.group) as f32;
            step.lr = (lr * config.lr_scale(state.group)) as f32;
            let State { low, m, v, rows, .. } = state;
            let mut update = |high: &mut Tensor| {
                let weight = match low {
                    None => Master::F32(high),
                    Some(low) => Master::Split { high, low },
                };
                backend.adamw(AdamWState { weight, m, v }, grad, &step);
            };
            if dp.size() == 1 || param.is_sharded() {
                assert!(!param.is_under_way(), "`{}` changes while it is gathered", param.name);
                if param.value.is_shared() {
                    // With a message whose end the transport has not seen yet.
                    param.value = copied(backend, &param.value, 0..rows.len());
                }
                update(&mut param.value);
                continue;
            }
            let mut own = copied(backend, &param.value, rows.clone());
            update(&mut own);
            sent.push_back((param, send_rows(&own, backend, dp)?));
            if sent.len() > UNDER_WAY {
                sent.pop_front().map_or(Ok(()), |oldest| receive_rows(oldest, backend, dp))?;
            }
        }
        sent.into_iter().try_for_each(|sent| receive_rows(sent, backend, dp))
    }
}

/// Sends the rows of a parameter that this rank has new to the other ranks of `dp`.
pub(crate) fn send_rows(own: &Tensor, backend: &dyn Backend, dp: &dyn Comm) -> Result<Pending, CommError> {
    let rows = body(backend, own, 0..own.rows());
    dp.start(Op::AllGather, vec![rows; dp.size()])
}

/// Puts the rows that all ranks of `dp` sent in their places.
pub(crate) fn receive_rows(
    (param, pending): (&mut Param, Pending),
    backend: &dyn Backend,
    dp: &dyn Comm,
) -> Result<(), TrainError> {
    let bodies = dp.finish(pending)?;
    let raw: Vec<&[u8]> = bodies.iter().map(|body| &**body).collect();
    let Param { value, id, .. } = param;
    for (from, part) in raw.iter().enumerate() {
        let element = value.dtype().bytes();
        let rows = owned_rows(value.rows(), *id, (from, dp.size()));
        let (found, expected) = (part.len() / element, rows.len() * value.cols());
        if part.len() != expected * element {
            let (op, rank) = (Op::AllGather.name(), dp.rank());
            return Err(CommError::Length { op, rank, from, found, expected }.into());
        }
    }
    *value = backend.upload_raw(&raw, value.shape(), value.dtype());
    Ok(())
}

/// Some rows of a tensor; the tensor itself when they are all.
fn part(backend: &dyn Backend, x: &Tensor, rows: Range<usize>) -> Tensor {
    if rows.len() == x.rows() {
        return x.clone();
    }
    copied(backend, x, rows)
}

/// A copy of some rows of a tensor.
fn copied(backend: &dyn Backend, x: &Tensor, rows: Range<usize>) -> Tensor {
    let mut copy = backend.zeros(Shape::new(rows.len(), x.cols()), x.dtype());
    backend.copy_rows(&mut copy, 0, x, rows, 0..x.cols());
    copy
}
