//! What changes in the course of a run: batch, length of sequences, mix of domains, learning rate.
//!
//! All of it is a pure function of the number of the step, so that resuming is remembering one number, and every mesh reads
//! the same. A run reads chunks as long as its longest sequence, in order, and an update reads whole chunks: a shorter
//! sequence is a part of a chunk, and its neighbours in the same update are the others. So no change of length, however runs
//! are stopped and ranks numbered, reads a token twice in an epoch or leaves one out.

use std::collections::BTreeMap;

use llamero_data::{Domain, Place};
use serde::{Deserialize, Serialize};

use crate::schedule::learning_rate;
use crate::{TrainConfig, TrainError};

/// A change of the shape of updates ("The Llama 3 Herd of Models" §3.4.1). What is absent stays as it was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RampStage {
    /// It begins with the first update before which at least so many tokens were read.
    pub at_tokens: u64,
    /// Sequences per update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Tokens per sequence. Divides the longest of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<usize>,
    /// Sequences per forward pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
}

/// A change of the mix of domains (§3.4.1). Every domain is a stream with its own epochs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixStage {
    /// It begins with the first update before which at least so many tokens were read; the first of a run with 0.
    pub at_tokens: u64,
    /// How much of the tokens each domain gets, in any unit; a domain that is not named gets none.
    pub weights: BTreeMap<Domain, f64>,
}

/// The end of a run, in which the learning rate falls linearly to zero (§3.4.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Annealing {
    /// The last updates of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Or the updates that have the last so many tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// The model is the mean of the weights after every so many updates of this phase, the last included (Polyak averaging);
    /// with 0 it is the last weights.
    pub average_every: u64,
}

impl Default for Annealing {
    fn default() -> Self {
        Self { steps: None, tokens: None, average_every: 1 }
    }
}

/// Consecutive updates of one shape.
#[derive(Clone, Copy)]
pub(crate) struct Phase {
    pub(crate) first_step: u64,
    first_token: u64,
    first_sequence: u64,
    pub(crate) batch: usize,
    pub(crate) sequence: usize,
    pub(crate) micro_batch: usize,
}

impl Phase {
    pub(crate) fn step_tokens(&self) -> u64 {
        self.batch as u64 * self.sequence as u64
    }

    fn tokens_before(&self, step: u64) -> u64 {
        self.first_token.saturating_add((step - self.first_step).saturating_mul(self.step_tokens()))
    }

    fn sequences_before(&self, step: u64) -> u64 {
        self.first_sequence.saturating_add((step - self.first_step).saturating_mul(self.batch as u64))
    }

    /// The first step before which at least `tokens` were read.
    fn step_at(&self, tokens: u64) -> u64 {
        self.first_step + tokens.saturating_sub(self.first_token).div_ceil(self.step_tokens())
    }
}

/// Chunks that are divided among domains in one way.
#[derive(Clone, Debug, PartialEq)]
struct MixPhase {
    first_chunk: u64,
    /// What each domain takes of what those before it leave, in parts of 2³².
    shares: Vec<(Domain, u64)>,
    /// Chunks of each domain before this phase.
    before: BTreeMap<Domain, u64>,
}

const UNIT_BITS: u32 = 32;

impl MixPhase {
    fn new(first_chunk: u64, weights: &BTreeMap<Domain, f64>, before: BTreeMap<Domain, u64>) -> Self {
        let mut left: f64 = weights.values().sum();
        let positive = weights.iter().filter(|(_, weight)| **weight > 0.0).collect::<Vec<_>>();
        let last = positive.len().saturating_sub(1);
        let shares = positive.into_iter().enumerate().map(|(i, (domain, weight))| {
            let share = if i == last { 1.0 } else { (weight / left).min(1.0) };
            left -= weight;
            (*domain, (share * (1u64 << UNIT_BITS) as f64) as u64)
        });
        Self { first_chunk, shares: shares.collect(), before }
    }

    /// How many of the first `chunks` of this phase each domain gets: for every number of chunks its share, rounded, so that
    /// domains alternate as evenly as they can. Integers, for a chunk must never be taken twice.
    fn counts(&self, chunks: u64) -> impl Iterator<Item = (Domain, u64)> {
        let mut left = chunks;
        self.shares.iter().map(move |(domain, share)| {
            let half = 1u128 << (UNIT_BITS - 1);
            let own = ((u128::from(left) * u128::from(*share) + half) >> UNIT_BITS) as u64;
            left -= own;
            (*domain, own)
        })
    }

