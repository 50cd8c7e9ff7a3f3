//! SIGTERM, which Slurm sends before it takes a machine away, SIGUSR1, which `mpirun` passes on to its ranks and leaves them
//! the time that they need, and SIGINT (Ctrl-C): training stops with a checkpoint; all else stops at once. A second SIGINT
//! stops training at once too. In a conversation Ctrl-C ends the answer that is being made, and at the prompt the process.
//! What would lie about unfinished and cannot be gone on with is removed first.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Exit status of a program that SIGINT has ended.
const INTERRUPTED: i32 = 130;

/// Whether one of some signals has come.
#[derive(Clone)]
pub(crate) struct Termination {
    asked: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
}

impl Termination {
    /// Begins to listen. Until [`Termination::hold`] a signal ends the process as usual.
    pub(crate) fn listen() -> io::Result<Self> {
        Self::listen_to(&[SIGTERM, SIGUSR1, SIGINT])
    }

    /// The same for SIGINT alone.
    pub(crate) fn listen_to_interrupts() -> io::Result<Self> {
        Self::listen_to(&[SIGINT])
    }

    fn listen_to(signals: &[i32]) -> io::Result<Self> {
        let (asked, at_once) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        for &signal in signals {
            flag::register_conditional_default(signal, Arc::clone(&at_once))?;
            if signal == SIGINT {
                // Before the flag is set: the second one finds it so.
                flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&asked))?;
            }
            flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Self { asked, at_once })
    }

    /// From now on a signal only sets the flag that is returned.
    pub(crate) fn hold(&self) -> Arc<AtomicBool> {
        self.at_once.store(false, Ordering::SeqCst);
        Arc::clone(&self.asked)
    }

    /// Forgets what has come, for another piece of work that may be ended alone.
    pub(crate) fn forget(&self) {
        self.asked.store(false, Ordering::SeqCst);
    }

    /// From now on a signal ends the process.
    pub(crate) fn release(&self) {
        self.at_once.store(true, Ordering::SeqCst);
    }
}

/// A file or folder that is removed when SIGINT or SIGTERM ends the process, as long as this value is there.
pub(crate) struct Unfinished(Arc<Mutex<Option<PathBuf>>>);

impl Unfinished {
    /// Begins to listen; `path` need not be there yet.
    pub(crate) fn new(path: PathBuf) -> io::Result<Self> {
        let own = Arc::new(Mutex::new(Some(path)));
        let other = Arc::clone(&own);
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        std::thread::spawn(move || {
            for signal in signals.forever() {
                // Held until the end, so that nothing that comes to its name now is taken for it.
                let path = other.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(path) = &*path {
                    remove(path);
                }
                emulate_default_handler(signal).ok();
            }
        });
        Ok(Self(own))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Removes what another thread may still be adding to.
fn remove(path: &Path) {
    for _ in 0..100 {
        let gone = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        if gone.is_ok() || !path.exists() {
            return;
        }
    }
}

/// The process that started another one (where that can be seen).
fn parent(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, which may hold anything, is in parentheses; the state comes before the parent.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Stops this process like SIGTERM when the one that has started it, directly or not, is gone. On another machine the number
/// means nothing, and nothing is done.
pub(crate) fn end_with(pid: u32) {
    if !std::iter::successors(Some(std::process::id()), |pid| parent(*pid)).any(|ancestor| ancestor == pid) {
        return;
    }
    let other = Path::new("/proc").join(pid.to_string());
    let watch = move || {
        while other.exists() {
            std::thread::sleep(Duration::from_millis(500));
        }
        say!("the process that watches this job is gone: stopping");
        signal_hook::low_level::raise(SIGTERM).ok();
    };
    std::thread::spawn(watch);
}
