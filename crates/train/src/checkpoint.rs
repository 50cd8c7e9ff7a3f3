//! Checkpoints of a run in progress.
//!
//! A checkpoint is a folder `step-N` with `state.json` (whose blake3 is in `state.blake3`) and one file of raw
//! little-endian f32 per rank. `state.json` lists the pieces of tensors in each file by their place in the whole tensor, so
//! a checkpoint can be loaded on any other mesh. It is written under another name, every file fsynced and read back, and
//! only then renamed. Loading takes the newest that is whole and says which ones it passed over; every piece is hashed
//! before anything is used.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llamero_autograd::Param;
use llamero_comm::Comm;
use llamero_model::{Config, Llama, ParamSpec, Placement, Shard};
use llamero_tensor::{Backend, DType, Shape, Tensor, pieces};
use serde::{Deserialize, Serialize};

use crate::fit::Progress;
use crate::optimizer::State as Owned;
use crate::{Ranks, TrainError, Trainer};

/// The folder that holds the checkpoints of one run.
pub struct Checkpoints {
    dir: PathBuf,
    interval: Duration,
    stop: Arc<AtomicBool>,
}

#[derive(Serialize, Deserialize)]
struct State {
    updates: u64,
    mean_loss: Option<f64>,
    progress: Progress,
    /// Sizes of the model.
    model: Config,
    /// One for each rank that wrote it.
    files: Vec<Shards>,
}

impl State {
    /// Whether it was saved after the first weights that go into an average.
    fn has_sums(&self) -> bool {
        self.files.iter().flat_map(|shards| &shards.pieces).any(|piece| piece.kind == Kind::WeightSum)
    }
}

/// A file and what is in it.
#[derive(Clone, Serialize, Deserialize)]
struct Shards {
    file: String,
    /// In the order of the file, without gaps.
    pieces: Vec<Piece>,
}

/// Some rows and columns of a tensor of the whole model.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Piece {
    kind: Kind,
    name: String,
    rows: Range<usize>,
    cols: Range<usize>,
    blake3: String,
}

impl Piece {
    fn bytes(&self) -> u64 {
        (self.rows.len() * self.cols.len() * size_of::<f32>()) as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// f32 master weights.
    Weight,
    FirstMoment,
    SecondMoment,
    /// Sums that an average of weights is taken of; in the annealing phase only.
    WeightSum,
}

const KINDS: [Kind; 4] = [Kind::Weight, Kind::FirstMoment, Kind::SecondMoment, Kind::WeightSum];

/// The kinds that there are.
fn kinds(with_sums: bool) -> impl Iterator<Item = Kind> {
    KINDS.into_iter().filter(move |kind| with_sums || *kind != Kind::WeightSum)
}

/// At least this long between checkpoints; a kill loses at most about that much work.
const INTERVAL: Duration = Duration::from_secs(10);

/// Training between two checkpoints lasts at least this many times as long as the last one took to save.
const SAVE_SHARE: u32 = 25;

/// Finished checkpoints that are kept; the older one is for the case that the newer is damaged.
const KEPT: usize = 2;

/// What an error at a path becomes.
fn fail(path: &Path) -> impl Fn(std::io::Error) -> TrainError {
    let path = path.to_owned();
    move |source| TrainError::Checkpoint { path: path.clone(), source }
}

impl Checkpoints {
    /// Checkpoints below `dir`, which is created when the first is saved.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), interval: INTERVAL, stop: Arc::default() }
    }

