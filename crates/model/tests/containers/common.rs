//! What the tests of several containers share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llamero_autograd::Tape;
use llamero_comm::{Comm, Solo};
use llamero_cpu::Cpu;
use llamero_model::weights::{self, Weights};
use llamero_model::{Config, Input, Llama, ParamSpec, Placement, Recompute, WeightError, initial_values};
use llamero_tensor::{Backend, DType, Segments, Tensor};

/// A folder that the goldens' script wrote.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/containers").join(name)
}

/// Sizes that two ranks can divide.
pub(crate) fn config() -> Config {
    Config {
        dim: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        ffn: 56,
        vocab: 24,
        context: 8192,
        rope_theta: 500_000.0,
        rope_scaling: None,
        norm_eps: 1e-5,
        tied: false,
    }
}

/// A model on the CPU in f32 from whatever gives its values.
pub(crate) fn build(
    config: &Config,
    backend: &Cpu,
    values: impl FnMut(&ParamSpec, std::ops::Range<usize>) -> Result<Vec<f32>, WeightError>,
) -> Llama {
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    Llama::build(config, &Placement::whole(config), (backend, DType::F32), &ranks, values).unwrap()
}

/// A model with made-up weights; norms are not all ones.
pub(crate) fn made_up(config: &Config, backend: &Cpu) -> Llama {
    build(config, backend, |spec, rows| {
        let mut values = initial_values(spec, rows, 3);
        if !spec.decay {
            values.iter_mut().enumerate().for_each(|(i, x)| *x += i as f32 / 64.0);
        }
        Ok(values)
    })
}

/// Logits of every token, `[T, V]`.
pub(crate) fn logits(model: &Llama, backend: &Cpu, ids: &[u32]) -> Vec<f32> {
    let mut tape = Tape::infer(backend);
    let segments = Segments::documents([ids.len()]);
    let hidden: Tensor =
        model.forward(&mut tape, Input::Tokens(ids), &segments, Recompute::Nothing).value().clone();
    backend.download(&backend.linear(&hidden, &model.head().unwrap().value))
}

/// Logits of the model at `path`.
pub(crate) fn logits_of(path: &Path, ids: &[u32]) -> Vec<f32> {
    let backend = Cpu::new(1).unwrap();
    let weights = weights::open(path).unwrap();
    let model = build(weights.config(), &backend, |spec, rows| weights.values(spec, rows));
    logits(&model, &backend, ids)
}

/// Opens a model and reads every value.
pub(crate) fn read_all(path: &Path) -> Result<Vec<Vec<f32>>, WeightError> {
    let weights: Box<dyn Weights> = weights::open(path)?;
    weights.config().params().iter().map(|spec| weights.values(spec, 0..spec.shape.rows)).collect()
}

/// Copies the files of a folder.
pub(crate) fn copy(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in from.read_dir().unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}
