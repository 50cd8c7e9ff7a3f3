//! A Llama in a GGUF file.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use llamero_tensor::{DType, Encoding, StoredRows};

use super::names::{EMBEDDING, FACTORS, gguf_name, is_interleaved};
use super::sizes::config;
use super::vocabulary::stop_tokens;
use super::{Contents, GgufFile};
use crate::rope::interleaved_row;
use crate::weights::{MappedTensor, StopTokens, TensorInfo, WeightError, Weights};
use crate::{Config, ParamPart, ParamSpec};

/// What says which shapes tensors must have.
const ASKS: &str = "llama.*";

/// A Llama in a GGUF file, opened and checked.
pub struct GgufModel {
    file: GgufFile,
    config: Config,
    stop: Option<StopTokens>,
}

impl GgufModel {
    /// Opens a file and checks that every tensor that its metadata asks for is there in its shape, and no other that would
    /// change the result.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged; metadata or a tensor that is not Llama's, by name.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        Self::new(GgufFile::open(path)?)
    }

    /// The model in a file that is open.
    ///
    /// # Errors
    /// As [`GgufModel::open`].
    pub fn new(file: GgufFile) -> Result<Self, WeightError> {
        let (config, stop) = checked(file.path(), &file.contents, file.file.map.bytes())?;
        Ok(Self { file, config, stop })
    }

    /// The file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    fn tensor(&self, part: &ParamPart) -> &MappedTensor {
        let name = gguf_name(&part.hf_name);
        let tensor = self.file.contents.tensors.get(&name);
        tensor.unwrap_or_else(|| panic!("`{name}` is of another model's table"))
    }

    fn part(&self, part: &ParamPart, cols: usize, rows: Range<usize>) -> Result<StoredRows<'_>, WeightError> {
        let tensor = self.tensor(part);
        let files = std::slice::from_ref(&self.file.file);
        if !is_interleaved(&part.hf_name) {
            return tensor.rows(files, cols, rows);
        }
        // All rows of the heads that are met, then those that are meant in their other order.
        let head_dim = self.config.head_dim;
        let first = rows.start / head_dim * head_dim;
        let heads = tensor.rows(files, cols, first..rows.end.next_multiple_of(head_dim))?;
        let rows = rows.map(|row| heads.rows[interleaved_row(row, head_dim) - first].clone()).collect();
        Ok(StoredRows { encoding: heads.encoding, rows })
    }
}

/// Everything that [`GgufModel::open`] checks, of bytes in memory; for fuzzing.
///
/// # Errors
/// As there.
pub fn parse_model(bytes: &[u8]) -> Result<Config, WeightError> {
    let path = Path::new("bytes");
    let contents = Contents::parse(path, bytes)?;
    Ok(checked(path, &contents, bytes)?.0)
}

/// Sizes and stop tokens of the model in a file, all of whose tensors are there in their shapes, and no others.
fn checked(
    path: &Path,
    contents: &Contents,
    bytes: &[u8],
) -> Result<(Config, Option<StopTokens>), WeightError> {
    let config = config(path, contents, bytes)?;
    let stop = stop_tokens(path, contents)?;
    let tensors = &contents.tensors;
    // Before a table is made that follows the file's claims and not its size.
    if config.layers > tensors.len() {
        let (layers, most) = (config.layers, tensors.len());
        let reason = format!("`llama.block_count` is {layers}, but there are {most} tensors");
        return Err(WeightError::config(path, reason));
    }
    let mut known = BTreeSet::from([FACTORS.to_owned()]);
    for spec in config.params() {
        for part in &spec.parts {
            let name = gguf_name(&part.hf_name);
            let tensor = tensors.get(&name).ok_or_else(|| WeightError::tensor(path, &name, "is missing"))?;
            tensor.check(path, (part.rows, spec.shape.cols), ASKS)?;
            known.insert(name);
        }
    }
    match tensors.keys().find(|name| !known.contains(*name)) {
        None => Ok((config, stop)),
        Some(other) => Err(WeightError::tensor(path, other, "is not part of a Llama; this model differs")),
    }
}

impl Weights for GgufModel {
    fn config(&self) -> &Config {
        &self.config
    }

    fn dtype(&self) -> DType {
        let tensors = &self.file.contents.tensors;
        if tensors.values().any(|tensor| tensor.encoding.is_some_and(Encoding::is_quantized)) {
            return DType::Bf16;
        }
        match tensors.get(EMBEDDING).and_then(|t| t.encoding) {
            Some(Encoding::F32 | Encoding::F16) => DType::F32,
            _ => DType::Bf16,
        }
    }

    fn rows(&self, spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<StoredRows<'_>>, WeightError> {
        spec.parts_in(rows).map(|(part, own)| self.part(part, spec.shape.cols, own)).collect()
    }

    fn release(&self, spec: &ParamSpec) {
        for part in &spec.parts {
            self.file.file.map.release(self.tensor(part).bytes.clone());
        }
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let files = std::slice::from_ref(&self.file.file);
        self.file.contents.tensors.values().map(|t| t.info(files)).collect()
    }

    fn stop_tokens(&self) -> Option<StopTokens> {
        self.stop.clone()
    }
}
