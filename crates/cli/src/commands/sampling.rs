//! How tokens are drawn and where texts end: the options that `generate` and `chat` share, and the clock of both.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use llamero_infer::{FORBID, SamplingParams, StopText};
use serde_json::{Value, json};

/// How tokens are drawn.
#[derive(Args)]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token every time, larger numbers make others likelier.
    #[arg(long, default_value_t = 0.6, value_parser = temperature, allow_negative_numbers = true)]
    temperature: f64,
    /// Keep this many of the likeliest tokens, 1 or more; all when absent.
    #[arg(long, value_name = "TOKENS", value_parser = tokens, allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Keep the likeliest tokens up to this total probability, above 0 and at most 1, which keeps all.
    #[arg(long, default_value_t = 0.9, value_parser = top_p, allow_negative_numbers = true)]
    top_p: f64,
    /// Keep tokens at least this fraction as likely as the likeliest, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = min_p, allow_negative_numbers = true)]
    min_p: f64,
    /// Divide positive logits of tokens that were there already by this, and multiply others, 0.1 to 10: 1.1 is usual, 1 is none.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// Take this from the logit of a token for each time that it was there already, -2 to 2.
    #[arg(long, value_name = "LOGIT", default_value_t = 0.0, value_parser = penalty, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// Take this from the logit of a token that was there already, -2 to 2.
    #[arg(long, value_name = "LOGIT", default_value_t = 0.0, value_parser = penalty, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// Penalties look at this many of the last tokens of prompt and answer, 1 or more; all when absent.
    #[arg(long, value_name = "TOKENS", value_parser = tokens, allow_negative_numbers = true)]
    penalty_window: Option<usize>,
    /// Add BIAS, -100 to 100, to the logit of a token; -100 (or -inf) forbids it. May be given several times.
    #[arg(long, value_name = "ID=BIAS", value_parser = bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f64)>,
    /// Seed of the draws, 0 to 2^64-1.
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    seed: u64,
    /// Most tokens to generate, 1 or more.
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = tokens, allow_negative_numbers = true)]
    max_tokens: usize,
    /// End before this text, which is not printed. May be given several times.
    #[arg(long, value_name = "TEXT", value_parser = stop_text, allow_hyphen_values = true)]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// As the engine takes them.
    pub(crate) fn params(&self, stop: Vec<u32>) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            max_tokens: self.max_tokens,
            stop,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            penalty_window: self.penalty_window,
            logit_bias: self.logit_bias.iter().copied().collect(),
        }
    }

    /// Checks all but ids, which need a model.
    pub(crate) fn validate(&self) -> Result<StopText> {
        self.params(vec![]).validate()?;
        Ok(StopText::new(self.stop.clone())?)
    }
}

/// A seed on the command line.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it is not a whole number from 0 to 2^64-1".into())
}

/// A number that `allows`, in words `allowed`.
fn number(text: &str, allows: impl Fn(f64) -> bool, allowed: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x| allows(x)).ok_or_else(|| format!("allowed is {allowed}"))
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, |x| x.is_finite() && x >= 0.0, "0 (greedy) or a positive number")
}

fn top_p(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "above 0 and at most 1")
}

fn min_p(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "0 to 1")
}

fn factor(text: &str) -> Result<f64, String> {
    number(text, |x| (0.1..=10.0).contains(&x), "0.1 to 10, where 1 is none")
}

fn penalty(text: &str) -> Result<f64, String> {
    number(text, |x| (-2.0..=2.0).contains(&x), "-2 to 2, where 0 is none")
}

/// A number of tokens.
fn tokens(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&tokens| tokens > 0).ok_or_else(|| "allowed is 1 or more".to_owned())
}

fn stop_text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("allowed is a text of one character or more".into()) } else { Ok(text.into()) }
}

/// `ID=BIAS`.
fn bias(text: &str) -> Result<(u32, f64), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim())));
    match parsed {
        Some((id, "-inf")) => Ok((id, FORBID)),
        Some((id, bias)) => {
            let bias: f64 = bias.parse().map_err(|_| format!("`{bias}` is no number"))?;
            match (FORBID..=-FORBID).contains(&bias) {
                true => Ok((id, bias)),
                false => Err(format!("`{bias}` is not from -100 to 100, where -100 forbids the token")),
            }
        }
        None => Err("expected a token id and a number, such as `13=-100`".into()),
    }
}

/// When something began, and when its first token came.
pub(crate) struct Clock {
    start: Instant,
    first: Option<f64>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), first: None }
    }

    /// A token came.
    pub(crate) fn token(&mut self) {
        let elapsed = self.seconds();
        self.first.get_or_insert(elapsed);
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Seconds until the first token (absent where none was streamed) and in all, and how fast `tokens` came.
    pub(crate) fn json(&self, tokens: usize) -> Value {
        let seconds = self.seconds();
        // The first token is the end of reading the prompt.
        let decoding = self.first.map(|first| seconds - first).filter(|s| *s > 0.0 && tokens > 1);
        json!({
            "ttft_s": self.first,
            "total_s": seconds,
            "decode_tokens_per_s": decoding.map(|s| (tokens - 1) as f64 / s),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_read() {
        assert_eq!(bias("13=-100"), Ok((13, -100.0)));
        assert_eq!(bias(" 7 = 2.5"), Ok((7, 2.5)));
        assert_eq!(bias("0=-inf"), Ok((0, FORBID)));
        for (text, says) in [
            ("13", "token id"),
            ("a=1", "token id"),
            ("-1=1", "token id"),
            ("3=high", "`high`"),
            ("3=200", "-100 to 100"),
        ] {
            assert!(bias(text).unwrap_err().contains(says), "{text}");
        }
    }
}
