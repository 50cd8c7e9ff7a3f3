//! Writing a file.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use llamero_artifact::{ArtifactError, fsutil};
use llamero_tensor::Encoding;

use super::container::type_number;
use super::factors::factors_of;
use super::names::{EMBEDDING, FACTORS, OUTPUT, gguf_name, is_interleaved};
use super::value::kind;
use super::{
    ALIGNMENT, ALIGNMENT_KEY, ARCHITECTURE, ARCHITECTURE_KEY, GgufArray, GgufFile, GgufValue, MAGIC,
};
use crate::rope::half_split_row;
use crate::weights::{Piece, WeightError, Weights, transcode};
use crate::{Config, ParamSpec};

const VERSION: u32 = 3;
/// The metadata key of the encoding of most tensors, as a number that [`file_type`] gives.
const FILE_TYPE_KEY: &str = "general.file_type";

/// Writes a model as GGUF.
pub struct Writer<'a> {
    weights: &'a dyn Weights,
    encoding: Encoding,
    threads: usize,
    metadata: BTreeMap<String, GgufValue>,
}

/// A tensor to be written.
struct Planned<'a> {
    name: String,
    /// Slowest first.
    shape: Vec<usize>,
    encoding: Encoding,
    bytes: usize,
    source: Source<'a>,
}

enum Source<'a> {
    /// Rows of a parameter, in the interleaved order where that is so.
    Rows { spec: &'a ParamSpec, rows: Range<usize>, interleaved: bool },
    /// These numbers.
    Values(Vec<f32>),
}

impl<'a> Writer<'a> {
    /// A writer of this model, most matrices in `encoding` (see [`stored_as`]). `threads` encode.
    pub fn new(weights: &'a dyn Weights, encoding: Encoding, threads: usize) -> Self {
        let mut metadata = sizes(weights.config());
        metadata.insert("general.type".into(), "model".into());
        Self { weights, encoding, threads, metadata }
    }

    /// The same with the model's name, and what the file is to say about its vocabulary (see [`super::GgufTokenizer`]).
    pub fn describe(mut self, name: &str, vocabulary: impl IntoIterator<Item = (String, GgufValue)>) -> Self {
        self.metadata.insert("general.name".into(), name.into());
        self.metadata.extend(vocabulary);
        self
    }

    /// The same with all that another file says about its model and vocabulary.
    pub fn copy(mut self, file: &GgufFile) -> Self {
        let dropped = [ALIGNMENT_KEY];
        for (key, value) in file.metadata().iter().filter(|(key, _)| !dropped.contains(&key.as_str())) {
            self.metadata.insert(key.clone(), value.clone());
        }
        self
    }

    /// Writes the file, whole or not at all. Some megabytes are in memory at a time.
    ///
    /// # Errors
    /// A file that cannot be written; a value that is not finite, or that the encoding cannot hold, by tensor.
    pub fn write(mut self, path: &Path) -> Result<(), WeightError> {
        self.metadata.insert(FILE_TYPE_KEY.into(), file_type(self.encoding).into());
        self.metadata.insert("general.quantization_version".into(), 2u32.into());
        let config = self.weights.config();
        let table = config.params();
        let tensors = plan(config, &table, self.encoding);
        fsutil::write_atomic_with(path, |out| {
            let write = |out: &mut dyn Write, bytes: &[u8]| {
                out.write_all(bytes).map_err(|e| ArtifactError::io("write", path, e))
            };
            write(out, &header(&self.metadata, &tensors))?;
            for tensor in &tensors {
                self.tensor(tensor, path, out)?;
                write(out, &vec![0; padding(tensor.bytes)])?;
            }
            Ok(())
        })
    }

