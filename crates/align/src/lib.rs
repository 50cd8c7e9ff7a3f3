//! Post-training: instruction data from the corpus itself, and supervised fine-tuning.
//!
//! [`instruct`] turns curated documents into dialogs and held-out multiple-choice questions; [`SftSource`] packs dialogs
//! into training sequences whose loss counts the assistant's tokens only; [`ask()`] scores the questions on any
//! [`llamero_infer::Lm`]. The training loop is [`llamero_train::train`], the same as for pre-training.

mod continuations;
mod dialogs;
mod error;
mod instruct;
mod questions;

pub use dialogs::{Dialog, SftSource, read_dialogs};
pub use error::AlignError;
pub use instruct::{DIALOGS_FILE, InstructConfig, InstructReport, QUESTIONS_FILE, instruct};
pub use questions::{ChoiceScore, Question, ask, read_questions};
