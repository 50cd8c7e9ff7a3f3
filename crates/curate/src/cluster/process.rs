//! The processes of a cluster: one scheduler, and executors.

use std::fs::{File, TryLockError};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ballista_core::config::{BALLISTA_CLIENT_GRPC_MAX_MESSAGE_SIZE, TaskSchedulingPolicy};
use ballista_core::extension::SessionConfigExt;
use ballista_core::ids::new_instance_id;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::{create_scheduler, start_grpc_service_with_listener};
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};

use super::MESSAGE_BYTES;
use super::codec::Codec;
use super::functions::Functions;
use crate::CurateError;
use crate::local::MIN_MEMORY_BYTES;
use crate::plan::Registry;

/// A scheduler of Ballista that knows our operators. It holds no records and writes nothing.
#[derive(Clone, Debug)]
pub struct Scheduler {
    /// Address to listen on.
    pub bind_host: String,
    /// Port to listen on; 0 for one that is free.
    pub port: u16,
    /// Seconds without a word after which an executor counts as dead, and its tasks are given to others. An executor speaks
    /// every five seconds or more often.
    pub executor_timeout_seconds: u64,
}

/// An executor of Ballista that knows our operators. It has no security: whoever reaches its port reads records.
#[derive(Clone, Debug)]
pub struct Executor {
    /// Host of the scheduler.
    pub scheduler_host: String,
    /// Port of the scheduler.
    pub scheduler_port: u16,
    /// Seconds to wait for a scheduler that is not there yet.
    pub wait_seconds: u16,
    /// Address to listen on, where other executors fetch records.
    pub bind_host: String,
    /// Port to listen on; 0 for one that is free.
    pub port: u16,
    /// The name under which other executors reach this one; absent: the address from which the scheduler is called.
    pub external_host: Option<String>,
    /// Folder for records on their way between tasks. It is this executor's alone.
    pub work: PathBuf,
    /// Tasks at a time.
    pub threads: usize,
    /// Bytes that buffers may hold, over all tasks; 2 MiB for each at the least.
    pub memory_bytes: u64,
}

impl Scheduler {
    /// Listens, tells `listening` where, and serves until the process ends.
    ///
    /// # Errors
    /// An address that cannot be listened on.
    pub fn run(&self, listening: impl FnOnce(SocketAddr)) -> Result<(), CurateError> {
        let (listener, at) = listen(&self.bind_host, self.port)?;
        let timeout = self.executor_timeout_seconds;
        let config = SchedulerConfig {
            namespace: "llamero".to_owned(),
            bind_host: self.bind_host.clone(),
            bind_port: at.port(),
            external_host: at.ip().to_string(),
            scheduling_policy: TaskSchedulingPolicy::PullStaged,
            override_physical_codec: Some(Arc::new(Codec::new(Arc::new(Functions::none())))),
            override_config_producer: Some(Arc::new(session)),
            executor_timeout_seconds: timeout,
            expire_dead_executor_interval_seconds: (timeout / 4).max(1),
            no_executors_grace_period_seconds: timeout.max(30),
            // Nobody fetches the rows of a job that is done.
            finished_job_data_clean_up_interval_seconds: 10,
            finished_job_state_clean_up_interval_seconds: 600,
            grpc_server_max_decoding_message_size: MESSAGE_BYTES,
            grpc_server_max_encoding_message_size: MESSAGE_BYTES,
            grpc_client_max_message_size: MESSAGE_BYTES,
            ..SchedulerConfig::default()
        };
        let failed = |error: &dyn std::fmt::Display| cannot_listen(&at.to_string(), error);
        runtime(1).map_err(|error| failed(&error))?.block_on(async {
            let cluster = BallistaCluster::new_from_config(&config).await.map_err(|error| failed(&error))?;
            let scheduler = create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, Arc::new(config));
            let scheduler = scheduler.await.map_err(|error| failed(&error))?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| failed(&error))?;
            listening(at);
            start_grpc_service_with_listener(listener, scheduler).await.map_err(|error| failed(&error))
        })
    }
}

