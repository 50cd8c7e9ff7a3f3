//! The peak of one rank of a mesh.
//!
//! `T` tokens of a micro-batch, `C` model width, `F` feed-forward width, `V` vocabulary; `Q` and `W` widths of the queries
//! and of a whole row of `wqkv`'s output. Between the products of a block a rank has its share of the rows, within them all
//! rows of its part of the sequence and its share of the columns.

use std::fmt;

use llamero_model::{Config, Placement, Recompute};
use llamero_tensor::DType;
use serde::{Deserialize, Serialize};

use super::Kernels;
use super::scratch::Scratch;
use crate::{Action, Mesh, Pipeline, Sharding, TrainConfig, stage_layers};

/// A rank of a mesh whose memory is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankOf {
    /// The mesh.
    pub mesh: Mesh,
    /// Its place on the pipeline axis.
    pub stage: usize,
    /// The CPU's kernels; `None` for a device whose kernels take no work space to speak of.
    pub kernels: Option<Kernels>,
}

/// Bytes of one rank at the moment of a step that takes most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankMemory {
    /// Weights in the dtype of the computation.
    pub weights: u64,
    /// Moments of AdamW; in bf16 what weights lack to be f32 masters; and the sums of weights, where they are averaged.
    pub optimizer: u64,
    /// f32 gradients of the weights that have some at this moment.
    pub gradients: u64,
    /// What forward passes keep for backward passes, of all micro-batches that are under way.
    pub kept_activations: u64,
    /// Gradients of activations, values computed again, and the kernels' work space.
    pub working_space: u64,
    /// Logits of a chunk of rows and what the kernel of the head needs beside them.
    pub head_chunk: u64,
    /// What other ranks sent, or have not fetched yet.
    pub communication: u64,
}

impl RankMemory {
    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.weights
            + self.optimizer
            + self.gradients
            + self.kept_activations
            + self.working_space
            + self.head_chunk
            + self.communication
    }
}

impl std::iter::Sum for RankMemory {
    fn sum<I: Iterator<Item = Self>>(ranks: I) -> Self {
        ranks.fold(Self::default(), |a, b| Self {
            weights: a.weights + b.weights,
            optimizer: a.optimizer + b.optimizer,
            gradients: a.gradients + b.gradients,
            kept_activations: a.kept_activations + b.kept_activations,
            working_space: a.working_space + b.working_space,
            head_chunk: a.head_chunk + b.head_chunk,
            communication: a.communication + b.communication,
        })
    }
}

impl fmt::Display for RankMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("weights", self.weights),
            ("optimiser", self.optimizer),
            ("gradients", self.gradients),
            ("kept activations", self.kept_activations),
            ("working space", self.working_space),
            ("head chunk", self.head_chunk),
            ("messages", self.communication),
        ];
        super::write_parts(f, &parts)
    }
}

/// Sizes of what one rank computes.
struct Sizes {
    /// Tokens of a micro-batch in a product.
    t: u64,
    /// This rank's share of them between products.
    rows: u64,
    /// Tokens of a sequence, the longest that a document can be.
    sequence: u64,
    c: u64,
    /// This rank's share of the widths.
    f: u64,
    q: u64,
    w: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    /// Bytes of an element of an activation.
    element: u64,
    /// Whether rows of activations are divided.
    tp: bool,
    /// Bytes of keys and values of a whole sequence, where it is divided, and of their gradients.
    context: u64,
    recompute: Recompute,
    scratch: Scratch,
}

impl Sizes {
    fn new(model: &Config, config: &TrainConfig, dtype: DType, rank: &RankOf) -> Self {
        let tp = rank.mesh.tp;
        let [heads, kv_heads, f] = [model.heads, model.kv_heads, model.ffn].map(|n| n.div_ceil(tp) as u64);
        let head_dim = model.head_dim as u64;
        let (threads, packed) = match rank.kernels {
            None => (0, 0),
            Some(k) => (k.threads as u64, if dtype == DType::Bf16 && k.pairs { 2 } else { 4 }),
        };
        let tokens = config.micro_batch.min((config.batch / rank.mesh.dp).max(1)) * config.sequence;
        let element = dtype.bytes() as u64;
        let whole = tokens as u64 * 2 * kv_heads * head_dim * element;
        Self {
            t: tokens.div_ceil(rank.mesh.cp) as u64,
            rows: tokens.div_ceil(rank.mesh.cp * tp) as u64,
            sequence: config.sequence as u64,
            c: model.dim as u64,
            f,
            q: heads * head_dim,
            w: (heads + 2 * kv_heads) * head_dim,
            heads,
            kv_heads,
            head_dim,
            element,
            tp: tp > 1,
            context: if rank.mesh.cp > 1 { 2 * whole } else { 0 },
            recompute: config.recompute,
            scratch: Scratch { threads, packed },
        }
    }

