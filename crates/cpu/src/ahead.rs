//! Weights that will be multiplied soon, for idle threads to bring near meanwhile.
//!
//! Decoding is as fast as weights come from memory, and memory should never rest: while one thread computes a norm or the
//! attention of a single row, the others walk through the weights that come next.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Weights that can be known at a time; more than a block has twice.
const PLACES: usize = 32;
/// Weights after the current one that are fetched.
const REACH: usize = 2;
/// Bytes of each that are fetched: a part of the second-level cache, from where it falls into the third.
const MOST: usize = 1 << 19;
/// Bytes of a step.
const STEP: usize = 512;
const LINE: usize = 64;

/// A ring of addresses. Nothing depends on what it holds but the caches.
#[derive(Default)]
pub(crate) struct Ahead {
    places: [(AtomicUsize, AtomicUsize); PLACES],
    /// How many were ever announced; the last are in the ring.
    announced: AtomicUsize,
    /// The number of the one that is multiplied now, plus one.
    begun: AtomicUsize,
}

/// How far a thread has come.
#[derive(Default)]
pub(crate) struct Progress {
    number: usize,
    at: usize,
}

impl Ahead {
    /// Says that a weight will be multiplied after those announced before.
    pub(crate) fn announce(&self, data: &[u8]) {
        let number = self.announced.load(Ordering::Relaxed);
        let (start, len) = &self.places[number % PLACES];
        start.store(data.as_ptr().addr(), Ordering::Relaxed);
        len.store(data.len(), Ordering::Relaxed);
        self.announced.store(number + 1, Ordering::Release);
    }

    /// Says that a weight is multiplied now: those announced before it are done with.
    pub(crate) fn begin(&self, data: &[u8]) {
        let (begun, announced) = (self.begun.load(Ordering::Relaxed), self.announced.load(Ordering::Relaxed));
        let start = data.as_ptr().addr();
        let mut known = begun.max(announced.saturating_sub(PLACES))..announced;
        if let Some(number) = known.find(|n| self.places[n % PLACES].0.load(Ordering::Relaxed) == start) {
            self.begun.store(number + 1, Ordering::Release);
        }
    }

    /// Fetches a little of what comes next; whether there was something to fetch.
    pub(crate) fn step(&self, progress: &mut Progress) -> bool {
        let (begun, announced) = (self.begun.load(Ordering::Relaxed), self.announced.load(Ordering::Acquire));
        if progress.number < begun || progress.number > announced {
            *progress = Progress { number: begun, at: 0 };
        }
        if progress.number >= announced.min(begun + REACH) {
            return false;
        }
        let (start, len) = &self.places[progress.number % PLACES];
        let (start, len) = (start.load(Ordering::Relaxed), len.load(Ordering::Relaxed).min(MOST));
        for at in (progress.at..len.min(progress.at + STEP)).step_by(LINE) {
            fetch(start + at);
        }
        progress.at += STEP;
        if progress.at >= len {
            *progress = Progress { number: progress.number + 1, at: 0 };
        }
        true
    }
}

#[cfg(target_arch = "x86_64")]
fn fetch(address: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: every x86-64 processor has the instruction, and it has no effect but on the caches, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address)) }
}

#[cfg(not(target_arch = "x86_64"))]
fn fetch(_address: usize) {}
