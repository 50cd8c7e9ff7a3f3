//! The bytes of a file, decompressed, with the place in the file where each came from.
//!
//! A compressed file is a row of members (gzip) or frames (zstd), each of which can be read alone. So damage in one costs
//! that one: reading goes on at the next that begins like one.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

/// Bytes that are decoded at once.
const CHUNK: usize = 64 << 10;

/// Largest dictionary that a zstd file may bring along.
const MAX_DICTIONARY: usize = 16 << 20;

const GZIP: [u8; 3] = [0x1f, 0x8b, 8];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Begins a frame of zstd with bytes for others, its first byte counted up to 0x5f.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// First byte of the skippable frame that holds the dictionary of a `.warc.zst`.
const DICTIONARY: u8 = 0x5d;

/// Something to read at any place.
pub(crate) trait ReadAt: Send {
    /// Bytes in all.
    fn size(&self) -> u64;
    /// Fills the front of `into`, with nothing only at the end.
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for std::fs::File {
    fn size(&self) -> u64 {
        self.metadata().map_or(0, |meta| meta.len())
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        io::Seek::seek(self, io::SeekFrom::Start(at))?;
        self.read(into)
    }
}

impl ReadAt for std::sync::Arc<[u8]> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut rest = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        rest.read(into)
    }
}

/// A file read in order, that knows where it is and can go elsewhere.
struct Source {
    file: Box<dyn ReadAt>,
    buffer: Vec<u8>,
    used: usize,
    /// Where in the file the next unused byte is.
    at: u64,
    /// The system's own failure, which no other place in the file can mend.
    failure: Option<String>,
}

impl Source {
    fn seek(&mut self, at: u64) {
        (self.at, self.used) = (at, 0);
        self.buffer.clear();
    }

