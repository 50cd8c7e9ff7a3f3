//! Ranks that are processes, started by `mpirun`, which must be in the path:
//! `cargo test --release -p llamero --features mpi --test cli -- mpi::`.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::world::{Said, arg, command, llamero, said, shared};

/// What starts ranks here, on however few cores.
const LAUNCHER: &str = "mpirun --oversubscribe --bind-to none";

/// `pretrain` of a few steps of a model with an even number of heads.
fn args(dir: &Path, more: &str) -> Vec<String> {
    let recipe = shared().run.join("recipe.toml");
    let set = format!("run.dir={}", arg(dir));
    let mut args: Vec<String> = ["pretrain", arg(&recipe), "--set", &set].map(str::to_owned).into();
    let settings = ["model.preset=1m", "pretrain.steps=8", "run.threads=1", "run.checkpoint_seconds=0"];
    args.extend(settings.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
    args.extend(more.split_whitespace().map(str::to_owned));
    args
}

/// The same by `mpirun`.
fn mpirun(ranks: &str, dir: &Path, more: &str) -> Command {
    let mut words = LAUNCHER.split_whitespace();
    let mut mpirun = Command::new(words.next().unwrap());
    mpirun.args(words).args(["-n", ranks, env!("CARGO_BIN_EXE_llamero")]).args(args(dir, more));
    as_root(&mut mpirun);
    mpirun.args(["--transport", "mpi"]).stdin(Stdio::null());
    mpirun
}

/// Tests may run in a container, where everybody is root.
fn as_root(command: &mut Command) {
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
}

fn run(mut command: Command) -> Said {
    said(&command.output().expect("mpirun, which comes with the MPI library"))
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("pretrain/model.safetensors")).unwrap()
}

/// Waits until a run has made some steps.
fn wait_for_steps(run: &Path, steps: usize, child: &mut Child) {
    let ledger = run.join("pretrain.ledger.jsonl");
    while !fs::read_to_string(&ledger).is_ok_and(|text| text.matches("\"event\":\"step\"").count() > steps) {
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The ranks below a process, in the order of their ids.
fn ranks_below(pid: u32) -> Vec<Pid> {
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let pids = fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    let mut below: Vec<i32> = pids.filter(|&p| parent(p) == Some(pid as i32)).collect();
    below.sort_unstable();
    below.into_iter().filter_map(Pid::from_raw).collect()
}

#[test]
fn processes_make_the_bytes_of_threads() {
    let tmp = tempfile::tempdir().unwrap();
    for mesh in ["dp=2,tp=2", "dp=2,pp=2"] {
        let (threads, processes) = (tmp.path().join(mesh), tmp.path().join(format!("{mesh}-mpi")));
        llamero(args(&threads, &format!("--mesh {mesh}"))).ok();
        let first = run(mpirun("4", &processes, &format!("--mesh {mesh} --json"))).json();
        assert_eq!(weights(&threads), weights(&processes), "{mesh}");
        // What is there is kept, and every process says so by its exit code alone.
        let second = run(mpirun("4", &processes, &format!("--mesh {mesh} --json"))).json();
        assert_eq!(first["id"], second["id"]);
    }
}

#[test]
fn what_the_first_rank_refuses_is_said_once() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("run");
    let refused = |ranks, more: &str, phrases: &[&str]| {
        let err = run(mpirun(ranks, &dir, more)).fails(1, phrases);
        assert_eq!(err.matches("error: ").count(), 1, "{err}");
    };
    refused("3", "--mesh dp=2,tp=2", &["dp=2,pp=1,tp=2", "4 ranks", "3 processes", "mpirun -n 4"]);
    refused("2", "--mesh tp=2 --set curate.sources=[\"/nowhere\"]", &["/nowhere"]);
    refused("2", "--mesh tp=2 --set pretrain.stepz=3", &["pretrain.stepz"]);
    assert!(!dir.join("pretrain").exists());
    let recipe = tmp.path().join("recipe.toml");
    fs::write(
        &recipe,
        "[run]\ntransport = \"mpi\"\n[model]\npreset = \"1m\"\n[sft]\nsteps = 1\n[pretrain]\nsteps = 1\n",
    )
    .unwrap();
    llamero(["run", arg(&recipe)]).fails(1, &["run.transport", "llamero pretrain"]);
}

#[test]
fn a_signal_to_any_rank_leaves_a_checkpoint_for_any_transport() {
    let tmp = tempfile::tempdir().unwrap();
    let (calm, stopped) = (tmp.path().join("calm"), tmp.path().join("stopped"));
    let mesh = "--mesh dp=2,pp=2 --set pretrain.steps=40";
    let rare = format!("{mesh} --set run.checkpoint_seconds=1000");
    let mut child = mpirun("4", &stopped, &rare).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&stopped, 1, &mut child);
    let ranks = ranks_below(child.id());
    assert_eq!(ranks.len(), 4);
    kill_process(ranks[2], Signal::TERM).unwrap();
    let ended = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(text.contains("stopped after step") && text.matches("error: ").count() == 1, "{text}");
    let resume = stopped.join("pretrain.partial/resume");
    // The guards of a mesh want one before the first step, too.
    let newest = resume.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).max().unwrap();
    assert!(newest.to_str().unwrap() > "step-0000000001", "{newest:?}");
    llamero(args(&stopped, mesh)).ok();
    llamero(args(&calm, mesh)).ok();
    assert_eq!(weights(&stopped), weights(&calm));
}

#[test]
fn a_supervised_job_outlives_the_death_of_a_rank() {
    let tmp = tempfile::tempdir().unwrap();
    let (calm, broken) = (tmp.path().join("calm"), tmp.path().join("broken"));
    let mesh = "--mesh dp=2,pp=2 --set pretrain.steps=20";
    let mut supervisor = command(args(&broken, &format!("{mesh} --transport mpi --supervise --json")));
    as_root(supervisor.args(["--launcher", LAUNCHER]));
    let mut child = supervisor.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&broken, 2, &mut child);
    let launcher = ranks_below(child.id())[0].as_raw_nonzero().get();
    let victim = ranks_below(u32::try_from(launcher).unwrap())[3];
    kill_process(victim, Signal::KILL).unwrap();
    let found = said(&child.wait_with_output().unwrap());
    assert!(found.err.contains("starting again (1 of"), "{}", found.err);
    let found = found.json();
    assert_eq!(found["goodput"]["failures"], 1, "{found}");
    llamero(args(&calm, mesh)).ok();
    assert_eq!(weights(&calm), weights(&broken));
}

#[test]
fn a_launcher_that_is_not_there_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let mut call = args(&tmp.path().join("run"), "--mesh dp=2 --transport mpi --supervise");
    call.extend(["--launcher".into(), "no-such-launcher -x".into()]);
    llamero(&call).fails(1, &["no-such-launcher", "cannot be started"]);
}
