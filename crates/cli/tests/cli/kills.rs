//! `kill -9` in every stage, and a checkpoint damaged on top: the run ends as if nothing had happened.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::world::{
    Dice, assert_equal_runs, assert_tidy, command, flip_byte, llamero, manifest, names, run_args, shared,
    write,
};

/// When to kill: some microseconds after the stage has begun or, in a training stage, has written a checkpoint.
struct Moment {
    stage: &'static str,
    checkpoint: bool,
    microseconds: u64,
}

/// The newest checkpoint of a stage in progress.
fn checkpoint(run: &Path, stage: &str) -> Option<PathBuf> {
    let dir = run.join(format!("{stage}.partial/resume"));
    let entries = dir.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-")))
        .max()
}

/// Waits for the moment and kills. Returns whether the process still ran then.
fn kill_at(mut child: Child, run: &Path, moment: &Moment) -> bool {
    let before = checkpoint(run, moment.stage);
    let has_come = || {
        if moment.checkpoint {
            checkpoint(run, moment.stage) > before
        } else {
            run.join(format!("{}.partial", moment.stage)).exists() || run.join(moment.stage).exists()
        }
    };
    while !has_come() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_micros(moment.microseconds));
    let ran = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    ran
}

/// Stages that a kill has cut short.
fn unfinished(run: &Path) -> Vec<String> {
    let names = if run.exists() { names(run) } else { Vec::new() };
    names.iter().filter_map(|name| name.strip_suffix(".partial")).map(str::to_owned).collect()
}

/// Stages after the plan, in the order in which they are worked on.
const STAGES: [&str; 7] = ["curate", "tokenizer", "instruct", "tokens", "pretrain", "sft", "evaluate"];

#[test]
fn a_run_killed_in_every_stage_ends_with_the_same_bytes() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let (run, recipe) = (tmp.path().join("run"), shared.run.join("recipe.toml"));
    let mut dice = Dice(2);
    let mut moments = Vec::new();
    for (stage, kills, most) in [
        ("curate", 2, 3000),
        ("tokenizer", 2, 3000),
        ("instruct", 1, 1000),
        ("tokens", 1, 1000),
        ("pretrain", 5, 40_000),
        ("sft", 4, 40_000),
        ("evaluate", 3, 20_000),
    ] {
        let checkpoint = matches!(stage, "pretrain" | "sft");
        moments.extend((0..kills).map(|_| Moment { stage, checkpoint, microseconds: dice.below(most) }));
    }
    let (mut hits, mut damaged) = (Vec::new(), 0);
    for moment in &moments {
        let start = || {
            let mut command = command(run_args(&recipe, &run, &[]));
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut killed = kill_at(start(), &run, moment);
        if !killed {
            // On a busy machine the run may come to its end before the moment is seen: back to before the stage.
            for stage in STAGES.iter().skip_while(|stage| **stage != moment.stage) {
                fs::remove_dir_all(run.join(stage)).ok();
            }
            killed = kill_at(start(), &run, moment);
        }
        if killed {
            hits.extend(unfinished(&run).first().cloned().or(Some("between stages".to_owned())));
        }
        // The newest checkpoint of the third kill in pre-training: the one before it, or the beginning, must do.
        if hits.iter().filter(|hit| *hit == "pretrain").count() == 3 && damaged == 0 {
            flip_byte(&checkpoint(&run, "pretrain").unwrap().join("rank-0000.f32"));
            damaged += 1;
        }
    }
    println!("killed in {hits:?}");
    assert!(hits.len() >= 10 && damaged == 1, "{hits:?}");
    for (stage, least) in [("pretrain", 3), ("sft", 2)] {
        let found = hits.iter().filter(|hit| *hit == stage).count();
        assert!(found >= least, "{found} kills in {stage}: {hits:?}");
    }
    llamero(run_args(&recipe, &run, &[])).ok();
    assert_equal_runs(&shared.run, &run);
    assert_tidy(&run, false);
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let (run, recipe) = (tmp.path().join("run"), shared.run.join("recipe.toml"));
    // Twice the first checkpoint that the process writes, so that there is an older one to fall back on.
    for _ in 0..2 {
        let mut command = command(run_args(&recipe, &run, &[]));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(kill_at(child, &run, &Moment { stage: "pretrain", checkpoint: true, microseconds: 0 }));
    }
    let newest = checkpoint(&run, "pretrain").unwrap();
    flip_byte(&newest.join("rank-0000.f32"));
    let out = llamero(run_args(&recipe, &run, &[])).ok();
    let step = newest.file_name().unwrap().to_str().unwrap();
    assert!(out.contains("was passed over") && out.contains(step) && out.contains("rank-0000.f32"), "{out}");
    assert!(out.contains("pretrain: resumed at step"), "{out}");
    assert_eq!(manifest(&run.join("pretrain"))["id"], manifest(&shared.run.join("pretrain"))["id"]);
    assert_equal_runs(&shared.run, &run);
    assert_tidy(&run, false);
}

#[test]
fn a_plan_once_made_is_kept() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let (run, file) = (tmp.path().join("run"), tmp.path().join("recipe.toml"));
    let settled = fs::read_to_string(&shared.recipe).unwrap();
    let open: Vec<&str> = settled.lines().filter(|line| !line.starts_with("steps")).collect();
    write(&file, format!("budget = \"10m\"\n{}", open.join("\n")));
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut command = command(run_args(&file, &run, &[]));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(kill_at(child, &run, &Moment { stage: "pretrain", checkpoint: true, microseconds: 0 }));
        seen.push(["plan/plan.json", "recipe.toml"].map(|name| fs::read_to_string(run.join(name)).unwrap()));
    }
    assert_eq!(seen[0], seen[1]);
    let settled = &seen[0][1];
    assert!(settled.matches("\nsteps = ").count() == 2 && !settled.contains("budget"), "{settled}");
}
