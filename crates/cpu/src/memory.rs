//! The caching allocator: 64-byte aligned blocks, kept for reuse when dropped.
//!
//! Small blocks come from the heap in size classes. Large ones are mappings of their own: whole pages that the system
//! fills with zeros when they are first touched, and that go back to it at once, whatever the heap does with freed
//! memory. All blocks together, in use and kept, never take much more than the blocks in use ever took, so the
//! resident memory of the process stays close to the peak that is counted.
//!
//! Blocks are zero when they come from the system, so a reused block holds old values but never uninitialised memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use llamero_tensor::Memory;
use memmap2::MmapMut;

const ALIGN: usize = 64;
/// From here on blocks are mappings.
const LARGE: usize = 1 << 20;
/// Large blocks are multiples of this.
const PAGE: usize = 1 << 12;
/// All blocks may exceed the highest use so far by this fraction (one over it).
const SLACK: usize = 16;
/// A kept block may exceed what is asked for by this fraction (one over it).
const WASTE: usize = 8;

enum Source {
    Heap(NonNull<u8>),
    Mapping(MmapMut),
}

/// A block of memory.
struct Block {
    source: Source,
    size: usize,
    /// Still all zeros.
    fresh: bool,
}

// SAFETY: a block owns its memory and has no thread affinity.
unsafe impl Send for Block {}
// SAFETY: a shared block gives shared access to plain bytes only.
unsafe impl Sync for Block {}

impl Block {
    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, ALIGN).expect("sizes of blocks fit the address space")
    }

    fn new(size: usize) -> Self {
        let source = if size < LARGE {
            // SAFETY: the size of a block is never zero.
            let ptr = unsafe { alloc_zeroed(Self::layout(size)) };
            NonNull::new(ptr).map(Source::Heap)
        } else {
            MmapMut::map_anon(size).ok().map(|mapping| {
                // Fewer page faults and better reach of the processor's address cache; only a wish.
                #[cfg(target_os = "linux")]
                drop(mapping.advise(memmap2::Advice::HugePage));
                Source::Mapping(mapping)
            })
        };
        let Some(source) = source else { handle_alloc_error(Self::layout(size)) };
        Self { source, size, fresh: true }
    }

    fn as_ptr(&self) -> *const u8 {
        match &self.source {
            Source::Heap(ptr) => ptr.as_ptr(),
            Source::Mapping(mapping) => mapping.as_ptr(),
        }
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        match &mut self.source {
            Source::Heap(ptr) => ptr.as_ptr(),
            Source::Mapping(mapping) => mapping.as_mut_ptr(),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Source::Heap(ptr) = &self.source {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { dealloc(ptr.as_ptr(), Self::layout(self.size)) }
        }
    }
}

#[derive(Default)]
struct State {
    /// Kept blocks by size.
    free: BTreeMap<usize, Vec<Block>>,
    free_bytes: usize,
    /// Sizes of the blocks in use.
    used_bytes: usize,
    /// Largest `used_bytes` so far.
    highest: usize,
    /// What was asked for.
    live: Memory,
}

impl State {
    /// Takes out the smallest kept block of at least `size`.
    fn smallest_from(&mut self, size: usize) -> Option<Block> {
        let found = *self.free.range(size..).next()?.0;
        self.remove(found)
    }

    fn remove(&mut self, size: usize) -> Option<Block> {
        let blocks = self.free.get_mut(&size)?;
        let block = blocks.pop()?;
        if blocks.is_empty() {
            self.free.remove(&size);
        }
        self.free_bytes -= size;
        Some(block)
    }

    fn keep(&mut self, block: Block) {
        self.free_bytes += block.size;
        self.free.entry(block.size).or_default().push(block);
    }

    /// A kept block for `size` bytes that is not much larger.
    fn reuse(&mut self, size: usize) -> Option<Block> {
        let (&found, _) = self.free.range(size..=size + size / WASTE).next()?;
        self.remove(found)
    }

    /// Kept blocks to give back to the system so that all blocks stay within their bounds.
    fn excess(&mut self) -> Vec<Block> {
        let room = self.highest + self.highest / SLACK;
        let mut excess = Vec::new();
        while self.used_bytes + self.free_bytes > room {
            // One that is large enough, or else the largest and more.
            let over = self.used_bytes + self.free_bytes - room;
            let largest = self.free.keys().next_back().copied();
            let Some(block) = self.smallest_from(largest.map_or(over, |largest| over.min(largest))) else {
                break;
            };
            excess.push(block);
        }
        excess
    }
}

/// Hands out [`Buffer`]s. Clones share the kept blocks.
#[derive(Clone, Default)]
pub(crate) struct Allocator(Arc<Mutex<State>>);

/// Small sizes in steps of an eighth of the power of two below, large ones in pages.
fn size_of_block(bytes: usize) -> usize {
    let step = if bytes < LARGE { (bytes.max(512).next_power_of_two() / 16).max(ALIGN) } else { PAGE };
    bytes.max(ALIGN).next_multiple_of(step)
}

impl Allocator {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use.
    pub(crate) fn memory(&self) -> Memory {
        self.state().live
    }

    /// Starts a new measurement of the peak. What is kept on account of the old one goes back to the system.
    pub(crate) fn reset_peak(&self) {
        let mut state = self.state();
        state.live.peak_bytes = state.live.live_bytes;
        state.highest = state.used_bytes;
        let excess = state.excess();
        drop(state);
        drop(excess);
    }

