//! Checkpoints of a run in progress.
//!
//! A checkpoint is a folder `step-N` with `state.json` and one file of raw little-endian f32 per kind of tensor. It is
//! written under another name, every file fsynced and its blake3 noted in `state.json` (whose own is in `state.blake3`),
//! read back and compared, and only then renamed. Loading takes the newest whose hashes hold and says which ones it
//! passed over.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use llamero_model::Config;
use llamero_tensor::{Backend, DType, Shape, Tensor, pieces};
use serde::{Deserialize, Serialize};

use crate::fit::Progress;
use crate::{TrainError, Trainer};

/// The folder that holds the checkpoints of one run.
pub struct Checkpoints {
    dir: PathBuf,
    interval: Duration,
}

#[derive(Serialize, Deserialize)]
struct State {
    updates: u64,
    mean_loss: Option<f64>,
    progress: Progress,
    /// Sizes of the model.
    model: Config,
    /// Name and number of elements of each parameter, in order.
    params: Vec<(String, usize)>,
    /// blake3 of each file.
    files: Vec<(String, String)>,
}

/// At least this long between checkpoints; a kill loses at most about that much work.
const INTERVAL: Duration = Duration::from_secs(10);

/// Training between two checkpoints lasts at least this many times as long as the last one took to save.
const SAVE_SHARE: u32 = 25;

/// Finished checkpoints that are kept; the older one is for the case that the newer is damaged.
const KEPT: usize = 2;

impl Checkpoints {
    /// Checkpoints below `dir`, which is created when the first is saved.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), interval: INTERVAL }
    }

    /// Saves at most once in `interval`; zero saves after every step.
    pub fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// How long to train before the next save when the last one took `saving`: the interval, but saving a large model
    /// may cost a few per cent of the time and not more.
    pub(crate) fn pause_after(&self, saving: Duration) -> Duration {
        if self.interval.is_zero() { Duration::ZERO } else { self.interval.max(SAVE_SHARE * saving) }
    }

    /// Saves the state after `progress.step` steps.
    pub(crate) fn save(&self, trainer: &Trainer<'_>, progress: &Progress) -> Result<(), TrainError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| TrainError::Checkpoint { path, source }
        };
        let temporary = self.dir.join("writing");
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary).map_err(fail(&temporary))?;
        }
        std::fs::create_dir_all(&temporary).map_err(fail(&temporary))?;
        let mut state = State {
            updates: trainer.optimizer.updates,
            mean_loss: trainer.mean_loss,
            progress: progress.clone(),
            model: trainer.model().config.clone(),
            params: trainer.model().params().map(|p| (p.name.clone(), p.value.shape().elements())).collect(),
            files: Vec::new(),
        };
        for name in FILES {
            let path = temporary.join(name);
            let hash = write_tensors(&path, trainer, name).map_err(fail(&path))?;
            let found = hash_file(&path).map_err(fail(&path))?;
            if found != hash {
                let source = std::io::Error::other(format!("reads back as {found}, but {hash} was written"));
                return Err(TrainError::Checkpoint { path, source });
            }
            state.files.push((name.into(), hash));
        }
        let path = temporary.join("state.json");
        let text = serde_json::to_vec(&state).map_err(|e| fail(&path)(e.into()))?;
        write_synced(&path, &text).map_err(fail(&path))?;
        let path = temporary.join("state.blake3");
        write_synced(&path, blake3::hash(&text).to_hex().as_bytes()).map_err(fail(&path))?;
        File::open(&temporary).and_then(|d| d.sync_all()).map_err(fail(&temporary))?;
        let published = self.dir.join(format!("step-{:010}", progress.step));
        if published.exists() {
            std::fs::remove_dir_all(&published).map_err(fail(&published))?;
        }
        std::fs::rename(&temporary, &published).map_err(fail(&published))?;
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(fail(&self.dir))?;
        for old in self.list().iter().rev().skip(KEPT) {
            std::fs::remove_dir_all(old).map_err(fail(old))?;
        }
        Ok(())
    }

    /// Steps done at the newest checkpoint, by its name; 0 without one.
    pub fn newest_step(&self) -> u64 {
        let newest = self.list().pop();
        let name = newest.as_ref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy());
        name.and_then(|n| n.strip_prefix("step-")?.parse().ok()).unwrap_or(0)
    }

    /// Published checkpoints, oldest first.
    fn list(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let mut found: Vec<PathBuf> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-")))
            .collect();
        found.sort();
        found
    }

    /// Puts the newest whole checkpoint into `trainer`. Returns its progress, if there was one, and a line for every
    /// newer one that had to be passed over.
    pub(crate) fn load(
        &self,
        trainer: &mut Trainer<'_>,
    ) -> Result<(Option<Progress>, Vec<String>), TrainError> {
        let mut passed_over = Vec::new();
        for dir in self.list().iter().rev() {
            match check(dir, trainer) {
                Ok(state) => return Ok((Some(restore(dir, trainer, state)?), passed_over)),
                Err(reason) => {
                    passed_over.push(format!("checkpoint `{}` was passed over: {reason}", dir.display()))
                }
            }
        }
        Ok((None, passed_over))
    }
}

