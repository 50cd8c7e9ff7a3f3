//! The maps and reduces of the mix.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::{Cell, Cells, Draw, MIX, MixConfig};
use crate::item::{Item, Value, decode, encode};
use crate::plan::{Emit, Map, Record, Reduce, Registry, Values, parameters};
use crate::{CurateError, Dropped};

pub(super) fn register(registry: &mut Registry) {
    registry.map("mix-cells", |found, _| {
        let config: MixConfig = parameters("mix-cells", found)?;
        Ok(Box::new(ToCells { draws: config.draws(), config }))
    });
    registry.reduce_of::<AddCells>("add-cells");
    registry.map("mix-order", |found, side| Ok(Box::new(Order::new(parameters("mix-order", found)?, side)?)));
    registry.reduce_of::<FindCut>("mix-cut");
    registry.map("mix-draw", |found, side| Ok(Box::new(Drawer::new(parameters("mix-draw", found)?, side)?)));
    registry.reduce_of::<InOrder>("in-order");
}

struct ToCells {
    config: MixConfig,
    draws: Vec<(&'static str, Draw)>,
}

impl Map for ToCells {
    fn map(&self, _: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let Some(item) = Value::document(value)?.filter(|item| item.dropped.is_none()) else {
            return Ok(());
        };
        let own = encode("a cell", &Cell { documents: 1, bytes: item.text_bytes })?;
        Cells::of(&self.config, &self.draws, &item).iter().try_for_each(|cell| emit(&Cells::key(cell)?, &own))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddCells {}

impl Reduce for AddCells {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let mut sum = Cell::default();
        while let Some(value) = values.next()? {
            let cell: Cell = decode("a cell", value)?;
            sum.documents += cell.documents;
            sum.bytes += cell.bytes;
        }
        emit(key, &encode("a cell", &sum)?)
    }
}

/// Lets everything through; the shuffle before it sorts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InOrder {}

impl Reduce for InOrder {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        while let Some(value) = values.next()? {
            emit(key, value)?;
        }
        Ok(())
    }
}

/// What a record of the stage `mix` is: copies of documents come first, draw by draw in the order in which they are trained on;
/// then every document once by id, kept or dropped, without its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ledger {
    /// A copy of a document, of the draw of this number.
    Copy(u8),
    /// What became of a document.
    Entry,
}

/// The first byte of the keys of entries.
const ENTRY: u8 = 0xFF;

impl Ledger {
    /// From a record's key.
    pub(crate) fn of(key: &[u8]) -> Ledger {
        match key.first() {
            Some(&draw) if draw != ENTRY => Ledger::Copy(draw),
            _ => Ledger::Entry,
        }
    }
}

/// A number that depends on the seed, the draw, the document and the copy.
fn hash(config: &MixConfig, draw: u8, id: &[u8], copy: u32) -> u64 {
    let own = [&[draw][..], &copy.to_be_bytes(), id].concat();
    XxHash3_64::oneshot_with_seed(config.seed, &own)
}

/// Where a document stands among those of its cell, as bytes that sort.
fn place(config: &MixConfig, draw: u8, id: &[u8]) -> Vec<u8> {
    [&hash(config, draw, id, u32::MAX).to_be_bytes()[..], id].concat()
}

/// The first place whose document is not taken once more; nothing where all are.
type End = Option<Vec<u8>>;

/// What is taken of a cell.
#[derive(Serialize, Deserialize, Clone, Debug)]
struct Cut {
    draw: u8,
    domain: String,
    topics: u32,
    /// Times that each of its documents is taken.
    times: u32,
    /// Bytes of the documents that are taken once more.
    more: f64,
    /// Share that its topics leave of it.
    weight: f64,
}

/// Sends each document to the cuts of its cells, with its place and its size.
struct Order {
    config: MixConfig,
    draws: Vec<(&'static str, Draw)>,
    /// Cuts as keys.
    cuts: BTreeMap<(u8, String, u32), Vec<u8>>,
}

impl Order {
    fn new(config: MixConfig, side: &[Record]) -> Result<Order, CurateError> {
        let (cells, draws) = (Cells::read(side)?, config.draws());
        let mut cuts = BTreeMap::new();
        for (at, (_, draw)) in draws.iter().enumerate() {
            let rates = cells.rates(at as u8, draw, &config.topics);
            for (key, cell) in cells.0.iter().filter(|((draw, ..), _)| usize::from(*draw) == at) {
                let (draw, domain, topics) = key.clone();
                let times = rates.times(&domain, topics);
                let more = times.fract() * cell.bytes as f64;
                let weight = rates.weight(topics);
                let cut = Cut { draw, domain, topics, times: times as u32, more, weight };
                cuts.insert(key.clone(), encode("a cut", &cut)?);
            }
        }
        Ok(Order { config, draws, cuts })
    }
}

impl Map for Order {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let Some(item) = Value::document(value)?.filter(|item| item.dropped.is_none()) else {
            return Ok(());
        };
        for cell in Cells::of(&self.config, &self.draws, &item) {
            if let Some(cut) = self.cuts.get(&cell) {
                let place = place(&self.config, cell.0, key);
                emit(cut, &[&place[..], &item.text_bytes.to_be_bytes()].concat())?;
            }
        }
        Ok(())
    }
}

