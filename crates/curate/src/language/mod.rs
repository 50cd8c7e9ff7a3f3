//! Which language a text is in.

mod built_in;
mod code;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub(crate) use code::normalise;

use serde::{Deserialize, Serialize};

use crate::fasttext::{FastText, Prediction};
use crate::filter::check_share;
use crate::{CurateError, Document, Dropped, Filter};

/// Tells languages.
pub enum Identifier {
    /// A fastText model such as lid.176, and its file's name.
    Model(Box<FastText>, String),
    /// The built-in one: trigrams of 70 languages (crate `whatlang`). Weaker than a model on short and on mixed text.
    BuiltIn,
}

/// A language and how sure that is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guess {
    /// As the model calls it: ISO 639-1 where the language has such a code.
    pub language: String,
    /// From 0 to 1.
    pub score: f64,
}

impl Identifier {
    /// The model at `path`, or the built-in identifier.
    ///
    /// # Errors
    /// Those of [`FastText::open`].
    pub fn open(path: Option<&Path>) -> Result<Identifier, CurateError> {
        let Some(path) = path else { return Ok(Identifier::BuiltIn) };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Identifier::Model(Box::new(FastText::open(path)?), name))
    }

    /// What it is, for reports.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Identifier::Model(_, name) => name,
            Identifier::BuiltIn => "built-in trigrams (whatlang)",
        }
    }

    /// The `top` most probable languages, best first; the built-in identifier knows only the best. Empty where nothing can be said.
    #[must_use]
    pub fn identify(&self, text: &str, top: usize) -> Vec<Guess> {
        match self {
            Identifier::Model(model, _) => {
                let guess = |found: Prediction| Guess {
                    language: found.label.to_owned(),
                    score: f64::from(found.probability.min(1.0)),
                };
                model.predict(text, top).into_iter().map(guess).collect()
            }
            Identifier::BuiltIn => built_in::identify(text).into_iter().take(top).collect(),
        }
    }
}

/// Which languages are kept.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LanguageConfig {
    /// A fastText model; the built-in identifier when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Languages that are kept, as the model calls them; all when empty.
    pub keep: Vec<String>,
    /// A text that is less surely in its language is dropped as `language_unsure`. 0.65 is FineWeb's value for English.
    #[serde(with = "crate::filter::off")]
    pub min_score: Option<f64>,
    /// A line of another language, of at least so many characters and as sure as `min_score`, is taken out.
    #[serde(with = "crate::filter::off")]
    pub drop_lines_from: Option<usize>,
}

impl Default for LanguageConfig {
    fn default() -> Self {
        Self { model: None, keep: Vec::new(), min_score: Some(0.65), drop_lines_from: None }
    }
}

/// Sets a document's language and its tag `lang.score`, and keeps some languages.
pub struct Language {
    config: LanguageConfig,
    identifier: Identifier,
}

impl Language {
    /// Opens the model.
    ///
    /// # Errors
    /// A model that cannot be read, a score out of range, a language that the model does not know.
    pub fn new(config: &LanguageConfig) -> Result<Language, CurateError> {
        check_share("language.min_score", config.min_score, 1.0)?;
        let identifier = Identifier::open(config.model.as_deref())?;
        let known: Vec<&str> = match &identifier {
            Identifier::Model(model, _) => model.labels().collect(),
            Identifier::BuiltIn => built_in::languages().collect(),
        };
        if let Some(unknown) = config.keep.iter().find(|keep| !known.contains(&keep.as_str())) {
            return Err(CurateError::BadFilter {
                key: "language.keep".to_owned(),
                found: unknown.clone(),
                allowed: format!(
                    "languages of {}, such as {}",
                    identifier.name(),
                    known[..known.len().min(8)].join(", ")
                ),
            });
        }
        Ok(Language { config: config.clone(), identifier })
    }

    /// The text without lines that are surely of another language.
    fn without_foreign_lines(&self, text: &str, language: &str, least: usize) -> String {
        let sure = self.config.min_score.unwrap_or(0.0);
        let is_other = |guess: &Guess| guess.language != language && guess.score >= sure;
        let is_foreign = |line: &str| {
            line.chars().count() >= least && self.identifier.identify(line, 1).first().is_some_and(is_other)
        };
        text.split_inclusive('\n').filter(|line| !is_foreign(line.trim_end())).collect()
    }
}

impl Filter for Language {
    fn name(&self) -> &'static str {
        "language"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let Some(Guess { language, score }) = self.identifier.identify(&document.text, 1).into_iter().next()
        else {
            return Some(Dropped::new("language_unsure", "no language can be told"));
        };
        // Models such as GlotLID say `eng_Latn`.
        document.lang = normalise(&language).into_owned();
        document.tags.insert("lang.score".to_owned(), score);
        if !self.config.keep.is_empty() && !self.config.keep.contains(&language) {
            let kept = self.config.keep.join("`, `");
            let detail = format!("`{language}` with {score:.3}, only `{kept}` is kept");
            return Some(Dropped::new("language", detail));
        }
        if let Some(limit) = self.config.min_score.filter(|&limit| score < limit) {
            return Some(Dropped::new(
                "language_unsure",
                format!("`{language}` with {score:.3}, at least {limit} wanted"),
            ));
        }
        if let Some(least) = self.config.drop_lines_from {
            document.text = self.without_foreign_lines(&document.text, &language, least);
        }
        None
    }
}
