//! Tokens that are found by their names before a text is split: special tokens, and words added to a vocabulary.

use crate::{Error, Result};
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use std::collections::HashSet;

/// Longer names are refused, in bytes. Nobody has any; thousands would make a search of many gigabytes.
const LONGEST: usize = 4096;

/// A token that is found in a text by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) id: u32,
    pub(crate) content: String,
    /// Whether it directs the model, so that only trusted text may spell it.
    pub(crate) special: bool,
    /// Whether it is looked for only where no token without this mark was found.
    pub(crate) normalized: bool,
}

/// All of a tokenizer's.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    list: Vec<Added>,
    plain: Finder,
    all: Finder,
}

/// What [`Finder::split`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds names: of those that begin first, the longest.
#[derive(Debug, Default)]
pub(crate) struct Finder(Vec<(AhoCorasick, Vec<u32>)>);

impl AddedTokens {
    /// Contents must be distinct, not empty, and of [`LONGEST`] bytes at most.
    pub(crate) fn new(mut list: Vec<Added>) -> Result<AddedTokens> {
        list.sort_by_key(|token| token.id);
        let mut seen = HashSet::new();
        for Added { id, content, .. } in &list {
            if content.is_empty() {
                return Err(Error::Vocabulary { problem: format!("the added token `{id}` is empty") });
            }
            if content.len() > LONGEST {
                let begin: String = content.chars().take(40).collect();
                let problem = format!(
                    "the added token `{id}`, `{begin}…`, has `{}` bytes; at most `{LONGEST}` are possible",
                    content.len()
                );
                return Err(Error::Vocabulary { problem });
            }
            if !seen.insert(content.as_str()) {
                return Err(Error::Vocabulary { problem: format!("added token `{content}` occurs twice") });
            }
        }
        let plain = Finder::new(list.iter().filter(|token| !token.special))?;
        let all = Finder::new(list.iter())?;
        Ok(AddedTokens { list, plain, all })
    }

    /// The tokens in the order of their ids.
    pub(crate) fn list(&self) -> &[Added] {
        &self.list
    }

    /// Finds what any text may spell.
    pub(crate) fn plain(&self) -> &Finder {
        &self.plain
    }

    /// Finds what trusted text may spell.
    pub(crate) fn all(&self) -> &Finder {
        &self.all
    }
}

impl Finder {
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a Added> + Clone) -> Result<Finder> {
        let mut passes = Vec::new();
        for normalized in [false, true] {
            let tokens = tokens.clone().filter(|token| token.normalized == normalized);
            let (names, ids): (Vec<&str>, Vec<u32>) =
                tokens.map(|token| (token.content.as_str(), token.id)).unzip();
            if ids.is_empty() {
                continue;
            }
            // The kind that takes memory in proportion to the names. What is chosen by itself for few names is faster and takes a
            // kilobyte for each of their bytes.
            let mut builder = AhoCorasick::builder();
            builder.match_kind(MatchKind::LeftmostLongest).kind(Some(AhoCorasickKind::ContiguousNFA));
            let search = builder.build(names);
            let search = search.map_err(|error| Error::Vocabulary {
                problem: format!("`{}` added tokens cannot be searched for: {error}", ids.len()),
            })?;
            passes.push((search, ids));
        }
        Ok(Finder(passes))
    }

    /// Calls `on` with the tokens in `text` and what lies between, which is never empty.
    pub(crate) fn split<'t>(&self, text: &'t str, on: &mut dyn FnMut(Found<'t>)) {
        split(&self.0, text, on);
    }

    /// Whether a name occurs in `text`: the first that does.
    pub(crate) fn first(&self, text: &str) -> Option<u32> {
        let mut first = None;
        self.split(text, &mut |found| {
            if let Found::Token(id) = found {
                first.get_or_insert(id);
            }
        });
        first
    }
}

fn split<'t>(passes: &[(AhoCorasick, Vec<u32>)], text: &'t str, on: &mut dyn FnMut(Found<'t>)) {
    let Some(((search, ids), later)) = passes.split_first() else {
        if !text.is_empty() {
            on(Found::Text(text));
        }
        return;
    };
    let mut rest = 0;
    for found in search.find_iter(text) {
        split(later, &text[rest..found.start()], on);
        on(Found::Token(ids[found.pattern()]));
        rest = found.end();
    }
    split(later, &text[rest..], on);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str, special: bool, normalized: bool) -> Added {
        Added { id, content: content.into(), special, normalized }
    }

    fn split<'t>(finder: &Finder, text: &'t str) -> Vec<Found<'t>> {
        let mut all = Vec::new();
        finder.split(text, &mut |found| all.push(found));
        all
    }

    #[test]
    fn the_longest_of_the_first_is_found_and_normalized_ones_in_what_is_left() {
        use Found::{Text, Token};
        let tokens = AddedTokens::new(vec![
            token(3, "<a>", true, false),
            token(1, "<a>b", false, false),
            token(2, "b<", false, true),
        ])
        .unwrap();
        assert_eq!(split(tokens.all(), "x<a>b<a>"), [Text("x"), Token(1), Token(3)]);
        assert_eq!(split(tokens.all(), "ab<a>c"), [Text("ab"), Token(3), Text("c")]);
        assert_eq!(split(tokens.plain(), "ab<a>c"), [Text("a"), Token(2), Text("a>c")]);
        assert_eq!(split(tokens.all(), ""), []);
        assert_eq!((tokens.all().first("a<a>"), tokens.plain().first("a<a>")), (Some(3), None));
        assert_eq!(tokens.list().iter().map(|t| t.id).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn bad_names_are_refused() {
        let error = |list| AddedTokens::new(list).unwrap_err().to_string();
        assert_eq!(error(vec![token(7, "", true, false)]), "bad vocabulary: the added token `7` is empty");
        assert_eq!(
            error(vec![token(7, "a", true, false), token(8, "a", false, false)]),
            "bad vocabulary: added token `a` occurs twice"
        );
        assert_eq!(
            error(vec![token(7, &"ab".repeat(2049), true, false)]),
            format!(
                "bad vocabulary: the added token `7`, `{}…`, has `4098` bytes; at most `4096` are possible",
                "ab".repeat(20)
            )
        );
    }

    #[test]
    fn a_search_takes_memory_in_proportion_to_the_names() {
        // Few enough names that a table of 256 entries for each of their bytes would be chosen.
        let name = |id: u32| char::from(b'a' + id as u8).to_string().repeat(4096);
        let tokens = AddedTokens::new((0..26).map(|id| token(id, &name(id), true, false)).collect()).unwrap();
        let memory: usize = tokens.all().0.iter().map(|(search, _)| search.memory_usage()).sum();
        assert!(memory < 26 * 4096 * 40, "{memory} bytes");
        assert_eq!(tokens.all().first(&name(3)), Some(3));
    }
}
