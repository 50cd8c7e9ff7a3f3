//! How much memory a training run takes, from its sizes alone.
//!
//! `T` tokens of a micro-batch, `C` model width, `F` feed-forward width, `V` vocabulary; `Q` and `W` widths of the queries
//! and of a whole row of `wqkv`'s output.

use std::fmt;

use llamero_model::{Config, Recompute};
use llamero_tensor::DType;
use serde::{Deserialize, Serialize};

use self::scratch::Scratch;
use crate::TrainConfig;
use crate::phases::Phase;

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
            ("process", self.process_base),
        ];
        for (i, (name, bytes)) in parts.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let mib = bytes as f64 / f64::from(1 << 20);
            let (n, unit) = if mib < 10_240.0 { (mib, "MiB") } else { (mib / 1024.0, "GiB") };
            write!(f, "{comma}{name} {n:.1} {unit}")?;
        }
        Ok(())
    }
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

struct Sizes {
    t: u64,
    /// Tokens of a sequence, the longest that a document can be.
    sequence: u64,
    c: u64,
    f: u64,
    q: u64,
    w: u64,
    heads: u64,
    kv_heads: u64,
    /// Bytes of an element of an activation.
    element: u64,
    recompute: Recompute,
    scratch: Scratch,
}

impl Sizes {
    fn new(model: &Config, config: &TrainConfig, dtype: DType, kernels: Kernels) -> Self {
        let [heads, kv_heads, d] = [model.heads, model.kv_heads, model.head_dim].map(|n| n as u64);
        let sequence = config.sequence as u64;
        let packed = if dtype == DType::Bf16 && kernels.pairs { 2 } else { 4 };
        Self {
            t: config.micro_batch.min(config.batch) as u64 * sequence,
            sequence,
            c: model.dim as u64,
            f: model.ffn as u64,
            q: heads * d,
            w: (heads + 2 * kv_heads) * d,
            heads,
            kv_heads,
            element: dtype.bytes() as u64,
            recompute: config.recompute,
            scratch: Scratch { threads: kernels.threads as u64, packed },
        }
    }

    /// Activations of `width` elements a token.
    fn activations(&self, width: u64) -> u64 {
        self.t * width * self.element
    }

    /// Width of what is cheap to compute again: outputs of both norms and of SwiGLU; 0 where it is not kept.
    fn cheap(&self) -> u64 {
        if self.recompute == Recompute::Nothing { 2 * self.c + self.f } else { 0 }
    }

    /// What a block keeps within which nothing but cheap values is computed again, or nothing at all. Its input, queries
    /// with keys and values, attention output and log-sum-exp, middle residual, gate and up; and what is cheap.
    fn block(&self) -> u64 {
        self.activations(2 * self.c + self.w + self.q + 2 * self.f + self.cheap()) + 4 * self.t * self.heads
    }

    /// What is kept of each block until the sweep comes to it.
    fn kept(&self) -> u64 {
        if self.recompute == Recompute::Blocks { self.activations(self.c) } else { self.block() }
    }

    /// What the sweep adds while it goes back through a block, at the widest of its moments.
    fn sweep(&self) -> u64 {
        let again = if self.recompute == Recompute::Blocks { self.block() - self.kept() } else { 0 };
        let (f, c, t) = (self.f, self.c, self.t);
        // SwiGLU's output is there already, or made again for the gradient of `w2`.
        let output = if self.recompute == Recompute::Nothing { 0 } else { f };
        let of_w2 = self.scratch.product((f, t)).max(self.scratch.activations((f, c), self.element));
        // Afterwards the gradients of gate and up take the place of gate and up.
        let through_w2 = self.activations(c + output) + of_w2;
        again + through_w2.max(self.sweep_of_attention())
    }

    /// What attention adds: gradients of the residual stream, of the output, and of queries, keys and values; while the
    /// feed-forward half of the block is gone.
    fn sweep_of_attention(&self) -> u64 {
        let (c, f, q) = (self.c, self.f, self.q);
        let gone = c + 2 * f + self.cheap().saturating_sub(c);
        let size = (self.heads / self.kv_heads, q / self.heads);
        let added = self.activations(c + q + self.w) + 4 * self.t * self.heads;
        (added + self.scratch.attention(self.sequence, size)).saturating_sub(self.activations(gone))
    }
}

/// Expects the peak of a training run on the CPU: of its largest update, where they differ.
pub fn estimate_memory(
    model: &Config,
    config: &TrainConfig,
    dtype: DType,
    kernels: Kernels,
) -> MemoryEstimate {
    let of_phase = |phase: Phase| {
        let Phase { batch, sequence, micro_batch, .. } = phase;
        let config = TrainConfig { batch, sequence, micro_batch, ..config.clone() };
        estimate_step(model, &config, dtype, kernels)
    };
    config.phases().into_iter().map(of_phase).max_by_key(MemoryEstimate::total).unwrap_or_default()
}

/// A step is at its peak in one of a few moments: at the head, with all that the forward pass keeps; at the last block, the
/// first that the sweep comes to; at the first block, when most gradients are there; or at the embedding, when all are.
fn estimate_step(model: &Config, config: &TrainConfig, dtype: DType, kernels: Kernels) -> MemoryEstimate {
    let [c, v, layers] = [model.dim, model.vocab, model.layers].map(|n| n as u64);
    let sizes = Sizes::new(model, config, dtype, kernels);
    let block: u64 = model.params().iter().filter(|s| s.layer == Some(0)).map(|s| 4 * s.elements()).sum();
    let all = 4 * model.num_params();
    // With several micro-batches in a step, the gradients of the first are there from the start.
    let from_start = config.batch > config.micro_batch;
    let head_gradients = 4 * v * c;
    let there = |so_far: u64| if from_start { all } else { so_far };
    let tensors = if config.averages() { 4 } else { 3 };
    let state = MemoryEstimate { weights_and_moments: tensors * all, ..MemoryEstimate::default() };
    let at_head = MemoryEstimate {
        gradients: there(head_gradients),
        kept_activations: layers * sizes.kept() + sizes.activations(c),
        // Output of the last norm and its gradient; and, where some rows have no target, a copy of those that have.
        working_space: sizes.activations(3 * c),
        head_chunk: sizes.scratch.head((sizes.t, c, v)),
        ..state
    };
    let at_last_block = MemoryEstimate {
        gradients: there(head_gradients + block),
        kept_activations: layers * sizes.kept(),
        working_space: sizes.sweep(),
        ..state
    };
    let embedding_gradients = if model.tied { 0 } else { 4 * v * c };
    let at_first_block = MemoryEstimate {
        gradients: there(all - embedding_gradients),
        kept_activations: sizes.kept(),
        working_space: sizes.sweep(),
        ..state
    };
    let at_embedding = MemoryEstimate { gradients: all, working_space: sizes.activations(c), ..state };
    let moments = [at_head, at_last_block, at_first_block, at_embedding];
    let peak = moments.into_iter().max_by_key(MemoryEstimate::tensors).unwrap_or(at_embedding);
    MemoryEstimate { process_base: PROCESS + peak.tensors() / GAPS, ..peak }
}
