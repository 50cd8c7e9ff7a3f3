//! Whole runs: what they leave, what they reuse, and that nothing but the recipe and the text decides the bytes.

use std::fs;

use serde_json::Value;

use crate::world::{
    Dice, STAGES, arg, assert_equal_runs, assert_tidy, contents, copy_dir, flip_byte, llamero, manifest,
    prose, recipe, run_args, shared, write,
};

fn reused(summary: &Value) -> Vec<(String, bool)> {
    let stages = summary["stages"].as_array().unwrap();
    stages.iter().map(|s| (s["name"].as_str().unwrap().into(), s["reused"].as_bool().unwrap())).collect()
}

#[test]
fn a_run_leaves_every_artifact_and_a_report() {
    let shared = shared();
    assert_tidy(&shared.run, true);
    let mut expected = vec![("plan".to_string(), false)];
    expected.extend(STAGES.map(|stage| (stage.to_string(), false)));
    assert_eq!(reused(&shared.summary), expected);
    for model in ["pretrain", "sft"] {
        let dir = shared.run.join(model);
        for file in ["config.json", "model.safetensors", "tokenizer.json", "history.json"] {
            assert!(dir.join(file).is_file(), "{model}/{file}");
        }
        assert!(shared.summary["evaluation"]["multiple_choice"][model]["accuracy"].is_number());
        for domain in ["all", "prose", "code"] {
            let bits = &shared.summary["evaluation"]["bits_per_byte"][domain];
            assert!(bits[model].as_f64().unwrap() < 8.0 && bits["unigram"].is_number(), "{bits}");
        }
    }
    assert_eq!(manifest(&shared.run.join("instruct"))["metrics"]["kind"], "crates");
    assert_eq!(shared.summary["remarks"], serde_json::json!([]));
    let report = fs::read_to_string(shared.run.join("report.html")).unwrap();
    assert!(report.contains("<svg") && report.trim_end().ends_with("</html>"));
    for stage in STAGES {
        let id = manifest(&shared.run.join(stage))["id"].as_str().unwrap().to_owned();
        assert!(report.contains(&id[..8]), "no id of {stage}");
        assert!(shared.log.contains(&format!("{stage} done in")), "{}", shared.log);
    }
    for outside in ["src=\"", "href=\"http", "@import", "url("] {
        assert!(!report.contains(outside), "the report loads {outside}");
    }
    let settled = fs::read_to_string(shared.run.join("recipe.toml")).unwrap();
    assert!(!settled.contains("budget") && settled.contains("steps = 60"), "{settled}");
}

#[test]
fn the_same_command_again_does_no_work() {
    let shared = shared();
    let weights = ["pretrain", "sft"].map(|stage| shared.run.join(stage).join("model.safetensors"));
    let written = || weights.each_ref().map(|path| fs::metadata(path).unwrap().modified().unwrap());
    let (before, times) = (contents(&shared.run), written());
    let mut args = run_args(&shared.recipe, &shared.run, &["budget=10m"]);
    args.push("--json".into());
    let said = llamero(args);
    assert!(said.err.contains("pretrain already there"), "{}", said.err);
    let summary = said.json();
    assert!(reused(&summary).iter().all(|(_, reused)| *reused), "{summary}");
    assert_eq!(summary["evaluation"], shared.summary["evaluation"]);
    assert_eq!(written(), times);
    assert!(contents(&shared.run) == before);
}

#[test]
fn the_settled_recipe_elsewhere_on_one_thread_gives_the_same_bytes() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let run = tmp.path().join("elsewhere");
    llamero(run_args(&shared.run.join("recipe.toml"), &run, &["run.threads=1"])).ok();
    assert_equal_runs(&shared.run, &run);
    assert_tidy(&run, false);
}

#[test]
fn moved_sources_on_three_threads_give_the_same_bytes() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let (moved, run) = (tmp.path().join("another place"), tmp.path().join("run"));
    copy_dir(&shared.sources, &moved);
    let sources = format!("curate.sources=[{:?}]", arg(&moved));
    let sets = [sources.as_str(), "run.threads=3", "run.checkpoint_seconds=100"];
    llamero(run_args(&shared.recipe, &run, &sets)).ok();
    assert_equal_runs(&shared.run, &run);
}

#[test]
fn a_changed_recipe_redoes_only_what_follows_and_damage_is_made_good() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let run = tmp.path().join("run");
    copy_dir(&shared.run, &run);
    fs::remove_dir_all(run.join("plan")).unwrap();
    let summary = |sets: &[&str]| {
        let mut args = run_args(&shared.recipe, &run, sets);
        args.push("--json".into());
        llamero(args).json()
    };
    let worked = |summary: &Value| {
        let stages = reused(summary).into_iter().filter(|(_, reused)| !reused);
        stages.map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(worked(&summary(&["sft.steps=3"])), ["sft", "evaluate"]);
    assert_tidy(&run, false);
    assert_eq!(worked(&summary(&["sft.steps=3", "run.threads=1"])), Vec::<String>::new());
    // A byte that flipped on disk: the stage is made again, and with it comes back what followed from it.
    flip_byte(&run.join("pretrain/model.safetensors"));
    let mended = summary(&["sft.steps=3"]);
    assert_eq!(worked(&mended), ["pretrain"]);
    let remark = mended["remarks"][0].as_str().unwrap();
    assert!(remark.contains("pretrain: made again") && remark.contains("model.safetensors"), "{remark}");
    assert_tidy(&run, false);
    assert_eq!(worked(&summary(&[])), ["sft", "evaluate"]);
    assert_equal_runs(&shared.run, &run);
}

