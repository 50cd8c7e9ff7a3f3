//! Meta's folder layout: `params.json` and `consolidated.NN.pth`, one file for each rank of the tensor-parallel group that the
//! model was saved from.
//!
//! The files are what `torch.save` writes: a zip archive with a pickle. The pickle is read by a machine that can build
//! descriptions of tensors and nothing else (`pickle`). Ranks hold rows of `wq`, `wk`, `wv`, `w1`, `w3` and the output, columns of
//! `wo` and `w2`, and all of the norms. The embedding is divided by columns in older files and by rows in newer ones, which its
//! shape tells. Rows of queries and keys are in interleaved order, and are handed out in half-split order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use llamero_tensor::{DType, Encoding, StoredRows};

use crate::rope::interleaved_row;
use crate::weights::{MappedTensor, StopTokens, TensorInfo, WeightError, WeightFile, Weights, file_names};
use crate::{Config, ParamSpec};

mod checkpoint;
mod params;
mod pickle;
mod zip;

/// Sizes of the model.
pub const PARAMS_FILE: &str = "params.json";
/// The first file of the weights.
pub const FIRST_SHARD: &str = "consolidated.00.pth";

const EMBEDDING: &str = "tok_embeddings.weight";
const OUTPUT: &str = "output.weight";
/// A table that older files hold and that follows from the sizes.
const FREQUENCIES: &str = "rope.freqs";

/// Whether a file of this name holds weights.
pub(crate) fn is_shard(name: &str) -> bool {
    shard_number(name).is_some()
}

/// `NN` of `consolidated.NN.pth`.
fn shard_number(name: &str) -> Option<&str> {
    let number = name.strip_prefix("consolidated.")?.strip_suffix(".pth")?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some(number).filter(|n| !n.is_empty())
}

/// Whether the model in folder `dir` stretches its frequencies: then it is Llama 3.1 or later, and its vocabulary has the
/// special tokens of July 2024.
///
/// # Errors
/// A [`PARAMS_FILE`] that cannot be read.
pub fn is_scaled(dir: &Path) -> Result<bool, WeightError> {
    params::is_scaled(&dir.join(PARAMS_FILE))
}

/// How ranks divide a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    /// All have all of it.
    Whole,
    Rows,
    Columns,
}

/// A tensor of the model, from all ranks.
struct Joined {
    shards: Vec<MappedTensor>,
    split: Split,
    /// Rows of a head, where they are in interleaved order.
    interleaved: Option<usize>,
}

/// A model folder, opened and checked.
pub struct MetaFolder {
    config: Config,
    files: Vec<WeightFile>,
    /// By the name of the part in the parameter table.
    tensors: BTreeMap<String, Joined>,
    others: Vec<MappedTensor>,
    dtype: DType,
}

impl MetaFolder {
    /// Opens `dir` and checks that every rank holds its slice of every tensor, and nothing else.
    ///
    /// # Errors
    /// A file that cannot be read, or that holds anything but tensors; a tensor that is missing, has the wrong shape, or
    /// differs between ranks where it must not.
    pub fn open(dir: &Path) -> Result<Self, WeightError> {
        let params = dir.join(PARAMS_FILE);
        let files = shard_paths(dir)?.into_iter().map(WeightFile::open).collect::<Result<Vec<_>, _>>()?;
        let mut ranks = Vec::with_capacity(files.len());
        for (at, file) in files.iter().enumerate() {
            ranks.push(checkpoint::tensors(at, file)?);
        }
        let config = params::read_params(&params, vocabulary(&ranks), is_tied(&ranks))?;
        let mut folder =
            Self { config, files, tensors: BTreeMap::new(), others: Vec::new(), dtype: DType::F32 };
        for spec in folder.config.params() {
            for (i, part) in spec.parts.iter().enumerate() {
                let (name, shape) = (part_name(&spec, i), (part.rows, spec.shape.cols));
                let joined = folder.join(&mut ranks, &name, shape)?;
                folder.tensors.insert(part.hf_name.clone(), joined);
            }
        }
        for (name, tensor) in ranks.into_iter().flatten() {
            // A tied output is the embedding itself.
            if name != FREQUENCIES && name != OUTPUT {
                let path = &folder.files[tensor.file].path;
                return Err(WeightError::tensor(path, &name, "is not part of a Llama; this model differs"));
            }
            folder.others.push(tensor);
        }
        let embedding =
            folder.tensors.values().flat_map(|joined| &joined.shards).find(|t| t.name == EMBEDDING);
        if embedding.is_some_and(|t| t.encoding == Some(Encoding::Bf16)) {
            folder.dtype = DType::Bf16;
        }
        Ok(folder)
    }

