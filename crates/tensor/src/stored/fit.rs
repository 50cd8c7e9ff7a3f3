//! Scales of a run of elements by least squares: a few grids are tried, each with the best scale for it.

/// Grids that are tried, and how far their ends lie from the farthest element, in steps.
const GRIDS: [f32; 16] =
    [-1.2, -1.0, -0.8, -0.6, -0.45, -0.3, -0.15, 0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.5];
/// Below it a range counts as nothing: its inverse would not be a number, and no half-precision scale could hold it.
const NOTHING: f32 = 1e-30;

/// `value / unit`, rounded to a whole number and kept between `low` and `high`; 0 where the unit is 0.
pub(super) fn steps(value: f32, unit: f32, low: f32, high: f32) -> f32 {
    if unit == 0.0 { 0.0 } else { nearest(value / unit, low, high) }
}

/// The nearest whole number between `low` and `high`. Adding 1.5 · 2²³ leaves no room for a fraction.
fn nearest(x: f32, low: f32, high: f32) -> f32 {
    const ROOM: f32 = 12_582_912.0;
    (x.clamp(low, high) + ROOM) - ROOM
}

/// `scale` and `least`, neither below 0, that make the squares of `x − (scale · q − least)` small, with `q` the nearest of
/// 0 to `top`.
pub(super) fn affine<const N: usize>(x: &[f32; N], top: u8) -> (f32, f32) {
    let (low, high) = x.iter().fold((0.0f32, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
    let range = high - low;
    if range < NOTHING {
        return (0.0, -low);
    }
    let top = f32::from(top);
    let (sum_x, ones) = (dot(x, &[1.0; N]), &[1.0; N]);
    let mut best = (f32::INFINITY, (range / top, -low));
    for grid in GRIDS {
        let inverse = (top + grid) / range;
        let q = x.map(|x| nearest((x - low) * inverse, 0.0, top));
        let (sum_q, qq, xq) = (dot(&q, ones), dot(&q, &q), dot(x, &q));
        let spread = N as f32 * qq - sum_q * sum_q;
        let free = (N as f32 * xq - sum_q * sum_x) / spread;
        let least = (free * sum_q - sum_x) / N as f32;
        let (scale, least) = if least >= 0.0 { (free, least) } else { (xq / qq, 0.0) };
        let rest: [f32; N] = std::array::from_fn(|i| x[i] - (scale * q[i] - least));
        let error = dot(&rest, &rest);
        if scale >= 0.0 && error < best.0 {
            best = (error, (scale, least));
        }
    }
    best.1
}

/// The `scale` that makes the squares of `x − scale · q` small, with `q` the nearest of `-half` to `half - 1`.
pub(super) fn signed<const N: usize>(x: &[f32; N], half: u8) -> f32 {
    let farthest = x.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    if farthest.abs() < NOTHING {
        return 0.0;
    }
    let half = f32::from(half);
    let mut best = (f32::INFINITY, farthest / -half);
    for grid in GRIDS {
        let inverse = (half + grid) / -farthest;
        let q = x.map(|x| nearest(x * inverse, -half, half - 1.0));
        let scale = dot(x, &q) / dot(&q, &q);
        let rest: [f32; N] = std::array::from_fn(|i| x[i] - scale * q[i]);
        let error = dot(&rest, &rest);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// In eight sums, so that it runs in vectors and has one result everywhere.
fn dot<const N: usize>(a: &[f32; N], b: &[f32; N]) -> f32 {
    let mut sums = [0.0; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}
