//! Multiple-choice questions and their score.

use std::path::Path;

use llamero_infer::Lm;
use llamero_tokenizer::{Message, Role};
use serde::{Deserialize, Serialize};

use crate::AlignError;
use crate::dialogs::read_lines;

/// A question with one right choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// What the user asks.
    pub question: String,
    /// Possible answers of the assistant.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub answer: usize,
}

/// Reads a JSON Lines file of questions; an error names the line.
pub fn read_questions(path: &Path) -> Result<Vec<Question>, AlignError> {
    let questions: Vec<Question> = read_lines(path)?;
    match questions.iter().position(|q| q.answer >= q.choices.len()) {
        None => Ok(questions),
        Some(i) => {
            let q = &questions[i];
            let reason = format!("`answer` is {} but there are {} choices", q.answer, q.choices.len());
            Err(AlignError::Line { path: path.into(), line: i + 1, reason })
        }
    }
}

/// How many questions were answered rightly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceScore {
    /// Questions asked.
    pub questions: usize,
    /// Answered rightly.
    pub correct: usize,
    /// Expected share of right answers when guessing.
    pub chance: f64,
}

impl ChoiceScore {
    /// Share of right answers.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.questions.max(1) as f64
    }

    /// Half-width of the 95 % interval, `1.96 √(S(1−S)/N)` ("The Llama 3 Herd of Models" §5.1).
    pub fn half_width(&self) -> f64 {
        let s = self.accuracy();
        1.96 * (s * (1.0 - s) / self.questions.max(1) as f64).sqrt()
    }
}

/// Asks every question as a user's turn and takes the choice with the highest log-probability per byte as the
/// assistant's answer (the end-of-turn token included). `progress` is told how many are done.
pub fn ask(lm: &dyn Lm, questions: &[Question], progress: &dyn Fn(usize)) -> Result<ChoiceScore, AlignError> {
    let mut correct = 0;
    let mut chance = 0.0;
    for (i, q) in questions.iter().enumerate() {
        let tokenizer = lm.tokenizer();
        let prompt = tokenizer.encode_dialog_prompt(&[Message::new(Role::User, &q.question)])?;
        let encode = |choice: &String| {
            let mut ids = tokenizer.encode(choice);
            ids.push(tokenizer.special().eot);
            ids
        };
        let log_probs = lm.choose(&prompt, &q.choices.iter().map(encode).collect::<Vec<_>>())?;
        let per_byte = log_probs.iter().zip(&q.choices).map(|(l, choice)| l / choice.len().max(1) as f64);
        let best = per_byte
            .enumerate()
            .fold((0, f64::NEG_INFINITY), |best, now| if now.1 > best.1 { now } else { best });
        correct += usize::from(best.0 == q.answer);
        chance += 1.0 / q.choices.len() as f64;
        progress(i + 1);
    }
    Ok(ChoiceScore { questions: questions.len(), correct, chance: chance / questions.len().max(1) as f64 })
}
