//! Ranks that are slower than others, and steps that took much longer than others.
//!
//! Ranks of a mesh wait for each other, so all have the same step time. What tells them apart is how much of it each was busy,
//! which is the step without the waits for messages.

use std::collections::VecDeque;

use crate::{Entry, Event};

/// Steps that a long one is compared with.
const RECENT: usize = 32;

/// Fewest steps before any is called long.
const FEWEST: usize = 3;

/// A step is long when it takes this many times the usual, and [`NOISE`] more.
const LONG: f64 = 3.0;

/// Seconds that a machine may take for something else.
const NOISE: f64 = 0.05;

/// Weight of the newest step in a rank's mean.
const NEWEST: f64 = 0.05;

/// A rank that is busy for more than this many times the usual is a straggler.
const STRAGGLES: f64 = 1.25;

/// A step that took long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LongStep {
    /// The rank that was busy while others waited, if there was one.
    pub rank: Option<usize>,
    /// Seconds more than usual.
    pub over: f64,
}

/// Watches how long ranks are busy.
#[derive(Clone, Debug, Default)]
pub struct Stragglers {
    /// Tokens of the newest step: steps of another size are not compared.
    tokens: u64,
    recent: VecDeque<f64>,
    busy: Vec<f64>,
}

impl Stragglers {
    /// Begins with what the ledger tells of earlier jobs' steps, so that the first steps of a job are compared with something.
    pub fn since(entries: &[Entry]) -> Self {
        let mut watch = Self::default();
        for pair in entries.windows(2) {
            if let (Event::Ready { .. } | Event::Step { .. } | Event::Saved { .. }, Event::Step { .. }) =
                (&pair[0].event, &pair[1].event)
            {
                watch.push(pair[1].at - pair[0].at);
            }
        }
        watch
    }

    fn push(&mut self, seconds: f64) {
        self.recent.push_back(seconds);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    /// A step of so many tokens and seconds, in which each rank was busy for so many.
    pub fn note(&mut self, tokens: u64, seconds: f64, busy: &[f64]) -> Option<LongStep> {
        if self.tokens == 0 {
            self.tokens = tokens;
        } else if tokens != self.tokens {
            *self = Self { tokens, ..Self::default() };
        }
        let usual = median(self.recent.iter().copied());
        let long = self.recent.len() >= FEWEST && seconds > LONG * usual + NOISE;
        self.push(seconds);
        if !long {
            self.busy.resize(busy.len(), f64::NAN);
            for (mean, busy) in self.busy.iter_mut().zip(busy) {
                *mean = if mean.is_nan() { *busy } else { *mean + NEWEST * (busy - *mean) };
            }
            return None;
        }
        let over = seconds - usual;
        let middle = median(busy.iter().copied());
        let alone = |(_, busy): &(usize, &f64)| **busy > middle + over / 2.0;
        let rank = busy.iter().enumerate().filter(|_| busy.len() > 1).find(alone).map(|(rank, _)| rank);
        Some(LongStep { rank, over })
    }

    /// Ranks that are busier than the usual one and by how many times, the busiest first; none after few steps.
    pub fn ranking(&self) -> Vec<(usize, f64)> {
        if self.recent.len() < RECENT {
            return Vec::new();
        }
        let usual = median(self.busy.iter().copied());
        let times = self.busy.iter().map(|busy| busy / usual).enumerate();
        let mut slow: Vec<(usize, f64)> = times.filter(|(_, times)| *times > STRAGGLES).collect();
        slow.sort_by(|a, b| b.1.total_cmp(&a.1));
        slow
    }
}

/// The middle value; 0 of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_step_names_the_rank_that_others_waited_for() {
        let mut watch = Stragglers::default();
        for _ in 0..20 {
            assert_eq!(watch.note(7, 0.10, &[0.08, 0.09, 0.08, 0.10]), None);
        }
        let long = watch.note(7, 0.50, &[0.08, 0.09, 0.49, 0.10]).unwrap();
        assert_eq!(long.rank, Some(2));
        assert!((long.over - 0.4).abs() < 1e-9);
        // All stood still together.
        assert_eq!(watch.note(7, 0.50, &[0.48, 0.49, 0.49, 0.48]).unwrap().rank, None);
        assert_eq!(watch.note(7, 0.11, &[0.08, 0.09, 0.08, 0.10]), None);
        assert!(watch.ranking().is_empty());
        // Another size, another time.
        assert_eq!(watch.note(28, 0.44, &[0.4, 0.4, 0.4, 0.4]), None);
    }

    #[test]
    fn the_first_step_of_a_job_is_compared_with_those_of_the_last() {
        let events = [0.0, 0.1, 0.2, 0.3, 0.4].map(|at| Entry { at, event: Event::Step { step: 0 } });
        let mut watch = Stragglers::since(&events);
        assert!(watch.note(7, 0.5, &[0.5, 0.1]).is_some());
        assert_eq!(Stragglers::default().note(7, 0.5, &[0.5, 0.1]), None);
    }

    #[test]
    fn a_rank_that_is_always_slower_is_ranked_first() {
        let mut watch = Stragglers::default();
        for _ in 0..200 {
            assert_eq!(watch.note(7, 0.20, &[0.10, 0.19, 0.10, 0.14]), None);
        }
        let ranking = watch.ranking();
        assert_eq!(ranking.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(), [1]);
        assert!((ranking[0].1 - 0.19 / 0.14).abs() < 0.01, "{ranking:?}");
    }
}
