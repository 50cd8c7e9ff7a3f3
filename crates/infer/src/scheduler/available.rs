//! Memory that is really there when a request is let in.

use std::time::{Duration, Instant};

/// Says how many pages the system has room for beside those that there are; `None` where it does not tell.
type Read = Box<dyn Fn() -> Option<usize> + Send>;

/// Room for pages as the system has it, looked up now and then, because others use its memory, too.
pub(crate) struct Available {
    read: Read,
    every: Duration,
    last: Option<Reading>,
}

struct Reading {
    at: Instant,
    found: Option<usize>,
    /// Most pages that there had been until then.
    peak: usize,
}

impl Available {
    /// Asks `read`, at most once in this time.
    pub(crate) fn new(every: Duration, read: Read) -> Self {
        Self { read, every, last: None }
    }

    /// Never asks: the limit of pages alone counts.
    pub(crate) fn unknown() -> Self {
        Self::new(Duration::MAX, Box::new(|| None))
    }

    /// Whether there is room for so many pages at a time, when there have been `peak` before. Memory that pages had once is kept
    /// for pages, so only what goes beyond it is asked for.
    pub(super) fn fits(&mut self, pages: usize, peak: usize) -> bool {
        if pages <= peak {
            return true;
        }
        let fresh = self.last.take().filter(|last| last.at.elapsed() < self.every);
        let last = fresh.unwrap_or_else(|| Reading { at: Instant::now(), found: (self.read)(), peak });
        let fits = last.found.is_none_or(|found| pages.saturating_sub(last.peak) <= found);
        self.last = Some(last);
        fits
    }
}
