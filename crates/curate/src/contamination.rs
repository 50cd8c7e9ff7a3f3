//! Decontamination: documents that hold examples of evaluation sets.
//!
//! An example is found in a document when more than a ratio of its words lies in n-grams, of 8 words by default, that the document has
//! too: the measure of Llama 3 (section 5.1.4), asked of each document. Words are runs of letters and digits in lower case, so
//! punctuation, layout and case do not hide an example.
//!
//! A set is given as text, or as a file of hashes only ([`EvalSet::save`]), from which its text cannot be read, though who guesses an n-gram
//! can check the guess. Both give the same verdicts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::filter::{check_share, hash};
use crate::{CurateError, Document, Dropped, Filter};

/// The n-grams of the examples of one evaluation set, as hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalSet {
    /// Its name in reports.
    pub name: String,
    /// Words in an n-gram.
    pub ngram: usize,
    /// Of each example, the hashes of its n-grams, in their order.
    examples: Vec<Vec<u64>>,
    /// Examples with fewer words than an n-gram: they cannot be recognised.
    pub too_short: u64,
}

/// Most words in an n-gram.
const MAX_NGRAM: usize = 64;

/// Odd, so that no information is lost when hashes of words are combined.
const FACTOR: u64 = 0x9FB2_1C65_1E98_DF25;

/// Begins a file of hashes.
const MAGIC: &[u8; 8] = b"evalhsh1";

/// Hashes of the n-grams of a text.
fn ngrams(text: &str, ngram: usize) -> Vec<u64> {
    let mut words = Vec::new();
    let mut lower = String::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        lower.clear();
        lower.extend(word.chars().flat_map(char::to_lowercase));
        words.push(hash(lower.as_bytes()));
    }
    words
        .windows(ngram)
        .map(|window| window.iter().fold(0_u64, |sum, word| sum.wrapping_mul(FACTOR).wrapping_add(*word)))
        .collect()
}

