//! Which documents were dropped for which: clusters of duplicates.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::report::bits;
use crate::CurateError;
use crate::item::Item;
use crate::local::Sorted;

/// The clusters of one kind of duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicates {
    /// Documents for which others were dropped.
    pub clusters: u64,
    /// Documents that were dropped.
    pub dropped: u64,
    /// Clusters by the number of bits of their size, the document that was kept among them: 3 is 4 to 7 documents.
    pub sizes: BTreeMap<u32, u64>,
    /// The largest, largest first.
    pub largest: Vec<Cluster>,
}

/// A document, and those that were dropped for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Id of the document that the step kept. A later step may have dropped it.
    pub survivor: String,
    /// How many were dropped for it.
    pub dropped: u64,
    /// Some of those, with the lowest ids.
    pub examples: Vec<Example>,
}

/// A document that was dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Its id.
    pub id: String,
    /// Its URL or path; empty where it has none.
    pub url: String,
}

/// Clusters that are listed.
const LISTED: usize = 20;

/// Documents of a cluster that are listed.
const EXAMPLES: usize = 8;

/// Between the parts of a record; in no reason, and in no id.
const END: u8 = 0;

/// Collects duplicates by the documents they were dropped for. They are sorted on disk, since there may be more of them than
/// memory holds.
pub(super) struct Collecting(Sorted);

impl Collecting {
    pub(super) fn begin(folder: &Path) -> Result<Collecting, CurateError> {
        Ok(Collecting(Sorted::create(&folder.join("clusters.run"))?))
    }

    pub(super) fn add(&mut self, item: &Item) -> Result<(), CurateError> {
        let Some(dropped) = &item.dropped else { return Ok(()) };
        let Some(survivor) = &dropped.survivor else { return Ok(()) };
        let key = [dropped.reason.as_bytes(), &[END], survivor.as_bytes()].concat();
        let value = [item.document.id.as_bytes(), &[END], item.document.url.as_bytes()].concat();
        self.0.push(&key, &value)
    }

    /// The clusters by the reason of their drops.
    pub(super) fn finish(self) -> Result<BTreeMap<String, Duplicates>, CurateError> {
        let mut found = BTreeMap::new();
        let mut open: Option<(Vec<u8>, Cluster)> = None;
        self.0.each(|key, value| {
            if open.as_ref().is_none_or(|(own, _)| own != key) {
                close(open.take(), &mut found);
                let survivor = text(parts(key).1);
                open = Some((key.to_vec(), Cluster { survivor, ..Cluster::default() }));
            }
            if let Some((_, cluster)) = &mut open {
                cluster.dropped += 1;
                if cluster.examples.len() < EXAMPLES {
                    let (id, url) = parts(value);
                    cluster.examples.push(Example { id: text(id), url: text(url) });
                }
            }
            Ok(())
        })?;
        close(open, &mut found);
        Ok(found)
    }
}

fn close(cluster: Option<(Vec<u8>, Cluster)>, found: &mut BTreeMap<String, Duplicates>) {
    let Some((key, cluster)) = cluster else { return };
    let own = found.entry(text(parts(&key).0)).or_default();
    own.clusters += 1;
    own.dropped += cluster.dropped;
    *own.sizes.entry(bits(cluster.dropped + 1)).or_default() += 1;
    // Survivors come in order, so of equal ones the lower id stays in front.
    let place = own.largest.partition_point(|other| other.dropped >= cluster.dropped);
    own.largest.insert(place, cluster);
    own.largest.truncate(LISTED);
}

fn parts(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|&byte| byte == END).unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 1..).unwrap_or_default())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Document, Dropped};

    #[test]
    fn clusters_are_counted_and_the_largest_listed() {
        let folder = tempfile::tempdir().unwrap();
        let mut collecting = Collecting::begin(folder.path()).unwrap();
        // Cluster n has n + 1 documents; its drops come between those of the others.
        for at in 0..40_u32 {
            for n in 1..=40_u32 {
                if at < n {
                    let document = Document {
                        id: format!("d{at:02}-{n:02}"),
                        url: format!("u\0{n}"),
                        ..Document::default()
                    };
                    let mut item = Item::new(document, 1);
                    let survivor = Some(format!("s{n:02}"));
                    item.drop_for(
                        "near_duplicates",
                        Dropped { survivor, ..Dropped::new("near_duplicate", "") },
                    );
                    collecting.add(&item).unwrap();
                }
            }
        }
        collecting.add(&Item::default()).unwrap();
        let found = collecting.finish().unwrap();
        let near = &found["near_duplicate"];
        assert_eq!((found.len(), near.clusters, near.dropped), (1, 40, 820));
        assert_eq!(near.sizes, [(2, 2), (3, 4), (4, 8), (5, 16), (6, 10)].into());
        assert_eq!(near.largest.len(), LISTED);
        assert_eq!((near.largest[0].survivor.as_str(), near.largest[0].dropped), ("s40", 40));
        assert_eq!(near.largest[0].examples.len(), EXAMPLES);
        assert_eq!(
            near.largest[0].examples[1],
            Example { id: "d01-40".into(), url: "u\0".to_owned() + "40" }
        );
    }
}