    /// The domain of a chunk of the run, and its number in the stream of that domain.
    fn pick(&self, chunk: u64) -> (Domain, u64) {
        let at = chunk - self.first_chunk;
        let mut both = self.counts(at).zip(self.counts(at + 1));
        let Some(((domain, earlier), _)) = both.find(|((_, earlier), (_, then))| then > earlier) else {
            unreachable!("one of the domains takes the next chunk")
        };
        (domain, self.before.get(&domain).copied().unwrap_or(0) + earlier)
    }

    /// Chunks of each domain before `chunk` of the run.
    fn seen(&self, chunk: u64) -> BTreeMap<Domain, u64> {
        let mut seen = self.before.clone();
        self.counts(chunk - self.first_chunk).for_each(|(d, n)| *seen.entry(d).or_default() += n);
        seen
    }
}

/// One update: everything that depends on its number.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSettings {
    /// Sequences.
    pub batch: usize,
    /// Tokens per sequence.
    pub sequence: usize,
    /// Sequences per forward pass.
    pub micro_batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Sequences read before.
    pub first_sequence: u64,
    /// Tokens read before.
    pub first_token: u64,
    /// Whether the weights after it are part of the average.
    pub averaged: bool,
    longest: usize,
    mix: Option<MixPhase>,
}

impl StepSettings {
    /// Where sequence `i` of this update is read.
    pub fn place(&self, i: usize) -> Place {
        let token = self.first_token + i as u64 * self.sequence as u64;
        let (chunk, start) = (token / self.longest as u64, (token % self.longest as u64) as usize);
        let (domain, chunk) = match &self.mix {
            None => (None, chunk),
            Some(mix) => {
                let (domain, chunk) = mix.pick(chunk);
                (Some(domain), chunk)
            }
        };
        Place { number: self.first_sequence + i as u64, domain, chunk, part: start..start + self.sequence }
    }
}

impl TrainConfig {
    /// What update `step` (from 0) is.
    pub fn at(&self, step: u64) -> StepSettings {
        let phase = self.phase(step);
        let first_token = phase.tokens_before(step);
        let longest = self.longest_sequence();
        let chunk = first_token / longest as u64;
        StepSettings {
            batch: phase.batch,
            sequence: phase.sequence,
            micro_batch: phase.micro_batch,
            lr: self.learning_rate(step),
            first_sequence: phase.sequences_before(step),
            first_token,
            averaged: self.num_averaged(step + 1) > self.num_averaged(step),
            longest,
            mix: self.mix_phases().into_iter().rev().find(|mix| mix.first_chunk <= chunk),
        }
    }

    /// Updates of a run whose length is settled.
    pub fn num_steps(&self) -> u64 {
        self.steps.or_else(|| Some(self.step_at(self.tokens?))).unwrap_or(0)
    }

    /// Whether neither steps nor tokens say how long the run is.
    pub fn is_open(&self) -> bool {
        self.steps.is_none() && self.tokens.is_none()
    }

    /// Tokens read before update `step`; those of the whole run with [`TrainConfig::num_steps`].
    pub fn tokens_before(&self, step: u64) -> u64 {
        self.phase(step).tokens_before(step)
    }

    /// The longest sequence: the length of the chunks of the data, and the context that the model needs.
    pub fn longest_sequence(&self) -> usize {
        self.ramp.iter().filter_map(|stage| stage.sequence).fold(self.sequence, usize::max)
    }

    /// Every domain that the mix names.
    pub fn domains(&self) -> Vec<Domain> {
        let named =
            |domain: &Domain| self.mix.iter().any(|m| m.weights.get(domain).is_some_and(|w| *w > 0.0));
        Domain::ALL.into_iter().filter(named).collect()
    }

    /// Tokens of each domain that the first `steps` updates read; nothing without a mix.
    pub fn seen(&self, steps: u64) -> BTreeMap<Domain, u64> {
        let longest = self.longest_sequence() as u64;
        let chunk = self.tokens_before(steps) / longest;
        let mix = self.mix_phases().into_iter().rev().find(|mix| mix.first_chunk <= chunk);
        let chunks = mix.map(|mix| mix.seen(chunk)).unwrap_or_default();
        chunks.into_iter().map(|(domain, chunks)| (domain, chunks * longest)).collect()
    }

