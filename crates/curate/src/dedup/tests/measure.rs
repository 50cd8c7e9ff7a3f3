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

/// Places of two documents.
type Pair = (usize, usize);

/// Real documents of 300 bytes to 32 KB, and of every third one a copy with up to 15 % of its words changed: which is whose.
fn real_documents() -> Option<(Vec<Document>, Vec<Pair>)> {
    let inventory = match inventory(&CurateConfig::default(), &()) {
        Ok(inventory) => inventory,
        Err(error) => {
            println!("skipped: {error}");
            return None;
        }
    };
    let mut draw = Draw(11);
    let (mut documents, mut planted) = (Vec::new(), Vec::new());
    let sized = inventory.files.iter().filter(|file| (300..32_000).contains(&file.bytes));
    for file in sized {
        if documents.len() >= DOCUMENTS {
            break;
        }
        let Ok(text) = std::fs::read_to_string(&file.path) else { continue };
        documents.push(document(&file.id(), "", &text));
        if draw.below(3) == 0 {
            let changes = 1 + draw.below(150);
            let word = |word: &str| {
                if draw.below(1000) < changes {
                    format!("planted{}", draw.below(1 << 30))
                } else {
                    word.to_owned()
                }
            };
            let changed: Vec<String> = text.split(' ').map(word).collect();
            planted.push((documents.len() - 1, documents.len()));
            documents.push(document(&format!("{}-planted", file.id()), "", &changed.join(" ")));
        }
    }
    Some((documents, planted))
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

/// Pairs of about the same resemblance.
#[derive(Clone, Default)]
struct Bin {
    pairs: f64,
    hits: f64,
    /// What the curve says of these very pairs, and the variance of that.
    expected: f64,
    variance: f64,
}

impl Bin {
    /// Wilson's 95 % interval of the share of hits.
    fn interval(&self) -> (f64, f64) {
        let (n, share, z) = (self.pairs, self.hits / self.pairs, 1.96_f64);
        let middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z / (1.0 + z * z / n) * f64::sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n));
        ((middle - half).max(0.0), (middle + half).min(1.0))
    }
}

const BINS: usize = 20;

/// Prints how many pairs of each resemblance share a band.
fn table(pairs: &[(f64, bool)], config: &MinHash) -> Vec<Bin> {
    let mut bins = vec![Bin::default(); BINS];
    for &(s, is_hit) in pairs {
        let (bin, chance) = (&mut bins[((s * BINS as f64) as usize).min(BINS - 1)], config.probability(s));
        bin.pairs += 1.0;
        bin.hits += f64::from(u8::from(is_hit));
        bin.expected += chance;
        bin.variance += chance * (1.0 - chance);
    }
    println!("| resemblance | pairs | share a band | 95 % | curve | deviations |\n|---|---|---|---|---|---|");
    for (at, bin) in bins.iter().enumerate().filter(|(_, bin)| bin.pairs > 0.0) {
        let (low, high) = bin.interval();
        println!(
            "| {:.2} to {:.2} | {} | {:.4} | {low:.4} to {high:.4} | {:.4} | {:+.1} |",
            at as f64 / BINS as f64,
            (at + 1) as f64 / BINS as f64,
            bin.pairs,
            bin.hits / bin.pairs,
            bin.expected / bin.pairs,
            (bin.hits - bin.expected) / f64::sqrt(bin.variance).max(1.0),
        );
    }
    bins
}

#[test]
#[ignore = "minutes"]
fn measure_recall_and_precision() {
    let Some((documents, planted)) = real_documents() else { return };
    let config = MinHash::default();
    let sets: Vec<_> = documents.iter().map(|document| shingle_set(&document.text, config.ngram)).collect();
    let resemblance = |&(a, b): &(usize, usize)| {
        let both = sets[a].intersection(&sets[b]).count();
        both as f64 / (sets[a].len() + sets[b].len() - both).max(1) as f64
    };
    let signer = Signer::new(&config);
    let bands: Vec<_> = documents.iter().map(|document| signer.bands(&document.text)).collect();
    let judged = |pair: &(usize, usize)| {
        let is_hit = bands[pair.0].iter().zip(&bands[pair.1]).any(|(left, right)| left == right);
        (resemblance(pair), is_hit)
    };
    println!("{} documents; {} planted pairs:", documents.len(), planted.len());
    assert!(documents.len() >= 20_000, "too few crates are there");
    let planted: Vec<_> = planted.iter().map(judged).collect();
    for (at, bin) in table(&planted, &config).iter().enumerate() {
        // Planted pairs have nothing to do with one another, so their hits are independent.
        let deviation = (bin.hits - bin.expected) / f64::sqrt(bin.variance).max(1.0);
        assert!(deviation.abs() < 4.0, "bin {at}: {deviation} deviations");
    }
    // 60 × 3 misses a pair of resemblance 0.6 one time in a million: as good as all pairs.
    let all = pairs_of(&documents, &MinHash { bands: 60, rows: 3, seed: 77, ..config.clone() });
    // Here many pairs are of one family, such as a licence: they share their shingles, so they hit or miss together.
    println!("all {} pairs that 60 bands of 3 rows find:", all.len());
    let all: Vec<_> = all.iter().map(judged).collect();
    table(&all, &config);
    let found = pairs_of(&documents, &config);
    for limit in [0.5, 0.6, 0.7, 0.8, 0.9] {
        let real: Vec<_> = all.iter().filter(|(s, _)| *s >= limit).collect();
        let hits = real.iter().filter(|(_, is_hit)| *is_hit).count() as f64;
        let right = found.iter().filter(|pair| resemblance(pair) >= limit).count() as f64;
        let (recall, precision) = (hits / real.len() as f64, right / found.len() as f64);
        println!("resemblance of {limit} or more: recall {recall:.4}, precision {precision:.4}");
        assert!(limit < 0.8 || recall > 0.9);
        assert!(limit > 0.5 || precision > 0.9);
    }
}

#[test]
#[ignore = "a minute"]
fn measure_speed() {
    let Some((documents, _)) = real_documents() else { return };
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
