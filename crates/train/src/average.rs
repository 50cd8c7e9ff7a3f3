//! The mean of the weights over the annealing phase (Polyak and Juditsky 1992; "The Llama 3 Herd of Models" §3.4.3).
//!
//! Every rank adds the f32 masters of the rows that it updates to sums, beside its moments. How many were added follows from
//! the number of the step. After the last update the weights are the sums divided by that number.

use llamero_tensor::{Backend, DType, Shape, Tensor, pieces};

use crate::optimizer::{receive_rows, send_rows};
use crate::{TrainError, Trainer};

impl Trainer<'_> {
    /// Adds the weights to the sums.
    pub(crate) fn add_to_average(&mut self) {
        let backend = self.backend();
        let (stages, optimizer) = self.parts_mut();
        let params = stages.iter().flat_map(|stage| stage.params());
        for (param, state) in params.zip(&mut optimizer.states) {
            let master = state.master(&param.value, backend);
            let sum = state.sum.get_or_insert_with(|| backend.zeros(master.shape(), DType::F32));
            backend.add_assign(sum, &master);
        }
    }

    /// After the last update: puts the mean of the weights in their place, where the run is to end with it. Every rank calls
    /// it. The sums stay, so doing it again changes nothing.
    pub fn finish_average(&mut self) -> Result<(), TrainError> {
        let count = self.config().num_averaged(self.config().num_steps());
        if count == 0 {
            return Ok(());
        }
        let (backend, shards) = (self.backend(), std::sync::Arc::clone(self.ranks().shards()));
        let (stages, optimizer) = self.parts_mut();
        let mut sent = Vec::new();
        let params = stages.iter_mut().flat_map(|stage| stage.params_mut());
        for (param, state) in params.zip(&mut optimizer.states) {
            let Some(sum) = &state.sum else { continue };
            let mut own = divided(backend, sum, count as f32);
            if let Some(low) = &mut state.low {
                (own, *low) = backend.split(&own);
            }
            if shards.size() == 1 || param.is_sharded() {
                param.value = own;
            } else {
                sent.push((param, send_rows(&own, backend, &*shards)?));
            }
        }
        sent.into_iter().try_for_each(|sent| receive_rows(sent, backend, &*shards))
    }
}

/// `x / by`, element by element.
fn divided(backend: &dyn Backend, x: &Tensor, by: f32) -> Tensor {
    let mut result = backend.zeros(x.shape(), DType::F32);
    for rows in pieces(0..x.rows(), x.cols()) {
        let (at, shape) = (rows.start, Shape::new(rows.len(), x.cols()));
        let mut piece = backend.zeros(shape, DType::F32);
        backend.copy_rows(&mut piece, 0, x, rows, 0..x.cols());
        let values: Vec<f32> = backend.download(&piece).iter().map(|x| x / by).collect();
        let piece = backend.upload(&values, shape, DType::F32);
        backend.copy_rows(&mut result, at, &piece, 0..shape.rows, 0..shape.cols);
    }
    result
}
