//! WARC 0.17 to 1.1 (ISO 28500), and WET and WAT, which are WARC too.

use sha1::{Digest, Sha1};

use super::Place;
use super::stream::{Damage, Stream};

/// Largest header of a record, in bytes.
const MAX_HEADER: usize = 64 << 10;

const MARK: &[u8] = b"WARC/";

/// Named fields, as WARC and HTTP have them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Fields of `bytes`, one a line; a line that begins with white space continues the one before. Bytes that are not UTF-8
    /// are read as Latin-1.
    pub(crate) fn parse(bytes: &[u8]) -> Headers {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in bytes.split(|&byte| byte == b'\n') {
            let line = match std::str::from_utf8(line) {
                Ok(line) => line.to_owned(),
                Err(_) => line.iter().map(|&byte| char::from(byte)).collect(),
            };
            let line = line.trim_end_matches('\r');
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push(' ');
                    value.push_str(line.trim());
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.trim().to_owned(), value.trim().to_owned()));
            }
        }
        Headers(fields)
    }

    /// The first value of a field; names are equal whatever their case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A record of a WARC file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarcRecord {
    /// Where it is.
    pub place: Place,
    /// Its named fields.
    pub headers: Headers,
    /// Its block: `Content-Length` bytes.
    pub block: Vec<u8>,
}

impl WarcRecord {
    /// `WARC-Type`: `response`, `conversion`, …
    pub fn kind(&self) -> &str {
        self.headers.get("WARC-Type").unwrap_or_default()
    }

    /// `WARC-Record-ID` without its angle brackets.
    pub fn id(&self) -> Option<&str> {
        self.headers.get("WARC-Record-ID").map(inside)
    }

    /// `WARC-Target-URI`; some writers put it in angle brackets, and some leave spaces in it, which are escaped here.
    pub fn url(&self) -> String {
        inside(self.headers.get("WARC-Target-URI").unwrap_or_default()).replace(' ', "%20")
    }

    /// `WARC-Date`.
    pub fn date(&self) -> &str {
        self.headers.get("WARC-Date").unwrap_or_default()
    }
}

fn inside(value: &str) -> &str {
    value.strip_prefix('<').and_then(|value| value.strip_suffix('>')).unwrap_or(value)
}

/// A part that is no whole record: where, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Flaw {
    pub(crate) place: Place,
    pub(crate) reason: String,
}

/// The records of a WARC file, in order.
pub(crate) struct WarcReader {
    stream: Stream,
    /// Largest block, in bytes.
    limit: u64,
    check_digests: bool,
    pending: Option<Damage>,
    ended: bool,
}

impl WarcReader {
    pub(crate) fn new(stream: Stream, limit: u64, check_digests: bool) -> WarcReader {
        WarcReader { stream, limit, check_digests, pending: None, ended: false }
    }

    fn place(&self, length: u64) -> Place {
        Place { offset: self.stream.offset(), position: self.stream.position(), length }
    }

    fn damaged(&mut self, damage: Damage) -> Flaw {
        self.ended |= damage.fatal;
        let length = self.stream.window().len() as u64;
        let place = Place { offset: damage.offset, ..self.place(length) };
        self.stream.discard();
        Flaw { place, reason: damage.reason }
    }

    /// Consumes line ends; false at the end.
    fn skip_blank(&mut self) -> Result<bool, Damage> {
        loop {
            let window = self.stream.window();
            let blank = window.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let more = blank < window.len();
            self.stream.consume(blank);
            if more {
                return Ok(true);
            }
            if !self.stream.more()? {
                return Ok(false);
            }
        }
    }

