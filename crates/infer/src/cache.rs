//! Keys and values of earlier positions.
//!
//! `T` packed rows, `G` key/value heads of width `D`, `H` query heads.

use std::collections::BTreeMap;

use llamero_autograd::KvStore;
use llamero_tensor::{Backend, CachedSegment, DType, Heads, Segment, Segments, Shape, Tensor};

/// Positions that a sequence has room for at first; it doubles as needed.
const FIRST_CAPACITY: usize = 64;

/// Keys and values of one or several sequences, each up to `context` positions long.
///
/// A forward pass is announced with [`KvCache::begin`], which says which sequences its segments belong to, and counted
/// with [`KvCache::commit`] once it is done; one that fails in between leaves every sequence as long as it was.
pub(crate) struct KvCache {
    context: usize,
    sequences: Vec<Sequence>,
    /// The running pass: sequence and number of rows of each segment.
    batch: Vec<(usize, usize)>,
}

#[derive(Default)]
struct Sequence {
    len: usize,
    layers: BTreeMap<usize, Layer>,
}

/// Keys and values of one layer, `[capacity, G·D]` each.
struct Layer {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// Room for `sequences` sequences, all empty.
    pub(crate) fn new(sequences: usize, context: usize) -> Self {
        let sequences = std::iter::repeat_with(Sequence::default).take(sequences).collect();
        Self { context, sequences, batch: Vec::new() }
    }

    /// Positions that a sequence holds.
    pub(crate) fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].len
    }

    /// Forgets a sequence's positions from `len` on.
    pub(crate) fn truncate(&mut self, sequence: usize, len: usize) {
        let s = &mut self.sequences[sequence];
        s.len = s.len.min(len);
    }

    /// Announces a pass over the next `rows` positions of each `(sequence, rows)`; a sequence occurs once at most.
    /// Returns the segments to give to it.
    pub(crate) fn begin(&mut self, batch: &[(usize, usize)]) -> Segments {
        let mut start = 0;
        let segments = batch.iter().map(|&(sequence, rows)| {
            let past = self.len(sequence);
            let (end, context) = (past + rows, self.context);
            assert!(end <= context, "key/value cache: {end} positions in a context of {context}");
            start += rows;
            Segment { rows: start - rows..start, past }
        });
        let segments = Segments::new(segments.collect());
        self.batch = batch.to_vec();
        segments
    }

    /// Counts the positions of the pass that [`KvCache::begin`] announced.
    pub(crate) fn commit(&mut self) {
        for (sequence, rows) in std::mem::take(&mut self.batch) {
            self.sequences[sequence].len += rows;
        }
    }
}

impl KvStore for KvCache {
    fn attend(
        &mut self,
        backend: &dyn Backend,
        layer: usize,
        qkv: &Tensor,
        heads: Heads,
        segments: &Segments,
    ) -> Tensor {
        let (found, announced) = (segments.len(), self.batch.len());
        assert!(found == announced, "key/value cache: {found} segments, but {announced} were announced");
        for (segment, &(sequence, _)) in segments.iter().zip(&self.batch) {
            let layers = &mut self.sequences[sequence].layers;
            let stored = layers.entry(layer).or_insert_with(|| Layer::new(backend, heads, qkv.dtype()));
            stored.append(backend, qkv, heads, segment, self.context);
        }
        let cached = segments.iter().zip(&self.batch).map(|(segment, &(sequence, _))| {
            let Layer { keys, values } = &self.sequences[sequence].layers[&layer];
            CachedSegment { segment: segment.clone(), keys, values }
        });
        backend.attention_cached(qkv, heads, &cached.collect::<Vec<_>>())
    }
}

impl Layer {
    fn new(backend: &dyn Backend, heads: Heads, dtype: DType) -> Self {
        let empty = || backend.zeros(Shape::new(0, heads.kv_width()), dtype);
        Self { keys: empty(), values: empty() }
    }

    /// Puts the keys and values of a segment's rows behind the earlier ones.
    fn append(
        &mut self,
        backend: &dyn Backend,
        qkv: &Tensor,
        heads: Heads,
        segment: &Segment,
        context: usize,
    ) {
        let needed = segment.past + segment.rows.len();
        let (first_key, width) = (heads.query_width(), heads.kv_width());
        let first_value = first_key + width;
        for (cache, first) in [(&mut self.keys, first_key), (&mut self.values, first_value)] {
            if needed > cache.rows() {
                let capacity = needed.next_power_of_two().max(FIRST_CAPACITY).min(context);
                let mut larger = backend.zeros(Shape::new(capacity, width), cache.dtype());
                backend.copy_rows(&mut larger, 0, cache, 0..segment.past, 0..width);
                *cache = larger;
            }
            backend.copy_rows(cache, segment.past, qkv, segment.rows.clone(), first..first + width);
        }
    }
}
