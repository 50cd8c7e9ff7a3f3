//! Work on a mesh of ranks that are threads of this process, each with a device of its own.

use std::sync::Arc;

use anyhow::{Result, bail};
use llamero_comm::{CommError, Threads, WorldOptions};
use llamero_cpu::Cpu;
use llamero_train::{Mesh, Ranks, TrainError};

/// A device for every rank; together they have `threads` threads, or all cores.
pub(crate) fn devices(mesh: Mesh, threads: Option<usize>) -> Result<Vec<Cpu>> {
    let all = threads.unwrap_or_else(crate::machine::threads);
    (0..mesh.size()).map(|_| crate::device(Some((all / mesh.size()).max(1)))).collect()
}

/// Does `work` on every rank and returns what each came to, in order. Of several failures it is the cause that is returned,
/// not that others waited for it in vain.
pub(crate) fn on_threads<T: Send>(
    mesh: Mesh,
    cpus: &[Cpu],
    work: impl Fn(&Cpu, Ranks) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let worlds = Threads::world(mesh.size(), WorldOptions::default());
    let recorders: Vec<_> = worlds.iter().map(|world| Arc::clone(world.recorder())).collect();
    let work = &work;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = worlds
            .into_iter()
            .zip(cpus)
            .map(|(world, cpu)| scope.spawn(move || work(cpu, Ranks::new(&world, mesh))))
            .collect();
        let joined = ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|_| bail!("a rank panicked")));
        let (mut results, mut errors) = (Vec::new(), Vec::new());
        for (rank, result) in joined.enumerate() {
            match result {
                Ok(of_rank) => results.push(of_rank),
                Err(error) => errors.push((rank, error)),
            }
        }
        let between_ranks =
            |e: &anyhow::Error| matches!(e.downcast_ref::<TrainError>(), Some(TrainError::Comm(_)));
        let waited = |e: &anyhow::Error| {
            let error = e.downcast_ref::<TrainError>();
            matches!(error, Some(TrainError::Comm(CommError::PeerLost { .. } | CommError::Timeout { .. })))
        };
        errors.sort_by_key(|(_, error)| waited(error));
        let Some((rank, error)) = errors.into_iter().next() else { return Ok(results) };
        if matches!(error.downcast_ref::<TrainError>(), Some(TrainError::Stopped { .. })) {
            return Err(error);
        }
        if between_ranks(&error) {
            say!("last collectives of rank {rank}:\n{}", recorders[rank]);
        }
        Err(error.context(format!("rank {rank}")))
    })
}
