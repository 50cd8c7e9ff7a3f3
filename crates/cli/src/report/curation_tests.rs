//! Properties of the page of a corpus, on made-up ones.

use llamero_curate::audit::Place;
use llamero_curate::{BrokenParts, Cluster, DroppedTally, Example, Origin, Origins, Passage};

use super::super::tests::{ATTACKS, balanced};
use super::*;

fn tally(documents: u64, bytes: u64) -> Tally {
    Tally { documents, bytes }
}

fn both(before: u64, after: u64) -> BeforeAfter {
    BeforeAfter { before: tally(before, before * 1000), after: tally(after, after * 900) }
}

/// A corpus with everything in it.
pub(in super::super) fn full() -> CurationData {
    with_every(None)
}

/// The same with every string set to `text`.
pub(in super::super) fn with_every_string(text: &str) -> CurationData {
    with_every(Some(text))
}

fn with_every(text: Option<&str>) -> CurationData {
    let s = |own: &str| text.unwrap_or(own).to_owned();
    let drop = |reason: &str, count, bytes, examples: &[&str]| {
        (s(reason), DroppedTally { count, bytes, examples: examples.iter().map(|own| s(own)).collect() })
    };
    let step = |name: &str, before: u64, after: u64| Passage {
        step: s(name),
        before: tally(before, before << 12),
        after: tally(after, after << 12),
        edited: 7,
    };
    let example = |url: &str| Example { id: s("3f9a"), url: s(url) };
    let cluster = Cluster {
        survivor: s("5f3c9a"),
        dropped: 5_980,
        examples: vec![example("baz-2.1/LICENSE-MIT"), example("qux-0.1/LICENSE")],
    };
    let duplicates =
        Duplicates { clusters: 3, dropped: 5_990, sizes: [(2, 2), (13, 1)].into(), largest: vec![cluster] };
    let record = DroppedRecord {
        id: s("aa"),
        own_id: None,
        url: s("foo-1.0/src/lib.rs"),
        source: s("foo"),
        bytes: 12,
        step: s("too_short"),
        reason: s("too_short"),
        detail: s("3 characters, at least 64 wanted"),
        survivor: None,
        excerpt: s("hi!"),
    };
    let places = vec![Place { file: s("documents.parquet"), times: 1 }];
    let fate = Fate {
        id: s("5f3c9a"),
        url: s("foo-1.0/LICENSE-MIT"),
        source: s("foo"),
        outcome: Outcome::Kept { places },
    };
    let draw = MixReport {
        target_bytes: 60 << 20,
        documents: 9_000,
        bytes: 59 << 20,
        domains: [(
            s("prose"),
            llamero_curate::mix::DomainReport { epochs: 2.5, share: 0.4, ..Default::default() },
        )]
        .into(),
        topics: vec![llamero_curate::mix::TopicReport { tag: s("sport"), ..Default::default() }],
        short: vec![s("maths: 10 of 20 bytes are missing")],
    };
    let report = CurateReport {
        inventory: s("77de41c2"),
        documents_in: 18_233,
        documents_kept: 11_020,
        bytes_in: 130 << 20,
        bytes_kept: 61 << 20,
        domains: [(s("code"), tally(9_120, 50 << 20)), (s("prose"), tally(1_900, 11 << 20))].into(),
        dropped: [
            drop("too_short", 812, 41_000, &["foo-1.0/src/lib.rs", "bar-0.2/README.md"]),
            drop("exact_duplicate", 5_980, 31 << 20, &["baz-2.1/LICENSE-MIT"]),
            drop("binary", 310, 9 << 20, &[]),
            drop("long_lines", 111, 12 << 20, &["qux-0.1/src/tables.rs"]),
        ]
        .into(),
        steps: vec![step("files", 18_233, 17_923), step("too_short", 17_923, 17_111)],
        lengths: [(0, both(3, 0)), (11, both(9_000, 7_000)), (30, both(1, 1))].into(),
        languages: [(s("en"), both(9_000, 7_000)), (s("unknown"), both(9_233, 4_020))].into(),
        domains_before: [(s("code"), tally(12_000, 70 << 20)), (s("unknown"), tally(310, 9 << 20))].into(),
        origins: Origins {
            listed: (0..40)
                .map(|n| Origin { name: s(&format!("host{n}.example")), documents: both(400 - n, 300 - n) })
                .collect(),
            others: both(2_000, 40),
            number: 1_234,
            missing_at_most: 3,
        },
        duplicates: [(s("near_duplicate"), duplicates)].into(),
        evaluation_sets: vec![EvalSetTally { name: s("gsm8k"), examples: 1_319, too_short: 27 }],
        broken: BrokenParts { count: 130, lost: 0, examples: vec![s("`a.warc`, byte 7: is cut")] },
        passed: [(s("requests"), 17), (s("redirects (3xx)"), 4)].into(),
        files: [(s("documents.parquet"), tally(11_020, 61 << 20))].into(),
    };
    CurationData {
        folder: s("runs/quickstart/curate"),
        report,
        mix: [(s("mix"), draw)].into(),
        survivors: [(s("5f3c9a"), fate)].into(),
        samples: [(s("too_short"), vec![record])].into(),
    }
}

