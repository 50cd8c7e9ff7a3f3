//! Reading: from files, folders, globs and object stores to documents.
//!
//! [`find`] lists the inputs, and [`Input::records`] reads one of them. What it yields is a document, or a part of the file
//! that is none ([`Broken`]): a damaged record is passed over and reading goes on behind it, unless [`OnError::Stop`] is asked
//! for. One record is in memory at a time, none larger than [`ReadConfig::max_record_bytes`].
//!
//! | Format | A document is |
//! |---|---|
//! | WARC, WET (`.warc`, `.wet`, `.wat`) | a response with status 200, a resource or a conversion, if it is HTML or text |
//! | JSON Lines (`.jsonl`, `.ndjson`, `.json`) | a line; [`Fields`] names its fields |
//! | Parquet (`.parquet`) | a row; [`Fields`] names its columns |
//! | HTML (`.html`, `.htm`, `.xhtml`) | the file |
//! | text, which is anything else | the file, if it is UTF-8 |
//!
//! `.gz` and `.zst` may follow; what counts is how the file begins. The text of HTML is its source until
//! [`Extraction`](crate::Extraction) has been over it.
//!
//! # Ids
//! A document's id is the same in every run, on every machine and in every compression of the file: its `WARC-Record-ID`, or
//! its field for ids; else `NAME` for a whole file and `NAME#POSITION` for a part of one, with the file's name from the input on
//! and the decompressed bytes (rows, for Parquet) before it. A `#` in a name is written `%23`, and a `%` `%25`.

mod charset;
mod http;
mod lines;
mod page;
#[cfg(test)]
mod pieces_tests;
#[cfg(any(feature = "cloud", test))]
mod remote;
mod rows;
#[cfg(test)]
mod rows_tests;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod warc;

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use http::Response;
pub use store::{Input, Listed, find};
pub(crate) use store::{WHOLE, find_all};
pub use warc::{Headers, WarcRecord};

use crate::{CurateError, Document};
use stream::Stream;
use warc::{Flaw, WarcReader};

/// The key of [`Document::meta`] for the media type of the text.
pub const CONTENT_TYPE: &str = "content_type";

pub(crate) const HTML: &str = "text/html";

/// How to read.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ReadConfig {
    /// The format of all inputs; from their names when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// What to do about a record that cannot be read.
    pub on_error: OnError,
    /// A larger record is broken, in bytes.
    pub max_record_bytes: u64,
    /// A WARC record whose block does not have its SHA-1 is broken. Some writers state wrong ones for whole records.
    pub check_digests: bool,
    /// The names of fields in JSON Lines and of columns in Parquet.
    pub fields: Fields,
}

impl Default for ReadConfig {
    fn default() -> Self {
        Self {
            format: None,
            on_error: OnError::Skip,
            max_record_bytes: 64 << 20,
            check_digests: false,
            fields: Fields::default(),
        }
    }
}

/// Largest record that can be allowed, in bytes.
const MAX_RECORD_LIMIT: u64 = 1 << 30;

impl ReadConfig {
    /// Whether the input of this name is one document.
    pub(crate) fn is_whole(&self, name: &str) -> bool {
        self.format.unwrap_or_else(|| Format::of_name(name)).is_whole()
    }

    /// Whether the input of this name can be read from the middle: lines, if they are not compressed, and groups of rows.
    pub(crate) fn has_pieces(&self, name: &str) -> bool {
        match self.format.unwrap_or_else(|| Format::of_name(name)) {
            Format::Jsonl => without_compression(&name.to_ascii_lowercase()).is_none(),
            Format::Parquet => true,
            Format::Warc | Format::Html | Format::Text => false,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`CurateError::OutOfRange`] with the key, the value found and the allowed range.
    pub fn validate(&self) -> Result<(), CurateError> {
        if (1..=MAX_RECORD_LIMIT).contains(&self.max_record_bytes) {
            return Ok(());
        }
        Err(CurateError::OutOfRange {
            key: "read.max_record_bytes",
            found: self.max_record_bytes.to_string(),
            allowed: format!("from 1 to {MAX_RECORD_LIMIT}"),
        })
    }
}

/// What to do about a record that cannot be read.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Pass over it.
    #[default]
    Skip,
    /// Read nothing behind it.
    Stop,
}

/// How documents lie in a file.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// WARC, WET or WAT.
    Warc,
    /// A web page.
    Html,
    /// A JSON object a line.
    Jsonl,
    /// Rows.
    Parquet,
    /// Plain text.
    Text,
}

impl Format {
    /// The format that a name stands for.
    pub fn of_name(name: &str) -> Format {
        let name = name.to_ascii_lowercase();
        match without_compression(&name)
            .unwrap_or(&name)
            .rsplit_once('.')
            .map_or("", |(_, extension)| extension)
        {
            "warc" | "wet" | "wat" | "arc" => Format::Warc,
            "html" | "htm" | "xhtml" => Format::Html,
            "jsonl" | "ndjson" | "json" => Format::Jsonl,
            "parquet" => Format::Parquet,
            _ => Format::Text,
        }
    }

