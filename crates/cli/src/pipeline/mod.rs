//! `llamero run`: the stages of a recipe, in order, each an artifact.
//!
//! ```text
//! sources → curate ─┬→ tokenizer → tokens → pretrain ─┐
//!                   └→ instruct ─────────────→ sft ───┴→ evaluate → report.html
//! ```
//! A stage whose artifact is there is skipped; one that was interrupted resumes. Keys of stages depend on the settled
//! recipe and on the inputs' ids only, so a settled recipe gives the same ids anywhere.

mod changes;
mod curate;
mod evaluate;
mod follow;
mod job;
mod plan;
mod report_data;
mod stages;
mod training;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use llamero_artifact::{
    Artifact, Begin, Draft, InputRef, Outcome, Reason, RunDir, StageKey, WORK_STATE, fsutil, recipe as files,
};
use llamero_tensor::Backend;
use llamero_train::{Kernels, TrainConfig};
use serde::Serialize;

pub(crate) use self::curate::{CurateOptions, Curated, check_memory, curate, estimate, lost};
pub(crate) use self::follow::{Order, follow};
use crate::processes::Processes;
use crate::recipe::{Recipe, Transport};
use crate::termination::Termination;

/// File with the settled recipe in a run folder.
pub(crate) const RECIPE_FILE: &str = "recipe.toml";
/// Part of every stage's id. Raise it when a change to the code makes other bytes from the same recipe and inputs, so
/// that artifacts and drafts of older versions are not taken for new ones.
const SCHEMA: u32 = 1;
/// The report in a run folder.
pub(crate) const REPORT_FILE: &str = "report.html";

/// Folders of the stages in a run folder, in the order they are worked on.
pub(crate) const STAGES: [&str; 8] =
    ["plan", "curate", "tokenizer", "instruct", "tokens", "pretrain", "sft", "evaluate"];

/// What a stage was, for the summary.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StageDone {
    pub(crate) name: String,
    pub(crate) id: String,
    /// Seconds of work in this stage, over all processes that worked on it.
    pub(crate) seconds: f64,
    /// Whether it was there already.
    pub(crate) reused: bool,
}

/// A run in progress.
pub(crate) struct Run {
    dir: RunDir,
    recipe: Recipe,
    backend: Arc<dyn Backend>,
    kernels: Kernels,
    termination: Termination,
    /// The other ranks, where they are processes.
    processes: Option<Rc<Processes>>,
    /// Folder with the faults that a supervisor in chaos mode orders.
    orders: Option<PathBuf>,
    done: Vec<StageDone>,
    remarks: Vec<String>,
}

/// Results of a whole run.
#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) run: PathBuf,
    pub(crate) report: PathBuf,
    pub(crate) seconds: f64,
    pub(crate) expected_seconds: f64,
    pub(crate) peak_memory_bytes: Option<u64>,
    pub(crate) stages: Vec<StageDone>,
    pub(crate) evaluation: evaluate::Evaluation,
    pub(crate) remarks: Vec<String>,
}

/// An error that helps when there is no recipe at a path.
pub(crate) fn expect_recipe(path: &Path) -> Result<()> {
    if !path.is_file() {
        bail!(
            "no recipe at `{}`: {}\nhint: a recipe is a TOML file such as `recipes/quickstart.toml`",
            path.display(),
            if path.exists() { "it is not a file" } else { "there is no such file" }
        );
    }
    Ok(())
}

/// Reads a recipe, lets `adapt` change it, checks it and makes its run folder.
fn open(
    path: &Path,
    sets: &[String],
    processes: Option<Rc<Processes>>,
    adapt: impl FnOnce(&mut Recipe),
) -> Result<Run> {
    expect_recipe(path)?;
    let mut recipe: Recipe = files::load(path, sets)?;
    adapt(&mut recipe);
    recipe.validate().with_context(|| format!("`{}`", path.display()))?;
    if recipe.run.transport == Transport::Mpi && processes.is_none() {
        bail!(
            "`run.transport` is `mpi`, which is for `llamero pretrain` alone\n\
             hint: mpirun -n RANKS llamero pretrain …, and then `llamero run` with --set run.transport=threads"
        );
    }
    let threads = recipe.run.threads;
    let cpu = crate::device(threads)?;
    let kernels = crate::kernels(&cpu);
    let backend: Arc<dyn Backend> = Arc::new(cpu);
    if let Some(threads) = threads {
        // The pool of the text stages; fails only when it was built before, which nothing does.
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().ok();
    }
    let dir = RunDir::create(&recipe.run.dir).context("`run.dir` cannot be used")?;
    let termination = Termination::listen().context("SIGTERM cannot be listened to")?;
    Ok(Run {
        dir,
        recipe,
        backend,
        kernels,
        termination,
        processes,
        orders: None,
        done: Vec::new(),
        remarks: Vec::new(),
    })
}