    /// The shapes that updates have, in order.
    pub(crate) fn phases(&self) -> Vec<Phase> {
        let Self { batch, sequence, micro_batch, .. } = *self;
        let mut last =
            Phase { first_step: 0, first_token: 0, first_sequence: 0, batch, sequence, micro_batch };
        let mut phases = Vec::with_capacity(1 + self.ramp.len());
        for stage in &self.ramp {
            let first_step = last.step_at(stage.at_tokens);
            let next = Phase {
                first_step,
                first_token: last.tokens_before(first_step),
                first_sequence: last.sequences_before(first_step),
                batch: stage.batch.unwrap_or(last.batch),
                sequence: stage.sequence.unwrap_or(last.sequence),
                micro_batch: stage.micro_batch.unwrap_or(last.micro_batch),
            };
            // A stage may be over before an update of it.
            if first_step > last.first_step {
                phases.push(last);
            }
            last = next;
        }
        phases.push(last);
        phases
    }

    /// A run whose updates all have the shape of `phase`.
    pub(crate) fn only(&self, phase: &Phase) -> Self {
        let Phase { batch, sequence, micro_batch, .. } = *phase;
        Self { batch, sequence, micro_batch, ramp: Vec::new(), ..self.clone() }
    }

    fn phase(&self, step: u64) -> Phase {
        let phases = self.phases();
        phases[phases.partition_point(|phase| phase.first_step <= step) - 1]
    }

    /// The first step before which at least `tokens` were read.
    fn step_at(&self, tokens: u64) -> u64 {
        let phases = self.phases();
        phases[phases.partition_point(|phase| phase.first_token < tokens).saturating_sub(1)].step_at(tokens)
    }

    fn mix_phases(&self) -> Vec<MixPhase> {
        let longest = self.longest_sequence() as u64;
        let mut phases: Vec<MixPhase> = Vec::with_capacity(self.mix.len());
        for stage in &self.mix {
            let first = self.tokens_before(self.step_at(stage.at_tokens)) / longest;
            let before = phases.last().map(|phase| phase.seen(first)).unwrap_or_default();
            phases.push(MixPhase::new(first, &stage.weights, before));
        }
        phases
    }

    /// The first update of the annealing phase.
    pub(crate) fn anneal_start(&self) -> Option<u64> {
        let (anneal, steps) = (self.anneal.as_ref()?, self.num_steps());
        let by_tokens = |tokens: u64| {
            let first = self.tokens_before(steps).saturating_sub(tokens);
            let start = self.step_at(first);
            // The update in which the last so many tokens begin is one of them.
            start - u64::from(self.tokens_before(start) > first)
        };
        anneal.steps.map(|n| steps.saturating_sub(n)).or_else(|| anneal.tokens.map(by_tokens))
    }

    /// How many of the weights after each of the first `steps` updates are part of the average.
    pub(crate) fn num_averaged(&self, steps: u64) -> u64 {
        let (Some(anneal), Some(start)) = (&self.anneal, self.anneal_start()) else { return 0 };
        if anneal.average_every == 0 || steps <= start {
            return 0;
        }
        // Counted from the end, so that the last is one of them.
        let after = |n: u64| (self.num_steps() - n).div_ceil(anneal.average_every);
        after(start) - after(steps.min(self.num_steps()))
    }

    /// Whether the run ends with an average.
    pub(crate) fn averages(&self) -> bool {
        self.anneal.as_ref().is_some_and(|anneal| anneal.average_every > 0)
    }

    /// Linear warm-up and cosine, which ends where annealing begins unless `cosine_steps` says otherwise; then linearly to
    /// zero.
    fn learning_rate(&self, step: u64) -> f64 {
        let (optimizer, steps, start) = (&self.optimizer, self.num_steps(), self.anneal_start());
        let cosine = optimizer.cosine_steps.or(start).unwrap_or(steps);
        match start {
            Some(start) if step >= start => {
                let left = steps.saturating_sub(step) as f64 / steps.saturating_sub(start).max(1) as f64;
                learning_rate(optimizer, start, cosine) * left
            }
            _ => learning_rate(optimizer, step, cosine),
        }
    }

