//! The ops: each forward with its backward directly below.
//!
//! Shapes: `T` packed tokens, `C` model width, `F` feed-forward width, `V` vocabulary; see `llamero_tensor`.

use std::sync::Arc;

use llamero_tensor::{Heads, RopeDirection, RopeTable, Segments};

use crate::{Param, Tape, Var};

impl<'m> Tape<'m> {
    /// `x wᵀ`: `[T, K]`, `w [N, K]` → `[T, N]`.
    pub fn linear(&mut self, x: &Var, w: &'m Param) -> Var {
        self.uses(w);
        let y = self.backend.linear(x.value(), &w.value);
        let saved = x.value().clone();
        self.op(y, [x], move |sweep, dy| {
            let backend = sweep.backend;
            sweep.accumulate(w, |dw| backend.linear_backward_weight(dy, &saved, dw));
            Ok(vec![backend.linear_backward_input(dy, &w.value)])
        })
    }

    /// `a + b`.
    pub fn add(&mut self, a: &Var, b: &Var) -> Var {
        let y = self.backend.add(a.value(), b.value());
        self.op(y, [a, b], |_, dy| Ok(vec![dy.clone(), dy.clone()]))
    }

    /// Root-mean-square norm with weight `w [1, C]`.
    pub fn rms_norm(&mut self, x: &Var, w: &'m Param, eps: f32) -> Var {
        self.uses(w);
        let y = self.backend.rms_norm(x.value(), &w.value, eps);
        let saved = x.value().clone();
        self.op(y, [x], move |sweep, dy| {
            let backend = sweep.backend;
            let dx = sweep.accumulate(w, |dw| backend.rms_norm_backward(dy, &saved, &w.value, eps, dw));
            Ok(vec![dx])
        })
    }

    /// Rotary position embedding of the queries and keys in `qkv [T, (H+2G)·D]`.
    pub fn rope(&mut self, qkv: &Var, heads: Heads, segments: &Segments, table: &RopeTable) -> Var {
        let y = self.backend.rope(qkv.value(), heads, segments, table, RopeDirection::Forward);
        let (segments, table) = (segments.clone(), table.clone());
        self.op(y, [qkv], move |sweep, dy| {
            Ok(vec![sweep.backend.rope(dy, heads, &segments, &table, RopeDirection::Backward)])
        })
    }

    /// Causal attention inside each segment: `[T, (H+2G)·D]` → `[T, H·D]`. `layer` tells a key/value store apart.
    pub fn attention(&mut self, layer: usize, qkv: &Var, heads: Heads, segments: &Segments) -> Var {
        let backend = self.backend;
        if let Some(kv) = self.kv() {
            let y = kv.attend(backend, layer, qkv.value(), heads, segments);
            return self.leaf(y);
        }
        let saved = Arc::new(backend.attention(qkv.value(), heads, segments));
        let y = saved.out.clone();
        let (input, segments) = (qkv.value().clone(), segments.clone());
        self.op(y, [qkv], move |sweep, dy| {
            Ok(vec![sweep.backend.attention_backward(dy, &input, &saved, heads, &segments)])
        })
    }

    /// `silu(gate) · up`: `[T, 2F]` → `[T, F]`.
    pub fn swiglu(&mut self, gate_up: &Var) -> Var {
        let y = self.backend.swiglu(gate_up.value());
        let saved = gate_up.value().clone();
        self.op(y, [gate_up], move |sweep, dy| Ok(vec![sweep.backend.swiglu_backward(dy, &saved)]))
    }

    /// Rows of the embedding table `[V, C]`.
    pub fn embed(&mut self, table: &'m Param, ids: &'m [u32]) -> Var {
        self.uses(table);
        let y = self.backend.embed(&table.value, ids);
        self.op(y, [], move |sweep, dy| {
            let backend = sweep.backend;
            sweep.accumulate(table, |dtable| backend.embed_backward(dy, ids, dtable));
            Ok(vec![])
        })
    }

    /// Negative log-likelihood of each target under the output projection `w [V, C]`: `[T, C]` → `[T, 1]` f32,
    /// zero where the target is [`llamero_tensor::NO_TARGET`]. The logits are never all in memory.
    pub fn linear_cross_entropy(&mut self, h: &Var, w: &'m Param, targets: &'m [u32]) -> Var {
        self.uses(w);
        let result = self.backend.linear_cross_entropy(h.value(), &w.value, targets);
        let (saved, lse) = (h.value().clone(), result.lse);
        self.op(result.nll, [h], move |sweep, d_nll| {
            let backend = sweep.backend;
            let dh = sweep.accumulate(w, |dw| {
                backend.linear_cross_entropy_backward(d_nll, (&saved, &w.value), targets, &lse, dw)
            });
            Ok(vec![dh])
        })
    }
}
