//! Near duplicates by MinHash (Broder, "On the resemblance and containment of documents", 1997) and banding.
//!
//! A text is its set of shingles: runs of `ngram` words. The least value of each of `bands × rows` permutations of the
//! shingles is its signature; two texts of resemblance (Jaccard) s agree in each with probability s, so they agree in a whole
//! band of `rows` values with s^rows, and in at least one band with 1 - (1 - s^rows)^bands. With 14 × 8 that is 0.92 at
//! s = 0.8 and 0.05 at s = 0.5. Texts that agree in a band are joined by an edge, and a connected component keeps one.

use std::cell::RefCell;

use fearless_simd::{Level, Simd, dispatch};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::label::{id_of, id_text};
use super::{Verdicts, components};
use crate::filter::is_inside_word;
use crate::item::Value;
use crate::plan::{Emit, Input, Map, Reduce, Registry, Step, Values};
use crate::{CurateError, Dropped};

pub(super) fn register(registry: &mut Registry) {
    registry.map_of::<BandKeys>("band-keys");
    registry.reduce_of::<BandEdges>("band-edges");
    registry.map_of::<ComponentVerdicts>("component-verdicts");
}

/// How near duplicates are found.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct MinHash {
    /// Bands of a signature.
    pub bands: u32,
    /// Values in a band.
    pub rows: u32,
    /// Words in a shingle.
    pub ngram: u32,
    /// Seed of the permutations.
    pub seed: u64,
}

impl Default for MinHash {
    fn default() -> Self {
        Self { bands: 14, rows: 8, ngram: 5, seed: 1 }
    }
}

/// Most values of a signature.
const MAX_VALUES: u32 = 65_536;

impl MinHash {
    /// Checks every value.
    ///
    /// # Errors
    /// [`CurateError::OutOfRange`] with the key, the value found and the allowed range.
    pub fn validate(&self) -> Result<(), CurateError> {
        let fields = [
            ("near_duplicates.bands", self.bands, 256),
            ("near_duplicates.rows", self.rows, 256),
            ("near_duplicates.ngram", self.ngram, 100),
        ];
        for (key, found, high) in fields {
            if found == 0 || found > high || self.bands.saturating_mul(self.rows) > MAX_VALUES {
                let allowed = format!("from 1 to {high}");
                return Err(CurateError::OutOfRange { key, found: found.to_string(), allowed });
            }
        }
        Ok(())
    }

    /// Probability that two texts of this resemblance share a band.
    pub fn probability(&self, resemblance: f64) -> f64 {
        1.0 - (1.0 - resemblance.powi(self.rows as i32)).powi(self.bands as i32)
    }

    /// Appends the stages `near-edges`, `near-components` and `near`; sketches must be signed with these settings.
    ///
    /// # Errors
    /// None in practice.
    pub fn append(&self, verdicts: &mut Verdicts) -> Result<(), CurateError> {
        let left = verdicts.left("near");
        let plan = verdicts.plan();
        let bands = Input::through(&left, vec![Step::new("band-keys")]);
        plan.stage("near-edges", vec![bands], Some(Step::new("band-edges")));
        components::append(plan, "near-edges", "near-components");
        let detail = format!("a band of {} of {} hashes is the same", self.rows, self.bands * self.rows);
        let verdict = Step::with("component-verdicts", &ComponentVerdicts { detail })?;
        plan.stage("near", vec![Input::through("near-components", vec![verdict])], None);
        verdicts.give("near");
        Ok(())
    }
}

/// Hashes of shingles are permuted in lanes of this many.
const LANES: usize = 16;

/// Signs texts.
pub struct Signer {
    bands: usize,
    rows: usize,
    ngram: usize,
    /// Multiplier and summand of each permutation x → a·x + b of the 32-bit integers, a odd; padded to whole lanes.
    permutations: Vec<([u32; LANES], [u32; LANES])>,
    level: Level,
}

thread_local! {
    /// Hashes of words, of shingles, and least values: kept, since most texts are short.
    static SCRATCH: RefCell<(Vec<u64>, Vec<u32>, Vec<u32>)> = const { RefCell::new((Vec::new(), Vec::new(), Vec::new())) };
}

impl Signer {
    /// Draws the permutations.
    pub fn new(config: &MinHash) -> Signer {
        let values = (config.bands * config.rows) as usize;
        let mut state = config.seed;
        let mut draw = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            (mix(state) >> 32) as u32
        };
        let mut lanes = || ([0; LANES].map(|_| draw() | 1), [0; LANES].map(|_| draw()));
        let permutations = (0..values.div_ceil(LANES)).map(|_| lanes()).collect();
        Signer {
            bands: config.bands as usize,
            rows: config.rows as usize,
            ngram: config.ngram as usize,
            permutations,
            level: Level::new(),
        }
    }

    /// One hash a band; none for a text without words.
    pub fn bands(&self, text: &str) -> Vec<u64> {
        SCRATCH.with_borrow_mut(|(words, shingles, least)| {
            word_hashes(text, words);
            shingle_hashes(words, self.ngram, shingles);
            if shingles.is_empty() {
                return Vec::new();
            }
            self.least(shingles, least);
            let mut bytes = Vec::with_capacity(4 * self.rows);
            let band = |rows: &[u32]| {
                bytes.clear();
                bytes.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
                XxHash3_64::oneshot(&bytes)
            };
            least.chunks_exact(self.rows).take(self.bands).map(band).collect()
        })
    }

    /// The signature: the least value of every permutation.
    pub fn signature(&self, text: &str) -> Vec<u32> {
        let (mut words, mut shingles, mut least) = (Vec::new(), Vec::new(), Vec::new());
        word_hashes(text, &mut words);
        shingle_hashes(&words, self.ngram, &mut shingles);
        self.least(&shingles, &mut least);
        least.truncate(self.bands * self.rows);
        least
    }

    fn least(&self, shingles: &[u32], least: &mut Vec<u32>) {
        least.clear();
        for (multipliers, summands) in &self.permutations {
            let lanes = dispatch!(self.level, simd => least_lanes(simd, shingles, multipliers, summands));
            least.extend_from_slice(&lanes);
        }
    }
}

