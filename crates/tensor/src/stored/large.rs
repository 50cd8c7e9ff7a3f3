//! GGUF's blocks of 256 elements ("K" formats): runs of a few elements with small scales, which share a large one.
//!
//! | | bytes of a block |
//! |---|---|
//! | Q4_K | scale f16, scale of least values f16, 12 of packed sixes, 128 of nibbles |
//! | Q5_K | the same, but 32 of fifth bits before the nibbles |
//! | Q6_K | 128 of nibbles, 64 of high pairs of bits, 16 scales i8, scale f16 |
//!
//! Q4_K and Q5_K: 8 runs of 32; `x = scale · s · q − least · m`. Nibbles of byte `32 c + i` are elements `i` of runs `2 c`
//! and `2 c + 1`; bit `r` of fifth byte `i` is element `i` of run `r`. Q6_K: 16 runs of 16; `x = scale · s · (q − 32)`.

use half::f16;

use super::fit;
use super::half_at;

/// Elements of a block.
const N: usize = 256;
/// Elements of a run of Q4_K and Q5_K.
const RUN: usize = 32;
/// Elements of a run of Q6_K.
const RUN6: usize = 16;

pub(super) fn decode_q4_k(block: &[u8; 144], out: &mut [f32; N]) {
    decode_affine(&block[..16], out, |run, i| nibble(&block[16..], run, i));
}

pub(super) fn decode_q5_k(block: &[u8; 176], out: &mut [f32; N]) {
    let high = &block[16..48];
    decode_affine(&block[..16], out, |run, i| nibble(&block[48..], run, i) | (high[i] >> run & 1) << 4);
}

fn decode_affine(head: &[u8], out: &mut [f32; N], q: impl Fn(usize, usize) -> u8) {
    let (scale, least) = (half_at(head, 0), half_at(head, 2));
    let small = unpack_sixes(&head[4..16]);
    for (run, out) in out.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
        let (s, m) = small[run];
        let (scale, least) = (scale * f32::from(s), least * f32::from(m));
        out.iter_mut().enumerate().for_each(|(i, x)| *x = scale * f32::from(q(run, i)) - least);
    }
}

fn nibble(bytes: &[u8], run: usize, i: usize) -> u8 {
    bytes[run / 2 * RUN + i] >> (4 * (run % 2)) & 15
}

/// The scale and the least value of each run, of 6 bits. Those of runs 0 to 3 are the low six bits of bytes 0 to 7; of
/// the others, low nibbles are in bytes 8 to 11 and the high two bits above the sixes.
fn unpack_sixes(b: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|run| {
        if run < 4 {
            (b[run] & 63, b[run + 4] & 63)
        } else {
            ((b[run + 4] & 15) | (b[run - 4] >> 6) << 4, b[run + 4] >> 4 | (b[run] >> 6) << 4)
        }
    })
}

fn pack_sixes(small: &[(u8, u8); 8]) -> [u8; 12] {
    let mut b = [0; 12];
    for run in 0..4 {
        let ((s, m), (high_s, high_m)) = (small[run], small[run + 4]);
        b[run] = s | high_s >> 4 << 6;
        b[run + 4] = m | high_m >> 4 << 6;
        b[run + 8] = (high_s & 15) | high_m << 4;
    }
    b
}

pub(super) fn decode_q6_k(block: &[u8; 210], out: &mut [f32; N]) {
    let (low, high, small) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (run, out) in out.as_chunks_mut::<RUN6>().0.iter_mut().enumerate() {
        let scale = scale * f32::from(small[run].cast_signed());
        for (i, x) in out.iter_mut().enumerate() {
            let (at, low_shift, at_high, high_shift) = place6(RUN6 * run + i);
            let q = (low[at] >> low_shift & 15) | (high[at_high] >> high_shift & 3) << 4;
            *x = scale * (f32::from(q) - 32.0);
        }
    }
}

/// Where Q6_K keeps element `i`: byte and shift of its low four bits, byte and shift of its high two. Each half of the
/// block is four quarters of 32 elements: the first two share bytes of nibbles with the last two.
fn place6(i: usize) -> (usize, usize, usize, usize) {
    let (half, quarter, i) = (i / 128, i / 32 % 4, i % 32);
    (64 * half + 32 * (quarter % 2) + i, 4 * (quarter / 2), 32 * half + i, 2 * quarter)
}

pub(super) fn encode_q4_k(x: &[f32; N], out: &mut Vec<u8>) {
    let q = encode_affine(x, 15, out);
    pack_nibbles(&q, out);
}

pub(super) fn encode_q5_k(x: &[f32; N], out: &mut Vec<u8>) {
    let q = encode_affine(x, 31, out);
    out.extend((0..RUN).map(|i| (0..8).fold(0, |bits, run| bits | q[RUN * run + i] >> 4 << run)));
    pack_nibbles(&q, out);
}

/// Writes scales and least values; returns the elements.
fn encode_affine(x: &[f32; N], top: u8, out: &mut Vec<u8>) -> [u8; N] {
    let runs = x.as_chunks::<RUN>().0;
    let fits: [(f32, f32); 8] = std::array::from_fn(|run| fit::affine(&runs[run], top));
    let share = |most: f32| f16::from_f32(most / 63.0);
    let scale = share(fits.iter().fold(0.0, |m, f| f.0.max(m)));
    let least = share(fits.iter().fold(0.0, |m, f| f.1.max(m)));
    let six = |value: f32, unit: f16| fit::steps(value, unit.to_f32(), 0.0, 63.0) as u8;
    let small = fits.map(|(s, m)| (six(s, scale), six(m, least)));
    out.extend(scale.to_le_bytes());
    out.extend(least.to_le_bytes());
    out.extend(pack_sixes(&small));
    let mut q = [0; N];
    for (run, q) in q.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
        let (s, m) = small[run];
        let (scale, least) = (scale.to_f32() * f32::from(s), least.to_f32() * f32::from(m));
        *q = runs[run].map(|x| fit::steps(x + least, scale, 0.0, f32::from(top)) as u8);
    }
    q
}

fn pack_nibbles(q: &[u8; N], out: &mut Vec<u8>) {
    for pair in q.as_chunks::<{ 2 * RUN }>().0 {
        out.extend((0..RUN).map(|i| (pair[i] & 15) | pair[RUN + i] << 4));
    }
}

pub(super) fn encode_q6_k(x: &[f32; N], out: &mut Vec<u8>) {
    let runs = x.as_chunks::<RUN6>().0;
    let fits: [f32; N / RUN6] = std::array::from_fn(|run| fit::signed(&runs[run], 32));
    let farthest = fits.iter().fold(0.0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
    let scale = f16::from_f32(farthest / -128.0);
    let small = fits.map(|s| fit::steps(s, scale.to_f32(), -128.0, 127.0) as i8);
    let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
    for (i, &x) in x.iter().enumerate() {
        let scale = scale.to_f32() * f32::from(small[i / RUN6]);
        let q = (fit::steps(x, scale, -32.0, 31.0) + 32.0) as u8;
        let (at, low_shift, at_high, high_shift) = place6(i);
        low[at] |= (q & 15) << low_shift;
        high[at_high] |= q >> 4 << high_shift;
    }
    out.extend(low);
    out.extend(high);
    out.extend(small.map(|s| s.cast_unsigned()));
    out.extend(scale.to_le_bytes());
}
