//! Tests, with what they share: a small stage whose bytes depend on its key.

mod damage;
mod identity;
mod kill;
mod recipe;
mod run;

use crate::{Artifact, Begin, Draft, Outcome, Result, RunDir, StageKey, fsutil};
use std::collections::BTreeMap;
use std::path::Path;

fn key(n: u64) -> StageKey {
    StageKey {
        kind: "words".into(),
        schema: 1,
        recipe: serde_json::json!({ "n": n, "lr": 0.1 }),
        inputs: vec![],
    }
}

/// A stage as real ones are: a checkpoint, two files, one of them in a folder.
fn stage(run: &RunDir, key: &StageKey) -> Result<Artifact> {
    match run.begin("words", key)? {
        Begin::Done(artifact) => Ok(artifact),
        Begin::Work(draft) => fill(draft, key),
    }
}

/// The same for whoever verifies what is done, and makes it again where it is damaged.
fn verified_stage(run: &RunDir, key: &StageKey) -> Result<Artifact> {
    let begun = match run.begin("words", key)? {
        Begin::Done(artifact) => match artifact.verify() {
            Err(error) if error.is_damage() => run.begin_again("words", key)?,
            verified => return verified.map(|()| artifact),
        },
        work => work,
    };
    match begun {
        Begin::Done(artifact) => Ok(artifact),
        Begin::Work(draft) => fill(draft, key),
    }
}

fn fill(draft: Draft, key: &StageKey) -> Result<Artifact> {
    let resume = draft.path().join("resume");
    fsutil::create_dir_all(&resume)?;
    fsutil::write_atomic(&resume.join("step"), b"7")?;
    draft.progress("step 7 of 9")?;
    fsutil::create_dir_all(&draft.path().join("sub"))?;
    fsutil::write_atomic(&draft.path().join("sub/words.txt"), key.recipe.to_string().repeat(3).as_bytes())?;
    fsutil::write_atomic(&draft.path().join("empty"), b"")?;
    let rows = BTreeMap::from([("sub/words.txt".to_owned(), 3)]);
    let metrics = serde_json::json!({ "loss": 0.1 });
    draft.finish(Outcome { metrics, rows, seed: Some(5), wall_seconds: 1.5 })
}

/// The names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let children = fsutil::entries(dir).unwrap();
    children.iter().map(|(p, _)| p.file_name().unwrap().to_string_lossy().into_owned()).collect()
}
