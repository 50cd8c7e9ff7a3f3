//! The mix: how much of each domain a model is trained on.
//!
//! Domains that have more than their part are drawn from, those that have less are repeated, up to a number of epochs. Of what
//! comes once more than the rest, the documents are taken in the order of a hash of their ids until the part is met, so it is
//! met up to one document of each domain and set of topics. Documents come out in the order of another hash: every shard has the
//! proportions of the whole.
//!
//! A first pass adds up what there is (`Cells`), a second one finds where the order is cut (`Cut`), and a third one draws.

mod draw;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::{DOMAINS, MATHS, MULTILINGUAL};
use crate::item::{Item, decode, encode};
use crate::plan::{Input, Plan, Record, Registry, Step};
use crate::rules::{CODE, PROSE};
use crate::{CurateError, Document};

pub(crate) use draw::Ledger;
pub(crate) use report::Counts;
pub use report::{DomainReport, MixReport, TopicReport};

/// The step, as reports call it, that leaves documents out.
pub(crate) const MIX: &str = "mix";

/// What is drawn.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Draw {
    /// Bytes of text to draw; as many as there are when absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "bytes")]
    pub size: Option<u64>,
    /// Parts of the domains `prose`, `maths`, `code` and `multilingual`; they need not add up to 1 or 100. A domain that is not
    /// named has none. The default is that of Llama 3 (section 3.1.2): 50, 25, 17, 8.
    pub proportions: BTreeMap<String, f64>,
    /// A document comes at most so many times, a whole number. Up to 4, repeated text is nearly as good as new (Muennighoff et al. 2023).
    pub max_epochs: f64,
    /// Only documents whose tags have at least these values are drawn.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub require: BTreeMap<String, f64>,
}

impl Default for Draw {
    fn default() -> Self {
        let parts = [(PROSE, 50.0), (MATHS, 25.0), (CODE, 17.0), (MULTILINGUAL, 8.0)];
        Self {
            size: None,
            proportions: parts.map(|(domain, part)| (domain.to_owned(), part)).into(),
            max_epochs: 4.0,
            require: BTreeMap::new(),
        }
    }
}

/// A size; who gives another thing than a number learns the unit.
fn bytes<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    struct Bytes;
    impl Visitor<'_> for Bytes {
        type Value = u64;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("a whole number of bytes, such as 1_000_000_000")
        }

        fn visit_u64<E: Error>(self, found: u64) -> Result<u64, E> {
            Ok(found)
        }

        fn visit_i64<E: Error>(self, found: i64) -> Result<u64, E> {
            u64::try_from(found).map_err(|_| E::invalid_value(Unexpected::Signed(found), &self))
        }
    }
    input.deserialize_u64(Bytes).map(Some)
}

/// A topic of which there is too much, such as entertainment on the web.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// The tag that a classifier of `quality` gave.
    pub tag: String,
    /// Documents whose tag is at least this are of the topic.
    #[serde(default = "sure")]
    pub at_least: f64,
    /// The topic's largest share of the bytes that are drawn from.
    pub max_share: f64,
}

fn sure() -> f64 {
    0.5
}

/// The mix, and a second one to end training with. The fields of the first stand here as in [`Draw`], since serde cannot both take
/// them in from there and refuse unknown keys.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct MixConfig {
    /// See [`Draw::size`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "bytes")]
    pub size: Option<u64>,
    /// See [`Draw::proportions`].
    pub proportions: BTreeMap<String, f64>,
    /// See [`Draw::max_epochs`].
    pub max_epochs: f64,
    /// See [`Draw::require`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub require: BTreeMap<String, f64>,
    /// Topics that are drawn from less.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<Topic>,
    /// Seed of the draw and of the order.
    pub seed: u64,
    /// Bytes of text in a shard, about.
    pub shard_bytes: u64,
    /// What training ends with; written into the folder `annealing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annealing: Option<Draw>,
}

impl Default for MixConfig {
    fn default() -> Self {
        let Draw { size, proportions, max_epochs, require } = Draw::default();
        Self {
            size,
            proportions,
            max_epochs,
            require,
            topics: Vec::new(),
            seed: 1,
            shard_bytes: SHARD_BYTES,
            annealing: None,
        }
    }
}

/// Bytes of text in a shard, about.
pub(crate) const SHARD_BYTES: u64 = 1 << 30;

/// Topics are bits of a number.
const MAX_TOPICS: usize = 32;

