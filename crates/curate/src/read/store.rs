//! What there is to read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::stream::ReadAt;
use super::{ReadConfig, Records};
use crate::source::{self, GLOB_CHARACTERS};
use crate::{CurateConfig, CurateError};

/// Bytes of a piece. Files are hashed in pieces, and large ones that can be read from the middle are read in pieces.
pub(crate) const PIECE_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 64 << 20 };

/// A file to read.
#[derive(Clone)]
pub struct Input {
    name: String,
    bytes: u64,
    origin: Arc<dyn Origin>,
}

/// The range of a whole file.
pub(crate) const WHOLE: Range<u64> = 0..u64::MAX;

/// An input as data, from which another process makes the same [`Input`], if it can reach the location.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// [`Input::name`].
    pub name: String,
    /// An absolute path, or a URL. It is no part of any id.
    pub location: String,
    /// Its size as it is stored.
    pub bytes: u64,
    /// What tells its content from another: blake3 of each piece of a file, what the store says of an object.
    pub versions: Vec<String>,
    /// Why it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Listed {
    /// The ranges that it can be read in: pieces of [`PIECE_BYTES`], or all of it.
    pub(crate) fn ranges(&self, config: &ReadConfig) -> Vec<Range<u64>> {
        if self.problem.is_some() || self.bytes <= PIECE_BYTES || !config.has_pieces(&self.name) {
            return vec![WHOLE];
        }
        let starts = (0..self.bytes).step_by(PIECE_BYTES as usize);
        // Whatever is behind the end of the last one is found to be too much.
        let end = |start| if self.bytes - start <= PIECE_BYTES { u64::MAX } else { start + PIECE_BYTES };
        starts.map(|start| start..end(start)).collect()
    }

    /// The input, which must still be what was listed in this range. One that could not be read then is an input that cannot be
    /// opened.
    ///
    /// # Errors
    /// [`CurateError::Changed`].
    pub(crate) fn input(&self, range: &Range<u64>) -> Result<Input, CurateError> {
        let origin: Arc<dyn Origin> = match &self.problem {
            Some(problem) => Arc::new(Closed(problem.clone())),
            None if self.location.contains("://") => remote_one(&self.location)?,
            None => Arc::new(PathBuf::from(&self.location)),
        };
        if self.problem.is_none() {
            let changed = |found: String| CurateError::Changed { path: PathBuf::from(&self.location), found };
            let unreadable = |error: io::Error| changed(error.to_string());
            let count = self.versions.len();
            let first = ((range.start / PIECE_BYTES) as usize).min(count.saturating_sub(1));
            let end = (range.end.div_ceil(PIECE_BYTES) as usize).clamp(first, count);
            let mut same = origin.pieces().map_err(unreadable)? == count;
            for piece in first..end {
                same = same && origin.version(piece).map_err(unreadable)? == self.versions[piece];
            }
            if !same {
                return Err(changed("its content is different".to_owned()));
            }
        }
        Ok(Input::new(self.name.clone(), self.bytes, origin))
    }
}

/// Where bytes come from.
pub(super) trait Origin: Send + Sync {
    fn open(&self) -> io::Result<Box<dyn ReadAt>>;

    /// Where another process finds it; none where it cannot.
    fn location(&self) -> Option<String> {
        None
    }

    /// How many pieces have a version of their own.
    fn pieces(&self) -> io::Result<usize> {
        Ok(1)
    }

    /// What tells the content of a piece from another.
    fn version(&self, piece: usize) -> io::Result<String>;
}

impl Origin for PathBuf {
    fn open(&self) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(File::open(self)?))
    }

    fn location(&self) -> Option<String> {
        std::path::absolute(self).ok()?.to_str().map(str::to_owned)
    }

    fn pieces(&self) -> io::Result<usize> {
        Ok(std::fs::metadata(self)?.len().div_ceil(PIECE_BYTES).max(1) as usize)
    }

    fn version(&self, piece: usize) -> io::Result<String> {
        let mut file = File::open(self)?;
        file.seek(SeekFrom::Start(piece as u64 * PIECE_BYTES))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file.take(PIECE_BYTES))?;
        Ok(hasher.finalize().to_hex().to_string())
    }
}

impl Origin for Arc<[u8]> {
    fn open(&self) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(Arc::clone(self)))
    }

    fn version(&self, _: usize) -> io::Result<String> {
        Ok(blake3::hash(self).to_hex().to_string())
    }
}

/// A file that was found, but cannot be opened: why.
struct Closed(String);

impl Origin for Closed {
    fn open(&self) -> io::Result<Box<dyn ReadAt>> {
        Err(io::Error::other(self.0.clone()))
    }

    fn version(&self, _: usize) -> io::Result<String> {
        Err(io::Error::other(self.0.clone()))
    }
}

impl Input {
    /// Bytes at hand, such as those of standard input. With an empty name the format is what they begin like.
    pub fn memory(name: &str, bytes: Vec<u8>) -> Input {
        let origin: Arc<[u8]> = bytes.into();
        Input { name: name.to_owned(), bytes: origin.len() as u64, origin: Arc::new(origin) }
    }

