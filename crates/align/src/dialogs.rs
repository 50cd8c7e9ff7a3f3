//! Dialogs as training sequences: the prompt is read, the assistant's tokens are learned.

use std::io::BufRead;
use std::path::Path;
use std::sync::Mutex;

use llamero_data::{DataError, Sequence, shuffled};
use llamero_tokenizer::{Message, Tokenizer};
use llamero_train::SequenceSource;
use serde::{Deserialize, Serialize};

use crate::AlignError;

/// A dialog to learn from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dialog {
    /// Turns in order; the loss counts those of the assistant.
    pub messages: Vec<Message>,
}

/// Reads a JSON Lines file of dialogs; an error names the line.
pub fn read_dialogs(path: &Path) -> Result<Vec<Dialog>, AlignError> {
    read_lines(path)
}

pub(crate) fn read_lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>, AlignError> {
    let io = |source| AlignError::Io { path: path.into(), source };
    let file = std::io::BufReader::new(std::fs::File::open(path).map_err(io)?);
    let parse = |(i, line): (usize, std::io::Result<String>)| {
        let line = line.map_err(io)?;
        let wrong =
            |e: serde_json::Error| AlignError::Line { path: path.into(), line: i + 1, reason: e.to_string() };
        serde_json::from_str(&line).map_err(wrong)
    };
    file.lines().enumerate().map(parse).collect()
}

/// A tokenised dialog: ids, and the target of each row (`u32::MAX` where the next token is not the assistant's).
struct Encoded {
    ids: Vec<u32>,
    targets: Vec<u32>,
}

/// Packs whole dialogs into sequences of at most `length` tokens. As in pre-training, sequence `i` is a function of
/// (dialogs, seed, `i`), and attention does not cross dialogs.
pub struct SftSource {
    dialogs: Vec<Encoded>,
    length: usize,
    seed: u64,
    left_out: usize,
    /// Sequences of one epoch as runs of the shuffled dialogs, for the epoch last asked for.
    epoch: Mutex<Option<(u64, Vec<Vec<u32>>)>>,
    per_epoch: u64,
}

impl SftSource {
    /// Encodes dialogs. Those longer than `length`, or without an assistant's turn, are left out and counted.
    pub fn new(
        dialogs: &[Dialog],
        tokenizer: &Tokenizer,
        length: usize,
        seed: u64,
    ) -> Result<Self, AlignError> {
        let given = dialogs.len();
        let encoded = dialogs.iter().map(|d| encode(d, tokenizer)).collect::<Result<Vec<_>, _>>()?;
        let fits = |e: &Encoded| e.ids.len() <= length && e.targets.iter().any(|&t| t != u32::MAX);
        let dialogs: Vec<Encoded> = encoded.into_iter().filter(fits).collect();
        if dialogs.is_empty() {
            return Err(AlignError::TooLittle {
                found: format!("no dialog of at most {length} tokens with an assistant's turn"),
                hint: "give more dialogs, or a larger `sft.sequence`".into(),
            });
        }
        let left_out = given - dialogs.len();
        let mut source = Self { dialogs, length, seed, left_out, epoch: Mutex::new(None), per_epoch: 0 };
        // Any order packs into about as many sequences; the number for epoch 0 is taken for all, and an epoch that needs
        // more gives its last ones up.
        source.per_epoch = source.pack(0).len() as u64;
        Ok(source)
    }

    /// Dialogs left out, because they are too long or have no assistant's turn.
    pub fn num_left_out(&self) -> usize {
        self.left_out
    }

    fn pack(&self, epoch: u64) -> Vec<Vec<u32>> {
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        let mut room = 0;
        for d in shuffled(self.dialogs.len(), self.seed, epoch) {
            let n = self.dialogs[d as usize].ids.len();
            match sequences.last_mut() {
                Some(last) if n <= room => last.push(d),
                _ => {
                    sequences.push(vec![d]);
                    room = self.length;
                }
            }
            room -= n;
        }
        sequences
    }
}

fn encode(dialog: &Dialog, tokenizer: &Tokenizer) -> Result<Encoded, AlignError> {
    let masked = tokenizer.encode_dialog_masked(&dialog.messages)?;
    let next = masked.ids.iter().zip(&masked.assistant).skip(1);
    let mut targets: Vec<u32> = next.map(|(&id, &learn)| if learn { id } else { u32::MAX }).collect();
    targets.push(u32::MAX);
    Ok(Encoded { ids: masked.ids, targets })
}

impl SequenceSource for SftSource {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        let (number, within) = (index / self.per_epoch, (index % self.per_epoch) as usize);
        let mut cached = self.epoch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if cached.as_ref().is_none_or(|(n, _)| *n != number) {
            *cached = Some((number, self.pack(number)));
        }
        let sequences = cached.as_ref().map(|(_, s)| s.as_slice()).unwrap_or_default();
        // An epoch that packed tighter than epoch 0 starts over.
        let run = &sequences[within % sequences.len()];
        let mut sequence = Sequence::default();
        for &d in run {
            let dialog = &self.dialogs[d as usize];
            sequence.tokens.extend(&dialog.ids);
            sequence.targets.extend(&dialog.targets);
            sequence.documents.push(dialog.ids.len());
        }
        Ok(sequence)
    }
}
