//! Writing a folder, a few rows of a tensor at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use llamero_tensor::{Backend, DType, Encoding};
use serde_json::json;

use super::config::{write_configs, write_json};
use super::{INDEX_FILE, WEIGHTS_FILE};
use crate::weights::{Piece, StopTokens, WeightError, Weights, transcode};
use crate::{Config, Llama};

/// How [`save_weights`] writes.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions<'a> {
    /// F32, F16 or BF16.
    pub encoding: Encoding,
    /// Tensors are divided over files of at most this many bytes; a larger tensor has a file of its own. One file where this is
    /// `None`.
    pub shard_bytes: Option<u64>,
    /// Tokens to name in place of those that the weights' own files name.
    pub tokens: Option<&'a StopTokens>,
    /// Threads that encode.
    pub threads: usize,
}

/// A tensor to write: rows of a parameter.
struct Entry {
    name: String,
    /// Index of the parameter in the table.
    param: usize,
    rows: Range<usize>,
    cols: usize,
}

impl Entry {
    fn bytes(&self, encoding: Encoding) -> u64 {
        (self.rows.len() * self.cols * encoding.block().1) as u64
    }

    fn shape(&self) -> Vec<usize> {
        if self.rows.len() == 1 { vec![self.cols] } else { vec![self.rows.len(), self.cols] }
    }
}

/// Writes `config.json`, `generation_config.json` and `model.safetensors` for a whole model into `dir`.
///
/// # Errors
/// A file that cannot be written.
pub fn save(
    dir: &Path,
    model: &Llama,
    backend: &dyn Backend,
    tokens: &StopTokens,
) -> Result<(), WeightError> {
    let dtype = model.params().next().map_or(DType::F32, |p| p.value.dtype());
    let encoding = if dtype == DType::F32 { Encoding::F32 } else { Encoding::Bf16 };
    write_configs(dir, &model.config, encoding, Some(tokens))?;
    let params: BTreeMap<usize, _> = model.params().map(|p| (p.id, p)).collect();
    let entries = entries(&model.config);
    write_files(dir, &entries, (encoding, None), |path, entry, out| {
        let value = &params.get(&entry.param).expect("a whole model has every parameter of its table").value;
        let bytes = backend.download_raw(value, entry.rows.clone());
        out.write_all(&bytes).map_err(|source| WeightError::io(path, source))
    })
}

/// Writes a folder with the weights of another one, or of another format.
///
/// # Errors
/// A weight that cannot be read, or that is too large for the encoding; a file that cannot be written.
pub fn save_weights(dir: &Path, weights: &dyn Weights, options: SaveOptions<'_>) -> Result<(), WeightError> {
    let SaveOptions { encoding, shard_bytes, tokens, threads } = options;
    if encoding.is_quantized() {
        let reason = format!("{encoding} cannot be written there; safetensors hold F32, F16 and BF16");
        return Err(WeightError::config(dir, reason));
    }
    let named = weights.stop_tokens();
    write_configs(dir, weights.config(), encoding, tokens.or(named.as_ref()))?;
    let table = weights.config().params();
    let entries = entries(weights.config());
    write_files(dir, &entries, (encoding, shard_bytes), |path, entry, out| {
        let spec = &table[entry.param];
        let (rows, name) = (entry.rows.clone(), entry.name.as_str());
        let piece = Piece { spec, rows, encoding, group: 1, name };
        transcode(weights, &piece, |row| row, threads, (path, out))?;
        weights.release(spec);
        Ok(())
    })
}

/// The tensors of a model, by name: equal models give equal files.
fn entries(config: &Config) -> Vec<Entry> {
    let mut entries = Vec::new();
    for spec in config.params() {
        let mut first = 0;
        for part in spec.parts {
            let rows = first..first + part.rows;
            first = rows.end;
            entries.push(Entry { name: part.hf_name, param: spec.id, rows, cols: spec.shape.cols });
        }
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    entries
}

/// Writes one file, or shards and their index. `put` writes the values of a tensor; it is given the file's path.
fn write_files(
    dir: &Path,
    entries: &[Entry],
    (encoding, shard_bytes): (Encoding, Option<u64>),
    mut put: impl FnMut(&Path, &Entry, &mut dyn Write) -> Result<(), WeightError>,
) -> Result<(), WeightError> {
    let shards = shards(entries, encoding, shard_bytes.unwrap_or(u64::MAX));
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => WEIGHTS_FILE.to_owned(),
            all => format!("model-{:05}-of-{all:05}.safetensors", i + 1),
        };
        write_shard(&dir.join(&name), shard, encoding, &mut put)?;
        weight_map.extend(shard.iter().map(|entry| (entry.name.as_str(), name.clone())));
    }
    if shards.len() == 1 {
        return Ok(());
    }
    let total: u64 = entries.iter().map(|entry| entry.bytes(encoding)).sum();
    write_json(
        &dir.join(INDEX_FILE),
        &json!({ "metadata": { "total_size": total }, "weight_map": weight_map }),
    )
}

/// Runs of tensors of at most `most` bytes, each of one tensor at least.
fn shards(entries: &[Entry], encoding: Encoding, most: u64) -> Vec<&[Entry]> {
    let (mut shards, mut first, mut sum) = (Vec::new(), 0, 0u64);
    for (i, entry) in entries.iter().enumerate() {
        let bytes = entry.bytes(encoding);
        if i > first && sum.saturating_add(bytes) > most {
            shards.push(&entries[first..i]);
            (first, sum) = (i, 0);
        }
        sum += bytes;
    }
    shards.push(&entries[first..]);
    shards
}

fn write_shard(
    path: &Path,
    entries: &[Entry],
    encoding: Encoding,
    put: &mut impl FnMut(&Path, &Entry, &mut dyn Write) -> Result<(), WeightError>,
) -> Result<(), WeightError> {
    let io = |source| WeightError::io(path, source);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
    let header = header(entries, encoding);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(header.as_bytes()).map_err(io)?;
    for entry in entries {
        put(path, entry, &mut out)?;
    }
    out.flush().map_err(io)
}

/// The header of a safetensors file: a JSON object, filled up with spaces so that the values after it are aligned.
fn header(entries: &[Entry], encoding: Encoding) -> String {
    let mut text = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut at = 0;
    for entry in entries {
        let end = at + entry.bytes(encoding);
        let (name, dtype, shape) = (json!(entry.name), encoding.name(), json!(entry.shape()));
        text.push_str(&format!(
            r#",{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{at},{end}]}}"#
        ));
        at = end;
    }
    text.push('}');
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    text
}
