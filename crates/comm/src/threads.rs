//! Ranks that are threads of one process.
//!
//! Each rank has a mailbox. A rank that is dropped is noted as gone, so that peers that still need it hear of that
//! instead of waiting until the deadline.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::{Group, Message, Wire, WireError, World, WorldOptions};

/// One rank of a world of threads.
pub struct Threads {
    rank: usize,
    boxes: Arc<[Mailbox]>,
}

#[derive(Default)]
struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Condvar,
}

#[derive(Default)]
struct Mail {
    /// By sender and channel.
    waiting: HashMap<(usize, u32), VecDeque<Message>>,
    /// Ranks that left.
    gone: Vec<usize>,
}

impl Mailbox {
    fn open(&self) -> MutexGuard<'_, Mail> {
        // A poisoned mailbox only means that a peer panicked; `gone` tells the rest.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Threads {
    /// The wires of a world of `size`, to be moved to a thread each.
    pub fn wires(size: usize) -> Vec<Self> {
        let boxes: Arc<[Mailbox]> = (0..size).map(|_| Mailbox::default()).collect();
        (0..size).map(|rank| Self { rank, boxes: Arc::clone(&boxes) }).collect()
    }

    /// The ranks of a world of `size`, to be moved to a thread each.
    pub fn world(size: usize, options: WorldOptions) -> Vec<World> {
        Self::wires(size).into_iter().map(|wire| World::new(Arc::new(wire), options)).collect()
    }

    /// The ranks of a single group of `size`.
    pub fn group(size: usize) -> Vec<Group> {
        let worlds = Self::world(size, WorldOptions::default());
        worlds.iter().map(|world| world.group("all", 0, (0..size).collect())).collect()
    }
}

impl Wire for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.boxes.len()
    }

    fn send(&self, to: usize, channel: u32, message: Message) -> Result<(), WireError> {
        // A message to a rank that has left is not needed: it left because it had all that it wanted, or it failed, and
        // then this rank will hear of it when it needs something.
        let mailbox = &self.boxes[to];
        mailbox.open().waiting.entry((self.rank, channel)).or_default().push_back(message);
        mailbox.arrived.notify_all();
        Ok(())
    }

    fn recv(&self, from: usize, channel: u32, deadline: Instant) -> Result<Message, WireError> {
        let mailbox = &self.boxes[self.rank];
        let mut mail = mailbox.open();
        loop {
            if let Some(message) = mail.waiting.get_mut(&(from, channel)).and_then(VecDeque::pop_front) {
                return Ok(message);
            }
            if mail.gone.contains(&from) {
                return Err(WireError::Lost);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WireError::Late);
            }
            mail = mailbox.arrived.wait_timeout(mail, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for mailbox in self.boxes.iter() {
            mailbox.open().gone.push(self.rank);
            mailbox.arrived.notify_all();
        }
    }
}