    /// Takes a tensor from all ranks.
    fn join(
        &self,
        ranks: &mut [BTreeMap<String, MappedTensor>],
        name: &str,
        (rows, cols): (usize, usize),
    ) -> Result<Joined, WeightError> {
        let mut shards = Vec::with_capacity(ranks.len());
        for (rank, file) in ranks.iter_mut().zip(&self.files) {
            let tensor = rank.remove(name);
            shards.push(tensor.ok_or_else(|| WeightError::tensor(&file.path, name, "is missing"))?);
        }
        let all = shards.len();
        let by_rows = rows.is_multiple_of(all).then(|| (rows / all, cols));
        let by_cols = cols.is_multiple_of(all).then(|| (rows, cols / all));
        let (split, own) = match name.rsplit('.').nth(1).unwrap_or(name) {
            _ if all == 1 || rows == 1 => (Split::Whole, Some((rows, cols))),
            "wo" | "w2" => (Split::Columns, by_cols),
            "tok_embeddings" if by_cols.is_some_and(|(rows, cols)| shards[0].shape == [rows, cols]) => {
                (Split::Columns, by_cols)
            }
            _ => (Split::Rows, by_rows),
        };
        let own = own.ok_or_else(|| {
            let reason = format!("of {rows} rows and {cols} columns cannot be divided over {all} files");
            WeightError::tensor(&self.files[0].path, name, reason)
        })?;
        for shard in &shards {
            self.check(shard, &shards[0], (split, own))?;
        }
        let interleaved = [".wq.weight", ".wk.weight"].iter().any(|end| name.ends_with(end));
        Ok(Joined { shards, split, interleaved: interleaved.then_some(self.config.head_dim) })
    }

    /// Checks one rank's slice, which has shape `own`.
    fn check(
        &self,
        shard: &MappedTensor,
        first: &MappedTensor,
        (split, own): (Split, (usize, usize)),
    ) -> Result<(), WeightError> {
        let path = &self.files[shard.file].path;
        shard.check(path, own, PARAMS_FILE)?;
        let other = &self.files[first.file];
        if shard.encoding != first.encoding {
            let reason = format!("is {}, but {} in `{}`", shard.dtype, first.dtype, other.path.display());
            return Err(WeightError::tensor(path, &shard.name, reason));
        }
        let content = |t: &MappedTensor| &self.files[t.file].map.bytes()[t.bytes.clone()];
        let replicated = split == Split::Whole && shard.file != first.file;
        if replicated && content(shard) != content(first) {
            let reason =
                format!("differs from the one in `{}`, which must be the same", other.path.display());
            return Err(WeightError::tensor(path, &shard.name, reason));
        }
        Ok(())
    }

    fn joined(&self, name: &str) -> &Joined {
        self.tensors.get(name).unwrap_or_else(|| panic!("`{name}` is of another model's table"))
    }

    /// Row `row` of the file's order, joined from the ranks.
    fn row<'f>(&'f self, joined: &Joined, cols: usize, row: usize) -> Result<StoredRows<'f>, WeightError> {
        let shards = &joined.shards;
        match joined.split {
            Split::Whole => shards[0].rows(&self.files, cols, row..row + 1),
            Split::Rows => {
                let own = shards[0].shape[0];
                shards[row / own].rows(&self.files, cols, row % own..row % own + 1)
            }
            Split::Columns => {
                let own = cols / shards.len();
                let parts = shards.iter().map(|shard| shard.rows(&self.files, own, row..row + 1));
                let parts = parts.collect::<Result<Vec<_>, _>>()?;
                let bytes: Vec<u8> = parts.iter().flat_map(|part| part.rows[0].iter().copied()).collect();
                Ok(StoredRows { encoding: parts[0].encoding, rows: vec![Cow::Owned(bytes)] })
            }
        }
    }
}

