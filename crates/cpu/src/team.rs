//! A team of threads that take up work within a microsecond.
//!
//! Decoding one token of a small model is some two hundred kernels of a few microseconds each. A general thread pool wakes a
//! sleeping thread through the system, which takes tens of microseconds; members of this team look for work in a loop for a
//! while before they sleep, and the caller never waits for one that has not begun: tasks that nobody else has taken it does
//! itself.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};

use crate::ahead::{Ahead, Progress};

/// Rounds of looking for work before a member sleeps: some tens of microseconds.
const LOOKS: u32 = 4_000;

/// One task taken from the front, and one from the back. The caller comes from the other end than members, so that these find
/// what they have brought near ([`Ahead`]).
const FRONT: u64 = 1;
const BACK: u64 = 1 << 32;
/// More than there are tasks.
const ALL: u64 = BACK / 2;

/// The word that members watch: whether there is a job to join, how many have joined, and the number of the job.
mod gate {
    /// Members can join.
    pub(super) const OPEN: usize = 1;
    /// One member that has joined.
    pub(super) const JOINED: usize = 2;
    /// The bits that count them: more than there are threads.
    pub(super) const COUNT: usize = 0xffff << 1;
    /// One job.
    pub(super) const JOB: usize = 1 << 17;
}

/// A call of tasks `0 .. tasks`, in any order and on any thread.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    gate: AtomicUsize,
    /// Read by members between joining and leaving, written by the caller while the gate is closed and all have left.
    job: std::cell::UnsafeCell<Option<Job>>,
    /// How many tasks members have taken from the front, and the caller from the back ([`BACK`]).
    taken: AtomicU64,
    /// Members that have finished their part of the job.
    left: AtomicUsize,
    /// What a task of a member panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    /// What members do while there is nothing else to do.
    ahead: Ahead,
}

// SAFETY: `job` is the only part that is not `Sync` or `Send` by itself; see its comment and `Team::run`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Threads besides the one that calls.
pub(crate) struct Team {
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
    /// Held during a job: who comes meanwhile works alone.
    busy: Mutex<()>,
}

impl Team {
    /// Starts `members` threads.
    pub(crate) fn new(members: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicUsize::new(0),
            job: std::cell::UnsafeCell::new(None),
            taken: AtomicU64::new(0),
            left: AtomicUsize::new(0),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            ahead: Ahead::default(),
        });
        let mut team = Self { shared, members: Vec::new(), threads: Vec::new(), busy: Mutex::new(()) };
        for i in 0..members {
            let shared = Arc::clone(&team.shared);
            // Where one cannot be started, those before it end when the team is dropped.
            let member =
                thread::Builder::new().name(format!("cpu-{}", i + 1)).spawn(move || shared.work())?;
            team.threads.push(member.thread().clone());
            team.members.push(member);
        }
        Ok(team)
    }

    /// What members are to bring near while they are idle.
    pub(crate) fn ahead(&self) -> &Ahead {
        &self.shared.ahead
    }

    /// Runs tasks `0 .. tasks` on this thread and on members that are free, and returns when all are done.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let _busy = match self.busy.try_lock() {
            Ok(busy) => busy,
            // A task panicked; the job was over before the lock was given back.
            Err(TryLockError::Poisoned(busy)) => busy.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..tasks).for_each(task),
        };
        let shared = &*self.shared;
        // What a member said while the caller itself panicked belongs to that job.
        shared.panic().take();
        // SAFETY: the lifetime is cut off, but `Closing` below keeps this function from being left, even by a panic, before
        // every member that joined has left the job. The gate is closed and all have left, so nobody reads `job` now.
        unsafe {
            let run = std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(
                task,
            );
            *shared.job.get() = Some(Job { run, tasks });
        }
        shared.taken.store(0, Ordering::Relaxed);
        shared.left.store(0, Ordering::Relaxed);
        let number = shared.gate.load(Ordering::Relaxed) & !(gate::OPEN | gate::COUNT);
        // Sequentially consistent, as is the sleeper's counting: either it sees the job or it is seen here.
        shared.gate.store(number.wrapping_add(gate::JOB) | gate::OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            self.threads.iter().take(tasks.saturating_sub(1)).for_each(Thread::unpark);
        }
        let closing = Closing(shared);
        shared.take_tasks(tasks, task, BACK);
        drop(closing);
        let panic = shared.panic().take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Closes the gate when dropped and waits for all that have joined.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        // After a panic of the caller nobody need take up what is left.
        if thread::panicking() {
            self.0.taken.store(ALL, Ordering::Relaxed);
        }
        let gate = self.0.gate.fetch_and(!gate::OPEN, Ordering::AcqRel);
        let joined = (gate & gate::COUNT) / gate::JOINED;
        let mut looks = 0u32;
        while self.0.left.load(Ordering::Acquire) < joined {
            looks += 1;
            // A member may have lost its processor.
            if looks.is_multiple_of(LOOKS) { thread::yield_now() } else { spin_loop() }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for member in self.members.drain(..) {
            member.thread().unpark();
            // A member catches every panic of a task.
            let _ = member.join();
        }
    }
}