    /// Activations of `width` elements for every token.
    fn all(&self, width: u64) -> u64 {
        self.t * width * self.element
    }

    /// The same for this rank's share of the rows.
    fn share(&self, width: u64) -> u64 {
        self.rows * width * self.element
    }

    /// `x` where rows are divided: what is gathered, or not yet added up.
    fn between(&self, x: u64) -> u64 {
        if self.tp { x } else { 0 }
    }

    /// What is cheap to compute again: inputs of both products after norms (gathered), and SwiGLU's output; 0 where it is
    /// not kept.
    fn cheap(&self) -> u64 {
        if self.recompute == Recompute::Nothing { self.all(2 * self.c + self.f) } else { 0 }
    }

    /// What a block keeps within which nothing but cheap values is computed again, or nothing at all. Its input, queries
    /// with keys and values, attention output and log-sum-exp, middle residual, gate and up; and what is cheap.
    fn block(&self) -> u64 {
        let within = self.all(self.w + self.q + 2 * self.f) + 4 * self.t * self.heads;
        self.share(2 * self.c) + within + self.cheap()
    }

    /// What is kept of each block until the sweep comes to it.
    fn kept(&self) -> u64 {
        if self.recompute == Recompute::Blocks { self.share(self.c) } else { self.block() }
    }

    /// What the sweep adds while it goes back through a block, at the widest of its moments: beside messages, and messages.
    fn sweep(&self) -> (u64, u64) {
        let again = if self.recompute == Recompute::Blocks { self.block() - self.kept() } else { 0 };
        let (f, c, t) = (self.f, self.c, self.t);
        // SwiGLU's output is there already, or made again for the gradient of `w2`.
        let output = if self.recompute == Recompute::Nothing { 0 } else { self.all(f) };
        let of_w2 = self.scratch.product((f, t)).max(self.scratch.activations((f, c), self.element));
        // Afterwards the gradients of gate and up take the place of gate and up.
        let through_w2 = (self.share(c) + output + of_w2, self.between(self.all(c)));
        let through_attention = (self.sweep_of_attention(), self.context);
        let widest = [through_w2, through_attention].into_iter().max_by_key(|(a, b)| a + b);
        let (working, sent) = widest.unwrap_or_default();
        (again + working, sent)
    }

    /// What attention adds: gradients of the residual stream, of the output, and of queries, keys and values; while the
    /// feed-forward half of the block is gone.
    fn sweep_of_attention(&self) -> u64 {
        let (c, f) = (self.c, self.f);
        let cheap = if self.recompute == Recompute::Nothing { self.all(c + f) } else { 0 };
        let gone = self.share(c) + self.all(2 * f) + cheap;
        let added = self.share(c) + self.all(self.q + self.w) + 4 * self.t * self.heads;
        let size = (self.heads / self.kv_heads, self.head_dim);
        (added + self.scratch.attention(self.sequence, size)).saturating_sub(gone)
    }
}

/// What a chunk holds, in elements.
struct Chunk {
    layers: u64,
    first: bool,
    last: bool,
    params: u64,
    block: u64,
    /// The embedding, if its gradient comes last.
    embedding: u64,
    head: u64,
}

/// The parts of a step at one of its moments, beside what is always there.
#[derive(Clone, Copy, Default)]
struct Moment {
    /// Elements of this chunk's weights whose gradients are there in the first micro-batch.
    gradients: u64,
    kept: u64,
    working: u64,
    head: u64,
    communication: u64,
}

