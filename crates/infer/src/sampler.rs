//! From logits to a token.
//!
//! Biases and penalties change single logits (`edits`), one pass finds the likeliest (`scan`), and where the temperature is
//! not 0, `draw` filters and draws.

mod draw;
mod edits;
mod mass;
mod scan;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{InferError, Result};

/// A bias that forbids a token, as in OpenAI's interface; those of other tokens lie between it and its negative.
pub const FORBID: f64 = -100.0;

/// How tokens are drawn. The default is that of the Llama 3 release: temperature 0.6 and `top_p` 0.9.
///
/// What is set applies in this order, each to what the one before left: `logit_bias`, `repetition_penalty`,
/// `frequency_penalty` and `presence_penalty` on the logits of single tokens; then `temperature`, `top_k`, `top_p`, `min_p`.
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
    /// The logit of a token that occurs among the last `penalty_window` ones is divided by this where it is positive, and
    /// multiplied by it where it is not; 1 changes nothing (Keskar et al. 2019, §4.1).
    #[serde(skip_serializing_if = "is_one")]
    pub repetition_penalty: f64,
    /// Taken from the logit of a token once for each of its occurrences there; 0 changes nothing.
    #[serde(skip_serializing_if = "is_zero")]
    pub frequency_penalty: f64,
    /// Taken from the logit of a token that occurs there, however often; 0 changes nothing.
    #[serde(skip_serializing_if = "is_zero")]
    pub presence_penalty: f64,
    /// How many of the last tokens, prompt and answer together, the three penalties look at; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty_window: Option<usize>,
    /// Added to the logits of these tokens. [`FORBID`] takes a token out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_one(x: &f64) -> bool {
    *x == 1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(x: &f64) -> bool {
    *x == 0.0
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
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: None,
            logit_bias: BTreeMap::new(),
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
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", self.min_p.to_string(), "0 to 1");
        }
        if self.max_tokens == 0 {
            return bad("max_tokens", "0".into(), "1 or more");
        }
        if !(0.1..=10.0).contains(&self.repetition_penalty) {
            return bad(
                "repetition_penalty",
                self.repetition_penalty.to_string(),
                "0.1 to 10, where 1 is none",
            );
        }
        for (key, value) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            if !(-2.0..=2.0).contains(&value) {
                return bad(key, value.to_string(), "-2 to 2, where 0 is none");
            }
        }
        if self.penalty_window == Some(0) {
            return bad("penalty_window", "0".into(), "1 or more, or absent for all tokens");
        }
        match self.logit_bias.iter().find(|(_, bias)| !(FORBID..=-FORBID).contains(*bias)) {
            Some((id, bias)) => {
                bad("logit_bias", format!("{id}: {bias}"), "-100 to 100, where -100 forbids the token")
            }
            None => Ok(()),
        }
    }
}

/// Draws the token at `position` of a sequence from its logits, one for each token of the vocabulary, after the tokens
/// `history`. A function of its arguments; of `params`, those that [`SamplingParams::validate`] accepts.
///
/// # Errors
/// [`InferError::NonFinite`] when a logit is no finite number; [`InferError::UnknownToken`] when a bias or a penalty meets
/// an id that has no logit; [`InferError::Parameter`] when the biases forbid every token.
pub fn sample(logits: &[f32], params: &SamplingParams, history: &[u32], position: usize) -> Result<u32> {
    assert!(!logits.is_empty(), "sample: no logits");
    let plain = scan::scan(logits);
    if !plain.finite {
        let at = logits.iter().position(|x| !x.is_finite()).unwrap_or(0);
        return Err(InferError::NonFinite { value: logits[at], id: at as u32, position });
    }
    let Some(edited) = edits::edited(logits, params, history)? else {
        return Ok(pick(logits, &plain, params, position));
    };
    let best = scan::scan(&edited);
    if best.max == f32::NEG_INFINITY {
        let (found, allowed) = (format!("{} ids", params.logit_bias.len()), "to leave at least one token");
        return Err(InferError::Parameter { key: "logit_bias", found, allowed });
    }
    Ok(pick(&edited, &best, params, position))
}

fn pick(logits: &[f32], best: &scan::Scan, params: &SamplingParams, position: usize) -> u32 {
    if params.temperature == 0.0 {
        return best.at as u32;
    }
    draw::draw(logits, best.max, params, uniform(params.seed, position as u64))
}

/// A number in `[0, 1)` that depends on both values only (splitmix64; Steele, Lea and Flood 2014).
pub(crate) fn uniform(seed: u64, position: u64) -> f64 {
    let hash = mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(position));
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
