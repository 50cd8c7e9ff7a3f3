//! The allocator: 64-byte aligned blocks out of one large reservation of addresses.
//!
//! Addresses cost nothing; the system gives memory to a page when it is first written, and gives it zeroed. A block is
//! taken from the lowest gap that holds it, and gaps that touch become one, so blocks of any size reuse each other's
//! memory. The resident memory of the process is what lies below the highest address ever used, which stays close to
//! the peak of the bytes in use.
//!
//! A reused block holds old values, but never uninitialised memory.

use std::alloc::{Layout, handle_alloc_error};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use bytemuck::Pod;
use llamero_tensor::Memory;
use memmap2::{MmapMut, MmapOptions};

const ALIGN: usize = 64;
/// Addresses to reserve, where the system lets us; far more than a machine has memory.
const RESERVED: usize = 1 << 40;
/// Memory is given back in runs of this size, a multiple of the pages of every system.
const GIVE_BACK: usize = 1 << 21;
/// What to reserve where the system refuses that, so that other parts of the process find addresses too.
const RESERVED_SMALL: usize = 1 << 32;

/// A reservation of addresses.
struct Arena {
    mapping: MmapMut,
    /// Its address, through which all access goes.
    base: NonNull<u8>,
    /// Gaps between blocks: offset and length. No two touch.
    gaps: BTreeMap<usize, usize>,
    /// Nothing from here on was ever handed out, so it is still zero.
    touched: usize,
}

// SAFETY: the addresses belong to the mapping, which has no thread affinity.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves addresses for at least `size` bytes.
    fn new(size: usize) -> Option<Self> {
        let sizes = [RESERVED.max(size), RESERVED_SMALL.max(size), size];
        let mut mapping =
            sizes.into_iter().find_map(|n| MmapOptions::new().len(n).no_reserve_swap().map_anon().ok())?;
        // Fewer page faults and better reach of the processor's address cache; only a wish.
        #[cfg(target_os = "linux")]
        drop(mapping.advise(memmap2::Advice::HugePage));
        let base = NonNull::new(mapping.as_mut_ptr())?;
        let gaps = [(0, mapping.len())].into();
        Some(Self { mapping, base, gaps, touched: 0 })
    }

    fn take(&mut self, size: usize) -> Option<Block> {
        let (&offset, &len) = self.gaps.iter().find(|(_, len)| **len >= size)?;
        self.gaps.remove(&offset);
        if len > size {
            self.gaps.insert(offset + size, len - size);
        }
        let fresh = offset >= self.touched;
        self.touched = self.touched.max(offset + size);
        // SAFETY: inside the mapping.
        let ptr = unsafe { self.base.add(offset) };
        Some(Block { ptr, size, fresh })
    }

    /// Where a block begins, if it is of this arena.
    fn offset_of(&self, block: &Block) -> Option<usize> {
        let offset = block.ptr.addr().get().checked_sub(self.base.addr().get())?;
        (offset < self.mapping.len()).then_some(offset)
    }

    fn give_back(&mut self, offset: usize, size: usize) {
        let (mut start, mut end) = (offset, offset + size);
        if let Some((&before, &len)) = self.gaps.range(..offset).next_back()
            && before + len == offset
        {
            self.gaps.remove(&before);
            start = before;
        }
        if let Some(len) = self.gaps.remove(&end) {
            end += len;
        }
        self.gaps.insert(start, end - start);
    }

    /// Gives the memory above the last block back to the system.
    fn trim(&mut self) {
        let last = self.gaps.last_key_value().filter(|(start, len)| *start + *len == self.mapping.len());
        let unused = last.map_or(self.mapping.len(), |(start, _)| start.next_multiple_of(GIVE_BACK));
        if unused < self.touched {
            // SAFETY: no block is in this part, and it reads as zeros afterwards.
            #[cfg(target_os = "linux")]
            let done = unsafe {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                self.mapping.unchecked_advise_range(advice, unused, self.touched - unused)
            };
            #[cfg(target_os = "linux")]
            if done.is_ok() {
                self.touched = unused;
            }
        }
    }
}

