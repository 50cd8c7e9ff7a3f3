//! Hugging Face folders: what is written is read back bit for bit, and everything that can be wrong with a folder is an
//! error that names the file and the tensor.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::sync::Arc;

use llamero_comm::{Comm, Solo};
use llamero_cpu::Cpu;
use llamero_model::hf::{self, CONFIG_FILE, GENERATION_FILE, ModelFolder, StopTokens, WEIGHTS_FILE};
use llamero_model::{Config, Llama, ParamSpec, Placement, RopeScaling, WeightError, Weights, initial_values};
use llamero_tensor::{Backend, DType};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

fn config() -> Config {
    Config {
        dim: 20,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        ffn: 14,
        vocab: 37,
        context: 32,
        rope_theta: 500_000.0,
        rope_scaling: None,
        norm_eps: 1e-5,
        tied: false,
    }
}

fn tokens() -> StopTokens {
    StopTokens { begin_of_text: Some(30), stop: vec![31, 32] }
}

fn build<E: std::fmt::Debug>(
    config: &Config,
    device: (&dyn Backend, DType),
    values: impl FnMut(&ParamSpec, std::ops::Range<usize>) -> Result<Vec<f32>, E>,
) -> Llama {
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    Llama::build(config, &Placement::whole(config), device, &ranks, values).unwrap()
}

/// A folder with a model of made-up weights.
fn saved(config: &Config, dtype: DType) -> (tempfile::TempDir, Llama, Cpu) {
    let backend = Cpu::new(1).unwrap();
    let model = build(config, (&backend, dtype), |s, rows| Ok::<_, WeightError>(initial_values(s, rows, 3)));
    let dir = tempfile::tempdir().unwrap();
    hf::save(dir.path(), &model, &backend, &tokens()).unwrap();
    (dir, model, backend)
}

fn bits(model: &Llama, backend: &dyn Backend) -> Vec<(String, Vec<u32>)> {
    let bits =
        |p: &llamero_autograd::Param| backend.download(&p.value).into_iter().map(f32::to_bits).collect();
    model.params().map(|p| (p.name.clone(), bits(p))).collect()
}

fn scaled() -> Config {
    let scaling =
        RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 16 };
    Config { rope_scaling: Some(scaling), ..config() }
}

#[test]
fn what_is_saved_is_opened_bit_for_bit() {
    for config in [config(), Config { tied: true, ..config() }, scaled()] {
        for dtype in [DType::F32, DType::Bf16] {
            let (dir, model, backend) = saved(&config, dtype);
            let folder = ModelFolder::open(dir.path()).unwrap();
            assert_eq!(*folder.config(), config);
            assert_eq!(folder.dtype(), dtype);
            assert!(folder.stored_bytes() >= config.num_params() * dtype.bytes() as u64);
            let again = build(&config, (&backend, dtype), |spec, rows| folder.values(spec, rows));
            assert!(bits(&again, &backend) == bits(&model, &backend), "{dtype}");
            // And the second folder has the bytes of the first.
            let copy = tempfile::tempdir().unwrap();
            hf::save(copy.path(), &again, &backend, &tokens()).unwrap();
            for file in [CONFIG_FILE, GENERATION_FILE, WEIGHTS_FILE] {
                let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
                assert!(read(dir.path()) == read(copy.path()), "{file}");
            }
        }
    }
}

#[test]
fn files_hold_what_other_programs_expect() {
    let (dir, _, _) = saved(&scaled(), DType::Bf16);
    let read = |file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.path().join(file)).unwrap()).unwrap()
    };
    let json = read(CONFIG_FILE);
    for (key, expected) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("model_type", json!("llama")),
        ("head_dim", json!(6)),
        ("rope_theta", json!(500_000.0)),
        ("torch_dtype", json!("bfloat16")),
        ("bos_token_id", json!(30)),
        ("eos_token_id", json!([31, 32])),
        ("tie_word_embeddings", json!(false)),
    ] {
        assert_eq!(json[key], expected, "{key}");
    }
    assert_eq!(
        json["rope_scaling"],
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16})
    );
    assert_eq!(read(GENERATION_FILE)["eos_token_id"], json!([31, 32]));
    let bytes = std::fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().len(), 3 + 9 * 2);
    let (dir, _, _) = saved(&Config { tied: true, ..config() }, DType::F32);
    let bytes = std::fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 2 + 9 * 2, "a tied table is stored once");
    assert!(file.tensor("lm_head.weight").is_err());
}

