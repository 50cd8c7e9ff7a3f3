//! Block lists of domains, URLs and words in URLs.
//!
//! Files are those of UT1 and of FineWeb's URL filter: one entry a line. Without a list a few built-in words decide, which are
//! no match for a real list: they are of sex, and count in the name of a host and, but for those that have other meanings, where a part of the path is one of
//! them and nothing else.

use std::collections::HashSet;
use std::path::PathBuf;

use aho_corasick::AhoCorasick;
use serde::{Deserialize, Serialize};

use super::lists::read_list;
use crate::{CurateError, Document, Dropped, Filter};

/// Which URLs are blocked. All lists together count.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct UrlBlockConfig {
    /// Files of host names (UT1's `domains`): the host and all hosts below it are blocked, as `domain`.
    pub domains: Vec<PathBuf>,
    /// Files of URLs (UT1's `urls`), compared without scheme, `www.` and a last slash: `url`.
    pub urls: Vec<PathBuf>,
    /// Files of words; one of them in the URL is enough: `hard_blacklisted`. Words are runs of letters and digits.
    pub banned_words: Vec<PathBuf>,
    /// Files of words of which `soft_threshold` different ones are too many: `soft_blacklisted`.
    pub soft_words: Vec<PathBuf>,
    /// Number of different soft words that is too many.
    pub soft_threshold: usize,
    /// Files of character sequences, searched in the letters and digits of the URL without what is between them: `blacklisted_subword`.
    pub banned_subwords: Vec<PathBuf>,
    /// Block the built-in words, as `hard_blacklisted`.
    pub built_in: bool,
}

impl Default for UrlBlockConfig {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            urls: Vec::new(),
            banned_words: Vec::new(),
            soft_words: Vec::new(),
            soft_threshold: 2,
            banned_subwords: Vec::new(),
            built_in: true,
        }
    }
}

/// Words that a host has for one reason only.
const BUILT_IN: [&str; 10] =
    ["porn", "porno", "xxx", "hentai", "camgirls", "escorts", "milf", "sexcam", "pornhub", "xvideos"];

/// Those of them that a part of a path has for one reason only: `xxx` also stands for what is to be filled in.
const BUILT_IN_PATH: [&str; 6] = ["porn", "porno", "hentai", "camgirls", "milf", "sexcam"];

/// Drops documents by their URL; a document without one passes.
pub struct UrlBlock {
    domains: HashSet<String>,
    urls: HashSet<String>,
    banned: HashSet<String>,
    soft: HashSet<String>,
    soft_threshold: usize,
    subwords: Option<AhoCorasick>,
    built_in: bool,
}

/// Letters and digits of ASCII alone, in lower case.
fn squeeze(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// What follows the host of a URL.
fn behind_host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find(['/', '?', '#']).map_or("", |at| &rest[at..])
}

/// Scheme, user, port, `www.`, capitals in the host and the slash at the end do not tell pages apart here.
fn bare(url: &str) -> String {
    let host = host(url).to_ascii_lowercase();
    let path = behind_host(url);
    format!("{}{}", host.strip_prefix("www.").unwrap_or(&host), path.strip_suffix('/').unwrap_or(path))
}

/// The built-in word in a URL.
fn built_in(url: &str) -> Option<&'static str> {
    let host = host(url).to_ascii_lowercase();
    let in_host = |word: &&str| host.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part == *word);
    let path = behind_host(url).split(['?', '#']).next().unwrap_or_default();
    let in_path = |word: &&str| path.split('/').any(|part| part.eq_ignore_ascii_case(word));
    BUILT_IN.into_iter().find(in_host).or_else(|| BUILT_IN_PATH.into_iter().find(in_path))
}

/// The host of a URL, as it is written.
pub(crate) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split(':').next().unwrap_or_default();
    rest.strip_suffix('.').unwrap_or(rest)
}

impl UrlBlock {
    /// Reads the lists.
    ///
    /// # Errors
    /// A list that cannot be read or is empty; no list at all while `built_in` is off.
    pub fn new(config: &UrlBlockConfig) -> Result<UrlBlock, CurateError> {
        let read = |paths: &[PathBuf], edit: fn(&str) -> String| -> Result<HashSet<String>, CurateError> {
            let mut all = HashSet::new();
            for path in paths {
                all.extend(
                    read_list(path)?.iter().map(|entry| edit(entry)).filter(|entry| !entry.is_empty()),
                );
            }
            Ok(all)
        };
        let bad = |key: &str, found: String, allowed: &str| CurateError::BadFilter {
            key: format!("url_block.{key}"),
            found,
            allowed: allowed.to_owned(),
        };
        let mut subwords: Vec<String> = read(&config.banned_subwords, squeeze)?.into_iter().collect();
        subwords.sort_unstable();
        let banned = read(&config.banned_words, squeeze)?;
        let block = UrlBlock {
            domains: read(&config.domains, |entry| host(entry).to_ascii_lowercase())?,
            urls: read(&config.urls, bare)?,
            banned,
            soft: read(&config.soft_words, squeeze)?,
            soft_threshold: config.soft_threshold,
            built_in: config.built_in,
            subwords: match subwords.is_empty() {
                true => None,
                false => {
                    let built = AhoCorasick::new(&subwords);
                    Some(built.map_err(|error| {
                        bad("banned_subwords", error.to_string(), "fewer or shorter entries")
                    })?)
                }
            },
        };
        if config.soft_threshold == 0 {
            return Err(bad("soft_threshold", "0".to_owned(), "1 or more"));
        }
        let lists = [&block.domains, &block.urls, &block.banned, &block.soft];
        if lists.iter().all(|list| list.is_empty()) && block.subwords.is_none() && !block.built_in {
            return Err(bad("domains", "no list, and `built_in` is off".to_owned(), "one list at least"));
        }
        Ok(block)
    }

    /// Why a URL is blocked.
    #[must_use]
    pub fn judge(&self, url: &str) -> Option<Dropped> {
        let host = host(url).to_ascii_lowercase();
        let mut rest = host.as_str();
        while !rest.is_empty() {
            if self.domains.contains(rest) {
                return Some(Dropped::new("domain", format!("`{rest}` is listed")));
            }
            rest = rest.split_once('.').map_or("", |(_, rest)| rest);
        }
        if self.urls.contains(&bare(url)) {
            return Some(Dropped::new("url", "it is listed"));
        }
        if let Some(word) = built_in(url).filter(|_| self.built_in) {
            return Some(Dropped::new("hard_blacklisted", format!("`{word}` in its URL")));
        }
        let lower = url.to_ascii_lowercase();
        let mut words: Vec<&str> =
            lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        if let Some(word) = words.iter().find(|word| self.banned.contains(**word)) {
            return Some(Dropped::new("hard_blacklisted", format!("`{word}` in its URL")));
        }
        words.sort_unstable();
        words.dedup();
        words.retain(|word| self.soft.contains(*word));
        if words.len() >= self.soft_threshold {
            return Some(Dropped::new("soft_blacklisted", format!("`{}` in its URL", words.join("`, `"))));
        }
        let squeezed = squeeze(url);
        let hit = self.subwords.as_ref()?.find(&squeezed)?;
        Some(Dropped::new("blacklisted_subword", format!("`{}` in its URL", &squeezed[hit.range()])))
    }
}

impl Filter for UrlBlock {
    fn name(&self) -> &'static str {
        "url_block"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        if document.url.is_empty() { None } else { self.judge(&document.url) }
    }
}
