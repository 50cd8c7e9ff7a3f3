//! Parameters and where their gradients go.

use std::collections::BTreeMap;

use llamero_tensor::{Backend, DType, Tensor};

/// A trainable tensor of a model.
#[derive(Clone, Debug)]
pub struct Param {
    /// Index in the model's parameter table; names the gradient buffer.
    pub id: usize,
    /// Global name, e.g. `layers.0.attention.wqkv.weight`.
    pub name: String,
    /// Weights in the dtype of the computation.
    pub value: Tensor,
}

/// Receives gradients during a backward sweep.
pub trait GradSink {
    /// The f32 buffer that gradients of `param` are added to, of the shape of its value.
    fn buffer(&mut self, param: &Param) -> &mut Tensor;

    /// Called once per sweep for each parameter used, when nothing more will be added: the moment to start
    /// communicating or to update.
    fn ready(&mut self, param: &Param);
}

/// Keeps the sum of all gradients until it is cleared: gradient accumulation over micro-batches.
pub struct Gradients<'b> {
    backend: &'b dyn Backend,
    by_id: Vec<Option<Tensor>>,
}

impl<'b> Gradients<'b> {
    /// No gradients yet; buffers appear as parameters are met.
    pub fn new(backend: &'b dyn Backend) -> Self {
        Self { backend, by_id: Vec::new() }
    }

    /// The gradient of a parameter, or `None` when no op used it.
    pub fn get(&self, id: usize) -> Option<&Tensor> {
        self.by_id.get(id)?.as_ref()
    }

    /// Gradients in order of parameter id.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Tensor)> {
        self.by_id.iter().enumerate().filter_map(|(id, g)| Some((id, g.as_ref()?)))
    }

    /// Hands over the gradient of a parameter.
    pub fn take(&mut self, id: usize) -> Option<Tensor> {
        self.by_id.get_mut(id)?.take()
    }

    /// Puts back a gradient that was handed over.
    pub fn put(&mut self, id: usize, gradient: Tensor) {
        if let Some(place) = self.by_id.get_mut(id) {
            *place = Some(gradient);
        }
    }

    /// Hands over all gradients, by parameter.
    pub fn into_by_id(self) -> BTreeMap<usize, Tensor> {
        self.by_id.into_iter().enumerate().filter_map(|(id, g)| Some((id, g?))).collect()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.by_id.clear();
    }
}

impl GradSink for Gradients<'_> {
    fn buffer(&mut self, param: &Param) -> &mut Tensor {
        if self.by_id.len() <= param.id {
            self.by_id.resize_with(param.id + 1, || None);
        }
        let backend = self.backend;
        self.by_id[param.id].get_or_insert_with(|| backend.zeros(param.value.shape(), DType::F32))
    }

    fn ready(&mut self, _: &Param) {}
}
