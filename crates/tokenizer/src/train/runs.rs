//! Word counts on disk: files of (length, word, count), sorted by word. They have no names, so that none is left behind.

use super::counts::WordList;
use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// This many are merged at once.
const MERGED_AT_ONCE: usize = 32;

/// A sorted file of word counts.
pub(super) struct Run {
    file: File,
    folder: PathBuf,
    pub(super) bytes: u64,
}

/// Writes a run.
struct Writer {
    file: BufWriter<File>,
    folder: PathBuf,
    bytes: u64,
}

impl Run {
    /// Writes the words of a list into the folder.
    pub(super) fn write(list: &WordList, folder: &Path) -> Result<Run> {
        let mut writer = Writer::new(folder)?;
        for index in list.by_bytes() {
            let (word, count) = list.get(index as usize);
            writer.push(word, count)?;
        }
        writer.finish()
    }
}

impl Writer {
    fn new(folder: &Path) -> Result<Writer> {
        let file = tempfile::tempfile_in(folder).map_err(|source| failed("write into", folder, source))?;
        Ok(Writer { file: BufWriter::with_capacity(1 << 18, file), folder: folder.into(), bytes: 0 })
    }

    fn push(&mut self, word: &[u8], count: u64) -> Result<()> {
        let written = write_number(&mut self.file, word.len() as u64)
            .and_then(|a| self.file.write_all(word).map(|()| a + word.len() as u64))
            .and_then(|a| write_number(&mut self.file, count).map(|b| a + b));
        self.bytes += written.map_err(|source| failed("write into", &self.folder, source))?;
        Ok(())
    }

    fn finish(self) -> Result<Run> {
        let Writer { file, folder, bytes } = self;
        let ended = file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let rewound = ended.and_then(|mut file| file.rewind().map(|()| file));
        match rewound {
            Ok(file) => Ok(Run { file, folder, bytes }),
            Err(source) => Err(failed("write into", &folder, source)),
        }
    }
}

/// Runs that are merged as they come, for a system lets a process have about a thousand files open: as many of a level as are
/// merged at once become one of the next. So each word is written again once a level, and there are two levels or three.
#[derive(Default)]
pub(super) struct Runs {
    levels: Vec<Vec<Run>>,
    /// How many were added, and their bytes.
    pub(super) added: u64,
    pub(super) bytes: u64,
}

impl Runs {
    pub(super) fn add(&mut self, mut run: Run) -> Result<()> {
        self.added += 1;
        self.bytes += run.bytes;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let runs = &mut self.levels[level];
            runs.push(run);
            if runs.len() < MERGED_AT_ONCE {
                break;
            }
            run = merged(std::mem::take(runs))?;
        }
        Ok(())
    }

    /// How many files are open.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.levels.iter().map(Vec::len).sum()
    }

    /// Calls `each` with every word, in order, and the sum of its counts.
    pub(super) fn merge(self, each: &mut dyn FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
        let mut runs: Vec<Run> = self.levels.into_iter().flatten().collect();
        while runs.len() > MERGED_AT_ONCE {
            let rest = runs.split_off(MERGED_AT_ONCE);
            let one = merged(runs)?;
            runs = rest;
            runs.push(one);
        }
        merge(runs, each)
    }
}

/// One run of several.
fn merged(runs: Vec<Run>) -> Result<Run> {
    let mut writer = Writer::new(&runs[0].folder)?;
    merge(runs, &mut |word, count| writer.push(word, count))?;
    writer.finish()
}

fn merge(runs: Vec<Run>, each: &mut dyn FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
    let mut readers: Vec<Reader> = runs.into_iter().map(Reader::new).collect();
    let mut queue = BinaryHeap::new();
    for (place, reader) in readers.iter_mut().enumerate() {
        if let Some((word, count)) = reader.next()? {
            queue.push(Reverse((word, place, count)));
        }
    }
    let mut current: Option<(Vec<u8>, u64)> = None;
    while let Some(Reverse((word, place, count))) = queue.pop() {
        if let Some((next, count)) = readers[place].next()? {
            queue.push(Reverse((next, place, count)));
        }
        match &mut current {
            Some((same, sum)) if *same == word => *sum += count,
            _ => {
                if let Some((word, sum)) = current.replace((word, count)) {
                    each(&word, sum)?;
                }
            }
        }
    }
    current.map_or(Ok(()), |(word, sum)| each(&word, sum))
}

struct Reader {
    file: BufReader<File>,
    folder: PathBuf,
    left: u64,
}

impl Reader {
    fn new(run: Run) -> Reader {
        Reader { file: BufReader::with_capacity(1 << 16, run.file), folder: run.folder, left: run.bytes }
    }

    fn next(&mut self) -> Result<Option<(Vec<u8>, u64)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let read = (|| {
            let (len, a) = read_number(&mut self.file)?;
            let mut word = vec![0; len as usize];
            self.file.read_exact(&mut word)?;
            let (count, b) = read_number(&mut self.file)?;
            Ok(((word, count), a + len + b))
        })();
        let (item, read) = read.map_err(|source| failed("read from", &self.folder, source))?;
        self.left = self.left.saturating_sub(read);
        Ok(Some(item))
    }
}

fn failed(action: &'static str, folder: &Path, source: std::io::Error) -> Error {
    Error::Io { action, path: folder.into(), source }
}

/// Seven bits a byte, the least first, the highest bit set on all but the last; how many bytes.
fn write_number(to: &mut impl Write, mut number: u64) -> std::io::Result<u64> {
    let (mut bytes, mut len) = ([0; 10], 0);
    loop {
        bytes[len] = (number & 0x7F) as u8 | if number > 0x7F { 0x80 } else { 0 };
        (len, number) = (len + 1, number >> 7);
        if number == 0 {
            break;
        }
    }
    to.write_all(&bytes[..len]).map(|()| len as u64)
}

fn read_number(from: &mut impl Read) -> std::io::Result<(u64, u64)> {
    let (mut number, mut len) = (0, 0);
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        number |= u64::from(byte[0] & 0x7F) << (7 * len);
        len += 1;
        if byte[0] < 0x80 || len == 10 {
            return Ok((number, len));
        }
    }
}
