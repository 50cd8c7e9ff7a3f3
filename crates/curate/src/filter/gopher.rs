//! The rules of Gopher: Rae et al. 2021, *Scaling Language Models: Methods, Analysis & Insights from Training Gopher*, appendix A.1.1,
//! tables A1 and A2. Reasons and the reading of each rule are those of datatrove.

use std::cell::RefCell;
use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::analysis::{Analysis, HashCounter, characters, hash, lines, words_for_one};
use super::characters::{is_space, trim};
use super::{Rule, check_share, share};
use crate::{CurateError, Dropped};

/// Is the text made of words? `false` switches a rule off.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct GopherQuality {
    /// Fewer words than this: `gopher_short_doc`. Marks do not count; every character of scripts without spaces does.
    #[serde(with = "super::off")]
    pub min_words: Option<u64>,
    /// More words than this: `gopher_long_doc`.
    #[serde(with = "super::off")]
    pub max_words: Option<u64>,
    /// Mean word shorter than this, in characters: `gopher_below_avg_threshold`.
    #[serde(with = "super::off")]
    pub min_mean_word: Option<f64>,
    /// Mean word longer than this, in characters: `gopher_above_avg_threshold`.
    #[serde(with = "super::off")]
    pub max_mean_word: Option<f64>,
    /// More hash signs, or ellipses, per word: `gopher_too_many_hashes`, `gopher_too_many_ellipsis`.
    #[serde(with = "super::off")]
    pub max_symbol_ratio: Option<f64>,
    /// More of the lines begin with a bullet: `gopher_too_many_bullets`.
    #[serde(with = "super::off")]
    pub max_bullet_lines: Option<f64>,
    /// More of the lines end with an ellipsis: `gopher_too_many_end_ellipsis`.
    #[serde(with = "super::off")]
    pub max_ellipsis_lines: Option<f64>,
    /// Fewer of the words have a letter: `gopher_below_alpha_threshold`.
    #[serde(with = "super::off")]
    pub min_alphabetic: Option<f64>,
    /// Fewer different stop words: `gopher_enough_stop_words`.
    #[serde(with = "super::off")]
    pub min_stop_words: Option<u64>,
    /// The stop words, as they are written in the text.
    pub stop_words: Vec<String>,
}

impl Default for GopherQuality {
    fn default() -> Self {
        let stop_words = ["the", "be", "to", "of", "and", "that", "have", "with"];
        Self {
            min_words: Some(50),
            max_words: Some(100_000),
            min_mean_word: Some(3.0),
            max_mean_word: Some(10.0),
            max_symbol_ratio: Some(0.1),
            max_bullet_lines: Some(0.9),
            max_ellipsis_lines: Some(0.3),
            min_alphabetic: Some(0.8),
            min_stop_words: Some(2),
            stop_words: stop_words.map(str::to_owned).to_vec(),
        }
    }
}

impl Rule for GopherQuality {
    fn validate(&self) -> Result<(), CurateError> {
        check_share("gopher_quality.max_symbol_ratio", self.max_symbol_ratio, f64::MAX)?;
        check_share("gopher_quality.min_mean_word", self.min_mean_word, f64::MAX)?;
        check_share("gopher_quality.max_mean_word", self.max_mean_word, f64::MAX)?;
        check_share("gopher_quality.max_bullet_lines", self.max_bullet_lines, 1.0)?;
        check_share("gopher_quality.max_ellipsis_lines", self.max_ellipsis_lines, 1.0)?;
        check_share("gopher_quality.min_alphabetic", self.min_alphabetic, 1.0)
    }

    fn judge(&self, analysis: &Analysis) -> Option<Dropped> {
        let words = &analysis.words;
        let (mut real, mut letters, mut alphabetic, mut measured) = (0_u64, 0_u64, 0_usize, 0_u64);
        for word in words {
            if !word.is_symbolic() {
                real += 1;
                // A character that counts as a word says nothing of the length of words.
                if !word.is_alone() {
                    measured += 1;
                    letters += u64::from(word.characters);
                }
            }
            alphabetic += usize::from(word.is_alphabetic());
        }
        if let Some(limit) = self.min_words.filter(|&limit| real < limit) {
            return Some(Dropped::new("gopher_short_doc", format!("{real} words, at least {limit} wanted")));
        }
        if let Some(limit) = self.max_words.filter(|&limit| real > limit) {
            return Some(Dropped::new("gopher_long_doc", format!("{real} words, limit {limit}")));
        }
        // Without a single word there is no mean, and nothing to say of it; nor where most words are characters.
        let is_measured = measured > 0 && measured * 2 >= real;
        let mean = letters as f64 / measured.max(1) as f64;
        if let Some(limit) = self.min_mean_word.filter(|&limit| is_measured && mean < limit) {
            return Some(Dropped::new(
                "gopher_below_avg_threshold",
                format!("words of {mean:.2} characters, at least {limit} wanted"),
            ));
        }
        if let Some(limit) = self.max_mean_word.filter(|&limit| is_measured && mean > limit) {
            return Some(Dropped::new(
                "gopher_above_avg_threshold",
                format!("words of {mean:.2} characters, limit {limit}"),
            ));
        }
        self.judge_symbols(analysis)
            .or_else(|| self.judge_lines(analysis.text))
            .or_else(|| {
                let found = share(alphabetic, words.len());
                self.min_alphabetic.filter(|&limit| found < limit).map(|limit| {
                    Dropped::new(
                        "gopher_below_alpha_threshold",
                        format!("{found:.3} of the words have letters, at least {limit} wanted"),
                    )
                })
            })
            .or_else(|| self.judge_stop_words(analysis))
    }
}

