//! What the processes of a mesh do that are not its first rank.

use std::path::PathBuf;

use anyhow::{Context, Result};
use llamero_artifact::recipe as files;
use llamero_train::{Ledger, TrainError};
use serde::{Deserialize, Serialize};

use super::job::{How, Nobody, note_of_ranks};
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
    /// The folder of checkpoints, and what they are called in the second place.
    pub(super) checkpoints: (PathBuf, String),
    /// Folder for what ranks did last before something went wrong between them.
    pub(super) flight: PathBuf,
    /// Folder with faults that ranks are to have.
    pub(super) orders: Option<PathBuf>,
    /// What the run writes to.
    pub(super) ledger: PathBuf,
}

/// Does what the first rank says until it says to leave.
pub(crate) fn follow(processes: &Processes) -> Result<()> {
    let termination = Termination::listen().context("signals cannot be listened to")?;
    loop {
        match processes.order()? {
            // The others wait for this one.
            Order::Train(lesson) => {
                learn(processes, &lesson, &termination).inspect_err(|e| processes.fail(e))?
            }
            Order::Leave { failed: false } => return Ok(()),
            Order::Leave { failed: true } => return Err(Quiet.into()),
        }
    }
}

fn learn(processes: &Processes, lesson: &Lesson, termination: &Termination) -> Result<()> {
    let recipe: Recipe = files::load_str(&lesson.recipe, "the recipe of the first rank", &[])?;
    let (folder, what) = &lesson.checkpoints;
    let checkpoints = recipe.run.checkpoints(folder.clone(), what)?.until(termination.hold());
    let how = How::new(&recipe.run, lesson.orders.as_ref())?;
    let done = processes.work((how.mesh, how.threads), (how.world, &lesson.flight), |cpu, ranks| {
        pretraining(&recipe, &lesson.tokens, |job, _| {
            let rank = ranks.all.rank();
            let done = job.one_rank(&how, (cpu, ranks), &checkpoints, &mut Nobody);
            done.inspect_err(|error| note_of_ranks(&Ledger::new(&lesson.ledger), rank, error))
        })
    });
    termination.release();
    match done {
        Err(error) if !matches!(error.downcast_ref(), Some(TrainError::Stopped { .. })) => Err(error),
        // The first rank stopped too, and says so.
        _ => Ok(()),
    }
}
