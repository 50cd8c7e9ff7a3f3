//! The texts to train on, read piece by piece.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail};
use llamero_tokenizer::{Sample, Split};
use serde::Deserialize;

/// Plain text is read in pieces of about this many bytes.
const PIECE: usize = 1 << 20;
/// The longest line of JSON, and the longest stretch of plain text without a place to cut it.
const LONGEST: usize = 256 << 20;

/// The files to read, each with the domain of its texts.
pub(super) struct Inputs {
    files: Vec<(PathBuf, Arc<str>)>,
    /// Bytes of all files.
    pub(super) bytes: u64,
}

impl Inputs {
    /// The files that are named, and all files in the folders that are. Texts of a folder have its name as their domain, those
    /// of a file its name without endings.
    pub(super) fn find(paths: &[PathBuf]) -> Result<Self> {
        let mut inputs = Self { files: Vec::new(), bytes: 0 };
        for path in paths {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            if path.as_os_str() == "-" {
                bail!(
                    "`--input -`: texts are read twice, so standard input cannot be\nhint: write it to a file"
                );
            }
            if path.is_dir() {
                inputs.add_folder(path, &name.as_ref().into())?;
            } else {
                let stem = name.trim_start_matches('.').split('.').next().unwrap_or_default();
                inputs.add(path, if stem.is_empty() { &name } else { stem }.into())?;
            }
        }
        if inputs.files.is_empty() {
            bail!("there is no file in what `--input` names");
        }
        Ok(inputs)
    }

    fn add_folder(&mut self, folder: &Path, domain: &Arc<str>) -> Result<()> {
        let shown = || format!("`{}`", folder.display());
        let entries = folder.read_dir().with_context(shown)?;
        let mut paths =
            entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>().with_context(shown)?;
        paths.sort();
        for path in paths {
            if path.is_dir() {
                self.add_folder(&path, domain)?;
            } else {
                self.add(&path, Arc::clone(domain))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, domain: Arc<str>) -> Result<()> {
        let file = path.metadata().with_context(|| format!("`{}`", path.display()))?;
        if !file.is_file() {
            bail!(
                "`{}` is not a file\nhint: texts are read twice, so give files and not a pipe",
                path.display()
            );
        }
        self.bytes += file.len();
        self.files.push((path.into(), domain));
        Ok(())
    }

    /// Reads them from the start, `limit` bytes of text at most.
    pub(super) fn read(&self, limit: Option<u64>) -> Reading<'_> {
        Reading {
            files: self.files.iter(),
            open: None,
            left: limit.unwrap_or(u64::MAX),
            done: Rc::default(),
            documents: Rc::default(),
            failure: Rc::default(),
        }
    }
}

/// An iterator over texts. It ends early after a failure, which is kept for whoever asks.
pub(super) struct Reading<'a> {
    files: std::slice::Iter<'a, (PathBuf, Arc<str>)>,
    open: Option<Open>,
    left: u64,
    done: Rc<Cell<u64>>,
    documents: Rc<Cell<u64>>,
    failure: Rc<RefCell<Option<Error>>>,
}

impl Reading<'_> {
    /// Bytes of files read so far; it counts on while the iterator is elsewhere.
    pub(super) fn done(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.done)
    }

    /// Documents begun so far.
    pub(super) fn documents(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.documents)
    }

    /// Where the reason is put if a file cannot be read.
    pub(super) fn failure(&self) -> Rc<RefCell<Option<Error>>> {
        Rc::clone(&self.failure)
    }

    fn advance(&mut self) -> Result<Option<Sample>> {
        loop {
            if let Some(open) = &mut self.open
                && let Some(sample) = open.next()?
            {
                return Ok(Some(sample));
            }
            let Some((path, domain)) = self.files.next() else { return Ok(None) };
            self.open = Some(Open::new(path, domain, Rc::clone(&self.done))?);
        }
    }
}

impl Iterator for Reading<'_> {
    type Item = Sample;

    fn next(&mut self) -> Option<Sample> {
        if self.left == 0 || self.failure.borrow().is_some() {
            return None;
        }
        match self.advance() {
            Ok(sample) => {
                let mut sample = sample?;
                if sample.text.len() as u64 > self.left {
                    sample.text.truncate(sample.text.floor_char_boundary(self.left as usize));
                    self.left = 0;
                }
                self.left -= self.left.min(sample.text.len() as u64);
                self.documents.set(self.documents.get() + u64::from(sample.begins));
                Some(sample)
            }
            Err(error) => {
                *self.failure.borrow_mut() = Some(error);
                None
            }
        }
    }
}

