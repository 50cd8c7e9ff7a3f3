//! All heuristics over one analysis of a text.

use serde::{Deserialize, Serialize};

use super::analysis::Analysis;
use super::{C4, FineWeb, GopherQuality, GopherRepetition, NgramCoverage, Rule};
use crate::{CurateError, Document, Dropped, Filter};

/// Which sets of rules are asked; `false` switches one off. The default is FineWeb's: everything but n-gram coverage, and C4 without its rule
/// on the ends of lines, which costs it a third of the tokens (Penedo et al. 2024, section 3.5).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct HeuristicsConfig {
    /// Texts that repeat themselves.
    #[serde(with = "super::off")]
    pub gopher_repetition: Option<GopherRepetition>,
    /// Texts that are not made of words.
    #[serde(with = "super::off")]
    pub gopher_quality: Option<GopherQuality>,
    /// Lines that repeat themselves.
    #[serde(with = "super::off")]
    pub ngram_coverage: Option<NgramCoverage>,
    /// Lines that are not prose.
    #[serde(with = "super::off")]
    pub c4: Option<C4>,
    /// Lists and menus.
    #[serde(with = "super::off")]
    pub fineweb: Option<FineWeb>,
}

impl Default for HeuristicsConfig {
    fn default() -> Self {
        Self {
            gopher_repetition: Some(GopherRepetition::default()),
            gopher_quality: Some(GopherQuality::default()),
            ngram_coverage: None,
            c4: Some(C4 { terminal_punctuation: false, ..C4::default() }),
            fineweb: Some(FineWeb::default()),
        }
    }
}

impl HeuristicsConfig {
    /// Everything off.
    #[must_use]
    pub fn none() -> Self {
        Self { gopher_repetition: None, gopher_quality: None, ngram_coverage: None, c4: None, fineweb: None }
    }
}

/// The filter of [`HeuristicsConfig`].
pub struct Heuristics {
    config: HeuristicsConfig,
}

impl Heuristics {
    /// With these rules.
    ///
    /// # Errors
    /// [`CurateError::BadFilter`] with the key that is out of range.
    pub fn new(config: HeuristicsConfig) -> Result<Heuristics, CurateError> {
        config.gopher_repetition.iter().try_for_each(Rule::validate)?;
        config.gopher_quality.iter().try_for_each(Rule::validate)?;
        config.ngram_coverage.iter().try_for_each(NgramCoverage::validate)?;
        config.fineweb.iter().try_for_each(Rule::validate)?;
        Ok(Heuristics { config })
    }

    /// What is left of a text, if that is less than all of it, or why it is dropped.
    fn judge(&self, text: &str) -> Result<Option<String>, Dropped> {
        fn ask(rule: Option<&impl Rule>, analysis: &Analysis) -> Result<(), Dropped> {
            rule.and_then(|rule| rule.judge(analysis)).map_or(Ok(()), Err)
        }
        let config = &self.config;
        let analysis = Analysis::new(text);
        ask(config.gopher_repetition.as_ref(), &analysis)?;
        ask(config.gopher_quality.as_ref(), &analysis)?;
        let covered = config.ngram_coverage.as_ref().map_or(Ok(None), |rule| rule.apply(&analysis))?;
        let again = covered.as_deref().map(Analysis::new);
        let analysis = again.as_ref().unwrap_or(&analysis);
        let prose = config.c4.as_ref().map_or(Ok(None), |rule| rule.apply(analysis))?;
        if config.fineweb.is_some() {
            let again = prose.as_deref().map(Analysis::new);
            ask(config.fineweb.as_ref(), again.as_ref().unwrap_or(analysis))?;
        }
        Ok(prose.or(covered))
    }
}

impl Filter for Heuristics {
    fn name(&self) -> &'static str {
        "heuristics"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        match self.judge(&document.text) {
            Ok(None) => None,
            Ok(Some(text)) => {
                document.text = text;
                None
            }
            Err(dropped) => Some(dropped),
        }
    }
}