    /// The next `count` bytes, fewer at the end. They stay unused.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.buffer.len() - self.used < count {
            let (held, more) = (self.buffer.len() - self.used, self.load()?);
            if more == held {
                break;
            }
        }
        Ok(&self.buffer[self.used..self.buffer.len().min(self.used + count)])
    }

    /// Reads on behind what is held, and says how much is held then.
    fn load(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + CHUNK, 0);
        let read = loop {
            match self.file.read_at(self.at + held as u64, &mut self.buffer[held..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(held + *read.as_ref().unwrap_or(&0));
        if let Err(error) = &read {
            self.failure = Some(error.to_string());
        }
        read.map(|read| held + read)
    }

    /// Goes to the next place that begins like a member, or to the end.
    fn find(&mut self, kind: Kind) -> io::Result<()> {
        loop {
            let bytes = self.peek(CHUNK)?;
            let length = bytes.len();
            // What may begin across the edge is looked at again.
            let found = bytes.windows(4).position(|window| kind.begins(window));
            let step = found.unwrap_or(length.saturating_sub(3)).max(usize::from(found.is_none()));
            self.consume(step.min(length));
            if found.is_some() || length < 4 {
                return Ok(());
            }
        }
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.buffer.len() {
            self.load()?;
        }
        Ok(&self.buffer[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
        self.at += count as u64;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    Gzip,
    Zstd,
}

impl Kind {
    fn of(bytes: &[u8]) -> Kind {
        [Kind::Gzip, Kind::Zstd].into_iter().find(|kind| kind.begins(bytes)).unwrap_or(Kind::Plain)
    }

    fn begins(self, bytes: &[u8]) -> bool {
        match self {
            Kind::Plain => false,
            // The upper three flags of a gzip header are zero.
            Kind::Gzip => bytes.starts_with(&GZIP) && bytes.get(3).is_some_and(|flags| flags & 0xe0 == 0),
            Kind::Zstd => bytes.starts_with(&ZSTD) || is_skippable(bytes),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Plain => "file",
            Kind::Gzip => "gzip member",
            Kind::Zstd => "zstd frame",
        }
    }
}

fn is_skippable(bytes: &[u8]) -> bool {
    bytes.len() >= 4 && bytes[0] & 0xf0 == 0x50 && bytes[1..4] == SKIPPABLE
}

enum State {
    Between(Source),
    Plain(Source),
    Gzip(Box<GzDecoder<Source>>),
    Zstd(Box<ZstdDecoder<'static, Source>>),
    Ended,
}

/// A part of a file that cannot be read.
#[derive(Debug)]
pub(crate) struct Damage {
    /// Where in the file the damaged member begins.
    pub(crate) offset: u64,
    pub(crate) reason: String,
    /// Whether there is nothing to be had behind it.
    pub(crate) fatal: bool,
}

/// The decompressed bytes of a file. What was decoded and not yet consumed is the window.
pub(crate) struct Stream {
    state: State,
    kind: Kind,
    size: u64,
    dictionary: Option<Vec<u8>>,
    window: Vec<u8>,
    used: usize,
    /// Where among the decompressed bytes the window begins.
    position: u64,
    /// Where among the decompressed bytes each member begins, and where in the file.
    members: VecDeque<(u64, u64)>,
    /// Whether the damage before was told and nothing was read since.
    told: bool,
    /// Damage that was met too early to tell.
    ahead: Option<Damage>,
}

impl Stream {
    pub(crate) fn new(file: Box<dyn ReadAt>) -> Result<Stream, Damage> {
        let size = file.size();
        let mut source = Source { file, buffer: Vec::new(), used: 0, at: 0, failure: None };
        let fatal = |error: io::Error| Damage { offset: 0, reason: error.to_string(), fatal: true };
        let kind = Kind::of(source.peek(4).map_err(fatal)?);
        Ok(Stream {
            state: State::Between(source),
            kind,
            size,
            dictionary: None,
            window: Vec::new(),
            used: 0,
            position: 0,
            members: VecDeque::new(),
            told: false,
            ahead: None,
        })
    }

    /// Begins at this byte of a plain file. False for a compressed one, unless it is the first byte.
    pub(crate) fn start_at(&mut self, at: u64) -> bool {
        match &mut self.state {
            _ if at == 0 => true,
            State::Between(source) if self.kind == Kind::Plain => {
                source.seek(at);
                self.position = at;
                true
            }
            _ => false,
        }
    }

    /// What is decoded and not consumed.
    pub(crate) fn window(&self) -> &[u8] {
        &self.window[self.used..]
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.used += count;
        self.position += count as u64;
        while self.members.get(1).is_some_and(|&(start, _)| start <= self.position) {
            self.members.pop_front();
        }
    }

    /// Forgets the window.
    pub(crate) fn discard(&mut self) {
        self.consume(self.window().len());
    }

    /// Decompressed bytes before the window.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Where in the file the window comes from: exact for plain files, the start of the member for compressed ones.
    pub(crate) fn offset(&self) -> u64 {
        match self.kind {
            Kind::Plain => self.position,
            _ => self.members.front().map_or(0, |&(_, offset)| offset),
        }
    }

    /// Where in the window a member begins, at `from` or behind it.
    pub(crate) fn member_from(&self, from: usize) -> Option<usize> {
        let starts = self.members.iter().map(|&(start, _)| start.saturating_sub(self.position) as usize);
        // The first one lies before the window or at its start.
        starts.filter(|&start| start >= from.max(1) && start <= self.window().len()).min()
    }

    /// Bytes from the window's start to the end, where they are known.
    pub(crate) fn left(&self) -> Option<u64> {
        (self.kind == Kind::Plain).then(|| self.size.saturating_sub(self.position))
    }

    /// Decodes on until the window has `count` bytes; false if there are not so many.
    pub(crate) fn ensure(&mut self, count: usize) -> Result<bool, Damage> {
        while self.window().len() < count {
            if !self.more()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Decodes on until the window has `count` bytes, if it can. Damage on the way is told by the next [`Stream::more`].
    pub(crate) fn look_ahead(&mut self, count: usize) {
        if let Err(damage) = self.ensure(count) {
            self.ahead = Some(damage);
        }
    }

    /// Whether a member begins where the window does.
    pub(crate) fn at_member(&self) -> bool {
        self.members.iter().any(|&(start, _)| start == self.position)
    }

    /// Decodes some more into the window; false at the end. After damage it can be called again.
    pub(crate) fn more(&mut self) -> Result<bool, Damage> {
        if let Some(damage) = self.ahead.take() {
            return Err(damage);
        }
        self.window.drain(..self.used);
        self.used = 0;
        loop {
            let held = self.window.len();
            self.window.resize(held + CHUNK, 0);
            let read = match &mut self.state {
                State::Between(_) | State::Ended => Ok(0),
                State::Plain(source) => source.read(&mut self.window[held..]),
                State::Gzip(decoder) => decoder.read(&mut self.window[held..]),
                State::Zstd(decoder) => decoder.read(&mut self.window[held..]),
            };
            self.window.truncate(held + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => {
                    if !self.next_member()? {
                        return Ok(false);
                    }
                }
                Ok(_) => {
                    self.told = false;
                    return Ok(true);
                }
                Err(error) => self.damaged(&error)?,
            }
        }
    }

    /// Opens the member behind the one that has ended; false at the end of the file.
    fn next_member(&mut self) -> Result<bool, Damage> {
        let Some(mut source) = self.take_source() else { return Ok(false) };
        let at = source.at;
        let opened = self.open_member(&mut source);
        match opened {
            Ok(Some(true)) => {
                self.members.push_back((self.position + self.window.len() as u64, source.at));
                self.state = match self.kind {
                    Kind::Plain => State::Plain(source),
                    Kind::Gzip => State::Gzip(Box::new(GzDecoder::new(source))),
                    Kind::Zstd => match self.zstd(source) {
                        Ok(decoder) => State::Zstd(Box::new(decoder)),
                        Err(error) => {
                            return Err(Damage { offset: at, reason: error.to_string(), fatal: true });
                        }
                    },
                };
                Ok(true)
            }
            Ok(Some(false)) => {
                self.state = State::Between(source);
                let kind = self.kind.name();
                self.damaged(&io::Error::other(format!(
                    "bytes between members, where a {kind} should begin"
                )))?;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(Damage { offset: at, reason: error.to_string(), fatal: true }),
        }
    }

    fn zstd(&self, source: Source) -> io::Result<ZstdDecoder<'static, Source>> {
        match &self.dictionary {
            Some(dictionary) => Ok(ZstdDecoder::with_dictionary(source, dictionary)?.single_frame()),
            None => Ok(ZstdDecoder::with_buffer(source)?.single_frame()),
        }
    }

    /// Goes to the start of the next member: none at the end, false where something else stands there.
    fn open_member(&mut self, source: &mut Source) -> io::Result<Option<bool>> {
        loop {
            let bytes = source.peek(8)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            if self.kind == Kind::Plain || (self.kind.begins(bytes) && !is_skippable(bytes)) {
                return Ok(Some(true));
            }
            if self.kind == Kind::Zstd && is_skippable(bytes) && bytes.len() == 8 {
                let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
                let is_dictionary = bytes[0] == DICTIONARY && source.at == 0;
                source.consume(8);
                if is_dictionary && length <= MAX_DICTIONARY {
                    self.dictionary = Some(dictionary(source.peek(length)?)?);
                }
                source.seek(source.at + length as u64);
                continue;
            }
            // Tapes and block devices fill up with zeros.
            let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
            if zeros == 0 {
                return Ok(Some(false));
            }
            source.consume(zeros);
        }
    }

    /// Leaves a damaged member for the next one, and tells it unless that was done already.
    fn damaged(&mut self, error: &io::Error) -> Result<(), Damage> {
        let member = self.members.back().map_or(0, |&(_, offset)| offset);
        let between = matches!(self.state, State::Between(_));
        let Some(mut source) = self.take_source() else { return Ok(()) };
        let offset = if between { source.at } else { member };
        let reason = match (error.kind(), &source.failure) {
            (_, Some(failure)) => failure.clone(),
            (io::ErrorKind::UnexpectedEof, _) => format!("the {} is cut off", self.kind.name()),
            _ => error.to_string(),
        };
        let fatal = source.failure.is_some();
        if !fatal {
            source.seek(offset + 1);
            if let Err(error) = source.find(self.kind) {
                return Err(Damage { offset, reason: error.to_string(), fatal: true });
            }
            self.state = State::Between(source);
        }
        if std::mem::replace(&mut self.told, true) && !fatal {
            return Ok(());
        }
        Err(Damage { offset, reason, fatal })
    }

    fn take_source(&mut self) -> Option<Source> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Between(source) | State::Plain(source) => Some(source),
            State::Gzip(decoder) => Some(decoder.into_inner()),
            State::Zstd(decoder) => Some(decoder.finish()),
            State::Ended => None,
        }
    }
}

/// The dictionary in a skippable frame, which may itself be compressed.
fn dictionary(bytes: &[u8]) -> io::Result<Vec<u8>> {
    if !bytes.starts_with(&ZSTD) {
        return Ok(bytes.to_vec());
    }
    let mut plain = Vec::new();
    ZstdDecoder::with_buffer(bytes)?.take(MAX_DICTIONARY as u64).read_to_end(&mut plain)?;
    Ok(plain)
}