/// A file that is read.
struct Open {
    path: PathBuf,
    domain: Arc<str>,
    from: Box<dyn BufRead>,
    is_jsonl: bool,
    /// Read and not yet given out.
    rest: Vec<u8>,
    /// Bytes and newlines given out.
    bytes: u64,
    lines: u64,
    ended: bool,
}

/// A line of JSON.
#[derive(Deserialize)]
struct Line {
    text: String,
    domain: Option<String>,
    lang: Option<String>,
}

impl Open {
    fn new(path: &Path, domain: &Arc<str>, done: Rc<Cell<u64>>) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("`{}`", path.display()))?;
        let file = BufReader::with_capacity(1 << 18, Counting { file, done });
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let (name, from): (&str, Box<dyn BufRead>) = if let Some(inner) = name.strip_suffix(".gz") {
            let decoder = flate2::bufread::MultiGzDecoder::new(file);
            if decoder.header().is_none() && path.metadata().is_ok_and(|file| file.len() > 0) {
                bail!("`{}` is not compressed by gzip, as its name says", path.display());
            }
            (inner, Box::new(BufReader::with_capacity(1 << 18, decoder)))
        } else if let Some(inner) = name.strip_suffix(".zst") {
            let decoder =
                zstd::Decoder::with_buffer(file).with_context(|| format!("`{}`", path.display()))?;
            (inner, Box::new(BufReader::with_capacity(1 << 18, decoder)))
        } else {
            (&name, Box::new(file))
        };
        Ok(Self {
            path: path.into(),
            domain: Arc::clone(domain),
            from,
            is_jsonl: name.ends_with(".jsonl") || name.ends_with(".ndjson"),
            rest: Vec::new(),
            bytes: 0,
            lines: 0,
            ended: false,
        })
    }

    fn next(&mut self) -> Result<Option<Sample>> {
        if self.is_jsonl { self.next_line() } else { self.next_piece() }
    }

    fn next_line(&mut self) -> Result<Option<Sample>> {
        loop {
            self.rest.clear();
            let limit = LONGEST as u64 + 1;
            let read = (&mut self.from).take(limit).read_until(b'\n', &mut self.rest);
            self.lines += 1;
            let place = || format!("`{}`, line {}", self.path.display(), self.lines);
            if read.with_context(place)? == 0 {
                return Ok(None);
            }
            if self.rest.len() > LONGEST {
                bail!("{}: longer than {LONGEST} bytes\nhint: one document a line", place());
            }
            let text = match std::str::from_utf8(&self.rest) {
                Ok(text) => text,
                Err(error) => bail!(
                    "{}: not UTF-8: an invalid byte at {} of the line\nhint: convert the file to UTF-8",
                    place(),
                    error.valid_up_to()
                ),
            };
            if self.lines == 1 && text.starts_with('\u{feff}') {
                bail!(
                    "{}: it begins with a byte order mark\nhint: write the file as UTF-8 without one",
                    place()
                );
            }
            if text.trim().is_empty() {
                continue;
            }
            let Line { text, domain, lang } =
                serde_json::from_str(text).with_context(|| format!("{}: not {{\"text\": …}}", place()))?;
            let domain = domain.map_or_else(|| Arc::clone(&self.domain), Arc::from);
            return Ok(Some(Sample { text, domain: Some(domain), lang: lang.map(Arc::from), begins: true }));
        }
    }

    /// A part of the file that ends where the split of the whole has an end, too.
    fn next_piece(&mut self) -> Result<Option<Sample>> {
        let mut wanted = PIECE;
        loop {
            if !self.ended && self.rest.len() < wanted {
                let more = (wanted - self.rest.len()) as u64;
                let read = (&mut self.from).take(more).read_to_end(&mut self.rest);
                let read = read.with_context(|| format!("`{}`", self.path.display()))?;
                self.ended = (read as u64) < more;
            }
            let valid = self.valid()?;
            let text = std::str::from_utf8(&self.rest[..valid])?;
            let end = if self.ended { Some(valid) } else { Split::Llama3.safe_cut(text) };
            match end {
                Some(0) => return Ok(None),
                Some(end) => {
                    let text = text[..end].to_owned();
                    self.rest.drain(..end);
                    let begins = self.bytes == 0;
                    self.bytes += end as u64;
                    self.lines += text.bytes().filter(|&byte| byte == b'\n').count() as u64;
                    let domain = Some(Arc::clone(&self.domain));
                    return Ok(Some(Sample { text, domain, lang: None, begins }));
                }
                None if self.rest.len() >= LONGEST => bail!(
                    "`{}`: {LONGEST} bytes from byte {} on (line {}) are one word or one stretch of white space\n\
                     hint: is this text?",
                    self.path.display(),
                    self.bytes,
                    self.lines + 1
                ),
                None => wanted = (self.rest.len() * 2).clamp(PIECE, LONGEST),
            }
        }
    }

    /// How many bytes of the rest are whole characters.
    fn valid(&self) -> Result<usize> {
        let Err(error) = std::str::from_utf8(&self.rest) else { return Ok(self.rest.len()) };
        let valid = error.valid_up_to();
        if error.error_len().is_none() && !self.ended {
            return Ok(valid);
        }
        let line = self.lines + 1 + self.rest[..valid].iter().filter(|&&byte| byte == b'\n').count() as u64;
        bail!(
            "`{}` is not UTF-8: an invalid byte at {}, in line {line}\nhint: give plain text, or convert the file to UTF-8",
            self.path.display(),
            self.bytes + valid as u64
        )
    }
}

