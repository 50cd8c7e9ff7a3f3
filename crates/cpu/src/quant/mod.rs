//! Weights in blocks of few bits ([`code`]), multiplied by rows rounded to 8 bits ([`rows`]) in integers ([`kernel`]).

mod code;
mod kernel;
mod rows;

use std::marker::PhantomData;
use std::ops::Range;

use llamero_tensor::{Encoding, StoredRows};

use self::code::{Code, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use self::kernel::Product;
use self::rows::GROUP;
pub(crate) use self::rows::Rows;
use crate::exec::{Exec, Tile};
use crate::math::Element;
use crate::memory::Buffer;
use crate::simd::LANES;

/// Bytes of rows of one task: they stay in the second-level cache while strips go by.
const ROW_BYTES: usize = 384 << 10;

/// A weight `[N, K]` in blocks.
pub(crate) struct Blocks {
    pub(crate) depth: usize,
    runs: Vec<Run>,
}

/// Columns of one encoding.
struct Run {
    encoding: Encoding,
    columns: Range<usize>,
    /// Strips of sixteen columns.
    data: Buffer<u8>,
}

/// Evaluates an expression with `$c` bound to the code of an encoding.
macro_rules! with_code {
    ($encoding:expr, $c:ident => $body:expr) => {
        match $encoding {
            Encoding::Q8_0 => with_code!(@ Q8_0, $c, $body),
            Encoding::Q4_0 => with_code!(@ Q4_0, $c, $body),
            Encoding::Q4_1 => with_code!(@ Q4_1, $c, $body),
            Encoding::Q5_0 => with_code!(@ Q5_0, $c, $body),
            Encoding::Q5_1 => with_code!(@ Q5_1, $c, $body),
            Encoding::Q4K => with_code!(@ Q4K, $c, $body),
            Encoding::Q5K => with_code!(@ Q5K, $c, $body),
            Encoding::Q6K => with_code!(@ Q6K, $c, $body),
            other => panic!("{other} is not in blocks"),
        }
    };
    (@ $code:ident, $c:ident, $body:expr) => {{
        type $c = $code;
        $body
    }};
}

impl Blocks {
    /// Whether a weight can be kept in blocks.
    pub(crate) fn can_hold(parts: &[StoredRows<'_>]) -> bool {
        !parts.is_empty() && parts.iter().all(|part| part.encoding.is_quantized())
    }

    /// A weight of the rows `parts`, of `depth` elements each.
    pub(crate) fn new(exec: &Exec, parts: &[StoredRows<'_>], depth: usize) -> Self {
        // Parts of one encoding, such as queries and keys, become one run.
        let mut runs: Vec<(Encoding, Vec<&[u8]>)> = Vec::new();
        for part in parts {
            let rows = part.rows.iter().map(|row| &**row);
            match runs.last_mut() {
                Some((encoding, all)) if *encoding == part.encoding => all.extend(rows),
                _ => runs.push((part.encoding, rows.collect())),
            }
        }
        let mut first = 0;
        let runs = runs.into_iter().map(|(encoding, rows)| {
            let columns = first..first + rows.len();
            first = columns.end;
            let data = with_code!(encoding, C => pack::<C>(exec, &rows, depth));
            Run { encoding, columns, data }
        });
        Self { depth, runs: runs.collect() }
    }

    /// What is read first.
    pub(crate) fn first(&self) -> &[u8] {
        self.runs.first().map_or(&[], |run| &run.data)
    }

    /// The values of row `row` of the weight.
    pub(crate) fn decode(&self, row: usize, out: &mut [f32]) {
        let Some(run) = self.runs.iter().find(|run| run.columns.contains(&row)) else {
            panic!("blocks: row {row} is not there")
        };
        let at = row - run.columns.start;
        with_code!(run.encoding, C => {
            let strip = self.depth / C::STEP * C::BYTES;
            let chunks = run.data[at / LANES * strip..][..strip].chunks_exact(C::BYTES);
            for (chunk, out) in chunks.zip(out.chunks_exact_mut(C::STEP)) {
                C::decode(chunk, at % LANES, out);
            }
        });
    }

    /// Rows `first_row ..` times the weight's rows `columns`, on the calling thread. `first_row` is a multiple of [`GROUP`].
    pub(crate) fn tile<E: Element>(
        &self,
        exec: &Exec,
        (rows, first_row): (&Rows, usize),
        columns: Range<usize>,
        out: &Tile<'_, E>,
    ) {
        for run in &self.runs {
            let (from, to) = (columns.start.max(run.columns.start), columns.end.min(run.columns.end));
            if from >= to {
                continue;
            }
            // SAFETY: runs have different columns.
            let part = unsafe { out.sub(0, from - columns.start, out.rows, to - from) };
            let (from, to) = (from - run.columns.start, to - run.columns.start);
            with_code!(run.encoding, C => {
                let strip = self.depth / C::STEP * C::BYTES;
                let skipped = from / LANES;
                let strips = &run.data[skipped * strip..to.div_ceil(LANES) * strip];
                let wanted = from - skipped * LANES..to - skipped * LANES;
                exec.run(Product { rows, first_row, strips, wanted, out: part, code: PhantomData::<C> });
            });
        }
    }

    /// `C = rows · weightᵀ`.
    pub(crate) fn product<E: Element>(&self, exec: &Exec, rows: &Rows, out: &mut [E]) {
        let n = self.runs.last().map_or(0, |run| run.columns.end);
        let c = Tile::new(out, rows.rows, n, n);
        let most = (ROW_BYTES / self.depth / GROUP).max(1) * GROUP;
        let height = rows.rows.div_ceil(rows.rows.div_ceil(most).max(1)).next_multiple_of(GROUP).max(GROUP);
        let row_tasks = rows.rows.div_ceil(height);
        let strips = n.div_ceil(LANES);
        let width = strips.div_ceil((8 * exec.threads).div_ceil(row_tasks.max(1)).min(strips.max(1))) * LANES;
        let col_tasks = n.div_ceil(width.max(1));
        let ns =
            rows.rows as f64 * n as f64 * self.depth as f64 / 200.0 + n as f64 * self.depth as f64 / 30.0;
        exec.tasks(row_tasks * col_tasks, ns, |task| {
            let (row, col) = (task / col_tasks * height, task % col_tasks * width);
            let (height, width) = (height.min(rows.rows - row), width.min(n - col));
            // SAFETY: tasks have different rectangles.
            let part = unsafe { c.sub(row, col, height, width) };
            self.tile(exec, (rows, row), col..col + width, &part);
        });
    }
}

/// Strips of some rows.
fn pack<C: Code>(exec: &Exec, rows: &[&[u8]], depth: usize) -> Buffer<u8> {
    let strip = depth / C::STEP * C::BYTES;
    let mut data = exec.memory.stale::<u8>(rows.len().div_ceil(LANES) * strip);
    let (_, block) = C::ENCODING.block();
    exec.chunks(&mut data, strip, rows.len() as f64 * depth as f64, |index, strip| {
        let rows = &rows[index * LANES..rows.len().min((index + 1) * LANES)];
        if rows.len() < LANES {
            strip.fill(0);
        }
        let mut elements = [0; 256];
        let elements = &mut elements[..C::STEP];
        for (i, chunk) in strip.chunks_exact_mut(C::BYTES).enumerate() {
            for (column, row) in rows.iter().enumerate() {
                let block = &row[i * block..][..block];
                C::put_scales(block, column, chunk);
                C::elements(block, elements);
                C::put_elements(elements, column, chunk);
            }
        }
    });
    data
}
