//! Models in other formats: they say the same, and nothing is overwritten unasked.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::world::{arg, command, copy_dir, llamero, names, shared, write};

fn answer(model: &Path) -> Value {
    let args = ["--prompt", "The crate demo3", "--max-tokens", "12", "--temperature", "0", "--json"];
    let mut said = llamero(["generate", arg(model)].into_iter().chain(args)).json();
    let said = said.as_object_mut().unwrap();
    said.retain(|key, _| key != "timing" && key != "model");
    Value::Object(std::mem::take(said))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_model_says_the_same_in_every_format() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let [gguf, folder, again] = ["a.gguf", "folder", "b.gguf"].map(|name| tmp.path().join(name));
    assert_eq!(llamero(["convert", arg(&shared.run), arg(&gguf)]).ok().trim(), arg(&gguf));
    llamero(["convert", arg(&gguf), arg(&folder)]).ok();
    llamero(["convert", arg(&folder), arg(&again)]).ok();
    let expected = answer(&shared.exported);
    for model in [&gguf, &folder, &again] {
        assert_eq!(answer(model), expected, "{}", model.display());
    }
    // Weights and sizes came through bit for bit.
    for file in ["model.safetensors", "tokenizer.json"] {
        let bytes = |dir: &Path| fs::read(dir.join(file)).unwrap();
        assert!(bytes(&folder) == bytes(&shared.exported), "{file}");
    }
    let config = |dir: &Path| json(&dir.join("config.json"));
    assert_eq!(config(&folder), config(&shared.exported));
    assert_eq!(names(tmp.path()), ["a.gguf", "b.gguf", "folder"]);
}

#[test]
fn blocks_are_smaller_and_inspected() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let gguf = tmp.path().join("deep/q8.gguf");
    llamero(["convert", arg(&shared.exported), arg(&gguf), "--encoding", "q8_0", "--threads", "1"]).ok();
    let said = llamero(["inspect", arg(&gguf), "--json", "--tensors", "--context", "16"]).json();
    let plain = llamero(["inspect", arg(&shared.exported), "--json"]).json();
    assert_eq!((&said["format"], &plain["format"]), (&"gguf".into(), &"huggingface".into()));
    for key in ["parameters", "vocab", "context", "tied", "kv_bytes_per_token_bf16"] {
        assert_eq!(said[key], plain[key], "{key}");
    }
    let number = |value: &Value| value.as_u64().unwrap();
    assert!(number(&said["encodings"]["Q8_0"]) > number(&said["weight_bytes"]) * 9 / 10);
    // Blocks stay blocks, norms are in bf16; keys and values take whole pages.
    let memory = &said["memory"];
    assert_eq!((&memory["context"], &memory["dtype"]), (&16.into(), &"bf16".into()));
    assert_eq!(number(&memory["kv_bytes"]), 64 * number(&said["kv_bytes_per_token_bf16"]));
    let stored = number(&said["weight_bytes"]);
    assert!((stored * 9 / 10..stored).contains(&number(&memory["weight_bytes"])), "{memory} of {stored}");
    let tensors = said["tensors"].as_array().unwrap();
    let bytes: u64 = tensors.iter().map(|t| number(&t["bytes"])).sum();
    assert_eq!(bytes, number(&said["weight_bytes"]));
    assert!(plain.get("tensors").is_none());
    assert_eq!(said["metadata"]["general.architecture"], "llama");
    assert_eq!(said["metadata"]["llama.block_count"], said["layers"]);
    assert!((said["metadata"]["llama.rope.freq_base"].as_f64().unwrap() - 500_000.0).abs() < 1.0, "{said}");
    let text = llamero(["inspect", arg(&gguf), "--tensors"]).ok();
    assert!(
        text.contains("general.architecture = llama") && text.contains("token_embd.weight Q8_0 ["),
        "{text}"
    );
    llamero(["inspect", arg(&gguf), "--context", "99999999"]).fails(1, &["`--context` is 99999999"]);
    // It is a model like any other.
    assert!(answer(&gguf)["text"].is_string());
    // And one in plain numbers again.
    let folder = tmp.path().join("folder");
    llamero(["convert", arg(&gguf), arg(&folder), "--encoding", "Q8_0"])
        .fails(1, &["cannot hold Q8_0", "hint:", "--to gguf"]);
    assert!(!folder.exists());
    llamero(["convert", arg(&gguf), arg(&folder), "--dtype", "f16"]).ok();
    assert_eq!(json(&folder.join("config.json"))["torch_dtype"], "float16");
    // Nothing computes in f16: 16 bits become 32.
    let said = llamero(["inspect", arg(&folder), "--json"]).json();
    let memory = &said["memory"];
    assert_eq!(memory["dtype"], "f32");
    assert_eq!(number(&memory["weight_bytes"]), 4 * number(&said["parameters"]));
    let per_token = 2 * number(&said["kv_bytes_per_token_bf16"]);
    assert_eq!(number(&memory["kv_bytes"]), number(&memory["context"]).next_multiple_of(64) * per_token);
    // What transformers opens has no blocks.
    let exported = tmp.path().join("exported");
    llamero(["export", arg(&gguf), "--out", arg(&exported)]).ok();
    assert_eq!(json(&exported.join("config.json"))["torch_dtype"], "bfloat16");
    assert!(answer(&exported)["text"].is_string());
}

