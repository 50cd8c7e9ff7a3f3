//! JSON Lines.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::store::WHOLE;
use super::stream::Stream;
use super::warc::Flaw;
use super::{Fields, Found, Place, ReadConfig, Record, Room, id_at};
use crate::Document;

/// The documents of the lines that begin in a range of a file.
pub(super) struct Lines {
    stream: Stream,
    /// Where the range ends.
    end: u64,
    /// Whether a line that begins before the range may reach into it.
    inside: bool,
    name: String,
    fields: Fields,
    limit: u64,
    ended: bool,
    /// The records without a text since the last that was anything else.
    textless: Option<Textless>,
    /// Whether anything but records without a text was found.
    has_others: bool,
    /// What came behind records without a text.
    held: Option<Result<Found, Flaw>>,
}

/// Records in a row that have no text. They are one part of the file: where the name of the field is wrong, that is all of it.
struct Textless {
    place: Place,
    count: u64,
    /// Names of fields of the first.
    names: BTreeSet<String>,
}

impl Lines {
    /// Of a compressed file, the range from its beginning has all lines and others none.
    pub(super) fn new(mut stream: Stream, range: Range<u64>, name: String, config: &ReadConfig) -> Lines {
        // A line begins at the start if the byte before it ends another.
        let before = range.start.saturating_sub(1);
        let (starts, ends) = (stream.start_at(before), stream.left().is_some());
        Lines {
            stream,
            end: if ends { range.end } else { u64::MAX },
            inside: range.start > 0,
            name,
            fields: config.fields.clone(),
            limit: config.max_record_bytes,
            ended: !starts,
            textless: None,
            // Of others than those of the range nothing is known.
            has_others: range != WHOLE,
            held: None,
        }
    }

    /// Passes over what is left of a line that begins before the range.
    fn pass_rest(&mut self) -> Result<(), Flaw> {
        loop {
            let window = self.stream.window();
            let end = window.iter().position(|&byte| byte == b'\n');
            let count = end.map_or(window.len(), |end| end + 1);
            self.stream.consume(count);
            if end.is_some() || self.stream.position() >= self.end {
                return Ok(());
            }
            match self.stream.more() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(damage) => {
                    self.ended = damage.fatal;
                    let place = Place { offset: damage.offset, position: self.stream.position(), length: 0 };
                    return Err(Flaw { place, reason: damage.reason });
                }
            }
        }
    }

    /// Ends the row of records without a text.
    fn end_textless(&mut self, is_end: bool) -> Option<Flaw> {
        let Textless { place, count, names } = self.textless.take()?;
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let (which, whose) = match count {
            1 => ("has no string".to_owned(), "its fields"),
            _ if is_end && !self.has_others => {
                (format!("none of its {count} records has a string"), "the fields of the first")
            }
            _ => (format!("{count} records in a row have no string"), "the fields of the first"),
        };
        let reason =
            format!("{which} in the field `{}` (`read.fields.text`); {whose} are {names}", self.fields.text);
        Some(Flaw { place, reason })
    }

    /// The next line, its end included, up to the limit; nothing at the end of the file.
    fn line(&mut self) -> Result<Option<usize>, Flaw> {
        let mut seen = 0;
        loop {
            let window = self.stream.window();
            let end = window[seen..].iter().position(|&byte| byte == b'\n').map(|end| seen + end + 1);
            seen = end.unwrap_or(window.len());
            if seen as u64 > self.limit {
                return Err(self.too_long());
            }
            if end.is_some() {
                return Ok(end);
            }
            match self.stream.more() {
                Ok(true) => {}
                Ok(false) => {
                    self.ended = true;
                    return Ok((seen > 0).then_some(seen));
                }
                Err(damage) => {
                    self.ended |= damage.fatal;
                    let place = Place {
                        offset: damage.offset,
                        position: self.stream.position(),
                        length: seen as u64,
                    };
                    self.stream.discard();
                    return Err(Flaw { place, reason: damage.reason });
                }
            }
        }
    }

    /// Passes over the rest of a line that is too long to hold.
    fn too_long(&mut self) -> Flaw {
        let start = Place { offset: self.stream.offset(), position: self.stream.position(), length: 0 };
        loop {
            let window = self.stream.window();
            let end = window.iter().position(|&byte| byte == b'\n');
            let count = end.map_or(window.len(), |end| end + 1);
            self.stream.consume(count);
            // Damage shows again when reading goes on.
            if end.is_some() || !matches!(self.stream.more(), Ok(true)) {
                break;
            }
        }
        let length = self.stream.position() - start.position;
        let reason = format!("a line of {length} bytes, more than the {} allowed", self.limit);
        Flaw { place: Place { length, ..start }, reason }
    }

    fn document(&self, line: &[u8], position: u64) -> Result<Document, NoDocument> {
        let no_json = |error: serde_json::Error| NoDocument::Flawed(format!("is no JSON: {error}"));
        if line.first() != Some(&b'{') {
            serde_json::from_slice::<IgnoredAny>(line).map_err(no_json)?;
            return Err(NoDocument::Flawed("is JSON, but no object".to_owned()));
        }
        let mut document = Document { source: self.name.clone(), ..Document::default() };
        let object = Object { fields: &self.fields, document: &mut document };
        let mut json = serde_json::Deserializer::from_slice(line);
        let names =
            object.deserialize(&mut json).and_then(|names| json.end().map(|()| names)).map_err(no_json)?;
        if let Some(names) = names {
            return Err(NoDocument::Textless(names));
        }
        if document.id.is_empty() {
            document.id = id_at(&self.name, position);
        }
        Ok(document)
    }

    /// The next line that is not blank and either has a text or is no record at all.
    fn found(&mut self) -> Option<Result<Found, Flaw>> {
        loop {
            if std::mem::take(&mut self.inside)
                && !self.ended
                && let Err(flaw) = self.pass_rest()
            {
                return Some(Err(flaw));
            }
            if self.ended || self.stream.position() >= self.end {
                return None;
            }
            let length = match self.line() {
                Ok(length) => length?,
                Err(flaw) => return Some(Err(flaw)),
            };
            let place = Place {
                offset: self.stream.offset(),
                position: self.stream.position(),
                length: length as u64,
            };
            let line = &self.stream.window()[..length];
            let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii();
            let document = (!line.is_empty()).then(|| self.document(line, place.position));
            self.stream.consume(length);
            match document {
                None => {}
                Some(Ok(document)) => return Some(Ok(Found::Document(Box::new(Record { document, place })))),
                Some(Err(NoDocument::Flawed(reason))) => return Some(Err(Flaw { place, reason })),
                Some(Err(NoDocument::Textless(names))) => {
                    let textless = self.textless.get_or_insert(Textless { place, count: 0, names });
                    textless.count += 1;
                    textless.place.length = place.position + place.length - textless.place.position;
                }
            }
        }
    }
}

