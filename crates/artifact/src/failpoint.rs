//! A seam that lets the tests stop the program before any single change to the disk.
//!
//! Every mutating step of this crate calls [`step`] first. Outside the tests it does nothing. A test sets a number of
//! steps to allow; the next one fails and so do all after it, which leaves the disk as `kill -9` would.

use crate::Result;
use std::path::Path;

#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "the tests' version fails")]
pub(crate) fn step(_doing: &'static str, _path: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use armed::{Stop, step};

#[cfg(test)]
mod armed {
    use super::{Path, Result};
    use crate::ArtifactError;
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LEFT: Cell<Option<(usize, io::ErrorKind)>> = const { Cell::new(None) };
    }

    /// While it lives, this thread fails every step after the first `allowed`.
    pub(crate) struct Stop;

    impl Stop {
        pub(crate) fn after(allowed: usize, kind: io::ErrorKind) -> Self {
            LEFT.set(Some((allowed, kind)));
            Self
        }
    }

    impl Drop for Stop {
        fn drop(&mut self) {
            LEFT.set(None);
        }
    }

    pub(crate) fn step(doing: &'static str, path: &Path) -> Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some((0, kind)) => Err(ArtifactError::io(doing, path, kind.into())),
            Some((left, kind)) => {
                LEFT.set(Some((left - 1, kind)));
                Ok(())
            }
        }
    }
}
