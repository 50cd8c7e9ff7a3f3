//! Decontamination: documents that hold examples of evaluation sets.
//!
//! An example is found in a document when more than a ratio of its words lies in n-grams, of 8 words by default, that the document has
//! too: the measure of Llama 3 (section 5.1.4), asked of each document. Words are runs of letters and digits in lower case, so
//! punctuation, layout and case do not hide an example; in Chinese, Japanese, Thai and other scripts that put no spaces between words, each
//! character is one.
//!
//! An example of fewer words than an n-gram, but three quarters of them at least, is found where all its words follow one another. A shorter
//! one is counted as too short: four or five words such as *what is your name* are in documents that never saw the set.
//!
//! A set is given as text, or as a file of hashes only ([`EvalSet::save`]), from which its text cannot be read, though who guesses an n-gram
//! can check the guess. Both give the same verdicts.

mod examples;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::dedup::is_word_alone;
use crate::filter::{check_share, hash, is_inside_word};
use crate::{CurateError, Document, Dropped, Filter};

/// The n-grams of the examples of one evaluation set, as hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalSet {
    /// Its name in reports.
    pub name: String,
    /// Words in an n-gram.
    pub ngram: usize,
    examples: Vec<Example>,
    /// Examples of too few words: they cannot be recognised.
    pub too_short: u64,
}

/// One example.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Example {
    words: usize,
    /// The hashes of its n-grams, in their order; of all its words together where they are fewer than an n-gram.
    hashes: Vec<u64>,
}

impl Example {
    /// Number of hashes of an example of so many words; none where they are too few.
    fn hashes_of(words: usize, ngram: usize) -> Option<usize> {
        (words >= least_words(ngram)).then(|| words.saturating_sub(ngram) + 1)
    }
}

/// Fewest words of an example that can be recognised: three quarters of an n-gram.
fn least_words(ngram: usize) -> usize {
    (ngram * 3).div_ceil(4)
}

/// Most words in an n-gram.
pub const MAX_NGRAM: usize = 64;

/// Odd, so that no information is lost when hashes of words are combined.
const FACTOR: u64 = 0x9FB2_1C65_1E98_DF25;

/// Begins a file of hashes.
const MAGIC: &[u8; 8] = b"evalhsh3";

/// Hashes of the words of a text.
fn words(text: &str) -> Vec<u64> {
    let mut words = Vec::new();
    let mut lower = String::new();
    let mut end = |lower: &mut String| {
        if !lower.is_empty() {
            words.push(hash(lower.as_bytes()));
            lower.clear();
        }
    };
    // A letter with its accent is one character or two.
    let text = match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => Cow::Borrowed(text),
        _ => Cow::Owned(text.nfc().collect::<String>()),
    };
    for c in text.chars() {
        if is_word_alone(c) {
            end(&mut lower);
            lower.push(c);
            end(&mut lower);
        } else if c.is_alphanumeric() {
            lower.extend(c.to_lowercase());
        } else if !is_inside_word(c) {
            end(&mut lower);
        }
    }
    end(&mut lower);
    words
}