/// The least a·x + b over all x, for each lane. Compiled for what the machine has.
#[inline(always)]
fn least_lanes<S: Simd>(simd: S, shingles: &[u32], a: &[u32; LANES], b: &[u32; LANES]) -> [u32; LANES] {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut least = [u32::MAX; LANES];
            for &x in shingles {
                for lane in 0..LANES {
                    least[lane] = least[lane].min(x.wrapping_mul(a[lane]).wrapping_add(b[lane]));
                }
            }
            least
        },
    )
}

/// Set of the hashes of a text's shingles, for exact resemblance.
pub fn shingle_set(text: &str, ngram: u32) -> std::collections::BTreeSet<u32> {
    let (mut words, mut shingles) = (Vec::new(), Vec::new());
    word_hashes(text, &mut words);
    shingle_hashes(&words, ngram as usize, &mut shingles);
    shingles.into_iter().collect()
}

const WORD_SEED: u64 = 0xCBF2_9CE4_8422_2325;
const WORD_FACTOR: u64 = 0x9FB2_1C65_1E98_DF25;
const SHINGLE_FACTOR: u64 = 0xD6E8_FEB8_6659_FD93;

/// What an ASCII byte is to a word: itself in lower case, or 0 between words.
const LETTER: [u8; 128] = {
    let mut table = [0; 128];
    let mut byte = 0;
    while byte < 128 {
        if (byte as u8).is_ascii_alphanumeric() {
            table[byte] = (byte as u8).to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// Hashes of the words of a text: runs of letters and digits in lower case. In scripts without spaces every character is a
/// word. Signs on a letter that are no letters, such as accents and viramas, are skipped: a composed and a decomposed letter differ,
/// but both stay in their word.
fn word_hashes(text: &str, words: &mut Vec<u64>) {
    words.clear();
    let bytes = text.as_bytes();
    let (mut at, mut hash) = (0, WORD_SEED);
    while let Some(&byte) = bytes.get(at) {
        if let Some(&letter) = LETTER.get(usize::from(byte)) {
            at += 1;
            if letter != 0 {
                hash = step(hash, u64::from(letter));
                continue;
            }
        } else {
            // `at` is always at the start of a character.
            let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) else { break };
            at += c.len_utf8();
            if is_word_alone(c) {
                end_word(&mut hash, words);
                hash = step(hash, u64::from(c));
            } else if c.is_alphanumeric() {
                hash = c.to_lowercase().fold(hash, |hash, c| step(hash, u64::from(c)));
                continue;
            } else if is_inside_word(c) {
                continue;
            }
        }
        end_word(&mut hash, words);
    }
    end_word(&mut hash, words);
}

#[inline(always)]
fn step(hash: u64, unit: u64) -> u64 {
    (hash ^ unit).wrapping_mul(WORD_FACTOR)
}

#[inline(always)]
fn end_word(hash: &mut u64, words: &mut Vec<u64>) {
    if *hash != WORD_SEED {
        words.push(mix(*hash));
        *hash = WORD_SEED;
    }
}

/// Han, kana, Thai, Lao, Khmer, Burmese: written without spaces between words.
pub(crate) fn is_word_alone(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
        && c.is_alphanumeric()
}

/// 32-bit hashes of all runs of `ngram` words; of all words where there are fewer.
fn shingle_hashes(words: &[u64], ngram: usize, shingles: &mut Vec<u32>) {
    shingles.clear();
    if words.is_empty() {
        return;
    }
    let combine = |run: &[u64]| {
        let sum = run.iter().fold(0, |sum: u64, &word| sum.wrapping_mul(SHINGLE_FACTOR).wrapping_add(word));
        (mix(sum) >> 32) as u32
    };
    shingles.extend(words.windows(ngram.min(words.len())).map(combine));
}

/// The finaliser of splitmix64.
#[inline(always)]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A record for each band of a sketch: the band's number and hash, and the label.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BandKeys {}

impl Map for BandKeys {
    fn map(&self, _: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let sketch = Value::sketch(value)?;
        for (band, hash) in sketch.bands.iter().enumerate() {
            let mut key = [0; 10];
            key[..2].copy_from_slice(&(band as u16).to_be_bytes());
            key[2..].copy_from_slice(&hash.to_be_bytes());
            emit(&key, &sketch.label)?;
        }
        Ok(())
    }
}

/// An edge from every label of a band's bucket to the least.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BandEdges {}

impl Reduce for BandEdges {
    fn reduce(&self, _: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let Some(first) = values.next()?.map(<[u8]>::to_vec) else { return Ok(()) };
        while let Some(label) = values.next()? {
            if label != first {
                emit(label, &first)?;
            }
        }
        Ok(())
    }
}

/// Turns edges to the least label of a component into verdicts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentVerdicts {
    detail: String,
}

impl Map for ComponentVerdicts {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let dropped = Dropped {
            survivor: Some(id_text(value)?),
            ..Dropped::new("near_duplicate", self.detail.as_str())
        };
        emit(id_of(key)?, &Value::Verdict(dropped).encode()?)
    }
}
