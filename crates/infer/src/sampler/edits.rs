//! What changes the logits of single tokens: biases and penalties.

use super::{FORBID, SamplingParams};
use crate::{InferError, Result};

/// A copy of the logits with biases and penalties, in the single precision of the logits; `None` where nothing changes.
/// A token that is forbidden has the logit -inf, and no other.
pub(super) fn edited(logits: &[f32], params: &SamplingParams, history: &[u32]) -> Result<Option<Vec<f32>>> {
    let penalties =
        [params.repetition_penalty - 1.0, params.frequency_penalty, params.presence_penalty] != [0.0; 3];
    let window = if penalties { params.penalty_window.unwrap_or(usize::MAX) } else { 0 };
    let recent = &history[history.len().saturating_sub(window)..];
    if recent.is_empty() && params.logit_bias.is_empty() {
        return Ok(None);
    }
    let mut edited = logits.to_vec();
    for (&id, &bias) in &params.logit_bias {
        let logit = at(&mut edited, id)?;
        *logit = if bias <= FORBID { f32::NEG_INFINITY } else { finite(*logit + bias as f32) };
    }
    let mut sorted = recent.to_vec();
    sorted.sort_unstable();
    for same in sorted.chunk_by(|a, b| a == b) {
        let logit = at(&mut edited, same[0])?;
        if *logit != f32::NEG_INFINITY {
            *logit = finite(penalised(*logit, same.len(), params));
        }
    }
    Ok(Some(edited))
}

/// The logit of a token that occurred `count` times.
fn penalised(logit: f32, count: usize, params: &SamplingParams) -> f32 {
    let factor = params.repetition_penalty as f32;
    let logit = if logit > 0.0 { logit / factor } else { logit * factor };
    logit - count as f32 * params.frequency_penalty as f32 - params.presence_penalty as f32
}

/// Only the forbidden are infinite.
fn finite(x: f32) -> f32 {
    x.clamp(f32::MIN, f32::MAX)
}

fn at(logits: &mut [f32], id: u32) -> Result<&mut f32> {
    let vocab = logits.len();
    logits.get_mut(id as usize).ok_or(InferError::UnknownToken { id, vocab })
}
