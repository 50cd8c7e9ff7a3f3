//! Sorting within a memory cap: runs in memory, merged from disk.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use super::file::{Reader, Segment, Writer};
use crate::CurateError;
use crate::plan::{BrokenPart, Emit, Reduce, Values};

/// Collects records of all partitions and writes them as sorted runs: for each run one segment a partition, in order.
pub(crate) struct Sorter {
    partitions: u32,
    budget: usize,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    writer: Writer,
}

#[derive(Clone, Copy)]
struct Entry {
    /// First bytes of the key, big endian: most comparisons end here.
    prefix: u64,
    partition: u32,
    key: u32,
    value: u32,
    at: usize,
}

impl Sorter {
    /// Holds about `budget` bytes before it writes a run.
    pub(crate) fn new(path: &Path, partitions: u32, budget: usize) -> Result<Self, CurateError> {
        let writer = Writer::create(path)?;
        Ok(Self { partitions, budget, bytes: Vec::new(), entries: Vec::new(), writer })
    }

    pub(crate) fn push(&mut self, partition: u32, key: &[u8], value: &[u8]) -> Result<(), CurateError> {
        // A growing vector holds its old and its new room for a moment: half the budget may be filled.
        let filled = self.bytes.len() + self.entries.len() * size_of::<Entry>();
        if !self.entries.is_empty() && filled + key.len() + value.len() > self.budget / 2 {
            self.spill()?;
        }
        let mut prefix = [0; 8];
        let common = key.len().min(8);
        prefix[..common].copy_from_slice(&key[..common]);
        self.entries.push(Entry {
            prefix: u64::from_be_bytes(prefix),
            partition,
            key: key.len() as u32,
            value: value.len() as u32,
            at: self.bytes.len(),
        });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    fn spill(&mut self) -> Result<(), CurateError> {
        let bytes = &self.bytes;
        let parts = |entry: &Entry| {
            let (key, value) = (entry.key as usize, entry.value as usize);
            bytes[entry.at..entry.at + key + value].split_at(key)
        };
        self.entries.sort_unstable_by(|a, b| {
            let coarse = a.partition.cmp(&b.partition).then(a.prefix.cmp(&b.prefix));
            coarse.then_with(|| parts(a).cmp(&parts(b)))
        });
        let mut rest = self.entries.as_slice();
        for partition in 0..self.partitions {
            self.writer.begin_segment()?;
            let (own, later) = rest.split_at(rest.partition_point(|entry| entry.partition <= partition));
            for entry in own {
                let (key, value) = parts(entry);
                self.writer.push(key, value)?;
            }
            rest = later;
        }
        self.entries.clear();
        self.bytes.clear();
        if self.bytes.capacity() > self.budget {
            self.bytes = Vec::new();
        }
        Ok(())
    }

    pub(crate) fn broken(&mut self, what: BrokenPart) {
        self.writer.broken(what);
    }

    pub(crate) fn finish(mut self) -> Result<(), CurateError> {
        if !self.entries.is_empty() {
            self.spill()?;
        }
        self.writer.finish().map(|_| ())
    }
}

/// Sorted segments read as one.
pub(crate) struct Merge {
    readers: Vec<Reader>,
    /// Indices of readers that have a record, as a heap with the least record first.
    heap: Vec<usize>,
}

impl Merge {
    /// Opens segments. Too many for `budget` are merged into a file at `scratch` first, some at a time.
    pub(crate) fn open(
        mut segments: Vec<(PathBuf, Segment)>,
        budget: usize,
        scratch: &Path,
    ) -> Result<Self, CurateError> {
        segments.retain(|(_, segment)| segment.length > 0);
        // Large records come last, so that they are merged with few others and small ones with many.
        segments.sort_by_key(|(_, segment)| segment.largest);
        let mut round = 0;
        while fan_in(&segments, budget) < segments.len() {
            let (mut merged, mut rest) = (Vec::new(), segments.as_slice());
            while !rest.is_empty() {
                let (part, later) = rest.split_at(fan_in(rest, budget));
                let path = scratch.with_extension(format!("merge-{round}-{}", merged.len()));
                let mut merge = Self::over(part)?;
                let mut writer = Writer::create(&path)?;
                writer.begin_segment()?;
                while let Some((key, value)) = merge.peek() {
                    writer.push(key, value)?;
                    merge.advance()?;
                }
                let footer = writer.finish()?;
                merged.extend(footer.segments.into_iter().map(|segment| (path.clone(), segment)));
                rest = later;
            }
            if round > 0 {
                remove_scratch(&segments);
            }
            (segments, round) = (merged, round + 1);
        }
        let merge = Self::over(&segments)?;
        if round > 0 {
            // Open files stay readable where their names are gone; elsewhere they go with the stage.
            remove_scratch(&segments);
        }
        Ok(merge)
    }

