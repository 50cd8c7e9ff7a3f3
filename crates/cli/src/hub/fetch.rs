//! One file, in as many tries as it takes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use ureq::Body;
use ureq::http::{Response, header};

use super::digest::Hasher;
use super::{Hub, RemoteFile, Repository, Tries, Trouble};

/// What [`Hub::fetch`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// The file was there, whole.
    There,
    /// It came over the network, or its rest did.
    Now,
}

/// Ends the name of a part, after so many digits of the digest.
const PART: &str = ".part";
const DIGITS: usize = 12;

/// The part of a file that has come so far.
struct Part {
    path: PathBuf,
    file: File,
    length: u64,
    hasher: Hasher,
}

impl Part {
    /// Goes on with what is there. The name holds the digest, so that no other version of a file is gone on with.
    fn open(target: &Path, file: &RemoteFile) -> Result<Self> {
        let name = target.file_name().context("a file without a name")?.to_string_lossy();
        let path = target.with_file_name(format!("{name}.{}{PART}", &file.digest.hex()[..DIGITS]));
        let says = || format!("`{}`", path.display());
        let mut open = OpenOptions::new();
        let part = open.read(true).append(true).create(true).open(&path).with_context(says)?;
        match part.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("`{}`: another process fetches it", path.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(says),
        }
        let mut hasher = Hasher::like(&file.digest, file.size);
        let mut length = part.metadata().with_context(says)?.len();
        if length > file.size {
            part.set_len(0).with_context(says)?;
            length = 0;
        }
        hasher.read(&part).with_context(says)?;
        Ok(Self { file: part, path, length, hasher })
    }

    fn clear(&mut self, file: &RemoteFile) -> std::io::Result<()> {
        self.file.set_len(0)?;
        (self.length, self.hasher) = (0, Hasher::like(&file.digest, file.size));
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }
}

impl Hub {
    /// Puts a file of a repository into `dir`. What an earlier call left unfinished is gone on with; the file appears under its
    /// name only once it is whole and has the digest that the hub says. `progress` is told how much of it is there.
    ///
    /// # Errors
    /// A file that the hub does not give; a connection that fails again and again; other contents than the hub says; a file that
    /// cannot be written.
    pub(crate) fn fetch(
        &self,
        repository: &Repository,
        file: &RemoteFile,
        dir: &Path,
        progress: &dyn Fn(u64),
    ) -> Result<Fetched> {
        let target = dir.join(&file.name);
        if is_whole(&target, file)? {
            progress(file.size);
            return Ok(Fetched::There);
        }
        let parent = target.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).with_context(|| format!("`{}`", parent.display()))?;
        let mut part = Part::open(&target, file)?;
        let mut tries = Tries::new(self.pause);
        progress(part.length);
        while part.length < file.size {
            let before = part.length;
            let tried = self.go_on(repository, file, &mut part, progress);
            if part.length > before {
                tries.progressed();
            }
            if let Err(trouble) = tried {
                tries.again(trouble).with_context(|| {
                    format!(
                        "`{}` has come to {} of {} bytes; the same command goes on from there",
                        file.name, part.length, file.size
                    )
                })?;
            }
        }
        finish(part, &target, file)?;
        Ok(Fetched::Now)
    }

    /// Asks for what is missing and appends what comes.
    fn go_on(
        &self,
        repository: &Repository,
        file: &RemoteFile,
        part: &mut Part,
        progress: &dyn Fn(u64),
    ) -> Result<(), Trouble> {
        let mut segments: Vec<&str> = repository.name.split('/').collect();
        segments.extend(["resolve", &repository.commit]);
        segments.extend(file.name.split('/'));
        let response = self.get(&self.url(&segments), part.length)?;
        let disk = |e: std::io::Error| Trouble::Lasting(anyhow!(e).context(format!("`{}`", file.name)));
        match response.status().as_u16() {
            200 if part.length > 0 => part.clear(file).map_err(disk)?,
            200 => {}
            206 if starts_at(&response) == Some(part.length) => {}
            206 => {
                let text =
                    format!("`{}`: the hub gives another part than bytes from {} on", file.name, part.length);
                return Err(Trouble::Lasting(anyhow!(text)));
            }
            _ => {
                return Err(self.refusal(
                    &response,
                    &format!("`{}` of `{}`", file.name, repository.name),
                    &repository.name,
                ));
            }
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = body.read(&mut buffer).map_err(|e| {
                Trouble::Passing(anyhow!(e).context(format!("`{}`: the connection broke off", file.name)))
            })?;
            if count == 0 && part.length < file.size {
                return Err(Trouble::Passing(anyhow!("`{}`: the connection ended early", file.name)));
            }
            if part.length + count as u64 > file.size {
                let text =
                    format!("`{}` is longer than the {} bytes that the hub says", file.name, file.size);
                return Err(Trouble::Lasting(anyhow!(text)));
            }
            if count == 0 {
                return Ok(());
            }
            part.append(&buffer[..count]).map_err(disk)?;
            progress(part.length);
        }
    }
}

/// The first byte of a part of a file, by its `Content-Range`.
fn starts_at(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Whether the file is there with the digest that it must have.
fn is_whole(target: &Path, file: &RemoteFile) -> Result<bool> {
    let says = || format!("`{}`", target.display());
    if target.metadata().map(|m| m.len()).ok() != Some(file.size) {
        return Ok(false);
    }
    let mut hasher = Hasher::like(&file.digest, file.size);
    hasher.read(File::open(target).with_context(says)?).with_context(says)?;
    Ok(hasher.finish() == file.digest)
}

/// Compares a whole part with its digest and gives it the file's name.
fn finish(part: Part, target: &Path, file: &RemoteFile) -> Result<()> {
    let found = part.hasher.finish();
    if found != file.digest {
        std::fs::remove_file(&part.path).with_context(|| format!("`{}`", part.path.display()))?;
        bail!(
            "`{}` came with {found}, but the hub says {}; it was removed. hint: run the same command again",
            file.name,
            file.digest
        );
    }
    let says = || format!("`{}`", target.display());
    part.file.sync_all().with_context(says)?;
    std::fs::rename(&part.path, target).with_context(says)?;
    sweep(target);
    Ok(())
}

/// Removes what was fetched of other versions of a file, which nothing goes on with any more, unless somebody fetches it now. Where
/// that fails, it is only in nobody's way.
fn sweep(target: &Path) {
    let Some(name) = target.file_name() else { return };
    let prefix = name.to_string_lossy() + ".";
    let is_part = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let digits = name.and_then(|name| name.strip_prefix(&*prefix)?.strip_suffix(PART));
        digits.is_some_and(|d| d.len() == DIGITS && d.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    for entry in parent.unwrap_or(Path::new(".")).read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        if is_part(&path) && File::open(&path).is_ok_and(|part| part.try_lock().is_ok()) {
            std::fs::remove_file(&path).ok();
        }
    }
}
