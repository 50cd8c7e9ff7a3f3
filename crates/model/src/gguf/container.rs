//! The container: header, metadata, table of tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use llamero_tensor::Encoding;

use super::value::{kind, short};
use super::{ALIGNMENT, ALIGNMENT_KEY, GgufArray, GgufValue, MAGIC};
use crate::weights::{MappedTensor, WeightError, WeightFile};

/// Bytes of the smallest entry of the metadata: length of the key, one byte of it, type, value.
const LEAST_ENTRY: usize = 8 + 1 + 4 + 1;
/// Bytes of the smallest entry of the table of tensors: name, one dimension, type, offset.
const LEAST_TENSOR: usize = 8 + 1 + 4 + 8 + 4 + 8;
/// Bytes of a name or key: the format's limit for keys.
const MOST_NAME: usize = (1 << 16) - 1;
/// Arrays inside arrays that are read.
const MOST_NESTING: usize = 4;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;

/// Numbers and names of the types of tensors that exist; what can be read is an [`Encoding`].
const TYPES: [(u32, &str); 32] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// The number of an encoding in the file.
pub(super) fn type_number(encoding: Encoding) -> u32 {
    let found = TYPES.iter().find(|(_, name)| *name == encoding.name());
    found.unwrap_or_else(|| panic!("{encoding} has no number in GGUF")).0
}

/// What a GGUF file says about itself: all but the elements of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// Metadata.
    pub metadata: BTreeMap<String, GgufValue>,
    pub(super) tensors: BTreeMap<String, MappedTensor>,
}

impl Contents {
    /// Reads header, metadata and table of tensors of the bytes of a file; `path` is for messages. Allocates a small
    /// multiple of what the file really holds of them, whatever it claims.
    ///
    /// # Errors
    /// Anything that the format does not allow; a version, a byte order or a type of tensor that is not read here.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, WeightError> {
        let bad = |reason: String| WeightError::container(path, "GGUF", reason);
        let mut reader = Reader { bytes, at: 0 };
        let (version, tensors, entries) = header(&mut reader).map_err(bad)?;
        let metadata = metadata(&mut reader, entries).map_err(bad)?;
        let alignment = alignment(&metadata).map_err(bad)?;
        let table = (0..tensors).map(|_| entry(&mut reader)).collect::<Result<Vec<_>, _>>().map_err(bad)?;
        let data = reader.at.next_multiple_of(alignment);
        let mut placed = BTreeMap::new();
        for entry in table {
            let name = entry.name.clone();
            let tensor = entry.place(data, alignment, bytes.len());
            let tensor = tensor.map_err(|reason| WeightError::tensor(path, &name, reason))?;
            if placed.insert(name.clone(), tensor).is_some() {
                return Err(WeightError::tensor(path, &name, "appears twice"));
            }
        }
        no_overlap(&placed).map_err(|(name, reason)| WeightError::tensor(path, &name, reason))?;
        Ok(Self { version, metadata, tensors: placed })
    }
}

fn header(reader: &mut Reader<'_>) -> Result<(u32, u64, u64), String> {
    let magic: [u8; 4] = reader.array("the magic number")?;
    if magic != MAGIC {
        return Err(format!("it starts with {}, not with `GGUF`", short(&String::from_utf8_lossy(&magic))));
    }
    let version = u32::from_le_bytes(reader.array("the version")?);
    match version {
        2 | 3 => {}
        1 => return Err("version 1 is not read. hint: convert it anew with a current llama.cpp".into()),
        v if v & 0xffff == 0 && v != 0 => return Err("it is big-endian; only little-endian is read".into()),
        v => return Err(format!("its version is {v}; 2 and 3 are read")),
    }
    let tensors = u64::from_le_bytes(reader.array("the number of tensors")?);
    let entries = u64::from_le_bytes(reader.array("the number of metadata entries")?);
    reader.room_for(entries, LEAST_ENTRY, "metadata entries")?;
    reader.room_for(tensors, LEAST_TENSOR, "tensors")?;
    Ok((version, tensors, entries))
}

fn metadata(reader: &mut Reader<'_>, entries: u64) -> Result<BTreeMap<String, GgufValue>, String> {
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = reader.name("a metadata key")?;
        let of = |reason: String| format!("metadata key `{key}`: {reason}");
        let value = reader.value().map_err(of)?;
        if metadata.contains_key(&key) {
            return Err(of("appears twice".into()));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<String, GgufValue>) -> Result<usize, String> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT as usize) };
    match value {
        GgufValue::U32(x) if x.is_power_of_two() && *x <= 1 << 20 => Ok(*x as usize),
        other => Err(format!("`{ALIGNMENT_KEY}` is {}; it must be a power of two", other.describe())),
    }
}

