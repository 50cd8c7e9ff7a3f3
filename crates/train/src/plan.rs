//! From a time budget to a model size and a number of tokens, measured on this machine.

use std::sync::Arc;
use std::time::Instant;

use llamero_comm::{Comm, Solo};
use llamero_data::Sequence;
use llamero_model::{Config, Llama, Placement, initial_values};
use llamero_tensor::{Backend, DType};
use serde::{Deserialize, Serialize};

use crate::{TrainConfig, TrainError, Trainer};

/// What training one model size costs on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Name of the preset.
    pub preset: String,
    /// Parameters that take part in a product for every token.
    pub active_params: u64,
    /// Seconds of forward and backward per token.
    pub seconds_per_token: f64,
    /// Seconds of clipping and AdamW per update.
    pub seconds_per_update: f64,
}

impl Measurement {
    /// Seconds of one update over `tokens` tokens.
    pub fn step_seconds(&self, tokens: usize) -> f64 {
        self.seconds_per_token * tokens as f64 + self.seconds_per_update
    }
}

/// A size and a number of steps that fit the budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The chosen size.
    pub chosen: Measurement,
    /// Updates.
    pub steps: u64,
    /// Training tokens.
    pub tokens: u64,
    /// Expected seconds.
    pub seconds: f64,
}

/// Trains a preset for a few micro-batches on made-up tokens and times it.
pub fn measure(
    backend: &dyn Backend,
    (preset, model): (&str, &Config),
    config: &TrainConfig,
    dtype: DType,
) -> Result<Measurement, TrainError> {
    let length = config.sequence;
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    let place = Placement::whole(model);
    let values = |spec: &_, rows| Ok::<_, TrainError>(initial_values(spec, rows, 0));
    let llama = Llama::build(model, &place, (backend, dtype), &ranks, values)?;
    // Updates as at the beginning of the run.
    let plain = TrainConfig { ramp: Vec::new(), mix: Vec::new(), anneal: None, ..config.clone() };
    let mut trainer = Trainer::new(llama, backend, TrainConfig { batch: config.micro_batch, ..plain });
    let sequences =
        || -> Vec<Sequence> { (0..config.micro_batch).map(|i| made_up(length, model.vocab, i)).collect() };
    let tokens = (length * config.micro_batch) as f64;
    trainer.step(0, sequences())?;
    let time = |f: &mut dyn FnMut() -> Result<(), TrainError>| -> Result<f64, TrainError> {
        let started = Instant::now();
        f()?;
        Ok(started.elapsed().as_secs_f64())
    };
    let (mut sweeps, mut wholes) = ([0.0; 3], [0.0; 3]);
    for (sweep, whole) in sweeps.iter_mut().zip(&mut wholes) {
        *sweep = time(&mut || trainer.gradients(0, sequences()).map(drop))?;
        *whole = time(&mut || trainer.step(0, sequences()).map(drop))?;
    }
    // The median: the best of a few is a speed that is not kept for minutes.
    sweeps.sort_by(f64::total_cmp);
    wholes.sort_by(f64::total_cmp);
    let (sweep, whole) = (sweeps[1], wholes[1]);
    Ok(Measurement {
        preset: preset.into(),
        active_params: model.num_active_params(),
        seconds_per_token: sweep / tokens,
        seconds_per_update: (whole - sweep).max(0.0),
    })
}

/// A sequence of two documents with every kind of token.
fn made_up(length: usize, vocab: usize, i: usize) -> Sequence {
    let tokens: Vec<u32> = (0..length).map(|t| ((t * 7919 + i * 104_729) % vocab) as u32).collect();
    let targets = tokens.iter().map(|&t| (t + 1) % vocab as u32).collect();
    Sequence { tokens, targets, documents: vec![length / 3, length - length / 3] }
}

/// Takes the largest size that still sees at least `tokens_per_param` tokens per active parameter in the `seconds` that
/// are left for it; when none does, the smallest.
pub fn plan(
    measurements: &[Measurement],
    seconds: impl Fn(&Measurement) -> f64,
    step_tokens: usize,
    tokens_per_param: f64,
) -> Result<Plan, TrainError> {
    let fit = |m: &Measurement| {
        let seconds = seconds(m).max(0.0);
        let steps = (seconds / m.step_seconds(step_tokens)).floor() as u64;
        Plan {
            chosen: m.clone(),
            steps,
            tokens: steps * step_tokens as u64,
            seconds: steps as f64 * m.step_seconds(step_tokens),
        }
    };
    let mut plans: Vec<Plan> = measurements.iter().map(fit).collect();
    plans.sort_by_key(|p| p.chosen.active_params);
    let enough = |p: &&Plan| p.tokens as f64 >= tokens_per_param * p.chosen.active_params as f64;
    let chosen = plans.iter().rev().find(enough).or(plans.first());
    match chosen {
        Some(plan) if plan.steps >= MIN_STEPS => Ok(plan.clone()),
        _ => Err(TrainError::Budget {
            found: format!(
                "the time left for pre-training is too short for {MIN_STEPS} steps of the smallest model"
            ),
            hint: "raise `budget`, or name a model and a number of steps in the recipe instead".into(),
        }),
    }
}

const MIN_STEPS: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(preset: &str, active_params: u64, seconds_per_token: f64) -> Measurement {
        Measurement { preset: preset.into(), active_params, seconds_per_token, seconds_per_update: 0.0 }
    }

    #[test]
    fn the_largest_size_with_enough_tokens_is_taken() {
        let sizes = [
            measured("1m", 1_000_000, 1e-5),
            measured("3m", 3_000_000, 3e-5),
            measured("8m", 8_000_000, 8e-5),
        ];
        // 300 s: 30M, 10M and 3.75M tokens, that is 30, 3.3 and 0.47 per parameter.
        assert_eq!(plan(&sizes, |_| 300.0, 1000, 2.0).unwrap().chosen.preset, "3m");
        assert_eq!(plan(&sizes, |_| 300.0, 1000, 5.0).unwrap().chosen.preset, "1m");
        assert_eq!(plan(&sizes, |_| 300.0, 1000, 100.0).unwrap().chosen.preset, "1m");
        let p = plan(&sizes, |_| 300.0, 1000, 2.0).unwrap();
        assert_eq!((p.steps, p.tokens), (10_000, 10_000_000));
        assert!((p.seconds - 300.0).abs() < 1.0);
        assert!(plan(&sizes, |_| 0.1, 1000, 2.0).unwrap_err().to_string().contains("hint"));
    }
}
