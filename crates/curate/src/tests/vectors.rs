//! Semantic duplicates in the whole pipeline: by a model that is a fake, and by vectors that somebody brings.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, Float64Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde_json::json;
use tempfile::TempDir;

use crate::encoder::{Embed, Encoder, model_hash};
use crate::{
    CurateConfig, CurateError, DROPPED_FILE, DroppedRecord, RunOptions, curate_by, inventory, registry,
    source,
};

/// Counts of letters; nothing of a text without any.
struct Letters;

impl Embed for Letters {
    fn embed(&self, text: &str) -> Result<Option<Vec<f32>>, CurateError> {
        let mut counts = vec![0.0; 26];
        text.bytes().filter(u8::is_ascii_lowercase).for_each(|byte| counts[usize::from(byte - b'a')] += 1.0);
        Ok(counts.iter().any(|&count| count > 0.0).then_some(counts))
    }
}

const TEXTS: [(&str, &str); 6] = [
    ("a", "aaaa bbbb"),
    ("b", "bbbb aaaa"),
    ("c", "cccc dddd"),
    ("d", "cccc dddd d"),
    ("e", "1234 5678"),
    ("f", "5678 9012"),
];

/// A folder with documents and a model's file.
fn folder() -> TempDir {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("docs.jsonl"), TEXTS.iter().map(line).collect::<String>()).unwrap();
    fs::write(root.path().join("model.gguf"), "letters").unwrap();
    root
}

fn line((id, text): &(&str, &str)) -> String {
    format!("{}\n", json!({"id": id, "url": format!("https://{id}.example/"), "text": text}))
}

/// The id that the document of this id has in a corpus came with.
fn own(id: &str) -> String {
    let mut at = 0;
    for text in &TEXTS {
        if id == format!("docs.jsonl#{at}") {
            return text.0.to_owned();
        }
        at += line(text).len();
    }
    panic!("no document `{id}`")
}

fn config(root: &Path, semantic: serde_json::Value) -> CurateConfig {
    serde_json::from_value(json!({
        "sources": [root.join("docs.jsonl")], "read": {}, "min_characters": 0, "min_letter_share": 0.0,
        "semantic": semantic,
    }))
    .unwrap()
}

/// Pairs of what was dropped as a semantic duplicate and what is kept in its place.
fn run(config: &CurateConfig, partitions: u32, threads: usize) -> Result<Vec<(String, String)>, CurateError> {
    let out = TempDir::new().unwrap();
    let mut registry = registry();
    registry.encoders(|encoder: &Encoder| {
        encoder.check(&model_hash(&encoder.model)?)?;
        Ok(Arc::new(Letters))
    });
    let options = RunOptions { partitions: Some(partitions), threads, ..RunOptions::default() };
    curate_by(config, &inventory(config, &())?, &registry, out.path(), &options, &())?;
    let text = fs::read_to_string(out.path().join(DROPPED_FILE)).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<DroppedRecord>(line).unwrap());
    Ok(records
        .map(|record| {
            assert_eq!(record.reason, "semantic_duplicate", "{record:?}");
            (own(&record.id), own(&record.survivor.unwrap()))
        })
        .collect())
}

fn fails(config: &CurateConfig, parts: &[&str]) {
    let error = run(config, 1, 1).unwrap_err().to_string();
    parts.iter().for_each(|part| assert!(error.contains(part), "`{part}` is not in: {error}"));
}

#[test]
fn a_model_finds_what_means_the_same() {
    let root = folder();
    let config = config(root.path(), json!({"model": root.path().join("model.gguf"), "threshold": 0.98}));
    let found = run(&config, 1, 1).unwrap();
    // Equal vectors: the first id stays. Those without a vector are nobody's duplicates.
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.contains(&("b".to_owned(), "a".to_owned())), "{found:?}");
    for (partitions, threads) in [(2, 1), (7, 2), (1, 2)] {
        assert_eq!(run(&config, partitions, threads).unwrap(), found);
    }
}

#[test]
fn the_model_decides_what_a_run_is() {
    let root = folder();
    let model = root.path().join("model.gguf");
    let mut config = config(root.path(), json!({"model": model}));
    let before = inventory(&config, &()).unwrap();
    let pinned = config.pinned(&before).unwrap().semantic.unwrap();
    assert_eq!(pinned.model_hash.as_ref(), before.side_files.get("semantic.model"));
    fs::write(&model, "Letters").unwrap();
    let after = inventory(&config, &()).unwrap();
    assert_ne!(source(&config, &before).unwrap(), source(&config, &after).unwrap());
    config.semantic = Some(pinned.clone());
    fails(&config, &["model.gguf", "model_hash", &pinned.model_hash.unwrap()]);
    fs::remove_file(&model).unwrap();
    fails(&config, &["model.gguf", "curate.semantic.model"]);
}

#[test]
fn a_folder_is_what_it_computes() {
    let root = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
    let error = model_hash(root.path()).unwrap_err().to_string();
    assert!(error.contains("no weights"), "{error}");
    write("model.safetensors", "weights");
    write("config.json", "{}");
    let hash = model_hash(root.path()).unwrap();
    write("README.md", "words");
    assert_eq!(model_hash(root.path()).unwrap(), hash);
    write("tokenizer.json", "{}");
    let with_tokenizer = model_hash(root.path()).unwrap();
    assert_ne!(with_tokenizer, hash);
    write("model.safetensors", "Weights");
    assert_ne!(model_hash(root.path()).unwrap(), with_tokenizer);
}

