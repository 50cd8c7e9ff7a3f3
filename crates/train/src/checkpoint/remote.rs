//! Checkpoints in a second place: an object store of a cloud, or another file system. Everything asynchronous stays in here.
//!
//! A checkpoint there is a prefix `step-N` with the files of the folder. `state.blake3` comes last, when all others are there
//! with their sizes, and goes first; what has none is half a checkpoint.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore, ObjectStoreExt, WriteMultipart};
use tokio::runtime::{Builder, Runtime};

use super::failpoint::{self, step};
use super::format::{self, STATE, STATE_HASH, State};
use crate::TrainError;

/// Bytes that are sent or asked for at once.
const CHUNK: usize = 16 << 20;

/// Parts of a file on their way at once.
const PARTS: usize = 4;

/// Variables of the environment that object stores are set up with.
#[cfg(feature = "cloud")]
const SETTINGS: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// The second place.
pub(super) struct Remote {
    url: String,
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    runtime: Runtime,
}

/// What a stored checkpoint is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) step: u64,
    /// Whether its upload came to the end.
    pub(super) whole: bool,
}

impl Remote {
    /// Does not ask the store anything yet.
    pub(super) fn open(url: &str) -> Result<Self, TrainError> {
        let wrong = |reason: String| TrainError::Remote { url: url.into(), reason };
        let (store, prefix) = connect(url).map_err(wrong)?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| wrong(e.to_string()))?;
        Ok(Self { url: url.trim_end_matches('/').into(), store, prefix, runtime })
    }

    /// A stored checkpoint, in words.
    pub(super) fn name(&self, step: u64) -> String {
        format!("{}/{}", self.url, format::folder(step))
    }

    fn key(&self, step: u64, file: &str) -> Key {
        self.prefix.clone().join(format::folder(step)).join(file)
    }

    /// What is there, oldest first.
    pub(super) fn list(&self) -> Result<Vec<Stored>, String> {
        self.runtime.block_on(self.all()).map_err(|e| format!("`{}`: {e}", self.url))
    }

    async fn all(&self) -> Result<Vec<Stored>, Error> {
        let found = self.store.list_with_delimiter(Some(&self.prefix)).await?;
        let mut all = Vec::new();
        for step in found.common_prefixes.iter().filter_map(|key| format::step_of(key.filename()?)) {
            let whole = match self.store.head(&self.key(step, STATE_HASH)).await {
                Ok(_) => true,
                Err(Error::NotFound { .. }) => false,
                Err(error) => return Err(error),
            };
            all.push(Stored { step, whole });
        }
        all.sort_by_key(|stored| stored.step);
        Ok(all)
    }

    /// Brings a checkpoint into the folder of the run; everything about it is checked before it gets its name there.
    pub(super) fn fetch(&self, step: u64, dir: &Path) -> Result<(), String> {
        let temporary = dir.join(format!("fetching-{}", format::folder(step)));
        let local = |e: std::io::Error| format!("`{}`: {e}", temporary.display());
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary).map_err(local)?;
        }
        std::fs::create_dir_all(&temporary).map_err(local)?;
        let fetched = self.runtime.block_on(async {
            for name in [STATE_HASH, STATE] {
                self.get(step, name, &temporary).await?;
            }
            let state = State::read(&temporary)?;
            for shards in &state.files {
                self.get(step, &shards.file, &temporary).await?;
            }
            state.files.iter().try_for_each(|shards| format::check_pieces(&temporary, shards, |_| true))
        });
        if fetched.is_err() {
            std::fs::remove_dir_all(&temporary).ok();
        }
        fetched?;
        format::publish(&temporary, &dir.join(format::folder(step))).map_err(local)
    }

    async fn get(&self, step: u64, name: &str, into: &Path) -> Result<(), String> {
        let (key, path) = (self.key(step, name), into.join(name));
        let remote = |e: Error| format!("`{name}`: {e}");
        let local = |e: std::io::Error| format!("`{}`: {e}", path.display());
        let size = self.store.head(&key).await.map_err(remote)?.size;
        let mut file = File::create(&path).map_err(local)?;
        let mut at = 0;
        while at < size {
            let bytes = self.store.get_range(&key, at..size.min(at + CHUNK as u64)).await.map_err(remote)?;
            if bytes.is_empty() {
                return Err(format!("`{name}` ends after {at} of {size} bytes"));
            }
            file.write_all(&bytes).map_err(local)?;
            at += bytes.len() as u64;
        }
        file.sync_all().map_err(local)
    }

    /// Copies a published folder, and removes what is too old.
    pub(super) fn upload(&self, dir: &Path, number: u64, keep: usize) -> Result<(), String> {
        let state = State::read(dir)?;
        let mut names: Vec<&str> = state.files.iter().map(|shards| shards.file.as_str()).collect();
        names.extend([STATE, STATE_HASH]);
        self.runtime.block_on(async {
            // An earlier one of this step is not whole from here on.
            self.delete(&self.key(number, STATE_HASH)).await?;
            for name in names {
                let key = self.key(number, name);
                let sent = self.put(&dir.join(name), &key).await.map_err(|e| format!("`{name}`: {e}"))?;
                let size = self.store.head(&key).await.map_err(|e| format!("`{name}`: {e}"))?.size;
                if size != sent {
                    return Err(format!("`{name}` has {size} bytes, but {sent} were sent"));
                }
            }
            self.remove_old(number, keep).await
        })
    }

    async fn put(&self, from: &Path, key: &Key) -> Result<u64, Error> {
        let generic = |e: std::io::Error| Error::Generic { store: "file", source: e.into() };
        let mut file = File::open(from).map_err(generic)?;
        step().map_err(generic)?;
        let upload = self.store.put_multipart(key).await?;
        let mut out = WriteMultipart::new_with_chunk_size(upload, CHUNK);
        let (mut buffer, mut sent) = (vec![0; 1 << 20], 0);
        let all = loop {
            match file.read(&mut buffer).and_then(|n| step().map(|()| n)) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    if let Err(error) = out.wait_for_capacity(PARTS).await {
                        break Err(error);
                    }
                    out.write(&buffer[..n]);
                    sent += n as u64;
                }
                Err(error) => break Err(generic(error)),
            }
        };
        match all {
            Ok(()) => out.finish().await.map(|_| sent),
            Err(error) => {
                out.abort().await.ok();
                Err(error)
            }
        }
    }

    /// Keeps the newest whole ones up to `number`; all else is too old, half, or was passed over when the run began.
    async fn remove_old(&self, number: u64, keep: usize) -> Result<(), String> {
        let said = |e: Error| e.to_string();
        let all = self.all().await.map_err(said)?;
        let kept = all.iter().rev().filter(|stored| stored.whole && stored.step <= number).take(keep);
        let kept: Vec<u64> = kept.map(|stored| stored.step).collect();
        for Stored { step: old, .. } in all.iter().filter(|stored| !kept.contains(&stored.step)) {
            self.delete(&self.key(*old, STATE_HASH)).await?;
            let folder = self.prefix.clone().join(format::folder(*old));
            let files = self.store.list_with_delimiter(Some(&folder)).await.map_err(said)?;
            for file in files.objects {
                self.delete(&file.location).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Result<(), String> {
        let name = key.filename().unwrap_or_default();
        step().map_err(|e| format!("`{name}`: {e}"))?;
        match self.store.delete(key).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(format!("`{name}`: {error}")),
        }
    }
}

/// The store of a URL, and the place in it.
fn connect(url: &str) -> Result<(Arc<dyn ObjectStore>, Key), String> {
    if let Some(path) = url.strip_prefix("file://") {
        if !path.starts_with('/') {
            return Err("a path in it must be whole, e.g. `file:///mnt/x`".into());
        }
        let prefix = Key::from_absolute_path(path).map_err(|e| e.to_string())?;
        let store = LocalFileSystem::new().with_fsync(true).with_automatic_cleanup(true);
        return Ok((Arc::new(store), prefix));
    }
    cloud(url)
}

#[cfg(feature = "cloud")]
fn cloud(url: &str) -> Result<(Arc<dyn ObjectStore>, Key), String> {
    let parsed = url::Url::parse(url).map_err(|e| e.to_string())?;
    let settings =
        std::env::vars().filter(|(name, _)| SETTINGS.iter().any(|prefix| name.starts_with(prefix)));
    let (store, prefix) = object_store::parse_url_opts(&parsed, settings).map_err(|e| e.to_string())?;
    Ok((Arc::from(store), prefix))
}

#[cfg(not(feature = "cloud"))]
fn cloud(_: &str) -> Result<(Arc<dyn ObjectStore>, Key), String> {
    Err("this program was built for `file:///…` only\nhint: build it with `--features cloud`".into())
}

/// Copies published checkpoints to the remote tier, one at a time and always the newest, in a thread of its own.
pub(super) struct Uploader {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Desk {
    state: Mutex<Orders>,
    changed: Condvar,
    pinned: Arc<Mutex<Option<u64>>>,
}

#[derive(Default)]
struct Orders {
    next: Option<u64>,
    closed: bool,
    remarks: Vec<String>,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, Orders> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(&self, step: Option<u64>) {
        *self.pinned.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    /// The next checkpoint to copy; none when there will be no more.
    fn next(&self) -> Option<u64> {
        let waits = |orders: &mut Orders| orders.next.is_none() && !orders.closed;
        let state = self.changed.wait_while(self.state(), waits);
        let next = state.unwrap_or_else(PoisonError::into_inner).next.take();
        self.pin(next);
        next
    }
}

impl Uploader {
    /// For the checkpoints below `dir`.
    pub(super) fn new(remote: Arc<Remote>, dir: &Path, keep: usize) -> Self {
        let (desk, dir) = (Arc::new(Desk::default()), PathBuf::from(dir));
        let (own, armed) = (Arc::clone(&desk), failpoint::armed());
        let work = move || {
            armed.here();
            while let Some(number) = own.next() {
                let folder = dir.join(format::folder(number));
                if let Err(reason) = remote.upload(&folder, number, keep) {
                    // One that has had to make room meanwhile is no loss: the next is there.
                    let text = format!("`{}` was not stored: {reason}", remote.name(number));
                    own.state().remarks.extend(folder.exists().then_some(text));
                }
                own.pin(None);
            }
        };
        let spawned = std::thread::Builder::new().name("upload".into()).spawn(work);
        if let Err(error) = &spawned {
            desk.state().remarks.push(format!("nothing goes to the remote tier: {error}"));
        }
        Self { desk, thread: spawned.ok() }
    }

    /// The checkpoint that is being copied and must stay.
    pub(super) fn pinned(&self) -> Arc<Mutex<Option<u64>>> {
        Arc::clone(&self.desk.pinned)
    }

    /// A checkpoint was published. It takes the place of one that is still waiting.
    pub(super) fn offer(&mut self, number: u64) {
        self.desk.state().next = Some(number);
        self.desk.changed.notify_all();
    }

    /// What went wrong since the last call.
    pub(super) fn remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.desk.state().remarks)
    }

    /// Waits until all that was offered is there or has failed.
    pub(super) fn finish(&mut self) {
        self.desk.state().closed = true;
        self.desk.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.finish();
    }
}
