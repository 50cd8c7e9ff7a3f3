//! What a rank sends in a step, axis by axis.
//!
//! A gather of `X` bytes over `n` ranks, and a sum of which every rank keeps its share, send (n − 1)/n · X from each rank,
//! directly or around a ring.

use llamero_model::{Config, Placement, Recompute};
use serde::{Deserialize, Serialize};

use super::MeshQuestion;
use crate::memory::{local_params, placements};
use crate::{Pipeline, Zero};

/// Along one axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AxisTraffic {
    /// Bytes that a rank sends.
    pub bytes: u64,
    /// How long that takes, if nothing else is done meanwhile.
    pub seconds: f64,
}

/// Along every axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Tensor parallel: activations, gathered before and added up after the products; the losses; gradients of norms.
    pub tp: AxisTraffic,
    /// Context parallel: keys and values, gathered forwards and again backwards, and their gradients.
    pub cp: AxisTraffic,
    /// Pipeline: hidden states and their gradients.
    pub pp: AxisTraffic,
    /// Data parallel: gradients, then weights.
    pub dp: AxisTraffic,
}

/// What all ranks but one send to it, of `bytes` in all.
fn sent(bytes: u64, ranks: usize) -> u64 {
    bytes * (ranks as u64 - 1) / ranks as u64
}

pub(super) fn of_stage(question: &MeshQuestion<'_>, schedule: &Pipeline, stage: usize) -> Traffic {
    let places = placements(question.model, question.config, question.mesh.pp, stage);
    // Sequences of a step on a data-parallel rank; how they are cut into micro-batches does not matter here.
    let sequences = question.config.batch / question.mesh.dp;
    let tokens = (sequences * question.config.sequence).div_ceil(question.cp) as u64;
    let speed = question.device.bandwidth;
    let along = |bytes: u64, speed: f64| AxisTraffic { bytes, seconds: bytes as f64 / speed };
    Traffic {
        tp: along(tensor(question, &places, tokens), speed.tp),
        cp: along(context(question, &places, (sequences * question.config.sequence) as u64), speed.cp),
        pp: along(pipeline(question, &places, tokens), speed.pp),
        dp: along(data(question, &places, schedule), speed.dp),
    }
}

/// Collectives of `[T, C]` in a step, for every token.
fn collectives(place: &Placement, recompute: Recompute) -> u64 {
    // Two gathers and two sums forwards and as many backwards; what was gathered, again; all of forward, again.
    let block = match recompute {
        Recompute::Nothing => 8,
        Recompute::Selective => 10,
        Recompute::Blocks => 14,
    };
    let embedding = if place.first { 2 } else { 0 };
    let head = if place.last { 2 } else { 0 };
    block * place.layers.len() as u64 + embedding + head
}

fn tensor(question: &MeshQuestion<'_>, places: &[Placement], tokens: u64) -> u64 {
    let (model, tp) = (question.model, question.mesh.tp);
    if tp == 1 {
        return 0;
    }
    let hidden = tokens * model.dim as u64 * question.dtype.bytes() as u64;
    let count: u64 = places.iter().map(|place| collectives(place, question.config.recompute)).sum();
    // Two numbers a row to every other rank.
    let losses = if places.iter().any(|p| p.last) { 8 * tokens * (tp as u64 - 1) } else { 0 };
    let norms: u64 =
        places.iter().map(|p| local_params(model, (p, tp), |_, name| name.contains("norm"))).sum();
    count * sent(hidden, tp) + losses + 2 * sent(4 * norms.div_ceil(question.mesh.dp as u64), tp)
}

fn context(question: &MeshQuestion<'_>, places: &[Placement], tokens: u64) -> u64 {
    let Config { kv_heads, head_dim, .. } = *question.model;
    let width = (2 * kv_heads.div_ceil(question.mesh.tp) * head_dim) as u64;
    let layers: u64 = places.iter().map(|place| place.layers.len() as u64).sum();
    let times = if question.config.recompute == Recompute::Blocks { 4 } else { 3 };
    layers * times * sent(tokens * width * question.dtype.bytes() as u64, question.cp)
}

fn pipeline(question: &MeshQuestion<'_>, places: &[Placement], tokens: u64) -> u64 {
    if question.mesh.pp == 1 {
        return 0;
    }
    let rows = tokens.div_ceil(question.mesh.tp as u64);
    let hidden = rows * question.model.dim as u64 * question.dtype.bytes() as u64;
    let ways = places.iter().map(|place| u64::from(!place.last) + u64::from(!place.first));
    hidden * ways.sum::<u64>()
}

/// Sums of gradients are made in f32, over the ranks that share sequences too.
fn data(question: &MeshQuestion<'_>, places: &[Placement], schedule: &Pipeline) -> u64 {
    let MeshQuestion { model, mesh, cp, zero, dtype, .. } = *question;
    let params: u64 = places.iter().map(|place| local_params(model, (place, mesh.tp), |_, _| true)).sum();
    let micros = schedule.micros as u64;
    let sums = if zero == Zero::One { 1 } else { micros };
    // Sharded weights come for every forward and every backward pass.
    let gathers = if zero == Zero::Three { 2 * micros } else { 1 };
    sums * sent(4 * params, mesh.dp * cp) + gathers * sent(dtype.bytes() as u64 * params, mesh.dp)
}
