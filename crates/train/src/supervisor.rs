//! Keeps a training job alive: starts it, watches its ledger for signs of life, ends a job that hangs, and starts the next one,
//! which goes on from the newest checkpoint that is whole. Gives up, with a report, when jobs fail again and again without getting
//! any further. In chaos mode it also breaks the job on purpose.

use std::collections::BTreeSet;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::chaos::Chaos;
use crate::family::{kill, signal_first};
use crate::{Event, Hosts, Ledger, Strike};

/// How a job is watched.
#[derive(Clone, Debug)]
pub struct Supervisor {
    /// What the job writes its steps to.
    pub ledger: Ledger,
    /// A job that trains and adds nothing to the ledger for so long hangs; one that gets ready may take six times as long.
    pub hang_after: Duration,
    /// Most jobs that are started after the first.
    pub restarts: u32,
    /// Faults to inject.
    pub chaos: Option<Chaos>,
    /// Machines to run on; none where the job runs on this one.
    pub hosts: Hosts,
}

/// Jobs in a row that may fail without a step that no job had made before.
const FRUITLESS: u32 = 3;

/// Getting ready may take so many times as long as a step may.
const START: u32 = 6;

/// Time before a job is started again after one that got nowhere, once for each of them.
const PAUSE: Duration = Duration::from_millis(500);

/// Time between two looks at the job.
const LOOK: Duration = Duration::from_millis(20);

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The job did all its work.
    Done,
    /// The job ended with this code and there is no use in another: it was wrong usage, it failed before the first step of
    /// all, or it was asked to stop.
    Left(i32),
    /// Too many failures: what was seen of each.
    GaveUp(Vec<String>),
}

/// What the ledger tells, read on from where it was read to.
#[derive(Default)]
struct Life {
    read_to: u64,
    makes: String,
    phase: Phase,
    /// The job has stopped because it was asked to.
    stopped: bool,
    /// The furthest step of all jobs that make the same.
    best: Option<u64>,
    /// Ranks of the job.
    ranks: usize,
    /// Ranks that this job found at fault, and who says so.
    blamed: Vec<(usize, usize)>,
}

/// What a job is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// It makes what training needs, which may take hours.
    #[default]
    Preparing,
    /// Its ranks load their state.
    Starting,
    /// It makes steps.
    Training,
    /// It makes the model, which may take long.
    Finishing,
}

impl Life {
    /// Reads what is new. Returns whether the job has written any of it.
    fn follow(&mut self, ledger: &Ledger) -> io::Result<bool> {
        let mut sign = false;
        for entry in ledger.read_from(&mut self.read_to)? {
            sign |= !matches!(entry.event, Event::Injected { .. } | Event::Failed { .. });
            match entry.event {
                Event::Launched { makes, ranks } => {
                    self.ranks = ranks;
                    if makes != self.makes {
                        (self.makes, self.best) = (makes, None);
                    }
                    self.phase = Phase::Starting;
                }
                Event::Stopped { .. } => (self.phase, self.stopped) = (Phase::Finishing, true),
                Event::Failed { .. } | Event::Trained { .. } | Event::Done { .. } => {
                    self.phase = Phase::Finishing
                }
                Event::Ready { .. } => self.phase = Phase::Training,
                // Steps of a job that somebody else started are not this one's.
                Event::Step { step } if self.phase == Phase::Training => {
                    self.best = self.best.max(Some(step))
                }
                Event::Step { .. } => {}
                Event::Blamed { rank, by, .. } => self.blamed.push((rank, by)),
                Event::Copied { .. }
                | Event::Saved { .. }
                | Event::Injected { .. }
                | Event::Slow { .. }
                | Event::Corrupted { .. }
                | Event::Damaged { .. }
                | Event::Remark { .. } => {}
            }
        }
        Ok(sign)
    }

    /// Ranks that were at fault: of those that others waited for, the ones that did not wait themselves.
    fn at_fault(&self) -> BTreeSet<usize> {
        let waits = |rank: usize| self.blamed.iter().any(|(other, by)| *by == rank && *other != rank);
        self.blamed.iter().map(|(rank, _)| *rank).filter(|rank| !waits(*rank)).collect()
    }

    /// A new job; the ledger was read to where it begins.
    fn begin(&mut self) {
        (self.phase, self.stopped) = (Phase::Preparing, false);
        self.blamed.clear();
    }

