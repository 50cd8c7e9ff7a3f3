//! GGUF, the format of llama.cpp: one file with sizes, vocabulary and tensors, plain or in quantised blocks.
//!
//! [`GgufFile`] is the container: metadata and where tensors are, every count and offset checked against the file before
//! it is used. [`GgufModel`] is a Llama in one. [`Writer`] makes one of any model.
//!
//! Rows of queries and keys are in the interleaved order in these files; reading and writing turn them round.
//! Shapes are given slowest dimension first, `[rows, cols]`, as everywhere here; the file has them the other way round.

use std::fs::File;
use std::io::Read;
use std::path::Path;

mod container;
mod factors;
mod names;
mod read;
mod sizes;
mod value;
mod vocabulary;
mod write;

pub use container::{Contents, GgufFile};
pub use read::{GgufModel, parse_model};
pub use value::{GgufArray, GgufStrings, GgufValue};
pub use vocabulary::GgufTokenizer;
pub use write::{Writer, stored_as};

/// What the file starts with.
const MAGIC: [u8; 4] = *b"GGUF";

/// Whether a file begins as these do. One that cannot be read does not.
pub(crate) fn begins(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
}

/// Tensors begin at multiples of this where the metadata names nothing else.
const ALIGNMENT: u32 = 32;
/// The metadata key that names something else.
const ALIGNMENT_KEY: &str = "general.alignment";
/// The metadata key of the kind of model.
const ARCHITECTURE_KEY: &str = "general.architecture";
/// The only kind of model here.
const ARCHITECTURE: &str = "llama";
