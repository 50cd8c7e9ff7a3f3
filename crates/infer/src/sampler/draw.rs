//! Filtering and drawing.
//!
//! Every filter keeps a front part of the tokens in order, likeliest first and equals by their ids. So only a front part
//! that is surely long enough is sorted and weighed in double precision: the result is that of sorting all.

use super::SamplingParams;
use super::mass::{Mass, weight};

/// Draws a token by the number `u` in `[0, 1)`. `max` is the largest logit, which is finite.
pub(super) fn draw(logits: &[f32], max: f32, params: &SamplingParams, u: f64) -> u32 {
    let weigh = |key: &Key| weight(key.logit(), max, params.temperature);
    // Without `top_p` and `min_p` the drawn token is that at the end of a nucleus of mass `u`.
    let unfiltered = params.top_p == 1.0 && params.min_p == 0.0;
    let fraction = if unfiltered { u } else { params.top_p };
    let by_mass = fraction < 1.0;
    let (ranked, mut mass) = match params.top_k {
        Some(k) if k < logits.len() => {
            let ranked = top(logits, k);
            let total = ranked.iter().map(weigh).sum();
            (ranked, Mass::exact(total))
        }
        _ => {
            let bounds = || Mass::bounds(logits, max, params.temperature);
            let mass = if by_mass { bounds() } else { Mass::exact(0.0) };
            (above(logits, floor(logits.len(), max, (params, fraction), &mass)), mass)
        }
    };
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for key in &ranked {
        let w = weigh(key);
        if w < params.min_p {
            break;
        }
        sum += w;
        sums.push(sum);
        if by_mass && sum >= fraction * mass.low {
            if sum < fraction * mass.high {
                mass = Mass::exact(logits.iter().map(|&x| weight(x, max, params.temperature)).sum());
            }
            if sum >= fraction * mass.high {
                break;
            }
        }
    }
    let last = sums.len() - 1;
    let drawn = if unfiltered { last } else { sums.partition_point(|&s| s < u * sum).min(last) };
    ranked[drawn].id()
}

/// A logit that all tokens lie above that the filters leave.
fn floor(vocab: usize, max: f32, (params, fraction): (&SamplingParams, f64), mass: &Mass) -> f32 {
    // Tokens of a smaller weight sum to less than the `1 − fraction` that a nucleus leaves out. The half leaves room for
    // rounding.
    let negligible = 0.5 * (1.0 - fraction) * mass.low / vocab as f64;
    let least = negligible.max(params.min_p * (1.0 - 1e-9));
    if least <= 0.0 {
        return f32::NEG_INFINITY;
    }
    (f64::from(max) + params.temperature * libm::log(least)).min(f64::from(max)).max(f64::from(f32::MIN))
        as f32
}

/// A token in a form that sorts as the filters want: likeliest first, equals by their ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    fn new(id: u32, logit: f32) -> Self {
        // Adding 0 makes one zero of the two. Then the bits of larger numbers are made smaller ones.
        let bits = (logit + 0.0).to_bits();
        let descending = if bits >> 31 == 0 { !bits & 0x7fff_ffff } else { bits };
        Self(u64::from(descending) << 32 | u64::from(id))
    }

    fn id(self) -> u32 {
        self.0 as u32
    }

    fn logit(self) -> f32 {
        let descending = (self.0 >> 32) as u32;
        f32::from_bits(if descending >> 31 == 0 { !descending & 0x7fff_ffff } else { descending })
    }
}

/// The tokens above a logit, or next to it below, in order.
fn above(logits: &[f32], floor: f32) -> Vec<Key> {
    let floor = floor.next_down();
    let mut found = Vec::new();
    each_above(logits, floor, |key| {
        found.push(key);
        floor
    });
    found.sort_unstable();
    found
}

/// The `count` first tokens, fewer where the others are forbidden, in order.
fn top(logits: &[f32], count: usize) -> Vec<Key> {
    let room = (2 * count).max(256);
    let mut found = Vec::with_capacity(room.min(logits.len()));
    let mut floor = f32::NEG_INFINITY;
    each_above(logits, floor, |key| {
        found.push(key);
        if found.len() == room {
            // What comes later and is equal to the last of these comes after it in order.
            floor = found.select_nth_unstable(count - 1).1.logit();
            found.truncate(count);
        }
        floor
    });
    found.sort_unstable();
    found.truncate(count);
    found
}

/// Gives every token above `floor` to `take`, in the order of their ids; `take` says the floor from there on.
fn each_above(logits: &[f32], mut floor: f32, mut take: impl FnMut(Key) -> f32) {
    const BLOCK: usize = 32;
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        // Nearly all blocks have none, and this compiles to vector code.
        if !values.iter().fold(false, |any, &x| any | (x > floor)) {
            continue;
        }
        for (lane, &x) in values.iter().enumerate() {
            if x > floor {
                floor = take(Key::new((block * BLOCK + lane) as u32, x));
            }
        }
    }
}
