//! What a rank writes.

use bytes::Bytes;
use llamero_model::{ParamSpec, Shard};
use llamero_tensor::{Backend, DType, Tensor};

use super::format::{KINDS, Kind, Piece, runs};
use crate::optimizer::State as Owned;
use crate::{Ranks, TrainError, Trainer};

/// What becomes of a piece, whose hash is not known yet, and its values.
pub(super) type Take<'a> = dyn FnMut(Piece, Bytes) -> Result<(), TrainError> + 'a;

/// Hands out every piece that this rank writes, in the order of its file. With `copy` the values are copies that stay as they
/// are when training goes on; else they must be gone before it does.
pub(super) fn pieces(trainer: &Trainer<'_>, copy: bool, take: &mut Take<'_>) -> Result<(), TrainError> {
    let (backend, ranks) = (trainer.backend(), trainer.ranks());
    let table = trainer.model().config.params();
    for kind in KINDS {
        let mut table_written = false;
        let params = trainer
            .stages()
            .iter()
            .zip(trainer.places())
            .flat_map(|(stage, place)| stage.params().map(move |param| (param, place)));
        for ((param, place), state) in params.zip(&trainer.optimizer.states) {
            let spec = &table[param.id];
            if written_elsewhere(spec, ranks, table_written) {
                continue;
            }
            table_written |= param.id == 0;
            let Some(values) = values(kind, &param.value, state, (backend, copy)) else { continue };
            for (local, rows) in runs(spec, place, &state.rows) {
                let own = local.start - state.rows.start..local.end - state.rows.start;
                let (name, cols) = (param.name.clone(), spec.local_cols(place));
                let row = cols.len() * size_of::<f32>();
                let bytes = values.slice(own.start * row..own.end * row);
                take(Piece { kind, name, rows, cols, blake3: String::new() }, bytes)?;
            }
        }
    }
    Ok(())
}

/// The rows of a parameter that this rank updates, as f32.
fn values(kind: Kind, value: &Tensor, owned: &Owned, (backend, copy): (&dyn Backend, bool)) -> Option<Bytes> {
    let tensor = match kind {
        Kind::FirstMoment => owned.m.clone(),
        Kind::SecondMoment => owned.v.clone(),
        Kind::Weight => owned.master(value, backend),
        Kind::WeightSum => owned.sum.clone()?,
    };
    // Joined halves are a tensor of their own already. A cast makes a new one, on all threads of the backend.
    let own = if copy && tensor.is_shared() { backend.cast(&tensor, DType::F32) } else { tensor };
    Some(backend.download_raw(&own, 0..own.rows()))
}

/// Whether another rank writes or wrote this parameter for all that hold it alike.
fn written_elsewhere(spec: &ParamSpec, ranks: &Ranks, before: bool) -> bool {
    (spec.shard == Shard::Whole && ranks.at.tp > 0) || (spec.id == 0 && (ranks.ends.rank() > 0 || before))
}
