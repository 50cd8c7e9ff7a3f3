//! What a rank sends in a step, axis by axis.
//!
//! A gather of `X` bytes over `n` ranks, and a sum of which every rank keeps its share, send (n − 1)/n · X from each rank,
//! directly or around a ring.

use llamero_model::{Config, Placement, Recompute};
use serde::{Deserialize, Serialize};

use super::MeshQuestion;
use crate::memory::{local_params, placements};
use crate::{Pipeline, Sharding};

/// A kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Rows of activations and of their gradients, gathered before a product.
    ActivationsGathered,
    /// The same, added up after a product.
    ActivationsSummed,
    /// Two numbers a row of the logits.
    LossesGathered,
    /// Gradients of norms, added up over the ranks that have them alike.
    NormsSummed,
    /// Keys and values.
    ContextGathered,
    /// Gradients of keys and values.
    ContextSummed,
    /// Hidden states, to the next stage.
    HiddenSent,
    /// Their gradients, to the stage before.
    HiddenGradientsSent,
    /// Gradients, to the rank that updates them.
    GradientsSummed,
    /// Weights, from the rank that updated them.
    WeightsGathered,
}

impl Kind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ActivationsGathered => "activations gathered",
            Kind::ActivationsSummed => "activations added up",
            Kind::LossesGathered => "losses of rows",
            Kind::NormsSummed => "gradients of norms added up",
            Kind::ContextGathered => "keys and values gathered",
            Kind::ContextSummed => "gradients of keys and values added up",
            Kind::HiddenSent => "hidden states sent on",
            Kind::HiddenGradientsSent => "gradients of hidden states sent back",
            Kind::GradientsSummed => "gradients added up",
            Kind::WeightsGathered => "weights gathered",
        }
    }
}

/// How much of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindTraffic {
    /// The kind.
    pub kind: Kind,
    /// Bytes that a rank sends.
    pub bytes: u64,
}

/// Along one axis.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AxisTraffic {
    /// Bytes that a rank sends.
    pub bytes: u64,
    /// How long that takes, if nothing else is done meanwhile; `None` where the bandwidth is not known.
    pub seconds: Option<f64>,
    /// What it consists of.
    pub kinds: Vec<KindTraffic>,
}

impl AxisTraffic {
    fn new(kinds: &[(Kind, u64)], bandwidth: Option<f64>) -> Self {
        let some = kinds.iter().filter(|(_, bytes)| *bytes > 0);
        let kinds: Vec<_> = some.map(|&(kind, bytes)| KindTraffic { kind, bytes }).collect();
        let bytes = kinds.iter().map(|sent| sent.bytes).sum();
        Self { bytes, seconds: bandwidth.map(|speed| bytes as f64 / speed), kinds }
    }
}

/// Along every axis.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