#[test]
fn the_page_of_a_corpus_is_well_formed_and_complete() {
    let html = render(&full()).unwrap();
    let names = balanced(&html);
    assert_eq!(names.iter().filter(|name| *name == "svg").count(), 3);
    for text in [
        "Left after each step",
        "17,111",
        "gsm8k</td>\n<td class=\"num\">1,319</td>\n<td class=\"num\">27</td>",
        "3 characters, at least 64 wanted",
        "hi!",
        "host24.example",
        "1,209 others",
        "baz-2.1/LICENSE-MIT",
        "foo-1.0/LICENSE-MIT</code>\n and 5,980 like it",
        "and 5,978 more",
        "which is in documents.parquet",
        "maths: 10 of 20 bytes are missing",
        "2.50",
        "redirects (3xx)",
        "and 129 more, in broken.jsonl",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert!(!html.contains("host25.example"), "it is among the others");
    assert!(html.find("exact_duplicate") < html.find("long_lines"), "most frequent reason first");
    for text in ["http:", "https:", "src=", "href", "url(", "<script", "<link", "xmlns", "NaN", "inf<"] {
        assert!(!html.contains(text), "{text}");
    }
    assert_eq!(html, render(&full()).unwrap());
}

#[test]
fn hostile_names_stay_text() {
    let plain = balanced(&render(&with_every_string("plain")).unwrap());
    for attack in ATTACKS {
        let html = render(&with_every_string(attack)).unwrap();
        assert_eq!(balanced(&html), plain, "{attack:?} made or removed an element");
        assert!(!html.contains(attack), "{attack:?}");
        assert!(html.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
    }
}

#[test]
fn an_empty_report_is_a_page() {
    let html = render(&CurationData::default()).unwrap();
    balanced(&html);
    assert!(!html.contains("NaN") && !html.contains("<svg"));
    let mut odd = full();
    odd.report.lengths = [(64, both(1, 1))].into();
    odd.report.steps = vec![Passage::default()];
    odd.survivors.clear();
    let html = render(&odd).unwrap();
    balanced(&html);
    assert!(html.contains("5f3c9a</code>\n and 5,980 like it"), "without a URL the id is the name");
}

#[test]
fn every_colour_of_bars_follows_the_theme() {
    let html = render(&full()).unwrap();
    for attribute in [" stroke=\"#", " fill=\"#"] {
        for (at, _) in html.match_indices(attribute) {
            let colour = &html[at + 1..at + attribute.len() + 7];
            assert!(theme().contains(colour), "{colour}");
        }
    }
}
