//! Verdicts: how they are made, how later steps are spared what is dropped, how they meet the documents.

use serde::{Deserialize, Serialize};

use super::label::{id_of, id_text};
use crate::item::{Item, Value};
use crate::plan::{Emit, Input, Map, Plan, Reduce, Registry, Step, Values};
use crate::{CurateError, Dropped};

pub(super) fn register(registry: &mut Registry) {
    registry.reduce_of::<First>("first");
    registry.reduce_of::<Left>("left");
    registry.reduce_of::<Judge>("judge");
    registry.map_of::<CutOrder>("cut-order");
    registry.reduce_of::<Cut>("cut");
}

/// A plan's chain of dedups: each sees what those before it have left.
pub struct Verdicts<'a> {
    plan: &'a mut Plan,
    sketches: String,
    given: Vec<String>,
}

impl<'a> Verdicts<'a> {
    /// Begins with a stage of sketches.
    pub fn of(plan: &'a mut Plan, sketches: &str) -> Self {
        Self { plan, sketches: sketches.to_owned(), given: Vec::new() }
    }

    /// The plan, to add stages that lead to a verdict.
    pub fn plan(&mut self) -> &mut Plan {
        self.plan
    }

    /// The input of sketches that no verdict has dropped yet; adds a stage `NAME-left` where there are verdicts.
    pub fn left(&mut self, name: &str) -> String {
        if self.given.is_empty() {
            return self.sketches.clone();
        }
        let left = format!("{name}-left");
        let inputs = [&self.sketches].into_iter().chain(&self.given).map(|name| Input::all(name));
        self.plan.stage(&left, inputs.collect(), Some(Step::new("left")));
        left
    }

    /// Says that the stage `name` has verdicts.
    pub fn give(&mut self, name: &str) {
        self.given.push(name.to_owned());
    }

    /// Appends the stage `cut`, which keeps documents up to so many bytes of text.
    ///
    /// # Errors
    /// None in practice.
    pub fn cut(&mut self, max_bytes: u64) -> Result<(), CurateError> {
        let left = self.left("cut");
        let input = Input::through(&left, vec![Step::new("cut-order")]);
        self.plan.stage("cut", vec![input], Some(Step::with("cut", &Cut { max_bytes })?));
        self.give("cut");
        Ok(())
    }

    /// Adds a stage in which all verdicts meet the documents.
    pub fn judge(self, documents: &str, name: &str) {
        let inputs = [documents].into_iter().chain(self.given.iter().map(String::as_str)).map(Input::all);
        self.plan.stage(name, inputs.collect(), Some(Step::new("judge")));
    }
}

/// The first label of a group survives; the others, whose records come with their labels as values, are dropped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct First {
    pub(super) reason: String,
    pub(super) detail: String,
}

impl Reduce for First {
    fn reduce(&self, _: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let Some(first) = values.next()? else { return Ok(()) };
        let first = first.to_vec();
        let dropped =
            Dropped { survivor: Some(id_text(&first)?), ..Dropped::new(&self.reason, self.detail.as_str()) };
        let verdict = Value::Verdict(dropped).encode()?;
        while let Some(label) = values.next()? {
            // A document may be in a group twice.
            if label != first {
                emit(id_of(label)?, &verdict)?;
            }
        }
        Ok(())
    }
}

/// Lets through what has no verdict.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Left {}

impl Reduce for Left {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        while let Some(value) = values.next()? {
            if matches!(Value::decode(value)?, Value::Verdict(_)) {
                return Ok(());
            }
            emit(key, value)?;
        }
        Ok(())
    }
}

/// Puts verdicts, and lines to be taken away, into the documents.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Judge {}

impl Reduce for Judge {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let (mut verdict, mut lines, mut seen) = (None, Vec::new(), false);
        while let Some(value) = values.next()? {
            match Value::decode(value)? {
                Value::Verdict(dropped) => verdict = verdict.or(Some(dropped)),
                Value::Lines(found) => lines.extend(found),
                Value::Sketch(_) => {}
                Value::Passed(_) => emit(key, value)?,
                Value::Item(mut item) => {
                    // A verdict would fall on one of them, and nobody could say which.
                    if std::mem::replace(&mut seen, true) {
                        let id = String::from_utf8_lossy(key);
                        let problem = format!("two have the id `{id}`, which must be unique");
                        return Err(CurateError::Record { what: "a document", problem });
                    }
                    if verdict.is_none() && lines.is_empty() {
                        emit(key, value)?;
                        continue;
                    }
                    if item.dropped.is_none() {
                        judge(&mut item, verdict.take(), std::mem::take(&mut lines));
                    }
                    emit(key, &Value::Item(item).encode()?)?;
                }
            }
        }
        Ok(())
    }
}

fn judge(item: &mut Item, verdict: Option<Dropped>, lines: Vec<u32>) {
    let limit = item.document.text.floor_char_boundary(item.excerpt_bytes as usize);
    let start = if lines.is_empty() { String::new() } else { item.document.text[..limit].to_owned() };
    let emptied = super::lines::take_away(&mut item.document, lines);
    item.edited("common_lines");
    if emptied.is_some() {
        // What is left says nothing.
        item.document.text = start;
    }
    for dropped in emptied.into_iter().chain(verdict) {
        let step = step_of(&dropped.reason).to_owned();
        item.drop_for(&step, dropped);
    }
}

/// The step, as reports call it, that gives verdicts of this reason.
fn step_of(reason: &str) -> &str {
    match reason {
        "url_duplicate" => "url_duplicates",
        "exact_duplicate" => "exact_duplicates",
        "near_duplicate" => "near_duplicates",
        "semantic_duplicate" => "semantic",
        "over_corpus_cap" => "max_corpus_bytes",
        other => other,
    }
}

/// Sketches in the order in which the corpus is filled: by the hash of their source, then by id.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CutOrder {}

impl Map for CutOrder {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let sketch = Value::sketch(value)?;
        let order = [&sketch.source[..], key, &sketch.bytes.to_be_bytes()].concat();
        emit(&[], &order)
    }
}

/// Keeps documents up to so many bytes, and nothing behind the first that does not fit: so whole sources are kept, but for
/// the one that the limit cuts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cut {
    max_bytes: u64,
}

/// Bytes of a source's hash in front of the id.
const SOURCE_BYTES: usize = 32;

impl Reduce for Cut {
    fn reduce(&self, _: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let detail = format!("the corpus already holds its {} bytes", self.max_bytes);
        let verdict = Value::Verdict(Dropped::new("over_corpus_cap", detail)).encode()?;
        let mut total = 0_u64;
        while let Some(value) = values.next()? {
            let problem = || CurateError::Record { what: "cut", problem: "it is too short".to_owned() };
            let (front, size) = value.split_last_chunk().ok_or_else(problem)?;
            total = total.saturating_add(u64::from_be_bytes(*size));
            if total > self.max_bytes {
                emit(front.get(SOURCE_BYTES..).ok_or_else(problem)?, &verdict)?;
            }
        }
        Ok(())
    }
}
