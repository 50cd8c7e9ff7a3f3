//! Training: optimiser, schedule, step, checkpoints, and the plan that fits a run to a time budget.
//!
//! [`Trainer`] turns packed sequences into updates; [`train()`] is the loop around it that resumes, watches for spikes,
//! writes checkpoints and reports. Pre-training and fine-tuning differ only in their [`SequenceSource`] and settings.
//!
//! Every number that a step produces is a function of (initial weights, settings, sequences): not of threads, of
//! recomputation, of how often the process was killed in between, nor, unless gradients are sharded, of micro-batches. A mesh
//! adds up in its own order.

mod average;
mod chaos;
mod checkpoint;
mod config;
mod context;
mod error;
mod family;
mod faults;
mod fit;
mod goodput;
mod gradients;
mod guard;
mod hosts;
mod incidents;
mod ledger;
mod memory;
mod mesh;
mod mesh_plan;
mod optimizer;
mod phases;
mod pipeline;
mod plan;
mod replicas;
mod schedule;
mod sharding;
mod stragglers;
mod supervisor;
mod trainer;

pub use chaos::Chaos;
pub use checkpoint::{Checkpoints, Failures, young_daly};
pub use config::{OptimizerConfig, TrainConfig};
pub use error::TrainError;
pub use faults::{Fault, Order, Orders};
pub use fit::{Observer, SequenceSource, StepRecord, TrainReport, finished, train};
pub use goodput::{Goodput, GoodputMeter};
pub use guard::{Finding, Guard, Sign};
pub use hosts::Hosts;
pub use incidents::{Incident, IncidentTable, Strike, incidents};
pub use ledger::{Entry, Event, Ledger};
pub use memory::{Kernels, MemoryEstimate, RankMemory, RankOf, estimate_memory, rank_memory};
pub use mesh::{Mesh, MeshPlace, Ranks};
pub use mesh_plan::{
    AxisTraffic, Bandwidth, BatchPlan, Device, Kind as MessageKind, KindTraffic, MeshPlan, MeshQuestion,
    MfuSource, StagePlan, Traffic, plan_mesh,
};
pub use optimizer::Optimizer;
pub use phases::{Annealing, MixStage, RampStage, StepSettings};
pub use pipeline::{Action, Pipeline, PipelineConfig, stage_layers};
pub use plan::{Measurement, Plan, measure, plan};
pub use schedule::learning_rate;
pub use sharding::Sharding;
pub use stragglers::{LongStep, Stragglers};
pub use supervisor::{Ended, Supervisor};
pub use trainer::{StepGradients, StepOutcome, Trainer, build_stages};