impl Traffic {
    /// Every axis by its name.
    pub fn axes(&self) -> [(&'static str, &AxisTraffic); 4] {
        [("tp", &self.tp), ("cp", &self.cp), ("pp", &self.pp), ("dp", &self.dp)]
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.axes().iter().map(|(_, axis)| axis.bytes).sum()
    }
}

/// What all ranks but one send to it, of `bytes` in all.
fn sent(bytes: u64, ranks: usize) -> u64 {
    bytes * (ranks as u64 - 1) / ranks as u64
}

pub(super) fn of_stage(question: &MeshQuestion<'_>, schedule: &Pipeline, stage: usize) -> Traffic {
    let places = placements(question.model, question.config, question.mesh.pp, stage);
    // Sequences of a step on a data-parallel rank; how they are cut into micro-batches does not matter here.
    let sequences = question.config.batch / question.mesh.dp;
    let tokens = (sequences * question.config.sequence).div_ceil(question.mesh.cp) as u64;
    let whole = (sequences * question.config.sequence) as u64;
    let speed = question.device.bandwidth;
    Traffic {
        tp: AxisTraffic::new(&tensor(question, &places, tokens), speed.map(|s| s.tp)),
        cp: AxisTraffic::new(&context(question, &places, whole), speed.map(|s| s.cp)),
        pp: AxisTraffic::new(&pipeline(question, &places, tokens), speed.map(|s| s.pp)),
        dp: AxisTraffic::new(&data(question, &places, schedule), speed.map(|s| s.dp)),
    }
}

/// Gathers and sums of `[T, C]` in a step, for every token.
fn collectives(place: &Placement, recompute: Recompute) -> [u64; 2] {
    // Two of each forwards and as many backwards; what was gathered, again; all of forward, again.
    let block = match recompute {
        Recompute::Nothing => [4, 4],
        Recompute::Selective => [6, 4],
        Recompute::Blocks => [8, 6],
    };
    // The embedding is added up and its gradient gathered; before the head it is the other way round.
    let ends = u64::from(place.first) + u64::from(place.last);
    block.map(|n| n * place.layers.len() as u64 + ends)
}

fn tensor(question: &MeshQuestion<'_>, places: &[Placement], tokens: u64) -> [(Kind, u64); 4] {
    let (model, tp) = (question.model, question.mesh.tp);
    let hidden = sent(tokens * model.dim as u64 * question.dtype.bytes() as u64, tp);
    let counts = places.iter().map(|place| collectives(place, question.config.recompute));
    let [gathers, sums] = counts.fold([0, 0], |[a, b], [gathers, sums]| [a + gathers, b + sums]);
    // Two numbers a row to every other rank.
    let losses = if places.iter().any(|p| p.last) { 8 * tokens * (tp as u64 - 1) } else { 0 };
    let norms: u64 =
        places.iter().map(|p| local_params(model, (p, tp), |_, name| name.contains("norm"))).sum();
    [
        (Kind::ActivationsGathered, gathers * hidden),
        (Kind::ActivationsSummed, sums * hidden),
        (Kind::LossesGathered, losses),
        (Kind::NormsSummed, 2 * sent(4 * norms.div_ceil((question.mesh.dp * question.mesh.cp) as u64), tp)),
    ]
}

fn context(question: &MeshQuestion<'_>, places: &[Placement], tokens: u64) -> [(Kind, u64); 2] {
    let Config { kv_heads, head_dim, .. } = *question.model;
    let width = (2 * kv_heads.div_ceil(question.mesh.tp) * head_dim) as u64;
    let layers: u64 = places.iter().map(|place| place.layers.len() as u64).sum();
    let gathers = match question.config.recompute {
        Recompute::Nothing => 1,
        Recompute::Selective => 2,
        Recompute::Blocks => 3,
    };
    // Gradients are added up in f32.
    let each = |bytes: usize| layers * sent(tokens * width * bytes as u64, question.mesh.cp);
    [(Kind::ContextGathered, gathers * each(question.dtype.bytes())), (Kind::ContextSummed, each(4))]
}

fn pipeline(question: &MeshQuestion<'_>, places: &[Placement], tokens: u64) -> [(Kind, u64); 2] {
    let rows = tokens.div_ceil(question.mesh.tp as u64);
    let hidden = rows * question.model.dim as u64 * question.dtype.bytes() as u64;
    let chunks = |there: fn(&Placement) -> bool| places.iter().filter(|place| there(place)).count() as u64;
    // Chunks that follow each other on one rank, where there is one stage, send nothing.
    let hidden = if question.mesh.pp == 1 { 0 } else { hidden };
    [
        (Kind::HiddenSent, chunks(|place| !place.last) * hidden),
        (Kind::HiddenGradientsSent, chunks(|place| !place.first) * hidden),
    ]
}

/// Sums of gradients are made in f32, over the ranks that share sequences too.
fn data(question: &MeshQuestion<'_>, places: &[Placement], schedule: &Pipeline) -> [(Kind, u64); 2] {
    let MeshQuestion { model, config, mesh, dtype, .. } = *question;
    let params: u64 = places.iter().map(|place| local_params(model, (place, mesh.tp), |_, _| true)).sum();
    let (micros, shards) = (schedule.micros as u64, mesh.dp * mesh.cp);
    let sums = if config.sharding == Sharding::Optimizer { 1 } else { micros };
    let gathered = match config.sharding {
        // The new ones, once.
        Sharding::Optimizer | Sharding::Gradients => params,
        Sharding::Parameters => places.iter().map(|place| gathered(model, (place, mesh.tp), micros)).sum(),
    };
    [
        (Kind::GradientsSummed, sums * sent(4 * params, shards)),
        (Kind::WeightsGathered, sent(dtype.bytes() as u64 * gathered, shards)),
    ]
}

/// Elements of sharded weights that are gathered for the passes of a step: those of blocks forwards and again backwards, table
/// and output projection once. Norms are not sharded: the new ones are gathered, once.
fn gathered(model: &Config, (place, tp): (&Placement, usize), micros: u64) -> u64 {
    let count = |wanted: &dyn Fn(Option<usize>, &str) -> bool| local_params(model, (place, tp), wanted);
    let norms = count(&|_, name| name.contains("norm"));
    let blocks = count(&|layer, name| layer.is_some() && !name.contains("norm"));
    let ends = count(&|layer, name| layer.is_none() && !name.contains("norm"));
    let again = if model.tied && place.first && place.last { ends } else { 0 };
    micros * (2 * blocks + ends + again) + norms
}
