//! The inventory: which files there are and what they hold, as one id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::read::{self, Listed};
use crate::source::{Found, cargo_home, expand};
use crate::version::{Version, split_crate};
use crate::{CurateConfig, CurateError, Progress};

/// One candidate file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceFile {
    /// Where it lies on this machine; never part of an id or of the output.
    pub path: PathBuf,
    /// Path below its source with `/` between components; unique in the inventory (a second file with the same path
    /// ends in `#2`). The document's `url`.
    pub url: String,
    /// Crate name for the cargo registry; otherwise the first component of the path below the source.
    pub source: String,
    /// Size in bytes, as read.
    pub bytes: u64,
    /// blake3 of the content; zeros when it could not be read.
    pub hash: [u8; 32],
    /// Why it could not be read.
    pub problem: Option<String>,
    pub(crate) registry_version: Option<Version>,
}

impl SourceFile {
    /// The document's id: 32 hex digits, from blake3 of the url.
    pub fn id(&self) -> String {
        short_hex(&blake3::hash(self.url.as_bytes()))
    }
}

/// All candidate files of a recipe's sources.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// 32 hex digits: blake3 over url, source, registry version, size and content hash of all files: everything that
    /// [`crate::curate`] takes from the inventory. A changed file changes it; moving a source, touching a file or listing
    /// the sources in another order does not.
    pub id: String,
    /// The files, sorted by url. None where the recipe has `read`.
    pub files: Vec<SourceFile>,
    /// The inputs of a recipe that has `read`, sorted by name.
    pub inputs: Vec<Listed>,
    /// Entries of folders that are never read, such as symbolic links and hidden files, by what they are. They are no part of
    /// the id.
    pub passed: BTreeMap<String, u64>,
    /// blake3 of the files that filters read, such as models and lists, by their keys in the recipe. They are no part of the
    /// id.
    pub side_files: BTreeMap<String, String>,
    /// Bytes of all files or inputs.
    pub bytes: u64,
}

/// Finds and hashes every candidate file of `config.sources`, in parallel and with bounded memory.
///
/// A file or folder that cannot be read stays in the list with its problem; [`crate::curate`] then drops it as
/// `unreadable`.
///
/// # Errors
/// A value out of range, a source that does not exist, a glob that cannot be parsed, a source without files.
pub fn inventory(config: &CurateConfig, progress: &dyn Progress) -> Result<Inventory, CurateError> {
    inventory_at(config, cargo_home(), progress)
}

/// [`inventory`] with cargo's home given, so that tests need not change the environment.
pub(crate) fn inventory_at(
    config: &CurateConfig,
    cargo_home: Option<PathBuf>,
    progress: &dyn Progress,
) -> Result<Inventory, CurateError> {
    config.validate()?;
    let side_files = hash_side_files(config)?;
    if config.read.is_some() {
        return Ok(Inventory { side_files, ..inputs(config, progress)? });
    }
    let (found, passed) = expand(config, cargo_home.as_deref())?;
    progress.phase("inventory", found.iter().map(|file| file.bytes).sum());
    let mut files: Vec<SourceFile> = found.into_par_iter().map(|file| hash_file(file, progress)).collect();
    // Content orders files of equal path, so neither walk order nor the order of the sources shows.
    files.sort_by(|a, b| {
        a.url.cmp(&b.url).then_with(|| a.hash.cmp(&b.hash)).then_with(|| a.path.cmp(&b.path))
    });
    make_urls_unique(&mut files);
    files.sort_by(|a, b| a.url.cmp(&b.url));
    let bytes = files.iter().map(|file| file.bytes).sum();
    Ok(Inventory { id: inventory_id(&files), files, inputs: Vec::new(), passed, side_files, bytes })
}

