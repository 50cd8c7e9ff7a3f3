//! Read-only memory maps of files that are finished.

#![expect(
    unsafe_code,
    reason = "mapping a file is unsafe in every crate that offers it; see the SAFETY argument"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

/// The bytes of a file, mapped read-only.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

/// How many bytes around a page the system maps with it, when they are in memory: Linux's default.
const AROUND: usize = 64 << 10;

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

    /// Says that these bytes are not needed for now: they need not stay resident, and are read from the file again when they
    /// are looked at. Nothing but a hint, which goes for up to 64 KiB on both sides as well.
    pub fn release(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // Reading one page maps those around it too, so what was released before would be back beside each new range.
        let start = (range.start / AROUND * AROUND).min(self.map.len());
        let end = range.end.next_multiple_of(AROUND).min(self.map.len());
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: this advice may change what a map holds only where it is private and written to, or has no file
            // behind it. This one is of a file and read-only: dropped pages come back with the same contents, so what
            // borrows them sees no change.
            let done = unsafe { self.map.unchecked_advise_range(advice, start, end - start) };
            // Without it the memory stays in use, which is what was before.
            drop(done);
        }
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
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        assert!(MappedFile::open(&empty).unwrap().bytes().is_empty());
        assert!(MappedFile::open(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn released_bytes_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = MappedFile::open(&path).unwrap();
        for range in [0..bytes.len(), 5000..9000, 99_999..200_000, 7..7] {
            assert!(file.bytes() == bytes);
            file.release(range);
        }
        assert!(file.bytes() == bytes);
    }
}