impl EvalSet {
    /// The set of some examples.
    ///
    /// # Errors
    /// `ngram` out of range, no example that is long enough.
    pub fn new<'a>(
        name: &str,
        ngram: usize,
        examples: impl IntoIterator<Item = &'a str>,
    ) -> Result<EvalSet, CurateError> {
        check_ngram(ngram)?;
        let mut set = EvalSet { name: name.to_owned(), ngram, examples: Vec::new(), too_short: 0 };
        for example in examples {
            let hashes = ngrams(example, ngram);
            if hashes.is_empty() {
                set.too_short += 1;
            } else {
                set.examples.push(hashes);
            }
        }
        if set.examples.is_empty() {
            return Err(CurateError::BadFilter {
                key: format!("contamination set `{name}`"),
                found: format!("{} examples, none with {ngram} words", set.too_short),
                allowed: "one example that long at least".to_owned(),
            });
        }
        Ok(set)
    }

    /// Reads examples: each line of a `.jsonl` file, or each part between blank lines of any other. Of JSON objects, `fields` are joined
    /// by a line feed; those that a line does not have are left out, but one must be there.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is no JSON object or has none of the fields, and those of [`EvalSet::new`].
    pub fn read_text(
        name: &str,
        ngram: usize,
        path: &Path,
        fields: &[String],
    ) -> Result<EvalSet, CurateError> {
        let text = std::fs::read_to_string(path).map_err(|error| CurateError::read(path, error))?;
        let is_jsonl = path.extension().is_some_and(|extension| extension == "jsonl");
        if !is_jsonl {
            return EvalSet::new(name, ngram, text.split("\n\n"));
        }
        let mut examples = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |what: String| CurateError::read(path, format!("line {}: {what}", number + 1));
            let value: serde_json::Value =
                serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
            let parts: Vec<&str> = fields.iter().filter_map(|field| value.get(field)?.as_str()).collect();
            if parts.is_empty() {
                return Err(bad(format!(
                    "no text in `{}`\nhint: name the fields that hold it",
                    fields.join("`, `")
                )));
            }
            examples.push(parts.join("\n"));
        }
        EvalSet::new(name, ngram, examples.iter().map(String::as_str))
    }

    /// Number of examples that can be recognised.
    #[must_use]
    pub fn examples(&self) -> usize {
        self.examples.len()
    }

    /// Writes the hashes, complete or not at all. Little-endian: mark, words per n-gram (u32), examples too short (u64), name (u32 and UTF-8),
    /// number of examples (u64), of each the number of its n-grams (u32) and their hashes (u64), blake3 of it all.
    ///
    /// # Errors
    /// [`CurateError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), CurateError> {
        let mut out = MAGIC.to_vec();
        out.extend((self.ngram as u32).to_le_bytes());
        out.extend(self.too_short.to_le_bytes());
        out.extend((self.name.len() as u32).to_le_bytes());
        out.extend(self.name.as_bytes());
        out.extend((self.examples.len() as u64).to_le_bytes());
        for example in &self.examples {
            out.extend((example.len() as u32).to_le_bytes());
            example.iter().for_each(|hash| out.extend(hash.to_le_bytes()));
        }
        let sum = blake3::hash(&out);
        out.extend(sum.as_bytes());
        llamero_artifact::fsutil::write_atomic(path, &out).map_err(|error| CurateError::write(path, error))
    }

    /// Reads what [`EvalSet::save`] wrote.
    ///
    /// # Errors
    /// [`CurateError::Read`]: no such file, another kind of file, a checksum that does not match.
    pub fn load(path: &Path) -> Result<EvalSet, CurateError> {
        let bytes = std::fs::read(path).map_err(|error| CurateError::read(path, error))?;
        EvalSet::from_bytes(&bytes).map_err(|found| CurateError::read(path, found))
    }

    /// The set in the bytes of a file; what is wrong with them otherwise.
    ///
    /// # Errors
    /// In words, without the file's name.
    pub fn from_bytes(bytes: &[u8]) -> Result<EvalSet, String> {
        fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
            let (head, tail) = rest.split_at_checked(count).ok_or("the file is cut off")?;
            *rest = tail;
            Ok(head)
        }
        fn number(rest: &mut &[u8], bytes: usize) -> Result<usize, String> {
            let value =
                take(rest, bytes)?.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
            usize::try_from(value).map_err(|_| format!("a count of {value}"))
        }
        if !bytes.starts_with(MAGIC) || bytes.len() < MAGIC.len() + blake3::OUT_LEN {
            return Err("no file of hashes of an evaluation set".to_owned());
        }
        let (body, sum) = bytes.split_at(bytes.len() - blake3::OUT_LEN);
        if blake3::hash(body).as_bytes() != sum {
            return Err("a checksum that does not match: the file is damaged".to_owned());
        }
        let mut rest = &body[MAGIC.len()..];
        let ngram = number(&mut rest, 4)?;
        check_ngram(ngram).map_err(|error| error.to_string())?;
        let too_short = number(&mut rest, 8)? as u64;
        let length = number(&mut rest, 4)?;
        let name = std::str::from_utf8(take(&mut rest, length)?)
            .map_err(|_| "a name that is not UTF-8".to_owned())?
            .to_owned();
        let count = number(&mut rest, 8)?;
        let mut examples = Vec::with_capacity(count.min(rest.len() / 4));
        for _ in 0..count {
            let count = number(&mut rest, 4)?;
            let hashes = take(&mut rest, count.checked_mul(8).ok_or("an example that is too long")?)?;
            let word =
                |eight: &[u8]| eight.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
            examples.push(hashes.chunks_exact(8).map(word).collect());
        }
        if !rest.is_empty() || examples.iter().any(Vec::is_empty) {
            return Err("counts that do not agree with its length".to_owned());
        }
        Ok(EvalSet { name, ngram, examples, too_short })
    }
}

fn check_ngram(ngram: usize) -> Result<(), CurateError> {
    if (1..=MAX_NGRAM).contains(&ngram) {
        return Ok(());
    }
    let allowed = format!("from 1 to {MAX_NGRAM}");
    Err(CurateError::BadFilter { key: "contamination.ngram".to_owned(), found: ngram.to_string(), allowed })
}

/// An evaluation set in a recipe.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct EvalSetConfig {
    /// Its name in reports; the one in the file where it is given as hashes.
    #[serde(default)]
    pub name: String,
    /// A `.jsonl` or text file with its examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<PathBuf>,
    /// Which fields of the `.jsonl` file hold the text; `text`, `question` and `prompt` when none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// A file of hashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<PathBuf>,
    /// A document is dropped that has more than this share of an example's words; the filter's own value when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ratio: Option<f64>,
}

/// Which sets are kept out, and how strictly.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ContaminationConfig {
    /// Words in an n-gram.
    pub ngram: usize,
    /// A document is dropped that has more than this share of an example's words. Llama 3 chooses it per set, by the gain that it
    /// measures, and gives no value.
    pub max_ratio: f64,
    /// The evaluation sets.
    pub sets: Vec<EvalSetConfig>,
}

impl Default for ContaminationConfig {
    fn default() -> Self {
        Self { ngram: 8, max_ratio: 0.5, sets: Vec::new() }
    }
}

/// Fields that examples have in most sets.
pub const EXAMPLE_FIELDS: [&str; 3] = ["text", "question", "prompt"];

/// Drops documents with examples of evaluation sets, as `contamination`.
pub struct Contamination {
    sets: Vec<(EvalSet, f64)>,
    /// Where each n-gram of `ngram` words comes: set, example, place in it.
    index: HashMap<u64, Vec<(u32, u32, u32)>>,
    ngram: usize,
}

