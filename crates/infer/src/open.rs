//! From the path that a user gives to the folder that holds a model.

use std::path::{Path, PathBuf};

use llamero_artifact::{Artifact, ArtifactError, MANIFEST};
use llamero_model::hf::{CONFIG_FILE, WEIGHTS_FILE};

use crate::{InferError, Result};

/// The stages of a run that make a model, the last one first. Each is made from the next one in this list that the run
/// has.
pub const MODEL_STAGES: [&str; 2] = ["sft", "pretrain"];

const HINT: &str =
    "a model is a run folder, an artifact folder of it such as `RUN/sft`, or an exported folder";

/// The folder that holds the model meant by `path`, which is a run folder (its latest finished model), an artifact folder
/// or an exported Hugging Face folder.
///
/// # Errors
/// No such folder; an artifact or a run that is unfinished; an artifact of another kind; a folder without weights or
/// without configuration; a run whose later model was not made from the earlier one that it holds now.
pub fn resolve_model(path: &Path) -> Result<PathBuf> {
    if !path.exists() || path.join(MANIFEST).exists() || is_draft(path) {
        return match Artifact::open(path, None) {
            Ok(artifact) => model_artifact(&artifact),
            Err(ArtifactError::NotAnArtifact { found, .. }) => Err(not_a_model(path, found, HINT)),
            Err(error) => Err(error.into()),
        };
    }
    if path.is_file() {
        return Err(not_a_model(path, "it is a file".into(), "name the folder that holds it"));
    }
    match (path.join(CONFIG_FILE).is_file(), path.join(WEIGHTS_FILE).is_file()) {
        (true, true) => Ok(path.to_owned()),
        (false, false) => latest_of_run(path),
        (config, _) => {
            let (has, lacks) = if config { (CONFIG_FILE, WEIGHTS_FILE) } else { (WEIGHTS_FILE, CONFIG_FILE) };
            let found = format!("the folder has `{has}`, but no `{lacks}`");
            Err(not_a_model(path, found, "copy or export the whole model folder"))
        }
    }
}

fn not_a_model(path: &Path, found: String, hint: &str) -> InferError {
    InferError::NotAModel { path: path.to_owned(), found, hint: hint.into() }
}

fn is_draft(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".partial"))
}

fn model_artifact(artifact: &Artifact) -> Result<PathBuf> {
    let manifest = artifact.manifest();
    let lists = |name: &str| manifest.files.iter().any(|f| f.path == name);
    match [CONFIG_FILE, WEIGHTS_FILE].into_iter().find(|name| !lists(name)) {
        None => Ok(artifact.path().to_owned()),
        Some(missing) => {
            let found = format!("it is an artifact of kind `{}` and has no `{missing}`", manifest.kind);
            let hint = format!("models are made by the stages `{}`", MODEL_STAGES.join("`, `"));
            Err(not_a_model(artifact.path(), found, &hint))
        }
    }
}

/// The latest finished model of a run folder.
fn latest_of_run(run: &Path) -> Result<PathBuf> {
    let mut finished = Vec::new();
    let mut unfinished = None;
    for stage in MODEL_STAGES {
        let dir = run.join(stage);
        match Artifact::open(&dir, None) {
            Ok(artifact) => finished.push(artifact),
            Err(ArtifactError::NotAnArtifact { .. }) => {}
            // The earliest unfinished stage is the one that the run has come to.
            Err(error @ ArtifactError::Unfinished { .. }) => unfinished = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    match (finished.as_slice(), unfinished) {
        ([], Some(error)) => Err(error.into()),
        ([], None) => {
            let found = format!(
                "the folder has neither `{CONFIG_FILE}` nor a finished stage `{}`",
                MODEL_STAGES.join("` or `")
            );
            Err(not_a_model(
                run,
                found,
                &format!("{HINT}; a run that has not come so far goes on with its recipe"),
            ))
        }
        ([latest, before, ..], _) if latest.manifest().inputs.iter().all(|i| i.id != before.id()) => {
            let (stage, before) = (latest.manifest().stage.clone(), before.manifest().stage.clone());
            Err(InferError::Stale { path: run.to_owned(), stage, before })
        }
        ([latest, ..], _) => model_artifact(latest),
    }
}