/// A file, and how much was read of it and of others.
struct Counting {
    file: File,
    done: Rc<Cell<u64>>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.done.set(self.done.get() + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(inputs: &Inputs, limit: Option<u64>) -> Result<Vec<Sample>> {
        let mut reading = inputs.read(limit);
        let failure = reading.failure();
        let samples = reading.by_ref().collect();
        match failure.take() {
            Some(error) => Err(error),
            None => Ok(samples),
        }
    }

    #[test]
    fn pieces_of_a_large_file_have_the_words_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.b.txt");
        let text = "— one 中文 two\n\n  three\tfour 123456  \r\n".repeat(PIECE / 16);
        std::fs::write(&path, &text).unwrap();
        let inputs = Inputs::find(&[path]).unwrap();
        let samples = read(&inputs, None).unwrap();
        assert!(samples.len() > 2 && samples.iter().all(|sample| sample.text.len() <= PIECE));
        let begins: Vec<bool> = samples.iter().map(|sample| sample.begins).collect();
        assert!(begins[0] && !begins[1..].contains(&true) && samples[0].domain.as_deref() == Some("a"));
        let pieces = samples.iter().flat_map(|sample| Split::Llama3.pieces(&sample.text));
        assert!(pieces.eq(Split::Llama3.pieces(&text)));
        assert_eq!(read(&inputs, Some(5)).unwrap()[0].text, "— o");
    }

    #[test]
    fn lines_of_json_may_be_compressed_and_say_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "{\"text\": \"a b\", \"domain\": \"law\", \"lang\": \"de\"}\n\n{\"text\": \"c\"}";
        let folder = dir.path().join("mine");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("1.jsonl"), lines).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(lines.as_bytes()).unwrap();
        std::fs::write(folder.join("2.jsonl.gz"), gz.finish().unwrap()).unwrap();
        std::fs::write(folder.join("3.JSONL.zst"), zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
        let samples = read(&Inputs::find(&[folder]).unwrap(), None).unwrap();
        assert_eq!(samples.len(), 6);
        for two in samples.chunks(2) {
            let shown = |s: &Sample| (s.text.clone(), s.domain.clone().unwrap(), s.lang.clone(), s.begins);
            assert_eq!(shown(&two[0]), ("a b".into(), "law".into(), Some("de".into()), true));
            assert_eq!(shown(&two[1]), ("c".into(), "mine".into(), None, true));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, bytes: &[u8], says: &[&str]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = format!("{:#}", read(&Inputs::find(&[path]).unwrap(), None).unwrap_err());
            says.iter()
                .chain([&name])
                .for_each(|says| assert!(error.contains(says), "no `{says}` in {error}"));
        };
        check("a.txt", b"one\ntwo \xff", &["byte at 8", "line 2"]);
        check("b.txt", b"cut \xe4\xb8", &["byte at 4", "line 1"]);
        check(
            "c.jsonl",
            b"{\"text\": \"\"}\n{\"txt\": \"\"}\n",
            &["line 2", "{\"text\": …}", "missing field"],
        );
        check("d.jsonl", b"{\"text\": \"\xff\"}\n", &["line 1", "not UTF-8", "at 10"]);
        check("e.jsonl.gz", b"{\"text\": \"\"}\n", &["not compressed by gzip"]);
        check("g.jsonl", "\u{feff}{\"text\": \"\"}\n".as_bytes(), &["line 1", "byte order mark"]);
        let late = [vec![b'a'; PIECE], b" \xff".to_vec()].concat();
        check("f.txt", &late, &["byte at 1048577"]);
    }
}