/// A run of bytes that belongs to one buffer.
struct Block {
    ptr: NonNull<u8>,
    size: usize,
    /// Still all zeros.
    fresh: bool,
}

// SAFETY: a block is a unique borrow of plain bytes.
unsafe impl Send for Block {}
// SAFETY: a shared block gives shared access to plain bytes only.
unsafe impl Sync for Block {}

#[derive(Default)]
struct State {
    /// One, unless the system does not let us reserve enough at once.
    arenas: Vec<Arena>,
    live: Memory,
}

impl State {
    fn take(&mut self, size: usize) -> Block {
        if let Some(block) = self.arenas.iter_mut().find_map(|arena| arena.take(size)) {
            return block;
        }
        let block = Arena::new(size).and_then(|mut arena| {
            let block = arena.take(size);
            self.arenas.push(arena);
            block
        });
        let layout = Layout::from_size_align(size, ALIGN).expect("a tensor fits the address space");
        block.unwrap_or_else(|| handle_alloc_error(layout))
    }
}

/// Hands out [`Buffer`]s. Clones share the memory.
#[derive(Clone, Default)]
pub(crate) struct Allocator(Arc<Mutex<State>>);

impl Allocator {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use.
    pub(crate) fn memory(&self) -> Memory {
        self.state().live
    }

    /// Starts a new measurement of the peak. Memory above what is in use goes back to the system.
    pub(crate) fn reset_peak(&self) {
        let mut state = self.state();
        state.live.peak_bytes = state.live.live_bytes;
        state.arenas.iter_mut().for_each(Arena::trim);
    }

    /// `len` elements with whatever values were there last.
    pub(crate) fn stale<T: Pod>(&self, len: usize) -> Buffer<T> {
        let mut buffer = self.take(len);
        buffer.block.fresh = false;
        buffer
    }

    /// `len` zeros. They are written when somebody looks at them, unless they were never used.
    pub(crate) fn zeros<T: Pod>(&self, len: usize) -> Buffer<T> {
        let mut buffer = self.take(len);
        let zeroed = Once::new();
        if std::mem::take(&mut buffer.block.fresh) {
            zeroed.call_once(|| {});
        }
        buffer.zeroed = Some(zeroed);
        buffer
    }

    fn take<T: Pod>(&self, len: usize) -> Buffer<T> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a tensor fits the address space");
        let mut state = self.state();
        let block = state.take(bytes.max(1).next_multiple_of(ALIGN));
        state.live.live_bytes += bytes;
        state.live.peak_bytes = state.live.peak_bytes.max(state.live.live_bytes);
        drop(state);
        Buffer { block, len, zeroed: None, owner: self.clone(), marker: PhantomData }
    }
}

/// A run of elements from an [`Allocator`].
pub(crate) struct Buffer<T: Pod> {
    block: Block,
    len: usize,
    /// While all elements are zero: whether that is written down.
    zeroed: Option<Once>,
    owner: Allocator,
    marker: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Whether all elements are zero and nobody has had the chance to write others. After a yes they have any value,
    /// and the caller writes them all.
    pub(crate) fn replace_zeros(&mut self) -> bool {
        self.zeroed.take().is_some()
    }

