//! GGUF's blocks of 32 elements with one scale, and those with a scale and a least value.
//!
//! Nibbles of byte `i` are elements `i` and `i + 16`; fifth bits are one little-endian word, element `i` in bit `i`.
//! Encoding rounds to the nearest multiple of the scale that just reaches the extreme values, as ggml's reference does.

use super::half_at;
use half::f16;

/// Elements of a block.
const N: usize = 32;

pub(super) fn decode_q8_0(block: &[u8; 34], out: &mut [f32; N]) {
    let scale = half_at(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(x, &q)| *x = scale * f32::from(q.cast_signed()));
}

pub(super) fn decode_q4_0(block: &[u8; 18], out: &mut [f32; N]) {
    let scale = half_at(block, 0);
    signed(&nibbles(&block[2..]), 8.0, scale, out);
}

pub(super) fn decode_q4_1(block: &[u8; 20], out: &mut [f32; N]) {
    affine(&nibbles(&block[4..]), half_at(block, 0), half_at(block, 2), out);
}

pub(super) fn decode_q5_0(block: &[u8; 22], out: &mut [f32; N]) {
    signed(&fives(&block[2..]), 16.0, half_at(block, 0), out);
}

pub(super) fn decode_q5_1(block: &[u8; 24], out: &mut [f32; N]) {
    affine(&fives(&block[4..]), half_at(block, 0), half_at(block, 2), out);
}

fn signed(q: &[u8; N], zero: f32, scale: f32, out: &mut [f32; N]) {
    out.iter_mut().zip(q).for_each(|(x, &q)| *x = scale * (f32::from(q) - zero));
}

fn affine(q: &[u8; N], scale: f32, least: f32, out: &mut [f32; N]) {
    out.iter_mut().zip(q).for_each(|(x, &q)| *x = scale * f32::from(q) + least);
}

fn nibbles(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| if i < N / 2 { bytes[i] & 15 } else { bytes[i - N / 2] >> 4 })
}

/// Four bytes of fifth bits, then nibbles.
fn fives(bytes: &[u8]) -> [u8; N] {
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|i| low[i] | (bytes[i / 8] >> (i % 8) & 1) << 4)
}

pub(super) fn encode_q8_0(x: &[f32; N], out: &mut Vec<u8>) {
    let scale = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    // Halves go away from zero.
    out.extend(x.iter().map(|&x| (x * inverse + 0.5f32.copysign(x)) as i8 as u8));
}

pub(super) fn encode_q4_0(x: &[f32; N], out: &mut Vec<u8>) {
    let q = encode_signed(x, 8, out);
    pack_nibbles(&q, out);
}

pub(super) fn encode_q4_1(x: &[f32; N], out: &mut Vec<u8>) {
    let q = encode_affine(x, 15, out);
    pack_nibbles(&q, out);
}

pub(super) fn encode_q5_0(x: &[f32; N], out: &mut Vec<u8>) {
    let q = encode_signed(x, 16, out);
    pack_fives(&q, out);
}

pub(super) fn encode_q5_1(x: &[f32; N], out: &mut Vec<u8>) {
    let q = encode_affine(x, 31, out);
    pack_fives(&q, out);
}

/// The value farthest from zero becomes `-zero` steps, so it keeps its sign and has no rounding error but the scale's.
fn encode_signed(x: &[f32; N], zero: u8, out: &mut Vec<u8>) -> [u8; N] {
    let farthest = x.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let scale = farthest / -f32::from(zero);
    let inverse = f64::from(inverse(scale));
    out.extend(f16::from_f32(scale).to_le_bytes());
    let middle = f64::from(zero) + 0.5;
    x.map(|x| ((f64::from(x) * inverse + middle) as u8).min(2 * zero - 1))
}

fn encode_affine(x: &[f32; N], top: u8, out: &mut Vec<u8>) -> [u8; N] {
    let (least, most) = x.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
    let scale = (most - least) / f32::from(top);
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(f16::from_f32(least).to_le_bytes());
    x.map(|x| (((x - least) * inverse + 0.5) as u8).min(top))
}

/// `1 / scale`, and 0 where that is no number: such a block is all zeros.
fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

fn pack_nibbles(q: &[u8; N], out: &mut Vec<u8>) {
    out.extend((0..N / 2).map(|i| (q[i] & 15) | q[i + N / 2] << 4));
}

fn pack_fives(q: &[u8; N], out: &mut Vec<u8>) {
    let high = (0..N).fold(0u32, |bits, i| bits | u32::from(q[i] >> 4) << i);
    out.extend(high.to_le_bytes());
    pack_nibbles(q, out);
}
