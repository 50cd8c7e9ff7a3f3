//! Opening a finished artifact.

use crate::{ArtifactError, FileEntry, InputRef, MANIFEST, Manifest, Result, fsutil, run};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A finished artifact: a folder with a valid manifest.
#[derive(Debug, Clone)]
pub struct Artifact {
    path: PathBuf,
    manifest: Manifest,
}

impl Artifact {
    /// Opens the artifact in a folder: it must be finished, its manifest whole, and of `kind` where one is given.
    ///
    /// Its files are not read; [`Self::file`] checks one file's presence and size, [`Self::verify`] every byte.
    ///
    /// # Errors
    /// Unfinished, not an artifact, damaged or invalid manifest, wrong kind.
    pub fn open(path: impl AsRef<Path>, kind: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        if let Some(error) = run::unfinished(path)? {
            return Err(error);
        }
        let artifact = Self::read(path)?;
        match kind {
            Some(kind) if kind != artifact.manifest.kind => Err(ArtifactError::WrongKind {
                path: path.to_owned(),
                expected: kind.to_owned(),
                found: artifact.manifest.kind,
            }),
            _ => Ok(artifact),
        }
    }

    /// Reads the manifest of a folder that is known to have one.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), manifest: Manifest::read(path)? })
    }

    /// Hashes the manifest and every file again.
    ///
    /// # Errors
    /// The first damaged, missing or resized file, with what was found and expected.
    pub fn verify(&self) -> Result<()> {
        Manifest::read(&self.path)?;
        for entry in &self.manifest.files {
            let path = self.checked(entry)?;
            let found = hash_file(&path)?;
            if found != entry.blake3 {
                return Err(ArtifactError::HashMismatch { path, expected: entry.blake3.clone(), found });
            }
        }
        Ok(())
    }

    /// Checks that every file is there with its size.
    pub fn check_sizes(&self) -> Result<()> {
        self.manifest.files.iter().try_for_each(|entry| self.checked(entry).map(drop))
    }

    /// The artifact's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The artifact's id.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// The path of one of its files, by its relative name, after a check of its size.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        match self.manifest.files.iter().find(|f| f.path == name) {
            Some(entry) => self.checked(entry),
            None => Err(ArtifactError::NotListed {
                path: self.path.clone(),
                file: name.to_owned(),
                has: listing(&self.manifest.files),
            }),
        }
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// This artifact as an input, in the part `name`, of another stage.
    pub fn as_input(&self, name: &str) -> InputRef {
        InputRef { name: name.to_owned(), kind: self.manifest.kind.clone(), id: self.manifest.id.clone() }
    }

    fn checked(&self, entry: &FileEntry) -> Result<PathBuf> {
        let path = self.path.join(&entry.path);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() == entry.bytes && meta.is_file() => Ok(path),
            Ok(meta) => Err(ArtifactError::WrongSize { path, expected: entry.bytes, found: meta.len() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(ArtifactError::MissingFile { path, expected: entry.bytes })
            }
            Err(e) => Err(ArtifactError::io("look at", &path, e)),
        }
    }
}

/// Whether a folder holds a whole artifact; the reason where it does not.
pub(crate) enum State {
    /// Nothing, or an empty folder.
    Absent,
    /// Finished, every file there with its size.
    Whole(Box<Artifact>),
    /// A folder that holds files and no manifest.
    NoManifest,
    /// A manifest, but it or a file is damaged.
    Damaged(ArtifactError),
}

/// Looks at a folder without trusting it.
pub(crate) fn state(path: &Path) -> Result<State> {
    if !fsutil::exists(path)? {
        return Ok(State::Absent);
    }
    if !fsutil::exists(&path.join(MANIFEST))? {
        return Ok(if fsutil::entries(path)?.is_empty() { State::Absent } else { State::NoManifest });
    }
    let whole = Artifact::read(path).and_then(|a| a.check_sizes().map(|()| a));
    Ok(whole.map_or_else(State::Damaged, |a| State::Whole(Box::new(a))))
}

/// blake3 of a file, as 64 hex characters.
pub(crate) fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    File::open(path)
        .and_then(|file| hasher.update_reader(file).map(drop))
        .map_err(|e| ArtifactError::io("read", path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn listing(files: &[FileEntry]) -> String {
    const SHOWN: usize = 8;
    let names: Vec<String> = files.iter().take(SHOWN).map(|f| format!("`{}`", f.path)).collect();
    let more = files.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") }
}
