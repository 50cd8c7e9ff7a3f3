//! `llamero pretrain --supervise`: a job that is started again until it is done, and chaos mode.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use llamero_artifact::{WORK_STATE, recipe as files};
use llamero_train::{Chaos, Ended, Hosts, Ledger, Orders, Supervisor};

use super::pretrain::PretrainArgs;
use crate::pipeline;
use crate::processes::can_join;
use crate::recipe::{Recipe, Transport, parse_duration};
use crate::termination::Termination;

/// Stands for the machines in `--launcher`.
const HOSTS: &str = "{hosts}";

/// Runs this very command without `--supervise`, again and again until it is done.
pub(super) fn supervise(args: &PretrainArgs, sets: &[String]) -> Result<()> {
    let recipe: Recipe = files::load(&args.recipe, sets)?;
    recipe.validate().with_context(|| format!("`{}`", args.recipe.display()))?;
    let jobs = Jobs::new(args, sets, &recipe)?;
    let mtbf = duration("--mtbf", &args.mtbf)?;
    let hosts = hosts(args, recipe.run.transport)?;
    let run = Path::new(&recipe.run.dir);
    std::fs::create_dir_all(run).with_context(|| format!("`{}`", run.display()))?;
    let _alone = alone(run)?;
    let checkpoints = run.join(format!("pretrain.partial/{WORK_STATE}"));
    let faults = (recipe.run.mesh()?.size(), Orders::new(&jobs.orders));
    let supervisor = Supervisor {
        ledger: Ledger::new(run.join(pipeline::ledger_file("pretrain"))),
        hang_after: jobs.hang_after,
        restarts: args.restarts,
        chaos: args.chaos.map(|seed| Chaos::new(seed, mtbf, checkpoints, faults)),
        hosts,
    };
    let stop = Termination::listen()?.hold();
    let mut command = |hosts: &[&str]| jobs.command(hosts, true);
    let ended = supervisor.run(&mut command, &stop, &mut |line| say!("supervisor: {line}"));
    Orders::new(&jobs.orders).clear().ok();
    match ended
        .with_context(|| format!("`{}` cannot be started, or its ledger not be read", jobs.starter()))?
    {
        Ended::Done if args.chaos.is_some() && !args.no_comparison => jobs.compare(run),
        Ended::Done => Ok(()),
        Ended::Left(code) => {
            // A job that is one process has said why; a launcher may have said much else.
            if let Some(launcher) = jobs.launcher.first().filter(|_| !stop.load(Ordering::Relaxed)) {
                say!(
                    "error: `{launcher}` ended with code {code} before the job got anywhere\n\
                     hint: its own words are above; with fewer cores than ranks, --launcher \"mpirun --oversubscribe\""
                );
            }
            std::process::exit(code)
        }
        Ended::GaveUp(failures) => bail!(
            "gave up after {} failure(s):\n  {}\nhint: the last lines of the job above say more; checkpoints are kept in `{}`",
            failures.len(),
            failures.join("\n  "),
            run.display()
        ),
    }
}

/// A lock that one supervisor of a run folder holds.
fn alone(run: &Path) -> Result<std::fs::File> {
    let path = run.join(".supervisor.lock");
    let lock = std::fs::File::create(&path).with_context(|| format!("`{}`", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("`{}` is watched by another supervisor\nhint: end that one first (SIGTERM)", run.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("`{}`", path.display()))
        }
    }
}

fn duration(flag: &str, text: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(parse_duration(flag, text)?))
}

/// The machines of a supervised job.
fn hosts(args: &PretrainArgs, transport: Transport) -> Result<Hosts> {
    let place = args.launcher.contains(HOSTS);
    if transport == Transport::Threads && !args.hosts.is_empty() {
        bail!("`--hosts` is given, but ranks are threads of one machine\nhint: add `--transport mpi`");
    }
    if args.hosts.is_empty() == place {
        let (given, missing) = if place { (HOSTS, "--hosts") } else { ("--hosts", HOSTS) };
        bail!(
            "`{given}` is given, but `{missing}` is not\nhint: e.g. --launcher \"mpirun --host {HOSTS}\" --hosts a:8,b:8,c:8 --spares 1"
        );
    }
    if !args.hosts.is_empty() && args.spares >= args.hosts.len() {
        bail!("`--spares` is {}, but must be less than the {} hosts", args.spares, args.hosts.len());
    }
    Ok(Hosts::new(args.hosts.iter().cloned(), args.spares))
}

/// Starts jobs.
struct Jobs<'a> {
    args: &'a PretrainArgs,
    /// This program.
    own: PathBuf,
    launcher: Vec<&'a str>,
    ranks: usize,
    sets: Vec<String>,
    hang_after: Duration,
    /// Whether checkpoints go to a second place.
    remote: bool,
    /// Folder with the faults that chaos mode orders.
    orders: PathBuf,
}

