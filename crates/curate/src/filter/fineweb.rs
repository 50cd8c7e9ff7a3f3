//! The rules that FineWeb adds: Penedo et al. 2024, *The FineWeb Datasets*, section 3.6. Reasons are those of datatrove.

use serde::{Deserialize, Serialize};

use super::analysis::{Analysis, characters, hash};
use super::characters::{ends_sentence, trim};
use super::gopher::with_counter;
use super::{Rule, check_share, share};
use crate::{CurateError, Dropped};

/// Is the text prose, and no list or menu? `false` switches a rule off.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct FineWeb {
    /// Fewer of the lines end like a sentence: `line_punct_ratio`.
    #[serde(with = "super::off")]
    pub min_punctuated_lines: Option<f64>,
    /// More of the lines are short: `short_line_ratio`.
    #[serde(with = "super::off")]
    pub max_short_lines: Option<f64>,
    /// A line with so many characters is still short.
    pub short_line: u64,
    /// More of the characters are in lines that were there before: `char_dup_ratio`.
    #[serde(with = "super::off")]
    pub max_duplicate_characters: Option<f64>,
    /// More line feeds per word: `list_ratio`.
    #[serde(with = "super::off")]
    pub max_feeds_per_word: Option<f64>,
}

impl Default for FineWeb {
    fn default() -> Self {
        Self {
            min_punctuated_lines: Some(0.12),
            max_short_lines: Some(0.67),
            short_line: 30,
            max_duplicate_characters: Some(0.01),
            max_feeds_per_word: Some(0.3),
        }
    }
}

impl Rule for FineWeb {
    fn validate(&self) -> Result<(), CurateError> {
        check_share("fineweb.min_punctuated_lines", self.min_punctuated_lines, 1.0)?;
        check_share("fineweb.max_short_lines", self.max_short_lines, 1.0)?;
        check_share("fineweb.max_duplicate_characters", self.max_duplicate_characters, 1.0)?;
        check_share("fineweb.max_feeds_per_word", self.max_feeds_per_word, f64::MAX)
    }

    fn judge(&self, analysis: &Analysis) -> Option<Dropped> {
        let text = analysis.text;
        let feeds = text.bytes().filter(|&byte| byte == b'\n').count();
        let (mut count, mut punctuated, mut short, mut repeated) = (0, 0, 0, 0);
        with_counter(|counter| {
            counter.reset(feeds + 1);
            for line in text.split('\n').filter(|line| !trim(line).is_empty()) {
                let length = characters(line);
                count += 1;
                punctuated += usize::from(ends_sentence(line));
                short += usize::from(length as u64 <= self.short_line);
                if counter.add(hash(line.as_bytes())) > 0 {
                    repeated += length;
                }
            }
        });
        if count == 0 {
            return Some(Dropped::new("empty", "no line with text"));
        }
        let found = share(punctuated, count);
        if let Some(limit) = self.min_punctuated_lines.filter(|&limit| found < limit) {
            let detail = format!("{found:.3} of the lines end like a sentence, at least {limit} wanted");
            return Some(Dropped::new("line_punct_ratio", detail));
        }
        let found = share(short, count);
        if let Some(limit) = self.max_short_lines.filter(|&limit| found > limit) {
            return Some(Dropped::new("short_line_ratio", format!("{found:.3} of the lines, limit {limit}")));
        }
        let found = share(repeated, analysis.characters - feeds);
        if let Some(limit) = self.max_duplicate_characters.filter(|&limit| found > limit) {
            return Some(Dropped::new(
                "char_dup_ratio",
                format!("{found:.3} of the characters, limit {limit}"),
            ));
        }
        let found = share(feeds, analysis.words.len());
        let limit = self.max_feeds_per_word.filter(|&limit| found > limit)?;
        Some(Dropped::new("list_ratio", format!("{found:.3} line feeds per word, limit {limit}")))
    }
}
