//! What the packed rows of a batch are: heads, documents, positions.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Elements of a piece: 8 MiB of f32.
const PIECE: usize = 1 << 21;

/// Runs of rows, each of a few mebibytes, that make up `rows` of a tensor with `cols` columns: for moving a large tensor
/// without a second copy of all of it.
pub fn pieces(rows: Range<usize>, cols: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (PIECE / cols.max(1)).max(1);
    rows.clone().step_by(step).map(move |first| first..rows.end.min(first + step))
}

/// How a row of `wqkv`'s output is divided: `H` query heads, then `G` key heads, then `G` value heads, each `D` wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads `H`.
    pub query: usize,
    /// Key/value heads `G`; divides `H`. Query head `h` reads key/value head `h / (H / G)`.
    pub kv: usize,
    /// Head width `D`, even.
    pub dim: usize,
}

impl Heads {
    /// Width of the queries of a row, `H · D`; also the width of the attention output.
    pub fn query_width(self) -> usize {
        self.query * self.dim
    }

    /// Width of the keys (or of the values) of a row, `G · D`.
    pub fn kv_width(self) -> usize {
        self.kv * self.dim
    }

    /// Width of a whole row, `(H + 2 G) · D`.
    pub fn width(self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }
}

/// A run of packed rows that belong to one document (or one request).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the packed batch.
    pub rows: Range<usize>,
    /// Position of the first row inside its document; above zero only when earlier rows are in a cache or in another batch.
    pub past: usize,
}

/// The documents of a packed batch, in row order and without gaps. Attention never crosses a boundary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments(Arc<[Segment]>);

impl Segments {
    /// Segments from explicit runs. Panics when they leave a gap or overlap.
    pub fn new(segments: Vec<Segment>) -> Self {
        let mut next = 0;
        for s in &segments {
            assert!(
                s.rows.start == next && s.rows.end >= next,
                "segments: rows {:?} do not follow row {next}",
                s.rows
            );
            next = s.rows.end;
        }
        Self(segments.into())
    }

    /// Whole documents of the given lengths, packed one after another.
    pub fn documents(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut start = 0;
        let segments = lengths.into_iter().map(|n| {
            let rows = start..start + n;
            start += n;
            Segment { rows, past: 0 }
        });
        Self(segments.collect())
    }

    /// The runs in row order.
    pub fn iter(&self) -> std::slice::Iter<'_, Segment> {
        self.0.iter()
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of packed rows `T`.
    pub fn total_rows(&self) -> usize {
        self.0.last().map_or(0, |s| s.rows.end)
    }

    /// Position inside its document of every packed row; `T` values.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().flat_map(|s| s.past..s.past + s.rows.len())
    }

    /// Query–key pairs under the causal document mask, Σ over rows of (position + 1): the cost of attention.
    pub fn attention_pairs(&self) -> usize {
        self.positions().map(|p| p + 1).sum()
    }
}

/// A run of query rows whose document's keys and values are rows of a tensor of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatheredSegment {
    /// The rows among the packed queries and the number of earlier positions.
    pub segment: Segment,
    /// The row of the keys and values that belongs to position 0 of the document.
    pub first: usize,
}

impl GatheredSegment {
    /// The rows of keys and values that some of the queries see.
    pub fn keys(&self) -> Range<usize> {
        self.first..self.first + self.segment.past + self.segment.rows.len()
    }

    /// Whether `segments` are `queries` packed rows without gaps over `keys` rows of keys and values. Several may belong to one
    /// document, earlier positions first; otherwise documents follow each other and share no key.
    pub fn fit(segments: &[Self], queries: usize, keys: usize) -> bool {
        let (mut next, mut document, mut seen) = (0, 0, 0..0);
        for s in segments {
            let in_order = if s.first == document {
                s.keys().start + s.segment.past >= seen.end
            } else {
                s.first >= seen.end
            };
            if s.segment.rows.start != next || s.segment.rows.end < next || !in_order || s.keys().end > keys {
                return false;
            }
            (next, document, seen) = (s.segment.rows.end, s.first, s.keys());
        }
        next == queries
    }
}

