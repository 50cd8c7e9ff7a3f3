//! All heuristics over one analysis of a text.

use serde::{Deserialize, Serialize};

use super::analysis::Analysis;
use super::{C4, FineWeb, GopherQuality, GopherRepetition, NgramCoverage, Rule};
use crate::{CurateError, Document, Dropped, Filter, Item};

/// The name of all of them in one, in plans. Recipes and reports know the sets of rules alone.
pub(super) const HEURISTICS: &str = "heuristics";

const GOPHER_REPETITION: &str = "gopher_repetition";
const GOPHER_QUALITY: &str = "gopher_quality";
const NGRAM_COVERAGE: &str = "ngram_coverage";
const C4_RULES: &str = "c4";
const FINEWEB: &str = "fineweb";

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

    /// The names of the sets of rules that are on, in the order in which they are asked.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        let sets = [
            (GOPHER_REPETITION, self.gopher_repetition.is_some()),
            (GOPHER_QUALITY, self.gopher_quality.is_some()),
            (NGRAM_COVERAGE, self.ngram_coverage.is_some()),
            (C4_RULES, self.c4.is_some()),
            (FINEWEB, self.fineweb.is_some()),
        ];
        sets.into_iter().filter_map(|(name, is_on)| is_on.then_some(name))
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

    /// What each set of rules makes of a text, in order, until one drops it.
    fn judge(&self, text: &str) -> Judged {
        let config = &self.config;
        let analysis = Analysis::new(text);
        let covered = match self.repeats(&analysis) {
            Ok(covered) => covered,
            Err(dropped) => return Judged { dropped: Some(dropped), ..Judged::default() },
        };
        let again = covered.as_deref().map(Analysis::new);
        let analysis = again.as_ref().unwrap_or(&analysis);
        let (cleaned, dropped) = match config.c4.as_ref().map_or(Ok(None), |rule| rule.apply(analysis)) {
            Err(dropped) => (None, Some((C4_RULES, dropped))),
            Ok(cleaned) => {
                let again = cleaned.as_deref().filter(|_| config.fineweb.is_some()).map(Analysis::new);
                let analysis = again.as_ref().unwrap_or(analysis);
                let dropped = ask(FINEWEB, config.fineweb.as_ref(), analysis).err();
                (cleaned, dropped)
            }
        };
        Judged { covered, cleaned, dropped }
    }

    /// The text without lines that repeat themselves, where there are some, or why it is dropped.
    fn repeats(&self, analysis: &Analysis) -> Result<Option<String>, ByStep> {
        let config = &self.config;
        ask(GOPHER_REPETITION, config.gopher_repetition.as_ref(), analysis)?;
        ask(GOPHER_QUALITY, config.gopher_quality.as_ref(), analysis)?;
        let covered = config.ngram_coverage.as_ref().map_or(Ok(None), |rule| rule.apply(analysis));
        covered.map_err(|dropped| (NGRAM_COVERAGE, dropped))
    }
}

/// What became of a text.
#[derive(Default)]
struct Judged {
    /// What [`NGRAM_COVERAGE`] left of it, if that is less than all.
    covered: Option<String>,
    /// What [`C4_RULES`] left of that, if it is less.
    cleaned: Option<String>,
    dropped: Option<ByStep>,
}

/// Why a document is dropped, and the step that says so.
type ByStep = (&'static str, Dropped);

fn ask(step: &'static str, rule: Option<&impl Rule>, analysis: &Analysis) -> Result<(), ByStep> {
    rule.and_then(|rule| rule.judge(analysis)).map_or(Ok(()), |dropped| Err((step, dropped)))
}

impl Filter for Heuristics {
    fn name(&self) -> &'static str {
        HEURISTICS
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let Judged { covered, cleaned, dropped } = self.judge(&document.text);
        if let (Some(text), None) = (cleaned.or(covered), &dropped) {
            document.text = text;
        }
        dropped.map(|(_, dropped)| dropped)
    }

    fn pass(&self, item: &mut Item) -> Result<(), CurateError> {
        let Judged { covered, cleaned, dropped } = self.judge(&item.document.text);
        for (step, text) in [(NGRAM_COVERAGE, covered), (C4_RULES, cleaned)] {
            if let Some(text) = text {
                item.document.text = text;
                item.edited(step);
            }
        }
        if let Some((step, dropped)) = dropped {
            item.drop_for(step, dropped);
        }
        Ok(())
    }
}
