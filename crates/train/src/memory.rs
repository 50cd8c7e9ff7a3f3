//! How much memory a training run takes, from its sizes alone.
//!
//! `T` tokens of a micro-batch, `C` model width, `F` feed-forward width, `V` vocabulary; `Q` and `W` widths of the queries
//! and of a whole row of `wqkv`'s output.

use std::fmt;

use llamero_model::{Config, Recompute};
use llamero_tensor::DType;
use serde::{Deserialize, Serialize};

use crate::TrainConfig;

/// Bytes at the moment of a training step that takes most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Master weights and both moments of AdamW.
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
            write!(f, "{comma}{name} {:.1} MiB", bytes as f64 / f64::from(1 << 20))?;
        }
        Ok(())
    }
}

/// Program, libraries, stacks and small things.
const PROCESS: u64 = 12 << 20;

/// Gaps between blocks of the CPU's allocator come to about this fraction (one over it) of the peak.
const GAPS: u64 = 32;

/// Work space of the CPU's kernels. The one place to change when they do.
mod scratch {
    const MIB: u64 = 1 << 20;
    /// Most of the right operand of a product that is packed at once.
    const PACKED: u64 = 16 * MIB;
    /// A packed block of the left operand, for every thread.
    const LEFT: u64 = 384 * 272 * 4;
    /// Vocabulary entries and rows of a chunk of logits.
    const CHUNK: (u64, u64) = (1024, 2048);

    /// A product `[M, N] = [M, K] [K, N]`; `rounds` when the result is bf16, for which every thread makes a tile in f32.
    pub(super) fn product((n, k): (u64, u64), rounds: bool, threads: u64) -> u64 {
        let tile = if rounds { 384 * n.min(2048) * 4 } else { 0 };
        PACKED.min(4 * n * k) + threads * (LEFT + tile)
    }

    /// The head and its gradient for `t` rows.
    pub(super) fn head((t, c, v): (u64, u64, u64), threads: u64) -> u64 {
        let (cols, rows) = (CHUNK.0.min(v), CHUNK.1.min(t));
        let (dh, logits, weights) = (4 * t * c, 4 * rows * cols, 2 * 4 * cols * c);
        let gradient = dh + logits + weights + product((c, rows), false, threads);
        let losses = PACKED.min(4 * v * c) + threads * (LEFT + 192 * 512 * 4);
        gradient.max(losses)
    }
}

struct Sizes {
    t: u64,
    c: u64,
    f: u64,
    q: u64,
    w: u64,
    heads: u64,
    /// Bytes of an element of an activation.
    element: u64,
    recompute: Recompute,
}

impl Sizes {
    /// Activations of `width` elements a token.
    fn activations(&self, width: u64) -> u64 {
        self.t * width * self.element
    }

    /// What a block keeps within which nothing but cheap values is computed again, or nothing at all. Its input, queries
    /// with keys and values, attention output and log-sum-exp, middle residual, gate and up; and both norms' outputs and
    /// SwiGLU's, unless they are computed again.
    fn block(&self) -> u64 {
        let cheap = if self.recompute == Recompute::Nothing { 2 * self.c + self.f } else { 0 };
        self.activations(2 * self.c + self.w + self.q + 2 * self.f + cheap) + 4 * self.t * self.heads
    }

    /// What is kept of each block until the sweep comes to it.
    fn kept(&self) -> u64 {
        if self.recompute == Recompute::Blocks { self.activations(self.c) } else { self.block() }
    }

    /// What the sweep adds while it goes back through a block, at the widest of its moments.
    fn sweep(&self, threads: u64) -> u64 {
        let again = if self.recompute == Recompute::Blocks { self.block() - self.kept() } else { 0 };
        let (f, c, t) = (self.f, self.c, self.t);
        // SwiGLU's output is there already, or made again for the gradient of `w2`.
        let output = if self.recompute == Recompute::Nothing { 0 } else { f };
        let of_w2 = self.activations(c + output) + scratch::product((f, t), false, threads);
        let through_w2 = self.activations(c + output) + scratch::product((f, c), self.element < 4, threads);
        // Gradients of the residual stream, of SwiGLU's output, and of gate and up; the output itself is gone.
        let of_swiglu = self.activations(c + 2 * f + output);
        again + of_w2.max(through_w2).max(of_swiglu)
    }
}

/// Expects the peak of a training run on `threads` threads of the CPU.
///
/// A step is at its peak in one of a few moments: at the head, with all that the forward pass keeps; at the last block, the
/// first that the sweep comes to; at the first block, when most gradients are there; or at the embedding, when all are.
pub fn estimate_memory(model: &Config, config: &TrainConfig, dtype: DType, threads: usize) -> MemoryEstimate {
    let [c, f, v, d] = [model.dim, model.ffn, model.vocab, model.head_dim].map(|n| n as u64);
    let [heads, kv_heads, layers] = [model.heads, model.kv_heads, model.layers].map(|n| n as u64);
    let sequences = config.micro_batch.min(config.batch) as u64;
    let sizes = Sizes {
        t: sequences * config.sequence as u64,
        c,
        f,
        q: heads * d,
        w: (heads + 2 * kv_heads) * d,
        heads,
        element: dtype.bytes() as u64,
        recompute: config.recompute,
    };
    let specs = model.params();
    let gradients = |layer: Option<usize>| -> u64 {
        specs.iter().filter(|s| s.layer == layer).map(|s| 4 * s.elements()).sum()
    };
    let (all, block) = (4 * model.num_params(), gradients(Some(0)));
    // With several micro-batches in a step, the gradients of the first are there from the start.
    let from_start = config.batch > config.micro_batch;
    let head_gradients = 4 * v * c;
    let there = |so_far: u64| if from_start { all } else { so_far };
    let state = MemoryEstimate { weights_and_moments: 12 * model.num_params(), ..MemoryEstimate::default() };
    let threads = threads as u64;
    let Sizes { t, .. } = sizes;
    let at_head = MemoryEstimate {
        gradients: there(head_gradients),
        kept_activations: layers * sizes.kept() + sizes.activations(c),
        working_space: sizes.activations(2 * c),
        head_chunk: scratch::head((t, c, v), threads),
        ..state
    };
    let at_last_block = MemoryEstimate {
        gradients: there(head_gradients + block),
        kept_activations: layers * sizes.kept(),
        working_space: sizes.sweep(threads),
        ..state
    };
    let embedding_gradients = if model.tied { 0 } else { 4 * v * c };
    let at_first_block = MemoryEstimate {
        gradients: there(all - embedding_gradients),
        kept_activations: sizes.kept(),
        working_space: sizes.sweep(threads),
        ..state
    };
    let at_embedding = MemoryEstimate { gradients: all, working_space: sizes.activations(c), ..state };
    let moments = [at_head, at_last_block, at_first_block, at_embedding];
    let peak = moments.into_iter().max_by_key(MemoryEstimate::tensors).unwrap_or(at_embedding);
    MemoryEstimate { process_base: PROCESS + peak.tensors() / GAPS, ..peak }
}
