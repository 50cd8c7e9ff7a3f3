//! Initial values: a hash of (seed, parameter name, element index), so every mesh starts from the same bits.

use std::ops::Range;

use crate::{Init, ParamSpec};

/// Rows `rows` of the initial tensor of a parameter, row-major.
pub fn initial_values(spec: &ParamSpec, rows: Range<usize>, seed: u64) -> Vec<f32> {
    let cols = spec.shape.cols;
    let mut values = Vec::with_capacity(rows.len() * cols);
    for (part, own) in spec.parts_in(rows) {
        match part.init {
            Init::Ones => values.resize(values.len() + own.len() * cols, 1.0),
            Init::Normal { std } => {
                let key = stream_key(seed, &part.hf_name);
                let elements = (own.start * cols) as u64..(own.end * cols) as u64;
                values.extend(elements.map(|i| (truncated_normal(key, i) * std) as f32));
            }
        }
    }
    values
}

/// Distinguishes the streams of different tensors and seeds (FNV-1a over both, then mixed).
fn stream_key(seed: u64, name: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    mix(bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
}

/// SplitMix64's finaliser: a bijection whose output bits all depend on all input bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Standard normal cut at ±3, by Box–Muller on hashed uniforms; draws again (with the next counter) when outside.
fn truncated_normal(key: u64, index: u64) -> f64 {
    const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
    (0u64..)
        .map(|draw| {
            let a = mix(key ^ mix(index ^ (draw << 56)));
            let b = mix(a.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let (u, v) = (((a >> 11) as f64 + 0.5) * SCALE, (b >> 11) as f64 * SCALE);
            (-2.0 * libm::log(u)).sqrt() * libm::cos(std::f64::consts::TAU * v)
        })
        .find(|z| z.abs() <= 3.0)
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn values_have_the_stated_distribution_and_depend_on_name_and_seed() {
        let config = Config { vocab: 512, ..Config::preset("1m").unwrap() };
        let table = config.params();
        let spec = table.iter().find(|s| s.name == "layers.1.feed_forward.w13.weight").unwrap();
        let values = initial_values(spec, 0..spec.shape.rows, 7);
        let (w1, w3) = values.split_at(config.ffn * config.dim);
        for (part, std) in [(w1, 0.02), (w3, 0.01)] {
            let mean = part.iter().map(|&x| f64::from(x)).sum::<f64>() / part.len() as f64;
            let var = part.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / part.len() as f64;
            assert!(mean.abs() < 0.01 * std, "{mean}");
            // Cutting at three standard deviations leaves 98.66 % of the deviation.
            assert!((var.sqrt() / (0.98658 * std) - 1.0).abs() < 0.01, "{}", var.sqrt());
        }
        // Any rows alone, also across the border of the parts.
        for rows in [0..1, 5..config.ffn + 7, config.ffn..config.ffn + 3] {
            let want = &values[rows.start * config.dim..rows.end * config.dim];
            assert_eq!(initial_values(spec, rows, 7), want);
        }
        assert_ne!(values, initial_values(spec, 0..spec.shape.rows, 8));
        let other = table.iter().find(|s| s.name == "layers.2.feed_forward.w13.weight").unwrap();
        assert_ne!(values, initial_values(other, 0..other.shape.rows, 7));
    }
}
