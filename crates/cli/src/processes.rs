//! Ranks that are processes, joined by MPI: `mpirun -n 4 llamero pretrain … --transport mpi`.
//!
//! All run the same command. The first rank does what one process does (text, plan, locks, artifacts, all that is printed);
//! the others wait for its orders. While ranks train together, an error of one ends all; otherwise the first says what
//! went wrong and all leave with the same exit code.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use llamero_comm::{Comm, Group, Wire, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_train::{Mesh, Ranks, TrainError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure;

/// Number of the group for orders, far from those of the mesh.
const ORDERS: u32 = 1000;

/// A failure of which everything has been said: by the first rank, or line by line.
#[derive(Debug, thiserror::Error)]
#[error("what went wrong has been said")]
pub(crate) struct Quiet;

/// This process among all.
pub(crate) struct Processes {
    wire: Arc<dyn Wire>,
    orders: Group,
    /// Processes on this machine.
    here: usize,
    /// Ends all processes.
    abort: Box<dyn Fn()>,
}

/// All processes, and how to end them.
type Joined = (Arc<dyn Wire>, Box<dyn Fn()>);

#[cfg(feature = "mpi")]
fn join_mpi() -> Result<Joined> {
    let mpi = llamero_comm::Mpi::join().context("MPI cannot be used from several threads")?;
    let mpi = Arc::new(mpi);
    let wire: Arc<dyn Wire> = Arc::<llamero_comm::Mpi>::clone(&mpi);
    Ok((wire, Box::new(move || mpi.abort(1))))
}

#[cfg(not(feature = "mpi"))]
fn join_mpi() -> Result<Joined> {
    can_join().and_then(|()| bail!("no MPI"))
}

/// Whether this program was built with MPI.
pub(crate) fn can_join() -> Result<()> {
    if cfg!(feature = "mpi") {
        return Ok(());
    }
    bail!(
        "the transport is `mpi`, but this llamero was built without MPI\n\
         hint: cargo build --release -p llamero --features mpi; needs an MPI library with its headers, and libclang (Debian: \
         libopenmpi-dev openmpi-bin libclang-dev)"
    )
}

impl Processes {
    /// Joins the others. The value must be dropped on the thread that called this.
    pub(crate) fn join() -> Result<Self> {
        let (wire, abort) = join_mpi()?;
        // The first rank may work for hours before it has an order, and ends the others when it fails.
        let patient = World::new(
            Arc::clone(&wire),
            WorldOptions { timeout: std::time::Duration::MAX, ..Default::default() },
        );
        let orders = patient.group("orders", ORDERS, (0..patient.size()).collect());
        let host = std::fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
        let hosts = orders.all_gather(host.clone().into())?;
        let here = hosts.iter().filter(|other| other[..] == host[..]).count();
        Ok(Self { wire, orders, here, abort })
    }

    /// Whether this is the first rank.
    pub(crate) fn leads(&self) -> bool {
        self.wire.rank() == 0
    }

    /// Whether there are as many processes as the mesh has ranks.
    pub(crate) fn check(&self, mesh: Mesh) -> Result<()> {
        let (ranks, started) = (mesh.size(), self.wire.size());
        if ranks == started {
            return Ok(());
        }
        bail!(
            "mesh `{mesh}` has {ranks} ranks, but MPI has started {started} process{}\n\
             hint: mpirun -n {ranks} llamero pretrain …, or another `--mesh`",
            if started == 1 { "" } else { "es" }
        )
    }

    /// Tells the other ranks what comes next.
    pub(crate) fn give(&self, order: &impl Serialize) -> Result<()> {
        self.orders.all_gather(serde_json::to_vec(order)?.into())?;
        Ok(())
    }

    /// Waits for what the first rank tells.
    pub(crate) fn order<T: DeserializeOwned>(&self) -> Result<T> {
        let messages = self.orders.all_gather(Vec::new().into())?;
        serde_json::from_slice(&messages[0]).context("an order of the first rank")
    }

    /// Says what went wrong on this rank while the others count on it, and ends all.
    pub(crate) fn fail(&self, error: &anyhow::Error) {
        say!("error: rank {}: {}", self.wire.rank(), failure::text(error, true));
        (self.abort)();
    }

    /// Does a rank's `work` of a mesh, with `threads` threads or its share of this machine; the folder `flight` is for what it did
    /// last before a message failed to come. An error ends all processes, unless every rank has stopped because it was asked to.
    pub(crate) fn work<T>(
        &self,
        (mesh, threads): (Mesh, Option<usize>),
        (options, flight): (WorldOptions, &Path),
        work: impl FnOnce(&Cpu, Ranks) -> Result<T>,
    ) -> Result<T> {
        let world = World::new(Arc::clone(&self.wire), options);
        world.record_to(flight.to_owned());
        let threads = threads.unwrap_or_else(|| (crate::machine::threads() / self.here).max(1));
        let done = crate::device(Some(threads)).and_then(|cpu| work(&cpu, Ranks::new(&world, mesh)));
        let Err(error) = &done else { return done };
        let found = error.downcast_ref::<TrainError>();
        if !matches!(found, Some(TrainError::Stopped { .. })) {
            if matches!(found, Some(TrainError::Comm(_))) {
                say!("last collectives of rank {}:\n{}", world.rank(), world.recorder());
            }
            self.fail(error);
        }
        done
    }
}