const WEIGHTS: &str = "weights.f32";
const FIRST_MOMENTS: &str = "m.f32";
const SECOND_MOMENTS: &str = "v.f32";
const FILES: [&str; 3] = [WEIGHTS, FIRST_MOMENTS, SECOND_MOMENTS];

/// Writes the tensors of one file in pieces and returns its hash.
fn write_tensors(path: &Path, trainer: &Trainer<'_>, name: &str) -> std::io::Result<String> {
    let backend = trainer.backend();
    let mut out = BufWriter::new(File::create(path)?);
    let mut hasher = blake3::Hasher::new();
    for (param, state) in trainer.model().params().zip(&trainer.optimizer.states) {
        let tensor = match (name, &state.low) {
            (FIRST_MOMENTS, _) => state.m.clone(),
            (SECOND_MOMENTS, _) => state.v.clone(),
            (_, None) => param.value.clone(),
            (_, Some(low)) => backend.join(&param.value, low),
        };
        let cols = tensor.cols();
        for rows in pieces(0..tensor.rows(), cols) {
            let mut piece = backend.zeros(Shape::new(rows.len(), cols), DType::F32);
            backend.copy_rows(&mut piece, 0, &tensor, rows, 0..cols);
            let bytes: Vec<u8> = backend.download(&piece).iter().flat_map(|x| x.to_le_bytes()).collect();
            hasher.update(&bytes);
            out.write_all(&bytes)?;
        }
    }
    out.into_inner()?.sync_all()?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The next tensor of a file, in pieces.
fn read_tensor(file: &mut impl Read, backend: &dyn Backend, shape: Shape) -> std::io::Result<Tensor> {
    let mut tensor = backend.zeros(shape, DType::F32);
    for rows in pieces(0..shape.rows, shape.cols) {
        let part = Shape::new(rows.len(), shape.cols);
        let mut bytes = vec![0; part.elements() * 4];
        file.read_exact(&mut bytes)?;
        let host: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let piece = backend.upload(&host, part, DType::F32);
        backend.copy_rows(&mut tensor, rows.start, &piece, 0..part.rows, 0..part.cols);
    }
    Ok(tensor)
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Checks everything about a checkpoint before anything of it is used.
fn check(dir: &Path, trainer: &Trainer<'_>) -> Result<State, String> {
    let bytes = |name: &str| std::fs::read(dir.join(name)).map_err(|e| format!("`{name}`: {e}"));
    let (text, expected) = (bytes("state.json")?, bytes("state.blake3")?);
    let found = blake3::hash(&text).to_hex();
    if found.as_bytes() != expected {
        let expected = String::from_utf8_lossy(&expected);
        return Err(format!("`state.json` has hash {found}, but `state.blake3` says {expected}"));
    }
    let state: State = serde_json::from_slice(&text).map_err(|e| format!("`state.json`: {e}"))?;
    let expected: Vec<_> =
        trainer.model().params().map(|p| (p.name.clone(), p.value.shape().elements())).collect();
    if state.model != trainer.model().config || state.params != expected {
        return Err("it belongs to another model".into());
    }
    if !state.files.iter().map(|(name, _)| name.as_str()).eq(FILES) {
        return Err(format!("`state.json` does not list {FILES:?}"));
    }
    for (name, expected) in &state.files {
        let found = hash_file(&dir.join(name)).map_err(|e| format!("`{name}`: {e}"))?;
        if found != *expected {
            return Err(format!("`{name}` has hash {found}, but {expected} was written"));
        }
    }
    Ok(state)
}

/// Replaces the state of `trainer` tensor by tensor, so that no second copy of it is ever in memory. The files were
/// read and found whole just before; one that cannot be read now ends the run, for what it leaves is a mixture.
fn restore(dir: &Path, trainer: &mut Trainer<'_>, state: State) -> Result<Progress, TrainError> {
    let backend = trainer.backend();
    for name in FILES {
        let path = dir.join(name);
        let fail = |source| TrainError::Checkpoint { path: path.clone(), source };
        let mut file = BufReader::new(File::open(&path).map_err(fail)?);
        let (stages, optimizer) = trainer.parts_mut();
        for (param, slot) in stages[0].params_mut().zip(&mut optimizer.states) {
            let tensor = read_tensor(&mut file, backend, param.value.shape()).map_err(fail)?;
            match (name, &mut slot.low) {
                (FIRST_MOMENTS, _) => slot.m = tensor,
                (SECOND_MOMENTS, _) => slot.v = tensor,
                (_, None) => param.value = tensor,
                (_, Some(low)) => (param.value, *low) = backend.split(&tensor),
            }
        }
    }
    trainer.optimizer.updates = state.updates;
    trainer.mean_loss = state.mean_loss;
    Ok(state.progress)
}