    fn over(segments: &[(PathBuf, Segment)]) -> Result<Self, CurateError> {
        let mut readers = Vec::with_capacity(segments.len());
        for (path, segment) in segments {
            let mut reader = Reader::open(path, *segment)?;
            if reader.advance()? {
                readers.push(reader);
            }
        }
        let mut merge = Self { heap: (0..readers.len()).collect(), readers };
        for at in (0..merge.heap.len() / 2).rev() {
            merge.sink(at);
        }
        Ok(merge)
    }

    /// The least record.
    pub(crate) fn peek(&self) -> Option<(&[u8], &[u8])> {
        let reader = &self.readers[*self.heap.first()?];
        Some((reader.key(), reader.value()))
    }

    pub(crate) fn advance(&mut self) -> Result<(), CurateError> {
        let Some(&first) = self.heap.first() else { return Ok(()) };
        if !self.readers[first].advance()? {
            self.heap.swap_remove(0);
        }
        self.sink(0);
        Ok(())
    }

    /// Packed bytes that are still to be read.
    pub(crate) fn left(&self) -> u64 {
        self.readers.iter().map(Reader::left).sum()
    }

    fn less(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.readers[self.heap[a]], &self.readers[self.heap[b]]);
        a.key().cmp(b.key()).then_with(|| a.value().cmp(b.value())) == Ordering::Less
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.less(child, least) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }
}

/// Files open at once in a merge, at most.
const MAX_FAN_IN: usize = 64;

/// How many of the first segments can be read at once: as many as `budget` holds the largest blocks of, but two at the least,
/// with which a merge gets ahead.
pub(super) fn fan_in(segments: &[(PathBuf, Segment)], budget: usize) -> usize {
    let mut held = 0_usize;
    let fits = segments.iter().take(MAX_FAN_IN).take_while(|(_, segment)| {
        held = held.saturating_add(segment.memory());
        held <= budget
    });
    fits.count().max(2).min(segments.len())
}

fn remove_scratch(segments: &[(PathBuf, Segment)]) {
    for (path, _) in segments {
        // What stays is removed with the stage's folder.
        let _ = std::fs::remove_file(path);
    }
}

/// Hands each key of a merge to a reduce; `tick` is told the packed bytes that are left.
pub(crate) fn reduce_all(
    merge: &mut Merge,
    reduce: &dyn Reduce,
    emit: &mut Emit,
    tick: &mut dyn FnMut(u64),
) -> Result<(), CurateError> {
    let mut key = Vec::new();
    while let Some((found, _)) = merge.peek() {
        key.clear();
        key.extend_from_slice(found);
        let mut values = Group { merge, key: &key, handed_out: false };
        reduce.reduce(&key, &mut values, emit)?;
        while values.next()?.is_some() {}
        tick(merge.left());
    }
    Ok(())
}

struct Group<'a> {
    merge: &'a mut Merge,
    key: &'a [u8],
    handed_out: bool,
}

impl Values for Group<'_> {
    fn next(&mut self) -> Result<Option<&[u8]>, CurateError> {
        if self.handed_out {
            self.merge.advance()?;
        }
        self.handed_out = false;
        let more = self.merge.peek().is_some_and(|(key, _)| key == self.key);
        self.handed_out = more;
        Ok(if more { self.merge.peek().map(|(_, value)| value) } else { None })
    }
}
