//! One model in every container that can be read: the same values, the same logits.

use std::path::Path;

use crate::common::{build, config, copy, golden, logits, logits_of, made_up, read_all};
use crate::torch::{TorchTensor, checkpoint};
use llamero_cpu::Cpu;
use llamero_model::gguf::Writer;
use llamero_model::hf::{self, INDEX_FILE, SaveOptions, StopTokens, WEIGHTS_FILE};
use llamero_model::weights::{self, Layout, Weights};
use llamero_model::{Config, ParamSpec, WeightError, interleaved_rows};
use llamero_tensor::{DType, Encoding};
use serde_json::{Value, json};

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 23];

fn tokens() -> StopTokens {
    StopTokens { begin_of_text: Some(20), stop: vec![21, 22] }
}

fn options(encoding: Encoding, shard_bytes: Option<u64>) -> SaveOptions<'static> {
    SaveOptions { encoding, shard_bytes, tokens: None, threads: 2 }
}

/// A Hugging Face folder with made-up weights in one file.
fn saved(config: &Config) -> tempfile::TempDir {
    let backend = Cpu::new(1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    hf::save(dir.path(), &made_up(config, &backend), &backend, &tokens()).unwrap();
    dir
}

/// Meta's name of a part.
fn meta_name(spec: &ParamSpec, part: usize) -> String {
    let name = spec.name.replace("wqkv", ["wq", "wk", "wv"][part]);
    name.replace("w13", ["w1", "w3", ""][part])
}

/// The slices that rank `r` of `n` holds of a model, as Meta's code divides it. `columns` is about the embedding.
fn rank(weights: &dyn Weights, r: usize, n: usize, columns: bool) -> Vec<TorchTensor> {
    let mut tensors = Vec::new();
    for spec in weights.config().params() {
        let cols = spec.shape.cols;
        let mut first = 0;
        for (i, part) in spec.parts.iter().enumerate() {
            let name = meta_name(&spec, i);
            let mut values = weights.values(&spec, first..first + part.rows).unwrap();
            first += part.rows;
            if name.contains("wq") || name.contains("wk") {
                values = interleaved_rows(&values, weights.config().head_dim, cols);
            }
            let by_columns = name.contains(".wo.") || name.contains(".w2.");
            tensors.push(if part.rows == 1 {
                TorchTensor::new(&name, &[cols], &values)
            } else if by_columns || (columns && name.starts_with("tok_embeddings")) {
                let own = cols / n;
                let rows = values.chunks(cols);
                let slice: Vec<f32> = rows.flat_map(|row| row[r * own..(r + 1) * own].to_vec()).collect();
                TorchTensor::new(&name, &[part.rows, own], &slice)
            } else {
                let own = part.rows / n;
                TorchTensor::new(&name, &[own, cols], &values[r * own * cols..(r + 1) * own * cols])
            });
        }
    }
    tensors
}

fn params(config: &Config) -> Value {
    json!({
        "dim": config.dim, "n_layers": config.layers, "n_heads": config.heads, "n_kv_heads": config.kv_heads,
        "vocab_size": -1, "multiple_of": 8, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 500_000.0,
    })
}

/// A Meta folder of `n` ranks with the weights of another folder.
fn meta(from: &Path, n: usize, columns: bool) -> tempfile::TempDir {
    let weights = weights::open(from).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("params.json"), params(weights.config()).to_string()).unwrap();
    for r in 0..n {
        let file = dir.path().join(format!("consolidated.{r:02}.pth"));
        std::fs::write(file, checkpoint(&rank(&*weights, r, n, columns))).unwrap();
    }
    dir
}

/// A Hugging Face folder in shards with the weights of another folder.
fn sharded(from: &Path, encoding: Encoding, bytes: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    hf::save_weights(dir.path(), &*weights::open(from).unwrap(), options(encoding, Some(bytes))).unwrap();
    dir
}

/// A folder with a GGUF file with the weights of another folder.
fn gguf(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let weights = weights::open(from).unwrap();
    Writer::new(&*weights, Encoding::F32, 1).write(&dir.path().join("model.gguf")).unwrap();
    dir
}

#[test]
fn one_model_in_every_container_is_one_set_of_logits() {
    for config in [config(), Config { tied: true, ..config() }] {
        let one = saved(&config);
        let backend = Cpu::new(1).unwrap();
        let direct = logits(&made_up(&config, &backend), &backend, &IDS);
        let values = read_all(one.path()).unwrap();
        let others = [
            sharded(one.path(), Encoding::F32, 2000),
            meta(one.path(), 1, false),
            meta(one.path(), 2, false),
            meta(one.path(), 2, true),
            gguf(one.path()),
        ];
        for other in &others {
            let opened = weights::open(other.path()).unwrap();
            assert_eq!(opened.config(), &config);
            assert_eq!(opened.dtype(), DType::F32);
            assert!(read_all(other.path()).unwrap() == values, "{:?}", Layout::of(other.path()));
            let again = logits_of(other.path(), &IDS);
            assert!(again.iter().zip(&direct).all(|(a, b)| a.to_bits() == b.to_bits()));
            assert!(again.len() == direct.len());
        }
    }
}

