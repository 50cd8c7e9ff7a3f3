//! Rows of numbers, dense or product-quantised.

/// A matrix that is read by rows.
#[derive(Debug)]
pub(super) enum Matrix {
    /// Row after row.
    Dense { columns: usize, values: Vec<f32> },
    /// Each row is cut into pieces, each piece is one of 256 centroids; the row's length may be apart.
    Quantised(Quantised),
}

/// A product-quantised matrix.
#[derive(Debug)]
pub(super) struct Quantised {
    pub(super) rows: usize,
    /// One code per piece, row after row.
    pub(super) codes: Vec<u8>,
    pub(super) quantiser: Quantiser,
    /// The length of each row, as a code of one dimension.
    pub(super) norms: Option<(Vec<u8>, Quantiser)>,
}

/// Centroids of the pieces of a row.
#[derive(Debug)]
pub(super) struct Quantiser {
    pub(super) columns: usize,
    pub(super) pieces: usize,
    /// Columns of every piece but the last.
    pub(super) width: usize,
    /// Columns of the last piece.
    pub(super) last: usize,
    /// `[pieces][CENTROIDS][width]`, the last piece with its own width.
    pub(super) centroids: Vec<f32>,
}

/// Centroids of a piece: what a byte can name.
pub(super) const CENTROIDS: usize = 256;

impl Quantiser {
    fn centroid(&self, piece: usize, code: u8) -> &[f32] {
        let width = if piece + 1 == self.pieces { self.last } else { self.width };
        let from = piece * CENTROIDS * self.width + usize::from(code) * width;
        &self.centroids[from..from + width]
    }
}

impl Quantised {
    fn codes(&self, row: usize) -> &[u8] {
        &self.codes[row * self.quantiser.pieces..][..self.quantiser.pieces]
    }

    fn norm(&self, row: usize) -> f32 {
        self.norms.as_ref().map_or(1.0, |(codes, quantiser)| quantiser.centroid(0, codes[row])[0])
    }
}

impl Matrix {
    pub(super) fn rows(&self) -> usize {
        match self {
            Matrix::Dense { columns, values } => values.len() / columns,
            Matrix::Quantised(matrix) => matrix.rows,
        }
    }

    pub(super) fn columns(&self) -> usize {
        match self {
            Matrix::Dense { columns, .. } => *columns,
            Matrix::Quantised(matrix) => matrix.quantiser.columns,
        }
    }

    /// Adds a row to `sum`.
    pub(super) fn add_row(&self, row: usize, sum: &mut [f32]) {
        match self {
            Matrix::Dense { columns, values } => {
                let row = &values[row * columns..][..*columns];
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            Matrix::Quantised(matrix) => {
                let norm = matrix.norm(row);
                let mut rest = sum;
                for (piece, &code) in matrix.codes(row).iter().enumerate() {
                    let centroid = matrix.quantiser.centroid(piece, code);
                    let (head, tail) = rest.split_at_mut(centroid.len());
                    head.iter_mut().zip(centroid).for_each(|(sum, value)| *sum += norm * value);
                    rest = tail;
                }
            }
        }
    }

    /// The product of a row with `vector`.
    pub(super) fn dot(&self, row: usize, vector: &[f32]) -> f32 {
        match self {
            Matrix::Dense { columns, values } => {
                let row = &values[row * columns..][..*columns];
                row.iter().zip(vector).fold(0.0, |sum, (a, b)| sum + a * b)
            }
            Matrix::Quantised(matrix) => {
                let (mut sum, mut rest) = (0.0, vector);
                for (piece, &code) in matrix.codes(row).iter().enumerate() {
                    let centroid = matrix.quantiser.centroid(piece, code);
                    let (head, tail) = rest.split_at(centroid.len());
                    sum = head.iter().zip(centroid).fold(sum, |sum, (a, b)| sum + a * b);
                    rest = tail;
                }
                sum * matrix.norm(row)
            }
        }
    }
}
