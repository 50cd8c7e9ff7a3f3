//! SIGTERM, which Slurm sends before it takes a machine away, and SIGUSR1, which `mpirun` passes on to its ranks and leaves them
//! the time that they need: training stops with a checkpoint; all else stops at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::flag;

/// Whether one of the signals has come.
#[derive(Clone)]
pub(crate) struct Termination {
    asked: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
}

impl Termination {
    /// Begins to listen. Until [`Termination::hold`] a signal ends the process as usual.
    pub(crate) fn listen() -> io::Result<Self> {
        let (asked, at_once) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        for signal in [SIGTERM, SIGUSR1] {
            flag::register_conditional_default(signal, Arc::clone(&at_once))?;
            flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Self { asked, at_once })
    }

    /// From now on a signal only sets the flag that is returned.
    pub(crate) fn hold(&self) -> Arc<AtomicBool> {
        self.at_once.store(false, Ordering::SeqCst);
        Arc::clone(&self.asked)
    }

    /// From now on a signal ends the process.
    pub(crate) fn release(&self) {
        self.at_once.store(true, Ordering::SeqCst);
    }
}
