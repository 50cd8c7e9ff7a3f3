//! One update: forward and backward over micro-batches, checks, clipping, AdamW.

use llamero_autograd::{Gradients, Tape, Targets};
use llamero_data::{Batch, Sequence};
use llamero_model::{Input, Llama};
use llamero_tensor::{Backend, DType, Segments, Shape};

use crate::{Optimizer, TrainConfig, TrainError, learning_rate};

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean negative log-likelihood per target, in nats, before the update.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub lr: f64,
    /// Why the update was not made, when it was not.
    pub skipped: Option<String>,
}

/// A model in training.
pub struct Trainer<'b> {
    /// The model.
    pub model: Llama,
    pub(crate) optimizer: Optimizer,
    backend: &'b dyn Backend,
    config: TrainConfig,
    /// Exponential mean of the losses of steps that were made, for recognising spikes.
    pub(crate) mean_loss: Option<f64>,
}

/// Weight of the newest loss in the running mean.
const MEAN_WEIGHT: f64 = 0.05;

impl<'b> Trainer<'b> {
    /// A trainer at step 0.
    pub fn new(model: Llama, backend: &'b dyn Backend, config: TrainConfig) -> Self {
        let optimizer = Optimizer::new(&model, backend);
        Self { model, optimizer, backend, config, mean_loss: None }
    }

    /// The device.
    pub fn backend(&self) -> &'b dyn Backend {
        self.backend
    }

    /// Settings of the run.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Loss and gradients of the mean over all targets of `sequences`, without an update. The sum runs over micro-batches
    /// in order, so their size does not matter.
    pub fn gradients(&self, step: u64, sequences: Vec<Sequence>) -> Result<(f64, Gradients<'b>), TrainError> {
        let tokens = sequences.iter().map(|s| s.tokens.len()).sum();
        let targets: usize = sequences.iter().flat_map(|s| &s.targets).filter(|&&t| t != u32::MAX).count();
        if targets == 0 {
            return Err(TrainError::NoTargets { step, tokens });
        }
        let mut gradients = Gradients::new(self.backend);
        let mut nll = 0.0;
        let mut sequences = sequences.into_iter().peekable();
        while sequences.peek().is_some() {
            let batch = Batch::pack(sequences.by_ref().take(self.config.micro_batch));
            for row in self.micro_batch(&batch, targets, &mut gradients)? {
                nll += f64::from(row);
            }
        }
        Ok((nll / targets as f64, gradients))
    }

    /// Adds the gradients of one micro-batch and returns its rows' losses: the caller sums them one by one, so that
    /// the cuts between micro-batches do not show in the sum.
    fn micro_batch(
        &self,
        batch: &Batch,
        targets: usize,
        gradients: &mut Gradients<'b>,
    ) -> Result<Vec<f32>, TrainError> {
        let segments = Segments::documents(batch.documents.iter().copied());
        let Some(head) = self.model.head() else { unreachable!("a trainer holds a whole model") };
        let mut tape = Tape::record(self.backend);
        let h = self.model.forward(&mut tape, Input::Tokens(&batch.tokens), &segments, self.config.recompute);
        let shape = Shape::new(batch.tokens.len(), 1);
        let d_nll = self.backend.upload(&vec![(1.0 / targets as f64) as f32; shape.rows], shape, DType::F32);
        let targets = Targets { ids: &batch.targets, d_nll: &d_nll };
        let (nll, _) = tape.finish_with_cross_entropy(h, head, targets, None, gradients)?;
        Ok(self.backend.download(&nll))
    }

    /// One update, or a reasoned refusal of it.
    pub fn step(&mut self, step: u64, sequences: Vec<Sequence>) -> Result<StepOutcome, TrainError> {
        let (mut sequences, mut outcome) = (Some(sequences), None);
        self.backend.scope(&mut || {
            if let Some(sequences) = sequences.take() {
                outcome = Some(self.update(step, sequences));
            }
        });
        outcome.unwrap_or_else(|| unreachable!("a scope runs its work"))
    }

    fn update(&mut self, step: u64, sequences: Vec<Sequence>) -> Result<StepOutcome, TrainError> {
        let (loss, gradients) = self.gradients(step, sequences)?;
        let square: f64 = gradients.iter().map(|(_, g)| self.backend.sum_of_squares(g)).sum();
        let grad_norm = square.sqrt();
        let optimizer = &self.config.optimizer;
        let lr = learning_rate(optimizer, step, self.config.num_steps());
        let skipped = self.refusal(loss, grad_norm);
        if skipped.is_none() {
            let scale = if grad_norm > optimizer.clip_norm { optimizer.clip_norm / grad_norm } else { 1.0 };
            self.optimizer.step(&mut self.model, &gradients, self.backend, optimizer, (lr, scale));
            let mean = self.mean_loss.map_or(loss, |mean| mean + MEAN_WEIGHT * (loss - mean));
            self.mean_loss = Some(mean);
        }
        Ok(StepOutcome { loss, grad_norm, lr, skipped })
    }

    fn refusal(&self, loss: f64, grad_norm: f64) -> Option<String> {
        if !loss.is_finite() {
            return Some(format!("the loss is {loss}"));
        }
        if !grad_norm.is_finite() {
            return Some(format!("the gradient norm is {grad_norm}"));
        }
        let mean = self.mean_loss?;
        let limit = mean * self.config.spike_factor;
        (loss > limit).then(|| {
            format!("the loss {loss:.3} is above {} × the recent mean {mean:.3}", self.config.spike_factor)
        })
    }
}