/// Rewrites `config.json`.
fn with_config(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join(CONFIG_FILE);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn both_ways_to_write_the_rotary_base_are_read() {
    let (dir, _, _) = saved(&scaled(), DType::F32);
    with_config(dir.path(), |json| {
        let mut rope = json["rope_scaling"].take();
        rope["rope_theta"] = json["rope_theta"].take();
        json.as_object_mut().unwrap().retain(|key, _| !key.starts_with("rope_"));
        json["rope_parameters"] = rope;
    });
    assert_eq!(ModelFolder::open(dir.path()).unwrap().config().clone(), scaled());
    with_config(dir.path(), |json| {
        json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 500_000.0});
    });
    assert_eq!(ModelFolder::open(dir.path()).unwrap().config().clone(), config());
}

#[test]
fn configurations_of_other_models_are_refused_by_name() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 14] = [
        (|j| j["model_type"] = json!("mistral"), "`model_type` is `mistral`"),
        (|j| j["hidden_act"] = json!("gelu"), "silu"),
        (|j| j["attention_bias"] = json!(true), "no biases"),
        (|j| j["mlp_bias"] = json!(true), "no biases"),
        (|j| j["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0}), "`rope_type` is `yarn`"),
        (|j| j["rope_scaling"] = json!({"rope_type": "llama3", "factor": 2.0}), "`low_freq_factor`"),
        (|j| j["rope_scaling"]["factor"] = json!(0.0), "`rope_scaling.factor` is 0"),
        (|j| j["rope_scaling"]["high_freq_factor"] = json!(1.0), "`rope_scaling.high_freq_factor` is 1"),
        (|j| j["num_key_value_heads"] = json!(3), "`kv_heads` is 3"),
        (|j| j["num_attention_heads"] = json!(0), "`heads` is 0"),
        (|j| j["head_dim"] = json!(5), "`head_dim` is 5"),
        (|j| j["vocab_size"] = json!(u64::MAX), "`vocab` is 18446744073709551615"),
        (|j| j["hidden_size"] = json!(-1), "invalid value"),
        (|j| drop(j.as_object_mut().unwrap().remove("intermediate_size")), "`intermediate_size`"),
    ];
    for (change, found) in changes {
        let (dir, _, _) = saved(&scaled(), DType::F32);
        with_config(dir.path(), change);
        let error = ModelFolder::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains(CONFIG_FILE) && error.contains(found), "{error}");
    }
}

#[test]
fn missing_files_are_named() {
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        let (dir, _, _) = saved(&config(), DType::F32);
        std::fs::remove_file(dir.path().join(file)).unwrap();
        let error = ModelFolder::open(dir.path()).err().unwrap();
        assert!(matches!(error, WeightError::Io { .. }) && error.to_string().contains(file), "{error}");
    }
}

