//! The files of an inventory as a plan's source.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::inventory::SourceFile;
use crate::item::{Item, Value};
use crate::plan::{Broken, Emit, Source};
use crate::rules::{FileLimits, Subject, domain, judge_file, normalise};
use crate::version::Version;
use crate::{CurateError, Document, Dropped};

/// The step, as reports call it, that drops what is no text.
pub(crate) const FILES: &str = "files";

/// Bytes of a split, about.
const SPLIT_BYTES: u64 = 16 << 20;

/// Files in order, cut into splits of about [`SPLIT_BYTES`], from their sizes.
pub(crate) fn splits(sizes: impl ExactSizeIterator<Item = u64>) -> Vec<Range<usize>> {
    let count = sizes.len();
    let (mut splits, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, size) in sizes.enumerate() {
        bytes += size;
        if bytes >= SPLIT_BYTES || at + 1 == count {
            splits.push(start..at + 1);
            (start, bytes) = (at + 1, 0);
        }
    }
    splits
}

/// Reads the files, and drops those that are no text, too large, or of an older version of their crate.
pub(crate) struct FileSource {
    listed: Files,
    /// The newest version of each crate in the registry.
    newest: BTreeMap<String, Version>,
    splits: Vec<Range<usize>>,
}

/// A [`FileSource`] as data.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Files {
    pub(crate) files: Vec<SourceFile>,
    pub(crate) limits: FileLimits,
    /// What tells this input from another.
    pub(crate) fingerprint: String,
}

impl FileSource {
    pub(crate) fn new(listed: Files) -> Self {
        let mut newest: BTreeMap<String, Version> = BTreeMap::new();
        for file in &listed.files {
            if let Some(version) = &file.registry_version
                && newest.get(&file.source).is_none_or(|best| best < version)
            {
                newest.insert(file.source.clone(), version.clone());
            }
        }
        let splits = splits(listed.files.iter().map(|file| file.bytes));
        Self { listed, newest, splits }
    }

    /// Reads one file and asks the rules.
    fn examine(&self, file: &SourceFile) -> Result<Item, CurateError> {
        let document = Document {
            id: file.id(),
            url: file.url.clone(),
            source: file.source.clone(),
            meta: file
                .registry_version
                .iter()
                .map(|version| (crate::dedup::VERSION.to_owned(), version.to_string()))
                .collect(),
            ..Document::default()
        };
        let item = Item { text_bytes: file.bytes, ..Item::new(document, file.bytes) };
        let mut item = item.with_excerpt(self.listed.limits.excerpt_bytes);
        if let Some(version) = &file.registry_version
            && let Some(newer) = self.newest.get(&file.source).filter(|newest| *newest > version)
        {
            item.drop_for(FILES, Dropped::new("older_version", format!("`{newer}` is present")));
            return Ok(item);
        }
        let readable = file.problem.is_none() && file.bytes <= self.listed.limits.max_document_bytes;
        let bytes = if readable { read_unchanged(file)? } else { Vec::new() };
        let subject = Subject { problem: file.problem.as_deref(), size: file.bytes, bytes: &bytes };
        if let Some(dropped) = judge_file(&subject, &self.listed.limits) {
            item.drop_for(FILES, dropped);
            return Ok(item);
        }
        let text = normalise(std::str::from_utf8(&bytes).unwrap_or_default());
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        domain(&name, &text).clone_into(&mut item.document.domain);
        item.document.text = text.into_owned();
        item.edited(FILES);
        Ok(item)
    }
}

impl Source for FileSource {
    fn fingerprint(&self) -> String {
        self.listed.fingerprint.clone()
    }

    fn splits(&self) -> usize {
        self.splits.len()
    }

    fn bytes(&self, split: usize) -> u64 {
        self.listed.files[self.splits[split].clone()].iter().map(|file| file.bytes).sum()
    }

    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        _broken: &mut Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        for file in &self.listed.files[self.splits[split].clone()] {
            let item = self.examine(file)?;
            let key = item.document.id.clone();
            emit(key.as_bytes(), &Value::Item(Box::new(item)).encode()?)?;
            tick(file.bytes);
        }
        Ok(())
    }
}

/// Reads a file and makes sure that it is the one of the inventory.
fn read_unchanged(file: &SourceFile) -> Result<Vec<u8>, CurateError> {
    let changed = |found: String| CurateError::Changed { path: file.path.clone(), found };
    let mut bytes = Vec::new();
    File::open(&file.path)
        // One byte more than expected shows that it grew, without reading on for ever.
        .and_then(|opened| opened.take(file.bytes.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|error| changed(error.to_string()))?;
    if bytes.len() as u64 != file.bytes {
        return Err(changed(format!("it had {} bytes and no longer has", file.bytes)));
    }
    if *blake3::hash(&bytes).as_bytes() != file.hash {
        return Err(changed("its content is different".to_owned()));
    }
    Ok(bytes)
}
