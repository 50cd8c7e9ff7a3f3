//! From the recipe to the plan.

use serde_json::Value;

use crate::dedup::{SketchOf, Verdicts, exact, url};
use crate::domain::{DOMAINS, Domain};
use crate::files::{FILES, FileSource, Files};
use crate::filter::{self, HeuristicsConfig, names_of, not_code};
use crate::inputs::{Inputs, ReadSource};
use crate::item::FILTERS;
use crate::mix::MIX;
use crate::plan::{Input, Plan, Registry, Source, Step, Task, parameters};
use crate::rules::{FileLimits, text_rules, too_little_left};
use crate::{CurateConfig, CurateError, Inventory};

/// All functions of this crate by name. Add to it what a plan names besides, such as an embedder.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    crate::rules::register(&mut registry);
    crate::domain::register(&mut registry);
    crate::filter::register(&mut registry);
    crate::dedup::register(&mut registry);
    crate::mix::register(&mut registry);
    registry
}

/// Name of the source in the plans of recipes without `read`.
pub const SOURCE: &str = FILES;

/// Name of the source in the plans of recipes with `read`.
pub const READ_SOURCE: &str = "read";

/// The source of a recipe's plan as data: its name and what [`build_source`] makes it from, here or in another process. The
/// locations in it are absolute paths and URLs, so a process that is to read a path must have it, too.
///
/// # Errors
/// A path that is not UTF-8.
pub fn source(config: &CurateConfig, inventory: &Inventory) -> Result<Step, CurateError> {
    match inputs(config, inventory) {
        Some(inputs) => Step::with(READ_SOURCE, &inputs),
        None => Step::with(SOURCE, &files(config, inventory)),
    }
}

/// The source of a recipe's plan in this process.
pub(super) fn local_source(config: &CurateConfig, inventory: &Inventory) -> Box<dyn Source> {
    match inputs(config, inventory) {
        Some(inputs) => Box::new(ReadSource::new(inputs)),
        None => Box::new(FileSource::new(files(config, inventory))),
    }
}

fn inputs(config: &CurateConfig, inventory: &Inventory) -> Option<Inputs> {
    let (inputs, read) = (inventory.inputs.clone(), config.read.clone()?);
    let (excerpt_bytes, fingerprint) = (config.excerpt_bytes, fingerprint(config, inventory));
    Some(Inputs { inputs, read, excerpt_bytes, fingerprint })
}

fn files(config: &CurateConfig, inventory: &Inventory) -> Files {
    let (files, limits) = (inventory.files.clone(), FileLimits::of(config));
    Files { files, limits, fingerprint: fingerprint(config, inventory) }
}

/// The source that [`source`] describes.
///
/// # Errors
/// A name or parameters that it does not give.
pub fn build_source(step: &Step) -> Result<Box<dyn Source>, CurateError> {
    match step.name.as_str() {
        SOURCE => Ok(Box::new(FileSource::new(parameters::<Files>(SOURCE, &step.parameters)?))),
        READ_SOURCE => Ok(Box::new(ReadSource::new(parameters::<Inputs>(READ_SOURCE, &step.parameters)?))),
        other => {
            let problem = format!("is no source; there are `{SOURCE}` and `{READ_SOURCE}`");
            Err(CurateError::Function { name: other.to_owned(), problem })
        }
    }
}

/// What of recipe and inventory is not in the plan, but decides what comes out.
fn fingerprint(config: &CurateConfig, inventory: &Inventory) -> String {
    let read = config.read.as_ref().and_then(|read| serde_json::to_string(read).ok()).unwrap_or_default();
    let side: Vec<_> = inventory.side_files.iter().map(|(key, hash)| format!("{key}={hash}")).collect();
    let CurateConfig { max_document_bytes, max_control_share, excerpt_bytes, .. } = config;
    let limits = format!("{max_document_bytes} {max_control_share} {excerpt_bytes}");
    format!("{} {limits} {read} {}", inventory.id, side.join(" "))
}