#[test]
fn rows_alone_are_those_of_the_whole() {
    let one = saved(&config());
    for folder in [sharded(one.path(), Encoding::F16, 3000), meta(one.path(), 2, true)] {
        let weights = weights::open(folder.path()).unwrap();
        for spec in weights.config().params() {
            let (rows, cols) = (spec.shape.rows, spec.shape.cols);
            let all = weights.values(&spec, 0..rows).unwrap();
            for some in [0..rows.min(3), rows / 3..rows / 2 + 1, rows - 1..rows] {
                let want = &all[some.start * cols..some.end * cols];
                assert_eq!(weights.values(&spec, some.clone()).unwrap(), want, "{} {some:?}", spec.name);
            }
            // What is stored says the same, also after its pages are released.
            weights.release(&spec);
            let runs = weights.stored(&spec).unwrap();
            let stored: Vec<f32> = runs.iter().flat_map(|run| run.decode(cols)).collect();
            assert_eq!(stored, all, "{}", spec.name);
        }
    }
}

#[test]
fn shards_keep_to_their_size_and_say_what_they_hold() {
    let one = saved(&config());
    let most = 3000;
    let dir = sharded(one.path(), Encoding::Bf16, most);
    let index: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join(INDEX_FILE)).unwrap()).unwrap();
    let opened = weights::open(dir.path()).unwrap();
    assert_eq!(index["metadata"]["total_size"], opened.stored_bytes());
    assert_eq!(opened.stored_bytes(), 2 * config().num_params());
    assert_eq!(opened.dtype(), DType::Bf16);
    assert_eq!(opened.stop_tokens(), Some(tokens()));
    let mut sizes = std::collections::BTreeMap::new();
    for tensor in opened.tensors() {
        let name = tensor.file.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(index["weight_map"][&tensor.name], json!(name));
        let (bytes, count) = sizes.entry(name).or_insert((0, 0));
        (*bytes, *count) = (*bytes + tensor.bytes, *count + 1);
    }
    assert!(
        sizes.len() > 3
            && sizes.keys().all(|name| name.ends_with(&format!("-of-{:05}.safetensors", sizes.len())))
    );
    assert!(sizes.values().all(|(bytes, count)| *bytes <= most || *count == 1), "{sizes:?}");
    assert!(!dir.path().join(WEIGHTS_FILE).exists());
}

#[test]
fn a_folder_that_is_written_again_has_the_same_bytes() {
    let one = saved(&config());
    let again = tempfile::tempdir().unwrap();
    let weights = weights::open(one.path()).unwrap();
    hf::save_weights(again.path(), &*weights, options(Encoding::F32, None)).unwrap();
    for file in ["config.json", "generation_config.json", WEIGHTS_FILE] {
        let read = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(file)).unwrap();
        assert!(read(&one) == read(&again), "{file}");
    }
}

#[test]
fn a_value_that_an_encoding_cannot_hold_is_an_error() {
    let backend = Cpu::new(1).unwrap();
    let one = tempfile::tempdir().unwrap();
    let large = build(&config(), &backend, |spec, rows| Ok(vec![1e6; rows.len() * spec.shape.cols]));
    hf::save(one.path(), &large, &backend, &tokens()).unwrap();
    let weights = weights::open(one.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let save = |encoding| hf::save_weights(dir.path(), &*weights, options(encoding, None));
    save(Encoding::Bf16).unwrap();
    let error = save(Encoding::F16).unwrap_err().to_string();
    assert!(["lm_head.weight", "1000000", "F16", "hint"].iter().all(|part| error.contains(part)), "{error}");
    let error = save(Encoding::Q8_0).unwrap_err().to_string();
    assert!(error.contains("Q8_0"), "{error}");
}

#[test]
fn what_other_programs_wrote_gives_their_logits() {
    let json: Value = serde_json::from_str(&std::fs::read_to_string(golden("logits.json")).unwrap()).unwrap();
    let ids: Vec<u32> = serde_json::from_value(json["ids"].clone()).unwrap();
    let expected: Vec<f32> = serde_json::from_value(json["logits"].clone()).unwrap();
    let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let mut all = Vec::new();
    for container in ["hf", "meta", "tiny.gguf"] {
        let found = logits_of(&golden(container), &ids);
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5 * most, "{container}: {worst} of {most}");
        all.push(found);
    }
    assert!(all[0] == all[1], "two containers of one model");
    // GGUF holds the factors of the frequencies in f32, from which ours are computed back.
    assert!(all[2].iter().zip(&all[0]).all(|(a, b)| (a - b).abs() <= 1e-5 * most));
    let hf = weights::open(&golden("hf")).unwrap();
    assert_eq!(hf.stop_tokens(), Some(StopTokens { begin_of_text: Some(1), stop: vec![2, 3] }));
    assert_eq!(hf.dtype(), DType::Bf16);
    assert_eq!(hf.config(), weights::open(&golden("meta")).unwrap().config());
}

#[test]
fn what_is_no_model_is_said() {
    let says = |path: &Path, parts: &[&str]| {
        let error = weights::open(path).err().unwrap();
        assert!(matches!(error, WeightError::NotAModel { .. }), "{error}");
        let error = error.to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let dir = tempfile::tempdir().unwrap();
    says(&dir.path().join("absent"), &["absent", "no such file or folder", "hint"]);
    says(dir.path(), &["no weights", "hint"]);
    std::fs::write(dir.path().join("a.gguf"), "").unwrap();
    std::fs::write(dir.path().join("b.gguf"), "").unwrap();
    says(dir.path(), &["`a.gguf` and `b.gguf`", "name the file"]);
    for (lost, has) in [("params.json", "consolidated.00.pth"), ("consolidated.00.pth", "params.json")] {
        let dir = meta(saved(&config()).path(), 1, false);
        std::fs::remove_file(dir.path().join(lost)).unwrap();
        says(dir.path(), &[&format!("has `{has}`, but no `{lost}`")]);
    }
    let dir = copy(&golden("hf"));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    says(dir.path(), &["has `model.safetensors.index.json`, but no `config.json`"]);
}
