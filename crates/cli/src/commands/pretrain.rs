//! `llamero pretrain`.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use llamero_artifact::{ArtifactError, recipe as files};
use llamero_train::{Goodput, Incident, IncidentTable, Ledger, Mesh, Sharding, incidents};
use serde::Serialize;

use super::dry_run::{DeviceArg, dry_run};
use super::supervise::supervise;
use super::{print, print_json};
use crate::failure;
use crate::pipeline::{self, Order, Pretrained};
use crate::processes::{Processes, Quiet};
use crate::recipe::{Recipe, Transport};
use crate::termination;

#[derive(Args)]
#[command(
    after_help = "Makes what the model learns from (documents, tokenizer, tokens) and then the model, RUN/pretrain; what is there \
    already is kept, what was interrupted is resumed, on the same mesh or another. `llamero run` goes on from there.\n\n\
    Ranks are threads of one process, or, with --transport mpi, as many processes as `mpirun` or `srun` starts. On SIGTERM, Ctrl-C or \
    SIGUSR1 training leaves a checkpoint and ends with code 1; the same command goes on. (`mpirun` kills its ranks a second after \
    SIGTERM; SIGUSR1 it passes on.)\n\n\
    With --supervise another process watches the job: it starts it again when it dies or hangs, from the newest checkpoint \
    that is whole, and gives up when that happens too often or three times without a new step. RUN/pretrain.ledger.jsonl tells \
    where the time went.\n\n\
    --dry-run prints what a run will take, from the recipe alone: memory of a rank by kind, messages by axis and kind, the bubble of \
    the pipeline, steps, tokens, hours, checkpoints. It reads no data and writes nothing, so it plans any mesh anywhere.\n\n\
    Examples:\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=2\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=2,pp=2 --chunks 2 --set pretrain.micro_batch=1 --supervise\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=4 --shard parameters\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=2,tp=2 --supervise --chaos 1 --mtbf 20s\n  \
    mpirun -n 4 llamero pretrain recipes/quickstart.toml --mesh dp=2,tp=2 --transport mpi\n  \
    llamero pretrain recipes/quickstart.toml --mesh dp=2,tp=2 --transport mpi --supervise --launcher \"mpirun --oversubscribe\"\n  \
    llamero pretrain recipes/llama3-405b.toml --mesh dp=64,pp=16,tp=8 --chunks 8 --dry-run --device h100\n  \
    llamero pretrain RUN/recipe.toml --mesh dp=2 --dry-run --json"
)]
pub(crate) struct PretrainArgs {
    /// The recipe, a TOML file.
    pub(super) recipe: PathBuf,
    /// Set a value of the recipe, e.g. `pretrain.steps=1000`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Ranks, e.g. `dp=2,pp=2,cp=2,tp=2`: data, pipeline, context and tensor parallel (the same as `--set run.mesh=…`).
    #[arg(long)]
    mesh: Option<Mesh>,
    /// Chunks of the model on each pipeline stage; more than one is the interleaved schedule.
    #[arg(long)]
    chunks: Option<usize>,
    /// Micro-batches that follow each other in a chunk (N of the paper); as many as there are stages when absent.
    #[arg(long, value_name = "N")]
    chunk_run: Option<usize>,
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
    pub(super) launcher: String,
    /// Machines for a supervised job, e.g. `a:8,b:8,c:8`; they take the place of `{hosts}` in --launcher.
    #[arg(long, value_name = "HOSTS", value_delimiter = ',', requires = "supervise")]
    pub(super) hosts: Vec<String>,
    /// So many of the hosts, the last ones, are spare: one takes the place of a host whose ranks have spoiled three jobs.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "hosts")]
    pub(super) spares: usize,
    /// Most restarts.
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "supervise")]
    pub(super) restarts: u32,
    /// A job that trains and makes no step for so long hangs.
    #[arg(long, value_name = "TIME", default_value = "10m", requires = "supervise")]
    pub(super) hang_after: String,
    /// Break the job on purpose: kills, hangs, pauses, damaged checkpoints. The same seed, the same faults.
    #[arg(long, value_name = "SEED", requires = "supervise")]
    pub(super) chaos: Option<u64>,
    /// Mean time between two of them.
    #[arg(long, value_name = "TIME", default_value = "20s", requires = "chaos")]
    pub(super) mtbf: String,
    /// Do not run it once more undisturbed to see that the weights are the same.
    #[arg(long, requires = "chaos")]
    pub(super) no_comparison: bool,
    /// Process that watches this job: without it the job stops with a checkpoint. What --supervise gives the job.
    #[arg(long, value_name = "PID", hide = true)]
    watch_for: Option<u32>,
    /// Folder with faults that ranks are to have; what --chaos gives the job.
    #[arg(long, value_name = "DIR", hide = true)]
    orders: Option<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl PretrainArgs {
    /// All `--set`s.
    fn sets(&self) -> Vec<String> {
        let mesh = self.mesh.map(|mesh| format!("run.mesh=\"{mesh}\""));
        let chunks = self.chunks.map(|chunks| format!("run.chunks={chunks}"));
        let chunk_run = self.chunk_run.map(|run| format!("run.chunk_run={run}"));
        let chunks = chunks.into_iter().chain(chunk_run);
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
    pipeline::expect_recipe(&args.recipe)?;
    let sets = args.sets();
    if let Some(pid) = args.watch_for {
        termination::end_with(pid);
    }
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
        say!("error: {}", failure::text(error, true));
    }
    processes.give(&Order::Leave { failed: done.is_err() })?;
    done.map_err(|_| Quiet.into())
}