    fn tensor(&self, tensor: &Planned<'_>, path: &Path, out: &mut dyn Write) -> Result<(), WeightError> {
        let Planned { name, encoding, source, .. } = tensor;
        match source {
            Source::Values(values) => {
                let written = out.write_all(&encoding.encode(values));
                Ok(written.map_err(|e| ArtifactError::io("write", path, e))?)
            }
            Source::Rows { spec, rows, interleaved } => {
                let head_dim = self.weights.config().head_dim;
                let group = if *interleaved { head_dim } else { 1 };
                let piece = Piece { spec, rows: rows.clone(), encoding: *encoding, group, name };
                let order = |i| if *interleaved { half_split_row(i, head_dim) } else { i };
                transcode(self.weights, &piece, order, self.threads, (path, out))?;
                self.weights.release(spec);
                Ok(())
            }
        }
    }
}

fn plan<'a>(config: &Config, table: &'a [ParamSpec], encoding: Encoding) -> Vec<Planned<'a>> {
    let mut tensors = Vec::new();
    if config.rope_scaling.is_some() {
        let values = factors_of(config);
        let (shape, bytes) = (vec![values.len()], 4 * values.len());
        let source = Source::Values(values);
        tensors.push(Planned { name: FACTORS.into(), shape, encoding: Encoding::F32, bytes, source });
    }
    for spec in table {
        let (mut first, cols) = (0, spec.shape.cols);
        for part in &spec.parts {
            let name = gguf_name(&part.hf_name);
            let encoding = stored_as(&name, (part.rows, cols), config.tied, encoding);
            let row = encoding.row_bytes(cols);
            let row = row.unwrap_or_else(|| panic!("plan: `{name}` of {cols} columns cannot be {encoding}"));
            let shape = if part.rows == 1 { vec![cols] } else { vec![part.rows, cols] };
            let rows = first..first + part.rows;
            let source = Source::Rows { spec, rows, interleaved: is_interleaved(&part.hf_name) };
            tensors.push(Planned { name, shape, encoding, bytes: row * part.rows, source });
            first += part.rows;
        }
    }
    tensors
}

/// How a tensor is stored in a file of this encoding. Norms stay F32. The output projection, or the embedding that is one,
/// is Q6_K where the encoding has fewer bits, as llama.cpp has it. What its columns are no whole blocks of gives way to blocks of
/// 32 of as many bits or one more (Q4_K to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0), and these to F16.
pub fn stored_as(name: &str, (rows, cols): (usize, usize), tied: bool, encoding: Encoding) -> Encoding {
    if rows == 1 {
        return Encoding::F32;
    }
    let is_output = name == OUTPUT || (tied && name == EMBEDDING);
    let wanted = match encoding {
        e if is_output && e.is_quantized() && e != Encoding::Q8_0 => Encoding::Q6K,
        e => e,
    };
    let small = match wanted {
        Encoding::Q4K => Encoding::Q5_0,
        Encoding::Q5K => Encoding::Q5_1,
        Encoding::Q6K => Encoding::Q8_0,
        other => other,
    };
    let fits = |e: &Encoding| e.row_bytes(cols).is_some();
    [wanted, small].into_iter().find(fits).unwrap_or(Encoding::F16)
}

/// llama.cpp's number for a file most of whose tensors are stored so.
fn file_type(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::F16 => 1,
        Encoding::Bf16 => 32,
        Encoding::Q8_0 => 7,
        Encoding::Q4_0 => 2,
        Encoding::Q4_1 => 3,
        Encoding::Q5_0 => 8,
        Encoding::Q5_1 => 9,
        Encoding::Q4K => 14,
        Encoding::Q5K => 16,
        Encoding::Q6K => 18,
        // F32, and whatever else is to come has to find its number here first.
        _ => 0,
    }
}

fn sizes(c: &Config) -> BTreeMap<String, GgufValue> {
    let size = |n: usize| GgufValue::U32(n as u32);
    let own = [
        ("block_count", size(c.layers)),
        ("context_length", size(c.context)),
        ("embedding_length", size(c.dim)),
        ("feed_forward_length", size(c.ffn)),
        ("attention.head_count", size(c.heads)),
        ("attention.head_count_kv", size(c.kv_heads)),
        ("attention.key_length", size(c.head_dim)),
        ("attention.value_length", size(c.head_dim)),
        ("attention.layer_norm_rms_epsilon", c.norm_eps.into()),
        ("rope.freq_base", (c.rope_theta as f32).into()),
        ("rope.dimension_count", size(c.head_dim)),
        ("vocab_size", size(c.vocab)),
    ];
    let own = own.into_iter().map(|(key, value)| (format!("{ARCHITECTURE}.{key}"), value));
    own.chain([(ARCHITECTURE_KEY.into(), ARCHITECTURE.into())]).collect()
}

