//! Groups of ranks over a wire.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Body, Comm, CommError, Elements, FlightRecorder, Header, Message, Op, Pending, Wire, WireError};

/// How the groups of a world behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorldOptions {
    /// Longest wait for a message.
    pub timeout: Duration,
    /// Whether every message carries a hash of its bytes that the receiver checks.
    pub hash: bool,
    /// Collectives that the flight recorder keeps.
    pub records: usize,
}

impl Default for WorldOptions {
    /// Ten minutes; hashes in debug builds.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(600), hash: cfg!(debug_assertions), records: 256 }
    }
}

/// One rank's end of all ranks: makes groups.
#[derive(Clone)]
pub struct World {
    wire: Arc<dyn Wire>,
    options: WorldOptions,
    recorder: Arc<FlightRecorder>,
    /// Folder for what the recorder knows when a message does not come as it should.
    flight: Arc<Mutex<Option<PathBuf>>>,
    /// Nanoseconds spent waiting for messages.
    waited: Arc<AtomicU64>,
    /// Not 0: which bit of the next message to turn over.
    damage: Arc<AtomicU64>,
}

impl World {
    /// The world on a wire.
    pub fn new(wire: Arc<dyn Wire>, options: WorldOptions) -> Self {
        let recorder = Arc::new(FlightRecorder::new(options.records));
        Self {
            wire,
            options,
            recorder,
            flight: Arc::default(),
            waited: Arc::default(),
            damage: Arc::default(),
        }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.wire.rank()
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.wire.size()
    }

    /// What this rank did last.
    pub fn recorder(&self) -> &Arc<FlightRecorder> {
        &self.recorder
    }

    /// From now on the first message that does not come as it should leaves `rank-N.txt` in this folder: the error and the last
    /// collectives of this rank.
    pub fn record_to(&self, folder: PathBuf) {
        *self.flight.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
    }

    /// Writes what the recorder knows, once. A failure to write must not hide `error`.
    fn record(&self, error: &CommError) {
        let Some(folder) = self.flight.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let text = format!("{error}\n{}", self.recorder);
        std::fs::create_dir_all(&folder).ok();
        std::fs::write(folder.join(format!("rank-{}.txt", self.rank())), text).ok();
    }

    /// How long this rank has waited for messages of others, in all its groups together.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// A fault to be found: the next message of this rank arrives with a bit turned over, chosen by `random`.
    pub fn damage_next(&self, random: u64) {
        self.damage.store(random.max(1), Ordering::Relaxed);
    }

    /// The group of `members`, in this order; this rank is one of them. Every member makes it, with the same members and
    /// the same `number`, which no other group of two of them has.
    pub fn group(&self, name: &str, number: u32, members: Vec<usize>) -> Group {
        let rank = members.iter().position(|&m| m == self.rank());
        let rank =
            rank.unwrap_or_else(|| panic!("group `{name}`: rank {} is not in {members:?}", self.rank()));
        assert!(members.iter().all(|&m| m < self.size()), "group `{name}`: {members:?} of {}", self.size());
        Group {
            world: self.clone(),
            name: name.into(),
            channel: number * 2,
            rank,
            next: AtomicU64::new(0),
            to: members.iter().map(|_| AtomicU64::new(0)).collect(),
            from: members.iter().map(|_| AtomicU64::new(0)).collect(),
            open: Mutex::default(),
            early: Mutex::default(),
            members,
        }
    }
}

/// Some ranks of a world.
pub struct Group {
    world: World,
    name: String,
    /// Channel of collectives; the next one is for messages.
    channel: u32,
    rank: usize,
    /// Number of the next collective.
    next: AtomicU64,
    /// Messages sent to and received from each member.
    to: Vec<AtomicU64>,
    from: Vec<AtomicU64>,
    /// Numbers of collectives that were started and not finished.
    open: Mutex<BTreeSet<u64>>,
    /// Parts of collectives that are finished later, by sender and number.
    early: Mutex<HashMap<(usize, u64), Message>>,
    members: Vec<usize>,
}

/// The first eight bytes of blake3.
fn hash(body: &Body) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(body).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// The body, or one with a bit turned over when somebody asked for that.
fn damaged(body: Body, damage: &AtomicU64) -> Body {
    if damage.load(Ordering::Relaxed) == 0 {
        return body;
    }
    let random = damage.swap(0, Ordering::Relaxed);
    let mut bytes = body.to_vec();
    let bit = random % (8 * bytes.len() as u64);
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    Body::new(bytes.into(), body.elements())
}

impl Group {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The members, as ranks of the world.
    pub fn members(&self) -> &[usize] {
        &self.members
    }

    fn open(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, op: &'static str, rank: usize) -> Result<(), CommError> {
        if rank < self.members.len() && rank != self.rank {
            return Ok(());
        }
        Err(CommError::NoSuchPeer { op, rank, size: self.members.len() })
    }

    fn post(&self, to: usize, channel: u32, (op, seq): (Op, u64), body: Body) -> Result<(), CommError> {
        let hash = if self.world.options.hash { hash(&body) } else { 0 };
        let body = if body.is_empty() { body } else { damaged(body, &self.world.damage) };
        let message = Message { header: Header { seq, op, hash }, body };
        let peer = self.members[to];
        let lost = |_| CommError::PeerLost { op: op.name(), rank: self.rank, peer };
        self.world.wire.send(peer, channel, message).map_err(lost)
    }

    /// Message `seq` of a member.
    fn take(&self, from: usize, channel: u32, which: (Op, u64)) -> Result<Body, CommError> {
        self.awaited(from, channel, which).inspect_err(|error| self.world.record(error))
    }

