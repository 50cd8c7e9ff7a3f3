//! `llamero pretrain`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use llamero_artifact::{ArtifactError, WORK_STATE, recipe as files};
use llamero_train::{
    Chaos, Ended, Goodput, Hosts, Incident, IncidentTable, Ledger, Mesh, Orders, Sharding, Supervisor,
    incidents,
};
use serde::Serialize;

use super::dry_run::{DeviceArg, dry_run};
use super::{print, print_json};
use crate::failure;
use crate::pipeline::{self, Order, Pretrained};
use crate::processes::{Processes, Quiet, can_join};
use crate::recipe::{Recipe, Transport, parse_duration};
use crate::termination::Termination;

#[derive(Args)]
#[command(
    after_help = "Makes what the model learns from (documents, tokenizer, tokens) and then the model, RUN/pretrain; what is there \
    already is kept, what was interrupted is resumed, on the same mesh or another. `llamero run` goes on from there.\n\n\
    Ranks are threads of one process, or, with --transport mpi, as many processes as `mpirun` or `srun` starts. On SIGTERM or \
    SIGUSR1 training leaves a checkpoint and ends with code 1; the same command goes on. (`mpirun` kills its ranks a second after \
    SIGTERM; SIGUSR1 it passes on.)\n\n\
    With --supervise another process watches the job: it starts it again when it dies or hangs, from the newest checkpoint \
    that is whole, and gives up when that happens too often or three times without a new step. RUN/pretrain.ledger.jsonl tells \
    where the time went.\n\n\
    --dry-run prints what a run will take, from the recipe alone: memory of a rank by kind, messages by axis and kind, the bubble of \
    the pipeline, steps, tokens, hours, checkpoints. It reads no data and writes nothing, so it plans any mesh anywhere.\n\n\
    Examples:\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=2\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=2,pp=2 --chunks 2 --supervise\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=4 --shard parameters\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=2,tp=2 --supervise --chaos 1 --mtbf 20s\n  \
    mpirun -n 4 llamero pretrain recipes/quickstart.toml --mesh dp=2,tp=2 --transport mpi\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=2,tp=2 --transport mpi --supervise --launcher \"mpirun --oversubscribe\"\n  \
    llamero pretrain recipes/llama3-405b.toml --mesh dp=64,pp=16,tp=8 --chunks 8 --dry-run --device h100\n  \
    llamero pretrain RUN/recipe.toml --mesh dp=2 --dry-run --json"
)]
pub(crate) struct PretrainArgs {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// Set a value of the recipe, e.g. `pretrain.steps=1000`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Ranks, e.g. `dp=2,pp=2,cp=2,tp=2`: data, pipeline, context and tensor parallel (the same as `--set run.mesh=…`).
    #[arg(long)]
    mesh: Option<Mesh>,
    /// Chunks of the model on each pipeline stage; more than one is the interleaved schedule.
    #[arg(long)]
    chunks: Option<usize>,
    /// What data-parallel ranks divide among each other: `optimizer` (state only), `gradients` or `parameters` (each also what
    /// comes before it).
    #[arg(long, value_name = "WHAT")]
    shard: Option<Sharding>,
    /// What ranks are (the same as `--set run.transport=…`).
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Say what the run would take, and stop there.
    #[arg(long, conflicts_with = "supervise")]
    dry_run: bool,
    /// What ranks run on, in that plan.
    #[arg(long, value_enum, default_value = "cpu", requires = "dry_run")]
    device: DeviceArg,
    /// Share of the device's peak to reckon with; published values or 0.4 when absent.
    #[arg(long, value_name = "SHARE", requires = "dry_run")]
    mfu: Option<f64>,
    /// Watch the job and start it again when it dies or hangs.
    #[arg(long)]
    supervise: bool,
    /// What starts the ranks of a supervised job over MPI; `-n RANKS` and the command follow it.
    #[arg(long, value_name = "COMMAND", default_value = "mpirun", requires = "supervise")]
    launcher: String,
    /// Machines for a supervised job, e.g. `a:8,b:8,c:8`; they take the place of `{hosts}` in --launcher.
    #[arg(long, value_name = "HOSTS", value_delimiter = ',', requires = "supervise")]
    hosts: Vec<String>,
    /// So many of them, the last ones, wait until another was at fault three times.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "hosts")]
    spares: usize,
    /// Most restarts.
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "supervise")]
    restarts: u32,
    /// A job that trains and makes no step for so long hangs.
    #[arg(long, value_name = "TIME", default_value = "10m", requires = "supervise")]
    hang_after: String,
    /// Break the job on purpose: kills, hangs, pauses, damaged checkpoints. The same seed, the same faults.
    #[arg(long, value_name = "SEED", requires = "supervise")]
    chaos: Option<u64>,
    /// Mean time between two of them.
    #[arg(long, value_name = "TIME", default_value = "20s", requires = "chaos")]
    mtbf: String,
    /// Folder with faults that ranks are to have; what --chaos gives the job.
    #[arg(long, value_name = "DIR", hide = true)]
    orders: Option<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