    /// Zeros every byte.
    ///
    /// # Safety
    /// Nobody else looks at the elements meanwhile.
    unsafe fn fill_with_zeros(&self) {
        // SAFETY: the block holds `len` elements, and is accessed by nobody else.
        unsafe { self.block.ptr.as_ptr().cast::<T>().write_bytes(0, self.len) }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        if let Some(zeroed) = &self.zeroed {
            // SAFETY: there is no slice of these elements before this, and the others that ask for one wait here.
            zeroed.call_once(|| unsafe { self.fill_with_zeros() });
        }
        // SAFETY: the block is aligned to 64 bytes, holds `len` elements, was zero or written before, and every bit
        // pattern is a `T` (`Pod`). The arena lives as long as `owner`.
        unsafe { std::slice::from_raw_parts(self.block.ptr.as_ptr().cast(), self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        if self.zeroed.take().is_some_and(|zeroed| !zeroed.is_completed()) {
            // SAFETY: the buffer is borrowed for writing.
            unsafe { self.fill_with_zeros() }
        }
        // SAFETY: as in `deref`; the buffer owns the block.
        unsafe { std::slice::from_raw_parts_mut(self.block.ptr.as_ptr().cast(), self.len) }
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        let mut state = self.owner.state();
        state.live.live_bytes -= self.len * size_of::<T>();
        for arena in &mut state.arenas {
            if let Some(offset) = arena.offset_of(&self.block) {
                arena.give_back(offset, self.block.size);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reused_and_counted() {
        let a = Allocator::default();
        for len in [1000, 1 << 20] {
            let first = a.stale::<f32>(len);
            let at = first.as_ptr();
            assert_eq!(at as usize % ALIGN, 0);
            assert_eq!(a.memory().live_bytes, 4 * len);
            drop(first);
            assert_eq!(a.memory(), Memory { live_bytes: 0, peak_bytes: 4 * len });
            // Two that together need no more than the first.
            let (x, y) = (a.stale::<u8>(2 * len), a.stale::<f64>(len / 8));
            let offsets = [x.as_ptr().addr(), y.as_ptr().addr()].map(|address| address - at.addr());
            assert_eq!(offsets, [0, (2 * len).next_multiple_of(ALIGN)]);
            drop((x, y));
            a.reset_peak();
            assert_eq!(a.memory(), Memory::default());
        }
    }

    #[test]
    fn blocks_do_not_overlap_and_gaps_become_one() {
        let a = Allocator::default();
        let mut held: Vec<Buffer<u64>> = Vec::new();
        for n in 1..400u64 {
            let mut x = a.stale::<u64>((n * 7919 % 101 * 37) as usize);
            x.fill(n);
            held.push(x);
            if n % 3 != 0 {
                held.swap_remove(n as usize * 31 % held.len());
            }
            let whole = held.iter().all(|x| x.iter().all(|v| *v == x.first().copied().unwrap_or(0)));
            assert!(whole, "a block was written by another");
        }
        held.clear();
        let state = a.state();
        assert_eq!(state.arenas.len(), 1);
        assert_eq!(state.arenas[0].gaps, [(0, state.arenas[0].mapping.len())].into());
    }

    #[test]
    fn zeros_are_zero_whatever_was_there() {
        let a = Allocator::default();
        for len in [100, 1 << 19] {
            assert!(a.zeros::<u32>(len).iter().all(|x| *x == 0));
            let mut x = a.stale::<u32>(len);
            x.fill(7);
            let at = x.as_ptr();
            drop(x);
            let zeros = a.zeros::<u32>(len);
            assert!(zeros.as_ptr() == at && zeros.iter().all(|x| *x == 0));
            drop(zeros);
            a.stale::<u32>(len).fill(7);
            a.reset_peak();
            // Above what was in use when the measurement began, memory is new again.
            assert!(a.zeros::<u32>(2 * len).iter().all(|x| *x == 0));
        }
    }

    #[test]
    fn zeros_are_replaced_only_while_nobody_wrote_others() {
        let a = Allocator::default();
        a.stale::<u32>(100).fill(7);
        let mut x = a.zeros::<u32>(100);
        assert!(x.replace_zeros() && !x.replace_zeros());
        drop(x);
        let mut x = a.zeros::<u32>(100);
        assert!(x.iter().all(|x| *x == 0) && x.replace_zeros());
        drop(x);
        let mut x = a.zeros::<u32>(100);
        x[1] = 5;
        assert!(!x.replace_zeros() && x[0] == 0 && x[1] == 5);
        drop(x);
        // Several threads look at once.
        let x = a.zeros::<u32>(1 << 20);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| assert!(x.iter().all(|x| *x == 0)));
            }
        });
    }
}
