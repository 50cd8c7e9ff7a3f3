//! Where callers meet the scheduler.
//!
//! A caller that waits for an answer makes passes itself, for all requests that are there, unless another one is making one: then it
//! waits for that. So one caller alone never waits for another thread, and several share every pass.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::scheduler::{Available, Counts, Job, Limits, Model, Scheduler};

/// A scheduler that threads share.
pub(crate) struct Desk {
    turn: Mutex<Turn>,
    changed: Condvar,
    /// Most pages.
    pages: usize,
    /// Locked by whoever set `Turn::busy`, and by nobody else.
    scheduler: Mutex<Scheduler>,
}

#[derive(Default)]
struct Turn {
    /// Requests that the scheduler does not know yet.
    inbox: Vec<Job>,
    /// Whether somebody makes a pass.
    busy: bool,
    /// Requests that the scheduler has.
    going: usize,
    counts: Counts,
}

impl Desk {
    /// Nobody is there yet.
    pub(crate) fn new(limits: Limits, available: Available) -> Self {
        let scheduler = Mutex::new(Scheduler::new(limits, available));
        Self { turn: Mutex::default(), changed: Condvar::new(), pages: limits.pages, scheduler }
    }

    /// Most pages that there may be.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Hands requests in, all for the same pass.
    pub(crate) fn submit(&self, jobs: impl IntoIterator<Item = Job>) {
        self.turn().inbox.extend(jobs);
        self.changed.notify_all();
    }

    /// Makes one pass, or waits for the one that somebody makes, which may know nothing of the latest requests.
    /// Returns whether it made one.
    pub(crate) fn work(&self, model: &dyn Model) -> bool {
        let turn = self.turn();
        let free = !turn.busy;
        if free {
            self.pass(turn, model);
        } else {
            drop(self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner));
        }
        free
    }

    /// [`Desk::work`], or waits until there is something to do or until [`Desk::wake`]. `stop` is asked before anything is done.
    /// Returns whether it stopped.
    pub(crate) fn serve(&self, model: &dyn Model, stop: &dyn Fn() -> bool) -> bool {
        let turn = self.turn();
        if stop() {
            return true;
        }
        if turn.busy || (turn.inbox.is_empty() && turn.going == 0) {
            drop(self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner));
        } else {
            self.pass(turn, model);
        }
        false
    }

    /// Wakes all who wait, after `change`, which they will see.
    pub(crate) fn wake(&self, change: impl FnOnce()) {
        let turn = self.turn();
        change();
        drop(turn);
        self.changed.notify_all();
    }

    /// Whether somebody makes a pass.
    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        self.turn().busy
    }

    /// What was done so far.
    pub(crate) fn counts(&self) -> Counts {
        self.turn().counts
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, mut turn: MutexGuard<'_, Turn>, model: &dyn Model) {
        turn.busy = true;
        let jobs = std::mem::take(&mut turn.inbox);
        drop(turn);
        let mut busy = Busy { desk: self, going: 0, counts: Counts::default() };
        let mut scheduler = self.scheduler.lock().unwrap_or_else(|poisoned| {
            // A pass panicked. Whoever waited for it hears that nothing more will come.
            self.scheduler.clear_poison();
            let mut scheduler = poisoned.into_inner();
            scheduler.reset();
            scheduler
        });
        jobs.into_iter().for_each(|job| scheduler.add(job));
        busy.going = scheduler.len().max(1);
        scheduler.step(model);
        (busy.going, busy.counts) = (scheduler.len(), scheduler.counts);
    }
}

/// The right to use the scheduler, given back even when a pass panics.
struct Busy<'a> {
    desk: &'a Desk,
    going: usize,
    counts: Counts,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut turn = self.desk.turn();
        (turn.busy, turn.going, turn.counts) = (false, self.going, self.counts);
        drop(turn);
        self.desk.changed.notify_all();
    }
}
