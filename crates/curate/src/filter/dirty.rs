//! Counts of dirty words: adult pages that no block list knows (C4, section 2.2; Llama 3, section 3.1.1).

use std::path::PathBuf;

use aho_corasick::AhoCorasick;
use serde::{Deserialize, Serialize};

use super::characters::is_inside_word;
use super::check_share;
use super::lists::read_list;
use crate::{CurateError, Document, Dropped, Filter};

/// Which words, and how many are too many.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct DirtyWordsConfig {
    /// Files with a word or phrase a line.
    pub lists: Vec<PathBuf>,
    /// More occurrences than this: `dirty_words`. C4 allows 0.
    #[serde(with = "super::off")]
    pub max_count: Option<u64>,
    /// More occurrences per chunk between white space: `dirty_words`.
    #[serde(with = "super::off")]
    pub max_share: Option<f64>,
}

impl Default for DirtyWordsConfig {
    fn default() -> Self {
        Self { lists: Vec::new(), max_count: None, max_share: Some(0.01) }
    }
}

/// Drops documents with too many dirty words; tags the others with their number, `dirty_words`.
pub struct DirtyWords {
    config: DirtyWordsConfig,
    finder: AhoCorasick,
}

impl DirtyWords {
    /// Reads the lists.
    ///
    /// # Errors
    /// A list that cannot be read or is empty, no list, a share out of range.
    pub fn new(config: &DirtyWordsConfig) -> Result<DirtyWords, CurateError> {
        check_share("dirty_words.max_share", config.max_share, 1.0)?;
        let bad = |found: &str, allowed: &str| CurateError::BadFilter {
            key: "dirty_words.lists".to_owned(),
            found: found.to_owned(),
            allowed: allowed.to_owned(),
        };
        let mut words = Vec::new();
        for list in &config.lists {
            words.extend(read_list(list)?.iter().map(|word| word.to_lowercase()));
        }
        if words.is_empty() {
            return Err(bad("[]", "one or more files with a word a line"));
        }
        words.sort_unstable();
        words.dedup();
        let finder = AhoCorasick::builder()
            .build(&words)
            .map_err(|error| bad(&error.to_string(), "fewer or shorter words"))?;
        Ok(DirtyWords { config: config.clone(), finder })
    }

    /// Occurrences that are whole words. Scripts without spaces between words count anywhere.
    fn count(&self, text: &str) -> u64 {
        let lower = text.to_lowercase();
        let mut count = 0;
        for hit in self.finder.find_overlapping_iter(&lower) {
            let (before, after) =
                (lower[..hit.start()].chars().next_back(), lower[hit.end()..].chars().next());
            let word =
                |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || is_inside_word(c));
            let spaced = lower[hit.range()].chars().all(|c| (c as u32) < 0xE00);
            count += u64::from(!spaced || !word(before) && !word(after));
        }
        count
    }
}

impl Filter for DirtyWords {
    fn name(&self) -> &'static str {
        "dirty_words"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let count = self.count(&document.text);
        if let Some(limit) = self.config.max_count.filter(|&limit| count > limit) {
            return Some(Dropped::new("dirty_words", format!("{count} of them, limit {limit}")));
        }
        let found = count as f64 / document.text.split_whitespace().count().max(1) as f64;
        if let Some(limit) = self.config.max_share.filter(|&limit| found > limit) {
            return Some(Dropped::new("dirty_words", format!("{found:.4} per word, limit {limit}")));
        }
        document.tags.insert("dirty_words".to_owned(), count as f64);
        None
    }
}