impl GopherQuality {
    fn judge_symbols(&self, analysis: &Analysis) -> Option<Dropped> {
        let limit = self.max_symbol_ratio?;
        let bytes = analysis.text.as_bytes();
        let hashes = bytes.iter().filter(|&&byte| byte == b'#').count();
        let found = share(hashes, analysis.words.len());
        if found > limit {
            return Some(Dropped::new(
                "gopher_too_many_hashes",
                format!("{found:.3} per word, limit {limit}"),
            ));
        }
        let ellipses = ellipses(bytes);
        let found = share(ellipses, analysis.words.len());
        (found > limit)
            .then(|| Dropped::new("gopher_too_many_ellipsis", format!("{found:.3} per word, limit {limit}")))
    }

    fn judge_lines(&self, text: &str) -> Option<Dropped> {
        if self.max_bullet_lines.is_none() && self.max_ellipsis_lines.is_none() {
            return None;
        }
        let (mut count, mut bullets, mut ellipses) = (0, 0, 0);
        for (start, end) in lines(text) {
            let line = trim(&text[start..end]);
            count += 1;
            bullets += usize::from(line.starts_with(['•', '-']));
            ellipses += usize::from(line.ends_with("...") || line.ends_with('…'));
        }
        let found = share(bullets, count);
        if let Some(limit) = self.max_bullet_lines.filter(|&limit| found > limit) {
            return Some(Dropped::new(
                "gopher_too_many_bullets",
                format!("{found:.3} of the lines, limit {limit}"),
            ));
        }
        let found = share(ellipses, count);
        let limit = self.max_ellipsis_lines.filter(|&limit| found > limit)?;
        Some(Dropped::new("gopher_too_many_end_ellipsis", format!("{found:.3} of the lines, limit {limit}")))
    }

    fn judge_stop_words(&self, analysis: &Analysis) -> Option<Dropped> {
        let limit = self.min_stop_words?;
        let mut stop: Vec<u64> = self.stop_words.iter().map(|word| hash(word.as_bytes())).collect();
        stop.sort_unstable();
        stop.dedup();
        let mut missing = stop;
        let total = missing.len();
        for word in &analysis.words {
            if (total - missing.len()) as u64 >= limit {
                return None;
            }
            if let Some(at) = missing.iter().position(|&stop| stop == word.hash) {
                missing.swap_remove(at);
            }
        }
        let found = (total - missing.len()) as u64;
        (found < limit).then(|| {
            Dropped::new(
                "gopher_enough_stop_words",
                format!("{found} different stop words, at least {limit} wanted"),
            )
        })
    }
}

/// Runs of three full stops, and ellipsis characters.
fn ellipses(bytes: &[u8]) -> usize {
    let (mut count, mut dots) = (0, 0);
    for (at, &byte) in bytes.iter().enumerate() {
        if byte == b'.' {
            dots += 1;
            if dots == 3 {
                (count, dots) = (count + 1, 0);
            }
        } else {
            dots = 0;
            count += usize::from(byte == 0xE2 && bytes[at..].starts_with("…".as_bytes()));
        }
    }
    count
}

/// Does the text say things again and again? `false` or an empty list switches a rule off.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct GopherRepetition {
    /// More of the lines were there before: `dup_line_frac`.
    #[serde(with = "super::off")]
    pub max_duplicate_lines: Option<f64>,
    /// More of the paragraphs were there before: `dup_para_frac`.
    #[serde(with = "super::off")]
    pub max_duplicate_paragraphs: Option<f64>,
    /// More of the characters are in such lines: `dup_line_char_frac`.
    #[serde(with = "super::off")]
    pub max_duplicate_line_characters: Option<f64>,
    /// More of the characters are in such paragraphs: `dup_para_char_frac`.
    #[serde(with = "super::off")]
    pub max_duplicate_paragraph_characters: Option<f64>,
    /// Of n-grams with so many words, the most frequent has more of the characters: `top_2_gram` and so on.
    pub max_top_ngrams: Vec<(usize, f64)>,
    /// More of the characters are in n-grams that were there before: `duplicated_5_n_grams` and so on.
    pub max_duplicate_ngrams: Vec<(usize, f64)>,
}

