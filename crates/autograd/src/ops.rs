//! The ops: each forward with its backward directly below.
//!
//! An op takes its inputs by value: what a caller does not need again is freed, or overwritten, as early as possible.
//! A clone of a [`Var`] is cheap and keeps it. Within a backward, what is no longer needed is dropped before the next
//! gradient is made.
//!
//! Shapes: `T` packed tokens, `C` model width, `F` feed-forward width, `V` vocabulary; see `llamero_tensor`.

use llamero_tensor::{Heads, RopeDirection, RopeTable, RowLoss, Segments};

use crate::tape::sum;
use crate::{Param, Tape, Var};

impl<'m> Tape<'m> {
    /// `x wᵀ`: `[T, K]`, `w [N, K]` → `[T, N]`.
    pub fn linear(&mut self, x: Var, w: &'m Param) -> Var {
        let (whole, weight) = self.weight(w);
        let y = self.backend.linear(x.value(), &whole);
        let saved = self.saved(&x);
        self.op(y, [x.id()], move |sweep, dy| {
            let backend = sweep.backend;
            let x = saved.into_value()?;
            sweep.accumulate(w, |dw| {
                backend.linear_backward_weight(&dy, &x, dw);
                Ok(())
            })?;
            drop(x);
            Ok(vec![backend.linear_backward_input(&dy, &weight.into_value()?)])
        })
    }

    /// `a + b`.
    pub fn add(&mut self, a: Var, b: Var) -> Var {
        let (ids, backend) = ([a.id(), b.id()], self.backend);
        let y = sum(backend, a.into_value(), b.into_value());
        self.op(y, ids, |_, dy| Ok(vec![dy.clone(), dy]))
    }

    /// Root-mean-square norm with weight `w [1, C]`.
    pub fn rms_norm(&mut self, x: Var, w: &'m Param, eps: f32) -> Var {
        let backend = self.backend;
        let (whole, weight) = self.weight(w);
        let y = backend.rms_norm(x.value(), &whole, eps);
        let saved = self.saved(&x);
        let again = (saved.clone(), weight.clone());
        let y = self.op(y, [x.id()], move |sweep, dy| {
            let (x, whole) = (saved.into_value()?, weight.into_value()?);
            let dx = sweep.accumulate(w, |dw| Ok(backend.rms_norm_backward(&dy, &x, &whole, eps, dw)))?;
            Ok(vec![dx])
        });
        self.cheap(&y, move || Ok(backend.rms_norm(&again.0.value()?, &again.1.value()?, eps)));
        y
    }

    /// Rotary position embedding of the queries and keys in `qkv [T, (H+2G)·D]`.
    pub fn rope(&mut self, qkv: Var, heads: Heads, segments: &Segments, table: &RopeTable) -> Var {
        let id = qkv.id();
        let y = self.backend.rope(qkv.into_value(), heads, segments, table, RopeDirection::Forward);
        let (segments, table) = (segments.clone(), table.clone());
        self.op(y, [id], move |sweep, dy| {
            Ok(vec![sweep.backend.rope(dy, heads, &segments, &table, RopeDirection::Backward)])
        })
    }

    /// Causal attention inside each segment: `[T, (H+2G)·D]` → `[T, H·D]`. `layer` tells a key/value store apart.
    pub fn attention(&mut self, layer: usize, qkv: Var, heads: Heads, segments: &Segments) -> Var {
        let backend = self.backend;
        if let Some(kv) = self.kv() {
            let y = kv.attend(backend, layer, qkv.value(), heads, segments);
            return self.leaf(y);
        }
        if let Some(part) = self.context.clone() {
            return self.attention_over_ranks(qkv, heads, part);
        }
        let result = backend.attention(qkv.value(), heads, segments);
        let y = result.out.clone();
        let (saved, segments) = (self.saved(&qkv), segments.clone());
        self.op(y, [qkv.id()], move |sweep, dy| {
            let qkv = saved.into_value()?;
            Ok(vec![sweep.backend.attention_backward(&dy, &qkv, &result, heads, &segments)])
        })
    }

    /// `silu(gate) · up`: `[T, 2F]` → `[T, F]`.
    pub fn swiglu(&mut self, gate_up: Var) -> Var {
        let backend = self.backend;
        let y = backend.swiglu(gate_up.value());
        let saved = self.saved(&gate_up);
        let again = saved.clone();
        let y = self
            .op(y, [gate_up.id()], move |_, dy| Ok(vec![backend.swiglu_backward(&dy, saved.into_value()?)]));
        self.cheap(&y, move || Ok(backend.swiglu(&again.value()?)));
        y
    }

    /// Rows of the embedding table `[V, C]`.
    pub fn embed(&mut self, table: &'m Param, ids: &'m [u32]) -> Var {
        self.uses(table);
        let y = self.backend.embed(&self.whole(table), ids);
        self.op(y, [], move |sweep, dy| {
            let backend = sweep.backend;
            sweep.accumulate(table, |dtable| {
                backend.embed_backward(&dy, ids, dtable);
                Ok(())
            })?;
            Ok(vec![])
        })
    }

    /// Negative log-likelihood of each target under the output projection `w [V, C]`: `[T, C]` → `[T, 1]` f32,
    /// zero where the target is [`llamero_tensor::NO_TARGET`]. The logits are never all in memory.
    ///
    /// For losses whose gradient depends on the value; where it is known beforehand,
    /// [`Tape::finish_with_cross_entropy`] computes the logits only once.
    pub fn linear_cross_entropy(&mut self, h: Var, w: &'m Param, targets: &'m [u32]) -> Var {
        let (whole, weight) = self.weight(w);
        let result = self.backend.linear_cross_entropy(h.value(), &whole, targets);
        let (saved, lse) = (self.saved(&h), result.lse);
        self.op(result.nll, [h.id()], move |sweep, d_nll| {
            let (backend, h, whole) = (sweep.backend, saved.into_value()?, weight.into_value()?);
            let dh = sweep.accumulate(w, |dw| {
                Ok(backend.linear_cross_entropy_backward(
                    RowLoss::cross_entropy(&d_nll),
                    (&h, &whole),
                    targets,
                    &lse,
                    dw,
                ))
            })?;
            Ok(vec![dh])
        })
    }
}
