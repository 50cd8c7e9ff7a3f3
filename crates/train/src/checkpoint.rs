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
use llamero_tensor::{DType, Tensor};
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
            model: trainer.model.config.clone(),
            params: trainer.model.params().map(|p| (p.name.clone(), p.value.shape().elements())).collect(),
            files: Vec::new(),
        };
        for (name, tensors) in tensors_of(trainer) {
            let path = temporary.join(name);
            let hash = write_tensors(&path, trainer, tensors).map_err(fail(&path))?;
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
    pub(crate) fn load(&self, trainer: &mut Trainer<'_>) -> (Option<Progress>, Vec<String>) {
        let mut passed_over = Vec::new();
        for dir in self.list().iter().rev() {
            match read(dir, trainer) {
                Ok(progress) => return (Some(progress), passed_over),
                Err(reason) => {
                    passed_over.push(format!("checkpoint `{}` was passed over: {reason}", dir.display()))
                }
            }
        }
        (None, passed_over)
    }
}

type Files<'t> = Vec<(&'static str, Vec<&'t Tensor>)>;

fn tensors_of<'t>(trainer: &'t Trainer<'_>) -> Files<'t> {
    let states = &trainer.optimizer.states;
    let weights =
        trainer.model.params().zip(states).map(|(p, s)| s.master.as_ref().unwrap_or(&p.value)).collect();
    vec![
        ("weights.f32", weights),
        ("m.f32", states.iter().map(|s| &s.m).collect()),
        ("v.f32", states.iter().map(|s| &s.v).collect()),
    ]
}

fn write_tensors(path: &Path, trainer: &Trainer<'_>, tensors: Vec<&Tensor>) -> std::io::Result<String> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut hasher = blake3::Hasher::new();
    for tensor in tensors {
        let bytes: Vec<u8> =
            trainer.backend().download(tensor).iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
        out.write_all(&bytes)?;
    }
    out.into_inner()?.sync_all()?;
    Ok(hasher.finalize().to_hex().to_string())
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

fn read(dir: &Path, trainer: &mut Trainer<'_>) -> Result<Progress, String> {
    let bytes = |name: &str| std::fs::read(dir.join(name)).map_err(|e| format!("`{name}`: {e}"));
    let (text, expected) = (bytes("state.json")?, bytes("state.blake3")?);
    let found = blake3::hash(&text).to_hex();
    if found.as_bytes() != expected {
        let expected = String::from_utf8_lossy(&expected);
        return Err(format!("`state.json` has hash {found}, but `state.blake3` says {expected}"));
    }
    let state: State = serde_json::from_slice(&text).map_err(|e| format!("`state.json`: {e}"))?;
    let expected: Vec<_> =
        trainer.model.params().map(|p| (p.name.clone(), p.value.shape().elements())).collect();
    if state.model != trainer.model.config || state.params != expected {
        return Err("it belongs to another model".into());
    }
    for (name, expected) in &state.files {
        let found = hash_file(&dir.join(name)).map_err(|e| format!("`{name}`: {e}"))?;
        if found != *expected {
            return Err(format!("`{name}` has hash {found}, but {expected} was written"));
        }
    }
    let open =
        |name: &str| File::open(dir.join(name)).map(BufReader::new).map_err(|e| format!("`{name}`: {e}"));
    let (mut weights, mut m, mut v) = (open("weights.f32")?, open("m.f32")?, open("v.f32")?);
    let backend = trainer.backend();
    let tensor = |file: &mut BufReader<File>, like: &Tensor| {
        let mut bytes = vec![0; like.shape().elements() * 4];
        file.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        let host: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok::<_, String>(backend.upload(&host, like.shape(), DType::F32))
    };
    // Everything is read before anything is changed: a failure half way must not leave a mixture.
    let read = trainer.model.params().map(|p| {
        let like = &p.value;
        Ok([tensor(&mut weights, like)?, tensor(&mut m, like)?, tensor(&mut v, like)?])
    });
    let read: Vec<[Tensor; 3]> = read.collect::<Result<_, String>>()?;
    let slots = trainer.model.params_mut().zip(&mut trainer.optimizer.states);
    for ((param, slot), [weight, m, v]) in slots.zip(read) {
        param.value = backend.cast(&weight, param.value.dtype());
        if slot.master.is_some() {
            slot.master = Some(weight);
        }
        (slot.m, slot.v) = (m, v);
    }
    trainer.optimizer.updates = state.updates;
    trainer.mean_loss = state.mean_loss;
    Ok(state.progress)
}
