//! What came in, what was kept, and why the rest was not: `report.json`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clusters::Duplicates;
use super::origins::Origins;
use crate::CurateError;
use crate::contamination::EvalSetTally;
use crate::item::Item;
use crate::plan::BrokenPart;

/// Number and size of some documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Number of documents.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.documents += 1;
        self.bytes += bytes;
    }

    pub(super) fn take(&mut self, part: &Tally) {
        self.documents -= part.documents;
        self.bytes -= part.bytes;
    }
}

/// Documents dropped for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedTally {
    /// Number of documents.
    pub count: u64,
    /// Bytes of them as they were read.
    pub bytes: u64,
    /// URLs of up to five of them, those with the lowest ids; their ids where they have no URL.
    pub examples: Vec<String>,
}

/// What a step left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// Its name, which is its key in the recipe where it has one of its own.
    pub step: String,
    /// Documents that came to it, and the bytes of their text then.
    pub before: Tally,
    /// Those that it left, and the bytes of their text then.
    pub after: Tally,
    /// Documents whose text it changed.
    pub edited: u64,
}

impl Passage {
    /// Documents that it dropped.
    pub fn dropped(&self) -> u64 {
        self.before.documents.saturating_sub(self.after.documents)
    }
}

/// A number of documents before and after curation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeforeAfter {
    /// Of all documents, as far as it was known of those that were dropped.
    pub before: Tally,
    /// Of those that are kept.
    pub after: Tally,
}

/// Parts of inputs that could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenParts {
    /// How many.
    pub count: u64,
    /// Those that are whole inputs: nothing in them is a document.
    #[serde(default)]
    pub lost: u64,
    /// File, offset and cause of the first hundred, whole inputs first; all of them are in [`crate::BROKEN_FILE`].
    pub examples: Vec<String>,
}

/// What came in, what was kept, and why the rest was not.
///
/// `documents_in` is `documents_kept` plus the counts of all `dropped`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CurateReport {
    /// Id of the inventory.
    pub inventory: String,
    /// Documents found; of plain files each is one.
    pub documents_in: u64,
    /// Documents kept.
    pub documents_kept: u64,
    /// Bytes of the files or inputs.
    pub bytes_in: u64,
    /// Bytes of the text of documents that are kept.
    pub bytes_kept: u64,
    /// Kept documents per domain.
    pub domains: BTreeMap<String, Tally>,
    /// Dropped documents per reason.
    pub dropped: BTreeMap<String, DroppedTally>,
    /// What each step left, in the order of the plan.
    pub steps: Vec<Passage>,
    /// Documents by the number of bits of their size in bytes, as read and as kept: 11 is 1,024 to 2,047 bytes.
    pub lengths: BTreeMap<u32, BeforeAfter>,
    /// Documents by language; `unknown` where none was told, `others` where 256 languages come before it in the order of ids.
    pub languages: BTreeMap<String, BeforeAfter>,
    /// Documents by domain, those that were dropped among them.
    pub domains_before: BTreeMap<String, Tally>,
    /// Documents by their host or source.
    pub origins: Origins,
    /// Clusters of duplicates by the reason of their drops.
    pub duplicates: BTreeMap<String, Duplicates>,
    /// Evaluation sets that documents were held against.
    pub evaluation_sets: Vec<EvalSetTally>,
    /// Parts of inputs that could not be read.
    pub broken: BrokenParts,
    /// Records of inputs that are meant to be no documents, such as requests and redirects in WARC files, and entries of folders that
    /// are never read, such as symbolic links and hidden files, by what they are.
    pub passed: BTreeMap<String, u64>,
    /// Rows and bytes of text in the files written. Where there is a mix, a document may come several times or not at all.
    pub files: BTreeMap<String, Tally>,
}

/// Examples listed per reason.
const MAX_EXAMPLES: usize = 5;

/// Broken parts listed in the report.
const MAX_BROKEN: usize = 100;

