//! What a context-parallel rank has of a micro-batch.
//!
//! Each sequence is cut into `2 n` chunks for `n` ranks, of which rank `i` has chunks `i` and `2 n − 1 − i`: a row has to look
//! at all rows before it, so a rank with early rows gets late ones too ("The Llama 3 Herd of Models" §3.3.2).

use std::ops::Range;
use std::sync::Arc;

use llamero_autograd::ContextPart;
use llamero_comm::{Comm, share};
use llamero_data::Sequence;
use llamero_tensor::{GatheredSegment, NO_TARGET, Segment, Segments};

/// Some rows of sequences that are packed one after another; of one rank, all of them.
pub(crate) struct MicroBatch {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    /// The runs of documents in these rows.
    pub(crate) segments: Segments,
    /// By rank, its rows of the whole sequences.
    rows: Arc<[Vec<Range<usize>>]>,
    gathered: Arc<[GatheredSegment]>,
}

impl MicroBatch {
    /// The rows of rank `rank` of `size`.
    pub(crate) fn cut(sequences: &[Sequence], (rank, size): (usize, usize)) -> Self {
        let (mut tokens, mut targets, mut gathered) = (Vec::new(), Vec::new(), Vec::new());
        let mut rows = vec![Vec::new(); size];
        let mut offset = 0;
        for sequence in sequences {
            let length = sequence.tokens.len();
            for (rank, rows) in rows.iter_mut().enumerate() {
                rows.extend(chunks(length, (rank, size)).map(|run| offset + run.start..offset + run.end));
            }
            for run in chunks(length, (rank, size)) {
                gathered.extend(runs(sequence, &run, (tokens.len(), offset)));
                tokens.extend_from_slice(&sequence.tokens[run.clone()]);
                targets.extend_from_slice(&sequence.targets[run]);
            }
            offset += length;
        }
        let segments = Segments::new(gathered.iter().map(|run| run.segment.clone()).collect());
        Self { tokens, targets, segments, rows: rows.into(), gathered: gathered.into() }
    }

    /// Rows that count in the loss.
    pub(crate) fn num_targets(&self) -> usize {
        self.targets.iter().filter(|&&t| t != NO_TARGET).count()
    }

    /// How the rows are divided, for a tape.
    pub(crate) fn context<'m>(&self, ranks: &'m dyn Comm) -> ContextPart<'m> {
        ContextPart { ranks, rows: Arc::clone(&self.rows), segments: Arc::clone(&self.gathered) }
    }
}

/// The rows of a sequence that a rank has, in one or two runs.
fn chunks(length: usize, (rank, size): (usize, usize)) -> impl Iterator<Item = Range<usize>> {
    let [early, late] = [rank, 2 * size - 1 - rank].map(|chunk| share(length, chunk, 2 * size));
    let joined = early.end == late.start;
    let first = if joined { early.start..late.end } else { early };
    std::iter::once(first).chain((!joined).then_some(late))
}

/// The documents in some rows of a sequence, which are packed from row `packed` on; the sequence begins in row `offset` of the
/// whole micro-batch.
fn runs(
    sequence: &Sequence,
    rows: &Range<usize>,
    (packed, offset): (usize, usize),
) -> impl Iterator<Item = GatheredSegment> {
    let mut end = 0;
    sequence.documents.iter().filter_map(move |length| {
        let document = end..end + length;
        end = document.end;
        let here = rows.start.max(document.start)..rows.end.min(document.end);
        let at = |row: usize| packed + row - rows.start;
        (!here.is_empty()).then(|| GatheredSegment {
            segment: Segment { rows: at(here.start)..at(here.end), past: here.start - document.start },
            first: offset + document.start,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(documents: &[usize], from: u32) -> Sequence {
        let length = documents.iter().sum::<usize>() as u32;
        let tokens: Vec<u32> = (from..from + length).collect();
        Sequence { targets: tokens.iter().map(|t| t + 1).collect(), tokens, documents: documents.to_vec() }
    }

    #[test]
    fn one_rank_has_whole_documents() {
        let sequences = [sequence(&[3, 0, 5], 0), sequence(&[8], 8)];
        let all = MicroBatch::cut(&sequences, (0, 1));
        assert_eq!(all.segments, Segments::documents([3, 5, 8]));
        assert_eq!(all.tokens, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn a_rank_has_early_and_late_rows_with_their_positions() {
        let sequences = [sequence(&[3, 13], 0), sequence(&[16], 16)];
        let outer = MicroBatch::cut(&sequences, (0, 2));
        let early_and_late = |from: u32| (from..from + 4).chain(from + 12..from + 16);
        assert_eq!(outer.tokens, early_and_late(0).chain(early_and_late(16)).collect::<Vec<_>>());
        assert_eq!(outer.targets, outer.tokens.iter().map(|t| t + 1).collect::<Vec<_>>());
        let positions = [0, 1, 2, 0, 9, 10, 11, 12, 0, 1, 2, 3, 12, 13, 14, 15];
        assert!(outer.segments.positions().eq(positions));
        assert_eq!(outer.gathered.iter().map(|run| run.first).collect::<Vec<_>>(), [0, 3, 3, 16, 16]);
        // The inner rank's chunks touch.
        let inner = MicroBatch::cut(&sequences, (1, 2));
        assert_eq!(inner.tokens, (4..12).chain(20..28).collect::<Vec<_>>());
        assert_eq!((inner.segments.len(), &inner.rows), (2, &outer.rows));
        assert_eq!(*outer.rows, [vec![0..4, 12..16, 16..20, 28..32], vec![4..12, 20..28]]);
    }

    #[test]
    fn ranks_have_every_row_once_and_as_much_to_do() {
        for (length, size) in [(96, 2), (96, 3), (64, 8), (17, 3)] {
            let sequences = [sequence(&[length], 0)];
            let ranks: Vec<MicroBatch> = (0..size).map(|r| MicroBatch::cut(&sequences, (r, size))).collect();
            let mut tokens: Vec<u32> = ranks.iter().flat_map(|r| r.tokens.clone()).collect();
            tokens.sort_unstable();
            assert_eq!(tokens, sequences[0].tokens);
            for rank in &ranks {
                assert!(GatheredSegment::fit(&rank.gathered, rank.tokens.len(), length));
                if length.is_multiple_of(2 * size) {
                    assert_eq!(rank.segments.attention_pairs() * size, length * (length + 1) / 2);
                }
            }
        }
    }
}