impl Contamination {
    /// Reads the sets.
    ///
    /// # Errors
    /// A set that cannot be read, that has both texts and hashes or none, or whose n-grams have another length; no set.
    pub fn new(config: &ContaminationConfig) -> Result<Contamination, CurateError> {
        let bad = |found: String, allowed: &str| {
            Err(CurateError::BadFilter {
                key: "contamination.sets".to_owned(),
                found,
                allowed: allowed.to_owned(),
            })
        };
        if config.sets.is_empty() {
            return bad("[]".to_owned(), "one set at least");
        }
        let mut sets = Vec::new();
        for set in &config.sets {
            let fields = match set.fields.is_empty() {
                true => EXAMPLE_FIELDS.map(str::to_owned).to_vec(),
                false => set.fields.clone(),
            };
            let read = match (&set.text, &set.hashes) {
                (Some(path), None) => EvalSet::read_text(&set.name, config.ngram, path, &fields)?,
                (None, Some(path)) => EvalSet::load(path)?,
                _ => {
                    return bad(
                        format!("set `{}` with texts and hashes, or neither", set.name),
                        "`text` or `hashes`",
                    );
                }
            };
            if read.ngram != config.ngram {
                let found = format!("hashes of {} words in set `{}`", read.ngram, read.name);
                return bad(found, &format!("hashes of `contamination.ngram`, {} words", config.ngram));
            }
            sets.push((read, set.max_ratio.unwrap_or(config.max_ratio)));
        }
        Contamination::with(sets)
    }

    /// With sets that are in memory, each with its ratio.
    ///
    /// # Errors
    /// A ratio that is not from 0 to 1, sets with n-grams of different lengths, no set.
    pub fn with(sets: Vec<(EvalSet, f64)>) -> Result<Contamination, CurateError> {
        let ngram = sets.first().map_or(0, |(set, _)| set.ngram);
        check_ngram(ngram)?;
        let mut index: HashMap<u64, Vec<(u32, u32, u32)>> = HashMap::new();
        for (at, (set, ratio)) in sets.iter().enumerate() {
            check_share("contamination.max_ratio", Some(*ratio), 1.0)?;
            if set.ngram != ngram {
                let (found, allowed) =
                    (format!("n-grams of {} and of {ngram} words", set.ngram), "one length".to_owned());
                return Err(CurateError::BadFilter { key: "contamination.sets".to_owned(), found, allowed });
            }
            for (example, hashes) in set.examples.iter().enumerate() {
                for (place, hash) in hashes.iter().enumerate() {
                    index.entry(*hash).or_default().push((at as u32, example as u32, place as u32));
                }
            }
        }
        Ok(Contamination { sets, index, ngram })
    }

    /// The example of which the text has the most: set, example, share of the example's words. `None` where it shares no n-gram.
    /// Of equal shares the first set and example count.
    #[must_use]
    pub fn worst(&self, text: &str) -> Option<(usize, usize, f64)> {
        self.shares(text).into_iter().reduce(|best, next| if next.2 > best.2 { next } else { best })
    }

    /// Of each example that shares an n-gram with the text, the share of its words in such n-grams; in order.
    fn shares(&self, text: &str) -> Vec<(usize, usize, f64)> {
        let mut hits: Vec<(u32, u32, u32)> = ngrams(text, self.ngram)
            .iter()
            .filter_map(|hash| self.index.get(hash))
            .flatten()
            .copied()
            .collect();
        hits.sort_unstable();
        hits.dedup();
        let same = |a: &(u32, u32, u32), b: &(u32, u32, u32)| (a.0, a.1) == (b.0, b.1);
        let share = |hits: &[(u32, u32, u32)]| {
            let (set, example) = (hits[0].0 as usize, hits[0].1 as usize);
            let (mut covered, mut until) = (0, 0);
            for &(_, _, place) in hits {
                let (from, to) = (place as usize, place as usize + self.ngram);
                covered += to - until.max(from);
                until = to;
            }
            let words = self.sets[set].0.examples[example].len() + self.ngram - 1;
            (set, example, covered as f64 / words as f64)
        };
        hits.chunk_by(same).map(share).collect()
    }
}

impl Filter for Contamination {
    fn name(&self) -> &'static str {
        "contamination"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let (set, example, found) =
            self.shares(&document.text).into_iter().find(|&(set, _, found)| found > self.sets[set].1)?;
        let (EvalSet { name, .. }, limit) = &self.sets[set];
        let detail = format!("{found:.3} of the words of example {} of `{name}`, limit {limit}", example + 1);
        Some(Dropped::new("contamination", detail))
    }
}
