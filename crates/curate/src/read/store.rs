//! Where inputs lie: on this machine, or in an object store.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use globset::GlobBuilder;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::{Builder, Runtime};

use super::stream::ReadAt;
use super::{ReadConfig, Records};
use crate::source::{self, GLOB_CHARACTERS};
use crate::{CurateConfig, CurateError};

/// Bytes that are asked of an object store at once.
const REQUEST: u64 = 8 << 20;

/// Variables of the environment that object stores are set up with.
#[cfg(feature = "cloud")]
const SETTINGS: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// A file to read.
#[derive(Clone)]
pub struct Input {
    name: String,
    bytes: u64,
    origin: Origin,
}

#[derive(Clone)]
enum Origin {
    Local(PathBuf),
    Remote(Arc<Remote>, Key),
    Memory(Arc<[u8]>),
    /// Found, but not to be opened.
    Closed(String),
}

impl Input {
    /// Bytes at hand, such as those of standard input. With an empty name the format is what they begin like.
    pub fn memory(name: &str, bytes: Vec<u8>) -> Input {
        Input { name: name.to_owned(), bytes: bytes.len() as u64, origin: Origin::Memory(bytes.into()) }
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

    /// Reads its documents.
    pub fn records(&self, config: &ReadConfig) -> Records {
        Records::open(self, config)
    }

    pub(super) fn open(&self) -> io::Result<Box<dyn ReadAt>> {
        Ok(match &self.origin {
            Origin::Local(path) => Box::new(File::open(path)?),
            Origin::Memory(bytes) => Box::new(Arc::clone(bytes)),
            Origin::Remote(remote, key) => Box::new(RemoteFile {
                remote: Arc::clone(remote),
                key: key.clone(),
                size: self.bytes,
                chunk: (0, bytes::Bytes::new()),
            }),
            Origin::Closed(problem) => return Err(io::Error::other(problem.clone())),
        })
    }
}

/// All files of `entries`, sorted by name. An entry is a file, a folder, a glob, or a URL with a scheme of an object store:
/// `file`, and with the feature `cloud` also `s3`, `gs`, `az`, `http` and `https`. A URL that ends in `/` stands for all below it.
///
/// # Errors
/// An entry that names nothing, and files of two entries that have one name.
pub fn find(entries: &[String]) -> Result<Vec<Input>, CurateError> {
    let mut inputs = Vec::new();
    for entry in entries {
        inputs.extend(match entry.split_once("://") {
            Some(("file", path)) => local(path)?,
            Some((scheme, _)) => remote(entry, scheme)?,
            None => local(entry)?,
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
    Ok(inputs)
}

fn local(entry: &str) -> Result<Vec<Input>, CurateError> {
    let config = CurateConfig { sources: vec![entry.to_owned()], ..CurateConfig::default() };
    let found = source::expand(&config, None)?;
    // The folder that paths below are relative to.
    let fixed = &entry[..entry.find(GLOB_CHARACTERS).unwrap_or(entry.len())];
    let base = if Path::new(entry).exists() { entry } else { &fixed[..fixed.rfind('/').unwrap_or(0)] };
    let label = Path::new(base).file_name().map(|name| name.to_string_lossy().into_owned());
    let label = label.filter(|_| Path::new(base).is_dir());
    let input = |file: source::Found| Input {
        name: label.iter().cloned().chain([file.relative]).collect::<Vec<_>>().join("/"),
        bytes: file.bytes,
        origin: file.problem.map_or(Origin::Local(file.path), Origin::Closed),
    };
    Ok(found.into_iter().map(input).collect())
}

/// An object store, and the runtime that its requests run on.
struct Remote {
    store: Arc<dyn ObjectStore>,
    runtime: Runtime,
}

impl Remote {
    fn new(store: Arc<dyn ObjectStore>) -> io::Result<Arc<Remote>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Arc::new(Remote { store, runtime }))
    }

    /// Key and size of all objects below `prefix`.
    async fn below(&self, prefix: Key) -> object_store::Result<Vec<(Key, u64)>> {
        let (mut folders, mut found) = (vec![prefix], Vec::new());
        while let Some(folder) = folders.pop() {
            let listed = self.store.list_with_delimiter(Some(&folder)).await?;
            found.extend(listed.objects.into_iter().map(|object| (object.location, object.size)));
            folders.extend(listed.common_prefixes);
        }
        Ok(found)
    }
}

/// The objects that `path`, a key, a prefix or a glob, stands for.
fn objects(remote: &Arc<Remote>, path: &str, folder: bool) -> Result<Vec<Input>, String> {
    let fixed = &path[..path.find(GLOB_CHARACTERS).unwrap_or(path.len())];
    let glob = fixed.len() < path.len();
    let base = if glob { &fixed[..fixed.rfind('/').unwrap_or(0)] } else { path.trim_end_matches('/') };
    let key = Key::parse(base).map_err(|error| error.to_string())?;
    let one = (!glob && !folder)
        .then(|| remote.runtime.block_on(remote.store.head(&key)))
        .map(|head| head.map(|head| vec![(head.location, head.size)]));
    let found = match one {
        Some(Err(object_store::Error::NotFound { .. })) | None => remote.runtime.block_on(remote.below(key.clone())),
        Some(head) => head,
    };
    let pattern = GlobBuilder::new(path).literal_separator(true).build().map_err(|error| error.to_string())?;
    let pattern = glob.then(|| pattern.compile_matcher());
    let found = found.map_err(|error| error.to_string())?.into_iter();
    let wanted = found.filter(|(key, _)| pattern.as_ref().is_none_or(|pattern| pattern.is_match(key.as_ref())));
    // Names begin with the last fixed component, as those of local files do.
    let above = base.rfind('/').map_or(0, |slash| slash + 1);
    Ok(wanted
        .map(|(key, bytes)| Input {
            name: key.as_ref()[above..].to_owned(),
            bytes,
            origin: Origin::Remote(Arc::clone(remote), key),
        })
        .collect())
}

fn unusable(entry: &str, problem: String, hint: &str) -> CurateError {
    CurateError::BadSource { entry: entry.to_owned(), problem, hint: hint.to_owned() }
}

#[cfg(not(feature = "cloud"))]
fn remote(entry: &str, scheme: &str) -> Result<Vec<Input>, CurateError> {
    let problem = format!("has the scheme `{scheme}`, which this build cannot read");
    Err(unusable(entry, problem, "build with `--features cloud`, or copy the files here"))
}

#[cfg(feature = "cloud")]
fn remote(entry: &str, _scheme: &str) -> Result<Vec<Input>, CurateError> {
    let failed = |problem: String| {
        let hint = "object stores are set up by AWS_…, GOOGLE_… and AZURE_… variables; paths are s3://BUCKET/KEY and the like";
        unusable(entry, format!("cannot be read: {problem}"), hint)
    };
    let glob = entry.find(GLOB_CHARACTERS).unwrap_or(entry.len());
    let url = url::Url::parse(&entry[..glob]).map_err(|error| failed(error.to_string()))?;
    let settings = std::env::vars().filter(|(name, _)| SETTINGS.iter().any(|start| name.starts_with(start)));
    let settings = settings.map(|(name, value)| (name.to_ascii_lowercase(), value));
    let (store, key) = object_store::parse_url_opts(&url, settings).map_err(|error| failed(error.to_string()))?;
    let remote = Remote::new(store.into()).map_err(|error| failed(error.to_string()))?;
    // A file on the web is known by its URL alone: nothing lists what lies beside it.
    let path = format!("{}{}{}", key.as_ref(), if url.path().ends_with('/') && !key.as_ref().is_empty() { "/" } else { "" }, &entry[glob..]);
    let found = objects(&remote, &path, url.path().ends_with('/')).map_err(failed)?;
    if found.is_empty() {
        return Err(CurateError::NoMatch {
            entry: entry.to_owned(),
            found: "there is no object of that name or prefix".to_owned(),
            hint: "check bucket and key; globs such as s3://bucket/crawl/*.warc.gz are allowed".to_owned(),
        });
    }
    Ok(found)
}

/// An object, read in large pieces.
struct RemoteFile {
    remote: Arc<Remote>,
    key: Key,
    size: u64,
    /// The piece at hand, and where it begins.
    chunk: (u64, bytes::Bytes),
}

impl ReadAt for RemoteFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let held = |chunk: &(u64, bytes::Bytes)| at.checked_sub(chunk.0).filter(|&from| from < chunk.1.len() as u64);
        if held(&self.chunk).is_none() {
            let end = self.size.min(at.saturating_add(REQUEST));
            if at >= end {
                return Ok(0);
            }
            let asked = self.remote.store.get_range(&self.key, at..end);
            self.chunk = (at, self.remote.runtime.block_on(asked).map_err(io::Error::other)?);
        }
        let Some(from) = held(&self.chunk) else {
            return Err(io::Error::other("the object store answered with nothing"));
        };
        let piece = &self.chunk.1[from as usize..];
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        Ok(count)
    }
}

/// Inputs in a store at hand, for tests.
#[cfg(test)]
pub(super) fn find_in(store: Arc<dyn ObjectStore>, path: &str) -> Result<Vec<Input>, String> {
    let remote = Remote::new(store).map_err(|error| error.to_string())?;
    objects(&remote, path, path.ends_with('/'))
}
