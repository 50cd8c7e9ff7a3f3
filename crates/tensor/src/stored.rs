//! Weights as files store them: plain elements, or blocks of a few quantised elements with their scales.

use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};

mod fit;
mod large;
mod small;

/// How a file stores the elements of a row. Block formats are GGUF's, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Encoding {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// Brain floating point.
    Bf16,
    /// 32 elements of 8 bits, a scale.
    Q8_0,
    /// 32 elements of 4 bits, a scale.
    Q4_0,
    /// 32 elements of 4 bits, a scale and a least value.
    Q4_1,
    /// 32 elements of 5 bits, a scale.
    Q5_0,
    /// 32 elements of 5 bits, a scale and a least value.
    Q5_1,
    /// 256 elements of 4 bits, 8 runs with scales and least values of 6 bits.
    Q4K,
    /// 256 elements of 5 bits, 8 runs with scales and least values of 6 bits.
    Q5K,
    /// 256 elements of 6 bits, 16 runs with scales of 8 bits.
    Q6K,
}

impl Encoding {
    /// Every encoding.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// GGUF's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements and bytes of a block; a block of a plain encoding is one element.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Whether elements share scales.
    pub fn is_quantized(self) -> bool {
        self.block().0 > 1
    }

    /// Bytes of a row of `cols` elements, or `None` where that is no whole number of blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (elements, bytes) = self.block();
        cols.is_multiple_of(elements).then(|| cols / elements * bytes)
    }

    /// The encoding of GGUF's name, without regard to case; `None` where it is not one of these.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.name().eq_ignore_ascii_case(name))
    }

    /// The values of whole blocks, in f32. `bytes` and `out` must be of the same number of blocks.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let fits = self.row_bytes(out.len()) == Some(bytes.len());
        assert!(fits, "decode: {} bytes of {self} do not make {} values", bytes.len(), out.len());
        match self {
            Self::F32 => decode_blocks(bytes, out, |b, [x]| *x = f32::from_le_bytes(*b)),
            Self::F16 => decode_blocks(bytes, out, |b, [x]| *x = f16::from_le_bytes(*b).to_f32()),
            Self::Bf16 => decode_blocks(bytes, out, |b, [x]| *x = bf16::from_le_bytes(*b).to_f32()),
            Self::Q8_0 => decode_blocks(bytes, out, small::decode_q8_0),
            Self::Q4_0 => decode_blocks(bytes, out, small::decode_q4_0),
            Self::Q4_1 => decode_blocks(bytes, out, small::decode_q4_1),
            Self::Q5_0 => decode_blocks(bytes, out, small::decode_q5_0),
            Self::Q5_1 => decode_blocks(bytes, out, small::decode_q5_1),
            Self::Q4K => decode_blocks(bytes, out, large::decode_q4_k),
            Self::Q5K => decode_blocks(bytes, out, large::decode_q5_k),
            Self::Q6K => decode_blocks(bytes, out, large::decode_q6_k),
        }
    }

    /// Whole blocks that hold these values as nearly as they can. Values must be finite and, for all but F32 and BF16,
    /// within the range of half precision ([`Encoding::largest`]).
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let bytes = self.row_bytes(values.len());
        let bytes =
            bytes.unwrap_or_else(|| panic!("encode: {} values are no whole blocks of {self}", values.len()));
        let mut out = Vec::with_capacity(bytes);
        match self {
            Self::F32 => values.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Self::F16 => values.iter().for_each(|&x| out.extend(f16::from_f32(x).to_le_bytes())),
            Self::Bf16 => values.iter().for_each(|&x| out.extend(bf16::from_f32(x).to_le_bytes())),
            Self::Q8_0 => encode_blocks(values, &mut out, small::encode_q8_0),
            Self::Q4_0 => encode_blocks(values, &mut out, small::encode_q4_0),
            Self::Q4_1 => encode_blocks(values, &mut out, small::encode_q4_1),
            Self::Q5_0 => encode_blocks(values, &mut out, small::encode_q5_0),
            Self::Q5_1 => encode_blocks(values, &mut out, small::encode_q5_1),
            Self::Q4K => encode_blocks(values, &mut out, large::encode_q4_k),
            Self::Q5K => encode_blocks(values, &mut out, large::encode_q5_k),
            Self::Q6K => encode_blocks(values, &mut out, large::encode_q6_k),
        }
        out
    }

    /// The largest magnitude that it can hold.
    pub fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::Bf16 => bf16::MAX.to_f32(),
            _ => f16::MAX.to_f32(),
        }
    }
}

fn decode_blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], &mut [f32; N]),
) {
    bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0).for_each(|(b, out)| block(b, out));
}

fn encode_blocks<const N: usize>(values: &[f32], out: &mut Vec<u8>, block: impl Fn(&[f32; N], &mut Vec<u8>)) {
    values.as_chunks().0.iter().for_each(|x| block(x, out));
}

/// The half-precision number at byte `at`.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A run of rows of a weight as a file stores them.
#[derive(Clone, Debug)]
pub struct StoredRows<'a> {
    /// How each row is stored.
    pub encoding: Encoding,
    /// The rows, in the order of the weight; all of [`Encoding::row_bytes`].
    pub rows: Vec<Cow<'a, [u8]>>,
}

impl StoredRows<'_> {
    /// The values of all rows, one row after another.
    pub fn decode(&self, cols: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.rows.len() * cols];
        for (row, out) in self.rows.iter().zip(out.chunks_exact_mut(cols.max(1))) {
            self.encoding.decode(row, out);
        }
        out
    }
}
