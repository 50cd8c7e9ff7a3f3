//! Instruction data from the corpus: what a crate is for, or how a text goes on.
//!
//! Where the corpus holds crate manifests, every crate with a description becomes a fact that is asked for in several
//! phrasings; some phrasings are kept for the questions, so a model must carry the fact over to words it was not trained
//! on. Held out are these phrasings, not the facts. The wrong choices of a question are other crates' descriptions.
//!
//! A corpus without (enough) manifests gives continuations instead: "How does this text go on?". Whole documents are held
//! out: no question is about a document that a dialog is made of, and the wrong choices are continuations from held-out
//! documents too. Pre-training may have read those documents all the same.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use llamero_data::{Document, documents, hash_fraction, shuffled};
use llamero_tokenizer::{Message, Role};
use serde::{Deserialize, Serialize};

use crate::continuations::{self, Passage, Passages};
use crate::{AlignError, Dialog, Question};

/// Section `[instruct]` of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstructConfig {
    /// At most this many facts (crates or passages).
    pub max_facts: usize,
    /// At most this many held-out questions.
    pub max_questions: usize,
    /// Choices of a question; chance is one in this many.
    pub choices: usize,
    /// Seed of the order and of the wrong choices.
    pub seed: u64,
}

impl Default for InstructConfig {
    fn default() -> Self {
        Self { max_facts: 400, max_questions: 400, choices: 4, seed: 1 }
    }
}

impl InstructConfig {
    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), AlignError> {
        let checks = [
            // Half of the fewest passages are for training, half for one question.
            (
                "instruct.max_facts",
                self.max_facts,
                self.max_facts >= 8.max(2 * self.choices),
                "at least 8, and at least twice `instruct.choices`",
            ),
            ("instruct.max_questions", self.max_questions, self.max_questions >= 1, "at least 1"),
            ("instruct.choices", self.choices, (2..=8).contains(&self.choices), "2 to 8"),
        ];
        match checks.into_iter().find(|(_, _, ok, _)| !ok) {
            None => Ok(()),
            Some((key, found, _, allowed)) => {
                Err(AlignError::OutOfRange { key, found: found.to_string(), allowed: allowed.into() })
            }
        }
    }
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstructReport {
    /// `crates` or `continuations`.
    pub kind: String,
    /// Crates or passages used.
    pub facts: usize,
    /// Training dialogs.
    pub dialogs: usize,
    /// Held-out questions.
    pub questions: usize,
}

/// File of the training dialogs.
pub const DIALOGS_FILE: &str = "dialogs.jsonl";
/// File of the held-out questions.
pub const QUESTIONS_FILE: &str = "questions.jsonl";

/// Phrasings of the question that are trained on; `{}` is the crate's name.
const TRAINED: [&str; 8] = [
    "What is the crate {} for?",
    "What does the Rust crate {} do?",
    "Describe the crate {}.",
    "Tell me about {}.",
    "Explain in one sentence what {} is.",
    "Why would I depend on {}?",
    "What is {}?",
    "Give me a short summary of the crate {}.",
];

/// Phrasings that appear in questions only.
const HELD_OUT: [&str; 2] =
    ["Which purpose does the library {} serve?", "How would you describe {} to a colleague?"];

/// Fewer crates than this, and continuations are used.
const MIN_CRATES: usize = 20;

/// Reads curated documents and writes [`DIALOGS_FILE`] and [`QUESTIONS_FILE`] into `out`.
pub fn instruct(curated: &Path, config: &InstructConfig, out: &Path) -> Result<InstructReport, AlignError> {
    config.validate()?;
    let mut facts = crate_facts(curated)?;
    let (kind, (dialogs, questions)) = if facts.len() >= MIN_CRATES {
        take_shuffled(&mut facts, config.max_facts, config.seed);
        ("crates", from_crates(&facts, config))
    } else {
        ("continuations", from_continuations(continuations::read(curated, config.choices)?, config))
    };
    let facts = if kind == "crates" { facts.len() } else { dialogs.len() + questions.len() };
    write_lines(&out.join(DIALOGS_FILE), &dialogs)?;
    write_lines(&out.join(QUESTIONS_FILE), &questions)?;
    Ok(InstructReport { kind: kind.into(), facts, dialogs: dialogs.len(), questions: questions.len() })
}

/// Something to be known: a subject and what is true of it.
#[derive(Clone, Debug)]
struct Fact {
    subject: String,
    answer: String,
}