    fn read(&mut self) -> Result<Option<WarcRecord>, Flaw> {
        if let Some(damage) = self.pending.take() {
            return Err(self.damaged(damage));
        }
        match self.skip_blank() {
            Ok(true) => {}
            Ok(false) => {
                self.ended = true;
                return Ok(None);
            }
            Err(damage) => return Err(self.damaged(damage)),
        }
        if let Err(damage) = self.stream.ensure(MARK.len()) {
            return Err(self.damaged(damage));
        }
        if self.stream.window().starts_with(b"filed") && self.stream.position() == 0 {
            self.ended = true;
            let place = self.place(self.stream.left().unwrap_or_default());
            let reason = "is an ARC file, the format before WARC, which is not read".to_owned();
            return Err(Flaw { place, reason });
        }
        if !self.stream.window().starts_with(MARK) {
            return Err(self.garbage(0, "belongs to no record"));
        }
        let header = match self.header_length() {
            Ok(Some(length)) => length,
            Ok(None) => return Err(self.garbage(MARK.len(), "is the header of a record without an end")),
            Err(damage) => return Err(self.damaged(damage)),
        };
        let headers = Headers::parse(&self.stream.window()[..header]);
        let Some(length) = headers.get("Content-Length").and_then(|value| value.parse::<u64>().ok()) else {
            let found = headers.get("Content-Length").map_or("none".to_owned(), |found| format!("`{found}`"));
            return Err(self.garbage(MARK.len(), &format!("has no valid Content-Length ({found})")));
        };
        if self.stream.left().is_some_and(|left| length > left - header as u64) {
            let held = self.stream.left().unwrap_or_default() - header as u64;
            return Err(
                self.garbage(MARK.len(), &format!("ends after {held} of {length} bytes, with the file"))
            );
        }
        if length > self.limit {
            return Err(self.too_large(header, length));
        }
        self.block(headers, header, length as usize)
    }

    /// Length of the header in front of the window, its empty line included.
    fn header_length(&mut self) -> Result<Option<usize>, Damage> {
        let mut seen = 0;
        loop {
            let window = self.stream.window();
            let from = seen.max(1);
            for at in from..window.len() {
                let empty = window[at] == b'\n'
                    && (window[at - 1] == b'\n' || (at > 1 && window[at - 2..at] == *b"\n\r"));
                if empty {
                    return Ok(Some(at + 1));
                }
            }
            seen = window.len();
            if seen > MAX_HEADER || !self.stream.more()? {
                return Ok(None);
            }
        }
    }

    /// Takes the block behind a header of `header` bytes, if it is all there and ends where it says.
    fn block(&mut self, headers: Headers, header: usize, length: usize) -> Result<Option<WarcRecord>, Flaw> {
        let end = header + length;
        loop {
            if let Some(cut) = self.cut(header, end) {
                let flaw = Flaw {
                    place: self.place(cut as u64),
                    reason: format!(
                        "ends after {} of {length} bytes, where another record begins",
                        cut - header
                    ),
                };
                self.stream.consume(cut);
                return Err(flaw);
            }
            if self.stream.window().len() >= end {
                break;
            }
            match self.stream.more() {
                Ok(true) => {}
                Ok(false) => {
                    let held = self.stream.window().len() - header;
                    let reason = format!("ends after {held} of {length} bytes, with the file");
                    return Err(self.garbage(MARK.len(), &reason));
                }
                Err(damage) => return Err(self.damaged(damage)),
            }
        }
        let place = self.place(end as u64);
        let block = self.stream.window()[header..end].to_vec();
        if let Some(reason) = self.bad_end(end, place.offset)? {
            return Err(self.garbage(MARK.len(), &reason));
        }
        self.stream.consume(end);
        if self.check_digests
            && let Some(reason) = bad_digest(&headers, &block)
        {
            return Err(Flaw { place, reason });
        }
        Ok(Some(WarcRecord { place, headers, block }))
    }

    /// Where inside the block a member of the file begins with a record of its own.
    fn cut(&mut self, header: usize, end: usize) -> Option<usize> {
        let start = self.stream.member_from(header).filter(|&start| start < end)?;
        self.stream.look_ahead(start + MARK.len());
        self.stream.window()[start..].starts_with(MARK).then_some(start)
    }

