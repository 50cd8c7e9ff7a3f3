//! The caching allocator: blocks in size classes, 64-byte aligned, returned when dropped.
//!
//! Blocks are zeroed when they come from the system, so a reused block holds old values but never
//! uninitialised memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use llamero_tensor::Memory;

const ALIGN: usize = 64;
/// Cached blocks may exceed the highest use so far by this fraction (one over it).
const SLACK: usize = 4;

/// A block of memory of one size class.
struct Block {
    ptr: NonNull<u8>,
    class: usize,
}

// SAFETY: a block owns its memory and has no thread affinity.
unsafe impl Send for Block {}
// SAFETY: a shared block gives shared access to plain bytes only.
unsafe impl Sync for Block {}

impl Block {
    fn layout(class: usize) -> Layout {
        Layout::from_size_align(class, ALIGN).expect("size classes fit the address space")
    }

    fn new(class: usize) -> Self {
        let layout = Self::layout(class);
        // SAFETY: the size of a class is never zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        Self { ptr, class }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.class)) }
    }
}

#[derive(Default)]
struct State {
    free: BTreeMap<usize, Vec<Block>>,
    free_bytes: usize,
    live: Memory,
    highest: usize,
}

/// Hands out [`Buffer`]s. Clones share the cache.
#[derive(Clone, Default)]
pub(crate) struct Allocator(Arc<Mutex<State>>);

/// Sizes in steps of an eighth of the power of two below.
fn class_of(bytes: usize) -> usize {
    let step = (bytes.max(512).next_power_of_two() / 16).max(ALIGN);
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

    /// Starts a new measurement of the peak.
    pub(crate) fn reset_peak(&self) {
        let mut state = self.state();
        state.live.peak_bytes = state.live.live_bytes;
    }

    /// `len` elements with whatever values the block held last.
    pub(crate) fn stale<T: Pod>(&self, len: usize) -> Buffer<T> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a tensor fits the address space");
        let class = class_of(bytes);
        let cached = {
            let mut state = self.state();
            state.live.live_bytes += bytes;
            state.live.peak_bytes = state.live.peak_bytes.max(state.live.live_bytes);
            state.highest = state.highest.max(state.live.live_bytes);
            let cached = state.free.get_mut(&class).and_then(Vec::pop);
            if cached.is_some() {
                state.free_bytes -= class;
            }
            cached
        };
        let block = cached.unwrap_or_else(|| Block::new(class));
        Buffer { block: Some(block), len, owner: self.clone(), marker: PhantomData }
    }

    /// `len` zeros.
    pub(crate) fn zeros<T: Pod>(&self, len: usize) -> Buffer<T> {
        let mut buffer = self.stale(len);
        buffer.fill(T::zeroed());
        buffer
    }

    fn give_back(&self, block: Block, bytes: usize) {
        let mut state = self.state();
        state.live.live_bytes -= bytes;
        let room = state.highest + state.highest / SLACK;
        state.free_bytes += block.class;
        state.free.entry(block.class).or_default().push(block);
        while state.live.live_bytes + state.free_bytes > room {
            // The class that holds most is the likeliest to be left over from a shape no longer used.
            let Some(class) = state.free.iter().max_by_key(|(c, v)| *c * v.len()).map(|(c, _)| *c) else {
                break;
            };
            if state.free.get_mut(&class).and_then(Vec::pop).is_none() {
                break;
            }
            state.free_bytes -= class;
        }
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
    fn ptr(&self) -> NonNull<T> {
        self.block.as_ref().expect("the block is only taken by drop").ptr.cast()
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the block is aligned to 64 bytes, holds `len` elements, was zeroed or written before, and
        // every bit pattern is a `T` (`Pod`).
        unsafe { std::slice::from_raw_parts(self.ptr().as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the buffer owns the block.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().as_ptr(), self.len) }
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
    fn classes_waste_little() {
        for bytes in 1..100_000 {
            let class = class_of(bytes);
            assert!(class >= bytes && class.is_multiple_of(ALIGN));
            assert!(bytes < 1024 || class <= bytes + bytes / 8, "{bytes} -> {class}");
            assert_eq!(class_of(class), class);
        }
    }

    #[test]
    fn blocks_are_reused_counted_and_bounded() {
        let a = Allocator::default();
        let first = a.stale::<f32>(1000);
        let at = first.as_ptr();
        assert_eq!(at as usize % ALIGN, 0);
        assert_eq!(a.memory().live_bytes, 4000);
        drop(first);
        assert_eq!(a.memory(), Memory { live_bytes: 0, peak_bytes: 4000 });
        let mut again = a.stale::<f32>(1000);
        assert_eq!(again.as_ptr(), at);
        again[0] = 1.0;
        drop(again);
        assert_eq!(a.zeros::<f32>(1000)[0], 0.0);
        for n in 1..200 {
            drop(a.stale::<u16>(n * 100));
            let state = a.state();
            assert!(state.free_bytes <= state.highest + state.highest / SLACK);
            assert_eq!(state.free_bytes, state.free.iter().map(|(c, v)| c * v.len()).sum::<usize>());
        }
        a.reset_peak();
        assert_eq!(a.memory(), Memory::default());
    }
}
