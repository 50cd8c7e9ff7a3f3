//! What a run on a mesh will take, from its sizes alone: memory of every rank, messages, bubble, arithmetic, hours.
//!
//! Nothing is allocated and no device is asked, so a plan for 16,384 GPUs is made anywhere. Memory and messages are those of
//! [`crate::Trainer`] (tests hold both against what ranks of threads take and send), on a device that is only described.

mod device;
mod table;
#[cfg(test)]
mod tests;
mod traffic;

use std::ops::Range;

use llamero_model::{Config, Recompute};
use llamero_tensor::DType;
use serde::{Deserialize, Serialize};

pub use self::device::{Bandwidth, Device};
pub use self::traffic::{AxisTraffic, Kind, KindTraffic, Traffic};
use crate::memory::{local_params, pipeline, placements};
use crate::phases::Phase;
use crate::{Action, Mesh, Pipeline, RankMemory, RankOf, Sharding, TrainConfig, TrainError, rank_memory};

/// Share of the peak that is assumed where nothing is published.
const DEFAULT_MFU: f64 = 0.4;

/// What is asked.
#[derive(Clone, Debug)]
pub struct MeshQuestion<'a> {
    /// The model.
    pub model: &'a Config,
    /// The run, with its schedule in `pipeline`.
    pub config: &'a TrainConfig,
    /// Element type of the computation.
    pub dtype: DType,
    /// Ranks.
    pub mesh: Mesh,
    /// What a rank runs on.
    pub device: Device,
    /// Share of the device's peak; from the paper where the run is one of its rows, otherwise 0.4.
    pub mfu: Option<f64>,
}

/// Where the share of the peak that a plan reckons with comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MfuSource {
    /// The caller.
    Given,
    /// "The Llama 3 Herd of Models", table 4.
    Published,
    /// Nobody.
    Assumed,
}

/// The ranks at one place of the pipeline axis, of which each is like the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    /// Place on the pipeline axis.
    pub stage: usize,
    /// The blocks of each of its chunks.
    pub layers: Vec<Range<usize>>,
    /// Whether it has the embedding.
    pub embedding: bool,
    /// Whether it has the output projection and the loss.
    pub head: bool,
    /// Parameters that a rank computes with.
    pub params: u64,
    /// Most passes through a chunk whose activations are kept at once.
    pub in_flight: usize,
    /// Bytes of a rank at its peak.
    pub memory: RankMemory,
    /// Whether that, what the device keeps for itself, and on a CPU a checkpoint's copy fits.
    pub fits: bool,
    /// What a rank sends in a step.
    pub traffic: Traffic,
}

impl StagePlan {
    /// Number of blocks.
    pub fn num_layers(&self) -> usize {
        self.layers.iter().map(ExactSizeIterator::len).sum()
    }
}

/// Consecutive updates of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPlan {
    /// The first of them.
    pub first_step: u64,
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Sequences of a forward pass.
    pub micro_batch: usize,
    /// Micro-batches of a data-parallel rank.
    pub micro_batches: usize,
    /// Tokens.
    pub tokens: u64,
}

