//! The special tokens, whose ids follow the ranks.

use crate::{Error, Result};
use std::collections::HashMap;

/// How many special tokens a vocabulary of ours ends with, as Llama 3's does.
pub(crate) const NUM_SPECIAL: usize = 256;

/// The special tokens of a tokenizer.
///
/// By default these are the 256 names of the release of April 2024. A `tokenizer.json` of a later release brings its own
/// names; the five below are in all of them.
#[derive(Clone, Debug)]
pub struct SpecialTokens {
    /// `<|begin_of_text|>`, which starts every document and dialog.
    pub begin_of_text: u32,
    /// `<|end_of_text|>`, which ends a document.
    pub end_of_text: u32,
    /// `<|start_header_id|>`, which starts the name of a role.
    pub start_header: u32,
    /// `<|end_header_id|>`, which ends the name of a role.
    pub end_header: u32,
    /// `<|eot_id|>`, which ends a turn.
    pub eot: u32,
    first: u32,
    names: Vec<String>,
    by_name: HashMap<String, u32>,
    longest: usize,
}

impl SpecialTokens {
    /// Gives `names` the ids from `first` on.
    pub(crate) fn new(first: u32, names: Vec<String>) -> Result<SpecialTokens> {
        let problem = |problem: String| Error::Vocabulary { problem };
        let mut by_name = HashMap::with_capacity(names.len());
        for (name, id) in names.iter().zip(first..) {
            if !(name.len() > 4 && name.starts_with("<|") && name.find("|>") == Some(name.len() - 2)) {
                return Err(problem(format!("special token `{name}` is not of the form `<|name|>`")));
            }
            if by_name.insert(name.clone(), id).is_some() {
                return Err(problem(format!("special token `{name}` occurs twice")));
            }
        }
        let id = |name: &str| {
            by_name.get(name).copied().ok_or_else(|| problem(format!("special token `{name}` is missing")))
        };
        Ok(SpecialTokens {
            begin_of_text: id("<|begin_of_text|>")?,
            end_of_text: id("<|end_of_text|>")?,
            start_header: id("<|start_header_id|>")?,
            end_header: id("<|end_header_id|>")?,
            eot: id("<|eot_id|>")?,
            longest: names.iter().map(String::len).max().unwrap_or(0),
            first,
            names,
            by_name,
        })
    }

    /// The id of the special token called `name`, such as `<|eot_id|>`.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The name of the special token `id`; nothing where `id` is an ordinary token or unknown.
    pub fn name(&self, id: u32) -> Option<&str> {
        let index = id.checked_sub(self.first)?;
        self.names.get(index as usize).map(String::as_str)
    }

    /// Whether `id` is a special token.
    pub fn contains(&self, id: u32) -> bool {
        self.name(id).is_some()
    }

    /// All special tokens with their ids, in the order of the ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &str)> {
        self.names.iter().enumerate().map(|(i, name)| (self.first + i as u32, name.as_str()))
    }

    /// The first special token spelled in `text`: where it begins and ends, and its id.
    pub(crate) fn find(&self, text: &str) -> Option<(usize, usize, u32)> {
        for (start, _) in text.match_indices("<|") {
            // No name is longer, and a bounded look keeps the search linear.
            let mut limit = text.len().min(start + self.longest);
            while !text.is_char_boundary(limit) {
                limit -= 1;
            }
            let Some(len) = text[start + 2..limit.max(start + 2)].find("|>") else { continue };
            let end = start + 2 + len + 2;
            if let Some(id) = self.id(&text[start..end]) {
                return Some((start, end, id));
            }
        }
        None
    }
}

/// The 256 names of the release of April 2024, in the order of their ids.
pub(crate) fn april_2024_names() -> Vec<String> {
    let mut reserved = (0..).map(|i| format!("<|reserved_special_token_{i}|>"));
    (0..NUM_SPECIAL)
        .map(|i| match i {
            0 => "<|begin_of_text|>".to_owned(),
            1 => "<|end_of_text|>".to_owned(),
            6 => "<|start_header_id|>".to_owned(),
            7 => "<|end_header_id|>".to_owned(),
            9 => "<|eot_id|>".to_owned(),
            _ => reserved.next().unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn april_names_have_their_published_ids() {
        let special = SpecialTokens::new(128_000, april_2024_names()).unwrap();
        for (name, id) in [
            ("<|begin_of_text|>", 128_000),
            ("<|end_of_text|>", 128_001),
            ("<|reserved_special_token_0|>", 128_002),
            ("<|reserved_special_token_3|>", 128_005),
            ("<|start_header_id|>", 128_006),
            ("<|end_header_id|>", 128_007),
            ("<|reserved_special_token_4|>", 128_008),
            ("<|eot_id|>", 128_009),
            ("<|reserved_special_token_5|>", 128_010),
            ("<|reserved_special_token_250|>", 128_255),
        ] {
            assert_eq!(special.id(name), Some(id), "{name}");
            assert_eq!(special.name(id), Some(name));
        }
        assert_eq!(special.iter().len(), 256);
        assert_eq!(special.name(128_256), None);
        assert_eq!(special.name(127_999), None);
    }

    #[test]
    fn finds_names_among_look_alikes() {
        let special = SpecialTokens::new(10, april_2024_names()).unwrap();
        let eot = special.eot;
        assert_eq!(special.find("a<|<|eot_id|>b"), Some((3, 13, eot)));
        assert_eq!(special.find("<|eot_id|>"), Some((0, 10, eot)));
        assert_eq!(special.find("<|é|><|eot_id|>"), Some((6, 16, eot)));
        for text in
            ["", "<|", "<|>", "<||>", "<|eot_id|", "<|EOT_ID|>", "<| eot_id|>", "ééé<|ééééééééééééééé"]
        {
            assert_eq!(special.find(text), None, "{text}");
        }
    }
}
