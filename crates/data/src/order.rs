//! Deterministic shuffling and sampling by hash.

/// SplitMix64: a small generator whose whole state is one number.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n` without bias worth mentioning (n is far below 2⁶⁴).
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// The numbers `0..n` in the order given by (seed, epoch) (Fisher–Yates).
pub fn shuffled(n: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut rng = SplitMix(seed ^ epoch.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(17));
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.below(i + 1));
    }
    order
}

/// A number in `[0, 1)` that depends on the text alone: sampling by hash.
pub fn hash_fraction(text: &str) -> f64 {
    let hash = blake3::hash(text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_are_permutations_that_differ_by_epoch() {
        let a = shuffled(1000, 1, 0);
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..1000));
        assert_ne!(a, shuffled(1000, 1, 1));
        assert_ne!(a, shuffled(1000, 2, 0));
        assert_eq!(a, shuffled(1000, 1, 0));
        assert!(shuffled(0, 1, 0).is_empty());
    }

    #[test]
    fn hash_fractions_spread() {
        let below: usize = (0..1000).filter(|i| hash_fraction(&format!("doc {i}")) < 0.2).count();
        assert!((150..250).contains(&below), "{below}");
    }
}
