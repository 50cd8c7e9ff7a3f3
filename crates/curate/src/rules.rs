//! The quality rules: small pure functions over one document, in the order in which they are asked.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::CurateConfig;

/// Everything a rule may look at.
pub(crate) struct Subject<'a> {
    /// Why the file could not be read.
    pub(crate) problem: Option<&'a str>,
    /// Size of the file in bytes.
    pub(crate) size: u64,
    /// Content; empty when the file could not be read or is above the size limit.
    pub(crate) bytes: &'a [u8],
    /// Content as text, normalised; empty when it is not UTF-8.
    pub(crate) text: &'a str,
    /// [`PROSE`] or [`CODE`].
    pub(crate) domain: &'static str,
}

/// Says with a short detail why the document is dropped, or `None` to let it pass.
type Check = fn(&Subject, &CurateConfig) -> Option<String>;

/// Reason and check, in order. The first that speaks decides, so a rule may rely on those above it: from `too_short`
/// on, `text` is the whole document.
pub(crate) const RULES: [(&str, Check); 10] = [
    ("unreadable", unreadable),
    ("huge", huge),
    ("empty", empty),
    ("binary", binary),
    ("not_utf8", not_utf8),
    ("too_short", too_short),
    ("long_lines", long_lines),
    ("low_letters", low_letters),
    ("repeated_lines", repeated_lines),
    ("generated", generated),
];

/// The first rule that drops the document, and its detail.
pub(crate) fn judge(subject: &Subject, config: &CurateConfig) -> Option<(&'static str, String)> {
    RULES.iter().find_map(|&(reason, check)| check(subject, config).map(|detail| (reason, detail)))
}

fn unreadable(subject: &Subject, _: &CurateConfig) -> Option<String> {
    subject.problem.map(str::to_owned)
}

fn huge(subject: &Subject, config: &CurateConfig) -> Option<String> {
    let limit = config.max_document_bytes;
    (subject.size > limit).then(|| format!("{} bytes, limit {limit}", subject.size))
}

fn empty(subject: &Subject, _: &CurateConfig) -> Option<String> {
    let content = subject.bytes.strip_prefix(BOM.as_bytes()).unwrap_or(subject.bytes);
    content.trim_ascii().is_empty().then(|| format!("{} bytes of white space", subject.bytes.len()))
}

fn binary(subject: &Subject, config: &CurateConfig) -> Option<String> {
    if let Some(at) = subject.bytes.iter().position(|&byte| byte == 0) {
        return Some(format!("a zero byte at {at}"));
    }
    // Tab, line feed, vertical tab, form feed and carriage return belong to text.
    let is_control = |byte: &&u8| byte.is_ascii_control() && !(b'\t'..=b'\r').contains(*byte);
    let found = share(subject.bytes.iter().filter(is_control).count(), subject.bytes.len());
    (found > config.max_control_share).then(|| format!("{found:.3} control characters"))
}

fn not_utf8(subject: &Subject, _: &CurateConfig) -> Option<String> {
    let error = std::str::from_utf8(subject.bytes).err()?;
    Some(format!("an invalid byte at {}", error.valid_up_to()))
}

fn too_short(subject: &Subject, config: &CurateConfig) -> Option<String> {
    let limit = config.min_characters;
    let found = subject.text.trim().chars().count() as u64;
    (found < limit).then(|| format!("{found} characters, at least {limit} wanted"))
}

fn long_lines(subject: &Subject, config: &CurateConfig) -> Option<String> {
    let is_graphic = |byte: &u8| byte.is_ascii_graphic();
    // Only ASCII counts: scripts without spaces between words have long runs by nature.
    let run = subject.bytes.split(|byte| !is_graphic(byte)).map(<[u8]>::len).max().unwrap_or(0) as u64;
    if run > config.max_unbroken_run {
        return Some(format!("{run} characters without white space, limit {}", config.max_unbroken_run));
    }
    if subject.domain != CODE {
        return None;
    }
    let (mut lines, mut total, mut longest) = (0, 0, 0);
    for line in subject.text.lines() {
        let length = line.chars().count() as u64;
        lines += 1;
        total += length;
        longest = longest.max(length);
    }
    if longest > config.max_code_line {
        return Some(format!("a line of {longest} characters, limit {}", config.max_code_line));
    }
    let mean = total / lines.max(1);
    (mean > config.max_code_mean_line)
        .then(|| format!("{mean} characters per line, limit {}", config.max_code_mean_line))
}

fn low_letters(subject: &Subject, config: &CurateConfig) -> Option<String> {
    let (mut letters, mut visible) = (0, 0);
    for c in subject.text.chars().filter(|c| !c.is_whitespace()) {
        visible += 1;
        letters += usize::from(c.is_alphabetic());
    }
    let found = share(letters, visible);
    (found < config.min_letter_share).then(|| format!("{found:.3} letters"))
}

fn repeated_lines(subject: &Subject, config: &CurateConfig) -> Option<String> {
    let mut seen = HashSet::new();
    let (mut repeated, mut total) = (0, 0);
    // Short lines, such as a closing brace, repeat in every good program.
    for line in subject.text.lines().map(str::trim).filter(|line| line.len() >= SHORT_LINE) {
        total += line.len();
        if !seen.insert(line) {
            repeated += line.len();
        }
    }
    let found = share(repeated, total);
    (found > config.max_repeated_share).then(|| format!("{found:.3} of the text is in lines seen before"))
}

/// Lines of fewer bytes are not counted as repetition.
const SHORT_LINE: usize = 16;

fn generated(subject: &Subject, config: &CurateConfig) -> Option<String> {
    if !config.drop_generated || subject.domain != CODE {
        return None;
    }
    let head = subject.text.lines().take(HEAD_LINES).map(str::to_ascii_lowercase);
    for line in head {
        // Cargo rewrites every published manifest and says so; those are worth keeping.
        if line.contains("generated by cargo") {
            return None;
        }
        if let Some(marker) = GENERATED_MARKERS.into_iter().find(|&marker| line.contains(marker)) {
            return Some(format!("`{marker}` in the first {HEAD_LINES} lines"));
        }
    }
    None
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

/// blake3 of normalised text without white space at the ends of lines and of the text: equal for documents that
/// differ in nothing a reader can see.
pub(crate) fn fingerprint(text: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for line in text.trim_end().lines() {
        hasher.update(line.trim_end().as_bytes());
        hasher.update(b"\n");
    }
    *hasher.finalize().as_bytes()
}
