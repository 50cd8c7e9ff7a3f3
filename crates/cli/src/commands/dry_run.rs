//! `llamero pretrain --dry-run`: what a run would take, from its recipe alone.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use llamero_artifact::recipe as files;
use llamero_cpu::Cpu;
use llamero_cpu::peak::{self, Unit};
use llamero_model::Recompute;
use llamero_tensor::DType;
use llamero_train::{Device, Mesh, MeshPlan, MeshQuestion, Sharding, TrainConfig, plan_mesh};
use serde::Serialize;

use super::{print, print_json};
use crate::recipe::{Recipe, RunSection};

/// What ranks run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// This machine, which all ranks share
    Cpu,
    /// One NVIDIA H100 of 80 GB a rank
    H100,
}

/// Seconds that the speed of the processor is measured for.
const MEASURED: f64 = 0.05;

/// What is printed with `--json`.
#[derive(Serialize)]
struct Printed<'a> {
    recipe: &'a Path,
    preset: &'a str,
    fits: bool,
    /// The stage that takes most memory.
    fullest: Option<usize>,
    #[serde(flatten)]
    plan: &'a MeshPlan,
}

/// Prints the plan of a recipe. Nothing is read but the recipe, nothing is written, no tensor is made.
pub(crate) fn dry_run(
    path: &Path,
    sets: &[String],
    (device, mfu): (DeviceArg, Option<f64>),
    json: bool,
) -> Result<()> {
    let recipe: Recipe = files::load(path, sets)?;
    recipe.validate().with_context(|| format!("`{}`", path.display()))?;
    let Some(preset) = recipe.model.preset.as_deref() else {
        bail!(
            "`model.preset` is missing: the plan of a run chooses it, by measuring the machine\n\
             hint: --set model.preset=8m, or give the RUN/recipe.toml of a run that was planned"
        )
    };
    let model = recipe.model_config(preset, recipe.tokenizer.vocab_size)?;
    let (mesh, dtype) = (recipe.run.mesh()?, recipe.dtype()?);
    let (pipeline, sharding) = (recipe.run.pipeline()?, recipe.run.sharding()?);
    let config = &TrainConfig { pipeline, sharding, ..recipe.pretrain.clone() };
    let device = match device {
        DeviceArg::H100 => Device::h100(),
        DeviceArg::Cpu => this_machine(mesh, &recipe.run, dtype)?,
    };
    let question = MeshQuestion { model: &model, config, dtype, mesh, device, mfu };
    let plan = plan_mesh(&question).context("section [pretrain]")?;
    if json {
        let fullest = plan.fullest().map(|stage| stage.stage);
        return print_json(&Printed { recipe: path, preset, fits: plan.fits(), fullest, plan: &plan });
    }
    print(format!("{plan}").trim_end())?;
    if !plan.fits() {
        let mut hints = vec!["a mesh with more `pp` or `tp`"];
        if mesh.dp * mesh.cp > 1 && config.sharding < Sharding::Parameters {
            hints.push("`--shard parameters`");
        }
        if config.micro_batch > 1 {
            hints.push("a smaller `pretrain.micro_batch`");
        }
        if config.recompute != Recompute::Blocks {
            hints.push("`pretrain.recompute = \"blocks\"`");
        }
        print(format!("\nhint: {}", hints.join(", or ")))?;
    }
    Ok(())
}

/// A rank's share of this machine.
fn this_machine(mesh: Mesh, run: &RunSection, dtype: DType) -> Result<Device> {
    let all = run.threads.unwrap_or_else(crate::machine::threads);
    let cpu = Cpu::new((all / mesh.size()).max(1))?;
    let memory = crate::machine::available_memory().unwrap_or(u64::MAX);
    let ranks = mesh.size();
    let flops = peak::flops(Unit::fastest(dtype), all, MEASURED);
    Ok(Device::cpu(crate::kernels(&cpu), memory / ranks as u64, flops / ranks as f64))
}
