//! What the processes of a mesh do that are not its first rank.

use std::path::PathBuf;

use anyhow::{Context, Result};
use llamero_artifact::{WORK_STATE, recipe as files};
use llamero_train::{Checkpoints, TrainError};
use serde::{Deserialize, Serialize};

use super::job::Nobody;
use super::training::pretraining;
use crate::processes::{Processes, Quiet};
use crate::recipe::Recipe;
use crate::termination::Termination;

/// What the first rank tells the others.
#[derive(Serialize, Deserialize)]
pub(crate) enum Order {
    /// To pre-train together.
    Train(Lesson),
    /// To leave, well or not.
    Leave { failed: bool },
}

/// What they need to know for it. The folders are on a file system that all machines share.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Lesson {
    /// The settled recipe, as TOML.
    pub(super) recipe: String,
    /// The folder of the tokens.
    pub(super) tokens: PathBuf,
    /// The folder of the unfinished artifact.
    pub(super) draft: PathBuf,
}

/// Does what the first rank says until it says to leave.
pub(crate) fn follow(processes: &Processes) -> Result<()> {
    let termination = Termination::listen().context("signals cannot be listened to")?;
    loop {
        match processes.order()? {
            Order::Train(lesson) => learn(processes, &lesson, &termination)?,
            Order::Leave { failed: false } => return Ok(()),
            Order::Leave { failed: true } => return Err(Quiet.into()),
        }
    }
}

fn learn(processes: &Processes, lesson: &Lesson, termination: &Termination) -> Result<()> {
    let recipe: Recipe = files::load_str(&lesson.recipe, "the recipe of the first rank", &[])?;
    let mut checkpoints = Checkpoints::new(lesson.draft.join(WORK_STATE)).until(termination.hold());
    if let Some(interval) = recipe.run.checkpoint_interval()? {
        checkpoints = checkpoints.every(interval);
    }
    let done = processes.work(recipe.run.mesh()?, recipe.run.threads, |cpu, ranks| {
        pretraining(&recipe, &lesson.tokens, |job, _| job.one_rank((cpu, ranks), &checkpoints, &mut Nobody))
    });
    termination.release();
    match done {
        Err(error) if !matches!(error.downcast_ref(), Some(TrainError::Stopped { .. })) => Err(error),
        // The first rank stopped too, and says so.
        _ => Ok(()),
    }
}
