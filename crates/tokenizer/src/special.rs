//! The special tokens: those that direct a model rather than being text.

use crate::added::Added;
use crate::{Error, Result};
use std::collections::HashMap;

/// How many special tokens a vocabulary of ours ends with, as Llama 3's does.
pub(crate) const NUM_SPECIAL: usize = 256;

/// Names of special tokens that end a generation, wherever they occur. Files often name only one of theirs.
const ENDS: [&str; 5] = [END_OF_TEXT[0], EOT[0], "<|eom_id|>", END_OF_TEXT[1], EOT[1]];
const END_OF_TEXT: [&str; 2] = ["<|end_of_text|>", "<|endoftext|>"];
const EOT: [&str; 2] = ["<|eot_id|>", "<|im_end|>"];

/// The special tokens of a tokenizer.
///
/// In a tokenizer of ours these are the 256 names of the release of April 2024 behind the ordinary tokens. A file brings
/// its own, at any ids.
#[derive(Clone, Debug)]
pub struct SpecialTokens {
    /// What starts every document and dialog, such as `<|begin_of_text|>`; nothing where texts begin without.
    pub begin_of_text: Option<u32>,
    /// What ends a document: `<|end_of_text|>` or `<|endoftext|>` where they exist, otherwise what the file names.
    pub end_of_text: u32,
    /// What ends a turn: `<|eot_id|>` or `<|im_end|>` where they exist, otherwise what the file names.
    pub eot: u32,
    /// `<|start_header_id|>`, which starts the name of a role in Llama 3's chat format.
    pub start_header: Option<u32>,
    /// `<|end_header_id|>`, which ends the name of a role in Llama 3's chat format.
    pub end_header: Option<u32>,
    ends: Vec<u32>,
    said: Said,
    names: Vec<(u32, String)>,
    by_name: HashMap<String, u32>,
}

/// What a file says about its special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) bos: Option<u32>,
    /// Whether texts begin with `bos`.
    pub(crate) adds_bos: bool,
    pub(crate) eos: Option<u32>,
    pub(crate) eot: Option<u32>,
}