/// Everything up to the first tensor.
fn header(metadata: &BTreeMap<String, GgufValue>, tensors: &[Planned<'_>]) -> Vec<u8> {
    let mut out = Vec::from(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    // Readers that look for the architecture first find it first.
    let (first, rest): (Vec<_>, Vec<_>) = metadata.iter().partition(|(key, _)| *key == ARCHITECTURE_KEY);
    for (key, value) in first.into_iter().chain(rest) {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_string(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(type_number(tensor.encoding).to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes + padding(tensor.bytes);
    }
    out.resize(out.len() + padding(out.len()), 0);
    out
}

fn padding(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT as usize) - bytes
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &GgufValue) {
    let mut put = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        GgufValue::U8(x) => put(kind::U8, &x.to_le_bytes()),
        GgufValue::I8(x) => put(kind::I8, &x.to_le_bytes()),
        GgufValue::U16(x) => put(kind::U16, &x.to_le_bytes()),
        GgufValue::I16(x) => put(kind::I16, &x.to_le_bytes()),
        GgufValue::U32(x) => put(kind::U32, &x.to_le_bytes()),
        GgufValue::I32(x) => put(kind::I32, &x.to_le_bytes()),
        GgufValue::U64(x) => put(kind::U64, &x.to_le_bytes()),
        GgufValue::I64(x) => put(kind::I64, &x.to_le_bytes()),
        GgufValue::F32(x) => put(kind::F32, &x.to_le_bytes()),
        GgufValue::F64(x) => put(kind::F64, &x.to_le_bytes()),
        GgufValue::Bool(x) => put(kind::BOOL, &[u8::from(*x)]),
        GgufValue::String(x) => {
            put(kind::STRING, &[]);
            put_string(out, x);
        }
        GgufValue::Array(x) => {
            put(kind::ARRAY, &[]);
            put_array(out, x);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &GgufArray) {
    match array {
        GgufArray::U8(x) => put_numbers(out, kind::U8, x, u8::to_le_bytes),
        GgufArray::I8(x) => put_numbers(out, kind::I8, x, i8::to_le_bytes),
        GgufArray::U16(x) => put_numbers(out, kind::U16, x, u16::to_le_bytes),
        GgufArray::I16(x) => put_numbers(out, kind::I16, x, i16::to_le_bytes),
        GgufArray::U32(x) => put_numbers(out, kind::U32, x, u32::to_le_bytes),
        GgufArray::I32(x) => put_numbers(out, kind::I32, x, i32::to_le_bytes),
        GgufArray::U64(x) => put_numbers(out, kind::U64, x, u64::to_le_bytes),
        GgufArray::I64(x) => put_numbers(out, kind::I64, x, i64::to_le_bytes),
        GgufArray::F32(x) => put_numbers(out, kind::F32, x, f32::to_le_bytes),
        GgufArray::F64(x) => put_numbers(out, kind::F64, x, f64::to_le_bytes),
        GgufArray::Bool(x) => put_numbers(out, kind::BOOL, x, |x| [u8::from(x)]),
        GgufArray::String(x) => {
            put_length(out, kind::STRING, x.len());
            x.iter().for_each(|text| put_string(out, text));
        }
        GgufArray::Array(x) => {
            put_length(out, kind::ARRAY, x.len());
            x.iter().for_each(|array| put_array(out, array));
        }
    }
}

fn put_length(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

fn put_numbers<const N: usize, T: Copy>(out: &mut Vec<u8>, kind: u32, x: &[T], bytes: fn(T) -> [u8; N]) {
    put_length(out, kind, x.len());
    x.iter().for_each(|&x| out.extend(bytes(x)));
}
