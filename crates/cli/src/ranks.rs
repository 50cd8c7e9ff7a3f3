//! Work on a mesh of ranks that are threads of this process, each with a device of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use llamero_comm::{CommError, Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_train::{Mesh, Ranks, TrainError};

/// A device for every rank; together they have `threads` threads, or all cores.
pub(crate) fn devices(mesh: Mesh, threads: Option<usize>) -> Result<Vec<Cpu>> {
    let all = threads.unwrap_or_else(crate::machine::threads);
    (0..mesh.size()).map(|_| crate::device(Some((all / mesh.size()).max(1)))).collect()
}

/// Does `work` on every rank and returns what each came to, in order. Of several failures it is the cause that is returned,
/// not that others waited for it in vain. In the folder `flight` ranks leave what they did last before a message failed to come.
pub(crate) fn on_threads<T: Send>(
    mesh: Mesh,
    (options, flight): (WorldOptions, Option<&Path>),
    cpus: &[Cpu],
    work: impl Fn(&Cpu, Ranks) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let worlds = Threads::world(mesh.size(), options);
    if let Some(flight) = flight {
        worlds.iter().for_each(|world| world.record_to(flight.to_owned()));
    }
    let recorders: Vec<_> = worlds.iter().map(|world| Arc::clone(world.recorder())).collect();
    let left = AtomicUsize::new(mesh.size());
    let (work, left) = (&work, &left);
    let one = |(world, cpu): (World, &Cpu)| {
        let rank = world.rank();
        let result = work(cpu, Ranks::new(&world, mesh));
        drop(world);
        left.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = &result
            && matches!(comm_error(error), Some(CommError::Timeout { .. }))
        {
            end_if_others_hang(rank, error, left);
        }
        result
    };
    let one = &one;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = worlds.into_iter().zip(cpus).map(|rank| scope.spawn(move || one(rank))).collect();
        let joined = ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|_| bail!("a rank panicked")));
        let (mut results, mut errors) = (Vec::new(), Vec::new());
        for (rank, result) in joined.enumerate() {
            match result {
                Ok(of_rank) => results.push(of_rank),
                Err(error) => errors.push((rank, error)),
            }
        }
        // That a rank is gone follows from why it is; that one does not answer may be the reason.
        let order = |e: &anyhow::Error| match comm_error(e) {
            Some(CommError::PeerLost { .. }) => 2,
            Some(CommError::Timeout { .. }) => 1,
            _ => 0,
        };
        errors.sort_by_key(|(_, error)| order(error));
        let Some((rank, error)) = errors.into_iter().next() else { return Ok(results) };
        if matches!(error.downcast_ref::<TrainError>(), Some(TrainError::Stopped { .. })) {
            return Err(error);
        }
        if comm_error(&error).is_some() {
            say!("last collectives of rank {rank}:\n{}", recorders[rank]);
        }
        let hint = match comm_error(&error) {
            Some(CommError::Timeout { .. }) => {
                "\nhint: that rank hangs, or `run.timeout` is too short for it"
            }
            _ => "",
        };
        Err(anyhow!("rank {rank}: {error:#}{hint}"))
    })
}

/// What went wrong between ranks, if that is what went wrong.
fn comm_error(error: &anyhow::Error) -> Option<&CommError> {
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::Comm(error)) => Some(error),
        _ => None,
    }
}

/// Ranks that time out leave within this time of each other.
const GRACE: Duration = Duration::from_secs(1);

/// A thread that hangs cannot be ended and would be waited for: without it there is no use in this process.
fn end_if_others_hang(rank: usize, error: &anyhow::Error, left: &AtomicUsize) {
    std::thread::sleep(GRACE);
    let hanging = left.load(Ordering::Relaxed);
    if hanging > 0 {
        say!("error: rank {rank}: {error:#}; {hanging} ranks hang");
        std::process::exit(1);
    }
}
