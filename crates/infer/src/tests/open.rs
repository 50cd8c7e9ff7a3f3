//! Paths that users give.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llamero_artifact::{ArtifactError, Begin, InputRef, Outcome, RunDir, StageKey};
use llamero_model::hf::{self, SaveOptions, StopTokens};
use llamero_model::{Config, weights};
use llamero_tensor::testing::Oracle;
use llamero_tensor::{Backend, DType, Encoding};

use super::{backend, bits, config, engine, ids, model};
use crate::testing::byte_tokenizer;
use crate::{Engine, InferError, SamplingParams, open_tokenizer, resolve_model};

fn save_model(dir: &Path, config: &Config, seed: u64) {
    save_model_as(dir, config, seed, DType::F32);
}

fn save_model_as(dir: &Path, config: &Config, seed: u64, dtype: DType) {
    let backend = backend();
    let tokenizer = byte_tokenizer();
    let special = tokenizer.special();
    let tokens =
        StopTokens { begin_of_text: special.begin_of_text, stop: vec![special.end_of_text, special.eot] };
    hf::save(dir, &model(config, &*backend, dtype, seed), &*backend, &tokens).unwrap();
    tokenizer.save_model(dir.join("tokenizer.model")).unwrap();
}

fn begin(run: &Path, stage: &str, recipe: u32, inputs: Vec<InputRef>) -> Begin {
    let recipe = serde_json::json!({ "n": recipe });
    let key = StageKey { kind: stage.into(), schema: 1, recipe, inputs };
    RunDir::create(run).unwrap().begin(stage, &key).unwrap()
}

/// A finished stage that holds a model; returns itself as an input.
fn stage(run: &Path, name: &str, seed: u32, inputs: Vec<InputRef>) -> InputRef {
    let Begin::Work(draft) = begin(run, name, seed, inputs) else { panic!("`{name}` is there already") };
    save_model(draft.path(), &config(), u64::from(seed));
    draft.finish(Outcome::default()).unwrap().as_input("model")
}

fn error(path: &Path) -> InferError {
    match Engine::open(path, backend(), DType::F32) {
        Ok(_) => panic!("`{}` was opened", path.display()),
        Err(error) => error,
    }
}

fn says(path: &Path, parts: &[&str]) {
    let text = error(path).to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("run");
    (tmp, path)
}

#[test]
fn an_exported_folder_is_opened_and_gives_the_same_bits() {
    let tmp = tempfile::tempdir().unwrap();
    save_model(tmp.path(), &config(), 1);
    let opened = Engine::open(tmp.path(), backend(), DType::F32).unwrap();
    assert_eq!(opened.config(), &config());
    let tokens = ids(4, 50);
    assert_eq!(bits(&opened.score_tokens(&tokens).unwrap()), bits(&engine().score_tokens(&tokens).unwrap()));

    // The other format of the tokenizer does as well.
    std::fs::remove_file(tmp.path().join("tokenizer.model")).unwrap();
    byte_tokenizer().save_hf(tmp.path()).unwrap();
    let bf16 = Engine::open(tmp.path(), backend(), DType::Bf16).unwrap();
    let (a, b) = (bf16.score_text("Hello").unwrap(), opened.score_text("Hello").unwrap());
    assert!(a.nll != b.nll && (a.nll - b.nll).abs() < 0.05 * b.nll, "{a:?} {b:?}");
}

#[test]
fn a_model_from_files_has_the_bits_of_the_one_that_was_saved_on_every_backend() {
    for tied in [false, true] {
        let config = Config { tied, ..config() };
        let tmp = tempfile::tempdir().unwrap();
        save_model(tmp.path(), &config, 1);
        let backends: [Arc<dyn Backend>; 2] = [backend(), Arc::new(Oracle::rounding())];
        for backend in backends {
            let direct = model(&config, &*backend, DType::F32, 1);
            let direct = Engine::new(direct, byte_tokenizer(), Arc::clone(&backend)).unwrap();
            let opened = Engine::open(tmp.path(), backend, None).unwrap();
            let score = |engine: &Engine| bits(&engine.score_tokens(&ids(4, 30)).unwrap());
            assert_eq!(score(&opened), score(&direct), "{}", opened.backend().name());
        }
    }
}

