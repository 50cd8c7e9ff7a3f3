//! Reading a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use llamero_tensor::{DType, Encoding, StoredRows};

use super::config::{read_config, read_stop_tokens};
use super::index::open_tensors;
use super::{CONFIG_FILE, EMBEDDING, INDEX_FILE, OUTPUT, ROTARY, WEIGHTS_FILE};
use crate::weights::{MappedTensor, StopTokens, TensorInfo, WeightError, WeightFile, Weights};
use crate::{Config, ParamSpec};

/// A model folder, opened and checked.
pub struct ModelFolder {
    config: Config,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, MappedTensor>,
    dtype: DType,
    stop: Option<StopTokens>,
}

impl ModelFolder {
    /// Opens `dir` and checks that every tensor the configuration needs is there in its shape, and no other that would
    /// change the result.
    ///
    /// # Errors
    /// A file that cannot be read; a configuration or a tensor that is not Llama's, by name.
    pub fn open(dir: &Path) -> Result<Self, WeightError> {
        let config = read_config(&dir.join(CONFIG_FILE))?;
        let stop = read_stop_tokens(dir, config.vocab)?;
        let (files, tensors) = open_tensors(dir)?;
        let mut folder = Self { config, files, tensors, dtype: DType::F32, stop };
        let table = folder.config.params();
        for spec in &table {
            for part in &spec.parts {
                let Some(tensor) = folder.tensors.get(&part.hf_name) else {
                    return Err(WeightError::tensor(&folder.listing(dir), &part.hf_name, "is missing"));
                };
                tensor.check(folder.path(tensor), (part.rows, spec.shape.cols), CONFIG_FILE)?;
            }
        }
        folder.no_others(&table)?;
        if folder.tensors.get(EMBEDDING).is_some_and(|t| t.encoding == Some(Encoding::Bf16)) {
            folder.dtype = DType::Bf16;
        }
        Ok(folder)
    }

    /// The file that says which tensors there are.
    fn listing(&self, dir: &Path) -> PathBuf {
        match self.files.as_slice() {
            [one] if one.path.ends_with(WEIGHTS_FILE) => one.path.clone(),
            _ => dir.join(INDEX_FILE),
        }
    }

    fn path(&self, tensor: &MappedTensor) -> &Path {
        &self.files[tensor.file].path
    }

    /// Refuses tensors that the model has no place for, such as biases: without them it would be another model. Rotary
    /// frequencies follow from the configuration, and a tied model may hold its embedding a second time.
    fn no_others(&self, table: &[ParamSpec]) -> Result<(), WeightError> {
        let known: BTreeSet<&str> = table.iter().flat_map(|s| &s.parts).map(|p| p.hf_name.as_str()).collect();
        for (name, tensor) in &self.tensors {
            if known.contains(name.as_str()) || name.ends_with(ROTARY) {
                continue;
            }
            let content = |name: &str| {
                let t = self.tensors.get(name)?;
                Some((&t.dtype, &t.shape, &self.files[t.file].map.bytes()[t.bytes.clone()]))
            };
            let reason = match name.as_str() {
                OUTPUT if content(OUTPUT) == content(EMBEDDING) => continue,
                OUTPUT => {
                    format!("differs from `{EMBEDDING}`, but `{CONFIG_FILE}` says `tie_word_embeddings`")
                }
                _ => "is not part of a Llama; this model differs".into(),
            };
            return Err(WeightError::tensor(self.path(tensor), name, reason));
        }
        Ok(())
    }

    fn tensor(&self, name: &str) -> &MappedTensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("`{name}` is of another model's table"))
    }
}

impl Weights for ModelFolder {
    fn config(&self) -> &Config {
        &self.config
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn rows(&self, spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<StoredRows<'_>>, WeightError> {
        let cols = spec.shape.cols;
        spec.parts_in(rows)
            .map(|(part, own)| self.tensor(&part.hf_name).rows(&self.files, cols, own))
            .collect()
    }

    fn release(&self, spec: &ParamSpec) {
        for part in &spec.parts {
            let tensor = self.tensor(&part.hf_name);
            self.files[tensor.file].map.release(tensor.bytes.clone());
        }
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        self.tensors.values().map(|t| t.info(&self.files)).collect()
    }

    fn stop_tokens(&self) -> Option<StopTokens> {
        self.stop.clone()
    }
}