/// Elements of a chunk's parameters on the last rank of the tensor-parallel axis, which has no less than the others, and
/// of them those that satisfy `wanted`.
pub(crate) fn local_params(
    model: &Config,
    (place, tp): (&Placement, usize),
    wanted: impl Fn(Option<usize>, &str) -> bool,
) -> u64 {
    let place = Placement { tp_rank: tp - 1, tp_size: tp, ..place.clone() };
    let table = model.params();
    let held = table.iter().filter(|s| place.holds(model, s) && wanted(s.layer, &s.name));
    held.map(|s| s.local_shape(&place).elements() as u64).sum()
}

/// Chunks of one pipeline rank.
pub(crate) fn placements(model: &Config, config: &TrainConfig, pp: usize, rank: usize) -> Vec<Placement> {
    let stages = stage_layers(model, pp * config.pipeline.chunks);
    (0..config.pipeline.chunks)
        .map(|chunk| {
            let stage = chunk * pp + rank;
            let (first, last) = (stage == 0, stage + 1 == stages.len());
            Placement { layers: stages[stage].clone(), first, last, tp_rank: 0, tp_size: 1 }
        })
        .collect()
}

struct Estimate<'a> {
    sizes: Sizes,
    chunks: Vec<Chunk>,
    rank: &'a RankOf,
    vocab: u64,
    averages: bool,
    sharding: Sharding,
}

impl Estimate<'_> {
    /// What a micro-batch that went forwards through a chunk keeps. The final residual is kept by the last norm.
    fn flight(&self, chunk: &Chunk) -> u64 {
        let ends = if chunk.last { 2 } else { 1 };
        chunk.layers * self.sizes.kept() + self.sizes.share(ends * self.sizes.c)
    }

    /// A backward pass through a chunk is at its peak in one of a few moments: at the head; at the last block, the first that
    /// the sweep comes to; at the first block, when most gradients are there; or at the embedding, when all are.
    fn moments(&self, chunk: &Chunk) -> Vec<Moment> {
        let (sizes, c) = (&self.sizes, self.sizes.c);
        let mut moments = Vec::with_capacity(4);
        // A gradient that the stage before has not fetched; hidden states that the next has not are kept anyway.
        let under_way = if chunk.first { 0 } else { sizes.share(c) };
        if chunk.last {
            moments.push(Moment {
                gradients: chunk.head,
                kept: self.flight(chunk),
                // The gradient of the last norm's output; and, where some rows have no target, a copy of those that have.
                working: sizes.all(2 * c),
                head: sizes.scratch.head((sizes.t, c, self.vocab)),
                communication: under_way + sizes.between(sizes.all(c)),
            });
        }
        if chunk.layers > 0 {
            let (working, sent) = sizes.sweep();
            let communication = under_way + sent;
            let gradients = chunk.head + chunk.block;
            let kept = chunk.layers * sizes.kept();
            moments.push(Moment { gradients, kept, working, head: 0, communication });
            let gradients = chunk.params - chunk.embedding;
            moments.push(Moment { gradients, kept: sizes.kept(), working, head: 0, communication });
        }
        let communication = under_way + sizes.between(sizes.all(c));
        moments.push(Moment {
            gradients: chunk.params,
            working: sizes.share(c),
            communication,
            ..Moment::default()
        });
        moments
    }

    /// Bytes of gradients when `elements` have some.
    fn gradients(&self, elements: u64) -> u64 {
        let shards = self.shards();
        if self.sharding == Sharding::Optimizer || shards == 1 {
            return 4 * elements;
        }
        let whole = self.chunks.iter().map(|c| c.block.max(c.head)).max().unwrap_or(0);
        4 * (elements.div_ceil(shards) + whole.min(elements))
    }

    /// Ranks that divide among each other what they would hold alike.
    fn shards(&self) -> u64 {
        (self.rank.mesh.dp * self.rank.mesh.cp) as u64
    }

    fn state(&self) -> RankMemory {
        let params: u64 = self.chunks.iter().map(|c| c.params).sum();
        let (shards, element) = (self.shards(), self.sizes.element);
        let own = params.div_ceil(shards);
        let (weights, gathered) = if self.sharding == Sharding::Parameters && shards > 1 {
            let largest = self.chunks.iter().map(|c| c.block.max(c.head).max(c.embedding)).max();
            (element * own, element * largest.unwrap_or(0))
        } else {
            (element * params, 0)
        };
        let sums = if self.averages { 4 } else { 0 };
        let optimizer = own * (8 + 4 - element + sums);
        RankMemory { weights, optimizer, communication: gathered, ..RankMemory::default() }
    }

    /// Goes through the schedule of a step.
    fn peak(&self, pipeline: &Pipeline) -> RankMemory {
        let state = self.state();
        let moments: Vec<Vec<Moment>> = self.chunks.iter().map(|chunk| self.moments(chunk)).collect();
        let flights: Vec<u64> = self.chunks.iter().map(|chunk| self.flight(chunk)).collect();
        let all: u64 = self.chunks.iter().map(|chunk| chunk.params).sum();
        // When all have been through, the sums over ranks come to what ranks have sent.
        let mut peak = RankMemory { gradients: self.gradients(all), ..state };
        if self.shards() > 1 && self.sharding == Sharding::Optimizer {
            peak.communication += 4 * all.div_ceil(self.shards());
        }
        let (mut kept, mut there) = (0, vec![false; self.chunks.len()]);
        for action in pipeline.schedule(self.rank.stage) {
            let chunk = match action {
                Action::Forward { chunk, .. } => {
                    kept += flights[chunk];
                    continue;
                }
                Action::Backward { chunk, .. } => chunk,
            };
            kept -= flights[chunk];
            let earlier = self.chunks.iter().zip(&there).filter(|(_, there)| **there);
            let earlier: u64 = earlier.map(|(chunk, _)| chunk.params).sum();
            for m in &moments[chunk] {
                let gradients = if there[chunk] { earlier } else { earlier + m.gradients };
                let now = RankMemory {
                    gradients: self.gradients(gradients),
                    kept_activations: kept + m.kept,
                    working_space: m.working,
                    head_chunk: m.head,
                    communication: state.communication + m.communication,
                    ..state
                };
                if now.total() > peak.total() {
                    peak = now;
                }
            }
            there[chunk] = true;
        }
        peak
    }
}

