//! Personal data and secrets: found, and dropped or replaced.
//!
//! Llama 3 (section 3.1.1) removes domains rich in them; FineWeb replaces e-mail addresses and public IP addresses. Names and street
//! addresses need a model and are not looked for.

mod key;
mod numbers;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::check_share;
use crate::dedup::is_word_alone;
use crate::{CurateError, Document, Dropped, Filter, Item};

/// What was found.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An e-mail address.
    Email,
    /// An address of the public internet; private and reserved ranges are nobody's.
    Ip,
    /// A telephone number: with `+` and a country, or as North America writes them.
    Phone,
    /// The number of a payment card, with a valid check digit.
    Card,
    /// A social security number of the USA, with its hyphens.
    Ssn,
    /// A private key, or a token of a service whose form tells it.
    Key,
}

impl Kind {
    const ALL: [Kind; 6] = [Kind::Email, Kind::Ip, Kind::Phone, Kind::Card, Kind::Ssn, Kind::Key];

    /// What stands in its place.
    fn placeholder(self) -> &'static str {
        match self {
            Kind::Email => "[EMAIL]",
            Kind::Ip => "[IP]",
            Kind::Phone => "[PHONE]",
            Kind::Card => "[CARD]",
            Kind::Ssn => "[SSN]",
            Kind::Key => "[KEY]",
        }
    }

    /// Its name in recipes and details.
    fn name(self) -> &'static str {
        match self {
            Kind::Email => "email",
            Kind::Ip => "ip",
            Kind::Phone => "phone",
            Kind::Card => "card",
            Kind::Ssn => "ssn",
            Kind::Key => "key",
        }
    }
}

/// What happens to findings in documents that are kept.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "snake_case")]
pub enum PiiAction {
    /// A word such as `[EMAIL]` takes their place.
    #[default]
    Redact,
    /// They stay; only the tag says that they are there.
    Tag,
}

/// What is looked for, and what happens then.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct PiiConfig {
    /// What is looked for.
    pub kinds: Vec<Kind>,
    /// What happens in documents that are kept.
    pub action: PiiAction,
    /// More findings than this: the document is dropped as `pii`.
    #[serde(with = "super::off")]
    pub max_count: Option<u64>,
    /// More findings per 1,000 characters: the document is dropped as `pii`.
    #[serde(with = "super::off")]
    pub max_density: Option<f64>,
    /// Take ten digits in a row for a telephone number, too. Many are not.
    pub bare_phone_numbers: bool,
}

impl Default for PiiConfig {
    fn default() -> Self {
        Self {
            kinds: Kind::ALL.to_vec(),
            action: PiiAction::Redact,
            max_count: None,
            max_density: None,
            bare_phone_numbers: false,
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Where it is, in bytes of the text.
    pub range: Range<usize>,
}

/// The tag with the number of findings.
const TAG: &str = "pii";

/// The filter of [`PiiConfig`]. Tags documents with the number of findings, `pii`.
pub struct Pii {
    config: PiiConfig,
}

impl Pii {
    /// With these settings.
    ///
    /// # Errors
    /// A density out of range, nothing to look for.
    pub fn new(config: &PiiConfig) -> Result<Pii, CurateError> {
        check_share("pii.max_density", config.max_density, 1000.0)?;
        if config.kinds.is_empty() {
            let (found, allowed) = ("[]".to_owned(), "one kind at least".to_owned());
            return Err(CurateError::BadFilter { key: "pii.kinds".to_owned(), found, allowed });
        }
        Ok(Pii { config: config.clone() })
    }

    /// All findings, in order and without overlaps.
    #[must_use]
    pub fn find(&self, text: &str) -> Vec<Finding> {
        let bytes = text.as_bytes();
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let finding = match bytes[at] {
                b'@' => email(text, at).map(|range| (Kind::Email, range)),
                b'-' | b'A' | b'g' | b'x' | b's' | b'e' => key::key(text, at).map(|range| (Kind::Key, range)),
                b'0'..=b'9' | b'+' | b'(' => self.number(text, at),
                _ => None,
            };
            match finding {
                Some((kind, range)) if self.config.kinds.contains(&kind) => {
                    at = range.end.max(at + 1);
                    // An address ends behind a sign that something else may have begun before.
                    while found.last().is_some_and(|last: &Finding| last.range.end > range.start) {
                        found.pop();
                    }
                    found.push(Finding { kind, range });
                }
                _ => at += 1,
            }
        }
        found
    }

    /// Whether words take the place of what was found in a document.
    fn redacts(&self, document: &Document) -> bool {
        self.config.action == PiiAction::Redact && document.tags.get(TAG).is_some_and(|&count| count > 0.0)
    }

    fn number(&self, text: &str, at: usize) -> Option<(Kind, Range<usize>)> {
        let bytes = text.as_bytes();
        // Only at the beginning of a run: inside one, everything has been tried.
        // A space that does not break, or a wide colon, is no part of one.
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() && !is_word_alone(c) || matches!(c, '.' | '_' | '+')) {
            return None;
        }
        ip(text, at)
            .map(|range| (Kind::Ip, range))
            .or_else(|| numbers::ssn(bytes, at).map(|range| (Kind::Ssn, range)))
            .or_else(|| numbers::card(bytes, at).map(|range| (Kind::Card, range)))
            .or_else(|| {
                numbers::phone(bytes, at, self.config.bare_phone_numbers).map(|range| (Kind::Phone, range))
            })
    }
}

