//! Threads and disjoint writes.

use std::marker::PhantomData;

use crate::ahead::Ahead;
use crate::memory::Allocator;
use crate::path::{Checked, Kernel, Path};
use crate::team::Team;

/// Work below this many nanoseconds stays on the calling thread: handing it over costs about as much.
const WORTH_SHARING: f64 = 5_000.0;

/// What every kernel needs: instructions, threads and memory.
pub(crate) struct Exec {
    pub(crate) path: Checked,
    pub(crate) threads: usize,
    pub(crate) memory: Allocator,
    team: Option<Team>,
}

impl Exec {
    pub(crate) fn new(path: Checked, threads: usize) -> std::io::Result<Self> {
        let team = if threads > 1 { Some(Team::new(threads - 1)?) } else { None };
        Ok(Self { path, threads, memory: Allocator::default(), team })
    }

    /// Runs a kernel on the calling thread.
    pub(crate) fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.path.run(kernel)
    }

    /// Whether bf16 products keep pairs of bf16 ([`crate::simd::Simd::PAIRS`]).
    pub(crate) fn pairs(&self) -> bool {
        self.path.path() == Path::Avx512Bf16
    }

    /// Runs tasks `0..tasks`, which together take about `nanoseconds` on one thread, in any order.
    pub(crate) fn tasks(&self, tasks: usize, nanoseconds: f64, f: impl Fn(usize) + Sync) {
        match &self.team {
            Some(team) if tasks > 1 && nanoseconds > WORTH_SHARING => team.run(tasks, &f),
            _ => (0..tasks).for_each(f),
        }
    }

    /// Splits `out` into chunks of `chunk` elements and runs `f(index, chunk)` on each, in any order.
    pub(crate) fn chunks<T: Send>(
        &self,
        out: &mut [T],
        chunk: usize,
        nanoseconds: f64,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let (chunk, len) = (chunk.max(1), out.len());
        let all = Chunks { ptr: out.as_mut_ptr(), marker: PhantomData::<&mut [T]> };
        self.tasks(len.div_ceil(chunk), nanoseconds, |i| {
            let at = i * chunk;
            // SAFETY: inside `out`; chunks do not overlap, and each task runs once.
            f(i, unsafe { std::slice::from_raw_parts_mut(all.at(at), chunk.min(len - at)) });
        });
    }

    /// What idle threads bring near, where there are some.
    pub(crate) fn ahead(&self) -> Option<&Ahead> {
        self.team.as_ref().map(Team::ahead)
    }

    /// A number of rows per task that gives every thread a few tasks.
    pub(crate) fn rows_per_task(&self, rows: usize) -> usize {
        rows.div_ceil(4 * self.threads).max(1)
    }
}

/// The array that [`Exec::chunks`] divides.
struct Chunks<'a, T> {
    ptr: *mut T,
    marker: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared one only gives addresses; `Exec::chunks` makes disjoint borrows of them.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<T> Chunks<'_, T> {
    fn at(&self, at: usize) -> *mut T {
        self.ptr.wrapping_add(at)
    }
}

/// A rectangle inside a row-major array that one task may write while others write elsewhere in the array.
pub(crate) struct Tile<'a, E> {
    ptr: *mut E,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Distance between rows.
    pub(crate) stride: usize,
    marker: PhantomData<&'a mut [E]>,
}

// SAFETY: a tile is a unique borrow of its elements, like `&mut [E]`.
unsafe impl<E: Send> Send for Tile<'_, E> {}
// SAFETY: a shared tile allows nothing but `sub`, whose caller promises disjoint rectangles.
unsafe impl<E: Send> Sync for Tile<'_, E> {}

impl<'a, E: Copy> Tile<'a, E> {
    /// All of an array with `stride` columns in storage, of which `cols` are used.
    pub(crate) fn new(data: &'a mut [E], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(cols <= stride && (rows == 0 || (rows - 1) * stride + cols <= data.len()));
        Self { ptr: data.as_mut_ptr(), rows, cols, stride, marker: PhantomData }
    }

    /// A rectangle of this one.
    ///
    /// # Safety
    /// No two rectangles in use at the same time may overlap.
    pub(crate) unsafe fn sub(&self, row: usize, col: usize, rows: usize, cols: usize) -> Tile<'a, E> {
        assert!(row + rows <= self.rows && col + cols <= self.cols);
        // SAFETY: inside the array, by the assertion.
        let ptr = unsafe { self.ptr.add(row * self.stride + col) };
        Tile { ptr, rows, cols, stride: self.stride, marker: PhantomData }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [E] {
        assert!(row < self.rows);
        // SAFETY: inside the tile, which is borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(row * self.stride), self.cols) }
    }

    /// Address of the first element.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut E {
        self.ptr
    }
}
