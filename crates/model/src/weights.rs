//! Weights as files hold them, whatever the format.

use std::ops::Range;
use std::path::{Path, PathBuf};

use llamero_tensor::{DType, StoredRows};

use crate::gguf::{self, GgufModel};
use crate::{Config, ParamSpec, hf, meta};

mod error;
mod mapped;
mod transcode;

pub use error::WeightError;
pub use mapped::not_finite;
pub(crate) use mapped::{MappedTensor, WeightFile};
pub(crate) use transcode::{Piece, transcode};

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Shape in the file's order.
    pub shape: Vec<usize>,
    /// How it is stored, by the file's name.
    pub encoding: String,
    /// Bytes in the file.
    pub bytes: u64,
    /// The file.
    pub file: PathBuf,
}

/// Token ids that the files of a model name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopTokens {
    /// Begins every text; nothing where the files name no such token.
    pub begin_of_text: Option<u32>,
    /// Each ends a generation.
    pub stop: Vec<u32>,
}

impl StopTokens {
    /// What files name; `None` where that is nothing.
    pub(crate) fn named(begin_of_text: Option<u32>, stop: Vec<u32>) -> Option<Self> {
        (begin_of_text.is_some() || !stop.is_empty()).then_some(Self { begin_of_text, stop })
    }
}

/// A model as files hold it: its sizes and its weights, opened and checked. Values are read as they are asked for.
pub trait Weights: Send + Sync {
    /// Sizes.
    fn config(&self) -> &Config;

    /// The dtype that the model computes in by default: bf16 where a matrix is quantised; otherwise f32 where the embedding is
    /// stored as f32 or f16, which nothing computes in, and bf16 where it is not.
    fn dtype(&self) -> DType;

    /// Rows `rows` of a parameter of [`Config::params`] as they are stored, its parts joined: at least one run for each part
    /// that they meet. Rows are borrowed from the memory map where they are contiguous there. Those of queries and keys are in
    /// half-split order ([`crate::half_split_rows`] turns the other one round).
    ///
    /// # Errors
    /// A value that is not finite (see [`not_finite`]), by file, tensor and element.
    fn rows(&self, spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<StoredRows<'_>>, WeightError>;

    /// [`Weights::rows`] decoded to f32, row-major.
    ///
    /// # Errors
    /// As there.
    fn values(&self, spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<f32>, WeightError> {
        let cols = spec.shape.cols;
        let mut out = Vec::with_capacity(rows.len() * cols);
        for run in self.rows(spec, rows)? {
            out.append(&mut run.decode(cols));
        }
        Ok(out)
    }

    /// [`Weights::rows`] of all of a parameter, for [`llamero_tensor::Backend::pack_stored`].
    ///
    /// # Errors
    /// As there.
    fn stored(&self, spec: &ParamSpec) -> Result<Vec<StoredRows<'_>>, WeightError> {
        self.rows(spec, 0..spec.shape.rows)
    }

    /// Says that a parameter is not needed for now: its pages of the memory map need not stay resident.
    fn release(&self, spec: &ParamSpec);

    /// Bytes of all weights as stored.
    fn stored_bytes(&self) -> u64 {
        self.tensors().iter().map(|t| t.bytes).sum()
    }

    /// Every tensor of the files.
    fn tensors(&self) -> Vec<TensorInfo>;

    /// Tokens that begin a text and that end a generation, where the files say so.
    fn stop_tokens(&self) -> Option<StopTokens>;
}

/// How the files of a model are arranged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A folder with `config.json` and safetensors.
    HuggingFace,
    /// A folder with `params.json` and `consolidated.*.pth`.
    Meta,
    /// This GGUF file.
    Gguf(PathBuf),
}

