//! The tensors of a folder's weight files, with or without an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path};

use llamero_tensor::Encoding;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::{INDEX_FILE, WEIGHTS_FILE};
use crate::weights::{MappedTensor, WeightError, WeightFile, read_text};

/// Mapped files and their tensors by name.
pub(super) type Tensors = (Vec<WeightFile>, BTreeMap<String, MappedTensor>);

/// Opens `model.safetensors` of a folder, or where there is none the shards that the index names.
pub(super) fn open_tensors(dir: &Path) -> Result<Tensors, WeightError> {
    let (one, index) = (dir.join(WEIGHTS_FILE), dir.join(INDEX_FILE));
    if one.exists() || !index.exists() {
        let file = WeightFile::open(one)?;
        let tensors = header(0, &file)?;
        let tensors = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        return Ok((vec![file], tensors));
    }
    sharded(dir, &index)
}

/// Opens the shards that an index names, and checks that they hold just what it says.
fn sharded(dir: &Path, index: &Path) -> Result<Tensors, WeightError> {
    let map = read_index(index)?;
    let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
    let mut files = Vec::with_capacity(names.len());
    let mut tensors: BTreeMap<String, MappedTensor> = BTreeMap::new();
    for (at, name) in names.into_iter().enumerate() {
        let path = dir.join(name);
        if !path.exists() {
            let reason = format!(
                "names the shard `{name}`, which is not there. hint: copy or fetch all files of the model"
            );
            return Err(WeightError::config(index, reason));
        }
        let file = WeightFile::open(path)?;
        for tensor in header(at, &file)? {
            let bad = |reason: String| WeightError::tensor(&file.path, &tensor.name, reason);
            match map.get(&tensor.name) {
                Some(listed) if listed == name => {}
                Some(listed) => {
                    return Err(bad(format!("is in this file, but `{INDEX_FILE}` says it is in `{listed}`")));
                }
                None => return Err(bad(format!("is not in the `weight_map` of `{INDEX_FILE}`"))),
            }
            tensors.insert(tensor.name.clone(), tensor);
        }
        files.push(file);
    }
    match map.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        None => Ok((files, tensors)),
        Some((name, file)) => {
            let reason = format!("is missing, but `{INDEX_FILE}` says it is here");
            Err(WeightError::tensor(&dir.join(file), name, reason))
        }
    }
}

/// The tensors of a safetensors file.
fn header(at: usize, file: &WeightFile) -> Result<Vec<MappedTensor>, WeightError> {
    let bad = |reason: String| WeightError::container(&file.path, "safetensors", reason);
    let bytes = file.map.bytes();
    let (length, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
    let data = length + size_of::<u64>();
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let range = |end: usize| data.checked_add(end).filter(|end| *end <= bytes.len());
        let (Some(start), Some(end)) = (range(info.data_offsets.0), range(info.data_offsets.1)) else {
            return Err(bad(format!("tensor `{name}` lies outside of it")));
        };
        tensors.push(MappedTensor {
            file: at,
            shape: info.shape.clone(),
            dtype: format!("{:?}", info.dtype),
            encoding: encoding(info.dtype),
            bytes: start..end,
            name,
        });
    }
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

fn encoding(dtype: Dtype) -> Option<Encoding> {
    match dtype {
        Dtype::F32 => Some(Encoding::F32),
        Dtype::F16 => Some(Encoding::F16),
        Dtype::BF16 => Some(Encoding::Bf16),
        _ => None,
    }
}

/// The shard of each tensor, by name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, WeightError> {
    parse_index(&read_text(path)?).map_err(|reason| WeightError::config(path, reason))
}

/// The shard of each tensor from the text of an index, or what is wrong with it.
pub(super) fn parse_index(text: &str) -> Result<BTreeMap<String, String>, String> {
    let index: Index = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut map = BTreeMap::new();
    for (tensor, file) in index.weight_map.0 {
        let mut parts = Path::new(&file).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || file.contains(['/', '\\']) {
            return Err(format!(
                "puts tensor `{tensor}` into `{file}`; a shard is a file of the same folder"
            ));
        }
        if let Some(other) = map.insert(tensor.clone(), file) {
            return Err(format!("lists tensor `{tensor}` twice, the first time in `{other}`"));
        }
    }
    if map.is_empty() { Err("its `weight_map` names no tensor".into()) } else { Ok(map) }
}

#[derive(Deserialize)]
struct Index {
    weight_map: Pairs,
}

/// The entries of a JSON object, equal keys and all.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that gives each tensor its file")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
