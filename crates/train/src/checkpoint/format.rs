//! What a checkpoint is on the disk.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use llamero_model::{Config, ParamSpec, Placement};
use serde::{Deserialize, Serialize};

use super::failpoint::step;
use crate::fit::Progress;

/// The file that says everything but the values.
pub(super) const STATE: &str = "state.json";
/// Its hash; in the remote tier the last file to come.
pub(super) const STATE_HASH: &str = "state.blake3";
/// What folders of checkpoints that nobody has published, or that are going, begin with.
const UNFINISHED: [&str; 4] = [WRITING, "fetching-", REMOVING, DAMAGED];
pub(super) const WRITING: &str = "writing-";
const REMOVING: &str = "removing-";
const DAMAGED: &str = "damaged-";

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) updates: u64,
    pub(super) mean_loss: Option<f64>,
    pub(super) progress: Progress,
    /// Sizes of the model.
    pub(super) model: Config,
    /// One for each rank that wrote it.
    pub(super) files: Vec<Shards>,
}

impl State {
    /// Whether it was saved after the first weights that go into an average.
    pub(super) fn has_sums(&self) -> bool {
        self.files.iter().flat_map(|shards| &shards.pieces).any(|piece| piece.kind == Kind::WeightSum)
    }

    /// Reads and checks what a folder says; the error names the file.
    pub(super) fn read(dir: &Path) -> Result<Self, String> {
        let bytes = |name: &str| std::fs::read(dir.join(name)).map_err(|e| format!("`{name}`: {e}"));
        let (text, expected) = (bytes(STATE)?, bytes(STATE_HASH)?);
        let found = blake3::hash(&text).to_hex();
        if found.as_bytes() != expected {
            let expected = String::from_utf8_lossy(&expected);
            return Err(format!("`{STATE}` has hash {found}, but `{STATE_HASH}` says {expected}"));
        }
        let state: Self = serde_json::from_slice(&text).map_err(|e| format!("`{STATE}`: {e}"))?;
        for Shards { file, .. } in &state.files {
            let mut parts = Path::new(file).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !plain {
                return Err(format!("`{STATE}` names a file outside the folder: `{file}`"));
            }
        }
        Ok(state)
    }
}

/// A file and what is in it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Shards {
    pub(super) file: String,
    /// In the order of the file, without gaps.
    pub(super) pieces: Vec<Piece>,
}

/// Some rows and columns of a tensor of the whole model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
    pub(super) blake3: String,
}

impl Piece {
    pub(super) fn bytes(&self) -> u64 {
        (self.rows.len() * self.cols.len() * size_of::<f32>()) as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// f32 master weights.
    Weight,
    FirstMoment,
    SecondMoment,
    /// Sums that an average of weights is taken of; in the annealing phase only.
    WeightSum,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Weight, Kind::FirstMoment, Kind::SecondMoment, Kind::WeightSum];

/// The kinds that there are.
pub(super) fn kinds(with_sums: bool) -> impl Iterator<Item = Kind> {
    KINDS.into_iter().filter(move |kind| with_sums || *kind != Kind::WeightSum)
}

/// The name of a published checkpoint.
pub(super) fn folder(step: u64) -> String {
    format!("step-{step:010}")
}

/// The step of a published checkpoint.
pub(super) fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// The file of a rank.
pub(super) fn data_file(rank: usize) -> String {
    format!("rank-{rank:04}.f32")
}

/// What is in the file of a rank, while nobody has published it.
pub(super) fn list_file(rank: usize) -> String {
    format!("rank-{rank:04}.json")
}

/// Published checkpoints in a folder, oldest first; none where there is no folder.
pub(super) fn published(dir: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((step_of(path.file_name()?.to_str()?)?, path))
        })
        .collect();
    found.sort();
    found
}

/// Takes its name from a damaged one, which stays until the next job begins.
pub(super) fn set_apart(dir: &Path) -> std::io::Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    step()?;
    std::fs::rename(dir, dir.with_file_name(format!("{DAMAGED}{name}")))
}

/// Removes what a job that was killed has left.
pub(super) fn tidy(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if UNFINISHED.iter().any(|prefix| name.starts_with(prefix)) {
            // Only room is lost where that fails.
            std::fs::remove_dir_all(&path).ok();
        }
    }
}

/// Gives a folder a name, whatever has it now.
pub(super) fn publish(from: &Path, to: &Path) -> std::io::Result<()> {
    let dir = to.parent().unwrap_or(Path::new("."));
    File::open(from).and_then(|d| d.sync_all())?;
    let old = to.exists().then(|| set_aside(to)).transpose()?;
    step()?;
    std::fs::rename(from, to)?;
    File::open(dir).and_then(|d| d.sync_all())?;
    old.map_or(Ok(()), |old| remove(&old))
}

/// Removes a published checkpoint; at no moment does half of it have its name.
pub(super) fn unpublish(path: &Path) -> std::io::Result<()> {
    let aside = set_aside(path)?;
    remove(&aside)
}

fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{REMOVING}{name}"));
    if aside.exists() {
        remove(&aside)?;
    }
    step()?;
    std::fs::rename(path, &aside)?;
    Ok(aside)
}

fn remove(path: &Path) -> std::io::Result<()> {
    step()?;
    std::fs::remove_dir_all(path)
}

pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    step()?;
    let mut file = File::create(path)?;
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    file.write_all(head)?;
    step()?;
    file.write_all(tail)?;
    file.sync_all()
}

/// Hashes the pieces of a file that are wanted, and checks that nothing follows the last.
pub(super) fn check_pieces(
    dir: &Path,
    shards: &Shards,
    wanted: impl Fn(&Piece) -> bool,
) -> Result<(), String> {
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

/// Rows of a rank's slice of a tensor, and the rows of the whole tensor that they are, run by run.
pub(super) fn runs(
    spec: &ParamSpec,
    place: &Placement,
    local: &Range<usize>,
) -> Vec<(Range<usize>, Range<usize>)> {
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
