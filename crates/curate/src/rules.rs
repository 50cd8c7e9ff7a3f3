//! The rules for plain files: some for bytes, asked while a file is read, and filters for its text.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::plan::{Registry, Step};
use crate::{CurateConfig, CurateError, Document, Dropped, Filter};

/// Everything a rule for files may look at.
pub(crate) struct Subject<'a> {
    /// Why the file could not be read.
    pub(crate) problem: Option<&'a str>,
    /// Size of the file in bytes.
    pub(crate) size: u64,
    /// Content; empty when the file could not be read or is above the size limit.
    pub(crate) bytes: &'a [u8],
}

/// What the rules for files allow.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileLimits {
    pub(crate) max_document_bytes: u64,
    pub(crate) max_control_share: f64,
    /// Bytes that are left of the text of a dropped file.
    pub(crate) excerpt_bytes: u32,
}

impl FileLimits {
    pub(crate) fn of(config: &CurateConfig) -> FileLimits {
        let CurateConfig { max_document_bytes, max_control_share, excerpt_bytes, .. } = *config;
        FileLimits { max_document_bytes, max_control_share, excerpt_bytes }
    }
}

/// Says with a short detail why the document is dropped, or `None` to let it pass.
type Check = fn(&Subject, &FileLimits) -> Option<String>;

/// Reason and check of the rules for files, in order: what passes them is text. The first that speaks decides.
const FILE_RULES: [(&str, Check); 5] = [
    ("unreadable", unreadable),
    ("huge", huge),
    ("empty", empty),
    ("binary", binary),
    ("not_utf8", not_utf8),
];

/// The first rule that drops the file.
pub(crate) fn judge_file(subject: &Subject, limits: &FileLimits) -> Option<Dropped> {
    FILE_RULES.iter().find_map(|&(reason, check)| Some(Dropped::new(reason, check(subject, limits)?)))
}

/// The rules for texts as steps of the map `filters`, in order.
pub(crate) fn text_rules(config: &CurateConfig) -> Result<Vec<Step>, CurateError> {
    let long_lines = LongLines {
        max_unbroken_run: config.max_unbroken_run,
        max_code_line: config.max_code_line,
        max_code_mean_line: config.max_code_mean_line,
    };
    let mut steps = Vec::new();
    if config.read.is_some() {
        // Of plain files the source has seen to it.
        steps.push(Step::with("plain_text", &PlainText { max_control_share: config.max_control_share })?);
        // Of plain files those that are too large are not read at all.
        steps.push(Step::with("huge", &Huge { max_bytes: config.max_document_bytes })?);
    }
    steps.extend([
        Step::with("too_short", &TooShort { min_characters: config.min_characters })?,
        Step::with("long_lines", &long_lines)?,
        Step::with("low_letters", &LowLetters { min_share: config.min_letter_share })?,
        Step::with("repeated_lines", &RepeatedLines { max_share: config.max_repeated_share })?,
    ]);
    if config.drop_generated {
        steps.push(Step::new("generated"));
    }
    Ok(steps)
}

/// Registers the rules for texts.
pub(crate) fn register(registry: &mut Registry) {
    registry.filter_of::<PlainText>("plain_text");
    registry.filter_of::<Huge>("huge");
    registry.filter_of::<TooLittleLeft>(TOO_LITTLE_LEFT);
    registry.filter_of::<TooShort>("too_short");
    registry.filter_of::<LongLines>("long_lines");
    registry.filter_of::<LowLetters>("low_letters");
    registry.filter_of::<RepeatedLines>("repeated_lines");
    registry.filter_of::<Generated>("generated");
}

fn unreadable(subject: &Subject, _: &FileLimits) -> Option<String> {
    subject.problem.map(str::to_owned)
}

fn huge(subject: &Subject, limits: &FileLimits) -> Option<String> {
    let limit = limits.max_document_bytes;
    (subject.size > limit).then(|| format!("{} bytes, limit {limit}", subject.size))
}

fn empty(subject: &Subject, _: &FileLimits) -> Option<String> {
    let content = subject.bytes.strip_prefix(BOM.as_bytes()).unwrap_or(subject.bytes);
    content.trim_ascii().is_empty().then(|| format!("{} bytes of white space", subject.bytes.len()))
}

fn binary(subject: &Subject, limits: &FileLimits) -> Option<String> {
    controls(subject.bytes, limits.max_control_share)
}

/// Why bytes are no text: a zero byte, or too many control characters.
fn controls(bytes: &[u8], limit: f64) -> Option<String> {
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return Some(format!("a zero byte at {at}"));
    }
    // Tab, line feed, vertical tab, form feed and carriage return belong to text.
    let is_control = |byte: &&u8| byte.is_ascii_control() && !(b'\t'..=b'\r').contains(*byte);
    let found = share(bytes.iter().filter(is_control).count(), bytes.len());
    (found > limit).then(|| format!("{found:.3} of the bytes are control characters, limit {limit}"))
}

