//! Inputs in object stores. Everything asynchronous stays in here.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use globset::GlobBuilder;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::{Builder, Runtime};

use super::store::{Input, Origin};
use super::stream::ReadAt;
#[cfg(feature = "cloud")]
use crate::CurateError;
use crate::source::GLOB_CHARACTERS;

/// Bytes that are asked of an object store at once.
const REQUEST: u64 = 8 << 20;

/// Variables of the environment that object stores are set up with.
#[cfg(feature = "cloud")]
const SETTINGS: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

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
        Some(Err(object_store::Error::NotFound { .. })) | None => {
            remote.runtime.block_on(remote.below(key.clone()))
        }
        Some(head) => head,
    };
    let pattern =
        GlobBuilder::new(path).literal_separator(true).build().map_err(|error| error.to_string())?;
    let pattern = glob.then(|| pattern.compile_matcher());
    let found = found.map_err(|error| error.to_string())?.into_iter();
    let wanted =
        found.filter(|(key, _)| pattern.as_ref().is_none_or(|pattern| pattern.is_match(key.as_ref())));
    // Names begin with the last fixed component, as those of local files do.
    let above = base.rfind('/').map_or(0, |slash| slash + 1);
    Ok(wanted
        .map(|(key, bytes)| {
            let name = key.as_ref()[above..].to_owned();
            Input::new(name, bytes, Arc::new(Object { remote: Arc::clone(remote), key, size: bytes }))
        })
        .collect())
}

#[cfg(feature = "cloud")]
pub(super) fn find(entry: &str) -> Result<Vec<Input>, CurateError> {
    let failed = |problem: String| {
        let hint = "object stores are set up by AWS_…, GOOGLE_… and AZURE_… variables; paths are s3://BUCKET/KEY and the like";
        CurateError::BadSource {
            entry: entry.to_owned(),
            problem: format!("cannot be read: {problem}"),
            hint: hint.to_owned(),
        }
    };
    let glob = entry.find(GLOB_CHARACTERS).unwrap_or(entry.len());
    let url = url::Url::parse(&entry[..glob]).map_err(|error| failed(error.to_string()))?;
    let settings = std::env::vars().filter(|(name, _)| SETTINGS.iter().any(|start| name.starts_with(start)));
    let settings = settings.map(|(name, value)| (name.to_ascii_lowercase(), value));
    let (store, key) =
        object_store::parse_url_opts(&url, settings).map_err(|error| failed(error.to_string()))?;
    let remote = Remote::new(store.into()).map_err(|error| failed(error.to_string()))?;
    // The key of a URL that ends in `/` lacks it.
    let folder = url.path().ends_with('/');
    let slash = if folder && !key.as_ref().is_empty() { "/" } else { "" };
    let path = format!("{key}{slash}{}", &entry[glob..]);
    let found = objects(&remote, &path, folder).map_err(failed)?;
    if found.is_empty() {
        return Err(CurateError::NoMatch {
            entry: entry.to_owned(),
            found: "there is no object of that name or prefix".to_owned(),
            hint: "check bucket and key; globs such as s3://bucket/crawl/*.warc.gz are allowed".to_owned(),
        });
    }
    Ok(found)
}

/// An object in a store.
struct Object {
    remote: Arc<Remote>,
    key: Key,
    size: u64,
}

impl Origin for Object {
    fn open(&self) -> io::Result<Box<dyn ReadAt>> {
        let (remote, key) = (Arc::clone(&self.remote), self.key.clone());
        Ok(Box::new(Opened { remote, key, size: self.size, chunk: (0, Bytes::new()) }))
    }
}

/// An object that is read in large pieces.
struct Opened {
    remote: Arc<Remote>,
    key: Key,
    size: u64,
    /// The piece at hand, and where it begins.
    chunk: (u64, Bytes),
}

impl ReadAt for Opened {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let held = |chunk: &(u64, Bytes)| at.checked_sub(chunk.0).filter(|&from| from < chunk.1.len() as u64);
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