#[test]
fn a_folder_of_shards_gives_the_same_bits() {
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save_model(one.path(), &config(), 1);
    let options = SaveOptions { encoding: Encoding::F32, shard_bytes: Some(5000), tokens: None, threads: 1 };
    hf::save_weights(many.path(), &*weights::open(one.path()).unwrap(), options).unwrap();
    byte_tokenizer().save_hf(many.path()).unwrap();
    assert!(!many.path().join("model.safetensors").exists());
    assert_eq!(resolve_model(many.path()).unwrap(), many.path());
    let engines = [&one, &many].map(|dir| Engine::open(dir.path(), backend(), None).unwrap());
    let [a, b] = engines.each_ref().map(|engine| bits(&engine.score_tokens(&ids(4, 50)).unwrap()));
    assert_eq!(a, b);
    assert_eq!(engines[0].stop_tokens(), engines[1].stop_tokens());
}

#[test]
fn ranks_beside_metas_weights_have_the_names_of_their_release() {
    let tmp = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(tmp.path().join(name), text).unwrap();
    byte_tokenizer().save_model(tmp.path().join("tokenizer.model")).unwrap();
    write("consolidated.00.pth", "");
    for (params, eom) in [
        ("{}", None),
        (r#"{"use_scaled_rope": false}"#, None),
        (r#"{"use_scaled_rope": true}"#, Some(256 + 8)),
        (r#"{"model": {"use_scaled_rope": true}}"#, Some(256 + 8)),
    ] {
        write("params.json", params);
        let tokenizer = open_tokenizer(tmp.path()).unwrap();
        let special = tokenizer.special();
        assert_eq!(special.id("<|eom_id|>"), eom, "{params}");
        assert_eq!(special.id("<|python_tag|>"), eom.map(|id| id + 2));
        assert_eq!(special.ends().len(), if eom.is_some() { 3 } else { 2 });
    }
    // What says the names itself is believed.
    byte_tokenizer().save_hf(tmp.path()).unwrap();
    assert_eq!(open_tokenizer(tmp.path()).unwrap().special().id("<|eom_id|>"), None);
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    let tmp = tempfile::tempdir().unwrap();
    save_model(tmp.path(), &config(), 1);
    let path = tmp.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last value of the last tensor by name.
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    says(tmp.path(), &["model.safetensors", "`model.norm.weight` holds NaN at element 15"]);
}

#[test]
fn a_model_computes_in_the_dtype_it_is_stored_in() {
    for dtype in [DType::F32, DType::Bf16] {
        let tmp = tempfile::tempdir().unwrap();
        save_model_as(tmp.path(), &config(), 1, dtype);
        let score = |asked: Option<DType>| {
            let engine = Engine::open(tmp.path(), backend(), asked).unwrap();
            bits(&engine.score_tokens(&ids(4, 50)).unwrap())
        };
        let other = if dtype == DType::F32 { DType::Bf16 } else { DType::F32 };
        assert_eq!(score(None), score(Some(dtype)));
        assert_ne!(score(None), score(Some(other)));
    }
}

#[test]
fn a_run_gives_its_latest_finished_model() {
    let (_tmp, run) = temporary();
    let pretrain = stage(&run, "pretrain", 1, vec![]);
    assert_eq!(resolve_model(&run).unwrap(), run.join("pretrain"));
    let Begin::Work(draft) = begin(&run, "sft", 2, vec![pretrain.clone()]) else { panic!() };
    std::fs::write(draft.path().join("half"), "x").unwrap();
    drop(draft);
    assert_eq!(resolve_model(&run).unwrap(), run.join("pretrain"));
    stage(&run, "sft", 2, vec![pretrain]);
    assert_eq!(resolve_model(&run).unwrap(), run.join("sft"));
    assert_eq!(resolve_model(&run.join("pretrain")).unwrap(), run.join("pretrain"));
    Engine::open(&run, backend(), DType::F32).unwrap();

    // Another pre-training makes the fine-tuned model one of nobody knows what.
    stage(&run, "pretrain", 3, vec![]);
    assert!(matches!(error(&run), InferError::Stale { .. }));
    says(&run, &["`sft` was not made from the `pretrain`", "run the recipe again"]);
    Engine::open(&run.join("sft"), backend(), DType::F32).unwrap();
}

#[test]
fn what_is_no_model_is_said() {
    let (tmp, run) = temporary();
    says(&run, &["no model at", "there is no such file or folder", "hint"]);
    let file = tmp.path().join("model.safetensors");
    std::fs::write(&file, "x").unwrap();
    says(&file, &["it is a file", "name the folder"]);
    says(tmp.path(), &["has `model.safetensors`, but no `config.json`"]);
    let empty = tempfile::tempdir().unwrap();
    says(empty.path(), &["neither `config.json` nor a finished stage `sft` or `pretrain`"]);

    let Begin::Work(draft) = begin(&run, "tokens", 1, vec![]) else { panic!() };
    std::fs::write(draft.path().join("a.bin"), "x").unwrap();
    draft.finish(Outcome::default()).unwrap();
    says(&run.join("tokens"), &["artifact of kind `tokens`", "`sft`, `pretrain`"]);
}

#[test]
fn an_unfinished_model_is_never_opened() {
    let (_tmp, run) = temporary();
    let Begin::Work(draft) = begin(&run, "pretrain", 1, vec![]) else { panic!() };
    // All there, and still nobody said that it is finished.
    save_model(draft.path(), &config(), 1);
    drop(draft);
    for path in [run.clone(), run.join("pretrain"), run.join("pretrain.partial")] {
        assert!(
            matches!(error(&path), InferError::Artifact(ArtifactError::Unfinished { .. })),
            "{}",
            path.display()
        );
        says(&path, &["is unfinished", "run the same recipe again"]);
    }
}

#[test]
fn one_flipped_byte_of_any_file_is_found() {
    let (_tmp, run) = temporary();
    stage(&run, "pretrain", 1, vec![]);
    let dir = run.join("pretrain");
    for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.model"] {
        let path = dir.join(name);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        says(&run, &[name, "is damaged"]);
        std::fs::write(&path, &damaged[1..]).unwrap();
        says(&dir, &[name, "bytes, expected"]);
        std::fs::remove_file(&path).unwrap();
        says(&dir, &[name, "is missing"]);
        std::fs::write(&path, whole).unwrap();
    }
    Engine::open(&run, backend(), DType::F32).unwrap();
}

#[test]
fn a_folder_with_parts_missing_or_foreign_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    for vocab in [511, 512 + 1024] {
        save_model(tmp.path(), &Config { vocab, ..config() }, 1);
        assert!(
            matches!(error(tmp.path()), InferError::Vocabulary { model, tokenizer: 512 } if model == vocab)
        );
    }
    std::fs::remove_file(tmp.path().join("tokenizer.model")).unwrap();
    says(tmp.path(), &["neither `tokenizer.model` nor `tokenizer.json`"]);
    let tmp = tempfile::tempdir().unwrap();
    save_model(tmp.path(), &config(), 1);
    std::fs::write(tmp.path().join("model.safetensors"), "not that").unwrap();
    says(tmp.path(), &["model.safetensors", "not a readable safetensors file"]);
    std::fs::remove_file(tmp.path().join("model.safetensors")).unwrap();
    says(tmp.path(), &["has `config.json`, but no `model.safetensors`"]);
}

/// Released models have rows that no token belongs to.
#[test]
fn rows_beyond_the_tokenizers_tokens_are_never_drawn() {
    let mut model = model(&Config { vocab: 520, tied: false, ..config() }, &*backend(), DType::F32, 1);
    // The last row has by far the largest logits, of either sign.
    let output = model.output.as_mut().unwrap();
    let mut values = backend().download(&output.value);
    let cols = output.value.cols();
    values[519 * cols..].fill(100.0);
    values[518 * cols..519 * cols].fill(-100.0);
    output.value = backend().upload(&values, output.value.shape(), DType::F32);
    let engine = Engine::new(model, byte_tokenizer(), backend()).unwrap();
    for temperature in [0.0, 5.0] {
        let params = SamplingParams { temperature, ..SamplingParams::greedy(20) };
        let answer = engine.generate(&[1, 2, 3], &params, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(answer.ids.len() == 20 && answer.ids.iter().all(|id| *id < 512), "{:?}", answer.ids);
    }
}
