//! SIGTERM, which Slurm sends before it takes a machine away: training stops with a checkpoint; all else stops at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGTERM;
use signal_hook::flag;

/// Whether the signal has come.
#[derive(Clone)]
pub(crate) struct Termination {
    asked: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
}

impl Termination {
    /// Begins to listen. Until [`Termination::hold`] the signal ends the process as usual.
    pub(crate) fn listen() -> io::Result<Self> {
        let (asked, at_once) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        flag::register_conditional_default(SIGTERM, Arc::clone(&at_once))?;
        flag::register(SIGTERM, Arc::clone(&asked))?;
        Ok(Self { asked, at_once })
    }

    /// From now on the signal only sets the flag that is returned.
    pub(crate) fn hold(&self) -> Arc<AtomicBool> {
        self.at_once.store(false, Ordering::SeqCst);
        Arc::clone(&self.asked)
    }

    /// From now on the signal ends the process.
    pub(crate) fn release(&self) {
        self.at_once.store(true, Ordering::SeqCst);
    }
}
