//! `manifest.json`: what an artifact is, where it came from and what it holds.

use crate::{ArtifactError, InputRef, Result, fsutil};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Component, Path};

/// The file whose presence makes a folder a finished artifact.
pub const MANIFEST: &str = "manifest.json";

/// The record of one finished stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// What the artifact is.
    pub kind: String,
    /// Version of its files' layout.
    pub schema: u32,
    /// Its id, see [`crate::StageKey::id`].
    pub id: String,
    /// The name of the stage that made it.
    pub stage: String,
    /// What the stage read.
    pub inputs: Vec<InputRef>,
    /// The resolved recipe values that went into the id.
    pub recipe: Value,
    /// Every file, sorted by path.
    pub files: Vec<FileEntry>,
    /// What the stage measured.
    pub metrics: Value,
    /// Which program on which machine made it, and when. Not part of the id.
    pub provenance: Provenance,
    /// blake3 of the manifest's own text with this value empty.
    pub digest: String,
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path relative to the artifact's folder, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// blake3 of its bytes, 64 hex characters.
    pub blake3: String,
    /// Number of rows (documents, tokens, …) where the stage counted them.
    pub rows: Option<u64>,
}

/// How an artifact came to be; for people, never hashed into an id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of llamero.
    pub version: String,
    /// The compiler's version.
    pub rustc: String,
    /// The commit, where the build was told one through `LLAMERO_GIT`.
    pub git: Option<String>,
    /// The processor's name.
    pub cpu: String,
    /// The stage's seed, where it has one.
    pub seed: Option<u64>,
    /// Wall time that the stage took, in seconds, over all its resumptions where the stage counts them.
    pub wall_seconds: f64,
    /// When it was finished, in seconds since 1970.
    pub finished_unix: u64,
}

impl Provenance {
    /// This program on this machine, now.
    pub(crate) fn here(seed: Option<u64>, wall_seconds: f64) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rustc: env!("LLAMERO_RUSTC").to_owned(),
            git: option_env!("LLAMERO_GIT").map(str::to_owned),
            cpu: cpu_name(),
            seed,
            wall_seconds,
            finished_unix: now.map_or(0, |d| d.as_secs()),
        }
    }
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    model.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

impl Manifest {
    /// Size of all files, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// Fills in the digest and writes the manifest into a folder.
    pub(crate) fn write(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST);
        let bad =
            |e: serde_json::Error| ArtifactError::BadManifest { path: path.clone(), found: e.to_string() };
        self.digest.clear();
        self.digest = hex(&self.text().map_err(bad)?);
        fsutil::write_atomic(&path, &self.text().map_err(bad)?)
    }

    fn text(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads and checks a folder's manifest, byte for byte, against its digest.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = fsutil::read(&path)?;
        let bad = |found: String| ArtifactError::BadManifest { path: path.clone(), found };
        let (rest, digest) = without_digest(&text)
            .ok_or_else(|| bad("it does not end in a `digest`, so it is cut short or changed".to_owned()))?;
        let found = hex(&rest);
        if digest != found.as_bytes() {
            let expected = String::from_utf8_lossy(digest).into_owned();
            return Err(ArtifactError::HashMismatch { path, expected, found });
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        match manifest.files.iter().find(|f| !is_plain_relative(&f.path)) {
            Some(file) => Err(bad(format!("file path `{}` leaves the artifact's folder", file.path))),
            None => Ok(manifest),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The manifest's text with its digest emptied, and the digest. Working on the text, not on parsed values, covers
/// every byte of the file, white space included.
fn without_digest(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    const BEFORE: &[u8] = b"\"digest\": \"";
    const AFTER: &[u8] = b"\"\n}\n";
    let end = text.strip_suffix(AFTER)?;
    let (head, digest) = end.split_at_checked(end.len().checked_sub(64)?)?;
    if !head.ends_with(BEFORE) {
        return None;
    }
    Some(([head, AFTER].concat(), digest))
}

fn is_plain_relative(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}