    /// In a collective all ranks send the same elements, and who receives a message knows what it is.
    fn same_elements(
        &self,
        expected: Elements,
        body: &Body,
        from: usize,
        (op, seq): (Op, u64),
    ) -> Result<(), CommError> {
        if expected == body.elements() {
            return Ok(());
        }
        let error = CommError::Elements {
            group: self.name.clone(),
            op: op.name(),
            seq,
            rank: self.rank,
            from,
            found: body.elements().name(),
            expected: expected.name(),
        };
        self.world.record(&error);
        Err(error)
    }

    /// Message `seq` of a member. Later ones that come first are kept.
    fn awaited(&self, from: usize, channel: u32, (op, seq): (Op, u64)) -> Result<Body, CommError> {
        let options = &self.world.options;
        let (begun, peer) = (Instant::now(), self.members[from]);
        let never = || begun + Duration::from_secs(u64::from(u32::MAX));
        let deadline = begun.checked_add(options.timeout).unwrap_or_else(never);
        let waited = Waited(begun, &self.world.waited);
        let message = loop {
            let early = || self.early.lock().unwrap_or_else(PoisonError::into_inner);
            if channel == self.channel
                && let Some(message) = early().remove(&(from, seq))
            {
                break message;
            }
            let message = match self.world.wire.recv(peer, channel, deadline) {
                Ok(message) => message,
                Err(WireError::Lost) => {
                    return Err(CommError::PeerLost { op: op.name(), rank: self.rank, peer });
                }
                Err(WireError::Late) => {
                    return Err(CommError::Timeout {
                        group: self.name.clone(),
                        op: op.name(),
                        seq,
                        rank: self.rank,
                        from,
                        world: peer,
                        waited: begun.elapsed(),
                    });
                }
            };
            let found = message.header.seq;
            if found == seq {
                break message;
            }
            // A peer may be ahead, and may have sent for what is finished here later; all else was lost or sent twice.
            let next = self.next.load(Ordering::Relaxed);
            let awaited = found >= next || self.open().contains(&found);
            let expected = channel == self.channel && awaited && found < next + AHEAD;
            if !expected || early().insert((from, found), message).is_some() {
                let (group, rank) = (self.name.clone(), self.rank);
                return Err(CommError::OutOfTurn { group, rank, from, found, expected: seq });
            }
        };
        drop(waited);
        let Message { header, body } = message;
        if header.op != op {
            return Err(CommError::Mismatch {
                group: self.name.clone(),
                seq,
                rank: self.rank,
                found: op.name(),
                other: from,
                expected: header.op.name(),
            });
        }
        if options.hash {
            let found = hash(&body);
            if found != header.hash {
                return Err(CommError::Damaged {
                    group: self.name.clone(),
                    op: op.name(),
                    seq,
                    rank: self.rank,
                    from,
                    found,
                    expected: header.hash,
                });
            }
        }
        Ok(body)
    }
}

/// Adds the time since it began when it ends.
struct Waited<'a>(Instant, &'a AtomicU64);

impl Drop for Waited<'_> {
    fn drop(&mut self) {
        let nanoseconds = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.1.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// Collectives that a peer may be ahead before its messages are taken for wrong ones.
const AHEAD: u64 = 1 << 20;

impl Comm for Group {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn start(&self, op: Op, parts: Vec<Body>) -> Result<Pending, CommError> {
        let (found, size) = (parts.len(), self.members.len());
        if found != size {
            return Err(CommError::Parts { op: op.name(), rank: self.rank, found, size });
        }
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = parts.iter().map(|p| p.len()).sum();
        let record = self.world.recorder.begin(&self.name, (op, seq), None, bytes);
        self.open().insert(seq);
        let mut own = None;
        for (to, body) in parts.into_iter().enumerate() {
            if to == self.rank {
                own = Some(body);
            } else {
                self.post(to, self.channel, (op, seq), body)?;
            }
        }
        let own = own.unwrap_or_else(|| unreachable!("this rank is in its group"));
        Ok(Pending { op, seq, own, record })
    }

    fn finish(&self, pending: Pending) -> Result<Vec<Body>, CommError> {
        let Pending { op, seq, own, record } = pending;
        let mut bodies = Vec::with_capacity(self.members.len());
        for from in 0..self.members.len() {
            let body =
                if from == self.rank { own.clone() } else { self.take(from, self.channel, (op, seq))? };
            self.same_elements(own.elements(), &body, from, (op, seq))?;
            bodies.push(body);
        }
        self.open().remove(&seq);
        self.world.recorder.end(record);
        Ok(bodies)
    }

    fn send(&self, to: usize, body: Body) -> Result<(), CommError> {
        self.peer("send", to)?;
        let seq = self.to[to].fetch_add(1, Ordering::Relaxed);
        let record = self.world.recorder.begin(&self.name, (Op::Send, seq), Some(to), body.len());
        self.post(to, self.channel + 1, (Op::Send, seq), body)?;
        self.world.recorder.end(record);
        Ok(())
    }

    fn recv(&self, from: usize, elements: Elements) -> Result<Body, CommError> {
        self.peer("recv", from)?;
        let seq = self.from[from].fetch_add(1, Ordering::Relaxed);
        let record = self.world.recorder.begin(&self.name, (Op::Send, seq), Some(from), 0);
        let body = self.take(from, self.channel + 1, (Op::Send, seq))?;
        self.same_elements(elements, &body, from, (Op::Send, seq))?;
        self.world.recorder.end(record);
        Ok(body)
    }
}
