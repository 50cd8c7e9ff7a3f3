//! fastText's file format, version 12 (and 11, which has no pieces of words in classifiers).

use std::collections::HashMap;

use super::dictionary::{Dictionary, LABEL, Ngrams};
use super::matrix::{CENTROIDS, Matrix, Quantised, Quantiser};
use super::tree::Tree;
use super::{FastText, Loss, Settings};

const MAGIC: i32 = 793_712_314;
const VERSION: i32 = 12;
const SUPERVISED: i32 = 3;
/// Begins the checksum that follows a model written here.
const SEAL: &[u8; 8] = b"blake3\0\0";
/// Longest hidden state: fastText's models have 16 to 300 columns.
const MAX_DIM: usize = 1 << 16;

/// Bytes not yet read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        if count > self.0.len() {
            return Err(format!(
                "{what} needs {count} bytes, and {} are left: the file is cut off or broken",
                self.0.len()
            ));
        }
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn i32(&mut self, what: &str) -> Result<i32, String> {
        self.array(what).map(i32::from_le_bytes)
    }

    fn i64(&mut self, what: &str) -> Result<i64, String> {
        self.array(what).map(i64::from_le_bytes)
    }

    fn flag(&mut self, what: &str) -> Result<bool, String> {
        match self.array::<1>(what)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(format!("{what} is {found}, but must be 0 or 1")),
        }
    }

    /// A count that is not negative.
    fn count(&mut self, what: &str) -> Result<usize, String> {
        let found = self.i32(what)?;
        usize::try_from(found).map_err(|_| format!("{what} is {found}"))
    }

    fn long_count(&mut self, what: &str) -> Result<usize, String> {
        let found = self.i64(what)?;
        usize::try_from(found).map_err(|_| format!("{what} is {found}"))
    }

    fn floats(&mut self, count: usize, what: &str) -> Result<Vec<f32>, String> {
        let bytes =
            self.take(count.checked_mul(4).ok_or_else(|| format!("{what} has {count} numbers"))?, what)?;
        let values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect();
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(format!("{what} holds {value}")),
            None => Ok(values),
        }
    }

    fn text(&mut self, what: &str) -> Result<&'a [u8], String> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or_else(|| format!("{what} has no end"))?;
        let text = self.take(end, what)?;
        self.take(1, what)?;
        Ok(text)
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<FastText, String> {
    let mut rest = Bytes(bytes);
    let magic = rest.i32("the header")?;
    if magic != MAGIC {
        return Err(format!("it begins with {magic:#010x} and not with fastText's mark"));
    }
    let version = rest.i32("the version")?;
    if !(11..=VERSION).contains(&version) {
        return Err(format!("version {version} of fastText's format; 11 and 12 can be read"));
    }
    let dim = rest.count("dim")?;
    if dim == 0 || dim > MAX_DIM {
        return Err(format!("a hidden state of {dim} numbers"));
    }
    let _window = rest.i32("ws")?;
    let epochs = rest.i32("epoch")?;
    let min_count = rest.i32("minCount")?;
    let _negatives = rest.i32("neg")?;
    let word_ngrams = rest.count("wordNgrams")? as u32;
    let loss = match rest.i32("loss")? {
        1 => Loss::HierarchicalSoftmax,
        3 => Loss::Softmax,
        // Negative sampling trains each label by itself, too.
        2 | 4 => Loss::OneVsAll,
        other => return Err(format!("loss {other} is unknown")),
    };
    let model = rest.i32("model")?;
    if model != SUPERVISED {
        return Err("word vectors, and no classifier".to_owned());
    }
    let buckets = rest.count("bucket")? as u32;
    let min_piece = rest.count("minn")? as u32;
    let max_piece = if version == 11 { rest.count("maxn").map(|_| 0)? } else { rest.count("maxn")? as u32 };
    let learning_rate_update = rest.i32("lrUpdateRate")?;
    rest.take(8, "t")?;
    let shape = Ngrams { words: word_ngrams, min_piece, max_piece, buckets };
    let hashes = max_piece > 0 || word_ngrams > 1;
    if hashes && buckets == 0 {
        return Err("n-grams but no buckets for them".to_owned());
    }
    let dictionary = read_dictionary(&mut rest, shape)?;
    let quantised = rest.flag("the kind of the input matrix")?;
    let input = if quantised { read_quantised(&mut rest) } else { read_dense(&mut rest) }?;
    let quantised_output = rest.flag("the kind of the output matrix")? && quantised;
    let output = if quantised_output { read_quantised(&mut rest) } else { read_dense(&mut rest) }?;

    if input.columns() != dim || output.columns() != dim {
        return Err(format!(
            "matrices of {} and {} columns for a hidden state of {dim}",
            input.columns(),
            output.columns()
        ));
    }
    let hashed = match &dictionary.kept {
        Some(kept) => kept.values().map(|&row| row as usize + 1).max().unwrap_or(0),
        None if hashes => buckets as usize,
        None => 0,
    };
    if input.rows() < dictionary.words() + hashed {
        let (rows, needed) = (input.rows(), dictionary.words() + hashed);
        return Err(format!("an input matrix of {rows} rows where words and n-grams need {needed}"));
    }
    if output.rows() < dictionary.labels() {
        return Err(format!("an output matrix of {} rows for {} labels", output.rows(), dictionary.labels()));
    }
    let tree = match loss {
        Loss::HierarchicalSoftmax => Some(Tree::new(&dictionary.label_counts())?),
        _ => None,
    };
    check_seal(bytes, rest.0)?;
    let settings = Settings { dim: dim as u32, epochs, min_count, learning_rate_update };
    Ok(FastText { dictionary, loss, input, output, tree, settings })
}