/// Hashes of all runs of so many words.
fn runs(words: &[u64], length: usize) -> impl Iterator<Item = u64> {
    let combine =
        |run: &[u64]| run.iter().fold(0_u64, |sum, word| sum.wrapping_mul(FACTOR).wrapping_add(*word));
    words.windows(length).map(combine)
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
            let words = words(example);
            if words.len() < least_words(ngram) {
                set.too_short += 1;
            } else {
                let hashes = runs(&words, ngram.min(words.len())).collect();
                set.examples.push(Example { words: words.len(), hashes });
            }
        }
        if set.examples.is_empty() {
            return Err(CurateError::BadFilter {
                key: format!("evaluation set `{name}`"),
                found: format!("{} examples, none with {} words", set.too_short, least_words(ngram)),
                allowed: "one example that long at least".to_owned(),
            });
        }
        Ok(set)
    }

    /// Reads examples from a file, which may be compressed (`.gz`, `.zst`): each object of a `.jsonl`, `.ndjson` or `.json` file, one a line
    /// or in one array; or each part between blank lines of a text. Of objects, `fields` are joined by a line feed; those that one does not
    /// have are left out, but one must be there.
    ///
    /// # Errors
    /// A file that cannot be read or is of another kind, a line that is no JSON object or has none of the fields, and those of
    /// [`EvalSet::new`].
    pub fn read_text(
        name: &str,
        ngram: usize,
        path: &Path,
        fields: &[String],
    ) -> Result<EvalSet, CurateError> {
        check_ngram(ngram)?;
        let examples = examples::read(path, fields)?;
        EvalSet::new(name, ngram, examples.iter().map(String::as_str))
    }

    /// Fewest words of an example that can be recognised.
    #[must_use]
    pub fn least_words(&self) -> usize {
        least_words(self.ngram)
    }

    /// Number of examples that can be recognised.
    #[must_use]
    pub fn examples(&self) -> usize {
        self.examples.len()
    }

    /// Writes the hashes, complete or not at all. Little-endian: mark, words per n-gram (u32), examples too short (u64), name (u32 and UTF-8),
    /// number of examples (u64), of each the number of its words (u32) and the hashes of its n-grams (u64), blake3 of it all.
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
            out.extend((example.words as u32).to_le_bytes());
            example.hashes.iter().for_each(|hash| out.extend(hash.to_le_bytes()));
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
        if [&b"evalhsh1"[..], b"evalhsh2"].iter().any(|old| bytes.starts_with(old)) {
            return Err(
                "hashes as an older version made them\nhint: make them again: llamero curate hash-eval"
                    .to_owned(),
            );
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
            let words = number(&mut rest, 4)?;
            let count = Example::hashes_of(words, ngram).ok_or("an example that is too short")?;
            let hashes = take(&mut rest, count.checked_mul(8).ok_or("an example that is too long")?)?;
            let word =
                |eight: &[u8]| eight.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
            examples.push(Example { words, hashes: hashes.chunks_exact(8).map(word).collect() });
        }
        if !rest.is_empty() {
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
    Err(CurateError::BadFilter { key: "decontaminate.ngram".to_owned(), found: ngram.to_string(), allowed })
}

/// An evaluation set in a recipe.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct EvalSetConfig {
    /// Its name in reports; that in the file when absent, where it is given as hashes.
    #[serde(default)]
    pub name: String,
    /// A file with its examples, as [`EvalSet::read_text`] reads them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<PathBuf>,
    /// Which fields of JSON objects hold the text; `text`, `question` and `prompt` when none is named.
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

/// How much of an evaluation set can be recognised, for reports.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct EvalSetTally {
    /// Its name.
    pub name: String,
    /// Examples that can be recognised.
    pub examples: u64,
    /// Examples of too few words to be recognised.
    pub too_short: u64,
}

