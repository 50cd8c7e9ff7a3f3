//! The maps and reduces of the mix.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::{Cell, Cells, Draw, MIX, MixConfig, Rates};
use crate::item::{Item, Value, decode, encode};
use crate::plan::{Emit, Map, Record, Reduce, Registry, Values, parameters};
use crate::{CurateError, Dropped};

pub(super) fn register(registry: &mut Registry) {
    registry.map("mix-cells", |found, _| {
        let config: MixConfig = parameters("mix-cells", found)?;
        Ok(Box::new(ToCells { draws: config.draws(), config }))
    });
    registry.reduce_of::<AddCells>("add-cells");
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

struct Drawer {
    config: MixConfig,
    draws: Vec<(&'static str, Draw)>,
    rates: Vec<Rates>,
}

impl Drawer {
    fn new(config: MixConfig, side: &[Record]) -> Result<Drawer, CurateError> {
        let (cells, draws) = (Cells::read(side)?, config.draws());
        let rate = |(at, (_, draw)): (usize, &(&str, Draw))| cells.rates(at as u8, draw, &config.topics);
        let rates = draws.iter().enumerate().map(rate).collect();
        Ok(Drawer { config, draws, rates })
    }

    /// A number that depends on the seed, the draw, the document and the copy.
    fn hash(&self, draw: u8, id: &[u8], copy: u32) -> u64 {
        let own = [&[draw][..], &copy.to_be_bytes(), id].concat();
        XxHash3_64::oneshot_with_seed(self.config.seed, &own)
    }

    /// Whether the fraction of a copy is one.
    fn is_taken(&self, draw: u8, id: &[u8], fraction: f64) -> bool {
        // 53 bits are what a float holds exactly.
        let place = (self.hash(draw, id, u32::MAX) >> 11) as f64 / (1_u64 << 53) as f64;
        place < fraction
    }
}

impl Map for Drawer {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let entry = [&[ENTRY][..], key].concat();
        let Some(mut item) = Value::document(value)? else { return emit(&entry, value) };
        let mut copies = 0;
        if item.dropped.is_none() {
            let mask = self.config.topics_of(&item.document);
            for (at, ((_, draw), rates)) in self.draws.iter().zip(&self.rates).enumerate() {
                if !draw.allows(&item.document) {
                    continue;
                }
                let (draw, times) = (at as u8, rates.times(&item.document.domain, mask));
                let count = times as u32 + u32::from(self.is_taken(draw, key, times.fract()));
                for copy in 0..count {
                    let order = self.hash(draw, key, copy).to_be_bytes();
                    emit(&[&[draw][..], &order, key, &copy.to_be_bytes()].concat(), value)?;
                }
                copies += count;
            }
            if copies == 0 {
                item.drop_for(MIX, left_out(&item, &self.rates));
            }
        }
        if item.dropped.is_none() {
            item.document.text = String::new();
        }
        emit(&entry, &Value::Item(Box::new(item)).encode()?)
    }
}

/// Why a document is in no draw.
fn left_out(item: &Item, rates: &[Rates]) -> Dropped {
    let domain = &item.document.domain;
    let detail = match rates.first().and_then(|rates| rates.domains.get(domain)) {
        Some(found) if found.rate > 0.0 => {
            format!("{:.3} of the documents of domain `{domain}` were drawn", found.rate.min(1.0))
        }
        _ => format!("domain `{domain}` has no part"),
    };
    Dropped::new("not_in_mix", detail)
}