fn not_utf8(subject: &Subject, _: &FileLimits) -> Option<String> {
    let error = std::str::from_utf8(subject.bytes).err()?;
    Some(format!("an invalid byte at {}", error.valid_up_to()))
}

/// Makes texts that are read what those of plain files are, and drops what is none.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainText {
    max_control_share: f64,
}

impl Filter for PlainText {
    fn name(&self) -> &'static str {
        "plain_text"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let text = normalise(&document.text);
        if text.len() != document.text.len() {
            document.text = text.into_owned();
        }
        controls(document.text.as_bytes(), self.max_control_share)
            .map(|detail| Dropped::new("binary", detail))
    }
}

/// Drops texts of many bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Huge {
    max_bytes: u64,
}

impl Filter for Huge {
    fn name(&self) -> &'static str {
        "huge"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let (found, limit) = (document.text.len() as u64, self.max_bytes);
        (found > limit).then(|| Dropped::new(self.name(), format!("{found} bytes, limit {limit}")))
    }
}

/// Drops texts of few characters.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TooShort {
    min_characters: u64,
}

impl Filter for TooShort {
    fn name(&self) -> &'static str {
        "too_short"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let limit = self.min_characters;
        let found = document.text.trim().chars().count() as u64;
        (found < limit)
            .then(|| Dropped::new("too_short", format!("{found} characters, at least {limit} wanted")))
    }
}

/// Name of the filter that asks for the length of a text once more, when nothing will be taken out of it any more.
pub(crate) const TOO_LITTLE_LEFT: &str = "too_little_left";

/// The step [`TOO_LITTLE_LEFT`].
pub(crate) fn too_little_left(config: &CurateConfig) -> Result<Step, CurateError> {
    Step::with(TOO_LITTLE_LEFT, &TooShort { min_characters: config.min_characters })
}

/// Drops texts of which few characters are left; also those of which none is, whatever the limit.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct TooLittleLeft(TooShort);

impl Filter for TooLittleLeft {
    fn name(&self) -> &'static str {
        TOO_LITTLE_LEFT
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        TooShort { min_characters: self.0.min_characters.max(1) }.apply(document)
    }
}

/// Drops minified code and encoded data.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongLines {
    max_unbroken_run: u64,
    max_code_line: u64,
    max_code_mean_line: u64,
}

impl LongLines {
    fn found(&self, document: &Document) -> Option<String> {
        let is_graphic = |byte: u8| byte.is_ascii_graphic();
        // Only ASCII counts: scripts without spaces between words have long runs by nature.
        let runs = document.text.as_bytes().split(|&byte| !is_graphic(byte));
        let run = runs.map(<[u8]>::len).max().unwrap_or(0) as u64;
        if run > self.max_unbroken_run {
            return Some(format!("{run} characters without white space, limit {}", self.max_unbroken_run));
        }
        if document.domain != CODE {
            return None;
        }
        let (mut lines, mut total, mut longest) = (0, 0, 0);
        for line in document.text.lines() {
            let length = line.chars().count() as u64;
            lines += 1;
            total += length;
            longest = longest.max(length);
        }
        if longest > self.max_code_line {
            return Some(format!("a line of {longest} characters, limit {}", self.max_code_line));
        }
        let mean = total / lines.max(1);
        (mean > self.max_code_mean_line)
            .then(|| format!("{mean} characters per line, limit {}", self.max_code_mean_line))
    }
}

impl Filter for LongLines {
    fn name(&self) -> &'static str {
        "long_lines"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        self.found(document).map(|detail| Dropped::new(self.name(), detail))
    }
}

/// Drops texts of few letters.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LowLetters {
    min_share: f64,
}

impl Filter for LowLetters {
    fn name(&self) -> &'static str {
        "low_letters"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let (mut letters, mut visible) = (0, 0);
        for c in document.text.chars().filter(|c| !c.is_whitespace()) {
            visible += 1;
            letters += usize::from(c.is_alphabetic());
        }
        let found = share(letters, visible);
        let limit = self.min_share;
        (found < limit).then(|| {
            Dropped::new(
                self.name(),
                format!("{found:.3} of the characters are letters, at least {limit} wanted"),
            )
        })
    }
}

/// Drops texts whose lines come again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RepeatedLines {
    max_share: f64,
}

impl Filter for RepeatedLines {
    fn name(&self) -> &'static str {
        "repeated_lines"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let mut seen = HashSet::new();
        let (mut repeated, mut total) = (0, 0);
        // Short lines, such as a closing brace, repeat in every good program.
        for line in document.text.lines().map(str::trim).filter(|line| line.len() >= SHORT_LINE) {
            total += line.len();
            if !seen.insert(line) {
                repeated += line.len();
            }
        }
        let found = share(repeated, total);
        let limit = self.max_share;
        (found > limit).then(|| {
            Dropped::new(
                self.name(),
                format!("{found:.3} of the text is in lines seen before, limit {limit}"),
            )
        })
    }
}

