//! The functions of curation with our own models among them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use llamero_curate::encoder::{Pooling, Precision};
use llamero_curate::plan::Registry;
use llamero_curate::{CurateError, Embed, Encoder, model_hash};
use llamero_infer::{EmbedOptions, Engine, resolve_model};
use llamero_tensor::{Backend, DType};

/// All functions that a curation plan may name, for whatever process runs it. Models are opened when a step that names one is
/// built, once in a process; `threads` of them compute, and nothing of a result depends on that.
pub(crate) fn registry(threads: Option<usize>) -> Registry {
    let mut registry = llamero_curate::registry();
    registry.encoders(move |encoder| open(encoder, threads));
    registry
}

/// An encoder with its model open.
pub(crate) fn open(encoder: &Encoder, threads: Option<usize>) -> Result<Arc<dyn Embed>, CurateError> {
    encoder.validate()?;
    let (engine, hash) = engine(encoder, threads)?;
    encoder.check(&hash)?;
    let options = EmbedOptions {
        pooling: match encoder.pooling {
            Pooling::Mean => llamero_infer::Pooling::Mean,
            Pooling::Last => llamero_infer::Pooling::Last,
        },
        window: encoder.window as usize,
        max_tokens: encoder.max_tokens.map(|tokens| tokens as usize),
    };
    Ok(Arc::new(EngineEmbed { engine, options, model: encoder.model.clone() }))
}

/// A model that is open, what it computes in, and its hash.
struct Opened {
    model: PathBuf,
    precision: Precision,
    hash: String,
    engine: Arc<Engine>,
}

/// The models of this process. They stay open: steps are built again and again, and a model is needed until the end.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

fn engine(encoder: &Encoder, threads: Option<usize>) -> Result<(Arc<Engine>, String), CurateError> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |known: &&Opened| known.model == encoder.model && known.precision == encoder.precision;
    if let Some(known) = opened.iter().find(same) {
        return Ok((Arc::clone(&known.engine), known.hash.clone()));
    }
    let bad = |error: String| unusable(&encoder.model, &error);
    let folder = resolve_model(&encoder.model).map_err(|error| bad(error.to_string()))?;
    let hash = model_hash(&folder)?;
    // Before gigabytes of weights are read.
    encoder.check(&hash)?;
    let cpu = crate::device(threads).map_err(|error| bad(error.to_string()))?;
    let backend: Arc<dyn Backend> = Arc::new(cpu);
    let dtype = match encoder.precision {
        Precision::F32 => Some(DType::F32),
        Precision::Bf16 => Some(DType::Bf16),
        Precision::Auto => None,
    };
    let engine = Arc::new(Engine::open(&folder, backend, dtype).map_err(|error| bad(error.to_string()))?);
    let known = Opened {
        model: encoder.model.clone(),
        precision: encoder.precision,
        hash: hash.clone(),
        engine: Arc::clone(&engine),
    };
    opened.push(known);
    Ok((engine, hash))
}

fn unusable(model: &Path, error: &str) -> CurateError {
    let (found, hint) =
        error.split_once(". hint: ").unwrap_or((error, "`llamero generate` says whether it opens"));
    CurateError::BadModel { path: model.to_path_buf(), found: found.to_owned(), hint: hint.to_owned() }
}

struct EngineEmbed {
    engine: Arc<Engine>,
    options: EmbedOptions,
    model: PathBuf,
}

impl Embed for EngineEmbed {
    fn embed(&self, text: &str) -> Result<Option<Vec<f32>>, CurateError> {
        let mut vectors = self
            .engine
            .embed(&[text], &self.options)
            .map_err(|error| unusable(&self.model, &error.to_string()))?;
        Ok(vectors.pop().flatten())
    }
}