    /// The path from the entry it was found by on, the entry's own last component included; this does not depend on where that
    /// lies.
    pub fn name(&self) -> &str {
        if self.nameless() { "-" } else { &self.name }
    }

    pub(super) fn nameless(&self) -> bool {
        self.name.is_empty()
    }

    /// Its size as it is stored.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The input as data. Local files are read for it.
    pub fn listed(&self) -> Listed {
        let version = |piece| self.origin.version(piece);
        let versions = self.origin.pieces();
        let versions: io::Result<Vec<_>> =
            versions.and_then(|count| (0..count).into_par_iter().map(version).collect());
        let location = self.origin.location();
        let problem = match (&location, &versions) {
            (_, Err(error)) => Some(error.to_string()),
            (None, _) => Some("its path is not UTF-8".to_owned()),
            _ => None,
        };
        Listed {
            name: self.name.clone(),
            location: location.unwrap_or_default(),
            bytes: self.bytes,
            versions: versions.unwrap_or_default(),
            problem,
        }
    }

    /// Reads its documents.
    pub fn records(&self, config: &ReadConfig) -> Records {
        self.records_in(WHOLE, config)
    }

    /// Reads the documents that begin in a range of its bytes. Only formats with [`ReadConfig::has_pieces`] know other ranges than
    /// the whole.
    pub(crate) fn records_in(&self, range: Range<u64>, config: &ReadConfig) -> Records {
        Records::open(self, range, config)
    }

    pub(super) fn open(&self) -> io::Result<Box<dyn ReadAt>> {
        self.origin.open()
    }

    pub(super) fn new(name: String, bytes: u64, origin: Arc<dyn Origin>) -> Input {
        Input { name, bytes, origin }
    }
}

/// All files of `entries`, sorted by name. An entry is a file, a folder, a glob, or a URL with a scheme of an object store:
/// `file`, and with the feature `cloud` also `s3`, `gs`, `az`, `http` and `https`. A URL that ends in `/` stands for all below it.
///
/// # Errors
/// An entry that names nothing, and files of two entries that have one name.
pub fn find(entries: &[String]) -> Result<Vec<Input>, CurateError> {
    find_all(entries).map(|(inputs, _)| inputs)
}

/// [`find`], with what was passed over in folders, by what it is.
pub(crate) fn find_all(entries: &[String]) -> Result<(Vec<Input>, BTreeMap<String, u64>), CurateError> {
    let (mut inputs, mut passed) = (Vec::new(), BTreeMap::new());
    for entry in entries {
        inputs.extend(match entry.split_once("://") {
            Some(("file", path)) => local(path, &mut passed)?,
            Some(_) => remote(entry)?,
            None => local(entry, &mut passed)?,
        });
    }
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = inputs.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(CurateError::BadSource {
            entry: pair[0].name.clone(),
            problem: "is found twice, and documents are known by the name of their file".to_owned(),
            hint: "give each file once, and folders of different names".to_owned(),
        });
    }
    Ok((inputs, passed))
}

fn local(entry: &str, passed: &mut BTreeMap<String, u64>) -> Result<Vec<Input>, CurateError> {
    let config = CurateConfig { sources: vec![entry.to_owned()], ..CurateConfig::default() };
    let (found, seen) = source::expand(&config, None)?;
    seen.into_iter().for_each(|(what, count)| *passed.entry(what).or_default() += count);
    // The folder that paths below are relative to.
    let fixed = &entry[..entry.find(GLOB_CHARACTERS).unwrap_or(entry.len())];
    let base = if Path::new(entry).exists() { entry } else { &fixed[..fixed.rfind('/').unwrap_or(0)] };
    let label = Path::new(base).file_name().map(|name| name.to_string_lossy().into_owned());
    let label = label.filter(|_| Path::new(base).is_dir());
    let input = |file: source::Found| {
        let name = label.iter().cloned().chain([file.relative]).collect::<Vec<_>>().join("/");
        let origin: Arc<dyn Origin> = match file.problem {
            Some(problem) => Arc::new(Closed(problem)),
            None => Arc::new(file.path),
        };
        Input::new(name, file.bytes, origin)
    };
    Ok(found.into_iter().map(input).collect())
}

#[cfg(not(feature = "cloud"))]
fn remote(entry: &str) -> Result<Vec<Input>, CurateError> {
    Err(CurateError::BadSource {
        entry: entry.to_owned(),
        problem: "is in an object store, which this build cannot read".to_owned(),
        hint: "build with `--features cloud`, or copy the files here".to_owned(),
    })
}

#[cfg(feature = "cloud")]
fn remote(entry: &str) -> Result<Vec<Input>, CurateError> {
    super::remote::find(entry)
}

/// The object at a URL.
fn remote_one(location: &str) -> Result<Arc<dyn Origin>, CurateError> {
    let found = remote(location)?.into_iter().next();
    found.map(|input| input.origin).ok_or_else(|| CurateError::NoMatch {
        entry: location.to_owned(),
        found: "there is no such object".to_owned(),
        hint: "run again once nothing changes the source".to_owned(),
    })
}