    /// Checks what is in this file.
    pub(crate) fn validate_phases(&self) -> Result<(), TrainError> {
        let wrong = |key, found: String, allowed: String| Err(TrainError::OutOfRange { key, found, allowed });
        if let (Some(_), Some(tokens)) = (self.steps, self.tokens) {
            return wrong("tokens", tokens.to_string(), "absent where `steps` is given".into());
        }
        if self.tokens == Some(0) {
            return wrong("tokens", "0".into(), "at least 1".into());
        }
        let mut at = 0;
        for stage in &self.ramp {
            if stage.at_tokens <= at {
                let found = stage.at_tokens.to_string();
                return wrong("ramp.at_tokens", found, format!("above {at}, in ascending order"));
            }
            at = stage.at_tokens;
        }
        let longest = self.longest_sequence();
        let (mut batch, mut sequence, mut micro_batch) = (self.batch, self.sequence, self.micro_batch);
        // All stages, also those that are over before an update of them.
        for stage in std::iter::once(&RampStage::default()).chain(&self.ramp) {
            batch = stage.batch.unwrap_or(batch);
            sequence = stage.sequence.unwrap_or(sequence);
            micro_batch = stage.micro_batch.unwrap_or(micro_batch);
            let sizes = [("ramp.batch", batch), ("ramp.micro_batch", micro_batch)];
            if let Some((key, n)) = sizes.into_iter().find(|(_, n)| !(1..=1 << 16).contains(n)) {
                return wrong(key, n.to_string(), "1 to 65536".into());
            }
            if !(2..=1 << 20).contains(&sequence) {
                return wrong("ramp.sequence", sequence.to_string(), "2 to 1048576".into());
            }
            if !longest.is_multiple_of(sequence) {
                return wrong(
                    "ramp.sequence",
                    sequence.to_string(),
                    format!("a divisor of the longest, {longest}"),
                );
            }
            if !(batch * sequence).is_multiple_of(longest) {
                let found = format!("{batch} with sequences of {sequence}");
                let times = longest / sequence;
                return wrong(
                    "ramp.batch",
                    found,
                    format!("a multiple of {times}: whole chunks of {longest} tokens"),
                );
            }
        }
        self.validate_mix().and_then(|()| self.validate_annealing())
    }

    fn validate_mix(&self) -> Result<(), TrainError> {
        let wrong = |key, found: String, allowed: String| Err(TrainError::OutOfRange { key, found, allowed });
        let mut at = None;
        for stage in &self.mix {
            match at {
                None if stage.at_tokens != 0 => {
                    let allowed = "0 in the first `mix`: what is read before it?".into();
                    return wrong("mix.at_tokens", stage.at_tokens.to_string(), allowed);
                }
                Some(before) if stage.at_tokens <= before => {
                    let found = stage.at_tokens.to_string();
                    return wrong("mix.at_tokens", found, format!("above {before}, in ascending order"));
                }
                _ => at = Some(stage.at_tokens),
            }
            let usable = |weight: &f64| weight.is_finite() && *weight >= 0.0;
            let sum: f64 = stage.weights.values().sum();
            if !(stage.weights.values().all(usable) && sum > 0.0 && sum.is_finite()) {
                let found = format!("{:?}", stage.weights.values().collect::<Vec<_>>());
                return wrong("mix.weights", found, "numbers from 0 on, at least one of them above".into());
            }
        }
        Ok(())
    }

    fn validate_annealing(&self) -> Result<(), TrainError> {
        let wrong = |key, found: &str, allowed: &str| {
            Err(TrainError::OutOfRange { key, found: found.into(), allowed: allowed.into() })
        };
        let Some(anneal) = &self.anneal else { return Ok(()) };
        match (anneal.steps, anneal.tokens) {
            (Some(_), Some(_)) => wrong("anneal.tokens", "given", "absent where `anneal.steps` is given"),
            (None, None) => wrong("anneal.steps", "absent", "given, or `anneal.tokens`"),
            (Some(0), _) => wrong("anneal.steps", "0", "at least 1"),
            (_, Some(0)) => wrong("anneal.tokens", "0", "at least 1"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
