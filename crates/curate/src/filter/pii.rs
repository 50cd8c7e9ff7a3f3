//! Personal data and secrets: found, and dropped or replaced.
//!
//! Llama 3 (section 3.1.1) removes domains rich in them; FineWeb replaces e-mail addresses and public IP addresses. Names and street
//! addresses need a model and are not looked for.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::check_share;
use crate::{CurateError, Document, Dropped, Filter};

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
                b'-' | b'A' | b'g' | b'x' | b's' | b'e' => key(text, at).map(|range| (Kind::Key, range)),
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

    fn number(&self, text: &str, at: usize) -> Option<(Kind, Range<usize>)> {
        let bytes = text.as_bytes();
        // Only at the beginning of a run: inside one, everything has been tried.
        let before = at.checked_sub(1).map(|before| bytes[before]);
        if before.is_some_and(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'+') || byte >= 0x80
        }) {
            return None;
        }
        ip(text, at)
            .map(|range| (Kind::Ip, range))
            .or_else(|| ssn(bytes, at).map(|range| (Kind::Ssn, range)))
            .or_else(|| card(bytes, at).map(|range| (Kind::Card, range)))
            .or_else(|| phone(bytes, at, self.config.bare_phone_numbers).map(|range| (Kind::Phone, range)))
    }
}

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
        && name.split('.').all(|label| !label.is_empty());
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

/// Digits from `at` on with single separators between them: up to `most` digits, and where the last ends.
fn digits(bytes: &[u8], at: usize, most: usize, separators: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut digits, mut end, mut place) = (Vec::with_capacity(most), at, at);
    while let Some(&byte) = bytes.get(place) {
        if byte.is_ascii_digit() {
            if digits.len() == most {
                return None;
            }
            digits.push(byte - b'0');
            end = place + 1;
        } else if !separators.contains(&byte) || place + 1 != end + 1 {
            break;
        }
        place += 1;
    }
    let follows = bytes.get(end).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    (!follows).then_some((digits, end))
}

fn ssn(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let candidate = bytes.get(at..at + 11)?;
    let shape = candidate.iter().enumerate().all(|(place, byte)| match place {
        3 | 6 => *byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    let follows = bytes.get(at + 11).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    // Never given out.
    let invalid = candidate.starts_with(b"000")
        || candidate.starts_with(b"666")
        || candidate[0] == b'9'
        || &candidate[4..6] == b"00"
        || &candidate[7..] == b"0000";
    (shape && !follows && !invalid).then_some(at..at + 11)
}

fn card(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    if !matches!(bytes[at], b'3'..=b'6') {
        return None;
    }
    let (digits, end) = digits(bytes, at, 19, b" -")?;
    if digits.len() < 15 {
        return None;
    }
    // Luhn's check digit: every second digit from the right counts twice, with its own digits added.
    let double = |digit: u32| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, &digit)| if place % 2 == 1 { double(u32::from(digit)) } else { u32::from(digit) })
        .sum();
    sum.is_multiple_of(10).then_some(at..end)
}

fn phone(bytes: &[u8], at: usize, bare: bool) -> Option<Range<usize>> {
    let national = |digits: &[u8]| digits.len() == 10 && digits[0] >= 2 && digits[3] >= 2;
    match bytes[at] {
        b'+' => {
            let inner: Vec<u8> = bytes[at + 1..]
                .iter()
                .take(24)
                .map(|&byte| if matches!(byte, b'(' | b')') { b'-' } else { byte })
                .collect();
            if !inner.first().is_some_and(u8::is_ascii_digit) {
                return None;
            }
            // `) ` is two separators; an address of digits and them is read with all of them alike.
            let (mut count, mut end, mut gap) = (0, 0, 0);
            for (place, &byte) in inner.iter().enumerate() {
                match byte {
                    b'0'..=b'9' => (count, end, gap) = (count + 1, place + 1, 0),
                    b' ' | b'-' | b'.' if gap < 2 => gap += 1,
                    _ => break,
                }
            }
            (8..=15).contains(&count).then(|| at..at + 1 + end)
        }
        b'(' => {
            let area = bytes.get(at + 1..at + 4).filter(|area| area.iter().all(u8::is_ascii_digit))?;
            if bytes.get(at + 4) != Some(&b')') {
                return None;
            }
            let rest = at + 5 + usize::from(matches!(bytes.get(at + 5), Some(b' ' | b'-')));
            let (digits, end) = digits(bytes, rest, 7, b" -.")?;
            (area[0] >= b'2' && digits.len() == 7 && digits[0] >= 2).then_some(at..end)
        }
        b'2'..=b'9' => {
            let (digits, end) = digits(bytes, at, 10, b" -.")?;
            let separated =
                end - at == 12 && bytes[at + 3] == bytes[at + 7] && !bytes[at + 3].is_ascii_digit();
            (national(&digits) && (separated || bare && end - at == 10)).then_some(at..end)
        }
        b'1' if matches!(bytes.get(at + 1), Some(b'-' | b' ' | b'.')) => {
            let inner = phone(bytes, at + 2, false)?;
            Some(at..inner.end)
        }
        _ => None,
    }
}

/// Beginnings of tokens, and how many letters, digits, `_` and `-` follow at least.
const TOKENS: [(&str, usize); 13] = [
    ("AKIA", 16),
    ("ASIA", 16),
    ("AIza", 35),
    ("ghp_", 36),
    ("gho_", 36),
    ("ghs_", 36),
    ("ghu_", 36),
    ("github_pat_", 50),
    ("glpat-", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("sk-", 32),
    ("sk_live_", 24),
];

/// A block with a private key, a token that its beginning tells, or a signed web token.
fn key(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let rest = text.get(at..)?;
    if let Some(head) = rest.strip_prefix("-----BEGIN ") {
        let title = head.find("-----").filter(|&end| end < 64)?;
        if !head[..title].ends_with("PRIVATE KEY") && !head[..title].ends_with("PRIVATE KEY BLOCK") {
            return None;
        }
        let mark = format!("-----END {}-----", &head[..title]);
        // A key that is cut off is a key to the end of the text.
        return Some(at..rest.find(&mark).map_or(text.len(), |end| at + end + mark.len()));
    }
    if at.checked_sub(1).is_some_and(|before| bytes[before].is_ascii_alphanumeric() || bytes[before] == b'_')
    {
        return None;
    }
    let run = |from: usize| {
        bytes[from..]
            .iter()
            .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            .count()
    };
    for (begin, least) in TOKENS {
        if rest.starts_with(begin) {
            let from = at + begin.len();
            let length = run(from);
            let exact = !begin.ends_with("IA")
                || length == least
                    && bytes[from..from + length]
                        .iter()
                        .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
            return (length >= least && exact).then_some(at..from + length);
        }
    }
    if rest.starts_with("eyJ") {
        let mut end = at + run(at);
        for _ in 0..2 {
            if bytes.get(end) != Some(&b'.') {
                return None;
            }
            let length = run(end + 1);
            if length < 10 {
                return None;
            }
            end += 1 + length;
        }
        return Some(at..end);
    }
    None
}

impl Filter for Pii {
    fn name(&self) -> &'static str {
        "pii"
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
        if self.config.action == PiiAction::Redact && !found.is_empty() {
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
        document.tags.insert("pii".to_owned(), count as f64);
        None
    }
}
