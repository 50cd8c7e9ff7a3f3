//! `llamero curate scheduler` and `llamero curate executor`: the processes of a cluster that curates.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

#[derive(Args)]
#[command(
    after_help = "A cluster is one scheduler and any number of executors, all of the same build. It has no security: let \
    none but its own processes reach its ports.\n\n\
    Examples:\n  \
    llamero curate scheduler --bind-host 10.0.0.1\n  \
    llamero curate executor --scheduler 10.0.0.1:50050 --bind-host 10.0.0.2 --work-dir /scratch/llamero\n  \
    llamero curate run crawl.toml --cluster df://10.0.0.1:50050"
)]
pub(crate) struct SchedulerArgs {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    bind_host: String,
    /// Port to listen on; 0 for one that is free.
    #[arg(long, default_value_t = 50050, allow_negative_numbers = true)]
    port: u16,
    /// Seconds without a word after which an executor counts as dead and its tasks go to others.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(8..=86400), allow_negative_numbers = true)]
    executor_timeout: u64,
    /// What of Ballista's log is said.
    #[arg(long, value_enum, default_value_t = LogArg::Warn)]
    log: LogArg,
}

#[derive(Args)]
#[command(
    after_help = "An executor needs the recipe's inputs and the run's folder under the same paths as `llamero curate run`.\n\n\
    Examples:\n  \
    llamero curate executor --scheduler 10.0.0.1:50050 --bind-host 10.0.0.2 --work-dir /scratch/llamero\n  \
    llamero curate executor --scheduler 10.0.0.1:50050 --bind-host 0.0.0.0 --external-host node7 --work-dir /scratch/llamero \\\n    \
        --threads 16 --memory 8GiB"
)]
pub(crate) struct ExecutorArgs {
    /// Host and port of the scheduler.
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_place, default_value = "127.0.0.1:50050")]
    scheduler: (String, u16),
    /// Seconds to wait for a scheduler that is not there yet.
    #[arg(long, default_value_t = 10, allow_negative_numbers = true)]
    wait: u16,
    /// Address to listen on, where other executors fetch records.
    #[arg(long, default_value = "127.0.0.1")]
    bind_host: String,
    /// Port to listen on; 0 for one that is free.
    #[arg(long, default_value_t = 50051, allow_negative_numbers = true)]
    port: u16,
    /// Name under which other executors reach this one; the address that it calls the scheduler from when absent.
    #[arg(long)]
    external_host: Option<String>,
    /// Folder for records on their way between tasks, on a disk of this machine. No other executor may have it.
    #[arg(long)]
    work_dir: PathBuf,
    /// Tasks at a time; all cores when absent.
    #[arg(long, value_parser = crate::machine::parse_threads, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Most memory for buffers, e.g. `512MiB`; models and the documents at hand come on top.
    #[arg(long, value_parser = crate::machine::parse_size, default_value = "1GiB", allow_negative_numbers = true)]
    memory: u64,
    /// What of Ballista's log is said.
    #[arg(long, value_enum, default_value_t = LogArg::Warn)]
    log: LogArg,
}

/// From which gravity on a line of the log is said.
#[derive(Clone, Copy, ValueEnum)]
enum LogArg {
    Off,
    Error,
    Warn,
    Info,
    Debug,
}

fn parse_place(text: &str) -> Result<(String, u16), String> {
    let place = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let place = place.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    place.filter(|(_, port)| *port > 0).ok_or_else(|| "it is not HOST:PORT".to_owned())
}

#[cfg(feature = "ballista")]
mod ballista {
    use super::{ExecutorArgs, LogArg, Result, SchedulerArgs};
    use llamero_curate::cluster::{Executor, Scheduler};
    use log::{LevelFilter, Log, Metadata, Record};

    pub(crate) fn scheduler(args: &SchedulerArgs) -> Result<()> {
        args.log.begin();
        let scheduler = Scheduler {
            bind_host: args.bind_host.clone(),
            port: args.port,
            executor_timeout_seconds: args.executor_timeout,
        };
        Ok(scheduler.run(|at| say!("scheduler: listening on {at}"))?)
    }

    pub(crate) fn executor(args: &ExecutorArgs) -> Result<()> {
        args.log.begin();
        let (scheduler_host, scheduler_port) = args.scheduler.clone();
        let executor = Executor {
            scheduler_host,
            scheduler_port,
            wait_seconds: args.wait,
            bind_host: args.bind_host.clone(),
            port: args.port,
            external_host: args.external_host.clone(),
            work: args.work_dir.clone(),
            threads: args.threads.unwrap_or_else(crate::machine::threads),
            memory_bytes: args.memory,
        };
        Ok(executor.run(crate::encoders::registry(args.threads), |at| say!("executor: listening on {at}"))?)
    }

    impl LogArg {
        /// From now on the log is said on stderr.
        fn begin(self) {
            let level = match self {
                Self::Off => LevelFilter::Off,
                Self::Error => LevelFilter::Error,
                Self::Warn => LevelFilter::Warn,
                Self::Info => LevelFilter::Info,
                Self::Debug => LevelFilter::Debug,
            };
            if log::set_logger(&Stderr).is_ok() {
                log::set_max_level(level);
            }
        }
    }

    struct Stderr;

    impl Log for Stderr {
        fn enabled(&self, metadata: &Metadata) -> bool {
            // What lies below Ballista says more than anyone wants to read.
            metadata.target().starts_with("ballista")
        }

        fn log(&self, record: &Record) {
            if self.enabled(record.metadata()) {
                say!("{}: {}", record.level().as_str().to_lowercase(), record.args());
            }
        }

        fn flush(&self) {}
    }
}

#[cfg(feature = "ballista")]
pub(crate) use ballista::{executor, scheduler};

#[cfg(not(feature = "ballista"))]
pub(crate) fn scheduler(_args: &SchedulerArgs) -> Result<()> {
    anyhow::bail!(MISSING)
}

#[cfg(not(feature = "ballista"))]
pub(crate) fn executor(_args: &ExecutorArgs) -> Result<()> {
    anyhow::bail!(MISSING)
}

#[cfg(not(feature = "ballista"))]
const MISSING: &str = "this build has no Ballista. hint: build with `--features ballista`";