fn crate_facts(curated: &Path) -> Result<Vec<Fact>, AlignError> {
    let mut by_name = BTreeMap::new();
    for document in documents::read(curated)? {
        let document = document?;
        if let Some(fact) = manifest_fact(&document) {
            by_name.entry(fact.subject.clone()).or_insert(fact);
        }
    }
    let mut facts: Vec<Fact> = by_name.into_values().collect();
    // Families of crates share one description word for word; a question could then have two right answers.
    let mut seen = BTreeMap::new();
    for fact in &facts {
        *seen.entry(fact.answer.to_lowercase()).or_insert(0) += 1;
    }
    facts.retain(|f| seen[&f.answer.to_lowercase()] == 1);
    Ok(facts)
}

#[derive(Deserialize)]
struct Manifest {
    package: Package,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    description: String,
}

/// Longest answer in bytes; longer descriptions end at their first sentence.
const MAX_ANSWER: usize = 200;

fn manifest_fact(document: &Document) -> Option<Fact> {
    if document.url != "Cargo.toml" && !document.url.ends_with("/Cargo.toml") {
        return None;
    }
    let Package { name, description } = toml::from_str::<Manifest>(&document.text).ok()?.package;
    let mut answer = description.split_whitespace().collect::<Vec<_>>().join(" ");
    if answer.len() > MAX_ANSWER {
        let end = answer.find(". ")?;
        answer.truncate(end + 1);
    }
    ((20..=MAX_ANSWER).contains(&answer.len())).then_some(Fact { subject: name, answer })
}

fn from_crates(facts: &[Fact], config: &InstructConfig) -> (Vec<Dialog>, Vec<Question>) {
    let mut dialogs = Vec::new();
    for fact in facts {
        for phrasing in TRAINED {
            dialogs.push(turn(&phrasing.replace("{}", &fact.subject), &fact.answer));
        }
        dialogs.push(turn(&format!("Which crate is this? {}", fact.answer), &fact.subject));
    }
    let answers: Vec<&str> = facts.iter().map(|fact| fact.answer.as_str()).collect();
    let asked = facts.iter().enumerate().take(config.max_questions);
    let questions = asked.filter_map(|(i, fact)| {
        let phrasing = HELD_OUT[i % HELD_OUT.len()];
        question(phrasing.replace("{}", &fact.subject), i, &answers, config)
    });
    (dialogs, questions.collect())
}

fn from_continuations(mut passages: Passages, config: &InstructConfig) -> (Vec<Dialog>, Vec<Question>) {
    let ask = |p: &Passage| format!("How does this text go on?\n\n{}", p.shown);
    // As many as there may be, in a random order; the questions have at most a quarter, and enough for one of them.
    let total = (passages.asked.len() + passages.trained.len()).min(config.max_facts);
    let most = config.max_questions.max(config.choices);
    take_shuffled(&mut passages.asked, (total / 4).clamp(config.choices, most), config.seed);
    take_shuffled(&mut passages.trained, total - passages.asked.len().min(total), config.seed);
    let dialogs = passages.trained.iter().map(|p| turn(&ask(p), &p.next)).collect();
    let answers: Vec<&str> = passages.asked.iter().map(|p| p.next.as_str()).collect();
    let asked = passages.asked.iter().take(config.max_questions).enumerate();
    (dialogs, asked.filter_map(|(i, p)| question(ask(p), i, &answers, config)).collect())
}

/// Brings the rows into the order of the seed and keeps the first.
fn take_shuffled<T: Clone>(rows: &mut Vec<T>, count: usize, seed: u64) {
    let order = shuffled(rows.len(), seed, 0);
    *rows = order.iter().take(count).map(|&i| rows[i as usize].clone()).collect();
}

fn turn(user: &str, assistant: &str) -> Dialog {
    Dialog { messages: vec![Message::new(Role::User, user), Message::new(Role::Assistant, assistant)] }
}

/// A question whose right answer is number `i`, with other answers as wrong choices, all in a hashed order. `None` where
/// there are not enough that differ from it and from each other.
fn question(text: String, i: usize, answers: &[&str], config: &InstructConfig) -> Option<Question> {
    let mut choices: Vec<String> = Vec::new();
    for other in shuffled(answers.len(), config.seed, 1 + i as u64) {
        let wrong = answers[other as usize];
        if choices.len() + 1 < config.choices && wrong != answers[i] && choices.iter().all(|c| c != wrong) {
            choices.push(wrong.into());
        }
    }
    if choices.len() + 1 < config.choices {
        return None;
    }
    let answer = (hash_fraction(&format!("{} {text}", config.seed)) * config.choices as f64) as usize;
    choices.insert(answer, answers[i].into());
    Some(Question { question: text, choices, answer })
}

