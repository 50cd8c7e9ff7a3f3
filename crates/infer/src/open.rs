//! From the path that a user gives to the files that hold a model, and from these to a model on a device.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llamero_artifact::{Artifact, ArtifactError, MANIFEST};
use llamero_autograd::Param;
use llamero_comm::{Comm, Solo};
use llamero_model::gguf::GgufFile;
use llamero_model::hf::{CONFIG_FILE, WEIGHTS_FILE};
use llamero_model::weights::Layout;
use llamero_model::{Division, Group, Llama, ParamSpec, Placement, WeightError, Weights, meta};
use llamero_tensor::{Backend, DType, Tensor};
use llamero_tokenizer::{Release, Tokenizer};

use crate::{InferError, Result, vocabulary};

/// The stages of a run that make a model, the last one first. Each is made from the next one in this list that the run
/// has.
pub const MODEL_STAGES: [&str; 2] = ["sft", "pretrain"];

const HINT: &str = "a model is a run folder, an artifact folder of it such as `RUN/sft`, a folder of Hugging Face's or Meta's files, or a \
     GGUF file";

/// The folder or file that holds the model meant by `path`, which is a run folder (its latest finished model), an artifact
/// folder, a folder in Hugging Face's or Meta's layout, a GGUF file or a folder with exactly one.
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
    match Layout::of(path) {
        Ok(Some(_)) => Ok(path.to_owned()),
        Ok(None) if path.is_file() && is_tokenizer(path) => {
            Err(not_a_model(path, "it is a tokenizer, which has no weights".into(), HINT))
        }
        Ok(None) if path.is_file() => {
            Err(not_a_model(path, "it is a file, but not in GGUF".into(), "name the folder that holds it"))
        }
        Ok(None) => latest_of_run(path),
        Err(WeightError::NotAModel { path, found, hint }) => Err(InferError::NotAModel { path, found, hint }),
        Err(error) => Err(error.into()),
    }
}

fn not_a_model(path: &Path, found: String, hint: &str) -> InferError {
    InferError::NotAModel { path: path.to_owned(), found, hint: hint.into() }
}

fn is_tokenizer(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tokenizer.model" || name == "tokenizer.json")
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
            Err(error @ (ArtifactError::Unfinished { .. } | ArtifactError::NoManifest { .. })) => {
                unfinished = Some(error)
            }
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

/// The tokenizer of the model at `path`, which [`resolve_model`] found: that of its folder, or the one inside of its GGUF file.
/// Ranks in a folder of Meta's have the special tokens of the release that its scaled frequencies belong to.
///
/// # Errors
/// None there; one that cannot be read or is of a kind that is not known here.
pub fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    let file = match Layout::of(path)? {
        Some(Layout::Gguf(file)) => file,
        Some(Layout::Meta) if meta::is_scaled(path)? => {
            return Ok(Tokenizer::load_of(path, Release::July2024)?);
        }
        _ => return Ok(Tokenizer::load(path)?),
    };
    let contents = GgufFile::open(&file)?;
    let vocabulary = vocabulary::read(&contents)?;
    let in_file = |source| llamero_tokenizer::Error::InFile { path: file.clone(), source: Box::new(source) };
    Ok(Tokenizer::from_gguf(vocabulary).map_err(in_file)?)
}

/// A model for inference: every matrix is arranged for it straight from the files, one at a time, so that no weight is in
/// memory twice.
pub(crate) fn load(weights: &dyn Weights, backend: &dyn Backend, dtype: DType) -> Result<Llama> {
    let config = weights.config();
    let mut table = config.params();
    // The largest first: while one is arranged its pages are there too, beside what is arranged already.
    table.sort_by_key(|spec| spec.group() != Group::Vocabulary);
    let mut params = Vec::with_capacity(table.len());
    for spec in table {
        let value = match spec.group() {
            Group::Norm => plain(weights, &spec, backend, dtype)?,
            Group::Vocabulary | Group::Matrix => packed(weights, &spec, backend, dtype)?,
        };
        weights.release(&spec);
        params.push(Param::new(spec.id, spec.name, value));
    }
    params.sort_by_key(|param| param.id);
    Ok(Llama::from_params(config, params))
}

fn packed(weights: &dyn Weights, spec: &ParamSpec, backend: &dyn Backend, dtype: DType) -> Result<Tensor> {
    Ok(backend.pack_stored(&weights.stored(spec)?, spec.shape, dtype))
}

/// A parameter as it is, read in pieces.
fn plain(weights: &dyn Weights, spec: &ParamSpec, backend: &dyn Backend, dtype: DType) -> Result<Tensor> {
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    let place = Placement::whole(weights.config());
    let mut values = |spec: &ParamSpec, rows| weights.values(spec, rows);
    Ok(Division::from(&ranks).param(spec, &place, (backend, dtype), &mut values)?.value)
}
