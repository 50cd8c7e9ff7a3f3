//! What every backend is tested with: a scalar oracle, the op suite, and finite differences.

pub mod gradcheck;
pub mod oracle;
pub mod suite;

pub use oracle::Oracle;

/// The next value of a splitmix64 sequence (Steele, Lea and Flood 2014).
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `n` values, uniform in `[−scale, scale)`; the same on every machine for the same seed.
pub fn random(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut state = seed;
    let unit = 1.0 / (1u64 << 23) as f32;
    (0..n).map(|_| ((splitmix(&mut state) >> 40) as f32 * unit - 1.0) * scale).collect()
}

/// `n` ids, uniform in `0..below`; `below` is above zero.
pub fn random_ids(seed: u64, n: usize, below: u32) -> Vec<u32> {
    let mut state = seed;
    (0..n).map(|_| (splitmix(&mut state) % u64::from(below)) as u32).collect()
}
