//! Where a plan's first records come from.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Emit;
use crate::CurateError;

/// A part of an input that is no record though it should be one.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BrokenPart {
    /// The name of the input.
    pub input: String,
    /// The byte of the input, as it is stored, at which it begins, or the compressed member that has its beginning.
    pub byte: Option<u64>,
    /// What was found.
    pub problem: String,
    /// How many parts of the input it stands for.
    pub parts: u64,
    /// Whether nothing else was found where it was looked for. In a report: in all of the input.
    pub lost: bool,
}

/// Most bytes of the words on a broken part: names in them are the input's.
const PROBLEM_BYTES: usize = 500;

impl BrokenPart {
    /// One part. Of what strangers wrote into `problem` no control characters are left, and no more than fits a line.
    pub fn new(input: &str, byte: Option<u64>, problem: &str) -> BrokenPart {
        let end = problem.floor_char_boundary(PROBLEM_BYTES);
        let more = if end < problem.len() { "…" } else { "" };
        let problem = plain(&problem[..end]) + more;
        BrokenPart { input: input.to_owned(), byte, problem, parts: 1, lost: false }
    }
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl fmt::Display for BrokenPart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (input, problem) = (plain(&self.input), &self.problem);
        match self.byte {
            _ if self.lost => write!(out, "`{input}` gave no document: {problem}")?,
            Some(byte) => write!(out, "`{input}, byte {byte}` is broken: {problem}")?,
            None => write!(out, "`{input}` is broken: {problem}")?,
        }
        match self.parts.saturating_sub(1) {
            0 => Ok(()),
            more => write!(out, "; and {more} more behind it"),
        }
    }
}

/// Broken parts that are listed of an input one by one. A file of something else altogether may have millions.
const LISTED: usize = 1000;

/// The broken parts of some inputs, read one after another.
#[derive(Debug, Default)]
pub(crate) struct BrokenParts {
    parts: Vec<BrokenPart>,
    /// How many of them are of the last input.
    of_last: usize,
}

impl BrokenParts {
    pub(crate) fn add(&mut self, part: BrokenPart) {
        match self.parts.last_mut().filter(|last| last.input == part.input) {
            Some(last) if self.of_last >= LISTED && !part.lost => last.parts += part.parts,
            Some(_) => {
                self.parts.push(part);
                self.of_last += 1;
            }
            None => {
                self.parts.push(part);
                self.of_last = 1;
            }
        }
    }

    pub(crate) fn into_inner(self) -> Vec<BrokenPart> {
        self.parts
    }
}

/// Told of what is broken; the error it gives back ends the run.
pub type Broken<'a> = dyn FnMut(BrokenPart) -> Result<(), CurateError> + 'a;

/// Records from outside, in splits that can be read at the same time.
pub trait Source: Send + Sync {
    /// What it holds, so that work on another input is not taken up again.
    fn fingerprint(&self) -> String;

    /// Number of splits. It may depend on the machine: nothing of a result may depend on it.
    fn splits(&self) -> usize;

    /// Size of a split, about, in bytes.
    fn bytes(&self, split: usize) -> u64;

    /// Reads a split. What cannot be read is given to `broken`, and the rest is read all the same. `tick` is told of
    /// bytes as they are read.
    ///
    /// # Errors
    /// What `emit` and `broken` say, and whatever must end the run.
    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        broken: &mut Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_input_only_so_many_parts_are_listed_and_all_are_counted() {
        let mut found = BrokenParts::default();
        for (input, count) in [("a", 2500), ("b", 1)] {
            (0..count).for_each(|at| found.add(BrokenPart::new(input, Some(at), "is no JSON")));
        }
        let lost = BrokenPart { lost: true, ..BrokenPart::new("b", Some(0), "is\x1b[31m red\n") };
        found.add(lost);
        let parts = found.into_inner();
        assert_eq!((parts.len(), parts.iter().map(|part| part.parts).sum::<u64>()), (LISTED + 2, 2502));
        assert_eq!(parts[999].to_string(), "`a, byte 999` is broken: is no JSON; and 1500 more behind it");
        assert_eq!(parts[1001].to_string(), "`b` gave no document: is [31m red ");
        let long = BrokenPart::new("c", None, &"é".repeat(1000));
        assert_eq!(long.to_string(), format!("`c` is broken: {}…", "é".repeat(250)));
    }
}