/// Why a line is no document.
enum NoDocument {
    Flawed(String),
    /// It has no text, but fields of these names.
    Textless(BTreeSet<String>),
}

/// Reads an object into a document as it comes: a tree of a hostile line would be many times as large as the line. Gives the
/// first names of its fields if none of them is a text.
struct Object<'a> {
    fields: &'a Fields,
    document: &'a mut Document,
}

/// Names of fields in the words about a line without a text.
const NAMES: usize = 8;

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Option<BTreeSet<String>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Option<BTreeSet<String>>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut has_text, mut names, mut room) = (false, BTreeSet::new(), Room::new());
        while let Some(name) = map.next_key::<String>()? {
            let is_text = name == self.fields.text;
            // One byte more than there is room for shows that it is too large.
            let limit = if self.fields.is_named(&name) { usize::MAX } else { room.bytes + 1 };
            let mut text = String::new();
            let kind = map.next_value_seed(Plain { text: &mut text, limit, inside: false })?;
            has_text = if is_text { kind == Kind::String } else { has_text };
            let is_metadata = kind == Kind::Object && name == self.fields.metadata;
            let entries = is_metadata.then(|| room.entries(&text));
            match (kind, entries.flatten()) {
                (Kind::Null, _) => {}
                (_, Some(entries)) => room.keep_all(self.document, entries),
                _ => self.fields.put(self.document, &mut room, &name, text),
            }
            names.insert(name);
            if names.len() > NAMES {
                names.pop_last();
            }
        }
        Ok((!has_text).then_some(names))
    }
}

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    String,
    Object,
    Other,
}

/// Writes a value as text: a string as it is, anything else as JSON. Nothing more is written once `limit` bytes are there, which
/// only what is cut reaches.
struct Plain<'a> {
    text: &'a mut String,
    limit: usize,
    /// Inside an array or object, where a string is in quotes.
    inside: bool,
}

impl Plain<'_> {
    fn write(&mut self, piece: &str) {
        let room = self.limit.saturating_sub(self.text.len());
        self.text.push_str(&piece[..piece.ceil_char_boundary(room)]);
    }

    /// A value inside this one.
    fn inner(&mut self) -> Plain<'_> {
        Plain { text: self.text, limit: self.limit, inside: true }
    }

    fn other<E>(mut self, piece: &str) -> Result<Kind, E> {
        self.write(piece);
        Ok(Kind::Other)
    }
}

impl<'de> DeserializeSeed<'de> for Plain<'_> {
    type Value = Kind;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Kind, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain<'_> {
    type Value = Kind;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_unit<E>(mut self) -> Result<Kind, E> {
        self.write("null");
        Ok(Kind::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        self.other(if value { "true" } else { "false" })
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        self.other(&value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        self.other(&value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Kind, E> {
        self.other(&Value::from(value).to_string())
    }

    fn visit_str<E>(mut self, value: &str) -> Result<Kind, E> {
        if self.inside {
            self.write(&Value::from(value).to_string());
        } else {
            self.write(value);
        }
        Ok(Kind::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut values: A) -> Result<Kind, A::Error> {
        self.write("[");
        let mut before = self.text.len();
        while values.next_element_seed(self.inner())?.is_some() {
            before = self.text.len();
            self.write(",");
        }
        self.text.truncate(before);
        self.write("]");
        Ok(Kind::Other)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Kind, A::Error> {
        self.write("{");
        let mut before = self.text.len();
        while let Some(name) = entries.next_key::<String>()? {
            self.write(&Value::from(name).to_string());
            self.write(":");
            entries.next_value_seed(self.inner())?;
            before = self.text.len();
            self.write(",");
        }
        self.text.truncate(before);
        self.write("}");
        Ok(Kind::Object)
    }
}

impl Iterator for Lines {
    type Item = Result<Found, Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        let found = self.found();
        let flaw = self.end_textless(found.is_none());
        self.has_others |= found.is_some();
        match flaw {
            Some(flaw) => {
                self.held = found;
                Some(Err(flaw))
            }
            None => found,
        }
    }
}
