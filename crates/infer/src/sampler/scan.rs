//! The likeliest token and whether all logits are numbers, in one pass that compiles to vector code.

/// What one pass over logits tells.
pub(super) struct Scan {
    /// The largest logit.
    pub(super) max: f32,
    /// Its index, of equals the lowest.
    pub(super) at: usize,
    /// Whether all are finite.
    pub(super) finite: bool,
}

/// Enough for the widest vectors, and for several chains of the narrow ones.
const LANES: usize = 32;
/// Logits after which the place of the maximum is noted.
const BLOCK: usize = 32 * LANES;

/// Scans logits; of none, the maximum is -inf at 0.
pub(super) fn scan(logits: &[f32]) -> Scan {
    let mut found = Scan { max: f32::NEG_INFINITY, at: 0, finite: true };
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let (max, finite) = of_block(values);
        found.finite &= finite;
        if max > found.max {
            (found.max, found.at) = (max, block * BLOCK);
        }
    }
    let in_block = logits.iter().skip(found.at).position(|&x| x == found.max);
    found.at += in_block.unwrap_or(0);
    found
}

fn of_block(values: &[f32]) -> (f32, bool) {
    let (mut max, mut zero) = ([f32::NEG_INFINITY; LANES], [0.0f32; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut take = |lane: usize, x: f32| {
        max[lane] = if x > max[lane] { x } else { max[lane] };
        // 0 for a number, NaN for anything else.
        zero[lane] += x * 0.0;
    };
    for chunk in chunks {
        for (lane, &x) in chunk.iter().enumerate() {
            take(lane, x);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        take(lane, x);
    }
    let largest = max.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    (largest, zero.iter().all(|&z| z == 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_is_what_a_loop_finds() {
        for len in [1, 31, 32, 33, 1023, 1024, 1025, 5000] {
            let values: Vec<f32> = (0..len).map(|i| ((i * 7919 + 13) % 4093 % 97) as f32 - 50.0).collect();
            for start in [0, len / 2, len - 1] {
                let values = &values[start..];
                let expected =
                    (0..values.len()).reduce(|a, b| if values[b] > values[a] { b } else { a }).unwrap();
                let found = scan(values);
                assert_eq!((found.at, found.max, found.finite), (expected, values[expected], true));
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut damaged = values.to_vec();
                    damaged[values.len() * 2 / 3] = bad;
                    assert!(!scan(&damaged).finite, "{bad} among {}", values.len());
                }
            }
        }
        assert_eq!(scan(&[f32::NEG_INFINITY, -3.0, f32::NEG_INFINITY]).at, 1);
        assert_eq!(scan(&[]).max, f32::NEG_INFINITY);
    }
}