impl<'a> Jobs<'a> {
    fn new(args: &'a PretrainArgs, sets: &[String], recipe: &Recipe) -> Result<Self> {
        let launcher: Vec<&str> = match recipe.run.transport {
            Transport::Threads => Vec::new(),
            Transport::Mpi => args.launcher.split_whitespace().collect(),
        };
        if recipe.run.transport == Transport::Mpi {
            can_join()?;
            if launcher.is_empty() {
                bail!("`--launcher` is empty\nhint: `mpirun`, or e.g. `srun --mpi=pmix`");
            }
        }
        let hang_after = duration("--hang-after", &args.hang_after)?;
        let mut sets = sets.to_vec();
        if recipe.run.timeout.is_none() {
            // Ranks notice first, for they know which of them is missing.
            sets.push(format!("run.timeout=\"{}s\"", hang_after.as_secs_f64() / 2.0));
        }
        if args.chaos.is_some() {
            sets.extend(for_chaos(args, recipe)?);
        }
        Ok(Self {
            args,
            own: std::env::current_exe().context("the path of this program")?,
            launcher,
            ranks: recipe.run.mesh()?.size(),
            sets,
            hang_after,
            remote: recipe.run.remote_checkpoints.is_some(),
            orders: Path::new(&recipe.run.dir).join("pretrain.orders"),
        })
    }

    /// What starts a job.
    fn starter(&self) -> &str {
        self.launcher.first().copied().unwrap_or("the job")
    }

    fn command(&self, hosts: &[&str], disturbed: bool) -> Command {
        let mut job = match self.launcher.split_first() {
            None => Command::new(&self.own),
            Some((program, flags)) => {
                let mut job = Command::new(program);
                let hosts = hosts.join(",");
                job.args(flags.iter().map(|flag| flag.replace(HOSTS, &hosts)));
                job.arg("-n").arg(self.ranks.to_string()).arg(&self.own);
                job
            }
        };
        let sets = self.sets.iter().flat_map(|set| ["--set", set]);
        job.arg("pretrain").arg(&self.args.recipe).args(sets);
        if self.args.json {
            job.arg("--json");
        }
        job.arg("--watch-for").arg(std::process::id().to_string());
        if self.args.chaos.is_some() && disturbed {
            job.arg("--orders").arg(&self.orders);
        }
        job
    }

    /// Runs the job once more, undisturbed, from the same tokens, and compares the weights.
    fn compare(&self, run: &Path) -> Result<()> {
        let calm = run.join("undisturbed");
        if calm.exists() {
            std::fs::remove_dir_all(&calm).with_context(|| format!("`{}`", calm.display()))?;
        }
        for stage in pipeline::STAGES.iter().take_while(|stage| **stage != "pretrain") {
            let from = run.join(stage);
            if from.is_dir() {
                copy(&from, &calm.join(stage)).with_context(|| format!("`{}`", from.display()))?;
            }
        }
        say!("supervisor: once more, undisturbed, to compare");
        let hosts: Vec<&str> = self.args.hosts.iter().map(String::as_str).collect();
        let hosts = &hosts[..hosts.len() - self.args.spares];
        let mut job = self.command(hosts, false);
        job.arg("--set").arg(format!("run.dir={:?}", calm.display().to_string())).stdout(Stdio::null());
        if self.remote {
            // The checkpoints in the second place are those of the broken run: it would go on from the last of them.
            let own = std::path::absolute(calm.join("second-place")).context("the current folder")?;
            std::fs::create_dir_all(&own).with_context(|| format!("`{}`", own.display()))?;
            job.arg("--set").arg(format!("run.remote_checkpoints={:?}", format!("file://{}", own.display())));
        }
        let status = job.status().with_context(|| format!("`{}`", self.starter()))?;
        if !status.success() {
            bail!("the undisturbed run ended with {status}");
        }
        let weights = |run: &Path| {
            let path = run.join("pretrain/model.safetensors");
            std::fs::read(&path).with_context(|| format!("`{}`", path.display()))
        };
        if weights(run)? != weights(&calm)? {
            bail!(
                "the weights are not those of an undisturbed run: `{}` and `{}` differ",
                run.join("pretrain").display(),
                calm.join("pretrain").display()
            );
        }
        say!("supervisor: the weights are those of an undisturbed run");
        std::fs::remove_dir_all(&calm).with_context(|| format!("`{}`", calm.display()))
    }
}

/// What a job that will be broken needs: guards that see what is done to it, checkpoints as often as it fails, and leave to
/// begin again when faults have taken all checkpoints.
fn for_chaos(args: &PretrainArgs, recipe: &Recipe) -> Result<Vec<String>> {
    let guard = recipe.run.guard.unwrap_or_default();
    for (key, value) in [("state", guard.state), ("messages", guard.messages)] {
        if value == Some(false) {
            bail!(
                "`run.guard.{key}` is false, but --chaos turns bits over that only it sees\nhint: leave it out"
            );
        }
    }
    let mut sets: Vec<String> =
        ["run.start_over=true", "run.guard.state=true", "run.guard.messages=true"].map(String::from).into();
    if recipe.run.expected_mtbf.is_none() {
        sets.push(format!("run.expected_mtbf=\"{}\"", args.mtbf));
    }
    Ok(sets)
}

/// Copies a folder, or links to its files where that can be done.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in from.read_dir()? {
        let (from, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let to = to.join(name);
        if from.is_dir() {
            copy(&from, &to)?;
        } else if std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(&from, &to)?;
        }
    }
    Ok(())
}