/// Finds the first place whose document is not taken once more: the sum of those before is nearest to what is wanted.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FindCut {}

impl Reduce for FindCut {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let cut: Cut = decode("a cut", key)?;
        let mut sum = 0.0;
        while let Some(value) = values.next()? {
            let Some((place, &bytes)) = value.split_last_chunk::<8>() else {
                let problem = "it has no size".to_owned();
                return Err(CurateError::Record { what: "a place", problem });
            };
            let bytes = u64::from_be_bytes(bytes) as f64;
            if sum + bytes / 2.0 > cut.more {
                return emit(key, &encode("a place", &Some(place.to_vec()))?);
            }
            sum += bytes;
        }
        emit(key, &encode("a place", &None::<Vec<u8>>)?)
    }
}

struct Drawer {
    config: MixConfig,
    draws: Vec<(&'static str, Draw)>,
    /// What is taken of each cell, and the first place that is not taken once more.
    cuts: BTreeMap<(u8, String, u32), (Cut, End)>,
}

impl Drawer {
    fn new(config: MixConfig, side: &[Record]) -> Result<Drawer, CurateError> {
        let mut cuts = BTreeMap::new();
        for record in side {
            let cut: Cut = decode("a cut", &record.key)?;
            let end: End = decode("a place", &record.value)?;
            cuts.insert((cut.draw, cut.domain.clone(), cut.topics), (cut, end));
        }
        let draws = config.draws();
        Ok(Drawer { config, draws, cuts })
    }

    /// Why a document is in no draw: what kept it out of the first.
    fn left_out(&self, item: &Item) -> Dropped {
        let document = &item.document;
        let Some((_, draw)) = self.draws.first() else {
            return Dropped::new("not_in_mix", "there is no draw");
        };
        let part = draw.proportions.get(&document.domain).is_some_and(|&part| part > 0.0);
        let lacking = draw
            .require
            .iter()
            .find(|(tag, least)| document.tags.get(*tag).is_none_or(|found| found < least));
        let topics = self.config.topics_of(document);
        let cut = self.cuts.get(&(0, document.domain.clone(), topics)).map(|(cut, _)| cut);
        let detail = match (lacking, cut) {
            (Some((tag, least)), _) => match document.tags.get(tag) {
                Some(found) => format!("tag `{tag}` is {found:.3}, required {least}"),
                None => format!("has no tag `{tag}`, required {least}"),
            },
            (None, _) if !part => format!("domain `{}` has no part", document.domain),
            (None, Some(cut)) if cut.weight < 1.0 => {
                let own = self.config.topics.iter().enumerate().filter(|(at, _)| topics >> at & 1 == 1);
                let names: Vec<_> = own.map(|(_, topic)| format!("`{}`", topic.tag)).collect();
                format!("topic {} is too frequent: {:.3} of it is left", names.join(", "), cut.weight)
            }
            _ => format!("there is more of domain `{}` than its part", document.domain),
        };
        Dropped::new("not_in_mix", detail)
    }
}

impl Map for Drawer {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let entry = [&[ENTRY][..], key].concat();
        let Some(mut item) = Value::document(value)? else { return emit(&entry, value) };
        let mut copies = 0;
        if item.dropped.is_none() {
            for cell in Cells::of(&self.config, &self.draws, &item) {
                let Some((cut, end)) = self.cuts.get(&cell) else { continue };
                let draw = cell.0;
                let once_more = end.as_ref().is_none_or(|end| place(&self.config, draw, key) < *end);
                let count = cut.times + u32::from(once_more && cut.more > 0.0);
                for copy in 0..count {
                    let order = hash(&self.config, draw, key, copy).to_be_bytes();
                    emit(&[&[draw][..], &order, key, &copy.to_be_bytes()].concat(), value)?;
                }
                copies += count;
            }
            if copies == 0 {
                let why = self.left_out(&item);
                item.drop_for(MIX, why);
            }
        }
        if item.dropped.is_none() {
            item.document.text = String::new();
            item.document.meta.clear();
        }
        emit(&entry, &Value::Item(Box::new(item)).encode()?)
    }
}

/// Why a document is in no draw, where nothing is known of the others.
#[cfg(test)]
pub(super) fn why_left_out(config: &MixConfig, item: &Item) -> Dropped {
    let draws = config.draws();
    Drawer { config: config.clone(), draws, cuts: BTreeMap::new() }.left_out(item)
}
