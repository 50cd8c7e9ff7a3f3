//! Tensors in mapped files.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use llamero_artifact::MappedFile;
use llamero_tensor::{Encoding, StoredRows};

use super::{TensorInfo, WeightError};

/// A mapped file of weights.
pub(crate) struct WeightFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its contents.
    pub(crate) map: MappedFile,
}

impl WeightFile {
    pub(crate) fn open(path: PathBuf) -> Result<Self, WeightError> {
        let map = MappedFile::open(&path).map_err(|source| WeightError::io(&path, source))?;
        Ok(Self { path, map })
    }
}

/// Where a tensor is in a file, and how it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MappedTensor {
    /// Its name there.
    pub(crate) name: String,
    /// Index of the file.
    pub(crate) file: usize,
    /// Its shape there.
    pub(crate) shape: Vec<usize>,
    /// The file's name of its dtype.
    pub(crate) dtype: String,
    /// The encoding that the dtype is, where it is one that can be read.
    pub(crate) encoding: Option<Encoding>,
    /// Its bytes in the file; inside of it.
    pub(crate) bytes: Range<usize>,
}

impl MappedTensor {
    /// For listings.
    pub(crate) fn info(&self, files: &[WeightFile]) -> TensorInfo {
        TensorInfo {
            name: self.name.clone(),
            shape: self.shape.clone(),
            encoding: self.dtype.clone(),
            bytes: self.bytes.len() as u64,
            file: files[self.file].path.clone(),
        }
    }

    /// Checks that it is a readable tensor of this shape; `asks` says where the shape comes from. A single row may be stored
    /// as a vector.
    pub(crate) fn check(
        &self,
        path: &Path,
        (rows, cols): (usize, usize),
        asks: &str,
    ) -> Result<(), WeightError> {
        let bad = |reason: String| Err(WeightError::tensor(path, &self.name, reason));
        let expected: &[usize] = if rows == 1 { &[cols] } else { &[rows, cols] };
        if self.shape != expected {
            return bad(format!("has shape {:?}, but `{asks}` asks for {expected:?}", self.shape));
        }
        let Some(encoding) = self.encoding else {
            return bad(format!("has dtype {}; readable are F32, BF16 and F16", self.dtype));
        };
        match encoding.row_bytes(cols) {
            Some(row) if row * rows == self.bytes.len() => Ok(()),
            _ => bad(format!("has {} bytes, which {encoding} {expected:?} has not", self.bytes.len())),
        }
    }

    /// Rows of a checked tensor of `cols` columns.
    ///
    /// # Errors
    /// A value that is not finite.
    pub(crate) fn rows<'f>(
        &self,
        files: &'f [WeightFile],
        cols: usize,
        rows: Range<usize>,
    ) -> Result<StoredRows<'f>, WeightError> {
        let WeightFile { path, map } = &files[self.file];
        let encoding = self.encoding.unwrap_or_else(|| panic!("rows: `{}` was not checked", self.name));
        let width =
            encoding.row_bytes(cols).unwrap_or_else(|| panic!("rows: `{}` was not checked", self.name));
        let all = &map.bytes()[self.bytes.clone()];
        let bytes = &all[rows.start * width..rows.end * width];
        if let Some((element, value)) = not_finite(encoding, bytes) {
            let at = rows.start * cols + element;
            return Err(WeightError::tensor(path, &self.name, format!("holds {value} at element {at}")));
        }
        Ok(StoredRows { encoding, rows: bytes.chunks_exact(width).map(Cow::Borrowed).collect() })
    }
}

/// The first element of whole blocks that is no finite number, with its value. A block of quantised elements has finite
/// values if its scales are.
pub fn not_finite(encoding: Encoding, bytes: &[u8]) -> Option<(usize, f32)> {
    let (elements, width) = encoding.block();
    let at = match encoding {
        Encoding::F32 => words::<4>(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Encoding::F16 => words(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        Encoding::Bf16 => words(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        _ => {
            let halves = scales(encoding);
            let bad =
                |block: &[u8]| words(&block[halves.clone()], |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00);
            bytes.chunks_exact(width).position(|block| bad(block).is_some())
        }
    }?;
    let mut block = vec![0.0; elements];
    encoding.decode(&bytes[at * width..(at + 1) * width], &mut block);
    let inside = block.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Some((at * elements + inside, block[inside]))
}

/// The bytes of a block that are f16 numbers.
fn scales(encoding: Encoding) -> Range<usize> {
    match encoding {
        Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q5_0 => 0..2,
        Encoding::Q6K => 208..210,
        // Scale and least value.
        _ => 0..4,
    }
}

/// The first word that is `bad`. In pieces, so that the usual answer comes at the speed of memory.
fn words<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const PIECE: usize = 1024;
    let words = bytes.as_chunks::<N>().0;
    let piece = words.chunks(PIECE).position(|piece| piece.iter().fold(false, |any, w| any | bad(*w)))?;
    let first = piece * PIECE;
    Some(first + words[first..].iter().position(|w| bad(*w))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_found_where_it_is() {
        let mut values = vec![1.0f32; 5000];
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let halves = |values: &[f32]| {
            values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect::<Vec<_>>()
        };
        let brains = |values: &[f32]| {
            values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect::<Vec<_>>()
        };
        let all = |values: &[f32]| {
            [
                not_finite(Encoding::F32, &bytes(values)),
                not_finite(Encoding::F16, &halves(values)),
                not_finite(Encoding::Bf16, &brains(values)),
            ]
        };
        assert_eq!(all(&values), [None; 3]);
        values[4321] = f32::NEG_INFINITY;
        assert_eq!(all(&values), [Some((4321, f32::NEG_INFINITY)); 3]);
        values[17] = f32::NAN;
        assert!(all(&values).into_iter().all(|found| matches!(found, Some((17, x)) if x.is_nan())));
    }

    #[test]
    fn scales_of_blocks_are_where_they_are_looked_for() {
        for encoding in Encoding::ALL.into_iter().filter(|e| e.is_quantized()) {
            let range = scales(encoding);
            assert!(range.end <= encoding.block().1 && range.len().is_multiple_of(2), "{encoding}");
        }
    }
}