/// Languages listed by themselves; sources may make up as many as they have documents.
const MAX_LANGUAGES: usize = 256;

/// What stands for all other languages.
const OTHERS: &str = "others";

/// What stands for a language or domain that is not known.
const UNKNOWN: &str = "unknown";

impl CurateReport {
    pub(crate) fn new(
        inventory: &crate::Inventory,
        steps: Vec<String>,
        broken: &[BrokenPart],
    ) -> CurateReport {
        let steps = steps.into_iter().map(|step| Passage { step, ..Passage::default() }).collect();
        let count = broken.iter().map(|part| part.parts).sum();
        let lost = broken.iter().filter(|part| part.lost).count() as u64;
        let examples = broken.iter().take(MAX_BROKEN).map(BrokenPart::to_string).collect();
        CurateReport {
            inventory: inventory.id.clone(),
            bytes_in: inventory.bytes,
            steps,
            passed: inventory.passed.clone(),
            broken: BrokenParts { count, lost, examples },
            ..CurateReport::default()
        }
    }

    /// Counts a document; documents come in the order of their ids. Its text may be gone.
    pub(crate) fn count(&mut self, item: &Item) -> Result<(), CurateError> {
        self.documents_in += 1;
        let known = |name: &str| if name.is_empty() { UNKNOWN.to_owned() } else { name.to_owned() };
        let (mut lang, domain) = (known(&item.document.lang), known(&item.document.domain));
        if self.languages.len() >= MAX_LANGUAGES && !self.languages.contains_key(&lang) {
            OTHERS.clone_into(&mut lang);
        }
        self.lengths.entry(bits(item.bytes)).or_default().before.add(item.bytes);
        self.languages.entry(lang.clone()).or_default().before.add(item.bytes);
        self.domains_before.entry(domain).or_default().add(item.bytes);
        match &item.dropped {
            None => {
                let bytes = item.text_bytes;
                self.documents_kept += 1;
                self.bytes_kept += bytes;
                self.domains.entry(item.document.domain.clone()).or_default().add(bytes);
                self.lengths.entry(bits(bytes)).or_default().after.add(bytes);
                self.languages.entry(lang).or_default().after.add(bytes);
            }
            Some(dropped) => {
                let tally = self.dropped.entry(dropped.reason.clone()).or_default();
                tally.count += 1;
                tally.bytes += item.bytes;
                if tally.examples.len() < MAX_EXAMPLES {
                    let url = Some(&item.document.url).filter(|url| !url.is_empty());
                    tally.examples.push(url.unwrap_or(&item.document.id).clone());
                }
            }
        }
        self.pass(item)
    }

    /// Counts a document in the steps that it came to.
    fn pass(&mut self, item: &Item) -> Result<(), CurateError> {
        let mut bytes = item.bytes;
        let mut edits = item.edits.iter().peekable();
        for passage in &mut self.steps {
            passage.before.add(bytes);
            while let Some((_, now)) = edits.next_if(|(step, _)| *step == passage.step) {
                passage.edited += 1;
                bytes = *now;
            }
            if item.step == passage.step {
                return Ok(());
            }
            passage.after.add(bytes);
        }
        if !item.step.is_empty() {
            let problem = format!("step `{}` dropped it, which is not in the plan", item.step);
            return Err(CurateError::Record { what: "a document", problem });
        }
        Ok(())
    }

    /// Counts and names of the reasons, most frequent first.
    pub fn reasons(&self) -> String {
        let mut reasons: Vec<_> = self.dropped.iter().collect();
        reasons.sort_by_key(|(_, tally)| Reverse(tally.count));
        let reasons: Vec<_> =
            reasons.iter().map(|(reason, tally)| format!("{} `{reason}`", tally.count)).collect();
        reasons.join(", ")
    }
}

/// Number of bits of a size.
pub(super) fn bits(bytes: u64) -> u32 {
    u64::BITS - bytes.leading_zeros()
}