    /// Longest time without a sign of life.
    fn patience(&self, hang_after: Duration) -> Duration {
        match self.phase {
            Phase::Training => hang_after,
            Phase::Starting => START * hang_after,
            // What a job before it has made is there.
            Phase::Preparing if self.best.is_some() => START * hang_after,
            Phase::Preparing | Phase::Finishing => Duration::MAX,
        }
    }
}

impl Supervisor {
    /// Runs jobs of `command`, which is given the machines to run on, until one has done its work. `stop` (set by a signal) is
    /// passed on to the job as SIGUSR1, so that it leaves a checkpoint. `say` gets a line for everything that happens.
    pub fn run(
        mut self,
        command: &mut dyn FnMut(&[&str]) -> Command,
        stop: &AtomicBool,
        say: &mut dyn FnMut(&str),
    ) -> io::Result<Ended> {
        let (mut failures, mut fruitless, mut life) = (Vec::new(), 0, Life::default());
        loop {
            life.follow(&self.ledger)?;
            let before = life.best;
            life.begin();
            let mut child = command(&self.hosts.chosen()).spawn()?;
            // Nobody else would end a job that is not watched any more.
            let ended =
                self.watch(&mut child, &mut life, stop, say).inspect_err(|_| drop(kill(&mut child)))?;
            life.follow(&self.ledger)?;
            let (reason, hung) = match ended {
                Watched::Ended(status) if status.success() => return Ok(Ended::Done),
                Watched::Ended(status) => {
                    // What fails before the first step of all fails the next time too; 2 is wrong usage.
                    let hopeless = life.best.is_none() || status.code() == Some(2);
                    if let Some(code) = status.code().filter(|_| hopeless) {
                        return Ok(Ended::Left(code));
                    }
                    (format!("the job ended ({status})"), false)
                }
                Watched::Hung(waited) => (format!("no sign of life for {:.1} s", waited.as_secs_f64()), true),
            };
            if stop.load(Ordering::Relaxed) || life.stopped {
                return Ok(Ended::Left(1));
            }
            self.ledger.note(Event::Failed { reason: reason.clone(), hung })?;
            for rank in life.at_fault() {
                self.hosts.blame(rank, life.ranks).iter().for_each(|said| say(said));
            }
            fruitless = if life.best > before { 0 } else { fruitless + 1 };
            failures.push(format!("after {} steps: {reason}", life.best.map_or(0, |best| best + 1)));
            if fruitless >= FRUITLESS || failures.len() > self.restarts as usize {
                return Ok(Ended::GaveUp(failures));
            }
            say(&format!("{reason}; starting again ({} of {} times)", failures.len(), self.restarts));
            std::thread::sleep(PAUSE * fruitless);
        }
    }

    /// Waits until the job ends or hangs; then it is dead.
    fn watch(
        &mut self,
        child: &mut Child,
        life: &mut Life,
        stop: &AtomicBool,
        say: &mut dyn FnMut(&str),
    ) -> io::Result<Watched> {
        let (mut told, mut last_sign, mut frozen) = (false, Instant::now(), false);
        if let Some(chaos) = &mut self.chaos {
            chaos.begin();
        }
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Watched::Ended(status));
            }
            if stop.load(Ordering::Relaxed) && !told {
                told = true;
                // Not SIGTERM: `mpirun` kills its ranks a second after that, and passes this one on.
                signal_first(child, Signal::USR1);
            }
            if life.follow(&self.ledger)? {
                last_sign = Instant::now();
            }
            if let Some(chaos) = &mut self.chaos {
                chaos.relent(child);
                if life.phase == Phase::Training
                    && !told
                    && let Some(best) = life.best
                    && let Some((fault, rank)) = chaos.due(best)
                {
                    // Noted first, so that nothing that follows from it comes before it.
                    self.ledger.note(Event::Injected { fault, rank })?;
                    // It may have made its last step just now, after which it could take its time.
                    frozen |= fault == Strike::Hang;
                    let how = match chaos.strike(fault, rank, child) {
                        Ok(how) => how,
                        Err(error) => format!("did not work: {error}"),
                    };
                    say(&format!("chaos: {} ({how})", fault.name()));
                }
            }
            let patience = if frozen { self.hang_after } else { life.patience(self.hang_after) };
            if last_sign.elapsed() >= patience {
                kill(child)?;
                return Ok(Watched::Hung(last_sign.elapsed()));
            }
            std::thread::sleep(LOOK);
        }
    }
}

enum Watched {
    Ended(ExitStatus),
    Hung(Duration),
}