impl Default for GopherRepetition {
    fn default() -> Self {
        Self {
            max_duplicate_lines: Some(0.3),
            max_duplicate_paragraphs: Some(0.3),
            max_duplicate_line_characters: Some(0.2),
            max_duplicate_paragraph_characters: Some(0.2),
            max_top_ngrams: vec![(2, 0.2), (3, 0.18), (4, 0.16)],
            max_duplicate_ngrams: vec![(5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1)],
        }
    }
}

/// Most words in an n-gram that a rule may ask for.
const MAX_NGRAM: usize = 64;

thread_local! {
    /// Kept from document to document, so that none of them allocates.
    static COUNTER: RefCell<HashCounter> = RefCell::default();
}

/// Lends this thread's counter.
pub(super) fn with_counter<T>(work: impl FnOnce(&mut HashCounter) -> T) -> T {
    COUNTER.with(|counter| work(&mut counter.borrow_mut()))
}

impl Rule for GopherRepetition {
    fn validate(&self) -> Result<(), CurateError> {
        check_share("gopher_repetition.max_duplicate_lines", self.max_duplicate_lines, 1.0)?;
        check_share("gopher_repetition.max_duplicate_paragraphs", self.max_duplicate_paragraphs, 1.0)?;
        check_share(
            "gopher_repetition.max_duplicate_line_characters",
            self.max_duplicate_line_characters,
            1.0,
        )?;
        check_share(
            "gopher_repetition.max_duplicate_paragraph_characters",
            self.max_duplicate_paragraph_characters,
            1.0,
        )?;
        for &(words, limit) in self.max_top_ngrams.iter().chain(&self.max_duplicate_ngrams) {
            check_share("gopher_repetition.max_top_ngrams, max_duplicate_ngrams", Some(limit), 1.0)?;
            if !(1..=MAX_NGRAM).contains(&words) {
                return Err(CurateError::BadFilter {
                    key: "gopher_repetition.max_top_ngrams, max_duplicate_ngrams".to_owned(),
                    found: format!("n-grams of {words} words"),
                    allowed: format!("from 1 to {MAX_NGRAM}"),
                });
            }
        }
        Ok(())
    }

    fn judge(&self, analysis: &Analysis) -> Option<Dropped> {
        if analysis.text.is_empty() {
            return Some(Dropped::new("empty", "no text"));
        }
        with_counter(|counter| {
            self.judge_pieces(analysis, counter)
                .or_else(|| self.judge_top(analysis, counter))
                .or_else(|| self.judge_duplicates(analysis, counter))
        })
    }
}

/// How many pieces there are, how many were there before, and the characters of those.
struct Pieces {
    count: usize,
    repeated: usize,
    characters: usize,
}

fn count_pieces<'a>(pieces: impl Iterator<Item = &'a str>, counter: &mut HashCounter, room: usize) -> Pieces {
    let mut found = Pieces { count: 0, repeated: 0, characters: 0 };
    counter.reset(room);
    for piece in pieces {
        found.count += 1;
        if counter.add(hash(piece.as_bytes())) > 0 {
            found.repeated += 1;
            found.characters += characters(piece);
        }
    }
    found
}

/// The parts of a text between runs of at least `least` line feeds.
fn between_feeds(text: &str, least: usize) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next?;
        let mut at = start;
        while at < bytes.len() {
            if bytes[at] == b'\n' {
                let run = bytes[at..].iter().take_while(|&&byte| byte == b'\n').count();
                if run >= least {
                    next = Some(at + run);
                    return Some(&text[start..at]);
                }
                at += run;
            } else {
                at += 1;
            }
        }
        next = None;
        Some(&text[start..])
    })
}

/// A rule that looks at `found` of something and allows `limit`.
fn above(reason: &str, found: f64, limit: Option<f64>, what: &str) -> Option<Dropped> {
    let limit = limit.filter(|&limit| found > limit)?;
    Some(Dropped::new(reason, format!("{found:.3} of the {what}, limit {limit}")))
}

