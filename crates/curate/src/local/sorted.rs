//! Records sorted on disk, beside a plan.

use std::path::{Path, PathBuf};

use super::file;
use super::sort::{Merge, Sorter};
use crate::CurateError;

/// Bytes that are held in memory.
const BUDGET: usize = 32 << 20;

/// Takes records in any order and gives them back sorted by key and value, in bounded memory.
pub(crate) struct Sorted {
    path: PathBuf,
    sorter: Sorter,
}

impl Sorted {
    /// Begins; `path` is the file for what does not fit into memory.
    pub(crate) fn create(path: &Path) -> Result<Sorted, CurateError> {
        Ok(Sorted { path: path.to_path_buf(), sorter: Sorter::new(path, 1, BUDGET)? })
    }

    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), CurateError> {
        self.sorter.push(0, key, value)
    }

    /// Calls `each` with every record in order, and removes the file.
    pub(crate) fn each(
        self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), CurateError>,
    ) -> Result<(), CurateError> {
        self.sorter.finish()?;
        let segments = file::read_footer(&self.path)?.segments;
        let segments = segments.into_iter().map(|segment| (self.path.clone(), segment)).collect();
        let mut merge = Merge::open(segments, BUDGET, &self.path.with_extension("merge"))?;
        while let Some((key, value)) = merge.peek() {
            each(key, value)?;
            merge.advance()?;
        }
        // What stays goes with the work folder.
        let _ = std::fs::remove_file(&self.path);
        Ok(())
    }
}