impl MixConfig {
    /// The draws by name: the mix itself, and annealing.
    pub fn draws(&self) -> Vec<(&'static str, Draw)> {
        let Self { size, max_epochs, .. } = *self;
        let (proportions, require) = (self.proportions.clone(), self.require.clone());
        let main = Draw { size, proportions, max_epochs, require };
        let annealing = self.annealing.clone().map(|draw| ("annealing", draw));
        [Some((MIX, main)), annealing].into_iter().flatten().collect()
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`CurateError::BadFilter`] with the key, the value found and what is allowed.
    pub fn validate(&self) -> Result<(), CurateError> {
        let bad = |key: String, found: String, allowed: &str| {
            Err(CurateError::BadFilter {
                key: format!("curate.mix.{key}"),
                found,
                allowed: allowed.to_owned(),
            })
        };
        for (name, draw) in self.draws() {
            let key = |key: &str| if name == MIX { key.to_owned() } else { format!("{name}.{key}") };
            if let Some((domain, part)) = draw.proportions.iter().find(|(domain, part)| {
                !DOMAINS.contains(&domain.as_str()) || !part.is_finite() || **part < 0.0
            }) {
                let allowed = format!("a part, 0 or more, of {}", DOMAINS.join(", "));
                return bad(key("proportions"), format!("{domain} = {part}"), &allowed);
            }
            if draw.proportions.values().sum::<f64>() <= 0.0 {
                return bad(key("proportions"), "{}".to_owned(), "parts of which one is more than 0");
            }
            // A document cannot come two times and a half.
            if !(1.0..=1000.0).contains(&draw.max_epochs) || draw.max_epochs.fract() != 0.0 {
                return bad(key("max_epochs"), draw.max_epochs.to_string(), "a whole number from 1 to 1000");
            }
            if draw.size == Some(0) {
                return bad(key("size"), "0".to_owned(), "1 or more bytes, or absent");
            }
        }
        if let Some(topic) = self.topics.iter().find(|topic| !(0.0..=1.0).contains(&topic.max_share)) {
            return bad("topics.max_share".to_owned(), topic.max_share.to_string(), "from 0 to 1");
        }
        if self.topics.len() > MAX_TOPICS {
            return bad("topics".to_owned(), format!("{} topics", self.topics.len()), "at most 32");
        }
        if self.shard_bytes == 0 {
            return bad("shard_bytes".to_owned(), "0".to_owned(), "1 or more");
        }
        Ok(())
    }

    /// Appends the stages `mix-cells`, `mix-cuts` and `mix`, whose records are those of [`Ledger`].
    pub(crate) fn append(&self, plan: &mut Plan, documents: &str) -> Result<(), CurateError> {
        let cells = Input::through(documents, vec![Step::with("mix-cells", self)?]);
        plan.stage("mix-cells", vec![cells], Some(Step::new("add-cells")));
        let mut ordered = Input::through(documents, vec![Step::with("mix-order", self)?]);
        ordered.side = Some("mix-cells".to_owned());
        plan.stage("mix-cuts", vec![ordered], Some(Step::new("mix-cut")));
        let mut drawn = Input::through(documents, vec![Step::with("mix-draw", self)?]);
        drawn.side = Some("mix-cuts".to_owned());
        plan.stage(MIX, vec![drawn], Some(Step::new("in-order")));
        Ok(())
    }

    /// The topics of a document, one bit each.
    fn topics_of(&self, document: &Document) -> u32 {
        let is_of = |topic: &Topic| document.tags.get(&topic.tag).is_some_and(|&tag| tag >= topic.at_least);
        self.topics.iter().enumerate().map(|(at, topic)| u32::from(is_of(topic)) << at).sum()
    }
}

impl Draw {
    /// Whether a document may be drawn.
    fn allows(&self, document: &Document) -> bool {
        let has = |(tag, least): (&String, &f64)| document.tags.get(tag).is_some_and(|found| found >= least);
        self.require.iter().all(has)
    }
}

pub(crate) fn register(registry: &mut Registry) {
    draw::register(registry);
}

/// Number and bytes of documents.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    documents: u64,
    bytes: u64,
}

/// What there is to draw from: by draw, domain and topics.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cells(BTreeMap<(u8, String, u32), Cell>);

impl Cells {
    /// Reads the records of the stage `mix-cells`.
    fn read(side: &[Record]) -> Result<Cells, CurateError> {
        let read = |record: &Record| Ok((decode("a cell", &record.key)?, decode("a cell", &record.value)?));
        Ok(Cells(side.iter().map(read).collect::<Result<_, CurateError>>()?))
    }

