//! Measurements on the sources of the crates that cargo has fetched, with planted near-duplicates: slow, so asked for by name.
//!
//! `cargo test --release -p llamero-curate measure -- --ignored --nocapture --test-threads 1`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::super::minhash::{Signer, shingle_set};
use super::*;
use crate::{CurateConfig, inventory};

/// Documents wanted, planted ones included.
const DOCUMENTS: usize = 24_000;

/// Real documents of 500 bytes to 16 KB, and of every fourth one a copy with some of its lines' words changed.
fn real_documents() -> Option<Vec<Document>> {
    let inventory = match inventory(&CurateConfig::default(), &()) {
        Ok(inventory) => inventory,
        Err(error) => {
            println!("skipped: {error}");
            return None;
        }
    };
    let mut draw = Draw(11);
    let mut documents = Vec::new();
    let sized = inventory.files.iter().filter(|file| (500..16_000).contains(&file.bytes));
    for file in sized {
        if documents.len() >= DOCUMENTS {
            break;
        }
        let Ok(text) = std::fs::read_to_string(&file.path) else { continue };
        documents.push(document(&file.id(), "", &text));
        if draw.below(4) == 0 {
            let changes = 1 + draw.below(80);
            let word = |word: &str| {
                if draw.below(1000) < changes {
                    format!("planted{}", draw.below(1 << 30))
                } else {
                    word.to_owned()
                }
            };
            let changed: Vec<String> = text.split(' ').map(word).collect();
            documents.push(document(&format!("{}-planted", file.id()), "", &changed.join(" ")));
        }
    }
    Some(documents)
}

/// Pairs of documents that share a band.
fn pairs_of(documents: &[Document], config: &MinHash) -> BTreeSet<(usize, usize)> {
    let signer = Signer::new(config);
    let mut buckets: BTreeMap<(usize, u64), Vec<usize>> = BTreeMap::new();
    for (at, document) in documents.iter().enumerate() {
        for (band, hash) in signer.bands(&document.text).into_iter().enumerate() {
            buckets.entry((band, hash)).or_default().push(at);
        }
    }
    let mut pairs = BTreeSet::new();
    for bucket in buckets.values() {
        // Licences come in thousands; a sample of their pairs says as much.
        let bucket = &bucket[..bucket.len().min(30)];
        for (at, &left) in bucket.iter().enumerate() {
            pairs.extend(bucket[at + 1..].iter().map(|&right| (left, right)));
        }
    }
    pairs
}

#[test]
#[ignore = "minutes"]
fn measure_recall_and_precision() {
    let Some(documents) = real_documents() else { return };
    let config = MinHash::default();
    let sets: Vec<_> = documents.iter().map(|document| shingle_set(&document.text, config.ngram)).collect();
    // 60 × 3 misses a pair of resemblance 0.6 one time in a million: as good as all pairs.
    let all = pairs_of(&documents, &MinHash { bands: 60, rows: 3, seed: 77, ..config.clone() });
    let found = pairs_of(&documents, &config);
    let resemblance = |&(a, b): &(usize, usize)| {
        let both = sets[a].intersection(&sets[b]).count();
        both as f64 / (sets[a].len() + sets[b].len() - both).max(1) as f64
    };
    let mut bins = vec![(0_u32, 0_u32, 0.0); 20];
    for pair in &all {
        let s = resemblance(pair);
        let bin = &mut bins[((s * 20.0) as usize).min(19)];
        bin.0 += 1;
        bin.1 += u32::from(found.contains(pair));
        bin.2 += config.probability(s);
    }
    println!(
        "{} documents, {} pairs compared exactly\nresemblance | pairs | share a band | curve",
        documents.len(),
        all.len()
    );
    for (at, (pairs, hits, expected)) in bins.iter().enumerate().filter(|(_, bin)| bin.0 > 0) {
        println!(
            "{:.2}-{:.2} | {pairs} | {:.4} | {:.4}",
            at as f64 / 20.0,
            (at + 1) as f64 / 20.0,
            f64::from(*hits) / f64::from(*pairs),
            expected / f64::from(*pairs)
        );
    }
    let above = |limit: f64| {
        let real: Vec<_> = all.iter().filter(|pair| resemblance(pair) >= limit).collect();
        let hits = real.iter().filter(|pair| found.contains(pair)).count();
        hits as f64 / real.len() as f64
    };
    let right = found.iter().filter(|pair| resemblance(pair) >= 0.6).count() as f64 / found.len() as f64;
    println!(
        "recall at >= 0.8: {:.4}, at >= 0.9: {:.4}; of pairs found, {right:.4} are >= 0.6",
        above(0.8),
        above(0.9)
    );
    assert!(above(0.8) > 0.9 && right > 0.9);
}

#[test]
#[ignore = "a minute"]
fn measure_speed() {
    let Some(documents) = real_documents() else { return };
    let bytes: usize = documents.iter().map(|document| document.text.len()).sum();
    let mean = bytes as f64 / documents.len() as f64;
    let report = |what: &str, seconds: f64| {
        let (rate, megabytes) = (documents.len() as f64 / seconds, bytes as f64 / seconds / 1e6);
        println!("{what}: {rate:.0} documents/s of {mean:.0} bytes, {megabytes:.0} MB/s");
    };
    let signer = Signer::new(&MinHash::default());
    let start = Instant::now();
    let bands: usize = documents.iter().map(|document| signer.bands(&document.text).len()).sum();
    report("bands of signatures", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let hashes: usize = documents.iter().map(|document| exact::fingerprint(&document.text).len()).sum();
    report("exact hashes", start.elapsed().as_secs_f64());
    assert!(bands > 0 && hashes > 0);
    let start = Instant::now();
    let items = run_with(&documents, &dedup_plan(&MinHash::default()), &registry(), (4, 1));
    report(
        "URL, exact and near duplicates, one thread, from memory to judged documents",
        start.elapsed().as_secs_f64(),
    );
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    dropped(&items).into_values().for_each(|(reason, _)| *reasons.entry(reason).or_default() += 1);
    println!("{reasons:?}");
}