    /// What it is called in words.
    fn title(self) -> &'static str {
        match self {
            Format::Warc => "WARC",
            Format::Html => "HTML",
            Format::Jsonl => "JSON Lines",
            Format::Parquet => "Parquet",
            Format::Text => "text",
        }
    }

    /// Whether a file of it is one document.
    fn is_whole(self) -> bool {
        matches!(self, Format::Html | Format::Text)
    }

    /// The format of bytes without a name, from how they begin.
    fn of_content(bytes: &[u8]) -> Format {
        let start = &bytes[..bytes.len().min(1024)];
        let start =
            String::from_utf8_lossy(start).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
        if start.starts_with("warc/") {
            Format::Warc
        } else if bytes.starts_with(b"PAR1") {
            Format::Parquet
        } else if start.starts_with("{\"") {
            Format::Jsonl
        } else if start.starts_with('<') {
            Format::Html
        } else {
            Format::Text
        }
    }
}

/// A name without the ending of compressed files, if it has one.
fn without_compression(name: &str) -> Option<&str> {
    [".gz", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end))
}

/// Names of fields in JSON Lines, and of columns in Parquet. Only the text must be there; what is named nowhere here goes
/// into [`Document::meta`].
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// The text: a string.
    pub text: String,
    /// The id: a string or a number.
    pub id: String,
    /// The URL.
    pub url: String,
    /// The date.
    pub date: String,
    /// What it came with.
    pub source: String,
    /// Its language.
    pub lang: String,
    /// An object whose entries go into [`Document::meta`].
    pub metadata: String,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            text: "text".into(),
            id: "id".into(),
            url: "url".into(),
            date: "date".into(),
            source: "source".into(),
            lang: "lang".into(),
            metadata: "metadata".into(),
        }
    }
}

impl Fields {
    /// Whether the field has a place of its own.
    fn is_named(&self, name: &str) -> bool {
        [&self.text, &self.id, &self.url, &self.date, &self.source, &self.lang]
            .into_iter()
            .any(|own| own == name)
    }

    /// Puts the value of the field `name` where it belongs in `document`; what has no place of its own becomes an entry of
    /// [`Document::meta`] if there is `room`.
    fn put(&self, document: &mut Document, room: &mut Room, name: &str, value: String) {
        let places = [
            (&self.text, &mut document.text),
            (&self.id, &mut document.id),
            (&self.url, &mut document.url),
            (&self.date, &mut document.date),
            (&self.source, &mut document.source),
        ];
        // A field may be named for several.
        let mut has_place = false;
        for (_, place) in places.into_iter().filter(|(field, _)| *field == name) {
            place.clone_from(&value);
            has_place = true;
        }
        if *name == self.lang {
            document.lang = language_of(&value);
        } else if !has_place {
            room.keep(document, name, value);
        }
    }
}

/// Most bytes of the name of a language that is none of ours. Longer ones are no names.
const LANGUAGE_BYTES: usize = 35;

/// A language as a source writes it, in its usual code; empty where it is none.
fn language_of(value: &str) -> String {
    let language = crate::language::normalise(value);
    if language.len() > LANGUAGE_BYTES { String::new() } else { language.into_owned() }
}

/// Most bytes of names and values in [`Document::meta`] of one record.
const META_BYTES: usize = 1 << 20;

/// The key of [`Document::meta`] for the number of entries that had no room there.
const LEFT_OUT: &str = "metadata.left_out";

/// What room is left in the metadata of a record.
struct Room {
    bytes: usize,
    left_out: u64,
}

impl Room {
    fn new() -> Room {
        Room { bytes: META_BYTES, left_out: 0 }
    }

    /// The entries of an object in JSON. There are none where the text is something else, or larger than the room.
    fn entries(&self, text: &str) -> Option<BTreeMap<String, Value>> {
        (text.len() <= self.bytes).then(|| serde_json::from_str(text).ok()).flatten()
    }

    fn keep_all(&mut self, document: &mut Document, entries: BTreeMap<String, Value>) {
        for (name, value) in entries.into_iter().filter(|(_, value)| !value.is_null()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.keep(document, &name, value);
        }
    }

    /// Keeps an entry, or counts it where it is too large.
    fn keep(&mut self, document: &mut Document, name: &str, value: String) {
        match self.bytes.checked_sub(name.len() + value.len()) {
            Some(left) => {
                self.bytes = left;
                document.meta.insert(name.to_owned(), value);
            }
            None => {
                self.left_out += 1;
                document.meta.insert(LEFT_OUT.to_owned(), self.left_out.to_string());
            }
        }
    }
}