    /// The cells that a document adds to.
    fn of(config: &MixConfig, draws: &[(&'static str, Draw)], item: &Item) -> Vec<(u8, String, u32)> {
        let topics = config.topics_of(&item.document);
        let allowed = draws.iter().enumerate().filter(|(_, (_, draw))| draw.allows(&item.document));
        allowed.map(|(at, _)| (at as u8, item.document.domain.clone(), topics)).collect()
    }

    fn key(cell: &(u8, String, u32)) -> Result<Vec<u8>, CurateError> {
        encode("a cell", cell)
    }

    /// How often documents of a draw are taken.
    fn rates(&self, at: u8, draw: &Draw, topics: &[Topic]) -> Rates {
        let own: Vec<(&str, u32, Cell)> = self
            .0
            .iter()
            .filter(|((of, ..), _)| *of == at)
            // What no document is drawn of is no part of all there is.
            .filter(|((_, domain, _), _)| draw.proportions.get(domain).is_some_and(|&part| part > 0.0))
            .map(|((_, domain, mask), cell)| (domain.as_str(), *mask, *cell))
            .collect();
        let topic_rates = topic_rates(&own, topics);
        let mut rates = Rates { topics: topic_rates, domains: BTreeMap::new() };
        let mut weighted: BTreeMap<&str, f64> = BTreeMap::new();
        for (domain, mask, cell) in &own {
            *weighted.entry(domain).or_default() += cell.bytes as f64 * rates.weight(*mask);
        }
        let size = draw.size.map_or(weighted.values().sum(), |size| size as f64);
        let parts: f64 = draw.proportions.values().sum();
        for (domain, part) in &draw.proportions {
            let target = size * part / parts;
            let available = weighted.get(domain.as_str()).copied().unwrap_or(0.0);
            let wanted = if available > 0.0 { target / available } else { 0.0 };
            let rate = wanted.min(draw.max_epochs);
            rates.domains.insert(domain.clone(), DomainRate { target, rate });
        }
        rates
    }
}

/// Rounds after which topics are near enough to their shares.
const TOPIC_ROUNDS: usize = 1000;

/// A share of documents that stands for none.
const NOTHING: f64 = 1e-9;

/// Of each topic, the share that is left of it, so that none has more than its share of what is left of all. Where one topic
/// is brought down, the others' shares grow: this goes on until all of them hold.
fn topic_rates(cells: &[(&str, u32, Cell)], topics: &[Topic]) -> Vec<f64> {
    let mut rates = Rates { topics: vec![1.0; topics.len()], domains: BTreeMap::new() };
    let sum = |rates: &Rates, wanted: &dyn Fn(u32) -> bool| -> f64 {
        let of = cells.iter().filter(|(_, mask, _)| wanted(*mask));
        of.map(|(_, mask, cell)| cell.bytes as f64 * rates.weight(*mask)).sum()
    };
    for _ in 0..TOPIC_ROUNDS {
        let mut settled = true;
        for (at, topic) in topics.iter().enumerate() {
            let all = sum(&rates, &|_| true);
            let found = sum(&rates, &|mask| mask >> at & 1 == 1);
            let others = all - found;
            // A topic that is all there is stays all there is.
            if found > topic.max_share * all * (1.0 + 1e-9) && others > 0.0 {
                rates.topics[at] *= topic.max_share * others / (found * (1.0 - topic.max_share));
                settled = false;
            }
        }
        if settled {
            return rates.topics;
        }
        if cells.iter().all(|(_, mask, _)| rates.weight(*mask) < NOTHING) {
            break;
        }
    }
    // Topics that are all there is, with shares that do not add up to 1, cannot be held: bringing them down together would leave
    // nothing. What is left keeps the proportions that it has come to.
    let most = cells.iter().map(|(_, mask, _)| rates.weight(*mask)).fold(0.0, f64::max);
    rates.topics.iter().map(|rate| if most > 0.0 { (rate / most).min(1.0) } else { 1.0 }).collect()
}

/// How often documents are taken.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rates {
    /// Of each topic, the share that is left of it.
    topics: Vec<f64>,
    domains: BTreeMap<String, DomainRate>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct DomainRate {
    /// Bytes wanted.
    target: f64,
    /// Times that a document of no topic is taken.
    rate: f64,
}

impl Rates {
    /// What is left of documents of these topics.
    fn weight(&self, mask: u32) -> f64 {
        let of = self.topics.iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1);
        of.map(|(_, &rate)| rate).fold(1.0, f64::min)
    }

    /// Times that a document is taken.
    fn times(&self, domain: &str, mask: u32) -> f64 {
        self.domains.get(domain).map_or(0.0, |domain| domain.rate * self.weight(mask))
    }
}
