//! Which language a text is in.

mod built_in;
mod code;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub(crate) use code::{is_language, normalise};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fasttext::{FastText, Prediction};
use crate::filter::{check_share, off};
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

    /// The score below which a text is not surely in its language, where the recipe does not say. Scores of a fastText model are
    /// probabilities, and 0.65 is FineWeb's limit for English. Those of the built-in identifier say how far the
    /// best language is ahead of the next: 1 for any clear text of some length, little for a short one, so there it is 0.2.
    #[must_use]
    pub fn min_score(&self) -> f64 {
        match self {
            Identifier::Model(..) => 0.65,
            Identifier::BuiltIn => built_in::MIN_SCORE,
        }
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
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LanguageConfig {
    /// A fastText model; the built-in identifier when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Languages that are kept, as the model calls them or as anybody else does: `en`, `eng_Latn`, `English`; all when empty.
    pub keep: Vec<String>,
    /// A text that is less surely in its language is dropped as `language_unsure`; none are with `Some(None)`. When absent it is
    /// what suits the scores of the identifier: [`Identifier::min_score`].
    #[serde(deserialize_with = "limit", serialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub min_score: Option<Option<f64>>,
    /// A line of another language, of at least so many characters and as sure as `min_score`, or 0.65 when that is absent, is taken
    /// out.
    #[serde(with = "crate::filter::off")]
    pub drop_lines_from: Option<usize>,
}

/// Reads a limit that is there.
fn limit<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Option<f64>>, D::Error> {
    off::deserialize(input).map(Some)
}

fn said<S: Serializer>(limit: &Option<Option<f64>>, out: S) -> Result<S::Ok, S::Error> {
    off::serialize(&limit.flatten(), out)
}

/// Sets a document's language and its tag `lang.score`, and keeps some languages.
pub struct Language {
    config: LanguageConfig,
    identifier: Identifier,
    /// What the identifier calls the languages that are kept; all when empty.
    kept: Vec<String>,
    min_score: Option<f64>,
}

impl Language {
    /// Opens the model.
    ///
    /// # Errors
    /// A model that cannot be read, a score out of range, a language that the model does not know.
    pub fn new(config: &LanguageConfig) -> Result<Language, CurateError> {
        let identifier = Identifier::open(config.model.as_deref())?;
        let min_score = config.min_score.unwrap_or(Some(identifier.min_score()));
        check_share("language.min_score", min_score, 1.0)?;
        let known: Vec<&str> = match &identifier {
            Identifier::Model(model, _) => model.labels().collect(),
            Identifier::BuiltIn => built_in::languages().collect(),
        };
        let mut kept = Vec::new();
        for keep in &config.keep {
            let before = kept.len();
            // A model may tell more than the code does, such as scripts: what is one of its names means that alone.
            let is_name = known.contains(&keep.as_str());
            let means =
                |label: &str| if is_name { label == keep } else { normalise(label) == normalise(keep) };
            kept.extend(known.iter().filter(|label| means(label)).map(|label| (*label).to_owned()));
            if kept.len() == before {
                return Err(unknown(keep, &identifier, known));
            }
        }
        Ok(Language { config: config.clone(), identifier, kept, min_score })
    }

    /// The text without lines that are surely of another language.
    fn without_foreign_lines(&self, text: &str, language: &str, least: usize) -> String {
        let sure = match self.config.min_score {
            Some(limit) => limit.unwrap_or(0.0),
            None => SURE_LINE,
        };
        let is_other = |guess: &Guess| guess.language != language && guess.score >= sure;
        let is_foreign = |line: &str| {
            line.chars().count() >= least && self.identifier.identify(line, 1).first().is_some_and(is_other)
        };
        text.split_inclusive('\n').filter(|line| !is_foreign(line.trim_end())).collect()
    }
}

/// How sure the language of a line must be, where the recipe does not say: of a line less can be told than of a text.
const SURE_LINE: f64 = 0.65;

/// What is said of a language that the identifier does not know.
fn unknown(keep: &str, identifier: &Identifier, mut known: Vec<&str>) -> CurateError {
    known.sort_unstable();
    let first = keep.trim().to_lowercase().chars().next();
    let alike: Vec<&str> = known.iter().copied().filter(|label| label.chars().next() == first).collect();
    let (which, listed) = if alike.is_empty() { ("", &known) } else { (" that begin like it", &alike) };
    let more = if listed.len() > MAX_LISTED { ", …" } else { "" };
    let allowed = format!(
        "one of the {} languages of {}, as a code or in English; those{which}: {}{more}",
        known.len(),
        identifier.name(),
        listed[..listed.len().min(MAX_LISTED)].join(", ")
    );
    CurateError::BadFilter { key: "language.keep".to_owned(), found: keep.to_owned(), allowed }
}

/// Languages listed in an error.
const MAX_LISTED: usize = 80;

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
        if !self.kept.is_empty() && !self.kept.contains(&language) {
            let kept = self.config.keep.join("`, `");
            let detail = format!("`{language}` with {score:.3}, only `{kept}` is kept");
            return Some(Dropped::new("language", detail));
        }
        if let Some(limit) = self.min_score.filter(|&limit| score < limit) {
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
