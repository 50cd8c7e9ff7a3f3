//! Inputs in object stores. Everything asynchronous stays in here.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use globset::GlobBuilder;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
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
    /// What comes before keys in URLs.
    base: String,
}

impl Remote {
    fn new(store: Arc<dyn ObjectStore>, base: &str) -> io::Result<Arc<Remote>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Arc::new(Remote { store, runtime, base: base.to_owned() }))
    }

    /// All objects below `prefix`.
    async fn below(&self, prefix: Key) -> object_store::Result<Vec<ObjectMeta>> {
        let (mut folders, mut found) = (vec![prefix], Vec::new());
        while let Some(folder) = folders.pop() {
            let listed = self.store.list_with_delimiter(Some(&folder)).await?;
            found.extend(listed.objects);
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
        .map(|head| head.map(|head| vec![head]));
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
    let wanted = found.filter(|object| pattern.as_ref().is_none_or(|p| p.is_match(object.location.as_ref())));
    // Names begin with the last fixed component, as those of local files do.
    let above = base.rfind('/').map_or(0, |slash| slash + 1);
    Ok(wanted
        .map(|object| {
            let name = object.location.as_ref()[above..].to_owned();
            Input::new(name, object.size, Arc::new(Object { remote: Arc::clone(remote), object }))
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
    let base = url.as_str().trim_end_matches('/').strip_suffix(key.as_ref()).unwrap_or_default();
    let remote = Remote::new(store.into(), base).map_err(|error| failed(error.to_string()))?;
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
    object: ObjectMeta,
}

impl Origin for Object {
    fn open(&self) -> io::Result<Box<dyn ReadAt>> {
        let (remote, key) = (Arc::clone(&self.remote), self.object.location.clone());
        Ok(Box::new(Opened { remote, key, size: self.object.size, chunk: (0, Bytes::new()) }))
    }

    fn location(&self) -> Option<String> {
        let base = self.remote.base.trim_end_matches('/');
        Some(format!("{base}/{}", self.object.location))
    }

    fn version(&self, _: usize) -> io::Result<String> {
        // Not every store has tags.
        let changed = || self.object.last_modified.to_rfc3339();
        Ok(format!("{} {}", self.object.size, self.object.e_tag.clone().unwrap_or_else(changed)))
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
    let remote = Remote::new(store, "").map_err(|error| error.to_string())?;
    objects(&remote, path, path.ends_with('/'))
}
