//! `llamero pretrain`: on a mesh of ranks, stopped by a signal, and broken on purpose under a supervisor.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::world::{arg, command, llamero, manifest, shared};

/// `pretrain RECIPE` into `dir` with these arguments.
fn pretrain_args(dir: &Path, more: &[&str]) -> Vec<String> {
    let recipe = shared().run.join("recipe.toml");
    let mut args: Vec<String> =
        vec!["pretrain".into(), arg(&recipe).into(), "--set".into(), format!("run.dir={}", arg(dir))];
    args.extend(more.iter().map(|more| (*more).to_string()));
    args
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("pretrain/model.safetensors")).unwrap()
}

#[test]
fn a_pipeline_of_ranks_makes_the_bytes_of_one() {
    let tmp = tempfile::tempdir().unwrap();
    let (alone, piped) = (tmp.path().join("a"), tmp.path().join("b"));
    let said = llamero(pretrain_args(&alone, &["--json"])).json();
    assert!(said["effective_training_time"].as_f64().unwrap() > 0.0, "{said}");
    assert_eq!(weights(&alone), weights(&shared().run));
    llamero(pretrain_args(&piped, &["--mesh", "pp=2", "--chunks", "2"])).ok();
    assert_eq!(weights(&alone), weights(&piped));
    // Other sums, other bits; the same model as far as anybody can tell.
    let loss = |said: serde_json::Value| said["loss"].as_f64().unwrap();
    for mesh in ["dp=2,pp=2", "cp=2"] {
        let other = pretrain_args(&tmp.path().join(mesh), &["--mesh", mesh, "--json"]);
        let apart = loss(said.clone()) - loss(llamero(other).json());
        assert!(apart.abs() < 1e-3 * loss(said.clone()), "{mesh}: {apart}");
    }
    let (sharded, gradients) = (tmp.path().join("d"), tmp.path().join("e"));
    // Weights of which each rank has some rows come together in the model, under the same id.
    llamero(pretrain_args(&sharded, &["--mesh", "dp=2", "--shard", "parameters"])).ok();
    llamero(pretrain_args(&gradients, &["--mesh", "dp=2", "--set", "run.shard=gradients"])).ok();
    assert_eq!(weights(&sharded), weights(&gradients));
    assert_eq!(manifest(&sharded.join("pretrain"))["id"], manifest(&alone.join("pretrain"))["id"]);
}

#[test]
fn what_is_no_mesh_is_refused_before_anything_is_done() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    llamero(pretrain_args(&run, &["--mesh", "dp=0"])).fails(2, &["dp=2,pp=2,tp=2"]);
    llamero(pretrain_args(&run, &["--chaos", "1"])).fails(2, &["--supervise"]);
    llamero(pretrain_args(&run, &["--supervise", "--hang-after", "soon"]))
        .fails(1, &["--hang-after", "soon"]);
    llamero(pretrain_args(&run, &["--set", "run.mesh=tp"])).fails(1, &["run.mesh", "tp"]);
    llamero(pretrain_args(&run, &["--mesh", "tp=64"])).fails(1, &["tp=64", "model."]);
    llamero(pretrain_args(&run, &["--mesh", "cp=7"])).fails(1, &["cp=7", "`sequence`", "multiple of 14"]);
    llamero(pretrain_args(&run, &["--chunks", "2"])).fails(1, &["run.chunks", "pp=2"]);
    llamero(pretrain_args(&run, &["--shard", "weights"])).fails(2, &["--shard", "`parameters`"]);
    llamero(pretrain_args(&run, &["--set", "run.shard=weights"])).fails(1, &["run.shard", "`parameters`"]);
    assert!(!run.join("curate").exists());
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_binary_without_mpi_says_how_to_build_one() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    for more in
        [&["--transport", "mpi"][..], &["--transport", "mpi", "--supervise"], &["--set", "run.transport=mpi"]]
    {
        llamero(pretrain_args(&run, more)).fails(1, &["without MPI", "--features mpi", "libopenmpi-dev"]);
    }
    assert!(!run.join("curate").exists());
}

#[test]
fn a_signal_leaves_a_checkpoint_that_the_next_call_goes_on_from() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let resume = run.join("pretrain.partial/resume");
    let remote = format!("run.remote_checkpoints=\"file://{}\"", arg(&tmp.path().join("far")));
    let slow = ["--mesh", "dp=2", "--set", "run.checkpoint_seconds=1000", "--set", &remote];
    let mut child =
        command(pretrain_args(&run, &slow)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ledger = run.join("pretrain.ledger.jsonl");
    let steps = |n: usize| fs::read_to_string(&ledger).is_ok_and(|text| text.matches("\"step\"").count() > n);
    while !steps(2) {
        assert!(child.try_wait().unwrap().is_none(), "ended before it could be stopped");
        std::thread::sleep(Duration::from_micros(200));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("stopped after step") && said.contains("go on"), "{said}");
    // As large as planned.
    let newest = resume.read_dir().unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let files = newest.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let shards = files.filter(|path| path.extension().is_some_and(|ext| ext == "f32"));
    let bytes: u64 = shards.map(|path| fs::metadata(path).unwrap().len()).sum();
    let plan = llamero(pretrain_args(&run, &[&slow[..], &["--dry-run", "--json"]].concat())).json();
    assert_eq!(plan["checkpoint_bytes"], bytes);
    // The disk of this machine is lost; the second place is not.
    fs::remove_dir_all(&resume).unwrap();
    llamero(pretrain_args(&run, &slow)).ok();
    let text = fs::read_to_string(&ledger).unwrap();
    let ready: Vec<&str> = text.lines().filter(|line| line.contains("\"ready\"")).collect();
    assert_eq!(ready.len(), 2, "{text}");
    assert!(ready[0].contains("\"step\":0") && !ready[1].contains("\"step\":0"), "{ready:?}");
    let calm = tmp.path().join("calm");
    llamero(pretrain_args(&calm, &slow)).ok();
    assert_eq!(weights(&run), weights(&calm));
}