/// What follows a model must be nothing, or the checksum of what comes before.
fn check_seal(bytes: &[u8], tail: &[u8]) -> Result<(), String> {
    if tail.is_empty() {
        return Ok(());
    }
    let body = &bytes[..bytes.len() - tail.len()];
    match tail.strip_prefix(SEAL) {
        Some(sum) if sum == blake3::hash(body).as_bytes() => Ok(()),
        Some(_) => Err("a checksum that does not match: the file is damaged".to_owned()),
        None => Err(format!("{} bytes after its end", tail.len())),
    }
}

fn read_dictionary(rest: &mut Bytes, shape: Ngrams) -> Result<Dictionary, String> {
    let size = rest.count("the size of the dictionary")?;
    let words = rest.count("the number of words")?;
    let labels = rest.count("the number of labels")?;
    let tokens = rest.i64("the number of tokens")?;
    let kept = rest.i64("the number of rows kept")?;
    if words.checked_add(labels) != Some(size) || labels == 0 {
        return Err(format!("a dictionary of {size} entries with {words} words and {labels} labels"));
    }
    // An entry has ten bytes at least.
    let mut entries = Vec::with_capacity(size.min(rest.0.len() / 10));
    for entry in 0..size {
        let text = rest.text("a dictionary entry")?;
        let count = rest.i64("a count")?;
        let is_label = rest.flag("the kind of a dictionary entry")?;
        if is_label != (entry >= words) {
            return Err(format!("words after labels, at entry {entry}"));
        }
        if is_label && std::str::from_utf8(text).is_err() {
            return Err(format!("label {} is not UTF-8", entry - words));
        }
        entries.push((text.into(), count));
    }
    let mut dictionary = Dictionary::new(entries, words, tokens, shape);
    if kept >= 0 {
        let count = usize::try_from(kept).map_err(|_| format!("{kept} rows kept"))?;
        if count > rest.0.len() / 8 {
            return Err(format!("{count} rows kept, and only {} bytes are left", rest.0.len()));
        }
        let mut rows = HashMap::with_capacity(count);
        for _ in 0..count {
            let (from, to) = (rest.count("a row kept")? as u32, rest.count("a row kept")? as u32);
            rows.insert(from, to);
        }
        dictionary.kept = Some(rows);
    }
    Ok(dictionary)
}

fn read_dense(rest: &mut Bytes) -> Result<Matrix, String> {
    let (rows, columns) =
        (rest.long_count("the rows of a matrix")?, rest.long_count("the columns of a matrix")?);
    if columns == 0 {
        return Err(format!("a matrix of {rows} rows and no columns"));
    }
    let count = rows.checked_mul(columns).ok_or_else(|| format!("a matrix of {rows} × {columns}"))?;
    Ok(Matrix::Dense { columns, values: rest.floats(count, "a matrix")? })
}

fn read_quantised(rest: &mut Bytes) -> Result<Matrix, String> {
    let has_norms = rest.flag("the kind of a quantised matrix")?;
    let (rows, columns) =
        (rest.long_count("the rows of a matrix")?, rest.long_count("the columns of a matrix")?);
    let size = rest.count("the codes of a matrix")?;
    let codes = rest.take(size, "the codes of a matrix")?.to_vec();
    let quantiser = read_quantiser(rest)?;
    if quantiser.columns != columns || rows.checked_mul(quantiser.pieces) != Some(size) {
        return Err(format!("{size} codes for a quantised matrix of {rows} × {columns}"));
    }
    let norms = if has_norms {
        let codes = rest.take(rows, "the norms of a matrix")?.to_vec();
        let quantiser = read_quantiser(rest)?;
        if (quantiser.columns, quantiser.pieces) != (1, 1) {
            return Err(format!("norms of {} numbers", quantiser.columns));
        }
        Some((codes, quantiser))
    } else {
        None
    };
    Ok(Matrix::Quantised(Quantised { rows, codes, quantiser, norms }))
}