impl SpecialTokens {
    /// Those of `added` that are special, in a vocabulary of `vocab_size` ids.
    pub(crate) fn new(added: &[Added], said: Said, vocab_size: usize) -> Result<SpecialTokens> {
        let problem = |problem: String| Err(Error::Vocabulary { problem });
        for (what, id) in [("begins a text", said.bos), ("ends a text", said.eos), ("ends a turn", said.eot)]
        {
            if let Some(id) = id.filter(|&id| id as usize >= vocab_size) {
                return problem(format!("the token `{id}` that {what} is not below the size `{vocab_size}`"));
            }
        }
        let names: Vec<_> = added
            .iter()
            .filter(|token| token.special)
            .map(|token| (token.id, token.content.clone()))
            .collect();
        let by_name: HashMap<String, u32> = names.iter().map(|(id, name)| (name.clone(), *id)).collect();
        let named = |names: &[&str]| names.iter().find_map(|&name| by_name.get(name).copied());

        let Some(end_of_text) = named(&END_OF_TEXT).or(said.eos) else {
            return problem(format!(
                "no token ends a text: the file names none, and there is none of `{}`",
                END_OF_TEXT.join("`, `")
            ));
        };
        let eot = said.eot.or(named(&EOT)).or(said.eos).unwrap_or(end_of_text);
        let mut ends = Vec::new();
        let known = ENDS.iter().filter_map(|&name| by_name.get(name).copied());
        for id in [end_of_text, eot].into_iter().chain(known).chain(said.eos) {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        Ok(SpecialTokens {
            begin_of_text: said.bos.filter(|_| said.adds_bos),
            end_of_text,
            eot,
            start_header: named(&["<|start_header_id|>"]),
            end_header: named(&["<|end_header_id|>"]),
            ends,
            said,
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
        let at = self.names.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(&self.names[at].1)
    }

    /// Whether `id` is a special token.
    pub fn contains(&self, id: u32) -> bool {
        self.name(id).is_some()
    }

    /// All special tokens with their ids, in the order of the ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &str)> {
        self.names.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// Tokens that end a generation: [`SpecialTokens::end_of_text`], [`SpecialTokens::eot`], `<|eom_id|>` and others like
    /// it where they exist, and what the file names.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The token that a file calls the beginning of a sequence, whether or not texts begin with it.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.said.bos
    }

    /// The token that a file calls the end of a sequence.
    pub(crate) fn eos(&self) -> u32 {
        self.said.eos.unwrap_or(self.eot)
    }

    /// Whether the special tokens of Llama 3's chat format are all here.
    pub(crate) fn has_headers(&self) -> bool {
        self.start_header.is_some() && self.end_header.is_some() && self.id(EOT[0]).is_some()
    }
}

/// Which names of special tokens belong to the ranks of a `tokenizer.model`, which does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// Those of Llama 3, which tokenizers of ours have too.
    #[default]
    April2024,
    /// Those of Llama 3.1 and later.
    July2024,
}

impl Release {
    /// The 256 names, in the order of their ids.
    pub(crate) fn names(self) -> Vec<String> {
        let mut reserved = (0..).map(|i| format!("<|reserved_special_token_{i}|>"));
        let mut name = |i| match (self, i) {
            (_, 0) => "<|begin_of_text|>".to_owned(),
            (_, 1) => "<|end_of_text|>".to_owned(),
            (_, 6) => "<|start_header_id|>".to_owned(),
            (_, 7) => "<|end_header_id|>".to_owned(),
            (_, 9) => "<|eot_id|>".to_owned(),
            (Release::July2024, 4) => "<|finetune_right_pad_id|>".to_owned(),
            (Release::July2024, 5) => "<|step_id|>".to_owned(),
            (Release::July2024, 8) => "<|eom_id|>".to_owned(),
            (Release::July2024, 10) => "<|python_tag|>".to_owned(),
            (Release::July2024, 11) => "<|image|>".to_owned(),
            _ => reserved.next().unwrap_or_default(),
        };
        (0..NUM_SPECIAL).map(&mut name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::added::{AddedTokens, Found};

    fn added(first: u32, names: &[&str]) -> Vec<Added> {
        let token = |(id, name): (u32, &&str)| Added {
            id,
            content: (*name).into(),
            special: true,
            normalized: false,
        };
        (first..).zip(names).map(token).collect()
    }

    fn april(first: u32) -> Vec<Added> {
        of(Release::April2024, first)
    }

    fn of(release: Release, first: u32) -> Vec<Added> {
        let names = release.names();
        added(first, &names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn april_names_have_their_published_ids() {
        let special = SpecialTokens::new(&april(128_000), Said::default(), 128_256).unwrap();
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
        assert_eq!(special.ends(), [128_001, 128_009]);
        assert!(special.has_headers());
    }

    #[test]
    fn july_names_have_their_published_ids() {
        let special = SpecialTokens::new(&of(Release::July2024, 128_000), Said::default(), 128_256).unwrap();
        for (name, id) in [
            ("<|begin_of_text|>", 128_000),
            ("<|reserved_special_token_0|>", 128_002),
            ("<|reserved_special_token_1|>", 128_003),
            ("<|finetune_right_pad_id|>", 128_004),
            ("<|step_id|>", 128_005),
            ("<|start_header_id|>", 128_006),
            ("<|eom_id|>", 128_008),
            ("<|eot_id|>", 128_009),
            ("<|python_tag|>", 128_010),
            ("<|image|>", 128_011),
            ("<|reserved_special_token_2|>", 128_012),
            ("<|reserved_special_token_245|>", 128_255),
        ] {
            assert_eq!(special.id(name), Some(id), "{name}");
        }
        assert_eq!(special.iter().len(), 256);
        assert_eq!(special.ends(), [128_001, 128_009, 128_008]);
    }

    #[test]
    fn finds_names_among_look_alikes() {
        let tokens = AddedTokens::new(april(10)).unwrap();
        let find = |text: &str| {
            let mut found = Vec::new();
            tokens.all().split(text, &mut |part| {
                if let Found::Token(id) = part {
                    found.push(id);
                }
            });
            found
        };
        for text in ["a<|<|eot_id|>b", "<|eot_id|>", "<|é|><|eot_id|>"] {
            assert_eq!(find(text), [19], "{text}");
        }
        for text in
            ["", "<|", "<|>", "<||>", "<|eot_id|", "<|EOT_ID|>", "<| eot_id|>", "ééé<|ééééééééééééééé"]
        {
            assert!(find(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn what_a_file_names_is_used_beside_what_is_known() {
        let names = added(0, &["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
        let said = Said { bos: Some(1), adds_bos: false, eos: Some(2), eot: None };
        let special = SpecialTokens::new(&names, said.clone(), 10).unwrap();
        assert_eq!((special.begin_of_text, special.end_of_text, special.eot), (None, 0, 2));
        assert_eq!((special.ends(), special.bos(), special.eos()), (&[0, 2][..], Some(1), 2));
        assert!(!special.has_headers());

        let special = SpecialTokens::new(&[], Said { adds_bos: true, ..said.clone() }, 10).unwrap();
        assert_eq!((special.begin_of_text, special.end_of_text, special.eot), (Some(1), 2, 2));

        let error = |said, size| SpecialTokens::new(&[], said, size).unwrap_err().to_string();
        assert_eq!(
            error(said, 2),
            "bad vocabulary: the token `2` that ends a text is not below the size `2`"
        );
        assert!(error(Said::default(), 2).contains("no token ends a text"));
    }
}
