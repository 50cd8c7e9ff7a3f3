//! Learning rate: linear warm-up, then a cosine to a share of the peak ("The Llama 3 Herd of Models" §3.4.1).

use crate::OptimizerConfig;

/// Learning rate of update `step` (from 0) of `steps`.
pub fn learning_rate(config: &OptimizerConfig, step: u64, steps: u64) -> f64 {
    let warmup = config.warmup_steps.min(steps);
    if step < warmup {
        return config.peak_lr * (step + 1) as f64 / (warmup + 1) as f64;
    }
    let span = (steps - warmup).saturating_sub(1).max(1);
    let progress = ((step - warmup) as f64 / span as f64).min(1.0);
    let cosine = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress));
    config.peak_lr * (config.final_lr_ratio + (1.0 - config.final_lr_ratio) * cosine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_falls_to_the_ratio() {
        let config =
            OptimizerConfig { peak_lr: 1.0, final_lr_ratio: 0.1, warmup_steps: 10, ..Default::default() };
        let lr: Vec<f64> = (0..100).map(|s| learning_rate(&config, s, 100)).collect();
        assert!(lr[..11].windows(2).all(|w| w[0] < w[1]));
        assert_eq!(lr[10], 1.0);
        assert!(lr[10..].windows(2).all(|w| w[0] > w[1]));
        assert!((lr[99] - 0.1).abs() < 1e-12);
    }

    #[test]
    fn short_runs_stay_in_range() {
        let config = OptimizerConfig { warmup_steps: 10, ..Default::default() };
        for steps in 1..15 {
            for step in 0..steps {
                let lr = learning_rate(&config, step, steps);
                assert!(lr > 0.0 && lr <= config.peak_lr, "{step} of {steps}: {lr}");
            }
        }
    }
}
