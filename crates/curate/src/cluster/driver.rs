//! The driver: walks through a plan and has each stage done by the cluster.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ballista_core::config::{
    BALLISTA_CLIENT_GRPC_HTTP2_KEEPALIVE_INTERVAL_SECONDS, BALLISTA_CLIENT_GRPC_MAX_MESSAGE_SIZE,
    BALLISTA_SCHEDULER_MAX_PARTITIONS_PER_TASK,
};
use ballista_core::execution_plans::execute_physical_plan;
use ballista_core::extension::SessionConfigExt;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::PhysicalPlanNode;
use futures::future::{Either, select};
use tokio::runtime::Runtime;

use super::MESSAGE_BYTES;
use super::address::Address;
use super::codec::Codec;
use super::exec;
use super::functions::{
    Functions, Origin, Place, STAGE, StageFile, StageInput, StageReduce, TaskInput, source_file,
};
use super::said;
use super::shuffle::slots;
use crate::local::file::{Writer, is_whole};
use crate::local::stage::{Data, Finished, Split, part, side_files};
use crate::local::work::{WorkFolder, write_whole};
use crate::local::{Done, Local, Stages, given, walk};
use crate::plan::{Plan, Source, Stage, Step};
use crate::{CurateError, Progress};

/// How often the scheduler is asked whether it is still there, and how often in a row it may fail to say so.
const WATCH: Duration = Duration::from_secs(2);
const MISSES: usize = 3;

/// Runs a plan on the cluster of the scheduler at `address`; work folder, partitions and what to do with broken inputs are
/// those of `local`. `described` is each source as data.
pub(crate) fn run(
    address: &str,
    local: &Local,
    plan: &Plan,
    sources: &BTreeMap<&str, &dyn Source>,
    described: &BTreeMap<&str, Step>,
    progress: &dyn Progress,
) -> Result<Done, CurateError> {
    let address = Address::parse(address)?;
    plan.validate()?;
    let data = given(plan, sources)?;
    let absolute =
        std::path::absolute(&local.work).map_err(|error| CurateError::write(&local.work, error))?;
    let local = Local { work: absolute, ..local.clone() };
    address.wait_until_ready()?;
    let work = WorkFolder::open(&local, "ballista", plan, sources)?;
    for (name, step) in described {
        write_whole(&source_file(work.run(), name), step)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let driver = Driver {
        runtime: runtime.map_err(|error| address.gone(error.to_string()))?,
        functions: Arc::new(Functions::none()),
        work: utf8(work.path())?,
        fingerprint: work.fingerprint().to_owned(),
        address,
        local: &local,
        progress,
    };
    walk(&local, plan, data, work, &driver)
}

fn utf8(path: &Path) -> Result<String, CurateError> {
    let problem = || CurateError::Work {
        path: path.to_path_buf(),
        problem: "has a name that is not UTF-8".to_owned(),
        hint: "give another folder".to_owned(),
    };
    path.to_str().map(str::to_owned).ok_or_else(problem)
}

struct Driver<'a> {
    runtime: Runtime,
    functions: Arc<Functions>,
    address: Address,
    work: String,
    fingerprint: String,
    local: &'a Local,
    progress: &'a dyn Progress,
}

impl Stages for Driver<'_> {
    fn stage(
        &self,
        stage: &Stage,
        folder: &Path,
        data: &BTreeMap<String, Data>,
    ) -> Result<Finished, CurateError> {
        if let Some(finished) = Finished::read(folder)? {
            return Ok(finished);
        }
        std::fs::create_dir_all(folder).map_err(|error| CurateError::write(folder, error))?;
        let (file, bytes) = self.describe(stage, data)?;
        write_whole(&folder.join(STAGE), &file)?;
        if bytes > 0 {
            self.progress.phase(&stage.name, bytes);
        }
        let partitions = file.reduce.as_ref().map(|reduce| reduce.slots.len());
        let parts: Vec<_> = (0..partitions.unwrap_or(file.tasks.len())).map(|at| part(folder, at)).collect();
        // A reduce needs what all of its map tasks send. Maps alone are done where their part is missing.
        let missing = |at: &usize| partitions.is_some() || !is_whole(&parts[*at]);
        let tasks: Vec<u64> = (0..file.tasks.len()).filter(missing).map(|at| at as u64).collect();
        if file.tasks.is_empty() {
            for path in &parts {
                Writer::create(path)?.finish()?;
            }
        } else if !tasks.is_empty() {
            let place = Place {
                work: self.work.clone(),
                fingerprint: self.fingerprint.clone(),
                folder: utf8(folder)?,
            };
            let job = exec::plan(&self.functions, &place, &tasks, partitions);
            self.submit(&stage.name, job.map_err(|error| self.failed(&error))?)?;
        }
        if let Some(path) = parts.iter().find(|path| !path.exists()) {
            return Err(CurateError::Work {
                path: path.clone(),
                problem: "was not written, though its task is done".to_owned(),
                hint:
                    "let `run.dir` lie on storage that the driver and all executors have under the same path"
                        .to_owned(),
            });
        }
        let finished = Finished::gather(parts, &[])?;
        finished.write(folder)?;
        remove_others(folder, &finished);
        self.progress.advance(bytes);
        Ok(finished)
    }
}

