//! Ranks that are processes, joined by MPI (feature `mpi`).
//!
//! MPI carries messages from rank to rank, matched by sender and channel (its tag); what collectives come to is decided
//! in [`Group`](crate::Group), as on every wire. Sends do not wait: a message is kept until MPI is done with it. Waits poll, so
//! that a deadline holds even when the peer hangs. If a process dies or panics, MPI ends the job; a rank that stops because of
//! an error must call [`Mpi::abort`], or the others wait until their deadlines. Errors of MPI itself end the job, as is its
//! default.

#![expect(unsafe_code, reason = "MPI is a C library; each block says why it is sound")]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi::ffi;
use mpi::{Threading, environment::Universe};

use crate::{Body, Elements, Header, Message, Op, Wire, WireError};

/// Bytes of a header on the wire.
const HEADER: usize = 24;
/// Most bytes of one MPI message: its count is a C `int`.
const PIECE: usize = 1 << 30;

/// This process among all that `mpirun` or `srun` has started.
pub struct Mpi {
    rank: usize,
    size: usize,
    state: Mutex<State>,
}

struct State {
    /// Ends MPI when it is dropped.
    _universe: Universe,
    world: ffi::MPI_Comm,
    /// Sends that MPI has not finished, with their bytes.
    sends: Vec<(ffi::MPI_Request, Box<[u8]>)>,
}

// SAFETY: the handles in here name objects of the MPI library, which was started with `MPI_THREAD_SERIALIZED`: any thread may
// use them, one at a time, and the mutex around the state sees to that. `MPI_Finalize`, in the drop of the universe, wants the
// thread that called `Mpi::join`, which is said there.
unsafe impl Send for State {}

impl Mpi {
    /// Joins the job; the last reference must be dropped on the thread that called this. `None` when MPI was started before in this process, or cannot be used from several threads.
    pub fn join() -> Option<Self> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)?;
        if threading < Threading::Serialized {
            return None;
        }
        let (mut rank, mut size): (c_int, c_int) = (0, 0);
        // SAFETY: MPI is started, and the world exists as long as it is.
        let world = unsafe {
            let world = ffi::RSMPI_COMM_WORLD;
            ffi::MPI_Comm_rank(world, &mut rank);
            ffi::MPI_Comm_size(world, &mut size);
            world
        };
        let state = State { _universe: universe, world, sends: Vec::new() };
        Some(Self { rank: rank as usize, size: size as usize, state: Mutex::new(state) })
    }

    /// Ends the whole job with an exit status: every process is stopped.
    pub fn abort(&self, status: i32) -> ! {
        let state = self.state();
        // SAFETY: MPI is started.
        unsafe { ffi::MPI_Abort(state.world, status) };
        std::process::exit(status)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&mut self, to: usize, channel: u32, bytes: Box<[u8]>) {
        // SAFETY: the bytes stay where they are until the request is done, since `sends` keeps them. An error would have
        // ended the job, so the request is one of MPI's.
        let request = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let at = bytes.as_ptr().cast::<c_void>();
            let (count, to, tag) = (bytes.len() as c_int, to as c_int, channel as c_int);
            ffi::MPI_Isend(at, count, ffi::RSMPI_UINT8_T, to, tag, self.world, &mut request);
            request
        };
        self.sends.push((request, bytes));
    }

    /// Lets go of what was sent; MPI also goes on with the rest meanwhile.
    fn progress(&mut self) {
        self.sends.retain_mut(|(request, _)| {
            let mut done: c_int = 0;
            // SAFETY: the request is one that is not done yet: a request that is done is removed.
            unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
            done == 0
        });
    }

    /// The next MPI message of a rank on a channel, if it is there.
    fn take(&self, from: usize, channel: u32) -> Option<Vec<u8>> {
        // SAFETY: a message that was matched is received once, into a buffer of the size that its status tells; an error
        // would have ended the job, so all of it is written.
        unsafe {
            let (mut there, mut count): (c_int, c_int) = (0, 0);
            let mut message = ffi::RSMPI_MESSAGE_NULL;
            let mut status = std::mem::zeroed::<ffi::MPI_Status>();
            let (from, tag) = (from as c_int, channel as c_int);
            ffi::MPI_Improbe(from, tag, self.world, &mut there, &mut message, &mut status);
            if there == 0 {
                return None;
            }
            ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut count);
            let mut bytes = Vec::with_capacity(count as usize);
            let at: *mut u8 = bytes.as_mut_ptr();
            ffi::MPI_Mrecv(
                at.cast(),
                count,
                ffi::RSMPI_UINT8_T,
                ptr::from_mut(&mut message),
                ffi::RSMPI_STATUS_IGNORE,
            );
            bytes.set_len(count as usize);
            Some(bytes)
        }
    }
}

impl Drop for Mpi {
    /// Waits for what was sent, so that a rank may leave before its peers have read.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(1);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut state = self.state();
            state.progress();
            if state.sends.is_empty() || Instant::now() > deadline {
                return;
            }
            drop(state);
            std::thread::yield_now();
        }
    }
}

fn encode(header: &Header, body: &Body) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    // Op and elements take the place of the highest two bytes of the length.
    let length = (body.len() as u64) | (header.op as u64) << 56 | (body.elements() as u64) << 48;
    out[..8].copy_from_slice(&header.seq.to_le_bytes());
    out[8..16].copy_from_slice(&header.hash.to_le_bytes());
    out[16..].copy_from_slice(&length.to_le_bytes());
    out
}

/// The header, what the bytes of the body are, and how many.
fn decode(first: &[u8]) -> Option<(Header, Elements, usize)> {
    let [seq, hash, length] =
        [0, 8, 16].map(|at| first.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes));
    let (seq, hash, length) = (seq?, hash?, length?);
    let op = *Op::ALL.get((length >> 56) as usize)?;
    let elements = *Elements::ALL.get((length >> 48) as usize & 0xff)?;
    Some((Header { seq, op, hash }, elements, (length & ((1 << 48) - 1)) as usize))
}

impl Wire for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send(&self, to: usize, channel: u32, message: Message) -> Result<(), WireError> {
        let Message { header, body } = message;
        let first = body.len().min(PIECE);
        let mut bytes = Vec::with_capacity(HEADER + first);
        bytes.extend_from_slice(&encode(&header, &body));
        bytes.extend_from_slice(&body[..first]);
        let mut state = self.state();
        state.send(to, channel, bytes.into());
        for piece in body[first..].chunks(PIECE) {
            state.send(to, channel, piece.into());
        }
        state.progress();
        Ok(())
    }

    fn recv(&self, from: usize, channel: u32, deadline: Instant) -> Result<Message, WireError> {
        let mut spins = 0u32;
        let mut next = || loop {
            let mut state = self.state();
            if let Some(bytes) = state.take(from, channel) {
                return Ok(bytes);
            }
            state.progress();
            drop(state);
            if Instant::now() >= deadline {
                return Err(WireError::Late);
            }
            // A peer on the same core must come to its turn.
            spins += 1;
            if spins < 200 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_micros(50)) }
        };
        let first = next()?;
        let (header, elements, length) = decode(&first).ok_or(WireError::Lost)?;
        let mut body = bytes::Bytes::from(first).slice(HEADER..);
        if body.len() < length {
            let mut whole = body.to_vec();
            while whole.len() < length {
                whole.extend_from_slice(&next()?);
            }
            body = whole.into();
        }
        if body.len() != length {
            return Err(WireError::Lost);
        }
        Ok(Message { header, body: Body::new(body, elements) })
    }
}
