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
pub use self::traffic::{AxisTraffic, Traffic};
use crate::memory::{local_params, pipeline, placements};
use crate::{Action, Mesh, Pipeline, RankMemory, RankOf, TrainConfig, TrainError, Zero, rank_memory};

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
    /// Ranks that share each sequence (context parallelism), beside those of `mesh`.
    pub cp: usize,
    /// What is divided along the data-parallel axis.
    pub zero: Zero,
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

/// Ranks along every axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axes {
    /// Data parallel.
    pub dp: usize,
    /// Pipeline.
    pub pp: usize,
    /// Context parallel.
    pub cp: usize,
    /// Tensor parallel.
    pub tp: usize,
}

impl Axes {
    /// Ranks in all.
    pub fn ranks(&self) -> usize {
        self.dp * self.pp * self.cp * self.tp
    }
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
    /// Whether that, and what the device keeps for itself, fits.
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

/// What a run on a mesh will take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeshPlan {
    /// Ranks along every axis.
    pub axes: Axes,
    /// What a rank runs on.
    pub device: Device,
    /// Element type of the computation.
    pub dtype: String,
    /// What is divided along the data-parallel axis.
    pub zero: Zero,
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
    /// Hours of all devices together.
    pub device_hours: Option<f64>,
    /// Every place of the pipeline axis.
    pub stages: Vec<StagePlan>,
}

impl MeshPlan {
    /// Whether every rank fits its device.
    pub fn fits(&self) -> bool {
        self.stages.iter().all(|stage| stage.fits)
    }

    /// The stage that takes most memory.
    pub fn fullest(&self) -> Option<&StagePlan> {
        self.stages.iter().max_by_key(|stage| stage.memory.total())
    }
}

/// Plans a run on a mesh.
pub fn plan_mesh(question: &MeshQuestion<'_>) -> Result<MeshPlan, TrainError> {
    check(question)?;
    let MeshQuestion { model, config, mesh, cp, zero, ref device, dtype, .. } = *question;
    let axes = Axes { dp: mesh.dp, pp: mesh.pp, cp, tp: mesh.tp };
    let schedule = pipeline(config, &mesh);
    let bubble = (mesh.pp - 1) as f64 / (schedule.chunks * schedule.micros) as f64;
    let products = 6.0 * model.num_active_params() as f64;
    let attention = 6.0 * (model.layers * config.sequence * model.heads * model.head_dim) as f64;
    let flops_per_token = products + attention;
    let tokens_per_step = config.step_tokens() as u64;
    let flops_per_step = flops_per_token * tokens_per_step as f64;
    let (mfu, mfu_source) = match question.mfu {
        Some(mfu) => (mfu, MfuSource::Given),
        None => published_mfu(model, axes)
            .map_or((DEFAULT_MFU, MfuSource::Assumed), |mfu| (mfu, MfuSource::Published)),
    };
    let step_seconds = flops_per_step / (axes.ranks() as f64 * device.peak_flops * mfu);
    let hours = |steps: u64| steps as f64 * step_seconds * axes.ranks() as f64 / 3600.0;
    Ok(MeshPlan {
        axes,
        device: device.clone(),
        dtype: dtype.name().into(),
        zero,
        recompute: config.recompute,
        chunks: schedule.chunks,
        run: schedule.run,
        micro_batches: schedule.micros,
        sequence: config.sequence,
        params: model.num_params(),
        bubble,
        bubble_share: bubble / (1.0 + bubble),
        flops_per_token,
        flops_per_step,
        tokens_per_step,
        steps: config.steps,
        tokens: config.steps.map(|steps| steps.saturating_mul(tokens_per_step)),
        mfu,
        mfu_source,
        step_seconds,
        device_hours: config.steps.map(hours),
        stages: (0..mesh.pp).map(|stage| stage_plan(question, &schedule, stage)).collect(),
    })
}

/// What cannot be planned. A run has more to check ([`TrainConfig::validate`]).
fn check(question: &MeshQuestion<'_>) -> Result<(), TrainError> {
    let MeshQuestion { model, config, mesh, cp, device, mfu, .. } = question;
    mesh.check(model, config)?;
    let wrong = |reason: String| Err(TrainError::Mesh { mesh: format!("{mesh},cp={cp}"), reason });
    if *cp == 0 {
        return wrong("every axis has at least one rank".into());
    }
    // Each rank has two pieces of a sequence, so that all have the same amount of attention.
    if *cp > 1 && !config.sequence.is_multiple_of(2 * cp) {
        return wrong(format!("twice cp must divide `sequence`, which is {}", config.sequence));
    }
    if !(device.peak_flops > 0.0 && device.peak_flops.is_finite()) {
        return wrong(format!("the peak of `{}` is {} FLOP/s", device.name, device.peak_flops));
    }
    if let Some(mfu) = mfu.filter(|mfu| !(*mfu > 0.0 && *mfu <= 1.0)) {
        return wrong(format!("a share of {mfu} of the peak; it is above 0 and at most 1"));
    }
    Ok(())
}

fn stage_plan(question: &MeshQuestion<'_>, schedule: &Pipeline, stage: usize) -> StagePlan {
    let MeshQuestion { model, config, mesh, cp, zero, dtype, ref device, .. } = *question;
    let places = placements(model, config, mesh.pp, stage);
    let rank = RankOf { mesh, cp, stage, zero, kernels: device.kernels };
    let memory = rank_memory(model, config, dtype, &rank);
    StagePlan {
        stage,
        embedding: places.iter().any(|place| place.first),
        head: places.iter().any(|place| place.last),
        params: places.iter().map(|place| local_params(model, (place, mesh.tp), |_, _| true)).sum(),
        layers: places.into_iter().map(|place| place.layers).collect(),
        in_flight: in_flight(schedule, stage),
        memory,
        fits: memory.total() + device.reserved_bytes <= device.memory_bytes,
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
fn published_mfu(model: &Config, axes: Axes) -> Option<f64> {
    let Axes { dp, pp, cp, tp } = axes;
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