    /// What follows a block that ends at `end`, if it is neither an empty line, nor a record, nor the end of the file.
    /// Reads up to the end of the member too, whose checksum covers the record.
    fn bad_end(&mut self, end: usize, member: u64) -> Result<Option<String>, Flaw> {
        let mut at = end;
        loop {
            let window = self.stream.window();
            at += window[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let rest = &window[at..];
            let undecided = MARK.starts_with(rest) && rest.len() < MARK.len();
            if !undecided {
                let stray = !rest.starts_with(MARK) && self.stream.member_from(at) != Some(at);
                return Ok(stray
                    .then(|| "is followed by bytes of no record: its Content-Length is wrong".to_owned()));
            }
            match self.stream.more() {
                Ok(true) => {}
                Ok(false) if rest_is_empty(&self.stream, at) => return Ok(None),
                Ok(false) => return Ok(Some("is followed by a few bytes at the end of the file".to_owned())),
                Err(damage) if damage.offset == member => return Err(self.damaged(damage)),
                Err(damage) => {
                    self.pending = Some(damage);
                    return Ok(None);
                }
            }
        }
    }

    /// Passes over a block that is too large to hold.
    fn too_large(&mut self, header: usize, length: u64) -> Flaw {
        let total = length.saturating_add(header as u64);
        let place = self.place(total);
        let limit = self.limit;
        let mut left = total;
        while left > 0 {
            let here = left.min(self.stream.window().len() as u64) as usize;
            let stop = self.cut(header.min(here), here);
            self.stream.consume(stop.unwrap_or(here));
            left -= here as u64;
            if stop.is_some() || left == 0 {
                break;
            }
            match self.stream.more() {
                Ok(true) => {}
                Ok(false) => break,
                Err(damage) => {
                    self.ended |= damage.fatal;
                    self.stream.discard();
                    break;
                }
            }
            self.stream.look_ahead(MARK.len());
            if self.stream.at_member() && self.stream.window().starts_with(MARK) {
                break;
            }
        }
        Flaw { place, reason: format!("has {length} bytes, more than the {limit} allowed") }
    }

    /// Passes over bytes up to the next record, the first `known` of them unseen.
    fn garbage(&mut self, known: usize, what: &str) -> Flaw {
        let start = self.place(0);
        let mut skip = known;
        loop {
            let window = self.stream.window();
            let begins = |at: &usize| window[*at..].starts_with(MARK) && window[at - 1] == b'\n';
            let next = (skip.max(1)..window.len()).find(begins);
            let member = self.stream.member_from(skip).filter(|&at| window[at..].starts_with(MARK));
            if let Some(next) = next.into_iter().chain(member).min() {
                self.stream.consume(next);
                break;
            }
            // What may be cut by the window's edge stays, with the byte before it.
            let gone = window.len().saturating_sub(MARK.len() + 1);
            self.stream.consume(gone);
            skip = skip.saturating_sub(gone).max(1);
            match self.stream.more() {
                Ok(true) => {}
                Ok(false) => {
                    self.stream.discard();
                    break;
                }
                Err(damage) => {
                    self.pending = Some(damage);
                    self.stream.discard();
                    break;
                }
            }
        }
        let length = self.stream.position() - start.position;
        Flaw { place: Place { length, ..start }, reason: what.to_owned() }
    }
}

fn rest_is_empty(stream: &Stream, at: usize) -> bool {
    stream.window().len() <= at
}

impl Iterator for WarcReader {
    type Item = Result<WarcRecord, Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended && self.pending.is_none() {
            return None;
        }
        self.read().transpose()
    }
}

/// What `WARC-Block-Digest` says and what the block has, where these differ. Only SHA-1 is checked, in Base32 or hex.
fn bad_digest(headers: &Headers, block: &[u8]) -> Option<String> {
    let (algorithm, said) = headers.get("WARC-Block-Digest")?.split_once(':')?;
    if !algorithm.eq_ignore_ascii_case("sha1") && !algorithm.eq_ignore_ascii_case("sha-1") {
        return None;
    }
    let found = Sha1::digest(block);
    let hex: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
    let (base32, said) = (base32(&found), said.trim());
    let equal = said.eq_ignore_ascii_case(&hex) || said.eq_ignore_ascii_case(&base32);
    (!equal).then(|| format!("has the SHA-1 {base32}, but its WARC-Block-Digest says {said}"))
}

/// RFC 4648, for whole groups of five bytes.
fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::new();
    for group in bytes.chunks_exact(5) {
        let value = group.iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        text.extend((0..8).rev().map(|digit| char::from(DIGITS[(value >> (5 * digit) & 31) as usize])));
    }
    text
}