    /// Saves at most once in `interval`; zero saves after every step.
    pub fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Training stops with a checkpoint as soon as somebody sets `stop` (a signal, say) on any rank.
    pub fn until(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    pub(crate) fn asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How long to train before the next save when the last one took `saving`: the interval, but saving a large model
    /// may cost a few per cent of the time and not more.
    pub(crate) fn pause_after(&self, saving: Duration) -> Duration {
        if self.interval.is_zero() { Duration::ZERO } else { self.interval.max(SAVE_SHARE * saving) }
    }

    /// Saves the state after `progress.step` steps. Every rank calls it, and all get the same result: a checkpoint is
    /// published when every rank's file is whole, and otherwise the error says whose is not.
    pub(crate) fn save(&self, trainer: &Trainer<'_>, progress: &Progress) -> Result<(), TrainError> {
        let (all, temporary) = (&trainer.ranks().all, self.dir.join("writing"));
        let first = all.rank() == 0;
        let begun = if first { begin(&temporary) } else { Ok(()) };
        agree(&**all, begun.map(|()| Vec::new()))?;
        let json = |shards: Shards| serde_json::to_vec(&shards).map_err(|e| fail(&temporary)(e.into()));
        let own = write_shards(&temporary, trainer).and_then(json);
        let files = agree(&**all, own)?;
        let published = if first { self.publish(&temporary, &files, trainer, progress) } else { Ok(()) };
        agree(&**all, published.map(|()| Vec::new()))?;
        Ok(())
    }

    /// Writes `state.json` and gives the folder its name.
    fn publish(
        &self,
        temporary: &Path,
        files: &[Vec<u8>],
        trainer: &Trainer<'_>,
        progress: &Progress,
    ) -> Result<(), TrainError> {
        let path = temporary.join("state.json");
        let files = files.iter().map(|json| serde_json::from_slice(json)).collect::<Result<_, _>>();
        let state = State {
            updates: trainer.optimizer.updates,
            mean_loss: trainer.mean_loss,
            progress: progress.clone(),
            model: trainer.model().config.clone(),
            files: files.map_err(|e| fail(&path)(e.into()))?,
        };
        let text = serde_json::to_vec(&state).map_err(|e| fail(&path)(e.into()))?;
        write_synced(&path, &text).map_err(fail(&path))?;
        let path = temporary.join("state.blake3");
        write_synced(&path, blake3::hash(&text).to_hex().as_bytes()).map_err(fail(&path))?;
        File::open(temporary).and_then(|d| d.sync_all()).map_err(fail(temporary))?;
        let published = self.dir.join(format!("step-{:010}", progress.step));
        if published.exists() {
            std::fs::remove_dir_all(&published).map_err(fail(&published))?;
        }
        std::fs::rename(temporary, &published).map_err(fail(&published))?;
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

    /// The folder of the newest.
    pub(crate) fn newest(&self) -> Option<PathBuf> {
        self.list().pop()
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

    /// Puts the newest checkpoint that is whole for every rank into `trainer`. Returns its progress, if there was one, and
    /// a line for every newer one that had to be passed over. Every rank calls it.
    pub(crate) fn load(
        &self,
        trainer: &mut Trainer<'_>,
    ) -> Result<(Option<Progress>, Vec<String>), TrainError> {
        let all = std::sync::Arc::clone(&trainer.ranks().all);
        // The first rank's list is everybody's.
        let list = if all.rank() == 0 { self.list() } else { Vec::new() };
        let names = list.iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect::<Vec<_>>();
        let names = agree(&*all, Ok(names.join("\n").into_bytes()))?.swap_remove(0);
        let names = String::from_utf8_lossy(&names).into_owned();
        let mut passed_over = Vec::new();
        for name in names.lines().rev() {
            let dir = self.dir.join(name);
            let checked = check(&dir, trainer);
            let reason = checked.as_ref().err().cloned().unwrap_or_default();
            let reasons = agree(&*all, Ok(reason.into_bytes()))?;
            if let Some(reason) = reasons.iter().find(|reason| !reason.is_empty()) {
                let reason = String::from_utf8_lossy(reason);
                passed_over.push(format!("checkpoint `{}` was passed over: {reason}", dir.display()));
                continue;
            }
            let Ok(state) = checked else { unreachable!("a failed check has a reason") };
            let restored = restore(&dir, trainer, &state);
            agree(&*all, restored.map(|()| Vec::new()))?;
            return Ok((Some(state.progress), passed_over));
        }
        Ok((None, passed_over))
    }
}

/// Every rank's bytes, or the first rank's error, on all of them.
fn agree(all: &dyn Comm, own: Result<Vec<u8>, TrainError>) -> Result<Vec<Vec<u8>>, TrainError> {
    let (mut message, error) = match own {
        Ok(bytes) => (bytes, None),
        Err(error) => (error.to_string().into_bytes(), Some(error)),
    };
    message.push(u8::from(error.is_some()));
    let messages = all.all_gather(message.into())?;
    if let Some(error) = error {
        return Err(error);
    }
    let mut bytes = Vec::with_capacity(messages.len());
    for (rank, message) in messages.iter().enumerate() {
        match message.split_last() {
            Some((0, rest)) => bytes.push(rest.to_vec()),
            Some((_, text)) => {
                let reason = String::from_utf8_lossy(text).into_owned();
                return Err(TrainError::OtherRank { rank, reason });
            }
            None => bytes.push(Vec::new()),
        }
    }
    Ok(bytes)
}

/// An empty folder to write into.
fn begin(temporary: &Path) -> Result<(), TrainError> {
    if temporary.exists() {
        std::fs::remove_dir_all(temporary).map_err(fail(temporary))?;
    }
    std::fs::create_dir_all(temporary).map_err(fail(temporary))
}

/// Rows of a rank's slice of a tensor, and the rows of the whole tensor that they are, run by run.
fn runs(spec: &ParamSpec, place: &Placement, local: &Range<usize>) -> Vec<(Range<usize>, Range<usize>)> {
    let mut first = 0;
    let mut runs = Vec::new();
    for global in spec.local_rows(place) {
        let own = first.max(local.start)..(first + global.len()).min(local.end);
        if !own.is_empty() {
            let at = global.start + own.start - first;
            runs.push((own.clone(), at..at + own.len()));
        }
        first += global.len();
    }
    runs
}

/// The rows of a parameter that this rank updates, as f32.
fn owned_tensor(kind: Kind, value: &Tensor, owned: &Owned, backend: &dyn Backend) -> Option<Tensor> {
    match kind {
        Kind::FirstMoment => Some(owned.m.clone()),
        Kind::SecondMoment => Some(owned.v.clone()),
        Kind::Weight => Some(owned.master(value, backend)),
        Kind::WeightSum => owned.sum.clone(),
    }
}

/// Whether another rank writes or wrote this parameter for all that hold it alike.
fn written_elsewhere(spec: &ParamSpec, ranks: &Ranks, before: bool) -> bool {
    (spec.shard == Shard::Whole && ranks.at.tp > 0) || (spec.id == 0 && (ranks.ends.rank() > 0 || before))
}

/// Writes this rank's file, reads it back and compares.
fn write_shards(dir: &Path, trainer: &Trainer<'_>) -> Result<Shards, TrainError> {
    let (backend, ranks) = (trainer.backend(), trainer.ranks());
    let table = trainer.model().config.params();
    let name = format!("rank-{:04}.f32", ranks.all.rank());
    let path = dir.join(&name);
    let mut out = BufWriter::new(File::create(&path).map_err(fail(&path))?);
    let mut shards = Shards { file: name, pieces: Vec::new() };
    for kind in KINDS {
        let mut table_written = false;
        let params = trainer
            .stages()
            .iter()
            .zip(trainer.places())
            .flat_map(|(stage, place)| stage.params().map(move |param| (param, place)));
        for ((param, place), state) in params.zip(&trainer.optimizer.states) {
            let spec = &table[param.id];
            if written_elsewhere(spec, ranks, table_written) {
                continue;
            }
            table_written |= param.id == 0;
            let Some(tensor) = owned_tensor(kind, &param.value, state, backend) else { continue };
            for (local, rows) in runs(spec, place, &state.rows) {
                let own = local.start - state.rows.start..local.end - state.rows.start;
                let blake3 = write_rows(&mut out, backend, &tensor, own).map_err(fail(&path))?;
                let (name, cols) = (param.name.clone(), spec.local_cols(place));
                shards.pieces.push(Piece { kind, name, rows, cols, blake3 });
            }
        }
    }
    let file = out.into_inner().map_err(|e| fail(&path)(e.into_error()))?;
    file.sync_all().map_err(fail(&path))?;
    check_pieces(dir, &shards, |_| true).map_err(|reason| fail(&path)(std::io::Error::other(reason)))?;
    Ok(shards)
}

/// Writes some rows in pieces of a few mebibytes and returns their hash.
fn write_rows(
    out: &mut impl Write,
    backend: &dyn Backend,
    tensor: &Tensor,
    rows: Range<usize>,
) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    for rows in pieces(rows, tensor.cols()) {
        let mut piece = backend.zeros(Shape::new(rows.len(), tensor.cols()), DType::F32);
        backend.copy_rows(&mut piece, 0, tensor, rows, 0..tensor.cols());
        let bytes: Vec<u8> = backend.download(&piece).iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
        out.write_all(&bytes)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Hashes the pieces of a file that are wanted, and checks that nothing follows the last.
fn check_pieces(dir: &Path, shards: &Shards, wanted: impl Fn(&Piece) -> bool) -> Result<(), String> {
    let name = &shards.file;
    let said = |e: std::io::Error| format!("`{name}`: {e}");
    let file = File::open(dir.join(name)).map_err(said)?;
    let (found, expected) =
        (file.metadata().map_err(said)?.len(), shards.pieces.iter().map(Piece::bytes).sum::<u64>());
    if found != expected {
        return Err(format!("`{name}` has {found} bytes, but {expected} were written"));
    }
    let mut file = BufReader::with_capacity(1 << 20, file);
    for piece in &shards.pieces {
        if !wanted(piece) {
            file.seek_relative(piece.bytes() as i64).map_err(said)?;
            continue;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file.by_ref().take(piece.bytes())).map_err(said)?;
        let found = hasher.finalize().to_hex();
        if found.as_str() != piece.blake3 {
            let Piece { kind, name: tensor, rows, blake3, .. } = piece;
            return Err(format!(
                "`{name}`: rows {rows:?} of `{tensor}` ({kind:?}) have hash {found}, but {blake3} was written"
            ));
        }
    }
    Ok(())
}

/// The rows that a rank needs of a parameter: all of its slice for the weights, what it updates for the moments.
fn needed(kind: Kind, param: &Param, state: &Owned) -> Range<usize> {
    if kind == Kind::Weight { 0..param.value.rows() } else { state.rows.clone() }
}

/// Checks everything about a checkpoint that this rank needs, before anything of it is used.
fn check(dir: &Path, trainer: &Trainer<'_>) -> Result<State, String> {
    let bytes = |name: &str| std::fs::read(dir.join(name)).map_err(|e| format!("`{name}`: {e}"));
    let (text, expected) = (bytes("state.json")?, bytes("state.blake3")?);
    let found = blake3::hash(&text).to_hex();
    if found.as_bytes() != expected {
        let expected = String::from_utf8_lossy(&expected);
        return Err(format!("`state.json` has hash {found}, but `state.blake3` says {expected}"));
    }
    let state: State = serde_json::from_slice(&text).map_err(|e| format!("`state.json`: {e}"))?;
    let config = &trainer.model().config;
    if state.model != *config {
        return Err("it belongs to another model".into());
    }
    if state.has_sums() != (trainer.config().num_averaged(state.progress.step) > 0) {
        return Err("it belongs to a run whose weights are averaged over other steps".into());
    }
    let table = config.params();
    let holds = |name: &str| trainer.stages().iter().flat_map(Llama::params).any(|p| p.name == name);
    for shards in &state.files {
        let plain = Path::new(&shards.file).components().count() == 1;
        if !plain {
            return Err(format!("`state.json` names a file outside the folder: `{}`", shards.file));
        }
        check_pieces(dir, shards, |piece| holds(&piece.name))?;
    }
    // Every element that is needed is in exactly one piece.
    let params = trainer.stages().iter().zip(trainer.places());
    let params = params.flat_map(|(stage, place)| stage.params().map(move |param| (param, place)));
    for ((param, place), owned) in params.zip(&trainer.optimizer.states) {
        let spec = &table[param.id];
        for kind in kinds(state.has_sums()) {
            let cols = spec.local_cols(place);
            for (_, rows) in runs(spec, place, &needed(kind, param, owned)) {
                let found: usize = overlaps(&state, kind, &param.name, &rows, &cols)
                    .map(|(.., rows, cols)| rows.len() * cols.len())
                    .sum();
                if found != rows.len() * cols.len() {
                    let all = rows.len() * cols.len();
                    return Err(format!("{found} of {all} values of `{}` ({kind:?}) are there", param.name));
                }
            }
        }
    }
    Ok(state)
}

/// Where parts of a tensor are: file, offset of the piece in it, the piece, and the rows and columns that are wanted of it.
fn overlaps<'a>(
    state: &'a State,
    kind: Kind,
    name: &'a str,
    rows: &'a Range<usize>,
    cols: &'a Range<usize>,
) -> impl Iterator<Item = (&'a str, u64, &'a Piece, Range<usize>, Range<usize>)> {
    let meet = |a: &Range<usize>, b: &Range<usize>| a.start.max(b.start)..a.end.min(b.end);
    state.files.iter().flat_map(move |shards| {
        let mut offset = 0;
        shards.pieces.iter().filter_map(move |piece| {
            let at = offset;
            offset += piece.bytes();
            let (rows, cols) = (meet(&piece.rows, rows), meet(&piece.cols, cols));
            let here = piece.kind == kind && piece.name == name && !rows.is_empty() && !cols.is_empty();
            here.then_some((shards.file.as_str(), at, piece, rows, cols))
        })
    })
}

/// Replaces the state of `trainer` tensor by tensor, so that no second copy of it is ever in memory. The pieces were
/// read and found whole just before; one that cannot be read now ends the run, for what it leaves is a mixture.
fn restore(dir: &Path, trainer: &mut Trainer<'_>, state: &State) -> Result<(), TrainError> {
    let backend = trainer.backend();
    let table = trainer.model().config.params();
    let places = trainer.places().to_vec();
    let (stages, optimizer) = trainer.parts_mut();
    let params = stages.iter_mut().zip(&places);
    let params = params.flat_map(|(stage, place)| stage.params_mut().map(move |param| (param, place)));
    for ((param, place), owned) in params.zip(&mut optimizer.states) {
        let spec = &table[param.id];
        owned.sum = None;
        for kind in kinds(state.has_sums()) {
            let wanted = needed(kind, param, owned);
            let tensor = read_tensor(dir, state, (kind, spec, place), wanted, backend)?;
            match (kind, &mut owned.low) {
                (Kind::FirstMoment, _) => owned.m = tensor,
                (Kind::SecondMoment, _) => owned.v = tensor,
                (Kind::WeightSum, _) => owned.sum = Some(tensor),
                (Kind::Weight, None) => param.value = tensor,
                (Kind::Weight, Some(low)) if owned.rows.len() == tensor.rows() => {
                    (param.value, *low) = backend.split(&tensor);
                }
                (Kind::Weight, Some(low)) => {
                    let mut own = backend.zeros(Shape::new(owned.rows.len(), tensor.cols()), DType::F32);
                    backend.copy_rows(&mut own, 0, &tensor, owned.rows.clone(), 0..tensor.cols());
                    *low = backend.split(&own).1;
                    param.value = backend.split(&tensor).0;
                }
            }
        }
    }
    optimizer.updates = state.updates;
    trainer.mean_loss = state.mean_loss;
    Ok(())
}

/// Rows of this rank's slice of a tensor, in pieces.
fn read_tensor(
    dir: &Path,
    state: &State,
    (kind, spec, place): (Kind, &ParamSpec, &Placement),
    local: Range<usize>,
    backend: &dyn Backend,
) -> Result<Tensor, TrainError> {
    let cols = spec.local_cols(place);
    let mut tensor = backend.zeros(Shape::new(local.len(), cols.len()), DType::F32);
    for (own, global) in runs(spec, place, &local) {
        let mut at = own.start - local.start;
        for rows in pieces(global, cols.len()) {
            let mut host = vec![f32::NAN; rows.len() * cols.len()];
            for (file, offset, piece, some_rows, some_cols) in overlaps(state, kind, &spec.name, &rows, &cols)
            {
                let path = dir.join(file);
                let mut file = File::open(&path).map_err(fail(&path))?;
                let width = piece.cols.len();
                let mut bytes = vec![0; some_cols.len() * size_of::<f32>()];
                for row in some_rows {
                    let element = (row - piece.rows.start) * width + some_cols.start - piece.cols.start;
                    let from = SeekFrom::Start(offset + (element * size_of::<f32>()) as u64);
                    file.seek(from).and_then(|_| file.read_exact(&mut bytes)).map_err(fail(&path))?;
                    let to = (row - rows.start) * cols.len() + some_cols.start - cols.start;
                    for (value, bytes) in host[to..].iter_mut().zip(bytes.as_chunks().0) {
                        *value = f32::from_le_bytes(*bytes);
                    }
                }
            }
            let part = Shape::new(rows.len(), cols.len());
            backend.copy_rows(
                &mut tensor,
                at,
                &backend.upload(&host, part, DType::F32),
                0..part.rows,
                0..part.cols,
            );
            at += part.rows;
        }
    }
    Ok(tensor)
}