/// The inputs of a recipe that has `read`: local files are hashed, of objects the store says what they are.
fn inputs(config: &CurateConfig, progress: &dyn Progress) -> Result<Inventory, CurateError> {
    let (found, passed) = read::find_all(&config.sources)?;
    progress.phase("inventory", found.iter().map(read::Input::bytes).sum());
    let list = |input: read::Input| {
        let listed = input.listed();
        progress.advance(listed.bytes);
        listed
    };
    let inputs: Vec<Listed> = found.into_par_iter().map(list).collect();
    let mut hasher = blake3::Hasher::new_derive_key("llamero curate inputs 2");
    for input in &inputs {
        hasher.update(&(input.versions.len() as u64).to_le_bytes());
        for text in [&input.name].into_iter().chain(&input.versions) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&[u8::from(input.problem.is_some())]);
    }
    let bytes = inputs.iter().map(|input| input.bytes).sum();
    let id = short_hex(&hasher.finalize());
    Ok(Inventory { id, files: Vec::new(), inputs, passed, side_files: BTreeMap::new(), bytes })
}

/// Hashes the files that filters read, which also shows early that one is not there.
fn hash_side_files(config: &CurateConfig) -> Result<BTreeMap<String, String>, CurateError> {
    let mut hashes = BTreeMap::new();
    for (key, path) in config.clone().side_files() {
        let hash = crate::model_hash(path).map_err(|error| match error {
            CurateError::Read { path, cause } => {
                CurateError::Read { path, cause: format!("{cause}, and `curate.{key}` names it") }
            }
            other => other,
        })?;
        hashes.insert(key, hash);
    }
    Ok(hashes)
}

fn hash_file(found: Found, progress: &dyn Progress) -> SourceFile {
    let Found { path, relative, registry, mut problem, .. } = found;
    let mut hasher = blake3::Hasher::new();
    if problem.is_none() {
        let read = File::open(&path).and_then(|file| hasher.update_reader(file).map(|_| ()));
        problem = read.err().map(|error| error.to_string());
    }
    let (bytes, hash) = match problem {
        None => (hasher.count(), *hasher.finalize().as_bytes()),
        Some(_) => (0, [0; 32]),
    };
    progress.advance(bytes);
    let first = relative.split('/').next().unwrap_or_default();
    let (source, registry_version) = match split_crate(first) {
        Some((name, version)) if registry => (name.to_owned(), Some(version)),
        _ => (first.to_owned(), None),
    };
    SourceFile { path, source, url: relative, bytes, hash, problem, registry_version }
}

/// Two sources may hold files of the same path: the second in content order gets `#2`, and so on.
fn make_urls_unique(files: &mut [SourceFile]) {
    let mut taken: BTreeSet<String> = files.iter().map(|file| file.url.clone()).collect();
    for i in 1..files.len() {
        // Only neighbours can be equal. The first of a run keeps the plain path, and later ones compare with their
        // own plain path because the run is renamed from its end.
        let at = files.len() - i;
        if files[at].url != files[at - 1].url {
            continue;
        }
        let first = files[..at].partition_point(|file| file.url < files[at].url);
        let mut number = at - first + 1;
        let mut url = format!("{}#{number}", files[at].url);
        while !taken.insert(url.clone()) {
            number += 1;
            url = format!("{}#{number}", files[at].url);
        }
        files[at].url = url;
    }
}

fn inventory_id(files: &[SourceFile]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("llamero curate inventory 2");
    for file in files {
        // A version is never empty, so no version is told from every version.
        let version = file.registry_version.as_ref().map(ToString::to_string).unwrap_or_default();
        for text in [&file.url, &file.source, &version] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&file.bytes.to_le_bytes());
        hasher.update(&file.hash);
        hasher.update(&[u8::from(file.problem.is_some())]);
    }
    short_hex(&hasher.finalize())
}

/// The first 16 bytes of a hash, in hex.
fn short_hex(hash: &blake3::Hash) -> String {
    let mut hex = hash.to_hex().to_string();
    hex.truncate(32);
    hex
}
