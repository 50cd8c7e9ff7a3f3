//! JSON Lines.

use serde_json::Value;

use super::stream::Stream;
use super::warc::Flaw;
use super::{Fields, Found, Place, ReadConfig, Record, id_at};
use crate::Document;

/// The documents of the lines of a file.
pub(super) struct Lines {
    stream: Stream,
    name: String,
    fields: Fields,
    limit: u64,
    ended: bool,
}

impl Lines {
    pub(super) fn new(stream: Stream, name: String, config: &ReadConfig) -> Lines {
        Lines { stream, name, fields: config.fields.clone(), limit: config.max_record_bytes, ended: false }
    }

    /// The next line, its end included, up to the limit; nothing at the end of the file.
    fn line(&mut self) -> Result<Option<usize>, Flaw> {
        let mut seen = 0;
        loop {
            let window = self.stream.window();
            if let Some(end) = window[seen..].iter().position(|&byte| byte == b'\n') {
                return Ok(Some(seen + end + 1));
            }
            seen = window.len();
            if seen as u64 > self.limit {
                return Err(self.too_long());
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

    fn document(&self, line: &[u8], position: u64) -> Result<Document, String> {
        let value: Value = serde_json::from_slice(line).map_err(|error| format!("is no JSON: {error}"))?;
        let Value::Object(fields) = value else { return Err("is JSON, but no object".to_owned()) };
        let text = &self.fields.text;
        if !matches!(fields.get(text), Some(Value::String(_))) {
            let names: Vec<_> = fields.keys().take(8).map(|name| format!("`{name}`")).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(format!("has no string in the field `{text}`; its fields are {names}"));
        }
        let mut document = Document { source: self.name.clone(), ..Document::default() };
        for (name, value) in fields {
            match value {
                Value::Null => {}
                Value::Object(entries) if name == self.fields.metadata => {
                    let entries = entries.into_iter().filter(|(_, value)| !value.is_null());
                    document.meta.extend(entries.map(|(name, value)| (name, plain(value))));
                }
                value => self.fields.put(&mut document, &name, plain(value)),
            }
        }
        if document.id.is_empty() {
            document.id = id_at(&self.name, position);
        }
        Ok(document)
    }
}

/// A string as it is, anything else as JSON.
fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

impl Iterator for Lines {
    type Item = Result<Found, Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.ended {
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
                Some(Err(reason)) => return Some(Err(Flaw { place, reason })),
            }
        }
    }
}
