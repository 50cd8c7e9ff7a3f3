//! The total weight of a vocabulary, first roughly and fast, then exactly where that is not enough.

/// Bounds of the sum of `exp((x − max) / temperature)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mass {
    pub(super) low: f64,
    pub(super) high: f64,
}

const LANES: usize = 32;
/// Terms that one lane adds up in single precision.
const DEPTH: usize = 16;

impl Mass {
    /// A sum that is known.
    pub(super) fn exact(sum: f64) -> Self {
        Self { low: sum, high: sum }
    }

    /// Bounds, a few millionths apart, in single precision and vector code; exact where the temperature is extreme.
    ///
    /// A term `w = exp(y)` is off by at most `w (2⁻²² |y| + 2⁻¹⁹)`: three roundings on the way to `y`; the polynomial, and
    /// [`DEPTH`] additions. Terms below `exp(-87)` count as that, all together less than 1e-30.
    pub(super) fn bounds(logits: &[f32], max: f32, temperature: f64) -> Self {
        if !(1e-20..1e20).contains(&temperature) {
            return Self::exact(logits.iter().map(|&x| weight(x, max, temperature)).sum());
        }
        let scale = (1.0 / temperature) as f32;
        let (mut sum, mut slope) = (0.0, 0.0);
        for block in logits.chunks(LANES * DEPTH) {
            let (s, t) = of_block(block, max, scale);
            sum += s;
            slope += t;
        }
        let error = slope / f64::from(1 << 22) + sum / f64::from(1 << 19) + 1e-30;
        Self { low: sum - error, high: sum + error }
    }
}

/// A token's probability relative to that of the likeliest, whose logit is `max`.
pub(super) fn weight(logit: f32, max: f32, temperature: f64) -> f64 {
    libm::exp((f64::from(logit) - f64::from(max)) / temperature)
}

/// The sums of `w` and of `w |y|` over a block.
fn of_block(values: &[f32], max: f32, scale: f32) -> (f64, f64) {
    let (mut sum, mut slope) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut take = |lane: usize, x: f32| {
        let y = (x - max) * scale;
        let y = if y > -87.0 { y } else { -87.0 };
        let w = exp(y);
        sum[lane] += w;
        slope[lane] -= w * y;
    };
    for chunk in chunks {
        for (lane, &x) in chunk.iter().enumerate() {
            take(lane, x);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        take(lane, x);
    }
    let total = |lanes: [f32; LANES]| lanes.into_iter().map(f64::from).sum();
    (total(sum), total(slope))
}

/// `exp(y)` for `-87 ≤ y ≤ 0`: a power of two times the Taylor polynomial of degree 7 over `|r| ≤ ½ log 2`.
fn exp(y: f32) -> f32 {
    // Adding and taking away 1.5 · 2²³ rounds to a whole number, which stands in the low bits meanwhile.
    const ROUND: f32 = 12_582_912.0;
    let shifted = y * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // log 2 in two parts; the product with the first, of 15 bits, is exact.
    let r = (y - n * 0.693_145_75) - n * 1.428_606_8e-6;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_precision_is_as_near_as_the_bounds_say() {
        for i in 0..=870_000 {
            let y = -(i as f32) * 1e-4;
            let (near, exact) = (f64::from(exp(y)), libm::exp(f64::from(y)));
            assert!((near / exact - 1.0).abs() < 4e-7, "exp({y}) is {exact}, not {near}");
        }
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn bounds_hold_the_sum_and_are_narrow() {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        for len in [1, 5, 32, 700, 20_000] {
            for spread in [0.0, 1e-3, 1.0, 30.0, 400.0] {
                for temperature in [1e-30, 0.01, 0.6, 1.0, 30.0, 1e25] {
                    let logits: Vec<f32> = (0..len).map(|_| (random() * spread).powi(2) - 7.0).collect();
                    let max = logits.iter().copied().fold(f32::MIN, f32::max);
                    let exact: f64 = logits.iter().map(|&x| weight(x, max, temperature)).sum();
                    let Mass { low, high } = Mass::bounds(&logits, max, temperature);
                    assert!(
                        low <= exact && exact <= high,
                        "{len} {spread} {temperature}: {low} {exact} {high}"
                    );
                    assert!(high - low <= 2e-5 * exact, "{len} {spread} {temperature}: {low} {high}");
                }
            }
        }
    }
}