/// Writes vectors of one kind of list.
fn vectors(path: &Path, key: &str, rows: &[(&str, &[f32])], fixed: bool) {
    let keys: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| *key)));
    let lists: ArrayRef = if fixed {
        let mut builder = FixedSizeListBuilder::new(Float32Builder::new(), 2);
        for (_, vector) in rows {
            builder.values().append_slice(vector);
            builder.append(true);
        }
        Arc::new(builder.finish())
    } else {
        let mut builder = ListBuilder::new(Float64Builder::new());
        for (_, vector) in rows {
            vector.iter().for_each(|&value| builder.values().append_value(f64::from(value)));
            builder.append(true);
        }
        Arc::new(builder.finish())
    };
    let batch = RecordBatch::try_from_iter([(key, keys), ("vector", lists)]).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn vectors_can_be_brought() {
    let root = folder();
    let file = root.path().join("vectors.parquet");
    let config = config(root.path(), json!({"embeddings": file, "threshold": 0.98}));
    let near: [&[f32]; 6] =
        [&[1.0, 0.0], &[0.0, 1.0], &[-1.0, 0.0], &[0.0, -1.0], &[2.0, 0.01], &[0.0, -3.0]];
    let names = ["a", "b", "c", "d", "e", "f"];
    let urls = names.map(|name| format!("https://{name}.example/"));
    let by_id: Vec<(&str, &[f32])> = names.into_iter().zip(near).collect();
    let by_url: Vec<(&str, &[f32])> = urls.iter().map(String::as_str).zip(near).collect();
    for (key, rows, fixed) in [("id", &by_id, true), ("url", &by_url, false)] {
        vectors(&file, key, rows, fixed);
        let mut found = run(&config, 2, 2).unwrap();
        found.iter_mut().for_each(|pair| {
            if pair.0 < pair.1 {
                std::mem::swap(&mut pair.0, &mut pair.1)
            }
        });
        found.sort();
        let pairs = [("e", "a"), ("f", "d")].map(|(one, other)| (one.to_owned(), other.to_owned()));
        assert_eq!(found, pairs, "{key}");
    }
    vectors(&file, "id", &by_id[..5], true);
    fails(&config, &["vectors.parquet", "`f`", "curate.semantic.model"]);
    vectors(&file, "id", &[by_id[0], by_id[0]], true);
    fails(&config, &["vectors.parquet", "row 1", "`a`", "twice"]);
    vectors(&file, "id", &[by_id[0], ("b", &[1.0, 2.0, 3.0])], false);
    fails(&config, &["vectors.parquet", "row 1", "`b`", "3 numbers"]);
    vectors(&file, "id", &[("a", &[f32::NAN, 1.0])], true);
    fails(&config, &["row 0", "NaN"]);
    vectors(&file, "name", &by_id, true);
    fails(&config, &["vectors.parquet", "`id` or `url`", "name, vector"]);
}

#[test]
fn what_all_vectors_share_can_be_taken_away() {
    let root = folder();
    let file = root.path().join("vectors.parquet");
    let rows: [(&str, &[f32]); 6] = [
        ("a", &[100.0, 1.0]),
        ("b", &[100.0, 1.1]),
        ("c", &[100.0, -1.0]),
        ("d", &[100.0, -1.1]),
        ("e", &[99.0, 0.0]),
        ("f", &[101.0, 0.0]),
    ];
    vectors(&file, "id", &rows, true);
    let dropped = |center: bool| {
        let config = config(
            root.path(),
            json!({"embeddings": file, "threshold": 0.9, "clusters": 2, "center": center}),
        );
        let found = run(&config, 1, 1).unwrap();
        assert_eq!(run(&config, 7, 2).unwrap(), found);
        found
            .into_iter()
            .map(|(one, other)| if one < other { (one, other) } else { (other, one) })
            .collect::<Vec<_>>()
    };
    assert_eq!(dropped(false).len(), 5, "one is left");
    let centred = dropped(true);
    for pair in [("a", "b"), ("c", "d")] {
        assert!(centred.contains(&(pair.0.to_owned(), pair.1.to_owned())), "{centred:?}");
    }
    assert!(
        !centred.iter().any(|(one, other)| one.as_str() < "c" && (other == "c" || other == "d")),
        "{centred:?}"
    );
}

#[test]
fn settings_that_cannot_work_are_named() {
    let root = folder();
    let model = root.path().join("model.gguf");
    for (semantic, parts) in [
        (json!({}), ["curate.semantic.model", "absent"]),
        (json!({"model": model, "embeddings": model}), ["curate.semantic.embeddings", "absent where"]),
        (json!({"model": model, "window": 0}), ["window", "1 or more"]),
        (json!({"model": model, "max_tokens": 0}), ["max_tokens", "1 or more"]),
        (json!({"model": model, "threshold": 1.5}), ["curate.semantic.threshold", "1.5"]),
        (json!({"model": model, "clusters": 0}), ["curate.semantic.clusters", "0"]),
        (json!({"embeddings": model}), ["model.gguf", "Parquet"]),
    ] {
        fails(&config(root.path(), semantic), &parts);
    }
}
