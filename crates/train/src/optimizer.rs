//! AdamW over f32 master weights.

use llamero_autograd::Gradients;
use llamero_model::Llama;
use llamero_tensor::{AdamW, AdamWState, Backend, DType, LowHalves, Master, Tensor};

use crate::OptimizerConfig;

/// State of one parameter.
pub(crate) struct State {
    pub(crate) decay: bool,
    /// What the model's bf16 weights lack to be f32 master weights; f32 weights lack nothing.
    pub(crate) low: Option<LowHalves>,
    pub(crate) m: Tensor,
    pub(crate) v: Tensor,
}

/// First and second moments, and the lower halves of f32 master weights where the model computes in bf16: with the
/// weights, 12 bytes a parameter either way.
pub struct Optimizer {
    /// In the order of the model's parameters.
    pub(crate) states: Vec<State>,
    /// Updates done.
    pub(crate) updates: u64,
}

impl Optimizer {
    /// Zero moments for every parameter of `model`; masters start as its weights.
    pub fn new(model: &Llama, backend: &dyn Backend) -> Self {
        let table = model.config.params();
        let states = model.params().map(|p| {
            let zeros = || backend.zeros(p.value.shape(), DType::F32);
            let low =
                (p.value.dtype() != DType::F32).then(|| backend.split(&backend.cast(&p.value, DType::F32)).1);
            State { decay: table[p.id].decay, low, m: zeros(), v: zeros() }
        });
        Self { states: states.collect(), updates: 0 }
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One update with gradients scaled by `grad_scale`. Parameters without a gradient are left alone.
    pub fn step(
        &mut self,
        model: &mut Llama,
        gradients: &Gradients<'_>,
        backend: &dyn Backend,
        config: &OptimizerConfig,
        rate: (f64, f64),
    ) {
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
        for (param, state) in model.params_mut().zip(&mut self.states) {
            let Some(grad) = gradients.get(param.id) else { continue };
            step.weight_decay = if state.decay { config.weight_decay as f32 } else { 0.0 };
            let State { low, m, v, .. } = state;
            let weight = match low {
                None => Master::F32(&mut param.value),
                Some(low) => Master::Split { high: &mut param.value, low },
            };
            backend.adamw(AdamWState { weight, m, v }, grad, &step);
        }
    }
}
