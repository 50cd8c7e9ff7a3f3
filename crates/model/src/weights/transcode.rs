//! From one encoding to another, a few rows at a time.

use std::borrow::Cow;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::thread;

use llamero_artifact::ArtifactError;
use llamero_tensor::Encoding;

use super::{WeightError, Weights};
use crate::ParamSpec;

/// Bytes of decoded rows that are in memory at once.
const PIECE: usize = 8 << 20;

/// A row as it is stored.
type Row<'a> = (Encoding, Cow<'a, [u8]>);

/// What is written of a parameter, and how.
pub(crate) struct Piece<'a> {
    /// The parameter.
    pub(crate) spec: &'a ParamSpec,
    /// Those of its rows that are meant.
    pub(crate) rows: Range<usize>,
    /// How they are to be stored.
    pub(crate) encoding: Encoding,
    /// Rows that trade places among themselves only, such as those of a head.
    pub(crate) group: usize,
    /// The name of the tensor, for messages.
    pub(crate) name: &'a str,
}

/// Writes rows of a parameter in another encoding; bit for bit where it is the same. `order` says which row of a group comes
/// at each place.
pub(crate) fn transcode(
    weights: &dyn Weights,
    piece: &Piece<'_>,
    order: impl Fn(usize) -> usize,
    threads: usize,
    (path, out): (&Path, &mut dyn Write),
) -> Result<(), WeightError> {
    let (cols, group) = (piece.spec.shape.cols, piece.group);
    let step = (PIECE / (4 * cols)).max(1).next_multiple_of(group);
    for first in piece.rows.clone().step_by(step) {
        let stored = weights.rows(piece.spec, first..(first + step).min(piece.rows.end))?;
        let rows: Vec<Row<'_>> = stored
            .into_iter()
            .flat_map(|run| run.rows.into_iter().map(move |row| (run.encoding, row)))
            .collect();
        let ordered: Vec<&Row<'_>> =
            (0..rows.len()).map(|i| &rows[i / group * group + order(i % group)]).collect();
        for bytes in encode(&ordered, piece, path, threads)? {
            out.write_all(&bytes).map_err(|e| ArtifactError::io("write", path, e))?;
        }
    }
    Ok(())
}

/// The rows in their new encoding, a run of them from each thread.
fn encode(
    rows: &[&Row<'_>],
    piece: &Piece<'_>,
    path: &Path,
    threads: usize,
) -> Result<Vec<Vec<u8>>, WeightError> {
    let share = rows.len().div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        let runs: Vec<_> =
            rows.chunks(share).map(|run| scope.spawn(move || encode_run(run, piece))).collect();
        let done = runs.into_iter().map(|run| {
            let bytes = run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            bytes.map_err(|reason| WeightError::tensor(path, piece.name, reason))
        });
        done.collect()
    })
}

fn encode_run(rows: &[&Row<'_>], piece: &Piece<'_>) -> Result<Vec<u8>, String> {
    let encoding = piece.encoding;
    let mut values = vec![0.0; piece.spec.shape.cols];
    let mut bytes = Vec::new();
    for (stored, row) in rows {
        if *stored == encoding {
            bytes.extend_from_slice(row);
            continue;
        }
        stored.decode(row, &mut values);
        if let Some(x) = values.iter().find(|x| x.abs() > encoding.largest()) {
            let most = encoding.largest();
            return Err(format!(
                "holds {x}, but {encoding} reaches to {most} only. hint: write it as BF16 or F32"
            ));
        }
        bytes.extend(encoding.encode(&values));
    }
    Ok(bytes)
}