#[test]
fn nothing_is_overwritten_unasked() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let model = arg(&shared.exported);
    let [gguf, folder] = ["a.gguf", "folder"].map(|name| tmp.path().join(name));
    write(&gguf, "mine");
    llamero(["convert", model, arg(&gguf)]).fails(1, &["a.gguf` exists", "hint:", "--force"]);
    assert_eq!(fs::read(&gguf).unwrap(), b"mine");
    llamero(["convert", model, arg(&gguf), "--force"]).ok();
    llamero(["inspect", arg(&gguf)]).ok();

    write(&folder.join("config.json"), "{}");
    llamero(["convert", model, arg(&folder)]).fails(1, &["is not empty", "hint:", "--force"]);
    // A folder of other things is never replaced.
    write(&folder.join("thesis.txt"), "years of work");
    llamero(["convert", model, arg(&folder), "--force"]).fails(1, &["`thesis.txt`", "no file of a model"]);
    fs::remove_file(folder.join("thesis.txt")).unwrap();
    // Nor one beside it.
    let beside = ["folder.old", "folder.partial"].map(|name| tmp.path().join(name).join("thesis.txt"));
    beside.iter().for_each(|path| write(path, "years of work"));
    llamero(["convert", model, arg(&folder), "--force"]).ok();
    assert_eq!(answer(&folder), answer(&shared.exported));
    assert!(beside.iter().all(|path| fs::read(path).unwrap() == b"years of work"));
    assert_eq!(names(tmp.path()), ["a.gguf", "folder", "folder.old", "folder.partial"]);

    llamero(["convert", model, arg(&folder), "--to", "gguf"]).fails(1, &["is a folder", "hint:"]);
    llamero(["convert", model, arg(&gguf), "--to", "hf"]).fails(1, &["is a file", "hint:"]);
    let missing = tmp.path().join("nope");
    llamero(["convert", arg(&missing), arg(&tmp.path().join("x"))]).fails(1, &["no model at", arg(&missing)]);
    llamero(["convert", model, "x.gguf", "--encoding", "Q3_K"]).fails(2, &["Q3_K", "Q4_K"]);
    assert_eq!(names(tmp.path()), ["a.gguf", "folder", "folder.old", "folder.partial"]);
}

#[test]
fn a_model_is_never_written_over_itself() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let [gguf, link, hard, folder] =
        ["a.gguf", "link.gguf", "hard.gguf", "folder"].map(|name| tmp.path().join(name));
    llamero(["convert", arg(&shared.exported), arg(&gguf)]).ok();
    std::os::unix::fs::symlink(&gguf, &link).unwrap();
    fs::hard_link(&gguf, &hard).unwrap();
    copy_dir(&shared.exported, &folder);
    let before = fs::read(&gguf).unwrap();
    let around = tmp.path().join("folder/../a.gguf");
    let weights = folder.join("model.safetensors");
    for (from, to) in
        [(&gguf, &gguf), (&link, &gguf), (&gguf, &link), (&hard, &gguf), (&around, &gguf), (&folder, &folder)]
    {
        llamero(["convert", arg(from), arg(to), "--force", "--encoding", "F16"])
            .fails(1, &[arg(to), "the model itself", "hint:"]);
    }
    llamero(["convert", arg(&folder), arg(&weights), "--to", "gguf", "--force"])
        .fails(1, &["the model itself"]);
    assert!(fs::read(&gguf).unwrap() == before && answer(&folder) == answer(&shared.exported));
}

#[test]
fn gguf_is_known_by_its_first_bytes() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let [named, other] = ["a.gguf", "model.bin"].map(|name| tmp.path().join(name));
    llamero(["convert", arg(&shared.run), arg(&named)]).ok();
    llamero(["convert", arg(&shared.run), arg(&other), "--to", "gguf"]).ok();
    assert_eq!(answer(&other), answer(&named));
    assert_eq!(llamero(["inspect", arg(&other), "--json"]).json()["format"], "gguf");
    write(&other, "no model");
    llamero(["inspect", arg(&other)]).fails(1, &["model.bin", "not in GGUF", "hint:"]);
}

