//! A seam that lets the tests stop saving before any single change to the disk.
//!
//! Every change calls [`step`] first. Outside the tests it does nothing. A test sets a number of steps to allow; the next one
//! fails and so do all after it, which leaves the disk as `kill -9` would. Threads that save get it from the thread that
//! starts them.

#[cfg(not(test))]
mod off {
    use std::io;

    /// Nothing.
    #[derive(Clone)]
    pub(in crate::checkpoint) struct Armed;

    pub(in crate::checkpoint) fn armed() -> Armed {
        Armed
    }

    impl Armed {
        #[expect(clippy::unused_self, reason = "the tests' version needs it")]
        pub(in crate::checkpoint) fn here(self) {}
    }

    #[expect(clippy::unnecessary_wraps, reason = "the tests' version fails")]
    pub(in crate::checkpoint) fn step() -> io::Result<()> {
        Ok(())
    }
}

#[cfg(not(test))]
pub(super) use off::{armed, step};
#[cfg(test)]
pub(super) use on::{armed, step, stop_after};

#[cfg(test)]
mod on {
    use std::cell::RefCell;
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicIsize, Ordering};

    thread_local! {
        static LEFT: RefCell<Option<Arc<AtomicIsize>>> = const { RefCell::new(None) };
    }

    /// How many steps a thread and those that it starts may still make.
    #[derive(Clone)]
    pub(in crate::checkpoint) struct Armed(Option<Arc<AtomicIsize>>);

    pub(in crate::checkpoint) fn armed() -> Armed {
        Armed(LEFT.with_borrow(Clone::clone))
    }

    impl Armed {
        pub(in crate::checkpoint) fn here(self) {
            LEFT.set(self.0);
        }
    }

    /// Allows so many steps from now on; all of them with `None`.
    pub(in crate::checkpoint) fn stop_after(steps: Option<isize>) {
        LEFT.set(steps.map(|steps| Arc::new(AtomicIsize::new(steps))));
    }

    pub(in crate::checkpoint) fn step() -> io::Result<()> {
        let stopped = LEFT
            .with_borrow(|left| left.as_ref().is_some_and(|left| left.fetch_sub(1, Ordering::SeqCst) <= 0));
        if stopped { Err(io::Error::other("stopped by a test")) } else { Ok(()) }
    }
}
