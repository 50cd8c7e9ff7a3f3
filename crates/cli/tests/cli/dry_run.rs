//! `llamero pretrain --dry-run` and `bench train --estimate`: plans, which take nothing of what they plan.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::world::{Said, arg, llamero, shared};

fn released(size: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../recipes/llama3-{size}.toml"))
}

fn plan(recipe: &Path, more: &[&str]) -> Said {
    llamero([&["pretrain", arg(recipe), "--dry-run"], more].concat())
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` of {value}"))
}

#[test]
fn released_models_are_planned_without_their_data() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let set = format!("run.dir={}", arg(&run));
    // Pairs of (size, mesh): parameters, ranks, tokens in all.
    for (size, mesh, params, ranks, tokens) in [
        ("8b", "dp=64,tp=8", 8_030_261_248u64, 512, 15.0e12),
        ("70b", "dp=64,pp=4,tp=8", 70_553_706_496, 2048, 15.0e12),
        ("405b", "dp=64,pp=16,tp=8", 405_853_388_800, 8192, 15.6e12),
    ] {
        let mesh = ["--mesh", mesh, "--set", &set, "--device", "h100"];
        let found = plan(&released(size), &[&mesh[..], &["--json"]].concat()).json();
        assert_eq!((&found["params"], &found["fits"]), (&params.into(), &true.into()), "{found}");
        assert_eq!(found["checkpoint_bytes"], 12 * params + if size == "405b" { 4 * params } else { 0 });
        let axes = ["dp", "pp", "tp"].map(|axis| found["axes"][axis].as_u64().unwrap());
        assert_eq!(axes.iter().product::<u64>(), ranks);
        assert!((number(&found, "tokens") / tokens - 1.0).abs() < 1e-5, "{found}");
        let stages = found["stages"].as_array().unwrap();
        assert_eq!(stages.len() as u64, axes[1]);
        let layers = stages.iter().flat_map(|stage| stage["layers"].as_array().unwrap());
        let layers: f64 = layers.map(|range| number(range, "end") - number(range, "start")).sum();
        assert_eq!(
            layers,
            [("8b", 32.0), ("70b", 80.0), ("405b", 126.0)].iter().find(|l| l.0 == size).unwrap().1
        );
        for stage in stages {
            for axis in ["tp", "pp", "dp"] {
                let sent = &stage["traffic"][axis];
                let kinds: f64 =
                    sent["kinds"].as_array().unwrap().iter().map(|kind| number(kind, "bytes")).sum();
                assert_eq!(kinds, number(sent, "bytes"), "{axis}: {stage}");
            }
        }
        let text = plan(&released(size), &mesh).ok();
        for wanted in ["bubble", "micro-batches", "checkpoint: ", "gradients", "weights gathered", ": fits"] {
            assert!(text.contains(wanted), "no `{wanted}` in {text}");
        }
    }
    assert!(!run.exists());
}

#[test]
fn this_machine_is_said_not_to_be_enough() {
    let text = plan(&released("405b"), &[]).ok();
    assert!(text.contains("1 × CPU") && text.contains("does NOT fit") && text.contains("hint: "), "{text}");
    let found = plan(&shared().run.join("recipe.toml"), &["--mesh", "dp=2,pp=2", "--json"]).json();
    assert_eq!((&found["fits"], &found["steps"]), (&true.into(), &60.into()), "{found}");
    assert_eq!((&found["tokens"], &found["tokens_per_step"]), (&(60 * 640).into(), &640.into()));
    assert!(found["stages"][0]["traffic"]["dp"]["seconds"].is_null(), "{found}");
}

#[test]
fn what_cannot_be_planned_names_numbers_and_a_way_out() {
    let refused = |more: &[&str], phrases: &[&str]| plan(&released("8b"), more).fails(1, phrases);
    refused(&["--mesh", "tp=16"], &["tp=16", "`model.kv_heads`, which is 8", "hint: tp can be 1, 2, 4 or 8"]);
    refused(&["--mesh", "dp=3"], &["dp=3", "`batch`, which is 2048", "dp can be 1, 2", "1024 or 2048"]);
    refused(&["--mesh", "pp=64"], &["64 pipeline stages", "32 layers", "at most 34"]);
    refused(
        &["--mesh", "dp=1024,pp=4", "--chunks", "2"],
        &["2 micro-batches", "4 stages", "a smaller `micro_batch`"],
    );
    refused(&["--chunks", "2"], &["run.chunks", "pp=2"]);
    refused(&["--mfu", "1.5"], &["1.5", "at most 1"]);
    let open = plan(&released("8b").with_file_name("quickstart.toml"), &[]);
    open.fails(1, &["model.preset", "hint: --set model.preset=8m"]);
    llamero(["pretrain", arg(&released("8b")), "--device", "h100"]).fails(2, &["--dry-run"]);
    plan(&released("8b"), &["--supervise"]).fails(2, &["--supervise"]);
}

#[test]
fn a_benchmark_says_what_each_rank_will_take() {
    let shape = "bench train --dim 32 --layers 4 --heads 2 --kv-heads 2 --ffn 64 --vocab 300 --seq 24 --batch 4 \
        --micro-batch 1 --threads 4";
    let ask = |more: &str| llamero(shape.split_whitespace().chain(more.split_whitespace()));
    let alone = ask("--estimate --json").json();
    let found = ask("--mesh dp=2,pp=2 --estimate --json").json();
    let ranks = found["ranks"].as_array().unwrap();
    assert_eq!((ranks.len(), alone["ranks"].as_array().unwrap().len()), (2, 1));
    // Two data-parallel ranks of both stages.
    for (part, of_rank) in [("gradients", "gradients"), ("kept_activations", "kept_activations")] {
        let sum = 2.0 * ranks.iter().map(|rank| number(rank, of_rank)).sum::<f64>();
        assert_eq!(number(&found["parts"], part), sum, "{found}");
    }
    assert!(number(&found, "total_bytes") > number(&alone, "total_bytes"));
    let said = ask("--mesh dp=2,pp=2 --steps 3 --json");
    for stage in ["a rank of stage 0: ", "a rank of stage 1: "] {
        assert!(said.err.contains(stage), "{}", said.err);
    }
    let result = said.json();
    assert_eq!(result["estimated_memory_bytes"], found["total_bytes"]);
    assert_eq!(result["estimated_rank_bytes"].as_array().unwrap().len(), 2);
}