impl GopherRepetition {
    fn judge_pieces(&self, analysis: &Analysis, counter: &mut HashCounter) -> Option<Dropped> {
        let text = analysis.text;
        let feeds = text.bytes().filter(|&byte| byte == b'\n').count();
        let found = count_pieces(between_feeds(text.trim_matches(is_space), 2), counter, feeds + 1);
        above(
            "dup_para_frac",
            share(found.repeated, found.count),
            self.max_duplicate_paragraphs,
            "paragraphs",
        )
        .or_else(|| {
            let found = share(found.characters, analysis.characters);
            above("dup_para_char_frac", found, self.max_duplicate_paragraph_characters, "characters")
        })
        .or_else(|| {
            let found = count_pieces(between_feeds(text, 1), counter, feeds + 1);
            let lines = share(found.repeated, found.count);
            above("dup_line_frac", lines, self.max_duplicate_lines, "lines").or_else(|| {
                let found = share(found.characters, analysis.characters);
                above("dup_line_char_frac", found, self.max_duplicate_line_characters, "characters")
            })
        })
    }

    fn judge_top(&self, analysis: &Analysis, counter: &mut HashCounter) -> Option<Dropped> {
        let words = &analysis.words;
        let for_one = words_for_one(words);
        for &(count, limit) in &self.max_top_ngrams {
            let length = count * for_one;
            counter.reset(words.len());
            let (mut best, mut best_at) = (0, 0);
            // Which n-gram is the most frequent is known only at the end; of equals, the first that was seen. Going backwards,
            // the last of the maximum is the one that begins first.
            let mut counts: Vec<u32> = Vec::new();
            ngrams(words, length, |_, hash| counts.push(counter.add(hash) + 1));
            let top = counts.iter().copied().max().unwrap_or(0);
            if top == 0 {
                continue;
            }
            if top == 1 {
                best = 1;
            } else {
                // The n-gram whose first occurrence is the earliest among those that reach `top`.
                let mut winners = HashSet::new();
                let mut at = 0;
                ngrams(words, length, |_, hash| {
                    if counts[at] == top {
                        winners.insert(hash);
                    }
                    at += 1;
                });
                ngrams(words, length, |at, hash| {
                    if best == 0 && winners.contains(&hash) {
                        (best, best_at) = (top, at);
                    }
                });
            }
            let size: usize =
                words[best_at..best_at + length].iter().map(|word| word.characters as usize).sum();
            let spaces = if for_one == 1 { length - 1 } else { 0 };
            let found = share((size + spaces) * best as usize, analysis.characters);
            if found > limit {
                let ngram = &analysis.text[words[best_at].start..words[best_at + length - 1].end];
                let detail = format!(
                    "`{}` makes up {found:.3} of the characters, limit {limit}",
                    ngram.escape_debug()
                );
                return Some(Dropped::new(&format!("top_{count}_gram"), detail));
            }
        }
        None
    }

    fn judge_duplicates(&self, analysis: &Analysis, counter: &mut HashCounter) -> Option<Dropped> {
        let mut none_from = usize::MAX;
        let for_one = words_for_one(&analysis.words);
        for &(count, limit) in &self.max_duplicate_ngrams {
            let length = count * for_one;
            // Where no n-gram comes twice, no longer one does.
            if length >= none_from {
                continue;
            }
            let repeated = repeated_characters(analysis, length, counter);
            if repeated == 0 {
                none_from = length;
            }
            let found = share(repeated, analysis.characters);
            if found > limit {
                let detail = format!("{found:.3} of the characters, limit {limit}");
                return Some(Dropped::new(&format!("duplicated_{count}_n_grams"), detail));
            }
        }
        None
    }
}

/// Odd, so that no information is lost when hashes of words are combined.
const FACTOR: u64 = 0x9FB2_1C65_1E98_DF25;

/// Calls `visit` with the first word and the hash of each n-gram.
pub(crate) fn ngrams(words: &[super::analysis::Word], length: usize, mut visit: impl FnMut(usize, u64)) {
    if words.len() < length {
        return;
    }
    let highest = (1..length).fold(1_u64, |power, _| power.wrapping_mul(FACTOR));
    let mut rolling = 0_u64;
    for (at, word) in words.iter().enumerate() {
        if at >= length {
            rolling = rolling.wrapping_sub(words[at - length].hash.wrapping_mul(highest));
        }
        rolling = rolling.wrapping_mul(FACTOR).wrapping_add(word.hash);
        if at + 1 >= length {
            visit(at + 1 - length, rolling);
        }
    }
}

/// Characters in n-grams that were there before; after such an n-gram the search goes on behind it.
fn repeated_characters(analysis: &Analysis, length: usize, counter: &mut HashCounter) -> usize {
    counter.reset(analysis.words.len());
    let (mut repeated, mut next) = (0, 0);
    ngrams(&analysis.words, length, |at, hash| {
        if at >= next && counter.add(hash) > 0 {
            repeated +=
                analysis.words[at..at + length].iter().map(|word| word.characters as usize).sum::<usize>();
            next = at + length;
        }
    });
    repeated
}
