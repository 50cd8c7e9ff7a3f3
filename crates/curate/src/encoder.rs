//! Language models that turn texts into vectors. This crate says which model and how; who opens it is told by
//! [`Registry::encoders`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llamero_artifact::{Artifact, MANIFEST};
use serde::{Deserialize, Serialize};

use crate::CurateError;
use crate::plan::{Registry, Step, parameters};

/// How the hidden states of a text become one vector.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean over all tokens of the text.
    #[default]
    Mean,
    /// That of the last token; where a text has several windows, the mean over their last tokens.
    Last,
}

/// What a model computes in.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits: the same vectors on every processor.
    #[default]
    F32,
    /// 16 bits; the last bits of vectors differ between processors with and without products of bf16.
    Bf16,
    /// As the weights are stored.
    Auto,
}

/// A model, and how texts become vectors by it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// The model's file or folder.
    pub model: PathBuf,
    /// Its hash by [`model_hash`]; another model is refused. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// How hidden states become one vector.
    #[serde(default)]
    pub pooling: Pooling,
    /// Most tokens that are read together; see [`Encoder::WINDOW`].
    #[serde(default = "window")]
    pub window: u32,
    /// Tokens of a text that count, from its first on; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// What it computes in.
    #[serde(default)]
    pub precision: Precision,
}

fn window() -> u32 {
    Encoder::WINDOW
}

impl Encoder {
    /// Tokens that are read together unless a recipe says otherwise: attention over more takes longer, and a model may have
    /// room for no more.
    pub const WINDOW: u32 = 512;

    /// A model with all else as it is by default.
    pub fn new(model: &Path) -> Encoder {
        Encoder {
            model: model.to_path_buf(),
            hash: None,
            pooling: Pooling::Mean,
            window: Encoder::WINDOW,
            max_tokens: None,
            precision: Precision::F32,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`CurateError::BadFilter`] with the key.
    pub fn validate(&self) -> Result<(), CurateError> {
        for (key, found) in [("window", Some(self.window)), ("max_tokens", self.max_tokens)] {
            if found == Some(0) {
                let (found, allowed) = ("0".to_owned(), "1 or more".to_owned());
                return Err(CurateError::BadFilter { key: key.to_owned(), found, allowed });
            }
        }
        Ok(())
    }
}

impl Encoder {
    /// Refuses a model of another hash than the one that is wanted; `found` is the model's.
    ///
    /// # Errors
    /// [`CurateError::BadModel`] with both.
    pub fn check(&self, found: &str) -> Result<(), CurateError> {
        match &self.hash {
            Some(wanted) if wanted != found => Err(CurateError::BadModel {
                path: self.model.clone(),
                found: format!("the model of hash {wanted} is wanted, but this one has {found}"),
                hint: "name that model".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// Turns texts into vectors. Equal texts must give equal vectors, whatever the machine does beside.
pub trait Embed: Send + Sync {
    /// The vector of a text; all have the same length. `None` for a text that holds nothing the model knows.
    ///
    /// # Errors
    /// Whatever keeps it from being worked out.
    fn embed(&self, text: &str) -> Result<Option<Vec<f32>>, CurateError>;
}

/// Opens the model of an encoder, if [`Encoder::check`] has nothing against it.
pub type OpenEncoder = dyn Fn(&Encoder) -> Result<Arc<dyn Embed>, CurateError> + Send + Sync;

impl Registry {
    /// Gives plans language models: the map `embed` and classifiers on top of one open theirs by `open`, when they are built,
    /// so an executor of a cluster opens what the step's parameters name.
    pub fn encoders<F>(&mut self, open: F)
    where
        F: Fn(&Encoder) -> Result<Arc<dyn Embed>, CurateError> + Send + Sync + 'static,
    {
        let open: Arc<OpenEncoder> = Arc::new(open);
        crate::dedup::semantic::register_embed(self, Arc::clone(&open));
        crate::quality::register(self, open);
    }
}

/// Where no model can be opened.
pub(crate) fn none() -> Arc<OpenEncoder> {
    Arc::new(|encoder: &Encoder| {
        Err(CurateError::BadModel {
            path: encoder.model.clone(),
            found: "this program has no language models to embed texts with".to_owned(),
            hint: "run the recipe with `llamero curate run`, which has".to_owned(),
        })
    })
}

/// Where vectors come from: the parameters of the map `embed`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Vectors {
    /// From a model.
    Model(Encoder),
    /// From a Parquet file: [`crate::dedup::semantic::Given`].
    File(PathBuf),
}

impl Vectors {
    pub(crate) fn of(step: &serde_json::Value) -> Result<Vectors, CurateError> {
        parameters("embed", step)
    }

    pub(crate) fn step(&self) -> Result<Step, CurateError> {
        Step::with("embed", self)
    }
}

/// The file that makes a folder a classifier on top of a model.
pub const CLASSIFIER_FILE: &str = "classifier.json";

/// Ends of names of files that decide what a model computes; a folder may hold others.
const PARTS: [&str; 11] = [
    ".safetensors",
    ".safetensors.index.json",
    ".gguf",
    ".pth",
    "config.json",
    "params.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    CLASSIFIER_FILE,
];

/// What a model is, as 64 hex digits: blake3 of a file, or over names and blake3 of those files of a folder that decide what it
/// computes: weights, configuration, tokenizer. Of an artifact the manifest says the latter. Where it lies is no part of it.
///
/// # Errors
/// A file that cannot be read, a folder without such files.
pub fn model_hash(path: &Path) -> Result<String, CurateError> {
    if !path.is_dir() {
        return file_hash(path);
    }
    let mut parts = Vec::new();
    if path.join(MANIFEST).exists() {
        let artifact = Artifact::open(path, None).map_err(|error| CurateError::read(path, error))?;
        let files = &artifact.manifest().files;
        parts.extend(files.iter().map(|file| (file.path.clone(), Some(file.blake3.clone()))));
    } else {
        for entry in std::fs::read_dir(path).map_err(|error| CurateError::read(path, error))? {
            let entry = entry.map_err(|error| CurateError::read(path, error))?;
            parts.push((entry.file_name().to_string_lossy().into_owned(), None));
        }
    }
    parts.retain(|(name, _)| PARTS.iter().any(|end| name.ends_with(end)));
    parts.sort();
    if parts.is_empty() {
        return Err(CurateError::BadModel {
            path: path.to_path_buf(),
            found: "the folder has no weights, no configuration and no tokenizer".to_owned(),
            hint: "name the folder or file of a model or of a classifier".to_owned(),
        });
    }
    let mut hasher = blake3::Hasher::new_derive_key("llamero model folder 1");
    for (name, hash) in parts {
        let hash = hash.map_or_else(|| file_hash(&path.join(&name)), Ok)?;
        hasher.update(format!("{hash} {name}\n").as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn file_hash(path: &Path) -> Result<String, CurateError> {
    let mut hasher = blake3::Hasher::new();
    std::fs::File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(|error| CurateError::read(path, error))?;
    Ok(hasher.finalize().to_hex().to_string())
}