impl PretrainArgs {
    /// All `--set`s.
    fn sets(&self) -> Vec<String> {
        let mesh = self.mesh.map(|mesh| format!("run.mesh=\"{mesh}\""));
        let chunks = self.chunks.map(|chunks| format!("run.chunks={chunks}"));
        let shard = self.shard.map(|shard| format!("run.shard=\"{shard}\""));
        let transport = self.transport.and_then(|transport| {
            Some(format!("run.transport={}", transport.to_possible_value()?.get_name()))
        });
        self.sets.iter().cloned().chain(mesh).chain(chunks).chain(shard).chain(transport).collect()
    }
}

/// What is printed at the end.
#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    pretrained: &'a Pretrained,
    goodput: Goodput,
    effective_training_time: f64,
    /// Injected faults and what became of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incidents: Vec<Incident>,
}

pub(crate) fn pretrain(args: &PretrainArgs) -> Result<()> {
    let sets = args.sets();
    if args.dry_run {
        return dry_run(&args.recipe, &sets, (args.device, args.mfu), args.json);
    }
    if args.supervise {
        return supervise(args, &sets);
    }
    let recipe = files::load::<Recipe>(&args.recipe, &sets);
    let in_recipe = recipe.as_ref().ok().map(|recipe| recipe.run.transport);
    match args.transport.or(in_recipe).unwrap_or_default() {
        Transport::Threads => {
            report(args, &pipeline::pretrain(&args.recipe, &sets, args.orders.as_deref(), None)?)
        }
        Transport::Mpi => on_processes(args, &sets, recipe),
    }
}

fn report(args: &PretrainArgs, pretrained: &Pretrained) -> Result<()> {
    let entries = Ledger::new(&pretrained.ledger).read()?;
    let (goodput, incidents) = (Goodput::of(&entries), incidents(&entries));
    if args.json {
        let effective_training_time = goodput.effective();
        return print_json(&Summary { pretrained, goodput, effective_training_time, incidents });
    }
    if !incidents.is_empty() {
        print(format!("{}", IncidentTable(&incidents)))?;
    }
    print(format!("{goodput}"))?;
    print(format!("loss {:.4} after {} tokens", pretrained.loss, pretrained.tokens))?;
    print(format!("model: {}", pretrained.model.display()))
}

