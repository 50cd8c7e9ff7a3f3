//! How much memory a training run takes, from its sizes alone.

mod rank;

use std::fmt;

use llamero_model::Config;
use llamero_tensor::DType;
use serde::{Deserialize, Serialize};

pub use self::rank::{RankMemory, RankOf, rank_memory};
pub(crate) use self::rank::{local_params, pipeline, placements};
use crate::{Mesh, TrainConfig};

/// Bytes at the moment of a training step that takes most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Master weights and both moments of AdamW; and the sums of weights, where they are averaged.
    pub weights_and_moments: u64,
    /// Gradients of the weights that are there at this moment.
    pub gradients: u64,
    /// What the forward pass keeps for the backward pass.
    pub kept_activations: u64,
    /// Gradients of activations, values computed again, and the kernels' work space.
    pub working_space: u64,
    /// Logits of a chunk and what the kernel of the head needs beside them.
    pub head_chunk: u64,
    /// A copy of weights and moments, from which a checkpoint is written while steps go on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub checkpoint_copy: u64,
    /// What the process takes beside its tensors: program and stacks, and gaps between blocks of the allocator.
    pub process_base: u64,
}

impl MemoryEstimate {
    /// Bytes of tensors: what `Backend::memory` counts.
    pub fn tensors(&self) -> u64 {
        self.weights_and_moments
            + self.gradients
            + self.kept_activations
            + self.working_space
            + self.head_chunk
            + self.checkpoint_copy
    }

    /// The same for a run that writes checkpoints in the background: a copy of all masters and moments in f32, divided among
    /// data-parallel ranks like these.
    pub fn with_checkpoint_copy(self) -> Self {
        Self { checkpoint_copy: self.weights_and_moments, ..self }
    }

    /// Resident bytes of the process, without the text that it reads.
    pub fn total(&self) -> u64 {
        self.tensors() + self.process_base
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("weights and moments", self.weights_and_moments),
            ("gradients", self.gradients),
            ("kept activations", self.kept_activations),
            ("working space", self.working_space),
            ("head chunk", self.head_chunk),
            ("copy for checkpoints", self.checkpoint_copy),
            ("process", self.process_base),
        ];
        // Not every run copies.
        let parts = parts.into_iter().filter(|part| part.1 > 0 || part.0 != "copy for checkpoints");
        write_parts(f, &parts.collect::<Vec<_>>())
    }
}

fn write_parts(f: &mut fmt::Formatter<'_>, parts: &[(&str, u64)]) -> fmt::Result {
    for (i, (name, bytes)) in parts.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let mib = *bytes as f64 / f64::from(1 << 20);
        let (n, unit) = if mib < 10_240.0 { (mib, "MiB") } else { (mib / 1024.0, "GiB") };
        write!(f, "{comma}{name} {n:.1} {unit}")?;
    }
    Ok(())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// What the work space of the CPU's kernels depends on, beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// Threads.
    pub threads: usize,
    /// Whether products of bf16 pack it as pairs, two bytes an element; it is widened to f32 otherwise.
    pub pairs: bool,
}

/// Program, libraries, stacks and small things.
const PROCESS: u64 = 12 << 20;

/// Gaps between blocks of the CPU's allocator come to about this fraction (one over it) of the peak.
const GAPS: u64 = 64;

/// Work space of the CPU's kernels. The one place to change when they do.
mod scratch {
    /// Most bytes of the right operand of a product that are packed at once.
    const PACKED: u64 = 64 << 20;
    /// Most rows and steps of depth of the left operand that a thread packs at once, and most of both together.
    const LEFT: (u64, u64, u64) = (384, 1024, 96 << 10);
    /// Bytes of a packed row of the left operand.
    const LEFT_ROW: u64 = 4 * (1024 + 16);
    /// Most columns of a tile of a product.
    const COLUMNS: u64 = 1024;
    /// Rows whose logits are there at once.
    const CHUNK: u64 = 512;
    /// Bytes of a packed row of queries, unless heads are very wide.
    const QUERY_ROW: u64 = 4 * 80;

    /// Threads, and bytes of an element of a packed operand.
    #[derive(Clone, Copy)]
    pub(super) struct Scratch {
        pub(super) threads: u64,
        pub(super) packed: u64,
    }

    impl Scratch {
        /// Steps of four bytes.
        fn steps(self, k: u64) -> u64 {
            k * self.packed / 4
        }

        /// Rows of the left operand that a thread packs at once.
        fn rows(self, k: u64) -> u64 {
            (LEFT.2 / self.steps(k).clamp(1, LEFT.1)).clamp(48, LEFT.0)
        }

        fn left(self, k: u64) -> u64 {
            self.threads * self.rows(k) * LEFT_ROW
        }

        /// A product with the right operand `[K, N]`, into f32.
        pub(super) fn product(self, (n, k): (u64, u64)) -> u64 {
            PACKED.min(n * k * self.packed) + self.left(k)
        }

        /// The same with a result of `element` bytes: sums of a deep product are kept in f32 beside a bf16 tile.
        pub(super) fn activations(self, (n, k): (u64, u64), element: u64) -> u64 {
            let beside = element < 4 && self.steps(k) > LEFT.1;
            let tiles = if beside { self.threads * self.rows(k) * n.min(COLUMNS) * 4 } else { 0 };
            self.product((n, k)) + tiles
        }

        /// The head and its gradient for `t` rows: its weight packed for both directions, the logits of a chunk of
        /// rows, and the gradient of these rows.
        pub(super) fn head(self, (t, c, v): (u64, u64, u64)) -> u64 {
            let rows = CHUNK.min(t);
            let chunk = 4 * rows * (v + c);
            2 * v * c * self.packed + chunk + self.product((c, rows)).max(self.left(c))
        }

        /// The backward pass of attention over a document of `n` tokens, for one key/value head on every thread: rows
        /// of queries and of their gradients, packed in two ways; the gradient of the queries; keys in two ways, and
        /// values.
        pub(super) fn attention(self, n: u64, (group, dim): (u64, u64)) -> u64 {
            let queries = 2 * (QUERY_ROW + dim * self.packed) + 4 * dim;
            self.threads * n * (group * queries + 3 * dim * self.packed)
        }
    }
}

/// Expects the peak of a training run of one rank on the CPU, of its largest update where they differ: [`rank_memory`] of a
/// mesh of one.
pub fn estimate_memory(
    model: &Config,
    config: &TrainConfig,
    dtype: DType,
    kernels: Kernels,
) -> MemoryEstimate {
    let alone = RankOf { mesh: Mesh::default(), stage: 0, kernels: Some(kernels) };
    rank_memory(model, config, dtype, &alone).into()
}

impl From<RankMemory> for MemoryEstimate {
    fn from(rank: RankMemory) -> Self {
        Self {
            weights_and_moments: rank.weights + rank.optimizer,
            gradients: rank.gradients,
            kept_activations: rank.kept_activations,
            working_space: rank.working_space + rank.communication,
            head_chunk: rank.head_chunk,
            checkpoint_copy: 0,
            process_base: PROCESS + rank.total() / GAPS,
        }
    }
}
