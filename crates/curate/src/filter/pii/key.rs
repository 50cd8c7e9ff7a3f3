//! Private keys, and tokens of services.

use std::ops::Range;

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
pub(super) fn key(text: &str, at: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let rest = text.get(at..)?;
    if let Some(head) = rest.strip_prefix("-----BEGIN ") {
        let title = head.find("-----").filter(|&end| end < 64)?;
        if !head[..title].ends_with("PRIVATE KEY") && !head[..title].ends_with("PRIVATE KEY BLOCK") {
            return None;
        }
        return body(text, at + "-----BEGIN ".len() + title + 5, &head[..title]).map(|end| at..end);
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
            let exact = exact && (begin != "sk-" || is_random(&rest[begin.len()..begin.len() + length]));
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

/// Whether a token is no name of several words, as style sheets have them.
fn is_random(token: &str) -> bool {
    let is_word = |part: &&str| part.len() > 1 && part.bytes().all(|byte| byte.is_ascii_lowercase());
    token.bytes().filter(u8::is_ascii_digit).count() > 1
        && token.split(['-', '_']).filter(is_word).count() < 3
}

/// Fewest characters of a line that make a key where no end of it is marked; whole lines have 64 or more.
const LINE: usize = 32;

/// Lines of a block that are no base64.
const HEADERS: [&str; 6] = ["Proc-Type:", "DEK-Info:", "Version:", "Comment:", "Hash:", "Charset:"];

/// Most such lines, and most bytes of one: what only looks like a key must not be walked through again and again.
const MAX_HEADERS: usize = 8;
const MAX_HEADER: usize = 128;

/// The end of the key that follows the mark up to `from`. A key that is cut off ends with its last line of base64, and a mark
/// that no key follows, as in a text on keys, is none.
fn body(text: &str, from: usize, title: &str) -> Option<usize> {
    let mark = format!("-----END {title}-----");
    let bytes = text.as_bytes();
    let (mut at, mut end, mut short, mut headers) = (from, None, 0, 0);
    while at < bytes.len() {
        let rest = &text[at..];
        if rest.starts_with(&mark) {
            return (end.is_some() || short > 0).then_some(at + mark.len());
        }
        // Programs have keys in quotes, with their line feeds as `\n`; letters have a `>` before each line.
        if rest.starts_with("\\n") || rest.starts_with("\\r") {
            at += 2;
            continue;
        }
        if bytes[at].is_ascii_whitespace() || b"\"'`,;#>*|+\\".contains(&bytes[at]) {
            at += 1;
            continue;
        }
        let header = HEADERS.iter().find(|header| rest.starts_with(**header));
        if let Some(header) = header.filter(|_| end.is_none() && headers < MAX_HEADERS) {
            headers += 1;
            let line = rest.bytes().take(MAX_HEADER).position(|byte| byte == b'\n');
            at += line.unwrap_or_else(|| {
                // Where line feeds became spaces, its value is one word.
                let value = rest[header.len()..].trim_start();
                let word = value.split_whitespace().next().unwrap_or_default();
                rest.len() - value.len() + word.len()
            });
            continue;
        }
        let is_base64 = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(**byte, b'+' | b'/' | b'=');
        let length = bytes[at..].iter().take_while(is_base64).count();
        let stops = bytes.get(at + length).is_none_or(|&byte| {
            byte.is_ascii_whitespace()
                || b"\"'`,;|\\".contains(&byte)
                || text[at + length..].starts_with(&mark)
        });
        if length == 0 || !stops {
            break;
        }
        // A short line is the last, but for a checksum; one of small letters is a word.
        let is_word = length < LINE && bytes[at..at + length].iter().all(u8::is_ascii_lowercase);
        if is_word || short > 0 && (length >= LINE || bytes[at] != b'=') {
            break;
        }
        at += length;
        if length >= LINE { end = Some(at) } else { short += 1 }
    }
    end
}