fn write_lines(path: &Path, rows: &[impl Serialize]) -> Result<(), AlignError> {
    let io = |source| AlignError::Io { path: path.into(), source };
    let mut out = std::io::BufWriter::new(std::fs::File::create(path).map_err(io)?);
    for row in rows {
        serde_json::to_writer(&mut out, row).map_err(|e| io(e.into()))?;
        out.write_all(b"\n").map_err(io)?;
    }
    out.flush().map_err(io)
}

#[cfg(test)]
mod tests {
    use llamero_data::Domain;

    use super::*;

    fn manifest(name: &str, description: &str) -> Document {
        Document {
            id: String::new(),
            url: format!("{name}-1.0.0/Cargo.toml"),
            source: name.into(),
            domain: Domain::Code,
            text: format!("[package]\nname = \"{name}\"\ndescription = \"\"\"\n{description}\"\"\"\n"),
        }
    }

    #[test]
    fn manifests_become_facts_of_one_line() {
        let fact =
            manifest_fact(&manifest("serde", "A framework for\n  serializing data structures")).unwrap();
        assert_eq!(fact.answer, "A framework for serializing data structures");
        assert!(manifest_fact(&manifest("x", "too short")).is_none());
        let long = format!("The first sentence is short. {}", "More. ".repeat(60));
        assert_eq!(manifest_fact(&manifest("x", &long)).unwrap().answer, "The first sentence is short.");
        let broken = Document { text: "[package".into(), ..manifest("x", "") };
        assert!(manifest_fact(&broken).is_none());
    }

    #[test]
    fn questions_hold_the_right_answer_once_and_never_a_trained_phrasing() {
        let facts: Vec<Fact> = (0..40)
            .map(|i| Fact { subject: format!("crate{i}"), answer: format!("Does thing number {i} well") })
            .collect();
        let (dialogs, questions) = from_crates(&facts, &InstructConfig::default());
        assert_eq!((dialogs.len(), questions.len()), (40 * 9, 40));
        let mut places = [0; 4];
        for (i, q) in questions.iter().enumerate() {
            assert_eq!(q.choices.len(), 4);
            assert_eq!(q.choices[q.answer], facts[i].answer);
            assert_eq!(q.choices.iter().filter(|c| **c == facts[i].answer).count(), 1);
            assert!(dialogs.iter().all(|d| d.messages[0].content != q.question));
            places[q.answer] += 1;
        }
        assert!(places.iter().all(|&n| n >= 3), "{places:?}");
    }

    #[test]
    fn a_question_without_enough_wrong_choices_is_left_out() {
        let config = InstructConfig::default();
        let ask = |answers: &[&str]| question("Which?".into(), 0, answers, &config);
        assert_eq!(ask(&["a", "b", "c", "a", "c", "b"]), None);
        let mut choices = ask(&["a", "b", "c", "a", "c", "d"]).unwrap().choices;
        choices.sort();
        assert_eq!(choices, ["a", "b", "c", "d"]);
    }

    #[test]
    fn held_out_continuations_are_not_trained_on() {
        let side = |name: &str, count: usize| -> Vec<Passage> {
            let text = |i: usize, part: &str| format!("{name} {part} {i}");
            (0..count).map(|i| Passage { shown: text(i, "shown"), next: text(i, "next") }).collect()
        };
        for (trained, asked, max_facts) in [(30, 10, 400), (300, 200, 100), (4, 4, 8), (4, 16, 8)] {
            let config = InstructConfig { max_facts, ..InstructConfig::default() };
            let passages = Passages { trained: side("trained", trained), asked: side("asked", asked) };
            let (dialogs, questions) = from_continuations(passages, &config);
            assert!(questions.len() >= config.choices && dialogs.len() >= config.choices);
            assert!(questions.len() + dialogs.len() <= max_facts);
            assert!(dialogs.iter().flat_map(|d| &d.messages).all(|m| !m.content.contains("asked")));
            for q in &questions {
                let distinct: std::collections::BTreeSet<_> = q.choices.iter().collect();
                assert_eq!(distinct.len(), config.choices);
                assert!(q.question.contains("asked") && q.choices.iter().all(|c| c.contains("asked")));
                let number = q.question.rsplit(' ').next();
                assert_eq!(q.choices[q.answer].rsplit(' ').next(), number);
            }
        }
    }
}