impl Weights for MetaFolder {
    fn config(&self) -> &Config {
        &self.config
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn rows(&self, spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<StoredRows<'_>>, WeightError> {
        let cols = spec.shape.cols;
        let mut runs = Vec::with_capacity(spec.parts.len());
        for (part, own) in spec.parts_in(rows) {
            let joined = self.joined(&part.hf_name);
            let mut run: Option<StoredRows<'_>> = None;
            for row in own {
                let row = joined.interleaved.map_or(row, |head| interleaved_row(row, head));
                let mut next = self.row(joined, cols, row)?;
                match &mut run {
                    Some(run) => run.rows.append(&mut next.rows),
                    None => run = Some(next),
                }
            }
            runs.extend(run);
        }
        Ok(runs)
    }

    fn release(&self, spec: &ParamSpec) {
        for shard in spec.parts.iter().flat_map(|part| &self.joined(&part.hf_name).shards) {
            self.files[shard.file].map.release(shard.bytes.clone());
        }
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let parts = self.tensors.values().flat_map(|joined| &joined.shards);
        let mut infos: Vec<_> = parts.chain(&self.others).map(|t| t.info(&self.files)).collect();
        infos.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
        infos
    }

    fn stop_tokens(&self) -> Option<StopTokens> {
        None
    }
}

/// Names and shapes in a checkpoint, without files: for fuzzing. Tensors that lie outside of it are left out.
#[doc(hidden)]
pub fn parse_checkpoint(bytes: &[u8]) -> Result<Vec<(String, Vec<u64>)>, String> {
    let found = checkpoint::archive(bytes)?;
    let inside = |range: &Range<usize>| bytes.get(range.clone()).is_some();
    let outside = found.iter().find(|(_, _, range)| range.as_ref().is_ok_and(|r| !inside(r)));
    assert!(outside.is_none(), "parse_checkpoint: {outside:?} of {} bytes", bytes.len());
    Ok(found
        .into_iter()
        .filter(|f| f.2.is_ok())
        .map(|(name, tensor, _)| (name.to_owned(), tensor.shape))
        .collect())
}

/// Names and shapes in the pickle of a checkpoint: for fuzzing.
#[doc(hidden)]
pub fn parse_pickle(bytes: &[u8]) -> Result<Vec<(String, Vec<u64>)>, String> {
    Ok(pickle::tensors(bytes)?.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.shape)).collect())
}

/// Meta's name of a part of a parameter; only the fused ones have several.
fn part_name(spec: &ParamSpec, part: usize) -> String {
    let name = spec.name.replace("wqkv", ["wq", "wk", "wv"].get(part).unwrap_or(&"wqkv"));
    name.replace("w13", ["w1", "w3"].get(part).unwrap_or(&"w13"))
}

/// The checkpoints of a folder in the order of their ranks, which are numbered from 0 without gaps.
fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>, WeightError> {
    let names: Vec<String> = file_names(dir)?.into_iter().filter(|name| is_shard(name)).collect();
    for (rank, name) in names.iter().enumerate() {
        if shard_number(name).and_then(|n| n.parse().ok()) != Some(rank) {
            let reason = format!(
                "is missing; the folder has {} checkpoints, the last is `{}`. hint: copy all files of the model",
                names.len(),
                names[names.len() - 1]
            );
            return Err(WeightError::config(&dir.join(format!("consolidated.{rank:02}.pth")), reason));
        }
    }
    match names.len() {
        0 => Err(WeightError::config(&dir.join(FIRST_SHARD), "is missing")),
        _ => Ok(names.iter().map(|name| dir.join(name)).collect()),
    }
}

/// Rows of the embedding: of one rank where ranks have columns, of all of them where they have rows. What it is follows from
/// the norm, which has a value for each column; 0 where either is missing.
fn vocabulary(ranks: &[BTreeMap<String, MappedTensor>]) -> usize {
    let shape = |name: &str| ranks.first()?.get(name).map(|t| t.shape.as_slice());
    match (shape(EMBEDDING), shape("norm.weight")) {
        (Some([rows, cols]), Some([dim])) if cols == dim => rows.saturating_mul(ranks.len()),
        (Some([rows, _]), Some(_)) => *rows,
        _ => 0,
    }
}

/// Whether the output projection is the embedding: absent, or the same bytes of the same storage.
fn is_tied(ranks: &[BTreeMap<String, MappedTensor>]) -> bool {
    ranks.iter().all(|rank| match (rank.get(OUTPUT), rank.get(EMBEDDING)) {
        (Some(output), Some(embedding)) => {
            let place = |t: &MappedTensor| (t.bytes.clone(), t.shape.clone(), t.encoding);
            place(output) == place(embedding)
        }
        (None, _) => true,
        (Some(_), None) => false,
    })
}