/// Which way to rotate: the backward pass of a rotation is the opposite rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeDirection {
    /// Rotate by +angle.
    Forward,
    /// Rotate by −angle.
    Backward,
}

/// Positions whose angles are computed together, when the first of them is asked for.
const ROPE_RUN: usize = 512;

/// Cosines and sines of the rotary embedding, `D/2` each per position. A model may allow a million positions and see a hundred,
/// so they are computed as they are asked for. Angles are computed in f64.
///
/// Layout is half-split, as in Hugging Face's files: element `i` of a head is paired with element `i + D/2`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    positions: usize,
    frequencies: Arc<[f64]>,
    /// Of each run of positions the cosines, then the sines of every position.
    runs: Arc<[OnceLock<Box<[f32]>>]>,
}

impl RopeTable {
    /// Angles `position · frequency` for positions below `positions`.
    pub fn new(frequencies: Vec<f64>, positions: usize) -> Self {
        let runs = std::iter::repeat_with(OnceLock::new).take(positions.div_ceil(ROPE_RUN));
        Self { positions, frequencies: frequencies.into(), runs: runs.collect() }
    }

    /// `D/2`.
    pub fn half(&self) -> usize {
        self.frequencies.len()
    }

    /// Number of positions that the table covers.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines of a position.
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        assert!(
            position < self.positions,
            "rope: position {position} is outside a table of {}",
            self.positions
        );
        let (run, at) = (position / ROPE_RUN, position % ROPE_RUN);
        let values = self.runs[run].get_or_init(|| {
            let angles = |p: usize| self.frequencies.iter().map(move |f| p as f64 * f);
            let row = |p: usize| {
                let cos = angles(p).map(|a| libm::cos(a) as f32);
                cos.chain(angles(p).map(|a| libm::sin(a) as f32)).collect::<Vec<f32>>()
            };
            (run * ROPE_RUN..self.positions.min((run + 1) * ROPE_RUN)).flat_map(row).collect()
        });
        values[at * 2 * self.half()..][..2 * self.half()].split_at(self.half())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathered_segments_are_in_order_and_inside() {
        let of = |rows: Range<usize>, past, first| GatheredSegment { segment: Segment { rows, past }, first };
        let (a, b, c) = (of(0..3, 2, 0), of(3..5, 7, 0), of(5..6, 0, 9));
        assert!(GatheredSegment::fit(&[a.clone(), b.clone(), c.clone()], 6, 10));
        assert!(GatheredSegment::fit(&[], 0, 0));
        // Too few queries, too few keys, a gap, positions that go back, a document inside another.
        assert!(!GatheredSegment::fit(&[a.clone(), b.clone(), c.clone()], 7, 10));
        assert!(!GatheredSegment::fit(&[a.clone(), b.clone(), c.clone()], 6, 9));
        assert!(!GatheredSegment::fit(&[a.clone(), c], 6, 10));
        assert!(!GatheredSegment::fit(&[a.clone(), of(3..5, 4, 0)], 5, 10));
        assert!(!GatheredSegment::fit(&[a, b, of(5..6, 0, 8)], 6, 10));
    }

    #[test]
    fn pieces_are_small_and_make_up_the_rows() {
        for (rows, cols) in
            [(0..0, 5), (0..1, 7), (3..7000, 1000), (5..20, 1 << 20), (5..20, 1 << 22), (0..9, 0)]
        {
            let found: Vec<Range<usize>> = pieces(rows.clone(), cols).collect();
            assert!(found.iter().all(|p| p.len() == 1 || p.len() * cols <= PIECE), "{found:?}");
            assert!(found.iter().cloned().flatten().eq(rows), "{found:?}");
        }
    }
}
