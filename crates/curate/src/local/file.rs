//! Partition files: blocks of records, compressed and checksummed, in one or more sorted or unsorted segments.
//!
//! A file is written beside its name and renamed when it is whole, so a file that is there is finished.
//!
//! ```text
//! file   = block* footer footer_length:u32 footer_check:u64 "llmrpar3"
//! block  = raw_length:u32 packed_length:u32 check:u64 packed
//! packed = zstd of (key_length:u32 value_length:u32 key value)*
//! ```

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::CurateError;
use crate::plan::BrokenPart;

/// Bytes of records in a block; a larger record has a block of its own.
pub(crate) const BLOCK: usize = 64 << 10;
const MAGIC: &[u8; 8] = b"llmrpar3";
const TAIL: usize = 4 + 8 + MAGIC.len();
const HEAD: usize = 16;
/// Speed matters more than size here.
const LEVEL: i32 = 1;

/// What a file holds, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Footer {
    pub(crate) segments: Vec<Segment>,
    pub(crate) totals: Totals,
    /// What of inputs was broken.
    pub(crate) broken: Vec<BrokenPart>,
}

/// A run of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Bytes of its largest block, unpacked.
    pub(crate) largest: u64,
}

impl Segment {
    /// What it holds in memory while it is read, about: a block as it is and packed.
    pub(crate) fn memory(&self) -> usize {
        2 * usize::try_from(self.largest).unwrap_or(usize::MAX / 2).clamp(BLOCK, usize::MAX / 2)
    }
}

/// Sums over records that do not depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Sum of the records' hashes: equal for equal sets of records.
    pub(crate) digest: u64,
}

impl Totals {
    fn add_record(&mut self, key: &[u8], value: &[u8]) {
        self.records += 1;
        self.bytes += (key.len() + value.len()) as u64;
        let value = XxHash3_64::oneshot(value);
        // The odd factor keeps key and value from changing places.
        let hash = XxHash3_64::oneshot(key).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) ^ value;
        self.digest = self.digest.wrapping_add(XxHash3_64::oneshot(&hash.to_le_bytes()));
    }

    pub(crate) fn add(&mut self, other: &Totals) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// Writes one partition file.
pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    block: Vec<u8>,
    packed: Vec<u8>,
    at: u64,
    begun: Option<u64>,
    /// Bytes of the largest block of the current segment.
    largest: usize,
    footer: Footer,
}