/// An entry of the table of tensors.
struct Entry {
    name: String,
    /// Slowest first.
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn entry(reader: &mut Reader<'_>) -> Result<Entry, String> {
    let name = reader.name("the name of a tensor")?;
    let dimensions = u32::from_le_bytes(reader.array("the dimensions of a tensor")?);
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        return Err(format!(
            "tensor `{name}` has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are allowed"
        ));
    }
    let mut shape = reader.numbers(dimensions.into(), u64::from_le_bytes, "the dimensions of a tensor")?;
    shape.reverse();
    let kind = u32::from_le_bytes(reader.array("the type of a tensor")?);
    let offset = u64::from_le_bytes(reader.array("the offset of a tensor")?);
    Ok(Entry { name, shape, kind, offset })
}

impl Entry {
    /// Where it is in a file of `len` bytes whose tensors begin at `data`.
    fn place(self, data: usize, alignment: usize, len: usize) -> Result<MappedTensor, String> {
        let encoding = self.encoding()?;
        let absurd = || format!("has shape {:?}, which no file can hold", self.shape);
        let shape = self.shape.iter().map(|&n| usize::try_from(n).ok().filter(|&n| n > 0));
        let shape = shape.collect::<Option<Vec<_>>>().ok_or_else(absurd)?;
        let (cols, rest) = shape.split_last().ok_or_else(absurd)?;
        let row = encoding.row_bytes(*cols).ok_or_else(|| {
            let (elements, _) = encoding.block();
            format!("has rows of {cols}, which are no whole blocks of {encoding} ({elements} elements)")
        })?;
        let bytes = rest.iter().try_fold(row, |n, &x| n.checked_mul(x)).ok_or_else(absurd)?;
        let offset = usize::try_from(self.offset).ok().and_then(|at| data.checked_add(at));
        let start = offset.ok_or_else(|| format!("begins {} bytes into its data", self.offset))?;
        let end = start.checked_add(bytes).filter(|&end| end <= len).ok_or_else(|| {
            format!(
                "has {bytes} bytes from byte {start} on, but the file ends at {len}. hint: it is truncated; \
                 fetch it again"
            )
        })?;
        if !start.is_multiple_of(alignment) {
            return Err(format!("begins at byte {start}, which is no multiple of {alignment}"));
        }
        let dtype = encoding.name().into();
        Ok(MappedTensor {
            name: self.name,
            file: 0,
            shape,
            dtype,
            encoding: Some(encoding),
            bytes: start..end,
        })
    }

    fn encoding(&self) -> Result<Encoding, String> {
        let name = TYPES.iter().find(|(number, _)| *number == self.kind).map(|(_, name)| *name);
        name.and_then(Encoding::from_name).ok_or_else(|| {
            let found = name.map_or_else(|| format!("type number {}", self.kind), str::to_owned);
            let readable = Encoding::ALL.map(Encoding::name).join(", ");
            format!("is stored as {found}, which is not read here; {readable} are")
        })
    }
}

fn no_overlap(tensors: &BTreeMap<String, MappedTensor>) -> Result<(), (String, String)> {
    let mut ranges: Vec<(&Range<usize>, &str)> =
        tensors.iter().map(|(n, t)| (&t.bytes, n.as_str())).collect();
    ranges.sort_by_key(|(range, _)| range.start);
    match ranges.windows(2).find(|pair| pair[1].0.start < pair[0].0.end) {
        None => Ok(()),
        Some(pair) => Err((pair[1].1.into(), format!("lies over `{}` in the file", pair[0].1))),
    }
}