/// What a run on a mesh will take. Where updates differ in shape, all that is said of one step is said of the largest; the
/// memory is that of the updates that take most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeshPlan {
    /// Ranks along every axis.
    pub axes: Mesh,
    /// What a rank runs on.
    pub device: Device,
    /// Element type of the computation.
    pub dtype: String,
    /// What is divided along the data-parallel axis.
    pub sharding: Sharding,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
    /// Chunks of blocks on each rank, `V`.
    pub chunks: usize,
    /// Micro-batches that follow each other in a chunk, `N`.
    pub run: usize,
    /// Micro-batches of a data-parallel rank in a step, `M`.
    pub micro_batches: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// The shapes that updates have, in order.
    pub batches: Vec<BatchPlan>,
    /// Parameters of the model.
    pub params: u64,
    /// Time that a rank waits for others because of the pipeline, relative to its work: (P − 1)/(V·M).
    pub bubble: f64,
    /// The same as a share of the step.
    pub bubble_share: f64,
    /// Operations a token, forward and backward: 6 for each parameter outside the embedding table, and for attention
    /// 6 · layers · sequence · width of the queries, for a token sees half of its sequence on average.
    pub flops_per_token: f64,
    /// Operations a step.
    pub flops_per_step: f64,
    /// Tokens of a step.
    pub tokens_per_step: u64,
    /// Sequences of a step.
    pub batch: usize,
    /// Sequences of a forward pass.
    pub micro_batch: usize,
    /// Steps; `None` where the recipe leaves them open.
    pub steps: Option<u64>,
    /// Tokens of all steps.
    pub tokens: Option<u64>,
    /// Share of the device's peak that is reckoned with; waiting in the pipeline is part of it.
    pub mfu: f64,
    /// Where it comes from.
    pub mfu_source: MfuSource,
    /// Seconds of a step at this share.
    pub step_seconds: f64,
    /// Seconds of all steps.
    pub run_seconds: Option<f64>,
    /// Hours of all devices together.
    pub device_hours: Option<f64>,
    /// Bytes of a checkpoint: f32 masters and both moments, and the sums of weights where they are averaged. Each rank writes
    /// what it updates.
    pub checkpoint_bytes: u64,
    /// Every place of the pipeline axis.
    pub stages: Vec<StagePlan>,
}

impl MeshPlan {
    /// Whether every rank fits its device.
    pub fn fits(&self) -> bool {
        self.stages.iter().all(|stage| stage.fits)
    }

    /// The stage that takes most memory; the first of several.
    pub fn fullest(&self) -> Option<&StagePlan> {
        self.stages.iter().rev().max_by_key(|stage| stage.memory.total())
    }
}

/// Plans a run on a mesh.
pub fn plan_mesh(question: &MeshQuestion<'_>) -> Result<MeshPlan, TrainError> {
    check(question)?;
    let MeshQuestion { model, config: run, mesh, ref device, dtype, .. } = *question;
    let largest = run.phases().into_iter().max_by_key(|phase| (phase.step_tokens(), phase.sequence));
    let config = &largest.map_or_else(|| run.clone(), |phase| run.only(&phase));
    let of_largest = MeshQuestion { config, ..question.clone() };
    let schedule = pipeline(config, &mesh);
    let bubble = (mesh.pp - 1) as f64 / (schedule.chunks * schedule.micros) as f64;
    let tokens_per_step = config.step_tokens() as u64;
    let flops_per_step = flops_per_token(model, config.sequence) * tokens_per_step as f64;
    let (mfu, mfu_source) = match question.mfu {
        Some(mfu) => (mfu, MfuSource::Given),
        None => published_mfu(model, mesh)
            .map_or((DEFAULT_MFU, MfuSource::Assumed), |mfu| (mfu, MfuSource::Published)),
    };
    let speed = mesh.size() as f64 * device.peak_flops * mfu;
    let steps = (!run.is_open()).then(|| run.num_steps());
    let run_seconds = steps.map(|steps| flops_of_run(model, run, steps) / speed);
    let tensors = if run.averages() { 4 } else { 3 };
    Ok(MeshPlan {
        axes: mesh,
        device: device.clone(),
        dtype: dtype.name().into(),
        sharding: config.sharding,
        recompute: config.recompute,
        chunks: schedule.chunks,
        run: schedule.run,
        micro_batches: schedule.micros,
        sequence: config.sequence,
        batches: batches(run, &mesh),
        params: model.num_params(),
        bubble,
        bubble_share: bubble / (1.0 + bubble),
        flops_per_token: flops_per_token(model, config.sequence),
        flops_per_step,
        tokens_per_step,
        batch: config.batch,
        micro_batch: config.micro_batch,
        steps,
        tokens: steps.map(|steps| run.tokens_before(steps)),
        mfu,
        mfu_source,
        step_seconds: flops_per_step / speed,
        run_seconds,
        device_hours: run_seconds.map(|seconds| seconds * mesh.size() as f64 / 3600.0),
        checkpoint_bytes: tensors * 4 * model.num_params(),
        stages: (0..mesh.pp).map(|stage| stage_plan(&of_largest, run, &schedule, stage)).collect(),
    })
}

