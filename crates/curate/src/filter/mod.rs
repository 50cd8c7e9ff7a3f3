//! Filters of single documents.
//!
//! Each is built from a struct of thresholds, whose defaults are the published ones; a rule is switched off by `false`, and
//! 0 means 0. [`filter`] builds them by name, as recipes and plans do.
//!
//! | name | what it does |
//! |---|---|
//! | `heuristics` | Gopher's repetition and quality, duplicated n-gram coverage, C4, FineWeb, in this order, over one analysis of the text |
//! | `gopher_repetition`, `gopher_quality`, `ngram_coverage`, `c4`, `fineweb` | one of them |
//! | `dirty_words` | counts words of lists |
//! | `unigram_divergence` | words that are not those of the corpus |
//! | `url_block` | block lists of domains, URLs, words in URLs |
//! | `pii` | addresses, numbers and keys: dropped or replaced |
//! | `language` | tags the language, keeps some |
//! | `quality` | a trained classifier |
//! | `decontaminate` | overlap with evaluation sets |
//!
//! In a plan there is also `kl_outliers`: `unigram_divergence` with the words of the corpus at hand, which the plan counts.

mod analysis;
mod by_domain;
mod c4;
mod characters;
mod coverage;
mod dirty;
mod fineweb;
mod gopher;
mod heuristics;
mod lists;
pub(crate) mod off;
mod outliers;
mod pii;
#[cfg(test)]
mod tests;
mod unigrams;
mod url;
mod words;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::contamination::{Contamination, ContaminationConfig};
use crate::language::{Language, LanguageConfig};
use crate::plan::Registry;
use crate::quality::{Quality, QualityConfig};
use crate::{CurateError, Dropped, Filter};
use analysis::Analysis;

pub(crate) use analysis::hash;
pub(crate) use by_domain::{heuristics, names_of, not_code};
pub use c4::C4;
pub(crate) use characters::is_inside_word;
pub use coverage::NgramCoverage;
pub use dirty::{DirtyWords, DirtyWordsConfig};
pub use fineweb::FineWeb;
pub use gopher::{GopherQuality, GopherRepetition};
pub use heuristics::{Heuristics, HeuristicsConfig};
pub use outliers::KlOutliers;
pub use pii::{Finding, Kind, Pii, PiiAction, PiiConfig};
pub use unigrams::{Divergence, DivergenceConfig, Unigrams};
pub(crate) use url::host;
pub use url::{UrlBlock, UrlBlockConfig};
#[cfg(test)]
pub(crate) use words::words;

/// A set of rules that looks at a text and leaves it as it is.
trait Rule {
    fn validate(&self) -> Result<(), CurateError>;
    fn judge(&self, analysis: &Analysis) -> Option<Dropped>;
}

/// `part` of `whole`, 0 when there is nothing.
fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Makes sure that a threshold is a number from 0 to `high`.
pub(crate) fn check_share(key: &str, found: Option<f64>, high: f64) -> Result<(), CurateError> {
    match found.filter(|found| !(0.0..=high).contains(found)) {
        None => Ok(()),
        Some(found) => Err(CurateError::BadFilter {
            key: key.to_owned(),
            found: found.to_string(),
            allowed: if high == f64::MAX { "0 or more".to_owned() } else { format!("from 0 to {high}") },
        }),
    }
}

/// The filter called `name` with its settings as they are in a recipe; `null` stands for the defaults.
///
/// # Errors
/// No such filter, a setting that does not exist or is out of range, a file that cannot be read.
pub fn filter(name: &str, settings: &Value) -> Result<Box<dyn Filter>, CurateError> {
    let one = |config: HeuristicsConfig| -> Result<Box<dyn Filter>, CurateError> {
        Ok(Box::new(Heuristics::new(config)?))
    };
    let none = HeuristicsConfig::none();
    Ok(match name {
        "heuristics" => return one(parse(name, settings)?),
        "gopher_repetition" => {
            return one(HeuristicsConfig { gopher_repetition: Some(parse(name, settings)?), ..none });
        }
        "gopher_quality" => {
            return one(HeuristicsConfig { gopher_quality: Some(parse(name, settings)?), ..none });
        }
        "ngram_coverage" => {
            return one(HeuristicsConfig { ngram_coverage: Some(parse(name, settings)?), ..none });
        }
        "c4" => return one(HeuristicsConfig { c4: Some(parse(name, settings)?), ..none }),
        "fineweb" => return one(HeuristicsConfig { fineweb: Some(parse(name, settings)?), ..none }),
        "dirty_words" => Box::new(DirtyWords::new(&parse::<DirtyWordsConfig>(name, settings)?)?),
        "unigram_divergence" => Box::new(Divergence::new(&parse::<DivergenceConfig>(name, settings)?)?),
        "url_block" => Box::new(UrlBlock::new(&parse::<UrlBlockConfig>(name, settings)?)?),
        "pii" => Box::new(Pii::new(&parse::<PiiConfig>(name, settings)?)?),
        "language" => Box::new(Language::new(&parse::<LanguageConfig>(name, settings)?)?),
        "quality" => Box::new(Quality::new(&parse::<QualityConfig>(name, settings)?)?),
        "decontaminate" => Box::new(Contamination::new(&parse::<ContaminationConfig>(name, settings)?)?),
        other => {
            return Err(CurateError::BadFilter {
                key: "filter".to_owned(),
                found: other.to_owned(),
                allowed: format!("one of {}", FILTERS.join(", ")),
            });
        }
    })
}

/// Registers every filter of this module, those that leave code alone, and extraction.
pub(crate) fn register(registry: &mut Registry) {
    for name in FILTERS {
        registry.filter(name, move |settings, _| filter(name, settings));
    }
    registry.filter("extract", |found, _| {
        Ok(Box::new(crate::Extraction(crate::plan::parameters::<crate::Article>("extract", found)?)))
    });
    by_domain::register(registry);
    outliers::register(registry);
}

/// Names that [`filter`] knows.
pub const FILTERS: [&str; 13] = [
    "heuristics",
    "gopher_repetition",
    "gopher_quality",
    "ngram_coverage",
    "c4",
    "fineweb",
    "dirty_words",
    "unigram_divergence",
    "url_block",
    "pii",
    "language",
    "quality",
    "decontaminate",
];

pub(crate) fn parse<T: DeserializeOwned>(name: &str, settings: &Value) -> Result<T, CurateError> {
    let settings = if settings.is_null() { Value::Object(serde_json::Map::new()) } else { settings.clone() };
    let text = settings.to_string();
    serde_json::from_value(settings).map_err(|error| CurateError::BadFilter {
        key: name.to_owned(),
        found: text,
        allowed: format!("settings that it has ({error})"),
    })
}
