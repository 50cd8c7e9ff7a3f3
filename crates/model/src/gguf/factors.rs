//! The divisors of the rotary frequencies by which GGUF files express Llama 3.1's scaling.
//!
//! The scaling has four numbers; its frequencies depend on three: contexts and both limits may be multiplied by one number.
//! So the numbers are found again only up to that, and any that give the same divisors will do.

use crate::rope::frequency;
use crate::{Config, RopeScaling};

/// How far a recomputed divisor may lie from the file's, relative to it.
const TOLERANCE: f64 = 1e-4;
/// The limits of every released model.
const LIMITS: (f64, f64) = (1.0, 4.0);

/// The divisor of each rotary frequency.
pub(super) fn factors_of(config: &Config) -> Vec<f32> {
    let plain = Config { rope_scaling: None, ..config.clone() };
    (0..config.head_dim / 2).map(|i| (frequency(&plain, i) / frequency(config, i)) as f32).collect()
}

/// The scaling whose divisors these are; `None` where they change nothing.
///
/// # Errors
/// Divisors that are no numbers, or that no scaling of Llama 3.1's form has.
pub(super) fn scaling_of(config: &Config, factors: &[f32]) -> Result<Option<RopeScaling>, String> {
    if let Some(i) = factors.iter().position(|f| !(f.is_finite() && *f > 0.0)) {
        return Err(format!("holds {} at element {i}; it must hold divisors of frequencies", factors[i]));
    }
    let error = |scaling: Option<RopeScaling>| {
        let own = factors_of(&Config { rope_scaling: scaling, ..config.clone() });
        let errors = own.iter().zip(factors).map(|(a, b)| f64::from((a - b).abs() / b));
        errors.fold(0.0, f64::max)
    };
    let factor = factors.iter().fold(1.0f32, |m, &f| m.max(f));
    let candidates = candidates(config, factors, factor.into());
    let best = candidates.into_iter().map(|c| (error(c), c)).min_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((error, scaling)) if error <= TOLERANCE => Ok(scaling),
        _ => {
            Err("holds divisors of rotary frequencies that are not Llama 3.1's scaling; such a model is not \
                  computed here"
                .into())
        }
    }
}

/// No scaling, the released models', and the one that fits best.
fn candidates(config: &Config, factors: &[f32], factor: f64) -> Vec<Option<RopeScaling>> {
    let of = |low, high, original_context| {
        Some(RopeScaling { factor, low_freq_factor: low, high_freq_factor: high, original_context })
    };
    let mut all = vec![None];
    all.extend((9..=20).map(|bits| of(LIMITS.0, LIMITS.1, 1 << bits)));
    if let Some((high, context)) = fit(config, factors, factor) {
        all.push(of(LIMITS.0, high, context));
    }
    all.retain(|s| Config { rope_scaling: *s, ..config.clone() }.validate().is_ok());
    all
}

/// Between the limits, `smooth = (context / wavelength − low) / (high − low)` is a line in 1 / wavelength; with `low` = 1 its
/// two numbers give the upper limit and the context.
fn fit(config: &Config, factors: &[f32], factor: f64) -> Option<(f64, usize)> {
    let plain = Config { rope_scaling: None, ..config.clone() };
    let points: Vec<(f64, f64)> = factors
        .iter()
        .enumerate()
        .filter(|(_, f)| f64::from(**f) > 1.0 && f64::from(**f) < factor)
        .map(|(i, f)| {
            let turns = frequency(&plain, i) / std::f64::consts::TAU;
            (turns, (1.0 / f64::from(*f) - 1.0 / factor) / (1.0 - 1.0 / factor))
        })
        .collect();
    let n = points.len() as f64;
    let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
    let (mean_x, mean_y) = (sum_x / n, sum_y / n);
    let (mut xx, mut xy) = (0.0, 0.0);
    for (x, y) in &points {
        xx += (x - mean_x) * (x - mean_x);
        xy += (x - mean_x) * (y - mean_y);
    }
    let slope = xy / xx;
    let start = mean_y - slope * mean_x;
    let high = 1.0 - 1.0 / start;
    let context = slope * (high - 1.0);
    (context.is_finite() && high > 1.0 && (1.0..1e9).contains(&context))
        .then(|| (high, context.round() as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(scaling: Option<RopeScaling>) -> Config {
        Config { context: 131_072, rope_scaling: scaling, ..Config::preset("8b").unwrap() }
    }

    #[test]
    fn released_scalings_are_found_again() {
        let scaling = |factor| RopeScaling {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        for head_dim in [64, 128] {
            for case in [None, Some(scaling(8.0)), Some(scaling(32.0))] {
                let config = Config { head_dim, ..config(case) };
                assert_eq!(scaling_of(&config, &factors_of(&config)), Ok(case));
            }
        }
    }

    #[test]
    fn other_scalings_give_the_same_frequencies() {
        let scaling = RopeScaling {
            factor: 5.0,
            low_freq_factor: 2.0,
            high_freq_factor: 7.0,
            original_context: 10_000,
        };
        let config = config(Some(scaling));
        let found = scaling_of(&config, &factors_of(&config)).unwrap();
        let again = factors_of(&Config { rope_scaling: found, ..config.clone() });
        for (a, b) in again.iter().zip(factors_of(&config)) {
            assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn divisors_of_another_kind_are_refused() {
        let config = config(None);
        let mut factors = vec![1.0; 64];
        assert_eq!(scaling_of(&config, &factors), Ok(None));
        factors[20] = 1.5;
        assert!(scaling_of(&config, &factors).unwrap_err().contains("not Llama 3.1's"));
        assert!(scaling_of(&config, &[2.0; 64]).is_err());
        factors[20] = f32::NAN;
        assert!(scaling_of(&config, &factors).unwrap_err().contains("at element 20"));
        factors[20] = 0.0;
        assert!(scaling_of(&config, &factors).is_err());
    }
}