impl Layout {
    /// What is at `path`: a folder in Hugging Face's layout, one in Meta's, a GGUF file, or a folder with exactly one; the
    /// first of these. `None` where it is none of them. Looks at names in folders, and at the first bytes of a file that is named
    /// otherwise.
    ///
    /// # Errors
    /// A folder that cannot be read; several GGUF files and nothing to tell which is meant; only one half of a layout.
    pub fn of(path: &Path) -> Result<Option<Self>, WeightError> {
        if !path.is_dir() {
            let gguf = path.is_file() && (is_gguf(path) || gguf::begins(path));
            return Ok(gguf.then(|| Self::Gguf(path.to_owned())));
        }
        let has = |name: &str| path.join(name).is_file();
        let names = file_names(path)?;
        let weights = [hf::WEIGHTS_FILE, hf::INDEX_FILE].into_iter().any(has);
        let checkpoint = names.iter().any(|n| meta::is_shard(n));
        if has(hf::CONFIG_FILE) && weights {
            return Ok(Some(Self::HuggingFace));
        }
        if has(meta::PARAMS_FILE) && checkpoint {
            return Ok(Some(Self::Meta));
        }
        let mut ggufs = names.iter().filter(|n| is_gguf(Path::new(n)));
        match (ggufs.next(), ggufs.next()) {
            (Some(one), None) => return Ok(Some(Self::Gguf(path.join(one)))),
            (Some(a), Some(b)) => {
                let found = format!("the folder holds several GGUF files, `{a}` and `{b}` among them");
                return Err(not_a_model(path, found, "name the file"));
            }
            (None, _) => {}
        }
        let half = |has: &str, lacks: &str| {
            let found = format!("the folder has `{has}`, but no `{lacks}`");
            Err(not_a_model(path, found, "copy or export the whole model folder"))
        };
        if weights {
            return half(
                if has(hf::WEIGHTS_FILE) { hf::WEIGHTS_FILE } else { hf::INDEX_FILE },
                hf::CONFIG_FILE,
            );
        }
        if checkpoint {
            return half(meta::FIRST_SHARD, meta::PARAMS_FILE);
        }
        if has(hf::CONFIG_FILE) {
            return half(hf::CONFIG_FILE, hf::WEIGHTS_FILE);
        }
        if has(meta::PARAMS_FILE) { half(meta::PARAMS_FILE, meta::FIRST_SHARD) } else { Ok(None) }
    }
}

/// Descriptions of models are small; what is larger is something else.
const MOST_TEXT: u64 = 64 << 20;

/// The contents of a small text file.
pub(crate) fn read_text(path: &Path) -> Result<String, WeightError> {
    let io = |source| WeightError::io(path, source);
    let bytes = path.metadata().map_err(io)?.len();
    if bytes > MOST_TEXT {
        return Err(WeightError::config(path, format!("has {bytes} bytes; at most {MOST_TEXT} are read")));
    }
    std::fs::read_to_string(path).map_err(io)
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Names in a folder, sorted; those that are not UTF-8 are none of ours.
pub(crate) fn file_names(dir: &Path) -> Result<Vec<String>, WeightError> {
    let io = |source| WeightError::io(dir, source);
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn not_a_model(path: &Path, found: impl Into<String>, hint: &str) -> WeightError {
    WeightError::NotAModel { path: path.into(), found: found.into(), hint: hint.into() }
}

/// Opens whatever [`Layout::of`] finds at `path`, and checks that every tensor is there in its shape.
///
/// # Errors
/// Nothing there that is a model; a file that cannot be read; a configuration or a tensor that is not Llama's, by name.
pub fn open(path: &Path) -> Result<Box<dyn Weights>, WeightError> {
    let unknown = |found: &str| Err(not_a_model(path, found, "name a model's folder or a `.gguf` file"));
    match Layout::of(path)? {
        Some(Layout::HuggingFace) => Ok(Box::new(hf::ModelFolder::open(path)?)),
        Some(Layout::Meta) => Ok(Box::new(meta::MetaFolder::open(path)?)),
        Some(Layout::Gguf(file)) => Ok(Box::new(GgufModel::open(&file)?)),
        None if !path.exists() => unknown("there is no such file or folder"),
        None => unknown("it holds no weights in a format that can be read"),
    }
}
