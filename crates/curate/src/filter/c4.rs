//! The rules of C4: Raffel et al. 2020, *Exploring the Limits of Transfer Learning*, section 2.2. They drop lines, and documents of which
//! too little is left. The rules that its code has beyond the paper are here too; reasons are those of datatrove.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use serde::{Deserialize, Serialize};

use super::analysis::{Analysis, lines, sentences};
use super::characters::{ends_sentence, is_space, trim};
use crate::Dropped;
use crate::dedup::minhash::is_word_alone;

/// Keeps the lines that read like prose. `false` switches a rule off.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct C4 {
    /// Take `[12]`, `[edit]` and `[citation needed]` out of the lines.
    pub remove_citations: bool,
    /// Drop lines that do not end with a full stop, a question or exclamation mark of any script or a quotation mark, or that end
    /// with an ellipsis. Thai and Lao have no such marks: there any end will do.
    pub terminal_punctuation: bool,
    /// Fewer sentences in the lines that are left: `too_few_sentences`.
    #[serde(with = "super::off")]
    pub min_sentences: Option<u64>,
    /// Drop lines with fewer words: what is between white space, and every character of scripts without it.
    #[serde(with = "super::off")]
    pub min_words_per_line: Option<u64>,
    /// Drop lines with a longer word, in characters.
    #[serde(with = "super::off")]
    pub max_word_length: Option<u64>,
    /// Drop documents with "lorem ipsum", as `lorem_ipsum`.
    pub lorem_ipsum: bool,
    /// Drop lines that speak of JavaScript.
    pub javascript: bool,
    /// Drop documents with a curly bracket, as `curly_bracket`.
    pub curly_bracket: bool,
    /// Drop lines that speak of cookies, terms of use or a privacy policy.
    pub policy: bool,
}

impl Default for C4 {
    fn default() -> Self {
        Self {
            remove_citations: true,
            terminal_punctuation: true,
            min_sentences: Some(5),
            min_words_per_line: Some(3),
            max_word_length: Some(1000),
            lorem_ipsum: true,
            javascript: true,
            curly_bracket: true,
            policy: true,
        }
    }
}

/// "lorem ipsum", then "javascript", then phrases of policies.
const PHRASES: [&str; 8] = [
    "lorem ipsum",
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
];

static FINDER: LazyLock<Option<AhoCorasick>> =
    LazyLock::new(|| AhoCorasick::builder().ascii_case_insensitive(true).build(PHRASES).ok());

/// What a line speaks of.
#[derive(Default, Clone, Copy)]
struct Phrases {
    lorem_ipsum: bool,
    javascript: bool,
    policy: bool,
}

fn phrases(text: &str) -> Phrases {
    let mut found = Phrases::default();
    for hit in FINDER.iter().flat_map(|finder| finder.find_iter(text)) {
        match hit.pattern().as_usize() {
            0 => found.lorem_ipsum = true,
            1 => found.javascript = true,
            _ => found.policy = true,
        }
    }
    found
}

impl C4 {
    /// The text that is left, or why there is none. `None` where every line stays as it is.
    pub(super) fn apply(&self, analysis: &Analysis) -> Result<Option<String>, Dropped> {
        let text = analysis.text;
        let anywhere = phrases(text);
        let has_phrase = anywhere.lorem_ipsum || anywhere.javascript || anywhere.policy;
        let mut kept = String::with_capacity(text.len());
        let (mut total, mut next_word) = (0, 0);
        for (start, end) in lines(text) {
            let first_word = next_word;
            while analysis.words.get(next_word).is_some_and(|word| word.start < end) {
                next_word += 1;
            }
            let whole = trim(&text[start..end]);
            let (words, longest) = chunks(whole);
            if self.max_word_length.is_some_and(|limit| longest > limit) {
                continue;
            }
            let cleaned = if self.remove_citations { without_citations(whole) } else { None };
            let line = cleaned.as_deref().unwrap_or(whole);
            let ends = (line.ends_with(['"', '\'']) || ends_sentence(line)) && !line.ends_with("...");
            if self.terminal_punctuation && !ends
                || self.min_words_per_line.is_some_and(|limit| words < limit)
            {
                continue;
            }
            let found = if has_phrase { phrases(line) } else { anywhere };
            if self.lorem_ipsum && found.lorem_ipsum {
                return Err(Dropped::new("lorem_ipsum", "the filler text of typesetters"));
            }
            if self.javascript && found.javascript {
                continue;
            }
            if self.curly_bracket && line.contains('{') {
                return Err(Dropped::new("curly_bracket", "a `{`, as in code"));
            }
            if self.policy && found.policy {
                continue;
            }
            if self.min_sentences.is_some() {
                total += match &cleaned {
                    Some(line) => sentences(&Analysis::new(line).words),
                    None => sentences(&analysis.words[first_word..next_word]),
                };
            }
            if !kept.is_empty() {
                kept.push('\n');
            }
            kept.push_str(line);
        }
        if let Some(limit) = self.min_sentences.filter(|&limit| (total as u64) < limit) {
            let detail = format!("{total} sentences in the lines that are left, at least {limit} wanted");
            return Err(Dropped::new("too_few_sentences", detail));
        }
        let kept_text = trim(&kept);
        if kept_text == text {
            return Ok(None);
        }
        Ok(Some(if kept_text.len() == kept.len() { kept } else { kept_text.to_owned() }))
    }
}

/// Number of chunks between white space, and the length of the longest in characters. In scripts without spaces each
/// character is a chunk.
fn chunks(line: &str) -> (u64, u64) {
    let (mut count, mut longest) = (0, 0);
    let mut length = 0;
    let mut close = |length: &mut u64| {
        count += u64::from(*length > 0);
        longest = longest.max(*length);
        *length = 0;
    };
    if line.is_ascii() {
        for byte in line.bytes() {
            if matches!(byte, b' ' | b'\t'..=b'\r' | 0x1c..=0x1f) { close(&mut length) } else { length += 1 }
        }
    } else {
        for c in line.chars() {
            let alone = is_word_alone(c);
            if alone || is_space(c) {
                close(&mut length);
            }
            length += u64::from(!is_space(c));
            if alone {
                close(&mut length);
            }
        }
    }
    close(&mut length);
    (count, longest)
}

/// The line without its citations; `None` where there are none.
fn without_citations(line: &str) -> Option<String> {
    let mut cleaned: Option<String> = None;
    let mut copied = 0;
    for (at, _) in line.match_indices('[') {
        let inside = &line[at + 1..];
        let digits = inside.len() - inside.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let length = if inside[digits..].starts_with(']') {
            digits + 1
        } else if inside.starts_with("edit]") {
            5
        } else if inside.starts_with("citation needed]") {
            16
        } else {
            continue;
        };
        let out = cleaned.get_or_insert_default();
        out.push_str(&line[copied..at]);
        copied = at + 1 + length;
    }
    let mut out = cleaned?;
    out.push_str(&line[copied..]);
    Some(out)
}