/// Where a record is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Place {
    /// Byte of the file as it is stored at which the record begins, or the gzip member or zstd frame that holds its start.
    pub offset: u64,
    /// Decompressed bytes before it; rows, for Parquet.
    pub position: u64,
    /// Its decompressed bytes.
    pub length: u64,
}

/// A document, and where it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The document.
    pub document: Document,
    /// Where it was.
    pub place: Place,
}

/// A part of an input that is no document though it should be one.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{file}`, byte {}: {reason}", place.offset)]
pub struct Broken {
    /// The input.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// What is wrong.
    pub reason: String,
}

/// What a reader finds: a document, or something that is meant to be none.
enum Found {
    Document(Box<Record>),
    Passed(&'static str),
}

type Reader = Box<dyn Iterator<Item = Result<Found, Flaw>> + Send>;

/// The documents of an input, in its order.
pub struct Records {
    reader: Option<Reader>,
    file: String,
    on_error: OnError,
    is_whole: bool,
    passed: BTreeMap<&'static str, u64>,
}

impl Records {
    /// Reads an input; what cannot be opened is one broken part.
    fn open(input: &Input, range: Range<u64>, config: &ReadConfig) -> Records {
        let (reader, is_whole) = match reader(input, range, config) {
            Ok((reader, format)) => (reader, format.is_whole()),
            Err(flaw) => (Box::new(std::iter::once(Err(flaw))) as Reader, true),
        };
        let file = input.name().to_owned();
        Records { reader: Some(reader), file, on_error: config.on_error, is_whole, passed: BTreeMap::new() }
    }

    /// Whether the input is one document, and not a row of them.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// How many records so far were passed over because they are meant to be no documents, and what they are.
    pub fn passed(&self) -> &BTreeMap<&'static str, u64> {
        &self.passed
    }
}

impl Iterator for Records {
    type Item = Result<Record, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.reader.as_mut()?.next()? {
                Ok(Found::Document(record)) => return Some(Ok(*record)),
                Ok(Found::Passed(what)) => *self.passed.entry(what).or_default() += 1,
                Err(Flaw { place, reason }) => {
                    if self.on_error == OnError::Stop {
                        self.reader = None;
                    }
                    return Some(Err(Broken { file: self.file.clone(), place, reason }));
                }
            }
        }
    }
}

fn begins_like(stream: &mut Stream) -> Format {
    stream.look_ahead(1024);
    Format::of_content(stream.window())
}

fn reader(input: &Input, range: Range<u64>, config: &ReadConfig) -> Result<(Reader, Format), Flaw> {
    let unreadable = |reason: String| Flaw { place: Place::default(), reason };
    let rows = || {
        rows::open(input, range.clone(), config).map(|reader| (reader, Format::Parquet)).map_err(unreadable)
    };
    let format = config.format.or_else(|| (!input.nameless()).then(|| Format::of_name(input.name())));
    if format == Some(Format::Parquet) {
        return rows();
    }
    let opened = input.open().map_err(|error| unreadable(format!("cannot be opened: {error}")))?;
    let mut stream = Stream::new(opened).map_err(|damage| unreadable(damage.reason))?;
    let format = match config.format {
        // Anything can be read as HTML: what is no page would become nonsense.
        Some(Format::Html) => match begins_like(&mut stream) {
            found if found.is_whole() => Format::Html,
            found => {
                return Err(unreadable(format!(
                    "begins like {}, but its format is given as HTML; leave `format` out, or name only pages",
                    found.title()
                )));
            }
        },
        _ => format.unwrap_or_else(|| begins_like(&mut stream)),
    };
    let (name, limit) = (input.name().to_owned(), config.max_record_bytes);
    let reader: Reader = match format {
        Format::Warc => {
            let records = WarcReader::new(stream, limit, config.check_digests);
            Box::new(records.map(move |record| page::document(record?, &name, limit)))
        }
        Format::Jsonl => Box::new(lines::Lines::new(stream, range, name, config)),
        Format::Html | Format::Text => {
            Box::new(std::iter::once_with(move || page::whole(stream, &name, limit, format == Format::Html)))
        }
        Format::Parquet => return rows(),
    };
    Ok((reader, format))
}

/// Bytes without their compression by gzip or zstd, which the first of them tell.
///
/// # Errors
/// Compressed bytes that are damaged.
pub(crate) fn unpacked(bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut out)?;
    } else if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        zstd::Decoder::new(&bytes[..])?.read_to_end(&mut out)?;
    } else {
        return Ok(bytes);
    }
    Ok(out)
}

/// The id of a part of a file that brings none.
pub(crate) fn id_at(name: &str, position: u64) -> String {
    format!("{}#{position}", id_of(name))
}

/// The id of a file that is one document: its name with `%23` for `#` and `%25` for `%`, so that no name looks like a part of
/// another file.
pub(crate) fn id_of(name: &str) -> String {
    name.replace('%', "%25").replace('#', "%23")
}
