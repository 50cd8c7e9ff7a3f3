//! Parameters and where their gradients go.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llamero_comm::{Comm, CommError, Op, Pending, share};
use llamero_tensor::{Backend, DType, Shape, Tensor};

use crate::collectives::{body, gathered};

/// A trainable tensor of a model.
#[derive(Clone, Debug)]
pub struct Param {
    /// Index in the model's parameter table; names the gradient buffer.
    pub id: usize,
    /// Global name, e.g. `layers.0.attention.wqkv.weight`.
    pub name: String,
    /// Weights in the dtype of the computation: all of them, or this rank's rows where they are sharded.
    pub value: Tensor,
    /// The ranks that have the other rows between uses.
    pub shards: Option<Arc<Shards>>,
}

/// Ranks that divide the rows of a parameter among each other (`llamero_comm::share`) and have it whole only while they
/// compute with it.
pub struct Shards {
    whole: Shape,
    ranks: Arc<dyn Comm>,
    /// A gather that was begun ahead of the next use.
    begun: Mutex<Option<Pending>>,
}

impl Shards {
    fn begun(&self) -> MutexGuard<'_, Option<Pending>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, own: &Tensor, backend: &dyn Backend) -> Result<Pending, CommError> {
        let rows = body(backend, own, 0..own.rows());
        self.ranks.start(Op::AllGather, vec![rows; self.ranks.size()])
    }
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shards(rank {} of {} of {})", self.ranks.rank(), self.ranks.size(), self.whole)
    }
}

impl Param {
    /// A parameter that is here as a whole.
    pub fn new(id: usize, name: impl Into<String>, value: Tensor) -> Self {
        Self { id, name: name.into(), value, shards: None }
    }

    /// The same with the value taken for this rank's rows of a tensor of shape `whole`.
    pub fn sharded(self, whole: Shape, ranks: Arc<dyn Comm>) -> Self {
        let rows = share(whole.rows, ranks.rank(), ranks.size()).len();
        let (found, expected) = (self.value.shape(), Shape::new(rows, whole.cols));
        assert_eq!(found, expected, "sharded: this rank's rows of `{}` {whole}", self.name);
        Self { shards: Some(Arc::new(Shards { whole, ranks, begun: Mutex::default() })), ..self }
    }

    /// Rows and columns of the whole.
    pub fn shape(&self) -> Shape {
        self.shards.as_ref().map_or_else(|| self.value.shape(), |shards| shards.whole)
    }

    /// Whether this rank has a part of the rows only.
    pub fn is_sharded(&self) -> bool {
        self.shards.is_some()
    }

    /// Begins to gather the rows of all ranks, unless that was begun already: the next [`Param::whole`] ends it, which must
    /// come before the value changes. Of a parameter that is here the device is told that it comes next.
    pub(crate) fn fetch(&self, backend: &dyn Backend) -> Result<(), CommError> {
        if let Some(shards) = &self.shards {
            let mut begun = shards.begun();
            if begun.is_none() {
                *begun = Some(shards.begin(&self.value, backend)?);
            }
        } else {
            backend.prefetch(&self.value);
        }
        Ok(())
    }

    /// Whether a gather was begun and not ended.
    pub fn is_under_way(&self) -> bool {
        self.shards.as_ref().is_some_and(|shards| shards.begun().is_some())
    }

    /// The rows of all ranks. Every rank calls it at the same time.
    pub fn whole(&self, backend: &dyn Backend) -> Result<Tensor, CommError> {
        let Some(shards) = &self.shards else { return Ok(self.value.clone()) };
        let begun = shards.begun().take();
        let pending = begun.map_or_else(|| shards.begin(&self.value, backend), Ok)?;
        gathered(backend, pending, (shards.whole, self.value.dtype()), &*shards.ranks)
    }
}

/// Receives gradients during a backward sweep.
pub trait GradSink {
    /// The f32 buffer that gradients of `param` are added to, of the shape of the whole.
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
        self.by_id[param.id].get_or_insert_with(|| backend.zeros(param.shape(), DType::F32))
    }

    fn ready(&mut self, _: &Param) {}
}
