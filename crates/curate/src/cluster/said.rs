//! An error's words, carried through Ballista.
//!
//! Ballista gives the driver the error of a task as debug output inside debug output, with more and more quotes escaped. So
//! the words travel in a form that nothing escapes, between two marks.

use datafusion::error::DataFusionError;

use crate::CurateError;

const BEGIN: &str = "llamero-said-";
const END: char = ';';

/// The words of an error, as hexadecimal digits of their UTF-8.
struct Said(String);

impl std::fmt::Debug for Said {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(BEGIN)?;
        for byte in self.0.as_bytes() {
            write!(out, "{byte:02x}")?;
        }
        write!(out, "{END}")
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, out)
    }
}

impl std::error::Error for Said {}

/// An error of ours as one of DataFusion, which fails the job at once: a function fails wherever it is run.
pub(super) fn say(error: CurateError) -> DataFusionError {
    DataFusionError::External(Box::new(Said(error.to_string())))
}

/// The words that [`say`] put somewhere into `message`.
pub(super) fn words(message: &str) -> Option<String> {
    let (_, rest) = message.split_once(BEGIN)?;
    let (digits, _) = rest.split_once(END)?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}
