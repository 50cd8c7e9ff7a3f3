//! The `llamero` binary of this repository.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds it in release mode and says where it is.
pub(crate) fn build(root: &Path) -> Result<PathBuf, String> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--package", "llamero"])
        .current_dir(root)
        .status()
        .map_err(|e| format!("cannot run `cargo build`: {e}"))?;
    if !status.success() {
        return Err("`cargo build` failed".into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    Ok(target.join("release").join(format!("llamero{}", std::env::consts::EXE_SUFFIX)))
}