/// Expects the peak of a rank: follows the passes of its schedule, and counts what each keeps and needs. Where updates differ
/// in shape, it is the peak of those that take most.
///
/// Of several ranks that differ only in what a share rounds to, it is the one with most.
pub fn rank_memory(model: &Config, config: &TrainConfig, dtype: DType, rank: &RankOf) -> RankMemory {
    let of_phase = |phase| of_one_shape(model, &config.only(&phase), dtype, rank);
    config.phases().into_iter().map(of_phase).max_by_key(RankMemory::total).unwrap_or_default()
}

/// The same where all updates have one shape.
fn of_one_shape(model: &Config, config: &TrainConfig, dtype: DType, rank: &RankOf) -> RankMemory {
    let tp = rank.mesh.tp;
    let places = placements(model, config, rank.mesh.pp, rank.stage);
    let chunks = places.iter().map(|place| {
        let count = |wanted: &dyn Fn(Option<usize>, &str) -> bool| local_params(model, (place, tp), wanted);
        let table = count(&|_, name| name == "tok_embeddings.weight");
        Chunk {
            layers: place.layers.len() as u64,
            first: place.first,
            last: place.last,
            params: count(&|_, _| true),
            block: count(&|layer, _| layer == Some(place.layers.start)),
            embedding: if place.first && !model.tied { table } else { 0 },
            head: if model.tied && place.last { table } else { count(&|_, name| name == "output.weight") },
        }
    });
    let estimate = Estimate {
        sizes: Sizes::new(model, config, dtype, rank),
        chunks: chunks.collect(),
        rank,
        vocab: model.vocab.div_ceil(tp) as u64,
        averages: config.averages(),
        sharding: config.sharding,
    };
    estimate.peak(&pipeline(config, &rank.mesh))
}

/// The schedule of a data-parallel rank's share of a step.
pub(crate) fn pipeline(config: &TrainConfig, mesh: &Mesh) -> Pipeline {
    let micros = (config.batch / mesh.dp).div_ceil(config.micro_batch).max(1);
    let run = config.pipeline.run.unwrap_or(mesh.pp).max(mesh.pp);
    Pipeline { ranks: mesh.pp, chunks: config.pipeline.chunks, micros, run }
}