/// What `llamero pretrain` made.
#[derive(Serialize)]
pub(crate) struct Pretrained {
    pub(crate) model: PathBuf,
    pub(crate) id: String,
    pub(crate) ledger: PathBuf,
    pub(crate) tokens: u64,
    pub(crate) loss: f64,
    pub(crate) remarks: Vec<String>,
}

/// File in a run folder that tells where the time of a training stage went.
pub(crate) fn ledger_file(stage: &str) -> String {
    format!("{stage}.ledger.jsonl")
}

/// Runs a recipe up to its pre-trained model; of ranks that are `processes`, as the first one. `orders` is a folder with faults that
/// ranks are to have.
pub(crate) fn pretrain(
    path: &Path,
    sets: &[String],
    orders: Option<&Path>,
    processes: Option<Rc<Processes>>,
) -> Result<Pretrained> {
    let mut run = open(path, sets, processes, |_| ())?;
    run.orders = orders.map(Path::to_owned);
    let (_, curated) = run.settled_and_curated(&["pretrain"])?;
    let tokenizer = run.tokenizer(&curated)?;
    let tokens = run.tokens(&curated, &tokenizer)?;
    let model = run.pretrain(&tokenizer, &tokens)?;
    let (_, metrics) = training::history(&model)?;
    Ok(Pretrained {
        model: model.path().into(),
        id: model.id().into(),
        ledger: run.dir.path().join(ledger_file("pretrain")),
        tokens: metrics.tokens,
        loss: metrics.last_loss,
        remarks: run.remarks.into_iter().chain(metrics.remarks).collect(),
    })
}

/// Runs a recipe to its end.
pub(crate) fn run(path: &Path, sets: &[String]) -> Result<Summary> {
    let started = Instant::now();
    let mut run = open(path, sets, None, |_| ())?;
    let (plan, curated) = run.settled_and_curated(&["pretrain", "sft"])?;
    let tokenizer = run.tokenizer(&curated)?;
    let instruct = run.instruct(&curated)?;
    let tokens = run.tokens(&curated, &tokenizer)?;
    run.questions(&tokenizer, &instruct)?;
    let pretrained = run.pretrain(&tokenizer, &tokens)?;
    let tuned = run.sft(&tokenizer, &instruct, &pretrained)?;
    let evaluation = run.evaluate(&tokens, &instruct, [&pretrained, &tuned])?;
    run.remarks.extend(training::remarks([&pretrained, &tuned])?);
    let seconds = started.elapsed().as_secs_f64();
    let mut summary = Summary {
        run: run.dir.path().into(),
        report: run.dir.path().join(REPORT_FILE),
        seconds,
        expected_seconds: plan.expected_seconds,
        peak_memory_bytes: crate::machine::peak_memory(),
        stages: run.done.clone(),
        evaluation: evaluate::Evaluation::read(&evaluation)?,
        remarks: run.remarks.clone(),
    };
    // A run that found everything there keeps the report of the run that did the work, with its times.
    if !summary.report.exists() || summary.stages.iter().any(|s| !s.reused) {
        let data = report_data::collect(&run, &summary, &curated, [&pretrained, &tuned])?;
        fsutil::write_atomic(&summary.report, crate::report::render(&data)?.as_bytes())?;
    }
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(summary)
}

impl Run {
    /// The plan, and the documents; the settled recipe is in the run folder. A mesh that does not fit the training `stages`
    /// is refused before the work begins.
    fn settled_and_curated(&mut self, stages: &[&str]) -> Result<(plan::PlanFile, Artifact)> {
        let plan = self.settle()?;
        let preset = self.recipe.model.preset.as_deref().context("the plan settles `model.preset`")?;
        let sizes = self.recipe.model_config(preset, self.recipe.tokenizer.vocab_size)?;
        for (name, config) in [("pretrain", &self.recipe.pretrain), ("sft", &self.recipe.sft)] {
            if stages.contains(&name) {
                let config = TrainConfig { pipeline: self.recipe.run.pipeline()?, ..config.clone() };
                self.recipe
                    .run
                    .mesh()?
                    .check(&sizes, &config)
                    .with_context(|| format!("section [{name}]"))?;
            }
        }
        let curated = match self.curate() {
            Ok(curated) => curated,
            Err(error) => {
                self.forget_plan()?;
                return Err(error);
            }
        };
        self.write_recipe()?;
        Ok((plan, curated))
    }

