//! A small Llama with grouped heads and odd sizes, and sequences that it can learn.

use std::convert::Infallible;
use std::ops::Range;

use llamero_comm::Comm;
use llamero_data::{DataError, Sequence};
use llamero_model::{Config, Llama, ParamSpec, Placement};
use llamero_tensor::testing::{random, splitmix};
use llamero_tensor::{Backend, DType, NO_TARGET};
use llamero_train::SequenceSource;
use std::sync::Arc;

/// Large enough that the kernels share their work among threads.
pub(crate) fn config() -> Config {
    Config {
        dim: 44,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 10,
        ffn: 90,
        vocab: 211,
        context: 96,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm_eps: 1e-5,
        tied: false,
    }
}

/// Weights that keep every part of the network busy: norms away from one, matrices of gain one.
pub(crate) fn values(spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<f32>, Infallible> {
    let cols = spec.shape.cols;
    Ok(whole(spec)[rows.start * cols..rows.end * cols].to_vec())
}

fn whole(spec: &ParamSpec) -> Vec<f32> {
    let elements = spec.shape.elements();
    let seed = spec.id as u64 + 1;
    if !spec.decay {
        return random(seed, elements, 0.3).into_iter().map(|x| 1.0 + x).collect();
    }
    let gain = if spec.layer.is_none() { 0.5 } else { 1.0 };
    random(seed, elements, gain * (3.0 / spec.shape.cols as f32).sqrt())
}

/// What `place` holds of the model.
pub(crate) fn llama(
    config: &Config,
    place: &Placement,
    device: (&dyn Backend, DType),
    ranks: Arc<dyn Comm>,
) -> Llama {
    let Ok(model) = Llama::build(config, place, device, &ranks, values);
    model
}

/// Sequences of several documents, in which nearly every token follows from the one before.
pub(crate) struct Made;

impl SequenceSource for Made {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        let (length, vocab) = (config().context, config().vocab as u64);
        let mut state = index.wrapping_mul(7919) ^ 0x5eed;
        let mut sequence = Sequence::default();
        while sequence.tokens.len() < length {
            let run = (1 + splitmix(&mut state) as usize % 50).min(length - sequence.tokens.len());
            let mut token = splitmix(&mut state) % vocab;
            let mut ids = vec![token as u32];
            for _ in 1..run {
                token = if splitmix(&mut state).is_multiple_of(10) {
                    splitmix(&mut state) % vocab
                } else {
                    (token * 5 + 3) % 31
                };
                ids.push(token as u32);
            }
            sequence.targets.extend(&ids[1..]);
            sequence.targets.push(NO_TARGET);
            sequence.tokens.extend(ids);
            sequence.documents.push(run);
        }
        Ok(sequence)
    }
}