impl Writer {
    pub(crate) fn create(path: &Path) -> Result<Self, CurateError> {
        let file = File::create(beside(path)).map_err(|error| CurateError::write(path, error))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::new(file),
            block: Vec::new(),
            packed: Vec::new(),
            at: 0,
            begun: None,
            largest: 0,
            footer: Footer::default(),
        })
    }

    /// Ends the current segment, if there is one, and begins another.
    pub(crate) fn begin_segment(&mut self) -> Result<(), CurateError> {
        self.end_segment()?;
        self.begun = Some(self.at);
        Ok(())
    }

    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), CurateError> {
        let needed = 8 + key.len() + value.len();
        if !self.block.is_empty() && self.block.len() + needed > BLOCK {
            self.write_block()?;
        }
        self.block.extend_from_slice(&length(key, &self.path)?);
        self.block.extend_from_slice(&length(value, &self.path)?);
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value);
        self.footer.totals.add_record(key, value);
        Ok(())
    }

    pub(crate) fn broken(&mut self, what: BrokenPart) {
        self.footer.broken.push(what);
    }

    /// Writes the footer and gives the file its name.
    pub(crate) fn finish(mut self) -> Result<Footer, CurateError> {
        self.end_segment()?;
        let failed = |error: &dyn std::fmt::Display| CurateError::write(&self.path, error);
        let footer = postcard::to_allocvec(&self.footer).map_err(|error| failed(&error))?;
        let check = XxHash3_64::oneshot(&footer);
        let mut write = || -> std::io::Result<()> {
            self.file.write_all(&footer)?;
            self.file.write_all(&(footer.len() as u32).to_le_bytes())?;
            self.file.write_all(&check.to_le_bytes())?;
            self.file.write_all(MAGIC)?;
            self.file.flush()?;
            // Without it, a machine that goes down could leave the name without the bytes.
            self.file.get_ref().sync_data()?;
            std::fs::rename(beside(&self.path), &self.path)
        };
        write().map_err(|error| CurateError::write(&self.path, error))?;
        Ok(self.footer)
    }

    fn end_segment(&mut self) -> Result<(), CurateError> {
        self.write_block()?;
        if let Some(offset) = self.begun.take() {
            let largest = std::mem::take(&mut self.largest) as u64;
            self.footer.segments.push(Segment { offset, length: self.at - offset, largest });
        }
        Ok(())
    }

    fn write_block(&mut self) -> Result<(), CurateError> {
        if self.block.is_empty() {
            return Ok(());
        }
        let failed = |error: std::io::Error| CurateError::write(&self.path, error);
        pack(&self.block, &mut self.packed).map_err(failed)?;
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&(self.block.len() as u32).to_le_bytes());
        head[4..8].copy_from_slice(&(self.packed.len() as u32).to_le_bytes());
        head[8..].copy_from_slice(&XxHash3_64::oneshot(&self.packed).to_le_bytes());
        self.file.write_all(&head).and_then(|()| self.file.write_all(&self.packed)).map_err(failed)?;
        self.at += (HEAD + self.packed.len()) as u64;
        self.largest = self.largest.max(self.block.len());
        // A giant record must not keep its room for the rest of the file.
        if self.block.capacity() > 4 * BLOCK {
            (self.block, self.packed) = (Vec::new(), Vec::new());
        }
        self.block.clear();
        Ok(())
    }
}

/// Where a file is written before it has its name.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn length(bytes: &[u8], path: &Path) -> Result<[u8; 4], CurateError> {
    // A block holds up to 4 GiB, and a record must fit in one.
    let fits = u32::try_from(bytes.len()).ok().filter(|&length| length < 1 << 31);
    match fits {
        Some(length) => Ok(length.to_le_bytes()),
        None => Err(CurateError::write(path, format!("a record of {} bytes is too large", bytes.len()))),
    }
}

thread_local! {
    static ZSTD: RefCell<(Option<zstd::bulk::Compressor<'static>>, Option<zstd::bulk::Decompressor<'static>>)> =
        const { RefCell::new((None, None)) };
}

fn pack(raw: &[u8], packed: &mut Vec<u8>) -> std::io::Result<()> {
    ZSTD.with_borrow_mut(|(slot, _)| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(zstd::bulk::Compressor::new(LEVEL)?),
        };
        packed.clear();
        packed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        compressor.compress_to_buffer(raw, packed).map(|_| ())
    })
}

fn unpack(packed: &[u8], raw_length: usize, raw: &mut Vec<u8>) -> std::io::Result<()> {
    ZSTD.with_borrow_mut(|(_, slot)| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(zstd::bulk::Decompressor::new()?),
        };
        raw.clear();
        raw.reserve(raw_length);
        decompressor.decompress_to_buffer(packed, raw).map(|_| ())
    })
}

/// Reads the footer of a finished file.
pub(crate) fn read_footer(path: &Path) -> Result<Footer, CurateError> {
    let damaged = |problem: String| CurateError::Damaged { path: path.to_path_buf(), problem };
    let read = || -> std::io::Result<(Vec<u8>, [u8; TAIL])> {
        let mut file = File::open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let mut tail = [0; TAIL];
        let short = || std::io::Error::other("it is too short");
        file.seek(SeekFrom::Start(size.checked_sub(TAIL as u64).ok_or_else(short)?))?;
        file.read_exact(&mut tail)?;
        let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
        let start = size.checked_sub(TAIL as u64 + length).ok_or_else(short)?;
        file.seek(SeekFrom::Start(start))?;
        let mut footer = vec![0; length as usize];
        file.read_exact(&mut footer)?;
        Ok((footer, tail))
    };
    let (footer, tail) = read().map_err(|error| damaged(error.to_string()))?;
    if tail[12..] != MAGIC[..] || tail[4..12] != XxHash3_64::oneshot(&footer).to_le_bytes()[..] {
        return Err(damaged("its end is not that of a partition".to_owned()));
    }
    postcard::from_bytes(&footer).map_err(|error| damaged(error.to_string()))
}

