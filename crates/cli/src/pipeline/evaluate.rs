//! The last stage: held-out bits per byte, multiple-choice questions, samples.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use llamero_align::{ChoiceScore, Question};
use llamero_artifact::{Artifact, Outcome};
use llamero_data::{Domain, Loader, NgramBaseline, TokenStore};
use llamero_infer::{Engine, SamplingParams};
use llamero_tokenizer::{Message, Role, Tokenizer};
use serde::{Deserialize, Serialize};

use super::{Run, write_json};
use crate::progress::Progress;

/// File of the results.
const RESULTS_FILE: &str = "results.json";
/// Questions answered for the report where the recipe names none.
const SAMPLE_QUESTIONS: usize = 4;
/// Names of the two models, in order.
const MODELS: [&str; 2] = ["pretrain", "sft"];

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    /// Held-out bits per byte by domain (`all`, `prose`, `code`), then by model (`unigram`, `bigram`, `pretrain`, `sft`).
    pub(crate) bits_per_byte: BTreeMap<String, BTreeMap<String, f64>>,
    /// Held-out tokens that were predicted.
    pub(crate) held_out_tokens: u64,
    /// Mean loss in nats per held-out token, by model.
    pub(crate) loss: BTreeMap<String, f64>,
    /// Multiple-choice score by model.
    pub(crate) multiple_choice: BTreeMap<String, Choices>,
    /// What the models wrote.
    pub(crate) samples: Vec<SampleText>,
}

/// A multiple-choice score with its interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choices {
    pub(crate) score: ChoiceScore,
    pub(crate) accuracy: f64,
    /// Half-width of the 95 % interval.
    pub(crate) half_width: f64,
    /// Whether the whole interval lies above chance.
    pub(crate) above_chance: bool,
}

/// A prompt and its continuation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SampleText {
    pub(crate) model: String,
    pub(crate) prompt: String,
    pub(crate) output: String,
}

impl Evaluation {
    /// Reads the results of a finished stage.
    pub(crate) fn read(artifact: &Artifact) -> Result<Self> {
        let path = artifact.file(RESULTS_FILE)?;
        let text = std::fs::read(&path).with_context(|| format!("`{}`", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("`{}`", path.display()))
    }
}

impl Run {
    /// Scores both models against the baselines.
    pub(super) fn evaluate(
        &mut self,
        tokens: &Artifact,
        instruct: &Artifact,
        models: [&Artifact; 2],
    ) -> Result<Artifact> {
        let section = self.recipe.evaluate.clone();
        let mut inputs = vec![tokens.as_input("tokens"), instruct.as_input("questions")];
        inputs.extend(models.iter().zip(MODELS).map(|(artifact, name)| artifact.as_input(name)));
        self.stage("evaluate", section, inputs, |run, draft| {
            let mut results = Evaluation::default();
            let held_out = TokenStore::open(tokens.path(), "held_out")?;
            let documents = HeldOut::read(&held_out)?;
            results.held_out_tokens = documents.rows.iter().map(|d| d.ids.len() as u64 - 1).sum();
            let pretrain = &run.recipe.pretrain;
            // As many tokens as the model read; with a mix, documents still come as they are here.
            let length = pretrain.longest_sequence();
            let loader = Loader::new(TokenStore::open(tokens.path(), "train")?, length, pretrain.seed)?;
            let read = pretrain.tokens_before(pretrain.num_steps()) / length as u64;
            let counts = NgramBaseline::count(&loader, read)?;
            let (one, two) = documents.rows.iter().map(|d| counts.nll(&d.ids)).unzip();
            documents.note(&mut results, "unigram", one);
            documents.note(&mut results, "bigram", two);
            drop(counts);
            let questions = run.questions(models[0], instruct)?;
            for (artifact, name) in models.into_iter().zip(MODELS) {
                let engine = Engine::open(artifact.path(), Arc::clone(&run.backend), run.recipe.dtype()?)?;
                documents.note(&mut results, name, documents.score(&engine, name)?);
                let bar = Progress::new(name, questions.len() as u64, "questions");
                let score =
                    llamero_align::ask(&engine, &questions, &|done| bar.at(done as u64, "questions"))?;
                bar.finish();
                results.multiple_choice.insert(name.into(), choices(score));
                run.samples(&engine, name, &questions, &mut results)?;
            }
            if let Some(note) = short_of_bigram(&results) {
                run.remarks.push(note);
            }
            write_json(&draft.path().join(RESULTS_FILE), &results)?;
            Ok(Outcome { metrics: serde_json::to_value(&results.bits_per_byte)?, ..Default::default() })
        })
    }

    /// The held-out questions that fit in the context with each of their choices; the others are remarked on. An error
    /// when none does, which is worth knowing before any training.
    pub(super) fn questions(&mut self, tokenizer: &Artifact, instruct: &Artifact) -> Result<Vec<Question>> {
        let mut questions = llamero_align::read_questions(&instruct.file(llamero_align::QUESTIONS_FILE)?)?;
        let coder = Tokenizer::load(tokenizer.path())?;
        let (given, context) = (questions.len(), self.recipe.pretrain.longest_sequence());
        let prompt = |q: &Question| coder.encode_dialog_prompt(&[Message::new(Role::User, &q.question)]);
        let prompts = questions.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
        let mut prompts = prompts.iter().map(Vec::len);
        questions.retain(|q| {
            let prompt = prompts.next().unwrap_or(context);
            // The choice ends with the token that ends a turn.
            q.choices.iter().all(|choice| prompt + coder.encode(choice).len() < context)
        });
        if questions.is_empty() {
            bail!(
                "none of the {given} questions fits in a context of {context} tokens\n\
                 hint: raise `pretrain.sequence`"
            );
        }
        if questions.len() < given {
            let left_out = given - questions.len();
            let text = format!(
                "evaluate: {left_out} of {given} questions do not fit in a context of {context} tokens"
            );
            if !self.remarks.contains(&text) {
                self.remarks.push(text);
            }
        }
        Ok(questions)
    }