/// As one of the processes of a mesh.
fn on_processes(args: &PretrainArgs, sets: &[String], recipe: Result<Recipe, ArtifactError>) -> Result<()> {
    let processes = Rc::new(Processes::join()?);
    if !processes.leads() {
        return pipeline::follow(&processes);
    }
    let work = || {
        processes.check(recipe?.run.mesh()?)?;
        let processes = Some(Rc::clone(&processes));
        report(args, &pipeline::pretrain(&args.recipe, sets, args.orders.as_deref(), processes)?)
    };
    let done = work();
    if let Err(error) = &done {
        // Before the others leave: when one of them has, `mpirun` ends this one.
        say!("error: {}", failure::text(error));
    }
    processes.give(&Order::Leave { failed: done.is_err() })?;
    done.map_err(|_| Quiet.into())
}

/// Stands for the machines in `--launcher`.
const HOSTS: &str = "{hosts}";

/// The machines of a supervised job.
fn hosts(args: &PretrainArgs) -> Result<Hosts> {
    let place = args.launcher.contains(HOSTS);
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

/// Runs this very command without `--supervise`, again and again until it is done.
fn supervise(args: &PretrainArgs, sets: &[String]) -> Result<()> {
    let recipe: Recipe = files::load(&args.recipe, sets)?;
    recipe.validate().with_context(|| format!("`{}`", args.recipe.display()))?;
    let time =
        |flag, text: &str| Ok::<_, anyhow::Error>(Duration::from_secs_f64(parse_duration(flag, text)?));
    let run = Path::new(&recipe.run.dir);
    std::fs::create_dir_all(run).with_context(|| format!("`{}`", run.display()))?;
    let checkpoints = run.join(format!("pretrain.partial/{WORK_STATE}"));
    let mtbf = time("--mtbf", &args.mtbf)?;
    let hang_after = time("--hang-after", &args.hang_after)?;
    let orders = run.join("pretrain.orders");
    let faults = || (recipe.run.mesh().map_or(1, |mesh| mesh.size()), Orders::new(&orders));
    let supervisor = Supervisor {
        ledger: Ledger::new(run.join(pipeline::ledger_file("pretrain"))),
        hang_after,
        restarts: args.restarts,
        chaos: args.chaos.map(|seed| Chaos::new(seed, mtbf, checkpoints, faults())),
        hosts: hosts(args)?,
    };
    let own = std::env::current_exe().context("the path of this program")?;
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
    let ranks = recipe.run.mesh()?.size().to_string();
    let mut command = |hosts: &[&str]| {
        let mut job = match launcher.split_first() {
            None => Command::new(&own),
            Some((program, flags)) => {
                let mut job = Command::new(program);
                let hosts = hosts.join(",");
                job.args(flags.iter().map(|flag| flag.replace(HOSTS, &hosts))).args(["-n", &ranks]).arg(&own);
                job
            }
        };
        // Faults may take all checkpoints that there are, while there are few.
        let over = args.chaos.map(|_| "run.start_over=true");
        let sets = sets.iter().map(String::as_str).chain(over);
        job.arg("pretrain").arg(&args.recipe).args(sets.flat_map(|set| ["--set", set]));
        if args.json {
            job.arg("--json");
        }
        if recipe.run.timeout.is_none() {
            // Ranks notice first, for they know which of them is missing.
            job.arg("--set").arg(format!("run.timeout=\"{}s\"", hang_after.as_secs_f64() / 2.0));
        }
        if args.chaos.is_some() {
            job.arg("--orders").arg(&orders);
        }
        job
    };
    let stop = Termination::listen()?.hold();
    let ended = supervisor.run(&mut command, &stop, &mut |line| say!("supervisor: {line}"));
    Orders::new(&orders).clear().ok();
    let started = launcher.first().copied().unwrap_or("the job");
    match ended.with_context(|| format!("`{started}` cannot be started, or its ledger not be read"))? {
        Ended::Done => Ok(()),
        // The job has said why.
        Ended::Left(code) => std::process::exit(code),
        Ended::GaveUp(failures) => bail!(
            "gave up after {} failures:\n  {}\nhint: the last lines of the job above say more; checkpoints are kept in `{}`",
            failures.len(),
            failures.join("\n  "),
            run.display()
        ),
    }
}