impl Driver<'_> {
    /// A stage as data, and the bytes that it reads.
    fn describe(
        &self,
        stage: &Stage,
        data: &BTreeMap<String, Data>,
    ) -> Result<(StageFile, u64), CurateError> {
        let (mut inputs, mut tasks, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (at, input) in stage.inputs.iter().enumerate() {
            inputs.push(StageInput { maps: input.maps.clone(), side: side_files(input, data)?.to_vec() });
            let mut task = |split: Split, from| {
                bytes += split.bytes();
                tasks.push(TaskInput { input: at, from });
            };
            match &data[&input.from] {
                Data::Source(source) => {
                    for split in 0..source.splits() {
                        let from = Origin::Split { source: input.from.clone(), split };
                        task(Split::Source(*source, split), from);
                    }
                }
                Data::Files(finished) => {
                    for path in &finished.files {
                        task(Split::File(path), Origin::Part(path.clone()));
                    }
                }
            }
        }
        let reduce = match &stage.reduce {
            Some(step) => {
                Some(StageReduce { step: step.clone(), slots: slots(self.local.partitions.max(1))? })
            }
            None => None,
        };
        let stop_at_broken = self.local.stop_at_broken;
        Ok((StageFile { inputs, tasks, reduce, stop_at_broken }, bytes))
    }

    /// Has a job done. Its result is in the work folder; the rows that it gives are not fetched.
    fn submit(&self, name: &str, job: Arc<dyn ExecutionPlan>) -> Result<(), CurateError> {
        self.address.wait_until_ready()?;
        let config = session(name);
        self.runtime.block_on(async {
            let codec = Codec::new(Arc::clone(&self.functions));
            let (url, ballista) = (self.address.url(), config.ballista_config());
            let done = execute_physical_plan::<PhysicalPlanNode>(
                url,
                &ballista,
                job,
                &codec,
                self.fingerprint.clone(),
                config,
            );
            match select(pin!(done), pin!(self.watch())).await {
                Either::Left((Ok(_), _)) => Ok(()),
                Either::Left((Err(error), _)) => Err(self.failed(&error)),
                Either::Right((gone, _)) => Err(gone),
            }
        })
    }

    /// Ends when the scheduler no longer answers: of a machine that is gone no connection tells.
    async fn watch(&self) -> CurateError {
        let mut misses = 0;
        loop {
            tokio::time::sleep(WATCH).await;
            let address = self.address.clone();
            match tokio::task::spawn_blocking(move || address.health()).await {
                Ok(Err(error)) if misses + 1 == MISSES => return error,
                Ok(Err(_)) => misses += 1,
                Ok(Ok(_)) | Err(_) => misses = 0,
            }
        }
    }

    fn failed(&self, error: &DataFusionError) -> CurateError {
        let error = error.to_string();
        if let Some(message) = said::words(&error) {
            return CurateError::Remote { message };
        }
        match self.address.health() {
            Ok(_) => {
                let hint = "look at what the scheduler and the executors say".to_owned();
                CurateError::Cluster { address: self.address.to_string(), problem: error, hint }
            }
            Err(gone) => gone,
        }
    }
}

/// The settings of a job.
fn session(name: &str) -> SessionConfig {
    SessionConfig::new_with_ballista()
        .with_ballista_job_name(name)
        .with_round_robin_repartition(false)
        // A task is one split or one part, so that little is lost with an executor.
        .set_usize(BALLISTA_SCHEDULER_MAX_PARTITIONS_PER_TASK, 1)
        .set_usize(BALLISTA_CLIENT_GRPC_MAX_MESSAGE_SIZE, MESSAGE_BYTES as usize)
        .set_usize(BALLISTA_CLIENT_GRPC_HTTP2_KEEPALIVE_INTERVAL_SECONDS, 10)
}

/// Removes what dead executors have left in the folder of a finished stage.
fn remove_others(folder: &Path, finished: &Finished) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    for path in entries.map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "json") && !finished.files.contains(&path) {
            // What stays goes with the work folder.
            let _ = std::fs::remove_file(path);
        }
    }
}
