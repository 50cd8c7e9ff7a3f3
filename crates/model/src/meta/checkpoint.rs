//! One `consolidated.NN.pth`: a zip archive with a pickle that describes tensors, and their storages.

use std::collections::BTreeMap;
use std::ops::Range;

use super::pickle::{self, Description};
use super::zip;
use crate::weights::{MappedTensor, WeightError, WeightFile};

const FORMAT: &str = "torch.save";
/// Pickles of checkpoints are small; the values are beside them.
const MOST_PICKLE: usize = 16 << 20;

/// The tensors of an opened checkpoint, which is file number `at`.
pub(super) fn tensors(at: usize, file: &WeightFile) -> Result<BTreeMap<String, MappedTensor>, WeightError> {
    let bad = |reason: String| WeightError::container(&file.path, FORMAT, reason);
    let bytes = file.map.bytes();
    let descriptions = archive(bytes).map_err(bad)?;
    let mut tensors = BTreeMap::new();
    for (name, description, range) in descriptions {
        let range = range.map_err(|reason| WeightError::tensor(&file.path, name, reason))?;
        let tensor = MappedTensor {
            file: at,
            shape: description.shape.iter().map(|n| *n as usize).collect(),
            dtype: description.encoding.name().to_owned(),
            encoding: Some(description.encoding),
            bytes: range,
            name: name.to_owned(),
        };
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

type Found<'p> = (&'p str, Description<'p>, Result<Range<usize>, String>);

/// Every tensor of the archive, with its bytes or what is wrong with them.
pub(super) fn archive(bytes: &[u8]) -> Result<Vec<Found<'_>>, String> {
    let entries = zip::entries(bytes)?;
    let mut pickles = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(root), None) = (pickles.next(), pickles.next()) else {
        return Err("it does not hold just one `data.pkl`, as torch.save writes it".into());
    };
    if let Some(range) = entries.get(format!("{root}byteorder").as_str())
        && bytes[range.clone()] != *b"little"
    {
        return Err("its byte order is not little".into());
    }
    let pickle = &bytes[entries[format!("{root}data.pkl").as_str()].clone()];
    if pickle.len() > MOST_PICKLE {
        return Err(format!("its pickle has {} bytes; at most {MOST_PICKLE} are read", pickle.len()));
    }
    let tensors = pickle::tensors(pickle)?;
    let mut located = Vec::with_capacity(tensors.len());
    for (name, description) in tensors {
        let storage = entries.get(format!("{root}data/{}", description.storage).as_str());
        let range = locate(&description, storage);
        located.push((name, description, range));
    }
    Ok(located)
}

/// The bytes of a tensor in those of its storage.
fn locate(tensor: &Description<'_>, storage: Option<&Range<usize>>) -> Result<Range<usize>, String> {
    let storage = storage.ok_or_else(|| format!("lies in storage `{}`, which is missing", tensor.storage))?;
    let width = tensor.encoding.block().1 as u64;
    if tensor.storage_elements.checked_mul(width) != Some(storage.len() as u64) {
        return Err(format!(
            "lies in a storage of {} bytes, which should have {} elements of {}",
            storage.len(),
            tensor.storage_elements,
            tensor.encoding
        ));
    }
    if !tensor.is_contiguous() {
        return Err(format!(
            "has strides {:?} for shape {:?}. hint: save it after `.contiguous()`",
            tensor.stride, tensor.shape
        ));
    }
    let end = tensor.elements().and_then(|n| n.checked_add(tensor.offset));
    match end.filter(|end| *end <= tensor.storage_elements) {
        Some(end) => {
            Ok(storage.start + (tensor.offset * width) as usize..storage.start + (end * width) as usize)
        }
        None => Err(format!(
            "has shape {:?} from element {}, but its storage has {} elements",
            tensor.shape, tensor.offset, tensor.storage_elements
        )),
    }
}