/// The plan of a recipe. Its last task has all documents, kept and dropped, by id; or, where there is a mix, what that makes
/// of them.
///
/// The order is that of Llama 3 (section 3.1.1): what one document alone says, duplicates, common lines, rules for the text,
/// classifiers, semantic duplicates, evaluation sets, mix.
///
/// # Errors
/// A value out of range.
pub fn plan(config: &CurateConfig) -> Result<Plan, CurateError> {
    config.validate()?;
    let source = if config.read.is_some() { READ_SOURCE } else { SOURCE };
    let mut plan = Plan { sources: vec![source.to_owned()], tasks: Vec::new() };
    let filters = Step::with(FILTERS, &on_reading(config)?)?;
    plan.stage("documents", vec![Input::through(source, vec![filters])], None);
    if !goes_on(config) {
        duplicates(&mut plan, config, config.corpus_limit(), "corpus")?;
        return Ok(plan);
    }
    duplicates(&mut plan, config, None, "unique")?;
    let mut last = "unique".to_owned();
    if let Some(lines) = &config.common_lines {
        lines.append(&mut plan, &last)?;
        "lines".clone_into(&mut last);
    }
    texts(&mut plan, config, &mut last)?;
    if let Some(semantic) = &config.semantic {
        semantic.append(&mut plan, &last)?;
        "semantic".clone_into(&mut last);
    }
    filter_stage(&mut plan, "last-look", &mut last, at_last(config)?, None)?;
    match (&config.mix, config.corpus_limit()) {
        (Some(mix), _) => mix.append(&mut plan, &last)?,
        (None, Some(max_bytes)) => {
            let sizes = SketchOf::default().step()?;
            plan.stage("sizes", vec![Input::through(&last, vec![sizes])], None);
            let mut verdicts = Verdicts::of(&mut plan, "sizes");
            verdicts.cut(max_bytes)?;
            verdicts.judge(&last, "corpus");
        }
        // What comes last must be sorted, which only a shuffle promises.
        (None, None) if !ends_in_reduce(&plan) => Verdicts::of(&mut plan, "corpus").judge(&last, "corpus"),
        (None, None) => {}
    }
    Ok(plan)
}

/// Whether the records of the last task have been shuffled.
fn ends_in_reduce(plan: &Plan) -> bool {
    matches!(plan.tasks.last(), Some(Task::Stage(stage)) if stage.reduce.is_some())
}

/// Whether anything comes after the duplicates of whole documents.
fn goes_on(config: &CurateConfig) -> bool {
    let CurateConfig { gopher_repetition, gopher_quality, ngram_coverage, c4, fineweb, .. } = config;
    let rules = gopher_repetition.is_some()
        || gopher_quality.is_some()
        || ngram_coverage.is_some()
        || c4.is_some()
        || fineweb.is_some();
    rules
        || config.common_lines.is_some()
        || config.dirty_words.is_some()
        || config.kl_outliers.is_some()
        || !config.quality.is_empty()
        || config.semantic.is_some()
        || config.decontaminate.is_some()
        || config.mix.is_some()
}

/// What is asked of documents as they are read.
fn on_reading(config: &CurateConfig) -> Result<Vec<Step>, CurateError> {
    let mut steps = Vec::new();
    if let Some(block) = &config.url_block {
        steps.push(Step::with("url_block", block)?);
    }
    if let Some(extract) = &config.extract {
        steps.push(Step::with("extract", extract)?);
    }
    if config.read.is_some() {
        steps.push(Step::new("kind"));
    }
    steps.extend(text_rules(config)?);
    if let Some(pii) = &config.pii {
        steps.push(Step::with("pii", pii)?);
    }
    if let Some(language) = &config.language {
        steps.push(not_code("language", language)?);
    }
    if !shortens(config) && (config.pii.is_some() || config.language.is_some()) {
        steps.push(too_little_left(config)?);
    }
    if tells_domains(config) {
        steps.push(domain(config)?);
    }
    Ok(steps)
}

/// Whether something is taken out of texts after the duplicates.
fn shortens(config: &CurateConfig) -> bool {
    config.common_lines.is_some() || config.ngram_coverage.is_some() || config.c4.is_some()
}

/// Whether more is told apart than prose and code.
fn tells_domains(config: &CurateConfig) -> bool {
    config.read.is_some() || config.mix.is_some() || config.language.is_some()
}

fn domain(config: &CurateConfig) -> Result<Step, CurateError> {
    Step::with("domain", &Domain { main_language: config.main_language.clone() })
}

