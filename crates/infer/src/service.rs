//! Requests from many callers, over channels.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::request::Cancel;
use crate::scheduler::Job;
use crate::{Engine, Event, InferError, Request, Result};

/// A thread that works on requests, for callers that do not want to wait in theirs.
///
/// Dropping it cancels the requests that it has.
pub struct Service {
    engine: Arc<Engine>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(engine: Arc<Engine>) -> Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let (of_thread, stopped) = (Arc::clone(&engine), Arc::clone(&stop));
        let work = move || {
            let stop = || stopped.load(Ordering::Relaxed);
            // A pass that panics ends the requests that were there, and not those that come later.
            let serve = || catch_unwind(AssertUnwindSafe(|| of_thread.desk().serve(&*of_thread, &stop)));
            while !matches!(serve(), Ok(true)) {}
            // Tells the callers that are left: a pass of its own does, and one that others were making may not.
            let work = || catch_unwind(AssertUnwindSafe(|| of_thread.desk().work(&*of_thread)));
            while !matches!(work(), Ok(true)) {}
        };
        let thread =
            std::thread::Builder::new().name("infer".into()).spawn(work).map_err(InferError::Thread)?;
        Ok(Self { engine, stop, thread: Some(thread) })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Hands a request in. It waits where there is no room for it yet.
    ///
    /// # Errors
    /// Those of [`Engine::generate`] and [`Engine::score_continuation`] that can be known before; a request that needs more memory
    /// than there is for keys and values.
    pub fn submit(&self, request: Request) -> Result<Handle> {
        self.engine.check(&request)?;
        let (sender, events) = channel();
        let cancel = Cancel::one_of(&self.stop);
        self.engine.desk().submit([Job::new(request, self.engine.context(), sender, cancel.clone())]);
        Ok(Handle { events, cancel, over: false })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.engine.desk().wake(|| self.stop.store(true, Ordering::Relaxed));
        if let Some(thread) = self.thread.take() {
            // A panic was said where it happened.
            drop(thread.join());
        }
    }
}

/// A request that was handed in. Dropping it cancels the request.
pub struct Handle {
    events: Receiver<Event>,
    cancel: Cancel,
    over: bool,
}

impl Handle {
    /// The next event; `None` after the last one.
    pub fn next_event(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = self.events.recv().unwrap_or(Event::Failed(InferError::Stopped));
        self.over = !matches!(event, Event::Token { .. });
        Some(event)
    }

    /// The next event, if it comes within this time.
    pub fn next_event_within(&mut self, time: Duration) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = match self.events.recv_timeout(time) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => Event::Failed(InferError::Stopped),
        };
        self.over = !matches!(event, Event::Token { .. });
        Some(event)
    }

    /// Asks for an early end: what was generated until then comes as an [`Event::Done`].
    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}

impl Iterator for Handle {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.next_event()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