/// A place in the bytes of a file.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], String> {
        let count = usize::try_from(count).ok().filter(|&n| n <= self.left()).ok_or_else(|| {
            format!("it ends inside of {what}: {count} bytes at byte {}, {} are left", self.at, self.left())
        })?;
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    /// Whether `count` things of at least `least` bytes can follow.
    fn room_for(&self, count: u64, least: usize, what: &str) -> Result<(), String> {
        if count <= (self.left() / least) as u64 {
            return Ok(());
        }
        Err(format!("it claims {count} {what}, but only {} bytes follow byte {}", self.left(), self.at))
    }

    fn numbers<const N: usize, T>(
        &mut self,
        count: u64,
        number: fn([u8; N]) -> T,
        what: &str,
    ) -> Result<Vec<T>, String> {
        self.room_for(count, N, what)?;
        let bytes = self.take(count * N as u64, what)?;
        Ok(bytes.as_chunks().0.iter().map(|b| number(*b)).collect())
    }

    fn string(&mut self, what: &str) -> Result<String, String> {
        let len = u64::from_le_bytes(self.array(what)?);
        let at = self.at;
        let bytes = self.take(len, what)?;
        let text =
            std::str::from_utf8(bytes).map_err(|e| format!("{what} at byte {at} is not UTF-8: {e}"))?;
        Ok(text.into())
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        let name = self.string(what)?;
        if name.is_empty() || name.len() > MOST_NAME {
            return Err(format!("{what} has {} bytes; 1 to {MOST_NAME} are allowed", name.len()));
        }
        Ok(name)
    }

    fn value(&mut self) -> Result<GgufValue, String> {
        const WHAT: &str = "a value";
        let kind = u32::from_le_bytes(self.array("a type")?);
        Ok(match kind {
            kind::U8 => GgufValue::U8(u8::from_le_bytes(self.array(WHAT)?)),
            kind::I8 => GgufValue::I8(i8::from_le_bytes(self.array(WHAT)?)),
            kind::U16 => GgufValue::U16(u16::from_le_bytes(self.array(WHAT)?)),
            kind::I16 => GgufValue::I16(i16::from_le_bytes(self.array(WHAT)?)),
            kind::U32 => GgufValue::U32(u32::from_le_bytes(self.array(WHAT)?)),
            kind::I32 => GgufValue::I32(i32::from_le_bytes(self.array(WHAT)?)),
            kind::U64 => GgufValue::U64(u64::from_le_bytes(self.array(WHAT)?)),
            kind::I64 => GgufValue::I64(i64::from_le_bytes(self.array(WHAT)?)),
            kind::F32 => GgufValue::F32(f32::from_le_bytes(self.array(WHAT)?)),
            kind::F64 => GgufValue::F64(f64::from_le_bytes(self.array(WHAT)?)),
            kind::BOOL => GgufValue::Bool(self.bools(1)?[0]),
            kind::STRING => GgufValue::String(self.string("a string")?),
            kind::ARRAY => GgufValue::Array(self.values(MOST_NESTING)?),
            other => return Err(format!("type {other} is none of the format's")),
        })
    }

    /// An array, in which arrays may be nested `depth` deep.
    fn values(&mut self, depth: usize) -> Result<GgufArray, String> {
        const WHAT: &str = "an array";
        let kind = u32::from_le_bytes(self.array("a type")?);
        let count = u64::from_le_bytes(self.array("the length of an array")?);
        Ok(match kind {
            kind::U8 => GgufArray::U8(self.numbers(count, u8::from_le_bytes, WHAT)?),
            kind::I8 => GgufArray::I8(self.numbers(count, i8::from_le_bytes, WHAT)?),
            kind::U16 => GgufArray::U16(self.numbers(count, u16::from_le_bytes, WHAT)?),
            kind::I16 => GgufArray::I16(self.numbers(count, i16::from_le_bytes, WHAT)?),
            kind::U32 => GgufArray::U32(self.numbers(count, u32::from_le_bytes, WHAT)?),
            kind::I32 => GgufArray::I32(self.numbers(count, i32::from_le_bytes, WHAT)?),
            kind::U64 => GgufArray::U64(self.numbers(count, u64::from_le_bytes, WHAT)?),
            kind::I64 => GgufArray::I64(self.numbers(count, i64::from_le_bytes, WHAT)?),
            kind::F32 => GgufArray::F32(self.numbers(count, f32::from_le_bytes, WHAT)?),
            kind::F64 => GgufArray::F64(self.numbers(count, f64::from_le_bytes, WHAT)?),
            kind::BOOL => GgufArray::Bool(self.bools(count)?),
            kind::STRING => {
                self.room_for(count, 8, "strings")?;
                GgufArray::String((0..count).map(|_| self.string("a string")).collect::<Result<_, String>>()?)
            }
            kind::ARRAY if depth > 0 => {
                self.room_for(count, 12, "arrays")?;
                GgufArray::Array((0..count).map(|_| self.values(depth - 1)).collect::<Result<_, _>>()?)
            }
            kind::ARRAY => return Err(format!("arrays are nested deeper than {MOST_NESTING}")),
            other => return Err(format!("type {other} is none of the format's")),
        })
    }

    fn bools(&mut self, count: u64) -> Result<Vec<bool>, String> {
        let bytes = self.take(count, "truth values")?;
        match bytes.iter().find(|b| **b > 1) {
            None => Ok(bytes.iter().map(|b| *b == 1).collect()),
            Some(other) => Err(format!("{other} is no truth value")),
        }
    }
}

/// A GGUF file, mapped and its table read; maybe a model, maybe only a vocabulary.
pub struct GgufFile {
    pub(super) file: WeightFile,
    pub(super) contents: Contents,
}

impl GgufFile {
    /// Opens a file and checks its structure.
    ///
    /// # Errors
    /// A file that cannot be read, and those of [`Contents::parse`].
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let file = WeightFile::open(PathBuf::from(path))?;
        let contents = Contents::parse(path, file.map.bytes())?;
        Ok(Self { file, contents })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// What it says beside its tensors.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.contents.metadata
    }
}
