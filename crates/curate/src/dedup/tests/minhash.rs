//! MinHash against exact resemblance, and against its own theory.

use super::super::minhash::{Signer, shingle_set};
use super::*;

/// Exact resemblance of two texts.
fn resemblance(left: &str, right: &str, ngram: u32) -> f64 {
    let (left, right) = (shingle_set(left, ngram), shingle_set(right, ngram));
    let both = left.intersection(&right).count();
    both as f64 / (left.len() + right.len() - both) as f64
}

#[test]
fn pairs_share_a_band_as_often_as_the_curve_says() {
    for config in [MinHash::default(), MinHash { bands: 20, rows: 5, ngram: 3, seed: 9 }] {
        let signer = Signer::new(&config);
        let mut draw = Draw(17);
        let (mut expected, mut variance, mut found) = (0.0, 0.0, 0.0);
        let (mut middling, mut bias) = (0, 0.0);
        for at in 0..1500 {
            let (left, right) = draw.pair(150, 4 + at % 80);
            let s = resemblance(&left, &right, config.ngram);
            let chance = config.probability(s);
            expected += chance;
            variance += chance * (1.0 - chance);
            middling += usize::from((0.1..0.9).contains(&chance));
            let (a, b) = (signer.bands(&left), signer.bands(&right));
            found += f64::from(u8::from(a.iter().zip(&b).any(|(a, b)| a == b)));
            let (a, b) = (signer.signature(&left), signer.signature(&right));
            bias += a.iter().zip(&b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64 - s;
        }
        assert!(middling > 150, "{middling} pairs where the curve is steep");
        // Fixed seeds: this is one number, four standard deviations of a fair draw away at most.
        let deviation = (found - expected) / f64::sqrt(variance);
        assert!(deviation.abs() < 4.0, "{found} pairs, {expected} expected: {deviation} deviations");
        assert!((bias / 1500.0).abs() < 0.01, "bias {}", bias / 1500.0);
    }
}

#[test]
fn the_curve_is_the_one_that_is_promised() {
    let default = MinHash::default();
    assert!(
        (default.probability(0.8) - 0.9236).abs() < 1e-3 && (default.probability(0.5) - 0.0533).abs() < 1e-3
    );
    assert_eq!((default.probability(0.0), default.probability(1.0)), (0.0, 1.0));
}

#[test]
fn words_are_what_readers_see() {
    let signer = Signer::new(&MinHash::default());
    let text = "The llama's herd grazed on the high plain: 12 animals, all of them brown. À bientôt, Ψυχή!";
    let same = "the LLAMA s herd   grazed on\nthe high plain 12 animals all of them brown à bientôt ψυχή";
    assert_eq!(signer.bands(text), signer.bands(same));
    assert_eq!(signer.bands(text).len(), 14);
    assert_ne!(signer.bands(text), signer.bands(&text.replace("12", "13")));
    assert_eq!(signer.bands(" .,-\n"), [] as [u64; 0]);
    assert_eq!(signer.bands("two words"), signer.bands("Two words!"));
    // No spaces: characters are words, so a long text has many shingles and a small change changes few.
    let chinese = "草原上有一群羊驼它们在高原上吃草天气很好阳光明媚羊驼的毛是棕色的很柔软";
    assert!(resemblance(chinese, &chinese.replace('好', "坏"), 5) > 0.5);
    assert!(shingle_set(chinese, 5).len() > 20);
}

#[test]
fn planted_near_duplicates_are_found() {
    let config = MinHash::default();
    let mut draw = Draw(23);
    let mut documents = Vec::new();
    for at in 0..150_u64 {
        let (first, second) = draw.pair(200, (at % 10) * 4);
        let date = |extra: u64| format!("2024-01-{:02}", 1 + (at + extra) % 28);
        documents.push(document(&format!("{at:03}-a"), &date(0), &first));
        documents.push(document(&format!("{at:03}-b"), &date(at % 3), &second));
        if at % 5 == 0 {
            // Nearly the second, so only the second joins it to the first.
            documents.push(document(
                &format!("{at:03}-c"),
                "",
                &format!("{second} {}", "one more word ".repeat(3)),
            ));
        }
    }
    let items = run(&documents, &dedup_plan(&config), &registry());
    let dropped = dropped(&items);
    let signer = Signer::new(&config);
    let by_id: BTreeMap<_, _> = documents.iter().map(|document| (document.id.as_str(), document)).collect();
    for (id, (_, survivor)) in &dropped {
        // Groups are planted far from one another, and the survivor is the newest, then the lowest id.
        let survivor = survivor.as_ref().unwrap();
        assert_eq!(id[..3], survivor[..3]);
        assert!(!dropped.contains_key(survivor));
        let (gone, kept) = (by_id[id.as_str()], by_id[survivor.as_str()]);
        assert!((&kept.date, std::cmp::Reverse(&kept.id)) > (&gone.date, std::cmp::Reverse(&gone.id)));
    }
    // Two kept documents share no band: nothing that the bands found is left over.
    let mut buckets = BTreeMap::new();
    for document in documents.iter().filter(|document| !dropped.contains_key(&document.id)) {
        for (band, hash) in signer.bands(&document.text).into_iter().enumerate() {
            assert_eq!(buckets.insert((band, hash), &document.id), None);
        }
    }
    assert!(dropped.len() > 100, "{}", dropped.len());
}

#[test]
fn values_out_of_range_are_refused() {
    for config in [
        MinHash { bands: 0, ..MinHash::default() },
        MinHash { rows: 1000, ..MinHash::default() },
        MinHash { ngram: 0, ..MinHash::default() },
    ] {
        assert!(config.validate().unwrap_err().to_string().contains("near_duplicates."));
        let step = SketchOf { minhash: Some(config), ..SketchOf::default() }.step().unwrap();
        assert!(registry().build_map(&step, &[]).is_err());
    }
}

/// Viramas, the signs that take a vowel away, and joiners are no letters, but they stand inside words.
#[test]
fn signs_inside_words_do_not_end_them() {
    for (text, words) in [
        ("हिन्दी भाषा में क्षेत्र", 4),
        ("বাংলা ভাষায় বিজ্ঞান", 3),
        ("தமிழ் மொழியில் புத்தகம்", 3),
        ("తెలుగు భాషలో పుస్తకం", 3),
        ("ශ්‍රී ලංකාව", 2),
        ("می\u{200c}خواهم بروم", 2),
        ("cafe\u{301} a\u{300} Paris", 3),
    ] {
        assert_eq!(shingle_set(text, 1).len(), words, "{text}");
        let mut found = 0;
        crate::filter::words(text, &mut |_, _| found += 1);
        assert_eq!(found, words, "{text}");
    }
}
