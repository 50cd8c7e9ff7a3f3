//! Keys and values in pages.
//!
//! A sequence is a list of pages of [`KV_PAGE`] positions each. A page that is full is never written again, so sequences
//! that begin alike share it; the last page of a sequence is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llamero_autograd::KvStore;
use llamero_tensor::{Backend, Heads, KV_PAGE, KvLayout, PagedSegment, Segment, Segments, Tensor};

/// How many pages there may be, and how many there are.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    limit: usize,
    live: Arc<AtomicUsize>,
}

impl Pool {
    /// Room for `limit` pages.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, live: Arc::default() }
    }

    /// Most pages at a time.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Pages that are there.
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Pages that there is room for.
    pub(crate) fn free(&self) -> usize {
        self.limit - self.live()
    }

    /// Counts a page until nobody holds it any more.
    pub(crate) fn hold(&self, tensor: Tensor) -> Page {
        assert!(self.free() > 0, "pool: more than {} pages", self.limit);
        self.live.fetch_add(1, Ordering::Relaxed);
        Page(Arc::new(Held { tensor, live: Arc::clone(&self.live) }))
    }
}

/// A page. Clones share it.
#[derive(Clone)]
pub(crate) struct Page(Arc<Held>);

struct Held {
    tensor: Tensor,
    live: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Page {
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.0.tensor
    }

    /// Whether somebody else holds it too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// The same for all who share it, and for no other page that is there.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// For writing.
    pub(crate) fn tensor_mut(&mut self) -> &mut Tensor {
        match Arc::get_mut(&mut self.0) {
            Some(held) => &mut held.tensor,
            None => panic!("page: it is shared and cannot be written"),
        }
    }
}

/// Pages of a sequence of `positions`.
pub(crate) fn pages_for(positions: usize) -> usize {
    positions.div_ceil(KV_PAGE)
}

/// The keys and values of one sequence.
#[derive(Default)]
pub(crate) struct Sequence {
    /// Positions that are there.
    pub(crate) len: usize,
    /// Pages from position 0 on; there may be more than `len` needs.
    pub(crate) pages: Vec<Page>,
}

impl Sequence {
    /// Forgets positions from `len` on, and pages that hold none.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(pages_for(self.len));
    }
}

/// The rows of one sequence in a packed pass.
pub(crate) struct Part<'a> {
    /// What they continue. Its pages have room for them.
    pub(crate) sequence: &'a mut Sequence,
    /// The tokens to read.
    pub(crate) ids: &'a [u32],
    /// How many of the last rows' hidden states are wanted.
    pub(crate) wanted: usize,
    /// Whether their logits are wanted too.
    pub(crate) logits: bool,
}

/// The runs of rows of packed parts.
pub(crate) fn segments(parts: &[Part<'_>]) -> Segments {
    let mut start = 0;
    let segments = parts.iter().map(|part| {
        let (past, rows) = (part.sequence.len, part.ids.len());
        let (end, room) = (past + rows, part.sequence.pages.len() * KV_PAGE);
        assert!(end <= room, "pages: {end} positions in room for {room}");
        start += rows;
        Segment { rows: start - rows..start, past }
    });
    Segments::new(segments.collect())
}

/// The pages that a pass over parts reads and extends.
pub(crate) struct PagedStore<'p, 'a> {
    pub(crate) layout: KvLayout,
    pub(crate) parts: &'p mut [Part<'a>],
}

impl KvStore for PagedStore<'_, '_> {
    fn attend(
        &mut self,
        backend: &dyn Backend,
        layer: usize,
        qkv: &Tensor,
        heads: Heads,
        segments: &Segments,
    ) -> Tensor {
        let (found, parts) = (segments.len(), self.parts.len());
        assert!(found == parts && heads == self.layout.heads, "pages: {found} segments for {parts} parts");
        let at = (self.layout, layer);
        for (part, segment) in self.parts.iter_mut().zip(segments.iter()) {
            append(backend, at, part.sequence, qkv, segment);
        }
        let paged = self.parts.iter().zip(segments.iter()).map(|(part, segment)| PagedSegment {
            segment: segment.clone(),
            pages: part.sequence.pages.iter().map(Page::tensor).collect(),
        });
        backend.attention_paged(qkv, at, &paged.collect::<Vec<_>>())
    }
}

/// Puts the keys and values of a segment's rows behind the earlier ones.
fn append(
    backend: &dyn Backend,
    at: (KvLayout, usize),
    sequence: &mut Sequence,
    qkv: &Tensor,
    segment: &Segment,
) {
    let (mut position, mut row) = (segment.past, segment.rows.start);
    while row < segment.rows.end {
        let slot = position % KV_PAGE;
        let rows = (KV_PAGE - slot).min(segment.rows.end - row);
        let page = sequence.pages[position / KV_PAGE].tensor_mut();
        backend.kv_append(page, at, slot, qkv, row..row + rows);
        position += rows;
        row += rows;
    }
}
