//! Filters that are asked of some domains only, or of each with settings of its own.

use std::collections::BTreeMap;

use serde::Serialize;

use super::heuristics::HEURISTICS;
use super::{HeuristicsConfig, filter};
use crate::domain::{MATHS, MULTILINGUAL};
use crate::plan::{Registry, Step};
use crate::rules::{CODE, PROSE};
use crate::{CurateError, Document, Dropped, Filter, Item};

pub(super) fn register(registry: &mut Registry) {
    registry.filter(NOT_CODE, |found, _| {
        let step: Step = crate::plan::parameters(NOT_CODE, found)?;
        Ok(Box::new(NotCode(filter(&step.name, &step.parameters)?)))
    });
    registry.filter(BY_DOMAIN, |found, _| {
        let steps: BTreeMap<String, Step> = crate::plan::parameters(BY_DOMAIN, found)?;
        let build = |(domain, step): (String, Step)| Ok((domain, filter(&step.name, &step.parameters)?));
        Ok(Box::new(ByDomain(steps.into_iter().map(build).collect::<Result<_, CurateError>>()?)))
    });
}

/// The name of the filter that asks another of what is no code. Its parameter is the step of the other.
const NOT_CODE: &str = "not_code";

/// The name of the filter that asks another one of each domain. Its parameter are steps by domain.
const BY_DOMAIN: &str = "by_domain";

/// The step that asks the filter `name` of what is no code: rules for prose say nothing of it.
pub(crate) fn not_code(name: &str, settings: &impl Serialize) -> Result<Step, CurateError> {
    Step::with(NOT_CODE, &Step::with(name, settings)?)
}

/// The step of the heuristics: none of code, no stop words of English in other languages, and curly brackets in formulas.
pub(crate) fn heuristics(prose: &HeuristicsConfig) -> Result<Step, CurateError> {
    let (mut maths, mut multilingual) = (prose.clone(), prose.clone());
    maths.c4.iter_mut().for_each(|c4| c4.curly_bracket = false);
    multilingual.gopher_quality.iter_mut().for_each(|gopher| gopher.min_stop_words = None);
    let mut steps = BTreeMap::new();
    for (domain, config) in [(PROSE, prose), (MATHS, &maths), (MULTILINGUAL, &multilingual)] {
        steps.insert(domain, Step::with(HEURISTICS, config)?);
    }
    Step::with(BY_DOMAIN, &steps)
}

/// What a step of a plan is called in reports: its own name, that of the filter which it asks, or those of the heuristics in it.
pub(crate) fn names_of(step: &Step) -> Vec<String> {
    let asked = match step.name.as_str() {
        NOT_CODE => Some(&step.parameters),
        BY_DOMAIN => step.parameters.get(PROSE),
        HEURISTICS => {
            let config = serde_json::from_value::<HeuristicsConfig>(step.parameters.clone());
            return config.unwrap_or_default().names().map(str::to_owned).collect();
        }
        _ => None,
    };
    match asked.and_then(|asked| serde_json::from_value(asked.clone()).ok()) {
        Some(asked) => names_of(&asked),
        None => vec![step.name.clone()],
    }
}

struct NotCode(Box<dyn Filter>);

impl Filter for NotCode {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        if document.domain == CODE { None } else { self.0.apply(document) }
    }

    fn pass(&self, item: &mut Item) -> Result<(), CurateError> {
        if item.document.domain == CODE { Ok(()) } else { self.0.pass(item) }
    }
}

struct ByDomain(BTreeMap<String, Box<dyn Filter>>);

impl ByDomain {
    fn of(&self, document: &Document) -> Option<&dyn Filter> {
        let domain = if document.domain.is_empty() { PROSE } else { document.domain.as_str() };
        self.0.get(domain).map(|filter| &**filter)
    }
}

impl Filter for ByDomain {
    fn name(&self) -> &'static str {
        self.0.get(PROSE).map_or(BY_DOMAIN, |filter| filter.name())
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        self.of(document)?.apply(document)
    }

    fn pass(&self, item: &mut Item) -> Result<(), CurateError> {
        self.of(&item.document).map_or(Ok(()), |filter| filter.pass(item))
    }
}