    /// Begins a stage, and does its `work` unless its artifact is there. `work` gets the folder to fill and reports what
    /// it measured; a failure leaves the draft to be resumed.
    fn stage(
        &mut self,
        name: &str,
        recipe: impl Serialize,
        inputs: Vec<InputRef>,
        work: impl FnOnce(&mut Self, &Draft) -> Result<Outcome>,
    ) -> Result<Artifact> {
        let key = stage_key(name, recipe, inputs)?;
        match self.begin_whole(name, &key)? {
            Begin::Done(artifact) => {
                let seconds = artifact.manifest().provenance.wall_seconds;
                say!("{name:>10} already there ({})", artifact.id());
                self.done.push(StageDone {
                    name: name.into(),
                    id: artifact.id().into(),
                    seconds,
                    reused: true,
                });
                Ok(artifact)
            }
            Begin::Work(draft) => {
                let started = Instant::now();
                // The old report tells of another result than the one that is being made.
                remove_file(&self.dir.path().join(REPORT_FILE))?;
                if let Reason::Changed(_) = draft.reason() {
                    say!("{name:>10} was made from another recipe or other inputs; it will be replaced");
                }
                if draft.resumed() {
                    say!("{name:>10} resuming");
                }
                let worked = work(self, &draft).with_context(|| format!("stage `{name}`"));
                let mut outcome = match worked {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        // Only what can be resumed is kept.
                        if !draft.path().join(WORK_STATE).exists() {
                            draft.discard();
                        }
                        return Err(error);
                    }
                };
                if outcome.wall_seconds == 0.0 {
                    outcome.wall_seconds = started.elapsed().as_secs_f64();
                }
                let artifact = draft.finish(outcome)?;
                let seconds = artifact.manifest().provenance.wall_seconds;
                say!("{name:>10} done in {seconds:.1} s");
                self.done.push(StageDone {
                    name: name.into(),
                    id: artifact.id().into(),
                    seconds,
                    reused: false,
                });
                Ok(artifact)
            }
        }
    }

    /// Begins a stage. An artifact with a file that changed since it was finished must not flow into later stages: it
    /// is made again, and stays where it is until that is done.
    fn begin_whole(&mut self, name: &str, key: &StageKey) -> Result<Begin> {
        let begun = self.dir.begin(name, key)?;
        let Begin::Done(artifact) = &begun else { return Ok(begun) };
        let Err(error) = artifact.verify() else { return Ok(begun) };
        if !error.is_damage() {
            return Err(error.into());
        }
        let damage = error.to_string();
        let found = damage.split(". hint: ").next().unwrap_or_default();
        say!("{name:>10} is made again: {found}");
        self.remarks.push(format!("{name}: made again, because {found}"));
        Ok(self.dir.begin_again(name, key)?)
    }

    /// Takes back the plan that this process made: there is nothing that it could plan for.
    fn forget_plan(&self) -> Result<()> {
        if self.done.iter().any(|s| s.name == "plan" && !s.reused) {
            fsutil::remove_dir(&self.dir.path().join("plan"))?;
        }
        Ok(())
    }

    /// Writes the settled recipe into the run folder.
    fn write_recipe(&self) -> Result<()> {
        let settled = files::to_toml(&self.recipe)?;
        fsutil::write_atomic(&self.dir.path().join(RECIPE_FILE), settled.as_bytes())?;
        Ok(())
    }
}

/// What determines the artifact of a stage.
fn stage_key(name: &str, recipe: impl Serialize, inputs: Vec<InputRef>) -> Result<StageKey> {
    let recipe = serde_json::to_value(recipe).context("a recipe section as JSON")?;
    Ok(StageKey { kind: name.into(), schema: SCHEMA, recipe, inputs })
}

/// Removes a file if it is there.
fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("`{}`", path.display()))
        }
        _ => Ok(()),
    }
}

/// Serialises a value to a JSON file of a draft.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    fsutil::write_atomic(path, &text)?;
    Ok(())
}