/// Drops documents with examples of evaluation sets, as `contamination`.
pub struct Contamination {
    sets: Vec<(EvalSet, f64)>,
    /// Set and place in it of every example, in order.
    examples: Vec<(u32, u32)>,
    /// Which of `examples` have a hash.
    index: HashMap<u64, Vec<u32>>,
    /// Lengths of the runs of words that the hashes are of: `ngram`, and those of shorter examples.
    lengths: Vec<usize>,
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
                key: "decontaminate.sets".to_owned(),
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
                (None, Some(path)) if set.name.is_empty() => EvalSet::load(path)?,
                (None, Some(path)) => EvalSet { name: set.name.clone(), ..EvalSet::load(path)? },
                _ => {
                    return bad(
                        format!("a set, {}, with both `text` and `hashes`, or with neither", set.name),
                        "sets that each have one of them",
                    );
                }
            };
            if read.ngram != config.ngram {
                let found = format!("hashes of {} words in set `{}`", read.ngram, read.name);
                return bad(found, &format!("hashes of `decontaminate.ngram`, {} words", config.ngram));
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
        let (mut examples, mut lengths) = (Vec::new(), vec![ngram]);
        let mut index: HashMap<u64, Vec<u32>> = HashMap::new();
        for (at, (set, ratio)) in sets.iter().enumerate() {
            check_share("decontaminate.max_ratio", Some(*ratio), 1.0)?;
            if set.ngram != ngram {
                let (found, allowed) =
                    (format!("n-grams of {} and of {ngram} words", set.ngram), "one length".to_owned());
                return Err(CurateError::BadFilter { key: "decontaminate.sets".to_owned(), found, allowed });
            }
            for (place, example) in set.examples.iter().enumerate() {
                let number = examples.len() as u32;
                examples.push((at as u32, place as u32));
                lengths.push(example.words.min(ngram));
                for hash in &example.hashes {
                    let with = index.entry(*hash).or_default();
                    if with.last() != Some(&number) {
                        with.push(number);
                    }
                }
            }
        }
        lengths.sort_unstable();
        lengths.dedup();
        Ok(Contamination { sets, examples, index, lengths, ngram })
    }

    /// How much of each set can be recognised.
    pub fn tallies(&self) -> Vec<EvalSetTally> {
        let tally = |(set, _): &(EvalSet, f64)| EvalSetTally {
            name: set.name.clone(),
            examples: set.examples() as u64,
            too_short: set.too_short,
        };
        self.sets.iter().map(tally).collect()
    }

    /// The example of which the text has the most: set, example, share of the example's words. `None` where it shares no n-gram.
    /// Of equal shares the first set and example count.
    #[must_use]
    pub fn worst(&self, text: &str) -> Option<(usize, usize, f64)> {
        let (found, touched) = self.found(text);
        self.shares(&found, &touched).reduce(|best, next| if next.2 > best.2 { next } else { best })
    }

    /// The hashes of the text that examples have, and for each example whether it has one. A text that says a hundred times what
    /// thousands of examples begin with costs no more than one that says it once.
    pub(crate) fn found(&self, text: &str) -> (HashSet<u64>, Vec<bool>) {
        let words = words(text);
        let hashes = self.lengths.iter().flat_map(|&length| runs(&words, length));
        let found: HashSet<u64> = hashes.filter(|hash| self.index.contains_key(hash)).collect();
        let mut touched = vec![false; if found.is_empty() { 0 } else { self.examples.len() }];
        for &example in found.iter().filter_map(|hash| self.index.get(hash)).flatten() {
            touched[example as usize] = true;
        }
        (found, touched)
    }

    /// Of each example that is touched, set, place, and the share of its words in n-grams that are found; in order.
    fn shares(&self, found: &HashSet<u64>, touched: &[bool]) -> impl Iterator<Item = (usize, usize, f64)> {
        let touched = self.examples.iter().zip(touched).filter(|&(_, &touched)| touched);
        touched.map(|(&(set, place), _)| {
            let (set, place) = (set as usize, place as usize);
            let example = &self.sets[set].0.examples[place];
            let length = self.ngram.min(example.words);
            let (mut covered, mut until) = (0, 0);
            for (from, _) in example.hashes.iter().enumerate().filter(|(_, hash)| found.contains(hash)) {
                covered += from + length - until.max(from);
                until = from + length;
            }
            (set, place, covered as f64 / example.words as f64)
        })
    }
}

impl Filter for Contamination {
    fn name(&self) -> &'static str {
        "decontaminate"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let (found, touched) = self.found(&document.text);
        let (set, example, found) =
            self.shares(&found, &touched).find(|&(set, _, found)| found > self.sets[set].1)?;
        let (EvalSet { name, .. }, limit) = &self.sets[set];
        let detail = format!("{found:.3} of the words of example {} of `{name}`, limit {limit}", example + 1);
        Some(Dropped::new("contamination", detail))
    }
}
