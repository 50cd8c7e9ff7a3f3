//! Hugging Face folders of several shards, and what other programs write into the configuration.

use std::path::Path;

use llamero_model::hf::{CONFIG_FILE, GENERATION_FILE, INDEX_FILE, parse_index};
use llamero_model::{RopeScaling, StopTokens, weights};
use proptest::prelude::*;
use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::common::{copy, golden, read_all};

fn refused(path: &Path, parts: &[&str]) {
    let error = read_all(path).unwrap_err().to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} are not all in: {error}");
}

fn with_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// Writes the tensors of a shard again under other names; `None` leaves one out.
fn renamed(path: &Path, name: impl Fn(&str) -> Option<String>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let views: Vec<(String, TensorView<'_>)> =
        file.tensors().into_iter().filter_map(|(old, view)| Some((name(&old)?, view))).collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

const FIRST: &str = "model-00001-of-00005.safetensors";
const LAST: &str = "model-00005-of-00005.safetensors";
const TABLE: &str = "model.embed_tokens.weight";

#[test]
fn shards_and_index_that_do_not_agree_are_refused() {
    let dir = copy(&golden("hf"));
    let (first, index) = (dir.path().join(FIRST), dir.path().join(INDEX_FILE));
    // A tensor in another shard than the index says.
    with_json(&index, |json| json["weight_map"][TABLE] = json!(LAST));
    refused(dir.path(), &[FIRST, TABLE, "is in this file, but", LAST]);
    // One that the index does not know.
    with_json(&index, |json| drop(json["weight_map"].as_object_mut().unwrap().remove(TABLE)));
    refused(dir.path(), &[FIRST, TABLE, "is not in the `weight_map`"]);
    // One that no shard has.
    let dir = copy(&golden("hf"));
    renamed(&dir.path().join(FIRST), |name| (name != TABLE).then(|| name.to_owned()));
    refused(dir.path(), &[FIRST, TABLE, "is missing, but `model.safetensors.index.json` says it is here"]);
    // One in two shards.
    let dir = copy(&golden("hf"));
    renamed(&dir.path().join(LAST), |name| {
        Some(if name == "model.norm.weight" { TABLE.into() } else { name.to_owned() })
    });
    refused(dir.path(), &[LAST, TABLE, "is in this file, but", FIRST]);
    // One that neither has, so that it is not the index that notices.
    let dir = copy(&golden("hf"));
    renamed(&dir.path().join(FIRST), |name| (name != TABLE).then(|| name.to_owned()));
    with_json(&dir.path().join(INDEX_FILE), |json| {
        json["weight_map"].as_object_mut().unwrap().remove(TABLE);
    });
    refused(dir.path(), &[INDEX_FILE, TABLE, "is missing"]);
    // A shard that is not there.
    std::fs::remove_file(first).unwrap();
    let dir = copy(&golden("hf"));
    std::fs::remove_file(dir.path().join(LAST)).unwrap();
    refused(dir.path(), &[INDEX_FILE, LAST, "not there", "hint"]);
}

#[test]
fn an_index_stays_in_its_folder() {
    for file in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "a/"] {
        let dir = copy(&golden("hf"));
        with_json(&dir.path().join(INDEX_FILE), |json| json["weight_map"][TABLE] = json!(file));
        refused(dir.path(), &[INDEX_FILE, TABLE, "a shard is a file of the same folder"]);
    }
    let twice = r#"{"weight_map": {"a": "x.safetensors", "b": "x.safetensors", "a": "y.safetensors"}}"#;
    assert!(
        parse_index(twice).unwrap_err().contains("lists tensor `a` twice, the first time in `x.safetensors`")
    );
    assert!(parse_index(r#"{"weight_map": {}}"#).unwrap_err().contains("names no tensor"));
    assert!(
        parse_index(r#"{"weight_map": []}"#)
            .unwrap_err()
            .contains("an object that gives each tensor its file")
    );
    assert!(parse_index("{}").unwrap_err().contains("weight_map"));
}

#[test]
fn scaling_is_read_by_all_its_names() {
    let expected =
        RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    for key in [&["rope_type"][..], &["type"], &["rope_type", "type"]] {
        let dir = copy(&golden("hf"));
        with_json(&dir.path().join(CONFIG_FILE), |json| {
            let mut rope = json["rope_parameters"].take();
            json["rope_theta"] = rope["rope_theta"].take();
            let kind = rope["rope_type"].take();
            let fields = rope.as_object_mut().unwrap();
            fields.retain(|_, value| !value.is_null());
            key.iter().for_each(|key| drop(fields.insert((*key).into(), kind.clone())));
            json["rope_scaling"] = rope;
        });
        let opened = weights::open(dir.path()).unwrap();
        assert_eq!(opened.config().rope_scaling, Some(expected), "{key:?}");
        assert_eq!(opened.config().rope_theta, 500_000.0);
    }
    let dir = copy(&golden("hf"));
    with_json(&dir.path().join(CONFIG_FILE), |json| {
        json["rope_parameters"] = Value::Null;
        json["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
    });
    refused(dir.path(), &[CONFIG_FILE, "`rope_type` is `dynamic`"]);
}

#[test]
fn other_architectures_are_refused_by_name() {
    for (key, value, found) in [
        ("model_type", json!("qwen2"), "`model_type` is `qwen2`; only models of the Llama family"),
        ("model_type", json!(7), "`model_type` is `7`"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "`LlamaForSequenceClassification`"),
    ] {
        let dir = copy(&golden("hf"));
        with_json(&dir.path().join(CONFIG_FILE), |json| json[key] = value);
        refused(dir.path(), &[CONFIG_FILE, found]);
    }
    // Without the sizes that a Llama has, it is still the name that is told.
    let dir = copy(&golden("hf"));
    std::fs::write(dir.path().join(CONFIG_FILE), r#"{"model_type": "gpt2", "n_embd": 768}"#).unwrap();
    refused(dir.path(), &["`gpt2`"]);
}

#[test]
fn stop_tokens_are_read_where_they_are() {
    let dir = copy(&golden("hf"));
    let stop = || weights::open(dir.path()).map(|w| w.stop_tokens());
    let tokens = |begin_of_text, stop: &[u32]| Some(StopTokens { begin_of_text, stop: stop.into() });
    with_json(&dir.path().join(GENERATION_FILE), |json| {
        (json["bos_token_id"], json["eos_token_id"]) = (json!(9), json!(8));
    });
    assert_eq!(stop().unwrap(), tokens(Some(9), &[8]));
    with_json(&dir.path().join(GENERATION_FILE), |json| json["eos_token_id"] = json!(64));
    let error = stop().err().unwrap().to_string();
    assert!(error.contains(GENERATION_FILE) && error.contains("`eos_token_id` is 64"), "{error}");
    std::fs::remove_file(dir.path().join(GENERATION_FILE)).unwrap();
    assert_eq!(stop().unwrap(), tokens(Some(1), &[2, 3]));
    with_json(&dir.path().join(CONFIG_FILE), |json| {
        (json["bos_token_id"], json["eos_token_id"]) = (Value::Null, json!(5));
    });
    assert_eq!(stop().unwrap(), tokens(None, &[5]));
    with_json(&dir.path().join(CONFIG_FILE), |json| json["eos_token_id"] = Value::Null);
    assert_eq!(stop().unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_index_is_read_without_a_panic(text in "\\PC{0,80}") {
        prop_assert!(parse_index(&text).is_err());
    }

    #[test]
    fn damaged_shards_are_read_without_a_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), file in 0..3usize
    ) {
        let dir = copy(&golden("hf"));
        let path = dir.path().join([INDEX_FILE, FIRST, CONFIG_FILE][file]);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        std::fs::write(&path, &bytes).unwrap();
        match read_all(dir.path()) {
            Ok(values) => prop_assert!(values.iter().flatten().all(|x| x.is_finite())),
            Err(error) => prop_assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}"),
        }
    }
}