#[test]
fn any_folder_of_text_will_do() {
    let tmp = tempfile::tempdir().unwrap();
    let (sources, run) = (tmp.path().join("notes"), tmp.path().join("run"));
    let mut dice = Dice(3);
    for i in 0..12 {
        write(&sources.join(format!("note{i}.txt")), prose(&mut dice, 6));
    }
    write(&sources.join("copy.txt"), fs::read(sources.join("note0.txt")).unwrap());
    write(&sources.join("picture.png"), [137, 80, 78, 71, 0, 1, 2, 3]);
    write(&sources.join("latin1.txt"), b"caf\xe9 ".repeat(40));
    write(&sources.join("empty.txt"), "");
    let file = tmp.path().join("recipe.toml");
    write(&file, recipe(&sources));
    let sets = ["pretrain.steps=3", "sft.steps=2", "pretrain.sequence=320", "sft.sequence=320"];
    let out = llamero(run_args(&file, &run, &sets)).ok();
    assert!(out.contains("bits per byte") && out.contains("next:   llamero chat"), "{out}");
    assert_tidy(&run, false);
    assert_eq!(manifest(&run.join("instruct"))["metrics"]["kind"], "continuations");
    let report = &manifest(&run.join("curate"))["metrics"];
    assert_eq!((&report["documents_in"], &report["documents_kept"]), (&16.into(), &12.into()), "{report}");
    let dropped = fs::read_to_string(run.join("curate/dropped.jsonl")).unwrap();
    for (file, reason) in
        [("picture.png", "binary"), ("latin1.txt", "not_utf8"), ("empty.txt", "empty"), ("copy.txt", "exact")]
    {
        let said = dropped.lines().any(|line| line.contains(file) && line.contains(reason));
        assert!(said, "no {file} dropped as {reason}: {dropped}");
    }
}

#[test]
fn questions_that_do_not_fit_are_left_out_and_counted() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let (sources, run) = (tmp.path().join("sources"), tmp.path().join("run"));
    copy_dir(&shared.sources, &sources);
    let manifest = sources.join("demo1-1.0.1/Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let long = prose(&mut Dice(4), 1)[..190].replace('.', "").to_uppercase();
    let line = text.lines().find(|line| line.starts_with("description")).unwrap();
    write(&manifest, text.replace(line, &format!("description = \"{long}\"")));
    let file = tmp.path().join("recipe.toml");
    write(&file, recipe(&sources));
    let prompt = format!("evaluate.prompts=[\"a\", {long:?}]");
    let sets = [prompt.as_str(), "instruct.max_questions=24", "pretrain.steps=1", "sft.steps=1"];
    let out = llamero(run_args(&file, &run, &sets)).ok();
    assert!(out.contains("of 24 questions do not fit in a context of 160"), "{out}");
    assert!(out.contains("prompt of") && out.contains(&long), "{out}");
    let results: Value =
        serde_json::from_slice(&fs::read(run.join("evaluate/results.json")).unwrap()).unwrap();
    let asked = results["multiple_choice"]["sft"]["score"]["questions"].as_u64().unwrap();
    assert!((1..24).contains(&asked), "{asked}");
    assert_eq!(results["samples"].as_array().unwrap().len(), 2);
}

/// Ramp, mix and annealing in a run; the last model is the same on one thread.
#[test]
fn a_run_follows_its_ramp_mix_and_annealing() {
    let shared = shared();
    let tmp = tempfile::tempdir().unwrap();
    let sets = [
        "pretrain.steps=12",
        "pretrain.sequence=80",
        "pretrain.ramp=[{ at_tokens = 1280, sequence = 160 }, { at_tokens = 3000, batch = 6 }]",
        "pretrain.mix=[{ weights = { prose = 1, code = 1 } }, { at_tokens = 3000, weights = { code = 1 } }]",
        "pretrain.anneal={ steps = 4, average_every = 2 }",
        "pretrain.z_loss=1e-4",
        "sft.steps=1",
    ];
    let run = |name: &str, threads: &str| {
        let dir = tmp.path().join(name);
        let mut args = run_args(&shared.recipe, &dir, &[&sets[..], &[threads]].concat());
        args.push("--json".into());
        (llamero(args).json(), dir)
    };
    let (summary, one) = run("one", "run.threads=1");
    let remark = summary["remarks"][0].as_str().unwrap();
    assert!(remark.starts_with("pretrain: the tokens were ") && remark.contains("% code ("), "{remark}");
    let history = fs::read(one.join("pretrain/history.json")).unwrap();
    let history: Vec<Value> = serde_json::from_slice(&history).unwrap();
    let tokens: Vec<u64> = history.iter().map(|step| step["tokens"].as_u64().unwrap()).collect();
    assert_eq!(tokens[..8], [320, 640, 960, 1280, 1920, 2560, 3200, 4160]);
    assert!(history.iter().all(|step| step["z_loss"].as_f64().unwrap() > 0.0));
    assert!(history[11]["lr"].as_f64().unwrap() * 3.9 < history[8]["lr"].as_f64().unwrap());
    let (_, two) = run("two", "run.threads=2");
    assert_equal_runs(&one, &two);
}