    /// The base model continues the prompts, the tuned one answers the questions.
    fn samples(
        &mut self,
        engine: &Engine,
        name: &str,
        held_out: &[Question],
        results: &mut Evaluation,
    ) -> Result<()> {
        let section = self.recipe.evaluate.clone();
        let tuned = name == MODELS[1];
        let own: Vec<String> = held_out.iter().take(SAMPLE_QUESTIONS).map(|q| q.question.clone()).collect();
        let questions = if section.questions.is_empty() { &own } else { &section.questions };
        for prompt in if tuned { questions } else { &section.prompts } {
            let coder = engine.tokenizer();
            let ids = if tuned {
                coder.encode_dialog_prompt(&[Message::new(Role::User, prompt)])?
            } else {
                let mut ids = Vec::from_iter(coder.special().begin_of_text);
                coder.encode_into(prompt, &mut ids);
                ids
            };
            if ids.len() >= engine.context() {
                let (tokens, context) = (ids.len(), engine.context());
                self.remarks.push(format!(
                    "evaluate: a prompt of {tokens} tokens does not fit in a context of {context}: `{prompt}`"
                ));
                continue;
            }
            let (stop, max_tokens) = (engine.stop_tokens(), section.max_tokens);
            // The likeliest continuation of a small base model soon goes in circles; the tuned one is asked for facts.
            let drawn = SamplingParams { max_tokens, ..Default::default() };
            let params = if tuned { SamplingParams::greedy(max_tokens) } else { drawn };
            let params = SamplingParams { stop, ..params };
            let generation = engine.generate(&ids, &params, &mut |_| ControlFlow::Continue(()))?;
            let output = coder.decode(generation.content())?;
            results.samples.push(SampleText { model: name.into(), prompt: prompt.clone(), output });
        }
        Ok(())
    }
}

/// A word where the model has not learned more than counting pairs would.
fn short_of_bigram(results: &Evaluation) -> Option<String> {
    let all = results.bits_per_byte.get("all")?;
    let (bigram, model) = (all.get("bigram")?, all.get(MODELS[0])?);
    (model >= bigram).then(|| {
        format!("the model ({model:.3} bits per byte) is no better than a bigram ({bigram:.3}): raise `budget` or give more text")
    })
}

fn choices(score: ChoiceScore) -> Choices {
    let (accuracy, half_width) = (score.accuracy(), score.half_width());
    Choices { above_chance: accuracy - half_width > score.chance, accuracy, half_width, score }
}

struct HeldOutDocument {
    ids: Vec<u32>,
    bytes: u64,
    domain: Domain,
}

struct HeldOut {
    rows: Vec<HeldOutDocument>,
}

impl HeldOut {
    fn read(store: &TokenStore) -> Result<Self> {
        let mut rows = Vec::with_capacity(store.num_documents());
        for i in 0..store.num_documents() {
            let entry = store.document(i);
            let mut ids = Vec::new();
            store.read(entry.tokens, &mut ids)?;
            rows.push(HeldOutDocument { ids, bytes: u64::from(entry.text_bytes), domain: entry.domain });
        }
        Ok(Self { rows })
    }

    /// Negative log-likelihood of each document but its first token.
    fn score(&self, engine: &Engine, name: &str) -> Result<Vec<f64>> {
        let bar = Progress::new(name, self.rows.len() as u64, "documents");
        let mut nll = Vec::with_capacity(self.rows.len());
        for chunk in self.rows.chunks(16) {
            let ids: Vec<&[u32]> = chunk.iter().map(|d| d.ids.as_slice()).collect();
            let scores = engine.score_batch(&ids)?;
            nll.extend(scores.iter().map(|s| s.iter().map(|&x| f64::from(x)).sum::<f64>()));
            bar.at(nll.len() as u64, "held-out documents");
        }
        bar.finish();
        Ok(nll)
    }

    /// Notes a model's bits per byte, in all and by domain.
    fn note(&self, results: &mut Evaluation, model: &str, nll: Vec<f64>) {
        let mut sums: BTreeMap<&str, (f64, u64)> = BTreeMap::new();
        for (document, nll) in self.rows.iter().zip(&nll) {
            for domain in ["all", document.domain.name()] {
                let sum = sums.entry(domain).or_default();
                *sum = (sum.0 + nll, sum.1 + document.bytes);
            }
        }
        for (domain, (nll, bytes)) in sums {
            let bits = nll / std::f64::consts::LN_2 / bytes.max(1) as f64;
            results.bits_per_byte.entry(domain.into()).or_default().insert(model.into(), bits);
        }
        let total: f64 = nll.iter().sum();
        results.loss.insert(model.into(), total / results.held_out_tokens.max(1) as f64);
    }
}
