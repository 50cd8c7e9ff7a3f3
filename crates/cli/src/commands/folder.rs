//! Folders and files that commands read models from and write them to.

use std::fs::{DirEntry, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use llamero_artifact::{Artifact, MANIFEST, fsutil};
use llamero_model::hf;

use crate::termination::Unfinished;

/// Compares the files of an artifact with its manifest; any other model has none.
pub(super) fn verify(model: &Path) -> Result<()> {
    if model.join(MANIFEST).exists() {
        Artifact::open(model, None)?.verify()?;
    }
    Ok(())
}

/// Refuses to write the folder `out` where something is, unless `force`; and even then where a file is that is not `ours`, which
/// is what `what` has.
pub(super) fn may_write(out: &Path, force: bool, what: &str, ours: impl Fn(&str) -> bool) -> Result<()> {
    let shown = out.display();
    if out.exists() && !out.is_dir() {
        bail!("`{shown}` is a file\nhint: name a new folder");
    }
    let Ok(entries) = out.read_dir() else { return Ok(()) };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.with_context(|| format!("`{shown}`"))?.file_name().to_string_lossy().into_owned());
    }
    if !names.is_empty() && !force {
        bail!("`{shown}` is not empty\nhint: name a new folder, or replace it with `--force`");
    }
    // A whole folder is at stake.
    match names.iter().find(|name| !ours(name)) {
        Some(other) => {
            bail!("`{shown}` holds `{other}`, which is no file of a {what}\nhint: name a new folder")
        }
        None => Ok(()),
    }
}

/// Makes the folder `out` with what `fill` writes, whole or not at all; where there is one, it gives way. `hint` says what to do
/// about a file in the way. Nothing beside `out` is touched.
pub(super) fn new_folder(out: &Path, hint: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name =
        out.file_name().with_context(|| format!("`{}` must name a folder", out.display()))?.to_owned();
    if out.exists() && !out.is_dir() {
        bail!("`{}` is a file\nhint: {hint}", out.display());
    }
    let prefix = name.to_string_lossy().into_owned() + ".";
    name.push(format!(".{}{PARTIAL}", std::process::id()));
    let partial = out.with_file_name(name);
    if let Some(parent) = partial.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("`{}`", parent.display()))?;
        sweep(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }, &prefix);
    }
    let _removed = Unfinished::new(partial.clone()).context("signals cannot be listened to")?;
    // Fails where the name is taken: what we did not make is never written to or removed.
    std::fs::create_dir(&partial).with_context(|| format!("`{}`", partial.display()))?;
    // Says that somebody works on it, as long as the process lives. Where folders cannot be locked, none is swept either.
    let lock = File::open(&partial).and_then(|folder| Ok(folder.try_lock().map(|()| folder)?)).ok();
    let made =
        fill(&partial).and_then(|()| Ok(fsutil::sync_tree(&partial)?)).and_then(|()| put(&partial, out));
    drop(lock);
    if made.is_err() {
        // The first error is the one to tell.
        std::fs::remove_dir_all(&partial).ok();
    }
    made
}

/// Ends the name of a folder that is being written, after the number of the process.
const PARTIAL: &str = ".partial";

/// Removes what killed processes left of the same folder: of that name, locked by nobody, and nothing but a model's files in it.
/// Where that fails, it is only in nobody's way.
fn sweep(parent: &Path, prefix: &str) {
    let left = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let process = name.strip_prefix(prefix)?.strip_suffix(PARTIAL)?;
        process.parse::<u32>().ok()?;
        let folder = File::open(path).ok()?;
        folder.try_lock().ok()?;
        let ours = |entry: std::io::Result<DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_temporary_or_ours))
        };
        path.read_dir().ok()?.all(ours).then_some(folder)
    };
    for entry in parent.read_dir().into_iter().flatten().flatten() {
        if let Some(_lock) = left(&entry.path()) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Files of a tokenizer that a folder may bring along.
pub(super) const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Whether a file of this name is one that a model's folder has.
pub(super) fn is_ours(name: &str) -> bool {
    let own = [hf::CONFIG_FILE, hf::GENERATION_FILE, hf::INDEX_FILE];
    own.contains(&name) || TOKENIZER_FILES.contains(&name) || name.ends_with(".safetensors")
}

/// The same, or the beginning of such a file.
fn is_temporary_or_ours(name: &str) -> bool {
    let whole = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    is_ours(whole.or_else(|| name.strip_suffix(".part")).unwrap_or(name))
}

/// Gives the folder the name `out`. What was there goes; [`may_write`] has looked at it.
fn put(partial: &Path, out: &Path) -> Result<()> {
    // An empty folder needs no name beside it.
    if out.read_dir().is_ok_and(|mut entries| entries.next().is_none()) {
        std::fs::remove_dir(out).with_context(|| format!("`{}` cannot be replaced", out.display()))?;
    }
    let names = || format!("`{}` to `{}`", partial.display(), out.display());
    if !out.exists() {
        return std::fs::rename(partial, out).with_context(names);
    }
    exchange(partial, out).with_context(names)?;
    std::fs::remove_dir_all(partial).with_context(|| format!("`{}`", partial.display()))
}

/// Gives each of two folders the other's name, in one step: a kill leaves the old one or the new one.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        // Some file systems over a network have no such step.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            in_three_steps(one, other)
        }
        done => Ok(done?),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    in_three_steps(one, other)
}

/// The same by a third name, where a kill may leave the old folder.
fn in_three_steps(one: &Path, other: &Path) -> std::io::Result<()> {
    let mut between = one.as_os_str().to_owned();
    between.push(".old");
    std::fs::rename(other, &between)?;
    std::fs::rename(one, other)?;
    std::fs::rename(&between, one)
}
