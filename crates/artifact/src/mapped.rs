//! Read-only memory maps of files that are finished.

#![expect(
    unsafe_code,
    reason = "mapping a file is unsafe in every crate that offers it; see the SAFETY argument"
)]

use std::fs::File;
use std::io;
use std::path::Path;

/// The bytes of a file, mapped read-only.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps a whole file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the map is private to this value and read-only. Callers map files of finished artifacts and of
        // exported model folders, which are published by rename and never written in place; a new version is a new
        // file, and the map keeps the old one. A foreign program that truncates such a file under a running
        // process can still end it with SIGBUS: that is the price of mapping, and the reason why this is the only
        // place that maps.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map })
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_a_file_and_names_what_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(MappedFile::open(&path).unwrap().bytes(), b"abc");
        assert!(MappedFile::open(dir.path()).is_err());
        assert!(MappedFile::open(&dir.path().join("absent")).is_err());
    }
}