impl Executor {
    /// Does tasks with the functions of `registry`, which must be that of the driver, until the process ends; on SIGTERM
    /// and SIGINT it ends those it has. Tells `listening` where other executors reach it.
    ///
    /// # Errors
    /// A scheduler that is not there, an address that cannot be listened on, a folder that cannot be written.
    pub fn run(&self, registry: Registry, listening: impl FnOnce(SocketAddr)) -> Result<(), CurateError> {
        let (listener, at) = listen(&self.bind_host, self.port)?;
        // Ballista binds the port itself.
        drop(listener);
        let [shuffle, scratch] = ["ballista-shuffle", "ballista-sort"].map(|name| self.work.join(name));
        let _lock = self.clear(&[&shuffle, &scratch])?;
        let id = new_instance_id();
        let threads = self.threads.max(1);
        // Half is for the records that a task sends, half for those that it sorts.
        let half = self.memory_bytes.max(2 * MIN_MEMORY_BYTES * threads as u64) / 2;
        let budget = usize::try_from(half / threads as u64).unwrap_or(usize::MAX);
        let functions = Functions::new(registry, id.clone(), scratch, budget);
        let config = ExecutorProcessConfig {
            executor_id: id,
            bind_host: at.ip().to_string(),
            external_host: self.external_host.clone(),
            port: at.port(),
            scheduler_host: self.scheduler_host.clone(),
            scheduler_port: self.scheduler_port,
            scheduler_connect_timeout_seconds: self.wait_seconds,
            vcores: threads,
            task_scheduling_policy: TaskSchedulingPolicy::PullStaged,
            work_dir: Some(text(&shuffle)?),
            memory_pool_size: Some(half),
            grpc_max_decoding_message_size: MESSAGE_BYTES,
            grpc_max_encoding_message_size: MESSAGE_BYTES,
            override_config_producer: Some(Arc::new(session)),
            override_physical_codec: Some(Arc::new(Codec::new(Arc::new(functions)))),
            ..ExecutorProcessConfig::default()
        };
        let failed = |error: &dyn std::fmt::Display| CurateError::Cluster {
            address: format!("df://{}:{}", self.scheduler_host, self.scheduler_port),
            problem: format!("has lost this executor: {error}"),
            hint: "start `llamero curate scheduler` there first, or let this executor wait for it".to_owned(),
        };
        listening(at);
        let runtime = runtime(threads).map_err(|error| failed(&error))?;
        runtime.block_on(start_executor_process(Arc::new(config))).map_err(|error| failed(&error))
    }
}

impl Executor {
    /// Takes the work folder and removes what an executor before this one has left. The folder is ours while the lock lives.
    fn clear(&self, folders: &[&Path]) -> Result<File, CurateError> {
        let failed = |error: std::io::Error| CurateError::write(&self.work, error);
        std::fs::create_dir_all(&self.work).map_err(failed)?;
        let lock = self.work.join("lock");
        let lock = File::options().write(true).create(true).truncate(false).open(lock).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CurateError::Work {
                    path: self.work.clone(),
                    problem: "is in use by another executor".to_owned(),
                    hint: "give each executor a folder of its own".to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        for folder in folders {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => std::fs::create_dir_all(folder).map_err(failed)?,
            }
        }
        Ok(lock)
    }
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// The settings of a process, before those of a job.
fn session() -> SessionConfig {
    SessionConfig::new_with_ballista()
        .set_usize(BALLISTA_CLIENT_GRPC_MAX_MESSAGE_SIZE, MESSAGE_BYTES as usize)
}

fn listen(host: &str, port: u16) -> Result<(TcpListener, SocketAddr), CurateError> {
    let place = format!("{host}:{port}");
    let open = || -> std::io::Result<(TcpListener, SocketAddr)> {
        let first = (host, port).to_socket_addrs()?.next();
        let listener =
            TcpListener::bind(first.ok_or_else(|| std::io::Error::other("its name leads nowhere"))?)?;
        listener.set_nonblocking(true)?;
        let at = listener.local_addr()?;
        Ok((listener, at))
    };
    open().map_err(|error| cannot_listen(&place, &error))
}

fn cannot_listen(place: &str, error: &dyn std::fmt::Display) -> CurateError {
    CurateError::Cluster {
        address: place.to_owned(),
        problem: format!("cannot be listened on: {error}"),
        hint: "give another host or port".to_owned(),
    }
}

fn text(path: &Path) -> Result<String, CurateError> {
    let problem = || CurateError::write(path, "its name is not UTF-8");
    path.to_str().map(str::to_owned).ok_or_else(problem)
}
