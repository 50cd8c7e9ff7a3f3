//! Writing a folder.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use llamero_tensor::{Backend, DType};
use safetensors::tensor::{Dtype, TensorView};

use super::config::write_configs;
use super::{CONFIG_FILE, WEIGHTS_FILE};
use crate::Llama;
use crate::weights::{StopTokens, WeightError};

/// Writes `config.json`, `generation_config.json` and `model.safetensors` for a whole model into `dir`.
pub fn save(
    dir: &Path,
    model: &Llama,
    backend: &dyn Backend,
    tokens: &StopTokens,
) -> Result<(), WeightError> {
    let dtype = model.params().next().map_or(DType::F32, |p| p.value.dtype());
    write_configs(dir, &model.config, dtype, tokens)?;
    let table = model.config.params();
    let mut data: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for param in model.params() {
        let spec = &table[param.id];
        let bytes = le_bytes(&backend.download(&param.value), dtype);
        let mut rest = bytes.as_slice();
        for part in &spec.parts {
            let (own, tail) = rest.split_at(part.rows * spec.shape.cols * dtype.bytes());
            let shape = if part.rows == 1 { vec![spec.shape.cols] } else { vec![part.rows, spec.shape.cols] };
            data.insert(&part.hf_name, (shape, own.to_vec()));
            rest = tail;
        }
    }
    let path = dir.join(WEIGHTS_FILE);
    let container =
        |e: safetensors::SafeTensorError| WeightError::container(&path, "safetensors", e.to_string());
    let st_dtype = if dtype == DType::F32 { Dtype::F32 } else { Dtype::BF16 };
    let views = data
        .iter()
        .map(|(name, (shape, bytes))| Ok((*name, TensorView::new(st_dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(container)?;
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => WeightError::io(&path, source),
        other => container(other),
    })?;
    // The library makes the file readable for its owner only; it gets the rights of its neighbours.
    let rights = std::fs::metadata(dir.join(CONFIG_FILE)).map(|m| m.permissions());
    rights.and_then(|r| std::fs::set_permissions(&path, r)).map_err(|source| WeightError::io(&path, source))
}

fn le_bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}
