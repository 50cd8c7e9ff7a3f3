//! Tests of dedup, and what they share.

mod dolma;
mod groups;
mod measure;
mod minhash;

use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;
use crate::local::Local;
use crate::plan::{Broken, Input, Plan, Source};
use crate::{CurateError, Document, Item, registry};

/// Documents in so many splits.
pub(super) struct Documents<'a>(pub(super) &'a [Document], pub(super) usize);

impl Source for Documents<'_> {
    fn fingerprint(&self) -> String {
        blake3::hash(format!("{:?}", self.0).as_bytes()).to_hex().to_string()
    }

    fn splits(&self) -> usize {
        self.1
    }

    fn bytes(&self, _: usize) -> u64 {
        self.0.len() as u64
    }

    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        _: &mut Broken,
        _: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        for document in self.0.iter().skip(split).step_by(self.1) {
            let item = Item::new(document.clone(), document.text.len() as u64);
            emit(document.id.as_bytes(), &Value::Item(Box::new(item)).encode()?)?;
        }
        Ok(())
    }
}

pub(super) fn document(id: &str, date: &str, text: &str) -> Document {
    Document { id: id.to_owned(), date: date.to_owned(), text: text.to_owned(), ..Document::default() }
}

/// Items by id after a plan whose first tasks are given as `more`, beginning from the source `documents`.
pub(super) fn run_with(
    documents: &[Document],
    plan: &Plan,
    registry: &Registry,
    (partitions, threads): (u32, usize),
) -> BTreeMap<String, Item> {
    let work = TempDir::new().unwrap();
    let local = Local { partitions, threads, ..Local::new(work.path()) };
    let source = Documents(documents, partitions as usize);
    let sources: BTreeMap<&str, &dyn Source> = [("documents", &source as &dyn Source)].into();
    let done = local.run(plan, registry, &sources, &()).unwrap();
    let mut items = BTreeMap::new();
    done.in_order(|key, value| {
        items.insert(String::from_utf8(key.to_vec()).unwrap(), Value::item(value)?);
        Ok(())
    })
    .unwrap();
    assert_eq!(items.len(), documents.len());
    items
}

/// Runs a plan on 1, 2 and 7 partitions and 1 and 2 threads, which must agree.
pub(super) fn run(documents: &[Document], plan: &Plan, registry: &Registry) -> BTreeMap<String, Item> {
    let first = run_with(documents, plan, registry, (1, 1));
    for layout in [(2, 1), (7, 1), (1, 2), (7, 2)] {
        assert!(run_with(documents, plan, registry, layout) == first, "{layout:?} gives another result");
    }
    first
}

pub(super) fn base_plan() -> Plan {
    Plan { sources: vec!["documents".to_owned()], tasks: Vec::new() }
}

/// A plan of URL, exact and near duplicates.
pub(super) fn dedup_plan(minhash: &MinHash) -> Plan {
    let mut plan = base_plan();
    let wanted = SketchOf { url: true, text: true, minhash: Some(minhash.clone()) };
    plan.stage("sketches", vec![Input::through("documents", vec![wanted.step().unwrap()])], None);
    let mut verdicts = Verdicts::of(&mut plan, "sketches");
    url::append(&mut verdicts).unwrap();
    exact::append(&mut verdicts).unwrap();
    minhash.append(&mut verdicts).unwrap();
    verdicts.judge("documents", "judged");
    plan
}

/// Id to reason and survivor of what was dropped.
pub(super) fn dropped(items: &BTreeMap<String, Item>) -> BTreeMap<String, (String, Option<String>)> {
    let of = |item: &Item| item.dropped.clone().map(|dropped| (dropped.reason, dropped.survivor));
    items.iter().filter_map(|(id, item)| Some((id.clone(), of(item)?))).collect()
}

/// Numbers from a seed.
pub(super) struct Draw(pub(super) u64);

impl Draw {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Words, and the same with each changed with a chance of `changes` in a thousand.
    pub(super) fn pair(&mut self, words: usize, changes: u64) -> (String, String) {
        let first: Vec<u64> = (0..words).map(|_| self.below(100_000)).collect();
        let second: Vec<u64> = first
            .iter()
            .map(|&word| if self.below(1000) < changes { self.below(100_000) } else { word })
            .collect();
        let text = |words: Vec<u64>| words.iter().map(|word| format!("w{word} ")).collect();
        (text(first), text(second))
    }
}