/// A pipe where `convert` writes before it renames, which is full soon.
fn pipe_in_the_way(gguf: &Path) -> fs::File {
    let path = gguf.with_file_name(format!(".{}.tmp", gguf.file_name().unwrap().to_str().unwrap()));
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Reading may begin before anybody writes.
    fs::File::options().read(true).write(true).open(&path).unwrap()
}

#[test]
fn what_a_signal_stops_is_removed() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let gguf = tmp.path().join("a.gguf");
    for signal in [Signal::TERM, Signal::INT] {
        let mut pipe = pipe_in_the_way(&gguf);
        let mut child = command(["convert", arg(&shared.exported), arg(&gguf)]).spawn().unwrap();
        // It has begun to write, and the rest does not fit the pipe.
        pipe.read_exact(&mut [0; 4]).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
        assert!(names(tmp.path()).is_empty(), "{:?}", names(tmp.path()));
    }
}

#[test]
fn what_a_kill_leaves_is_replaced_and_no_model() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let model = arg(&shared.exported);
    let [gguf, left] = ["a.gguf", ".a.gguf.tmp"].map(|name| tmp.path().join(name));
    llamero(["convert", model, arg(&gguf)]).ok();
    let bytes = fs::read(&gguf).unwrap();
    fs::remove_file(&gguf).unwrap();
    write(&left, &bytes[..bytes.len() / 2]);
    llamero(["inspect", arg(tmp.path())]).fails(1, &["no model at"]);
    llamero(["inspect", arg(&left)]).fails(1, &["truncated"]);
    llamero(["convert", model, arg(&gguf)]).ok();
    assert_eq!(names(tmp.path()), ["a.gguf"]);
    assert!(fs::read(&gguf).unwrap() == bytes);
    fs::remove_file(&gguf).unwrap();

    // Folders: of a process that is gone, of one that works on it, and of somebody else.
    let folder = tmp.path().join("out");
    let [gone, busy, other] =
        ["out.7.partial", "out.8.partial", "out.9.partial"].map(|name| tmp.path().join(name));
    for left in [&gone, &busy] {
        write(&left.join("model.safetensors"), "half");
        write(&left.join(".config.json.tmp"), "");
    }
    write(&other.join("thesis.txt"), "years of work");
    let lock = fs::File::open(&busy).unwrap();
    lock.lock().unwrap();
    llamero(["inspect", arg(&gone)]).fails(1, &["hint:"]);
    llamero(["convert", model, arg(&folder)]).ok();
    assert_eq!(names(tmp.path()), ["out", "out.8.partial", "out.9.partial"]);
    drop(lock);
    llamero(["convert", model, arg(&folder), "--force"]).ok();
    assert_eq!(names(tmp.path()), ["out", "out.9.partial"]);
}

#[test]
fn a_damaged_file_is_named() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let gguf = tmp.path().join("a.gguf");
    llamero(["convert", arg(&shared.exported), arg(&gguf), "--encoding", "F32"]).ok();
    let bytes = fs::read(&gguf).unwrap();
    fs::write(&gguf, &bytes[..bytes.len() - 4096]).unwrap();
    for command in [&["inspect", arg(&gguf)][..], &["generate", arg(&gguf), "--prompt", "x"]] {
        llamero(command).fails(1, &["a.gguf", "output", "the file ends at", "hint:", "truncated"]);
    }
    fs::write(&gguf, "not a model").unwrap();
    llamero(["inspect", arg(&gguf)]).fails(1, &["a.gguf", "not a readable GGUF file"]);
}

#[test]
fn shards_are_for_folders() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let (folder, gguf) = (tmp.path().join("folder"), tmp.path().join("a.gguf"));
    llamero(["convert", arg(&shared.run), arg(&folder), "--encoding", "F32", "--shard-size", "1"]).ok();
    let files = names(&folder).into_iter().filter(|name| name.ends_with(".safetensors"));
    assert!(files.count() > 1 && folder.join("model.safetensors.index.json").is_file());
    assert!(answer(&folder)["text"].is_string());
    // `export` joins them.
    let exported = tmp.path().join("exported");
    llamero(["export", arg(&folder), "--out", arg(&exported)]).ok();
    assert_eq!(names(&exported), names(&shared.exported));
    assert_eq!(answer(&exported), answer(&folder));
    let args = ["convert", arg(&shared.run), arg(&gguf), "--shard-size", "1"];
    llamero(args).fails(1, &["`--shard-size` is for Hugging Face folders"]);
    llamero(["convert", arg(&shared.run), arg(&folder), "--shard-size", "0"]).fails(2, &["--shard-size"]);
}