impl Shared {
    fn panic(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes tasks from one end until all are taken.
    fn take_tasks(&self, tasks: usize, task: &(dyn Fn(usize) + Sync), end: u64) {
        loop {
            let taken = self.taken.fetch_add(end, Ordering::Relaxed);
            let (front, back) = ((taken % BACK) as usize, (taken / BACK) as usize);
            if front + back >= tasks {
                return;
            }
            task(if end == FRONT { front } else { tasks - 1 - back });
        }
    }

    /// The life of a member.
    fn work(&self) {
        let (mut seen, mut progress) = (0, Progress::default());
        loop {
            let gate = self.wait(seen, &mut progress);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if self
                .gate
                .compare_exchange_weak(gate, gate + gate::JOINED, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            seen = gate & !(gate::OPEN | gate::COUNT);
            // SAFETY: this member has joined an open job, so the caller has written it before and does not return, or write
            // another one, before `left` counts this member.
            let done = unsafe {
                let job = (*self.job.get()).expect("an open gate has a job");
                catch_unwind(AssertUnwindSafe(|| self.take_tasks(job.tasks, &*job.run, FRONT)))
            };
            if let Err(panic) = done {
                self.taken.store(ALL, Ordering::Relaxed);
                *self.panic() = Some(panic);
            }
            self.left.fetch_add(1, Ordering::Release);
        }
    }

    /// An open gate of another job than `seen`, or any gate when the team ends.
    fn wait(&self, seen: usize, progress: &mut Progress) -> usize {
        let is_new = |gate: usize| gate & gate::OPEN != 0 && gate & !(gate::OPEN | gate::COUNT) != seen;
        loop {
            for _ in 0..LOOKS {
                let gate = self.gate.load(Ordering::Acquire);
                if is_new(gate) {
                    return gate;
                }
                if !self.ahead.step(progress) {
                    spin_loop();
                }
            }
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            let gate = self.gate.load(Ordering::SeqCst);
            let stop = self.stop.load(Ordering::SeqCst);
            if !is_new(gate) && !stop {
                thread::park();
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            if stop || self.stop.load(Ordering::SeqCst) {
                return gate;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_task_runs_once() {
        for members in [0, 1, 3] {
            let team = Team::new(members).unwrap();
            for round in 0..2_000usize {
                let tasks = 1 + round % 37;
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                team.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{members} {round}");
            }
        }
    }

    /// Whether a member takes a task, in one of many jobs.
    fn helps(team: &Team) -> bool {
        (0..50).any(|_| {
            thread::sleep(Duration::from_millis(2));
            let own = thread::current().id();
            let others = AtomicU32::new(0);
            team.run(8, &|_| {
                thread::sleep(Duration::from_millis(1));
                if thread::current().id() != own {
                    others.fetch_add(1, Ordering::Relaxed);
                }
            });
            others.load(Ordering::Relaxed) > 0
        })
    }

    #[test]
    fn members_wake_after_they_slept_and_help() {
        assert!(helps(&Team::new(1).unwrap()));
    }

    #[test]
    fn callers_at_the_same_time_and_inside_a_task_all_get_their_work_done() {
        let team = Team::new(2).unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let sum = AtomicUsize::new(0);
                        team.run(9, &|i| {
                            team.run(2, &|j| {
                                sum.fetch_add(i * j, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.load(Ordering::Relaxed), 36);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2).unwrap();
        for bad in 0..20 {
            let run = || team.run(20, &|i| assert!(i != bad, "task {i}"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            let sum = AtomicUsize::new(0);
            team.run(5, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 10);
        }
        assert!(helps(&team), "members are there after a panic");
        // The caller and a member panic in one job: the next knows nothing of it.
        let run = || {
            team.run(64, &|_| {
                thread::sleep(Duration::from_millis(1));
                panic!("all of them");
            });
        };
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        team.run(5, &|_| ());
    }
}
