//! What the mix came to: `mix.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Cell, Cells, Draw, MIX, MixConfig};
use crate::item::Item;

/// What was wanted, what there was, and what was written.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct MixReport {
    /// Bytes of text wanted.
    pub target_bytes: u64,
    /// Documents written, each copy counted.
    pub documents: u64,
    /// Bytes of text written.
    pub bytes: u64,
    /// By domain.
    pub domains: BTreeMap<String, DomainReport>,
    /// Topics that are drawn from less, in the order of the recipe.
    pub topics: Vec<TopicReport>,
    /// What fell short or is too much, in words.
    pub short: Vec<String>,
}

/// One domain of a mix.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct DomainReport {
    /// Its part of the target.
    pub target_share: f64,
    /// Bytes wanted.
    pub target_bytes: u64,
    /// Documents there are.
    pub available_documents: u64,
    /// Their bytes.
    pub available_bytes: u64,
    /// Times that a document comes on average, where its topic is not drawn from less.
    pub epochs: f64,
    /// Documents written, each copy counted.
    pub documents: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Its part of what is written.
    pub share: f64,
}

/// One topic.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct TopicReport {
    /// The tag.
    pub tag: String,
    /// Its share of the bytes there are.
    pub available_share: f64,
    /// The largest share allowed.
    pub max_share: f64,
    /// What is left of its documents.
    pub kept: f64,
    /// Its share of the bytes that are written.
    #[serde(default)]
    pub share: f64,
}

/// A domain falls short where it lacks more than this share of its target: less is the grain of single documents.
const SHORT: f64 = 0.02;

/// Adds up what there is and what is written.
pub(crate) struct Counts {
    config: MixConfig,
    draws: Vec<(&'static str, Draw)>,
    cells: Cells,
    written: BTreeMap<(u8, String), Cell>,
    /// Bytes written by draw and topic.
    topics: BTreeMap<(u8, usize), u64>,
}

impl Counts {
    pub(crate) fn new(config: &MixConfig) -> Counts {
        let (config, draws) = (config.clone(), config.draws());
        Counts { config, draws, cells: Cells::default(), written: BTreeMap::new(), topics: BTreeMap::new() }
    }

    /// A copy that is written.
    pub(crate) fn copy(&mut self, draw: u8, item: &Item) {
        add(self.written.entry((draw, item.document.domain.clone())).or_default(), item);
        let mask = self.config.topics_of(&item.document);
        for at in (0..self.config.topics.len()).filter(|at| mask >> at & 1 == 1) {
            *self.topics.entry((draw, at)).or_default() += item.text_bytes;
        }
    }

    /// What became of a document.
    pub(crate) fn entry(&mut self, item: &Item) {
        // What the mix leaves out was there to be drawn.
        if item.dropped.is_none() || item.step == MIX {
            for cell in Cells::of(&self.config, &self.draws, item) {
                add(self.cells.0.entry(cell).or_default(), item);
            }
        }
    }

    /// The reports by the names of the draws.
    pub(crate) fn reports(&self) -> BTreeMap<String, MixReport> {
        let report =
            |(at, (name, draw)): (usize, &(&str, Draw))| ((*name).to_owned(), self.report(at as u8, draw));
        self.draws.iter().enumerate().map(report).collect()
    }

    fn report(&self, at: u8, draw: &Draw) -> MixReport {
        let rates = self.cells.rates(at, draw, &self.config.topics);
        let own = || self.cells.0.iter().filter(|((draw, ..), _)| *draw == at);
        let written = || self.written.iter().filter(|((draw, _), _)| *draw == at).map(|(_, cell)| cell);
        let parts: f64 = draw.proportions.values().sum();
        let mut report = MixReport {
            target_bytes: rates.domains.values().map(|domain| domain.target).sum::<f64>() as u64,
            documents: written().map(|cell| cell.documents).sum(),
            bytes: written().map(|cell| cell.bytes).sum(),
            ..MixReport::default()
        };
        for (domain, part) in &draw.proportions {
            let available = own().filter(|((_, of, _), _)| of == domain).map(|(_, cell)| cell);
            let available: (u64, u64) =
                available.fold((0, 0), |sum, cell| (sum.0 + cell.documents, sum.1 + cell.bytes));
            let found = self.written.get(&(at, domain.clone())).copied().unwrap_or_default();
            let rate = rates.domains.get(domain).copied().unwrap_or_default();
            if (found.bytes as f64) < rate.target * (1.0 - SHORT) {
                let lacking = rate.target as u64 - found.bytes;
                let why = if rate.rate >= draw.max_epochs { "even repeated as often as allowed" } else { "" };
                let why = if available.0 == 0 { "there is none of it" } else { why };
                let text = format!("{domain}: {lacking} of {} bytes are missing", rate.target as u64);
                report.short.push(if why.is_empty() { text } else { format!("{text}, {why}") });
            }
            if found.bytes as f64 > rate.target * (1.0 + SHORT) {
                let excess = found.bytes - rate.target as u64;
                report
                    .short
                    .push(format!("{domain}: {excess} bytes more than the {} wanted", rate.target as u64));
            }
            let own = DomainReport {
                target_share: part / parts,
                target_bytes: rate.target as u64,
                available_documents: available.0,
                available_bytes: available.1,
                epochs: rate.rate,
                documents: found.documents,
                bytes: found.bytes,
                share: found.bytes as f64 / report.bytes.max(1) as f64,
            };
            report.domains.insert(domain.clone(), own);
        }
        let all: u64 = own().map(|(_, cell)| cell.bytes).sum();
        for (place, topic) in self.config.topics.iter().enumerate() {
            let of = own().filter(|((_, _, mask), _)| mask >> place & 1 == 1);
            let bytes: u64 = of.map(|(_, cell)| cell.bytes).sum();
            let share =
                self.topics.get(&(at, place)).map_or(0.0, |&bytes| bytes as f64 / report.bytes.max(1) as f64);
            if share > topic.max_share + SHORT {
                report.short.push(format!(
                    "topic {}: {:.1} % of what is written, more than {:.1} %",
                    topic.tag,
                    100.0 * share,
                    100.0 * topic.max_share
                ));
            }
            report.topics.push(TopicReport {
                tag: topic.tag.clone(),
                available_share: bytes as f64 / all.max(1) as f64,
                max_share: topic.max_share,
                kept: rates.topics[place],
                share,
            });
        }
        report
    }
}

fn add(cell: &mut Cell, item: &Item) {
    cell.documents += 1;
    cell.bytes += item.text_bytes;
}
