//! Which source files are too long to read in one sitting.

use std::fs;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 600;

/// Lists the Rust files under `root` that are longer than [`MAX_LINES`]. They are a warning, not a failure.
pub(crate) fn run(root: &Path) -> Result<String, String> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "tests"] {
        rust_files(&root.join(folder), &mut files)?;
    }
    let mut long = Vec::new();
    for path in &files {
        let text = fs::read_to_string(path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))?;
        let lines = text.lines().count();
        if lines > MAX_LINES {
            let name = path.strip_prefix(root).unwrap_or(path).display();
            long.push(format!("\n  warning: {name} has {lines} lines"));
        }
    }
    long.sort();
    let count = long.len();
    Ok(format!("sizes: {count} of {} files over {MAX_LINES} lines{}", files.len(), long.concat()))
}

/// Adds every Rust file below `dir`.
pub(crate) fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) -> Result<(), String> {
    if !dir.is_dir() {
        return Ok(());
    }
    let entries = fs::read_dir(dir).map_err(|e| format!("cannot list `{}`: {e}", dir.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("cannot list `{}`: {e}", dir.display()))?.path();
        if path.is_dir() {
            rust_files(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINES, run};

    #[test]
    fn a_long_file_is_named() {
        let root = std::env::temp_dir().join(format!("llamero-sizes-{}", std::process::id()));
        let folder = root.join("crates/x/src");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("long.rs"), "//\n".repeat(MAX_LINES + 1)).unwrap();
        std::fs::write(folder.join("fits.rs"), "//\n".repeat(MAX_LINES)).unwrap();
        let report = run(&root).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(report.starts_with("sizes: 1 of 2 files"), "{report}");
        assert!(report.contains("long.rs has 601 lines") && !report.contains("fits.rs"), "{report}");
    }
}