/// What stands behind the last dot of `icon@2x.png` or `A@B.dot(C)`: endings of files that are no domains, and operations on matrices.
const NO_DOMAINS: [&str; 74] = [
    "avi",
    "bak",
    "bib",
    "bmp",
    "class",
    "conf",
    "conj",
    "cpp",
    "cs",
    "css",
    "csv",
    "dat",
    "diff",
    "dll",
    "doc",
    "docx",
    "dot",
    "eot",
    "eps",
    "epub",
    "exe",
    "flatten",
    "gif",
    "hpp",
    "htm",
    "html",
    "ico",
    "ini",
    "inv",
    "ipynb",
    "jar",
    "jpeg",
    "jpg",
    "js",
    "json",
    "jsonl",
    "jsx",
    "less",
    "lock",
    "log",
    "mean",
    "mjs",
    "mkv",
    "numpy",
    "ogg",
    "otf",
    "patch",
    "pdf",
    "php",
    "png",
    "psd",
    "rar",
    "reshape",
    "scss",
    "shape",
    "sql",
    "sum",
    "svg",
    "tar",
    "tex",
    "tgz",
    "tif",
    "tiff",
    "toml",
    "transpose",
    "tsx",
    "ttf",
    "txt",
    "wav",
    "webm",
    "webp",
    "woff",
    "xml",
    "yaml",
];

/// An address around the `@` at `at`.
fn email(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let local = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~.-".contains(byte);
    let mut start = at - bytes[..at].iter().rev().take(64).take_while(|byte| local(byte)).count();
    while start < at && !bytes[start].is_ascii_alphanumeric() {
        start += 1;
    }
    let domain = &bytes[at + 1..];
    let mut end = domain
        .iter()
        .take(253)
        .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
        .count();
    while end > 0 && !domain[end - 1].is_ascii_alphanumeric() {
        end -= 1;
    }
    let domain = &text[at + 1..at + 1 + end];
    let (name, ending) = domain.rsplit_once('.')?;
    let good = start < at
        && bytes[at - 1] != b'.'
        && ending.len() >= 2
        && ending.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-')
        && name.split('.').all(|label| !label.is_empty())
        && NO_DOMAINS.binary_search(&ending.to_ascii_lowercase().as_str()).is_err();
    good.then(|| start..at + 1 + end)
}

/// A public address of version 4, or of version 6, of which all begin with a digit.
fn ip(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let run = |wanted: fn(&u8) -> bool| bytes[at..].iter().take(46).take_while(|&byte| wanted(byte)).count();
    let mut length = run(|byte| byte.is_ascii_digit() || *byte == b'.');
    while length > 0 && bytes[at + length - 1] == b'.' {
        length -= 1;
    }
    let follows = bytes.get(at + length).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    if (7..=15).contains(&length)
        && !follows
        && let Ok(address) = text[at..at + length].parse::<Ipv4Addr>()
    {
        return is_public(address).then_some(at..at + length);
    }
    let mut length = run(|byte| byte.is_ascii_hexdigit() || *byte == b':');
    while length > 0 && bytes[at + length - 1] == b':' && !text[at..at + length].ends_with("::") {
        length -= 1;
    }
    let candidate = &text[at..at + length];
    if length < 8 || candidate.bytes().filter(|&byte| byte == b':').count() < 3 {
        return None;
    }
    let address = candidate.parse::<Ipv6Addr>().ok()?;
    let [first, second, ..] = address.segments();
    // Global unicast, without the range for documents.
    ((first & 0xE000) == 0x2000 && (first, second) != (0x2001, 0x0db8)).then_some(at..at + length)
}

/// Not private, shared, local, reserved, for documents or for groups.
fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || a == 0
        || a >= 224
        || a == 100 && (64..128).contains(&b)
        || (a, b, c) == (192, 0, 0)
        || a == 198 && (18..20).contains(&b))
}

impl Filter for Pii {
    fn name(&self) -> &'static str {
        "pii"
    }

    fn pass(&self, item: &mut Item) -> Result<(), CurateError> {
        match self.apply(&mut item.document) {
            Some(dropped) => item.drop_for(self.name(), dropped),
            // `[EMAIL]` may be as long as what it stands for.
            None if self.redacts(&item.document) => item.changed(self.name()),
            None => {}
        }
        Ok(())
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let found = self.find(&document.text);
        let count = found.len() as u64;
        let summary = || {
            let of = |kind: Kind| (kind, found.iter().filter(|finding| finding.kind == kind).count());
            let parts = Kind::ALL.map(of).into_iter().filter(|(_, count)| *count > 0);
            parts.map(|(kind, count)| format!("{count} {}", kind.name())).collect::<Vec<_>>().join(", ")
        };
        if let Some(limit) = self.config.max_count.filter(|&limit| count > limit) {
            return Some(Dropped::new("pii", format!("{}, limit {limit}", summary())));
        }
        let density = count as f64 * 1000.0 / document.text.chars().count().max(1) as f64;
        if let Some(limit) = self.config.max_density.filter(|&limit| density > limit) {
            return Some(Dropped::new(
                "pii",
                format!("{}: {density:.2} per 1,000 characters, limit {limit}", summary()),
            ));
        }
        document.tags.insert(TAG.to_owned(), count as f64);
        if self.redacts(document) {
            let mut text = String::with_capacity(document.text.len());
            let mut copied = 0;
            for finding in &found {
                text.push_str(&document.text[copied..finding.range.start]);
                text.push_str(finding.kind.placeholder());
                copied = finding.range.end;
            }
            text.push_str(&document.text[copied..]);
            document.text = text;
        }
        None
    }
}
