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

/// Makes the folder `out` with what `fill` writes, whole or not at all; where there is one, it gives way. `hint` says what to do
/// about a file in the way.
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

/// Renames the folder to `out`.
fn put(partial: &Path, out: &Path) -> Result<()> {
    // An empty folder needs no name beside it.
    if out.read_dir().is_ok_and(|mut entries| entries.next().is_none()) {
        std::fs::remove_dir(out).with_context(|| format!("`{}` cannot be replaced", out.display()))?;
    }
    if out.exists() {
        return Ok(fsutil::publish_dir(partial, out)?);
    }
    std::fs::rename(partial, out).with_context(|| format!("`{}` to `{}`", partial.display(), out.display()))
}