/// Whether a finished file is there. One whose end cannot be read is none: the task is done again and writes over it.
pub(crate) fn is_whole(path: &Path) -> bool {
    path.exists() && read_footer(path).is_ok()
}

/// Reads the records of one segment in order.
pub(crate) struct Reader {
    path: PathBuf,
    file: File,
    left: u64,
    packed: Vec<u8>,
    block: Vec<u8>,
    /// Bounds of the current key and value in the block; the next record begins behind the value.
    key: (usize, usize),
    value: (usize, usize),
}

impl Reader {
    pub(crate) fn open(path: &Path, segment: Segment) -> Result<Self, CurateError> {
        let open = || -> std::io::Result<File> {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(segment.offset))?;
            Ok(file)
        };
        let damaged = |error: std::io::Error| CurateError::Damaged {
            path: path.to_path_buf(),
            problem: error.to_string(),
        };
        Ok(Self {
            path: path.to_path_buf(),
            file: open().map_err(damaged)?,
            left: segment.length,
            packed: Vec::new(),
            block: Vec::new(),
            key: (0, 0),
            value: (0, 0),
        })
    }

    /// Goes to the next record; `false` at the end.
    pub(crate) fn advance(&mut self) -> Result<bool, CurateError> {
        let mut at = self.value.1;
        if at == self.block.len() {
            if self.left == 0 {
                return Ok(false);
            }
            self.read_block()?;
            at = 0;
        }
        let bounds = || -> Option<[usize; 3]> {
            let number = |at: usize| -> Option<usize> {
                let bytes = self.block.get(at..at + 4)?;
                Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
            };
            let (key, value) = (number(at)?, number(at + 4)?);
            let end = at + 8 + key + value;
            (end <= self.block.len()).then_some([at + 8, at + 8 + key, end])
        };
        let [key, value, end] =
            bounds().ok_or_else(|| self.damaged("a record passes its block".to_owned()))?;
        (self.key, self.value) = ((key, value), (value, end));
        Ok(true)
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.block[self.key.0..self.key.1]
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.block[self.value.0..self.value.1]
    }

    /// Bytes of the file not yet read.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    fn read_block(&mut self) -> Result<(), CurateError> {
        let mut head = [0; HEAD];
        self.file.read_exact(&mut head).map_err(|error| self.damaged(error.to_string()))?;
        let raw = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let packed = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let rest = self.left.checked_sub((HEAD + packed) as u64);
        self.left = rest.ok_or_else(|| self.damaged("a block passes its segment".to_owned()))?;
        // A giant record must not keep its room for the rest of the segment.
        if self.block.capacity() > 4 * BLOCK {
            (self.block, self.packed) = (Vec::new(), Vec::new());
        }
        self.packed.resize(packed, 0);
        self.file.read_exact(&mut self.packed).map_err(|error| self.damaged(error.to_string()))?;
        if XxHash3_64::oneshot(&self.packed).to_le_bytes()[..] != head[8..] {
            return Err(self.damaged("the checksum of a block is wrong".to_owned()));
        }
        unpack(&self.packed, raw, &mut self.block).map_err(|error| self.damaged(error.to_string()))?;
        if self.block.len() != raw {
            return Err(self.damaged("a block has the wrong length".to_owned()));
        }
        Ok(())
    }

    fn damaged(&self, problem: String) -> CurateError {
        CurateError::Damaged { path: self.path.clone(), problem }
    }
}
