//! Folders and files that commands read models from and write them to.

use std::path::Path;

use anyhow::{Context, Result, bail};
use llamero_artifact::{Artifact, MANIFEST, fsutil};

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
    name.push(format!(".{}.partial", std::process::id()));
    let partial = out.with_file_name(name);
    if let Some(parent) = partial.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("`{}`", parent.display()))?;
    }
    // Fails where the name is taken: what we did not make is never written to or removed.
    std::fs::create_dir(&partial).with_context(|| format!("`{}`", partial.display()))?;
    let made =
        fill(&partial).and_then(|()| Ok(fsutil::sync_tree(&partial)?)).and_then(|()| put(&partial, out));
    if made.is_err() {
        // The first error is the one to tell.
        std::fs::remove_dir_all(&partial).ok();
    }
    made
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
