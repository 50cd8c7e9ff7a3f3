//! What can go wrong in training.

use std::path::PathBuf;

use llamero_comm::CommError;
use llamero_data::DataError;

use crate::Finding;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Ranks could not talk to each other.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A checkpoint could not be written, or not be read although it was whole.
    #[error("checkpoint `{}`: {source}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint could not be saved although it was tried, and there is no going on without one.
    #[error("{reason} (failed in a row: {times})")]
    NotSaved {
        /// How many failed in a row.
        times: u32,
        /// What the last one said.
        reason: String,
    },
    /// There are checkpoints, but none that can be used.
    #[error(
        "no checkpoint in `{}` can be used:\n  {reason}\n\
         hint: put a whole one there, remove them, or begin again with `run.start_over=true`",
        dir.display()
    )]
    NoCheckpoint {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with each.
        reason: String,
    },
    /// The second place for checkpoints cannot be used.
    #[error("remote checkpoints `{url}`: {reason}")]
    Remote {
        /// The place.
        url: String,
        /// Why not.
        reason: String,
    },
    /// Another rank failed in something that all ranks do together.
    #[error("rank {rank}: {reason}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// What it said.
        reason: String,
    },
    /// Memory or arithmetic of a rank goes wrong, and going back did not help or was not possible.
    #[error(
        "step {step} is corrupt: {found}\nhint: the machine of that rank has bad memory or a bad processor; take it out and go on \
         from the newest checkpoint"
    )]
    Corrupted {
        /// The step.
        step: u64,
        /// Tensors and ranks.
        found: String,
    },
    /// The checkpoint of the last step, which a mesh leaves, cannot be used.
    #[error(
        "the state after the last step ({steps}) cannot be read back: {reason}\nhint: run the same command again"
    )]
    Unfinished {
        /// Steps of the run.
        steps: u64,
        /// What there is.
        reason: String,
    },
    /// Somebody asked for it, e.g. by a signal; a checkpoint has all that was done.
    #[error("stopped after step {step}, which is in a checkpoint\nhint: run the same command again to go on")]
    Stopped {
        /// Steps done.
        step: u64,
    },
    /// Too many steps in a row had to be skipped.
    #[error(
        "step {step}: {skipped} steps in a row were skipped, the last because {reason}\n\
         hint: lower the learning rate, or look at the data around sequence {sequence}"
    )]
    Diverged {
        /// The last step skipped.
        step: u64,
        /// How many in a row.
        skipped: u32,
        /// Why the last one was.
        reason: String,
        /// First sequence of that step.
        sequence: u64,
    },
    /// A step without a single target.
    #[error("step {step}: none of its {tokens} tokens has a target to learn from")]
    NoTargets {
        /// The step.
        step: u64,
        /// Tokens in it.
        tokens: usize,
    },
    /// A value of the recipe is out of range.
    #[error("`{key}` is {found}, but must be {allowed}")]
    OutOfRange {
        /// Key in the recipe, relative to its section.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be valid.
        allowed: String,
    },
    /// The mesh does not fit the model or its training.
    #[error("mesh `{mesh}`: {reason}")]
    Mesh {
        /// The mesh.
        mesh: String,
        /// Why not.
        reason: String,
    },
    /// No model fits the budget.
    #[error("{found}\nhint: {hint}")]
    Budget {
        /// What was found.
        found: String,
        /// What to do.
        hint: String,
    },
}

impl TrainError {
    /// The findings in words.
    pub(crate) fn corrupted(step: u64, found: &[Finding]) -> Self {
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        Self::Corrupted { step, found: found.join("; ") }
    }
}