/// A tensor of a weight file.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Rewrites `model.safetensors`.
fn with_tensors(dir: &Path, change: impl FnOnce(&mut Vec<Stored>)) {
    let path = dir.join(WEIGHTS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |(name, view): (String, TensorView<'_>)| Stored {
        name,
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    };
    let mut tensors: Vec<Stored> = file.tensors().into_iter().map(stored).collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Opens a folder and reads every value.
fn read_all(dir: &Path) -> Result<Vec<Vec<f32>>, WeightError> {
    let folder = ModelFolder::open(dir)?;
    folder.config().params().iter().map(|spec| folder.values(spec, 0..spec.shape.rows)).collect()
}

#[test]
fn wrong_tensors_are_errors_that_name_file_and_tensor() {
    type Change = fn(&mut Stored);
    let changes: [(Option<Change>, &str); 6] = [
        (None, "is missing"),
        (
            Some(|t| t.shape = vec![t.shape[1], t.shape[0]]),
            "has shape [20, 12], but `config.json` asks for [12, 20]",
        ),
        (Some(|t| t.shape = vec![t.shape[0] * t.shape[1]]), "has shape [240]"),
        (Some(|t| t.dtype = Dtype::I32), "has dtype I32"),
        (Some(|t| t.data[4..8].copy_from_slice(&f32::NAN.to_le_bytes())), "holds NaN at element 1"),
        (
            Some(|t| t.data[8..12].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes())),
            "holds -inf at element 2",
        ),
    ];
    let name = "model.layers.1.self_attn.k_proj.weight";
    for (change, found) in changes {
        let (dir, _, _) = saved(&config(), DType::F32);
        read_all(dir.path()).unwrap();
        with_tensors(dir.path(), |tensors| {
            let at = tensors.iter().position(|t| t.name == name).unwrap();
            match change {
                None => drop(tensors.remove(at)),
                Some(change) => change(&mut tensors[at]),
            }
        });
        let error = read_all(dir.path()).unwrap_err();
        assert!(matches!(error, WeightError::Tensor { .. }), "{error}");
        let error = error.to_string();
        assert!([WEIGHTS_FILE, name, found].iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn tensors_that_change_nothing_are_no_hindrance() {
    let (dir, _, _) = saved(&config(), DType::F32);
    let before = read_all(dir.path()).unwrap();
    with_tensors(dir.path(), |tensors| {
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
        tensors.push(Stored { name, dtype: Dtype::I64, shape: vec![1], data: vec![0; 8] });
    });
    assert_eq!(read_all(dir.path()).unwrap(), before);
}

#[test]
fn tensors_that_have_no_place_are_refused_by_name() {
    let refused = |dir: &Path, name: &str, says: &str| {
        let error = ModelFolder::open(dir).err().unwrap().to_string();
        assert!([WEIGHTS_FILE, name, says].iter().all(|part| error.contains(part)), "{error}");
    };
    for name in ["model.layers.1.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight", "extra"] {
        let (dir, _, _) = saved(&config(), DType::F32);
        with_tensors(dir.path(), |tensors| {
            tensors.push(Stored { name: name.into(), dtype: Dtype::F32, shape: vec![1], data: vec![0; 4] });
        });
        refused(dir.path(), name, "is not part of a Llama");
    }
    // A tied model may hold its table twice, if it is the same.
    let (dir, _, _) = saved(&Config { tied: true, ..config() }, DType::F32);
    with_tensors(dir.path(), |tensors| {
        let table = tensors.iter().find(|t| t.name == "model.embed_tokens.weight").unwrap();
        let (dtype, shape, data) = (table.dtype, table.shape.clone(), table.data.clone());
        tensors.push(Stored { name: "lm_head.weight".into(), dtype, shape, data });
    });
    read_all(dir.path()).unwrap();
    with_tensors(dir.path(), |tensors| {
        tensors.iter_mut().find(|t| t.name == "lm_head.weight").unwrap().data[0] ^= 1;
    });
    refused(dir.path(), "lm_head.weight", "`tie_word_embeddings`");
}

#[test]
fn half_precision_is_read_exactly() {
    let (dir, _, _) = saved(&config(), DType::F32);
    let name = "model.norm.weight";
    let values: Vec<half::f16> = (0..20).map(|i| half::f16::from_f32(i as f32 / 7.0)).collect();
    with_tensors(dir.path(), |tensors| {
        let norm = tensors.iter_mut().find(|t| t.name == name).unwrap();
        norm.dtype = Dtype::F16;
        norm.data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    });
    let read = read_all(dir.path()).unwrap();
    let norm = config().params().iter().position(|s| s.name == "norm.weight").unwrap();
    assert_eq!(read[norm], values.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
}

#[test]
fn cut_files_are_errors_at_every_length() {
    let (dir, _, _) = saved(&config(), DType::Bf16);
    for file in [WEIGHTS_FILE, CONFIG_FILE] {
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        let step = (whole.len() / 97).max(1);
        // The last byte of `config.json` is the end of its line.
        for length in (0..whole.len() - 1).step_by(step) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = read_all(dir.path()).unwrap_err().to_string();
            assert!(error.contains(file), "{length} bytes: {error}");
        }
        std::fs::write(&path, &whole).unwrap();
    }
    read_all(dir.path()).unwrap();
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error() {
    let (_, model, backend) = saved(&config(), DType::F32);
    let dir = tempfile::tempdir().unwrap();
    let error = hf::save(&dir.path().join("absent"), &model, &backend, &tokens()).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
    std::fs::create_dir(dir.path().join(WEIGHTS_FILE)).unwrap();
    let error = hf::save(dir.path(), &model, &backend, &tokens()).unwrap_err();
    assert!(matches!(error, WeightError::Io { .. }) && error.to_string().contains(WEIGHTS_FILE), "{error}");
}

/// Bytes that overwrite a valid file at some places.
fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), weights in any::<bool>()) {
        let (dir, _, _) = saved(&config(), DType::Bf16);
        std::fs::write(dir.path().join(if weights { WEIGHTS_FILE } else { CONFIG_FILE }), bytes).unwrap();
        prop_assert!(read_all(dir.path()).is_err());
    }

    #[test]
    fn damaged_files_are_read_without_a_panic(edits in edits(), weights in any::<bool>()) {
        let (dir, _, _) = saved(&config(), DType::Bf16);
        let path = dir.path().join(if weights { WEIGHTS_FILE } else { CONFIG_FILE });
        let mut bytes = std::fs::read(&path).unwrap();
        // The header is where damage does most; the values take any bytes that are finite numbers.
        let reach = bytes.len().min(3000);
        for (at, byte) in edits {
            bytes[at.index(reach)] = byte;
        }
        std::fs::write(&path, &bytes).unwrap();
        match read_all(dir.path()) {
            Ok(values) => prop_assert!(values.iter().flatten().all(|x| x.is_finite())),
            // A configuration of other sizes is noticed at the weights.
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.contains(WEIGHTS_FILE) || !weights && error.contains(CONFIG_FILE), "{error}");
            }
        }
    }
}