#[test]
fn a_job_that_is_broken_while_it_runs_ends_with_the_bytes_of_a_calm_one() {
    let tmp = tempfile::tempdir().unwrap();
    let broken = tmp.path().join("broken");
    let mesh = ["--mesh", "dp=2,pp=2", "--set", "run.checkpoint_seconds=0.1", "--set", "pretrain.steps=300"];
    let chaos = ["--supervise", "--chaos", "3", "--mtbf", "0.4s", "--hang-after", "5s", "--json"];
    let second = format!("run.remote_checkpoints=\"file://{}\"", arg(&tmp.path().join("far")));
    let second = ["--set", second.as_str()];
    let said = llamero(pretrain_args(&broken, &[&mesh[..], &chaos[..], &second[..]].concat()));
    // The supervisor has run it once more to compare.
    assert!(said.err.contains("the weights are those of an undisturbed run"), "{}", said.err);
    assert!(!broken.join("undisturbed").exists());
    // From the start, and not from what the broken one has left.
    let (_, calm) = said.err.split_once("once more, undisturbed").unwrap();
    assert!(!calm.contains("went on from") && !calm.contains("goes on at step"), "{calm}");
    let said = said.json();
    let incidents = said["incidents"].as_array().unwrap();
    assert!(incidents.len() >= 3, "{said}");
    assert_eq!(said["goodput"]["injected"].as_u64().unwrap() as usize, incidents.len());
    // What is saved next may not be saved again before the end.
    let late = |fault: &serde_json::Value| *fault == "lost_storage" || *fault == "full_disk";
    for incident in incidents.iter().filter(|incident| !late(&incident["fault"])) {
        assert!(incident["detected_after"].is_f64(), "{incident}");
    }
    let names = ["useful", "checkpoint", "start_up", "restart", "lost", "stalled"];
    let shares: f64 = names.iter().map(|name| said["goodput"][name].as_f64().unwrap()).sum();
    assert!(
        said["goodput"]["useful"].as_f64().unwrap() / shares
            - said["effective_training_time"].as_f64().unwrap()
            < 1e-9
    );
}

#[test]
fn chaos_without_what_sees_it_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let blind = ["--supervise", "--chaos", "1", "--set", "run.guard.state=false"];
    llamero(pretrain_args(&run, &blind)).fails(1, &["run.guard.state", "--chaos"]);
    llamero(pretrain_args(&run, &["--supervise", "--hosts", "a,b"]))
        .fails(1, &["--hosts", "--transport mpi"]);
    llamero(pretrain_args(&run, &["--set", "run.guard.products=1"]))
        .fails(1, &["run.guard.products", "run.mesh"]);
    llamero(pretrain_args(&run, &["--set", "run.timeout=soon"])).fails(1, &["run.timeout", "soon"]);
    llamero(pretrain_args(&run, &["--mesh", "pp=2", "--chunks", "2", "--chunk-run", "1"]))
        .fails(1, &["run.chunk_run", "at least 2"]);
    assert!(!run.exists());
}

#[test]
fn a_job_that_fails_before_it_trains_is_not_started_again() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let missing = ["--supervise", "--set", "curate.sources=[\"/nowhere\"]"];
    let said = llamero(pretrain_args(&run, &missing)).fails(1, &["/nowhere"]);
    assert!(!said.contains("starting again"), "{said}");
}

#[test]
fn a_job_ends_with_its_supervisor_and_two_do_not_watch_one_run() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let long = [
        "--mesh",
        "dp=2",
        "--supervise",
        "--set",
        "pretrain.steps=100000",
        "--set",
        "run.checkpoint_seconds=1",
    ];
    let mut supervisor =
        command(pretrain_args(&run, &long)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let ledger = || fs::read_to_string(run.join("pretrain.ledger.jsonl")).unwrap_or_default();
    while !ledger().contains("\"event\":\"step\"") {
        assert!(supervisor.try_wait().unwrap().is_none(), "ended before it could be killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    llamero(pretrain_args(&run, &long)).fails(1, &["another supervisor"]);
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    // The job sees it, and leaves a checkpoint.
    while !ledger().contains("\"event\":\"stopped\"") {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(run.join("pretrain.partial/resume").read_dir().unwrap().count() > 0);
}
