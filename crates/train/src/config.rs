//! Settings of a training run that are part of its recipe.

use llamero_model::{Group, Recompute};
use serde::{Deserialize, Serialize};

use crate::{Annealing, MixStage, PipelineConfig, RampStage, Sharding, TrainError};

/// AdamW and the learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Largest learning rate, reached after the warm-up.
    pub peak_lr: f64,
    /// The cosine ends at this share of the peak.
    pub final_lr_ratio: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Gradients are scaled down to at most this global norm.
    pub clip_norm: f64,
    /// Steps that the cosine is laid out for; when absent, it ends with the run, or where annealing begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine_steps: Option<u64>,
    /// Whether the embedding and the output projection decay like other matrices.
    #[serde(skip_serializing_if = "is_true")]
    pub decay_embeddings: bool,
    /// Learning rate of the embedding and the output projection, as a multiple of that of the other weights.
    #[serde(skip_serializing_if = "is_one")]
    pub embedding_lr: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_true(x: &bool) -> bool {
    *x
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(x: &f64) -> bool {
    *x == 1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl OptimizerConfig {
    /// Weight decay of a kind of weight.
    pub(crate) fn decay_of(&self, group: Group) -> f64 {
        match group {
            Group::Norm => 0.0,
            Group::Vocabulary if !self.decay_embeddings => 0.0,
            Group::Vocabulary | Group::Matrix => self.weight_decay,
        }
    }

    /// What the learning rate of a kind of weight is multiplied by.
    pub(crate) fn lr_scale(&self, group: Group) -> f64 {
        if group == Group::Vocabulary { self.embedding_lr } else { 1.0 }
    }
}

impl Default for OptimizerConfig {
    /// Llama 2's pre-training values where Llama 3's are not published.
    fn default() -> Self {
        Self {
            peak_lr: 3e-4,
            final_lr_ratio: 0.1,
            warmup_steps: 20,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            cosine_steps: None,
            decay_embeddings: true,
            embedding_lr: 1.0,
        }
    }
}

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Updates; when absent, a time budget decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// The length of the run in tokens instead: it ends with the first update after which so many were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Tokens per sequence.
    pub sequence: usize,
    /// Seed of the order of the data.
    pub seed: u64,
    /// Sequences per update.
    pub batch: usize,
    /// Sequences per forward pass; memory grows with it, results do not depend on it (with a tied table, only up to
    /// rounding: its two uses are added in turn; likewise in bf16 with sequences of odd length, where the processor has the
    /// dot product of pairs).
    pub micro_batch: usize,
    /// AdamW and schedule.
    pub optimizer: OptimizerConfig,
    /// Changes of batch and length of sequences in the course of the run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ramp: Vec<RampStage>,
    /// Shares of the domains; when empty, documents come as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<MixStage>,
    /// The end of the run, if it is annealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anneal: Option<Annealing>,
    /// Coefficient of the mean squared log-sum-exp that is added to the loss (Chowdhery et al. 2022, §5); none with 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub z_loss: f64,
    /// A step whose loss is above this multiple of the recent mean is skipped.
    pub spike_factor: f64,
    /// Training stops after this many skipped steps in a row.
    pub max_skipped_steps: u32,
    /// What is computed again in the backward pass instead of being kept: `none`, `selective` or `blocks`.
    pub recompute: Recompute,
    /// How the stages of a pipeline share the work, where there are several. Not part of a recipe: it changes no result.
    #[serde(skip)]
    pub pipeline: PipelineConfig,
    /// What data-parallel ranks divide among each other. Not part of a recipe: it changes the order of sums at most.
    #[serde(skip)]
    pub sharding: Sharding,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: None,
            tokens: None,
            sequence: 512,
            seed: 1,
            batch: 16,
            micro_batch: 4,
            optimizer: OptimizerConfig::default(),
            ramp: Vec::new(),
            mix: Vec::new(),
            anneal: None,
            z_loss: 0.0,
            spike_factor: 4.0,
            max_skipped_steps: 5,
            recompute: Recompute::default(),
            pipeline: PipelineConfig::default(),
            sharding: Sharding::default(),
        }
    }
}

impl TrainConfig {
    /// Tokens of one update, before any ramp.
    pub fn step_tokens(&self) -> usize {
        self.batch * self.sequence
    }

    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), TrainError> {
        let o = &self.optimizer;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let checks: [(&'static str, String, bool, &str); 15] = [
            (
                "steps",
                self.steps.unwrap_or(0).to_string(),
                self.steps.is_none_or(|n| (1..=1 << 40).contains(&n)),
                "1 to 2^40",
            ),
            ("sequence", self.sequence.to_string(), (2..=1 << 20).contains(&self.sequence), "2 to 1048576"),
            ("batch", self.batch.to_string(), (1..=1 << 16).contains(&self.batch), "1 to 65536"),
            (
                "micro_batch",
                self.micro_batch.to_string(),
                (1..=1 << 16).contains(&self.micro_batch),
                "1 to 65536",
            ),
            (
                "optimizer.peak_lr",
                o.peak_lr.to_string(),
                o.peak_lr > 0.0 && o.peak_lr <= 1.0,
                "above 0, at most 1",
            ),
            (
                "optimizer.final_lr_ratio",
                o.final_lr_ratio.to_string(),
                (0.0..=1.0).contains(&o.final_lr_ratio),
                "0 to 1",
            ),
            ("optimizer.beta1", o.beta1.to_string(), unit(o.beta1), "at least 0, below 1"),
            ("optimizer.beta2", o.beta2.to_string(), unit(o.beta2), "at least 0, below 1"),
            ("optimizer.eps", o.eps.to_string(), o.eps > 0.0 && o.eps < 1.0, "above 0, below 1"),
            (
                "optimizer.weight_decay",
                o.weight_decay.to_string(),
                unit(o.weight_decay),
                "at least 0, below 1",
            ),
            (
                "optimizer.clip_norm",
                o.clip_norm.to_string(),
                o.clip_norm > 0.0 && o.clip_norm.is_finite(),
                "above 0",
            ),
            (
                "spike_factor",
                self.spike_factor.to_string(),
                self.spike_factor > 1.0 && self.spike_factor.is_finite(),
                "above 1",
            ),
            (
                "optimizer.embedding_lr",
                o.embedding_lr.to_string(),
                o.embedding_lr > 0.0 && o.embedding_lr.is_finite(),
                "above 0",
            ),
            ("z_loss", self.z_loss.to_string(), (0.0..=1.0).contains(&self.z_loss), "0 to 1"),
            (
                "max_skipped_steps",
                self.max_skipped_steps.to_string(),
                self.max_skipped_steps > 0,
                "at least 1",
            ),
        ];
        match checks.into_iter().find(|(_, _, ok, _)| !ok) {
            None => self.validate_phases(),
            Some((key, found, _, allowed)) => {
                Err(TrainError::OutOfRange { key, found, allowed: allowed.into() })
            }
        }
    }
}
