//! Rotary position embedding: the table of angles, and the two orders of rows in `wq` and `wk`.

use llamero_tensor::RopeTable;

use crate::Config;

/// The table for positions `0..positions`.
pub fn rope_table(config: &Config, positions: usize) -> RopeTable {
    RopeTable::new((0..config.head_dim / 2).map(|i| frequency(config, i)).collect(), positions)
}

/// `theta^(-2i/D)`, stretched as Llama 3.1 does when the configuration says so.
pub(crate) fn frequency(config: &Config, i: usize) -> f64 {
    let f = libm::pow(config.rope_theta, -2.0 * i as f64 / config.head_dim as f64);
    let Some(s) = config.rope_scaling else { return f };
    let wavelength = std::f64::consts::TAU / f;
    let turns = s.original_context as f64 / wavelength;
    if turns > s.high_freq_factor {
        f
    } else if turns < s.low_freq_factor {
        f / s.factor
    } else {
        let smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        (1.0 - smooth) * f / s.factor + smooth * f
    }
}

/// Reorders the rows of `wq` or `wk` (`[heads · D, cols]`) from Meta's interleaved layout, where rows `2i` and `2i+1` of a
/// head are a pair, to the half-split layout, where rows `i` and `i + D/2` are.
pub fn half_split_rows(w: &[f32], head_dim: usize, cols: usize) -> Vec<f32> {
    reorder(w, head_dim, cols, |i| interleaved_row(i, head_dim))
}

/// Where row `row` of the half-split layout is in the interleaved one.
pub(crate) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim * head_dim, row % head_dim);
    head + if i < head_dim / 2 { 2 * i } else { 2 * (i - head_dim / 2) + 1 }
}

/// The inverse of [`half_split_rows`].
pub fn interleaved_rows(w: &[f32], head_dim: usize, cols: usize) -> Vec<f32> {
    reorder(w, head_dim, cols, |i| half_split_row(i, head_dim))
}

/// Where row `row` of the interleaved layout is in the half-split one.
pub(crate) fn half_split_row(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim * head_dim, row % head_dim);
    head + i / 2 + if i % 2 == 1 { head_dim / 2 } else { 0 }
}

fn reorder(w: &[f32], head_dim: usize, cols: usize, source: impl Fn(usize) -> usize) -> Vec<f32> {
    let head = head_dim * cols;
    w.chunks(head)
        .flat_map(|h| {
            (0..head_dim)
                .flat_map(|i| &h[source(i) * cols..(source(i) + 1) * cols])
                .copied()
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RopeScaling;

    #[test]
    fn row_orders_are_inverse() {
        let w: Vec<f32> = (0..3 * 8 * 5).map(|i| i as f32).collect();
        let half = half_split_rows(&w, 8, 5);
        assert_ne!(half, w);
        assert_eq!(interleaved_rows(&half, 8, 5), w);
        // Row 1 of head 0 in the half-split order is row 2 of the interleaved order.
        assert_eq!(half[5..10], w[10..15]);
    }

    #[test]
    fn scaling_stretches_low_frequencies_only() {
        let plain = Config { head_dim: 128, ..Config::preset("8b").unwrap() };
        let scaling =
            RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let scaled = Config { rope_scaling: Some(scaling), ..plain.clone() };
        assert_eq!(frequency(&plain, 0), frequency(&scaled, 0));
        assert_eq!(frequency(&plain, 63) / 8.0, frequency(&scaled, 63));
        for i in 0..64 {
            let ratio = frequency(&plain, i) / frequency(&scaled, i);
            assert!((1.0..=8.0).contains(&ratio), "{i}: {ratio}");
        }
    }
}