/// Lines of fewer bytes are not counted as repetition.
const SHORT_LINE: usize = 16;

/// Drops code that says it was generated.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generated {}

impl Filter for Generated {
    fn name(&self) -> &'static str {
        "generated"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        if document.domain != CODE {
            return None;
        }
        let head = document.text.lines().take(HEAD_LINES).map(str::to_ascii_lowercase);
        for line in head {
            // Cargo rewrites every published manifest and says so; those are worth keeping.
            if line.contains("generated by cargo") {
                return None;
            }
            if let Some(marker) = GENERATED_MARKERS.into_iter().find(|&marker| line.contains(marker)) {
                let detail = format!("`{marker}` in the first {HEAD_LINES} lines");
                return Some(Dropped::new(self.name(), detail));
            }
        }
        None
    }
}

/// A file says that it is generated within so many lines.
const HEAD_LINES: usize = 10;

/// Lower-case words by which generators mark their output.
const GENERATED_MARKERS: [&str; 5] =
    ["@generated", "automatically generated", "auto-generated", "autogenerated", "file is generated"];

/// `part` of `whole`, 0 when there is nothing.
fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// The domain of natural language.
pub(crate) const PROSE: &str = "prose";
/// The domain of source code, manifests and other machine-readable text.
pub(crate) const CODE: &str = "code";

const PROSE_EXTENSIONS: [&str; 9] =
    ["md", "markdown", "mdx", "txt", "text", "rst", "adoc", "asciidoc", "org"];

const CODE_EXTENSIONS: [&str; 74] = [
    "asm", "awk", "bash", "bat", "c", "cc", "cfg", "clj", "cmake", "conf", "cpp", "cs", "css", "cu", "cuh",
    "cxx", "dart", "el", "erl", "ex", "exs", "f90", "fs", "go", "gradle", "groovy", "h", "hh", "hpp", "hs",
    "html", "in", "ini", "ipynb", "java", "jl", "js", "json", "jsonl", "jsx", "kt", "lisp", "lock", "lua",
    "m", "mjs", "mk", "ml", "mm", "nix", "php", "pl", "proto", "ps1", "py", "pyi", "r", "rb", "rs", "s",
    "scala", "scss", "sh", "sql", "swift", "toml", "ts", "tsx", "vim", "xml", "yaml", "yml", "zig", "zsh",
];

/// Files without an extension that are code all the same.
const CODE_NAMES: [&str; 5] = ["makefile", "dockerfile", "justfile", "rakefile", "gemfile"];

/// First words of the file names, upper case, that state licences, authors or an introduction.
const NOTICES: [&str; 11] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "UNLICENSE",
    "NOTICE",
    "README",
    "AUTHORS",
    "CHANGES",
    "CHANGELOG",
    "CONTRIBUTING",
];

/// Whether a file is a licence, a readme or the like without a real extension (`LICENSE-2.0` has none).
pub(crate) fn is_notice(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    NOTICES.iter().any(|notice| upper.starts_with(notice))
        && name
            .rsplit_once('.')
            .is_none_or(|(_, extension)| extension.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The domain of a document: by its file name, or for an unknown extension by the density of symbols in its text.
pub(crate) fn domain(name: &str, text: &str) -> &'static str {
    let lower = name.to_ascii_lowercase();
    let Some((_, extension)) = lower.rsplit_once('.') else {
        return if CODE_NAMES.contains(&lower.as_str()) { CODE } else { PROSE };
    };
    if is_notice(name) || PROSE_EXTENSIONS.contains(&extension) {
        return PROSE;
    }
    if CODE_EXTENSIONS.contains(&extension) {
        return CODE;
    }
    domain_of_text(text)
}

/// The domain of a text without a name that tells it.
pub(crate) fn domain_of_text(text: &str) -> &'static str {
    let symbols = text.bytes().filter(|byte| b"{}()[];=<>_&|\\/+*#$@".contains(byte)).count();
    let visible = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).count();
    if share(symbols, visible) > CODE_SYMBOL_SHARE { CODE } else { PROSE }
}

/// Text with more symbols than this among its visible bytes is code.
const CODE_SYMBOL_SHARE: f64 = 0.08;

/// The byte order mark.
const BOM: &str = "\u{feff}";

/// Takes away a leading byte order mark and turns CR LF into LF. Nothing else of a document changes.
pub(crate) fn normalise(text: &str) -> Cow<'_, str> {
    let text = text.strip_prefix(BOM).unwrap_or(text);
    if text.contains("\r\n") { Cow::Owned(text.replace("\r\n", "\n")) } else { Cow::Borrowed(text) }
}