    /// `len` elements with whatever values the block held last.
    pub(crate) fn stale<T: Pod>(&self, len: usize) -> Buffer<T> {
        let mut buffer = self.take(len);
        buffer.block_mut().fresh = false;
        buffer
    }

    /// `len` zeros. Those of a new block are not touched.
    pub(crate) fn zeros<T: Pod>(&self, len: usize) -> Buffer<T> {
        let mut buffer = self.take(len);
        if !std::mem::take(&mut buffer.block_mut().fresh) {
            buffer.fill(T::zeroed());
        }
        buffer
    }

    fn take<T: Pod>(&self, len: usize) -> Buffer<T> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a tensor fits the address space");
        let size = size_of_block(bytes);
        let mut state = self.state();
        state.live.live_bytes += bytes;
        state.live.peak_bytes = state.live.peak_bytes.max(state.live.live_bytes);
        let kept = state.reuse(size);
        state.used_bytes += kept.as_ref().map_or(size, |block| block.size);
        state.highest = state.highest.max(state.used_bytes);
        let excess = if kept.is_some() { Vec::new() } else { state.excess() };
        drop(state);
        // Before the new block comes, so that both are never there together.
        drop(excess);
        let block = kept.unwrap_or_else(|| Block::new(size));
        Buffer { block: Some(block), len, owner: self.clone(), marker: PhantomData }
    }

    fn give_back(&self, block: Block, bytes: usize) {
        let mut state = self.state();
        state.live.live_bytes -= bytes;
        state.used_bytes -= block.size;
        state.keep(block);
    }
}

/// A run of elements from an [`Allocator`].
pub(crate) struct Buffer<T: Pod> {
    block: Option<Block>,
    len: usize,
    owner: Allocator,
    marker: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    fn block(&self) -> &Block {
        self.block.as_ref().expect("the block is only taken by drop")
    }

    fn block_mut(&mut self) -> &mut Block {
        self.block.as_mut().expect("the block is only taken by drop")
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the block is aligned to 64 bytes, holds `len` elements, was zeroed or written before, and
        // every bit pattern is a `T` (`Pod`).
        unsafe { std::slice::from_raw_parts(self.block().as_ptr().cast(), self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.len;
        // SAFETY: as in `deref`; the buffer owns the block.
        unsafe { std::slice::from_raw_parts_mut(self.block_mut().as_mut_ptr().cast(), len) }
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.owner.give_back(block, self.len * size_of::<T>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_waste_little() {
        for bytes in (1..100_000).chain((1 << 20) - 100..(1 << 20) + 5000) {
            let size = size_of_block(bytes);
            assert!(size >= bytes && size.is_multiple_of(ALIGN));
            assert!(bytes < 1024 || size <= bytes + bytes / 8, "{bytes} -> {size}");
            assert_eq!(size_of_block(size), size);
        }
    }

    #[test]
    fn blocks_are_reused_and_counted() {
        let a = Allocator::default();
        for len in [1000, 1 << 20] {
            let first = a.stale::<f32>(len);
            let at = first.as_ptr();
            assert_eq!(at as usize % ALIGN, 0);
            assert_eq!(a.memory().live_bytes, 4 * len);
            drop(first);
            assert_eq!(a.memory(), Memory { live_bytes: 0, peak_bytes: 4 * len });
            let mut again = a.stale::<f32>(len);
            assert_eq!(again.as_ptr(), at);
            again[len - 1] = 1.0;
            drop(again);
            assert_eq!(a.zeros::<f32>(len)[len - 1], 0.0);
            // A little less fits too, much less does not.
            assert_eq!(a.stale::<f32>(len - len / 10).as_ptr(), at);
            assert!(a.stale::<f32>(len / 2).block().size < 3 * len);
            a.reset_peak();
            assert_eq!(a.memory(), Memory::default());
            assert_eq!(a.state().free_bytes, 0);
        }
    }

    #[test]
    fn all_blocks_together_stay_within_their_bounds() {
        let a = Allocator::default();
        let mut held = Vec::new();
        for n in 1..300usize {
            held.push(a.stale::<u16>(n * 7919 % 100 * 20_000 + 1));
            if n % 3 == 0 {
                held.swap_remove(n * 31 % held.len());
            }
            if n % 50 == 0 {
                held.clear();
            }
            let state = a.state();
            let used: usize = held.iter().map(|b| b.block().size).sum();
            assert_eq!(state.used_bytes, used);
            assert_eq!(state.free_bytes, state.free.iter().map(|(size, v)| size * v.len()).sum::<usize>());
            assert!(used + state.free_bytes <= state.highest + state.highest / SLACK);
        }
    }

    #[test]
    fn new_blocks_are_zero_and_old_ones_are_filled() {
        let a = Allocator::default();
        for len in [100, 1 << 19] {
            assert!(a.zeros::<u32>(len).iter().all(|x| *x == 0));
            let mut x = a.stale::<u32>(len);
            x.fill(7);
            let at = x.as_ptr();
            drop(x);
            let zeros = a.zeros::<u32>(len);
            assert!(zeros.as_ptr() == at && zeros.iter().all(|x| *x == 0));
        }
    }
}
