//! Instruction data from the corpus: what a crate is for, or how a text goes on.
//!
//! Where the corpus holds crate manifests, every crate with a description becomes a fact that is asked for in several
//! phrasings; some phrasings are kept for the questions, so a model must carry the fact over to words it was not trained
//! on. The wrong choices of a question are other crates' descriptions. A corpus without (enough) manifests gives
//! continuations instead: "How does this text go on?", the wrong choices being continuations of other documents, and the
//! questions come from documents that are not used for training.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use llamero_data::{Document, Domain, documents, hash_fraction, shuffled};
use llamero_tokenizer::{Message, Role};
use serde::{Deserialize, Serialize};

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
            ("instruct.max_facts", self.max_facts, self.max_facts >= 8, "at least 8"),
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
    let kind = if facts.len() >= MIN_CRATES { "crates" } else { "continuations" };
    if kind == "continuations" {
        facts = continuation_facts(curated)?;
    }
    let order = shuffled(facts.len(), config.seed, 0);
    let facts: Vec<Fact> = order.iter().take(config.max_facts).map(|&i| facts[i as usize].clone()).collect();
    if facts.len() < 2 * config.choices {
        return Err(AlignError::TooLittle {
            found: format!("only {} documents are fit for questions and answers", facts.len()),
            hint: format!(
                "give at least {} documents of some paragraphs each in `curate.sources`",
                4 * config.choices
            ),
        });
    }
    let (dialogs, questions) = match kind {
        "crates" => from_crates(&facts, config),
        _ => from_continuations(&facts, config),
    };
    write_lines(&out.join(DIALOGS_FILE), &dialogs)?;
    write_lines(&out.join(QUESTIONS_FILE), &questions)?;
    Ok(InstructReport {
        kind: kind.into(),
        facts: facts.len(),
        dialogs: dialogs.len(),
        questions: questions.len(),
    })
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
    let asked = facts.iter().enumerate().take(config.max_questions);
    let questions = asked.map(|(i, fact)| {
        let phrasing = HELD_OUT[i % HELD_OUT.len()];
        question(phrasing.replace("{}", &fact.subject), i, facts, config)
    });
    (dialogs, questions.collect())
}

/// Characters of a passage shown, and of its continuation.
const SHOWN: usize = 160;
const CONTINUATION: usize = 120;

fn continuation_facts(curated: &Path) -> Result<Vec<Fact>, AlignError> {
    let mut facts = Vec::new();
    for document in documents::read(curated)? {
        let document = document?;
        if document.domain == Domain::Prose {
            facts.extend(passages(&document.text));
        }
    }
    Ok(facts)
}

/// Up to 16 passages of a document, each with what follows it.
fn passages(text: &str) -> Vec<Fact> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut found = Vec::new();
    let mut words = words.into_iter().peekable();
    while words.peek().is_some() && found.len() < 16 {
        let mut take = |limit: usize| {
            let mut out = String::new();
            while out.len() < limit {
                let Some(word) = words.next() else { break };
                if !out.is_empty() {
                    out.push(' ');
                }
                out.push_str(word);
            }
            out
        };
        let (subject, answer) = (take(SHOWN), take(CONTINUATION));
        // A "word" of kilobytes (base64, say) is no passage.
        if answer.len() >= CONTINUATION && answer.len() < 2 * CONTINUATION && subject.len() < 2 * SHOWN {
            found.push(Fact { subject, answer });
        }
    }
    found
}

fn from_continuations(facts: &[Fact], config: &InstructConfig) -> (Vec<Dialog>, Vec<Question>) {
    let ask = |fact: &Fact| format!("How does this text go on?\n\n{}", fact.subject);
    let held_out = (facts.len() / 4).clamp(config.choices, config.max_questions.max(config.choices));
    let (asked, trained) = facts.split_at(held_out);
    let dialogs = trained.iter().map(|fact| turn(&ask(fact), &fact.answer)).collect();
    let questions = asked.iter().take(config.max_questions).enumerate();
    let questions = questions.map(|(i, fact)| question(ask(fact), i, asked, config)).collect();
    (dialogs, questions)
}

fn turn(user: &str, assistant: &str) -> Dialog {
    Dialog { messages: vec![Message::new(Role::User, user), Message::new(Role::Assistant, assistant)] }
}

/// A question about fact `i` with other facts' answers as wrong choices, all in a hashed order.
fn question(text: String, i: usize, facts: &[Fact], config: &InstructConfig) -> Question {
    let others = shuffled(facts.len(), config.seed, 1 + i as u64);
    let right = &facts[i].answer;
    let wrong = others.iter().map(|&o| &facts[o as usize].answer).filter(|a| *a != right);
    let mut choices: Vec<String> = wrong.take(config.choices - 1).cloned().collect();
    let answer = (hash_fraction(&format!("{} {text}", config.seed)) * (choices.len() + 1) as f64) as usize;
    choices.insert(answer, right.clone());
    Question { question: text, choices, answer }
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
    fn held_out_continuations_are_not_trained_on() {
        let text: String = (0..2000).map(|i| format!("word{i} ")).collect();
        let facts = passages(&text);
        assert_eq!(facts.len(), 16);
        let (dialogs, questions) = from_continuations(&facts, &InstructConfig::default());
        assert!(!questions.is_empty() && !dialogs.is_empty());
        for q in &questions {
            assert!(dialogs.iter().all(|d| d.messages[0].content != q.question));
            assert!(dialogs.iter().all(|d| d.messages[1].content != q.choices[q.answer]));
        }
    }
}
