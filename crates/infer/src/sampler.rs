//! From logits to a token.

use serde::{Deserialize, Serialize};

use crate::{InferError, Result};

/// How tokens are drawn. The default is that of the Llama 3 release: temperature 0.6 and `top_p` 0.9.
///
/// The filters apply in the order of the fields, each to what the one before left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingParams {
    /// Logits are divided by this. 0 takes the likeliest token, of equals the one with the lowest id.
    pub temperature: f64,
    /// Keep this many of the likeliest tokens; absent keeps all.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens until their probabilities sum to this; 1 keeps all (Holtzman et al. 2020).
    pub top_p: f64,
    /// Keep tokens that are at least this fraction as likely as the likeliest; 0 keeps all (Nguyen et al. 2024).
    pub min_p: f64,
    /// The draw at a position is a function of the seed and the position, and of nothing else.
    pub seed: u64,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Any of these ends the generation.
    pub stop: Vec<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.6,
            top_k: None,
            top_p: 0.9,
            min_p: 0.0,
            seed: 0,
            max_tokens: 256,
            stop: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// The likeliest token every time.
    pub fn greedy(max_tokens: usize) -> Self {
        Self { temperature: 0.0, max_tokens, ..Self::default() }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`InferError::Parameter`], naming the first that is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |key, found: String, allowed| Err(InferError::Parameter { key, found, allowed });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature.to_string(), "0 (greedy) or a positive number");
        }
        if self.top_k == Some(0) {
            return bad("top_k", "0".into(), "1 or more, or absent to keep all tokens");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", self.top_p.to_string(), "above 0 and at most 1");
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return bad("min_p", self.min_p.to_string(), "0 to 1");
        }
        if self.max_tokens == 0 {
            return bad("max_tokens", "0".into(), "1 or more");
        }
        Ok(())
    }
}

/// Draws the token at `position` of a sequence from its logits, one for each token of the vocabulary.
///
/// # Errors
/// [`InferError::NonFinite`] when a logit is no finite number.
pub fn sample(logits: &[f32], params: &SamplingParams, position: usize) -> Result<u32> {
    if let Some(at) = logits.iter().position(|x| !x.is_finite()) {
        return Err(InferError::NonFinite { value: logits[at], id: at as u32, position });
    }
    let Some(likeliest) = (0..logits.len()).reduce(|a, b| if logits[b] > logits[a] { b } else { a }) else {
        panic!("sample: no logits");
    };
    if params.temperature == 0.0 {
        return Ok(likeliest as u32);
    }
    let kept = candidates(logits, f64::from(logits[likeliest]), params);
    let total: f64 = kept.iter().map(|c| c.weight).sum();
    let mut left = uniform(params.seed, position as u64) * total;
    let drawn = kept.iter().find(|c| {
        left -= c.weight;
        left < 0.0
    });
    // The subtractions may round to just above what the sum said; the draw then belongs to the last candidate.
    Ok(drawn.or(kept.last()).map_or(likeliest as u32, |c| c.id))
}

/// A token, and its probability relative to that of the likeliest.
struct Candidate {
    id: u32,
    logit: f32,
    weight: f64,
}

/// The tokens that the filters leave, likeliest first, equals in the order of their ids. Never empty.
fn candidates(logits: &[f32], max: f64, params: &SamplingParams) -> Vec<Candidate> {
    let weight = |x: f32| libm::exp((f64::from(x) - max) / params.temperature);
    let mut kept: Vec<Candidate> =
        (0u32..).zip(logits).map(|(id, &logit)| Candidate { id, logit, weight: weight(logit) }).collect();
    if let Some(k) = params.top_k
        && k < kept.len()
    {
        kept.select_nth_unstable_by(k - 1, order);
        kept.truncate(k);
        kept.sort_unstable_by(order);
    }
    let total: f64 = kept.iter().map(|c| c.weight).sum();
    // Tokens below this share sum to less than the `1 − top_p` that the nucleus leaves out, so they need not be
    // sorted: a vocabulary of 128,256 shrinks to tens or hundreds. The half leaves room for rounding.
    let negligible = 0.5 * (1.0 - params.top_p) * total / kept.len() as f64;
    kept.retain(|c| c.weight > negligible);
    kept.sort_unstable_by(order);
    if params.top_p < 1.0 {
        nucleus(&mut kept, params.top_p * total);
    }
    // The likeliest has weight exp(0) = 1.
    let likely = kept.iter().take_while(|c| c.weight >= params.min_p).count();
    kept.truncate(likely);
    kept
}

fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Keeps the shortest run from the front whose weights sum to `mass` at least.
fn nucleus(sorted: &mut Vec<Candidate>, mass: f64) {
    let mut sum = 0.0;
    let end = sorted.iter().position(|c| {
        sum += c.weight;
        sum >= mass
    });
    if let Some(end) = end {
        sorted.truncate(end + 1);
    }
}

/// A number in `[0, 1)` that depends on both values only (splitmix64; Steele, Lea and Flood 2014).
fn uniform(seed: u64, position: u64) -> f64 {
    let hash = mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(position));
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