fn batches(run: &TrainConfig, mesh: &Mesh) -> Vec<BatchPlan> {
    let of_phase = |phase: Phase| BatchPlan {
        first_step: phase.first_step,
        batch: phase.batch,
        sequence: phase.sequence,
        micro_batch: phase.micro_batch,
        micro_batches: pipeline(&run.only(&phase), mesh).micros,
        tokens: phase.step_tokens(),
    };
    run.phases().into_iter().map(of_phase).collect()
}

/// Forward and backward; attention depends on the length of sequences.
fn flops_per_token(model: &Config, sequence: usize) -> f64 {
    let attention = model.layers * sequence * model.heads * model.head_dim;
    6.0 * model.num_active_params() as f64 + 6.0 * attention as f64
}

fn flops_of_run(model: &Config, run: &TrainConfig, steps: u64) -> f64 {
    let phases = run.phases();
    let ends = phases.iter().skip(1).map(|phase| phase.first_step).chain([steps]);
    let of_phase = |(phase, end): (&Phase, u64)| {
        let steps = end.min(steps).saturating_sub(phase.first_step);
        steps as f64 * phase.step_tokens() as f64 * flops_per_token(model, phase.sequence)
    };
    phases.iter().zip(ends).map(of_phase).sum()
}

/// What cannot be planned. A run has more to check ([`TrainConfig::validate`]).
fn check(question: &MeshQuestion<'_>) -> Result<(), TrainError> {
    let MeshQuestion { model, config, mesh, device, mfu, .. } = question;
    mesh.check(model, config)?;
    let wrong = |reason: String| Err(TrainError::Mesh { mesh: mesh.to_string(), reason });
    if !(device.peak_flops > 0.0 && device.peak_flops.is_finite()) {
        return wrong(format!("the peak of `{}` is {} FLOP/s", device.name, device.peak_flops));
    }
    if let Some(mfu) = mfu.filter(|mfu| !(*mfu > 0.0 && *mfu <= 1.0)) {
        return wrong(format!("a share of {mfu} of the peak; it is above 0 and at most 1"));
    }
    Ok(())
}

/// `question` is about the largest update of `run`.
fn stage_plan(
    question: &MeshQuestion<'_>,
    run: &TrainConfig,
    schedule: &Pipeline,
    stage: usize,
) -> StagePlan {
    let MeshQuestion { model, config, mesh, dtype, ref device, .. } = *question;
    let places = placements(model, config, mesh.pp, stage);
    let rank = RankOf { mesh, stage, kernels: device.kernels };
    let memory = rank_memory(model, run, dtype, &rank);
    let params: u64 = places.iter().map(|place| local_params(model, (place, mesh.tp), |_, _| true)).sum();
    // Another device copies to its host.
    let copied = if device.kernels.is_some() { 12 * params / (mesh.dp * mesh.cp) as u64 } else { 0 };
    StagePlan {
        stage,
        embedding: places.iter().any(|place| place.first),
        head: places.iter().any(|place| place.last),
        params,
        layers: places.into_iter().map(|place| place.layers).collect(),
        in_flight: in_flight(schedule, stage),
        memory,
        fits: memory.total() + copied + device.reserved_bytes <= device.memory_bytes,
        traffic: traffic::of_stage(question, schedule, stage),
    }
}

/// Most forward passes of a rank whose backward passes are still to come.
fn in_flight(schedule: &Pipeline, stage: usize) -> usize {
    let (mut now, mut most) = (0, 0);
    for action in schedule.schedule(stage) {
        match action {
            Action::Forward { .. } => now += 1,
            Action::Backward { .. } => now -= 1,
        }
        most = most.max(now);
    }
    most
}

/// "The Llama 3 Herd of Models", table 4. Its third row is printed with dp = 4, which makes 8,192 GPUs and 8M tokens a step; the
/// 16,384 GPUs and 16M tokens of the same row make dp = 8. Either is taken for it.
fn published_mfu(model: &Config, mesh: Mesh) -> Option<f64> {
    let Mesh { dp, pp, cp, tp } = mesh;
    if (model.dim, model.layers, pp, tp) != (16384, 126, 16, 8) {
        return None;
    }
    match (cp, dp) {
        (1, 64) => Some(0.43),
        (1, 128) => Some(0.41),
        (16, 4 | 8) => Some(0.38),
        _ => None,
    }
}