fn read_quantiser(rest: &mut Bytes) -> Result<Quantiser, String> {
    let columns = rest.count("the columns of a quantiser")?;
    let pieces = rest.count("the pieces of a quantiser")?;
    let width = rest.count("the width of a quantiser's pieces")?;
    let last = rest.count("the width of a quantiser's last piece")?;
    let covered = pieces
        .checked_sub(1)
        .and_then(|full| full.checked_mul(width))
        .and_then(|full| full.checked_add(last));
    if columns == 0 || columns > MAX_DIM || last > width || covered != Some(columns) {
        return Err(format!(
            "a quantiser of {columns} columns in {pieces} pieces of {width}, the last of {last}"
        ));
    }
    let centroids = rest.floats(columns * CENTROIDS, "the centroids of a quantiser")?;
    Ok(Quantiser { columns, pieces, width, last, centroids })
}

pub(super) fn write(model: &FastText) -> Vec<u8> {
    let mut out = Vec::new();
    let shape = model.dictionary.shape;
    let loss = match model.loss {
        Loss::HierarchicalSoftmax => 1,
        Loss::Softmax => 3,
        Loss::OneVsAll => 4,
    };
    let settings = &model.settings;
    let header = [
        MAGIC,
        VERSION,
        settings.dim as i32,
        5,
        settings.epochs,
        settings.min_count,
        5,
        shape.words as i32,
        loss,
        SUPERVISED,
        shape.buckets as i32,
        shape.min_piece as i32,
        shape.max_piece as i32,
        settings.learning_rate_update,
    ];
    header.iter().for_each(|value| out.extend(value.to_le_bytes()));
    out.extend(1e-4_f64.to_le_bytes());
    write_dictionary(&model.dictionary, &mut out);
    let quantised = matches!(model.input, Matrix::Quantised(_));
    out.push(u8::from(quantised));
    write_matrix(&model.input, &mut out);
    out.push(u8::from(matches!(model.output, Matrix::Quantised(_))));
    write_matrix(&model.output, &mut out);
    let sum = blake3::hash(&out);
    out.extend(SEAL);
    out.extend(sum.as_bytes());
    out
}

fn write_dictionary(dictionary: &Dictionary, out: &mut Vec<u8>) {
    for count in [dictionary.entries().len(), dictionary.words(), dictionary.labels()] {
        out.extend((count as i32).to_le_bytes());
    }
    out.extend(dictionary.tokens.to_le_bytes());
    out.extend(dictionary.kept.as_ref().map_or(-1, |kept| kept.len() as i64).to_le_bytes());
    for (place, (text, count)) in dictionary.entries().iter().enumerate() {
        debug_assert!(place < dictionary.words() || text.starts_with(LABEL.as_bytes()));
        out.extend(text.iter());
        out.push(0);
        out.extend(count.to_le_bytes());
        out.push(u8::from(place >= dictionary.words()));
    }
    let mut kept: Vec<_> = dictionary.kept.iter().flatten().collect();
    kept.sort_unstable();
    for (from, to) in kept {
        out.extend(from.to_le_bytes());
        out.extend(to.to_le_bytes());
    }
}

fn write_matrix(matrix: &Matrix, out: &mut Vec<u8>) {
    let shape = [matrix.rows() as i64, matrix.columns() as i64];
    match matrix {
        Matrix::Dense { values, .. } => {
            shape.iter().for_each(|count| out.extend(count.to_le_bytes()));
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
        Matrix::Quantised(matrix) => {
            out.push(u8::from(matrix.norms.is_some()));
            shape.iter().for_each(|count| out.extend(count.to_le_bytes()));
            out.extend((matrix.codes.len() as i32).to_le_bytes());
            out.extend(&matrix.codes);
            write_quantiser(&matrix.quantiser, out);
            if let Some((codes, quantiser)) = &matrix.norms {
                out.extend(codes);
                write_quantiser(quantiser, out);
            }
        }
    }
}

fn write_quantiser(quantiser: &Quantiser, out: &mut Vec<u8>) {
    for count in [quantiser.columns, quantiser.pieces, quantiser.width, quantiser.last] {
        out.extend((count as i32).to_le_bytes());
    }
    quantiser.centroids.iter().for_each(|value| out.extend(value.to_le_bytes()));
}
