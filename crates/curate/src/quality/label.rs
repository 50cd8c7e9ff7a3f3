//! Training labels from a model's judgements.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::CurateError;

/// A model that answers.
pub trait Judge {
    /// Its answer to a prompt, or why there is none. The same prompt must have the same answer.
    ///
    /// # Errors
    /// In words.
    fn judge(&mut self, prompt: &str) -> Result<String, String>;
}

/// What the model is asked and how its answer is read.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LabelTask {
    /// The question. `{text}` stands for the document, `{labels}` for the labels with commas between them.
    pub prompt: String,
    /// The labels. The one that comes first in the answer, as a whole word in any case, is taken.
    pub labels: Vec<String>,
    /// Longer documents are shown up to here, in characters; the label is for the document.
    pub max_characters: usize,
}

impl Default for LabelTask {
    fn default() -> Self {
        Self {
            prompt: "Here is the text of a web page:\n\n{text}\n\nWould an encyclopaedia cite this page as a source, and could a student learn \
                     from it? Answer with one word: {labels}."
                .to_owned(),
            labels: vec!["good".to_owned(), "bad".to_owned()],
            max_characters: 4_000,
        }
    }
}

impl LabelTask {
    /// Checks prompt and labels.
    ///
    /// # Errors
    /// [`CurateError::BadTraining`].
    pub fn validate(&self) -> Result<(), CurateError> {
        let bad = |found: &str| Err(CurateError::BadTraining { found: found.to_owned() });
        if !self.prompt.contains("{text}") {
            return bad("the prompt has no `{text}`");
        }
        let plain =
            |label: &String| !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '_');
        if self.labels.len() < 2 || !self.labels.iter().all(plain) {
            return bad("two labels at least are needed, each a word of letters, digits and `_`");
        }
        if self.max_characters == 0 { bad("`max_characters` is 0") } else { Ok(()) }
    }

    /// The prompt for a text.
    #[must_use]
    pub fn prompt_for(&self, text: &str) -> String {
        let end = text.char_indices().nth(self.max_characters).map_or(text.len(), |(at, _)| at);
        // Labels first: what looks like a placeholder in the document stays as it is.
        self.prompt.replace("{labels}", &self.labels.join(", ")).replace("{text}", &text[..end])
    }

    /// The label of an answer.
    #[must_use]
    pub fn parse(&self, answer: &str) -> Option<&str> {
        let mut words = answer.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.find_map(|word| {
            let known = |label: &&String| label.to_lowercase() == word.to_lowercase();
            self.labels.iter().find(known).map(String::as_str)
        })
    }
}

/// What came of labelling.
#[derive(Serialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelReport {
    /// Documents labelled now.
    pub labelled: u64,
    /// Documents that the file had already.
    pub present: u64,
    /// Documents whose answer had no label; asked again by the next run.
    pub unreadable: u64,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    text: String,
    label: String,
}

/// Labels documents `(id, text)` and appends a line `{"id", "text", "label"}` per document to the file at `out`, in order. A document whose id is
/// in the file is skipped, so a run that was stopped goes on; a last line that was cut off is taken away first.
///
/// # Errors
/// A file that cannot be read or written, a line in it that is no such object, an answer that the judge cannot give.
pub fn label(
    documents: impl IntoIterator<Item = Result<(String, String), CurateError>>,
    task: &LabelTask,
    judge: &mut dyn Judge,
    out: &Path,
) -> Result<LabelReport, CurateError> {
    task.validate()?;
    let done = read_done(out)?;
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(out)
        .map_err(|error| CurateError::write(out, error))?;
    let mut report = LabelReport::default();
    for document in documents {
        let (id, text) = document?;
        if done.contains(&id) {
            report.present += 1;
            continue;
        }
        let answer = judge.judge(&task.prompt_for(&text)).map_err(|cause| CurateError::BadTraining {
            found: format!("the judge has no answer for document `{id}`: {cause}"),
        })?;
        let Some(label) = task.parse(&answer) else {
            report.unreadable += 1;
            continue;
        };
        let line = Line { id, text, label: label.to_owned() };
        let mut line = serde_json::to_string(&line).map_err(|error| CurateError::write(out, error))?;
        line.push('\n');
        file.write_all(line.as_bytes()).map_err(|error| CurateError::write(out, error))?;
        report.labelled += 1;
    }
    file.sync_all().map_err(|error| CurateError::write(out, error))?;
    Ok(report)
}

/// The ids in a file of labels. What follows its last line end is cut off.
fn read_done(out: &Path) -> Result<BTreeSet<String>, CurateError> {
    let mut done = BTreeSet::new();
    if !out.exists() {
        return Ok(done);
    }
    let file = File::open(out).map_err(|error| CurateError::read(out, error))?;
    let mut reader = BufReader::new(file);
    let (mut line, mut whole, mut number) = (String::new(), 0_u64, 0);
    loop {
        line.clear();
        let length = reader.read_line(&mut line).map_err(|error| CurateError::read(out, error))?;
        if length == 0 || !line.ends_with('\n') {
            break;
        }
        number += 1;
        whole += length as u64;
        let parsed: Line = serde_json::from_str(&line).map_err(|error| {
            CurateError::read(
                out,
                format!("line {number}: {error}\nhint: give a file that holds labels, or a new one"),
            )
        })?;
        done.insert(parsed.id);
    }
    let file = OpenOptions::new().write(true).open(out).map_err(|error| CurateError::write(out, error))?;
    file.set_len(whole).map_err(|error| CurateError::write(out, error))?;
    Ok(done)
}