/// Appends the duplicates of whole documents, up to a stage of this name that has all documents by id.
fn duplicates(
    plan: &mut Plan,
    config: &CurateConfig,
    cut: Option<u64>,
    name: &str,
) -> Result<(), CurateError> {
    let url = config.url_duplicates.is_some();
    let sketches = SketchOf { url, text: true, minhash: config.near_duplicates.clone() };
    plan.stage("sketches", vec![Input::through("documents", vec![sketches.step()?])], None);
    let mut verdicts = Verdicts::of(plan, "sketches");
    if url {
        url::append(&mut verdicts)?;
    }
    exact::append(&mut verdicts)?;
    if let Some(minhash) = &config.near_duplicates {
        minhash.append(&mut verdicts)?;
    }
    if let Some(max_bytes) = cut {
        verdicts.cut(max_bytes)?;
    }
    verdicts.judge("documents", name);
    Ok(())
}

/// Appends the rules for texts and the classifiers.
fn texts(plan: &mut Plan, config: &CurateConfig, last: &mut String) -> Result<(), CurateError> {
    let heuristics = HeuristicsConfig {
        gopher_repetition: config.gopher_repetition.clone(),
        gopher_quality: config.gopher_quality.clone(),
        ngram_coverage: config.ngram_coverage.clone(),
        c4: config.c4.clone(),
        fineweb: config.fineweb.clone(),
    };
    let mut steps = Vec::new();
    if heuristics != HeuristicsConfig::none() {
        steps.push(filter::heuristics(&heuristics)?);
    }
    if let Some(dirty) = &config.dirty_words {
        steps.push(not_code("dirty_words", dirty)?);
    }
    if shortens(config) {
        steps.push(too_little_left(config)?);
    }
    let mut side = None;
    if let Some(outliers) = &config.kl_outliers {
        // The words of the corpus are those of what is left by now.
        filter_stage(plan, "heuristics", last, std::mem::take(&mut steps), None)?;
        steps.push(outliers.append(plan, last)?);
        side = Some("words".to_owned());
    }
    for quality in &config.quality {
        steps.push(Step::with("quality", quality)?);
    }
    filter_stage(plan, "texts", last, steps, side)
}

/// What is asked when all is known.
fn at_last(config: &CurateConfig) -> Result<Vec<Step>, CurateError> {
    let mut steps = Vec::new();
    if let Some(sets) = &config.decontaminate {
        steps.push(Step::with("decontaminate", sets)?);
    }
    if tells_domains(config) && config.quality.iter().any(|quality| DOMAINS.contains(&quality.tag.as_str())) {
        steps.push(domain(config)?);
    }
    Ok(steps)
}

/// Appends a stage of filters, if there are any, and makes it the last.
fn filter_stage(
    plan: &mut Plan,
    name: &str,
    last: &mut String,
    steps: Vec<Step>,
    side: Option<String>,
) -> Result<(), CurateError> {
    if steps.is_empty() {
        return Ok(());
    }
    let input = Input { side, ..Input::through(last, vec![Step::with(FILTERS, &steps)?]) };
    plan.stage(name, vec![input], None);
    name.clone_into(last);
    Ok(())
}

/// The steps of a plan, as reports call them, in order: every one that can drop a document or change its text.
pub(crate) fn steps(plan: &Plan) -> Vec<String> {
    let mut names: Vec<String> = plan.sources.iter().filter(|source| *source == SOURCE).cloned().collect();
    let stages = plan.tasks.iter().filter_map(|task| match task {
        Task::Stage(stage) => Some(stage),
        Task::Repeat(_) => None,
    });
    for stage in stages {
        let maps = stage.inputs.iter().flat_map(|input| &input.maps).filter(|map| map.name == FILTERS);
        for filters in maps.filter_map(|map| match &map.parameters {
            Value::Array(filters) => Some(filters),
            _ => None,
        }) {
            let steps = filters.iter().filter_map(|step| serde_json::from_value::<Step>(step.clone()).ok());
            names.extend(steps.flat_map(|step| names_of(&step)));
        }
        let own = match stage.name.as_str() {
            "url" => "url_duplicates",
            "exact" => "exact_duplicates",
            "near" => "near_duplicates",
            "lines" => "common_lines",
            "semantic" => "semantic",
            "cut" => "max_corpus_bytes",
            MIX => MIX,
            _ => continue,
        };
        names.push(own.to_owned());
    }
    // Several classifiers are one step.
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}
