//! Properties of the whole page, on made-up runs.

use super::*;

/// A run with everything in it: 3,000 steps, a spike, losses that are not finite, skipped steps.
fn full() -> ReportData {
    let words = |rows: &[(&str, &str)]| rows.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let choice = |model: &str, correct: u64, low95, high95| ChoiceRow {
        model: model.into(),
        questions: 400,
        correct,
        accuracy: correct as f64 / 400.0,
        low95,
        high95,
        chance: 0.25,
    };
    let bpb = |domain: &str, values: [f64; 4]| BpbRow {
        domain: domain.into(),
        unigram: values[0],
        bigram: values[1],
        pretrained: Some(values[2]),
        fine_tuned: Some(values[3]),
    };
    let sample = |model: &str, prompt: &str, output: &str| Sample {
        model: model.into(),
        prompt: prompt.into(),
        output: output.into(),
    };
    ReportData {
        title: "llamero run: quickstart".into(),
        run_dir: "runs/quickstart".into(),
        created: "2026-11-24 10:12 UTC".into(),
        summary: words(&[
            ("model", "laptop-4m"),
            ("parameters", "4,198,656"),
            ("training tokens", "6.3M"),
            ("expected time", "7 m 40 s"),
            ("actual time", "7 m 52 s"),
            ("peak memory", "612 MiB"),
            ("machine", "2 cores, AVX-512, Linux"),
        ]),
        remarks: vec![
            "step `1200` was skipped: the loss was not finite".into(),
            "pre-training went on from step `900`".into(),
        ],
        stages: [
            ("curate", 21.0, true),
            ("tokenizer", 34.5, true),
            ("pretrain", 331.0, false),
            ("sft", 48.0, false),
        ]
        .map(|(name, seconds, reused)| StageRow {
            name: name.into(),
            id: "5f3c9a0b77de41c2a8f0e9".into(),
            seconds,
            reused,
        })
        .to_vec(),
        curation: Some(super::curation::tests::full().report),
        tokenizer: Some(Tokenizer { vocab: 4_352, bytes_per_token: 3.41 }),
        time: vec![TimeRow {
            stage: "pretrain".into(),
            seconds: 331.0,
            shares: vec![
                ("useful steps".into(), 0.97),
                ("checkpoints".into(), 0.01),
                ("lost work".into(), 0.02),
            ],
            failures: 3,
            rollbacks: 2,
        }],
        pretrain: curve(3000, 8.4, 3.1),
        references: [("held-out", 3.3), ("bigram", 4.4), ("unigram", 6.6)]
            .map(|(label, loss)| Reference { label: label.into(), loss })
            .to_vec(),
        sft: curve(60, 3.6, 2.2),
        bits_per_byte: vec![bpb("code", [2.71, 1.84, 1.21, 1.25]), bpb("prose", [2.93, 2.31, 1.77, 1.74])],
        multiple_choice: vec![
            choice("pre-trained", 108, 0.229, 0.315),
            choice("fine-tuned", 181, 0.404, 0.501),
        ],
        samples: vec![
            sample(
                "pre-trained",
                "What is the crate `serde` for?",
                "?\n\nfn serde() {\n    let x = <T>::new();\n}",
            ),
            sample("pre-trained", "//! A small", " library for the file.\n\nuse std::fmt;"),
            sample("fine-tuned", "What is the crate `serde` for?", "A serialization framework."),
            sample("fine-tuned", "//! A small", ""),
        ],
    }
}

/// A falling loss with scatter from a fixed generator.
fn curve(steps: u64, from: f64, to: f64) -> Vec<CurvePoint> {
    let mut state = 1u64;
    let mut scatter = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    (0..steps)
        .map(|step| {
            let done = step as f64 / steps as f64;
            let loss = to + (from - to) / (1.0 + 25.0 * done) + 0.35 * scatter();
            let (loss, skipped) = match (steps, step) {
                (3000, 1200) => (f64::NAN, true),
                (3000, 1201) => (f64::INFINITY, true),
                (3000, 2000) => (900.0, true),
                _ => (loss, false),
            };
            CurvePoint {
                step,
                tokens: (step + 1) * 2048,
                loss,
                lr: 3e-3 * (done * 20.0).min(1.0) * (1.0 - 0.9 * done),
                grad_norm: if skipped { f64::NAN } else { 0.9 + 0.5 * scatter() + 3.0 / (1.0 + step as f64) },
                tokens_per_second: if step % 500 == 0 { f64::NAN } else { 19_000.0 + 1500.0 * scatter() },
                skipped,
            }
        })
        .collect()
}

/// Panics unless every element is closed in order; returns the names of all elements.
pub(super) fn balanced(html: &str) -> Vec<String> {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let (mut open, mut names) = (Vec::new(), Vec::new());
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        // The style sheet has no `<`, and `>` in attributes is escaped.
        let end = start + rest[start..].find('>').expect("a tag that ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.split([' ', '/', '\n']).find(|n| !n.is_empty()).expect("a name").to_owned();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_ref(), Some(&name), "closed out of order");
        } else {
            names.push(name.clone());
            if !tag.ends_with('/') && !VOID.contains(&name.as_str()) {
                open.push(name);
            }
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of `{tag}`");
    }
    assert!(open.is_empty(), "left open: {open:?}");
    names
}

#[test]
fn full_page_is_well_formed_and_complete() {
    let html = render(&full()).unwrap();
    let names = balanced(&html);
    // Four plots for each of the two training stages.
    assert_eq!(names.iter().filter(|n| *n == "svg").count(), 8);
    for text in [
        "Remarks",
        "Stages",
        "exact_duplicate",
        "qux-0.1/src/tables.rs",
        "45.2 %",
        "40.4–50.1",
        "1 above the scale",
        "2 rollbacks from silent corruption",
        "97.0 %",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert!(html.find("exact_duplicate") < html.find("long_lines"), "most frequent reason first");
    assert_eq!(html.matches("What is the crate").count(), 1, "samples of one prompt are together");
    assert!(html.len() < 400_000, "{} bytes", html.len());
}

#[test]
fn loads_nothing() {
    let html = render(&full()).unwrap();
    for text in ["http:", "https:", "src=", "href", "url(", "@import", "<script", "<link", "xmlns"] {
        assert!(!html.contains(text), "{text}");
    }
}

#[test]
fn same_data_same_bytes() {
    assert_eq!(render(&full()).unwrap(), render(&full()).unwrap());
}

#[test]
fn empty_data_gives_a_page_without_sections() {
    let html = render(&ReportData::default()).unwrap();
    let names = balanced(&html);
    assert!(!names.iter().any(|n| n == "section" || n == "svg"), "{names:?}");
    // Present but empty parts.
    let data = ReportData {
        curation: Some(CurateReport::default()),
        tokenizer: Some(Tokenizer { vocab: 0, bytes_per_token: f64::NAN }),
        stages: vec![StageRow::default()],
        bits_per_byte: vec![BpbRow::default()],
        multiple_choice: vec![ChoiceRow::default()],
        time: vec![TimeRow::default()],
        samples: vec![Sample::default()],
        sft: vec![CurvePoint::default()],
        ..ReportData::default()
    };
    let html = render(&data).unwrap();
    balanced(&html);
    assert!(!html.contains("NaN") && !html.contains("inf"), "no raw float reaches the page");
    assert!(!html.contains("Pre-training") && html.contains("Supervised fine-tuning"));
}

/// Sets every string of a run to `text`.
fn with_every_string(text: &str) -> ReportData {
    let mut data = full();
    let s = || text.to_owned();
    (data.title, data.run_dir, data.created) = (s(), s(), s());
    data.summary = vec![(s(), s())];
    data.remarks = vec![s()];
    data.stages.iter_mut().for_each(|r| (r.name, r.id) = (s(), s()));
    data.curation = Some(super::curation::tests::with_every_string(text).report);
    data.references.iter_mut().for_each(|r| r.label = s());
    data.time.iter_mut().for_each(|r| (r.stage, r.shares) = (s(), vec![(s(), 0.5)]));
    data.bits_per_byte.iter_mut().for_each(|r| r.domain = s());
    data.multiple_choice.iter_mut().for_each(|r| r.model = s());
    data.samples.iter_mut().for_each(|r| (r.model, r.prompt, r.output) = (s(), s(), s()));
    data
}

/// Texts that would be more than text in a careless page.
pub(super) const ATTACKS: [&str; 5] = [
    "</title></style></pre><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload='x'>",
    "&lt;b&gt; &#60;b&#62; <!-- -->",
    "\0\x1b]8;;x\x07 \u{202e}abc \u{9b}31m",
];

#[test]
fn hostile_text_stays_text() {
    let plain = balanced(&render(&with_every_string("plain")).unwrap());
    for attack in ATTACKS {
        let html = render(&with_every_string(attack)).unwrap();
        assert_eq!(balanced(&html), plain, "{attack:?} made or removed an element");
        assert!(!html.contains(attack), "{attack:?}");
        assert!(html.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
    }
}

#[test]
fn no_value_breaks_a_curve() {
    let odd = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.0,
        -1.0,
        5e-324,
        1e-20,
        1.0,
        1.0 + f64::EPSILON,
        1e29,
        f64::MAX,
    ];
    for a in odd {
        for b in odd {
            for (first, last) in [(0, 0), (0, 1), (7, u64::MAX), (u64::MAX - 1, u64::MAX)] {
                let point = |at: u64, v: f64| CurvePoint {
                    step: at,
                    tokens: at,
                    loss: v,
                    lr: v,
                    grad_norm: v,
                    tokens_per_second: v,
                    skipped: true,
                };
                let pretrain = vec![point(first, a), point(last, b)];
                let references = vec![Reference { label: "r".into(), loss: b }];
                let html = render(&ReportData { pretrain, references, ..ReportData::default() }).unwrap();
                balanced(&html);
                assert!(!html.contains("NaN") && !html.contains("inf"), "{a} {b}");
            }
        }
    }
}

#[test]
fn thinning_keeps_ends_and_extremes() {
    let value = |i: i32| match i {
        4_321 => 1e6,
        50_000 => -1e6,
        _ => f64::from(i % 97),
    };
    let points: Vec<(f64, f64)> = (0..98_765).map(|i| (f64::from(i), value(i))).collect();
    let thinned = plot::thin(&points);
    assert!(thinned.len() <= plot::MAX_POINTS && thinned.len() > plot::MAX_POINTS / 2);
    assert!(thinned.contains(&points[0]) && thinned.contains(&points[98_764]));
    assert!(thinned.contains(&points[4_321]) && thinned.contains(&points[50_000]));
    assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!(plot::thin(&points[..1000]), points[..1000]);
}

#[test]
fn smoothing_passes_over_a_spike() {
    let points: Vec<(f64, f64)> =
        (0..400).map(|i| (f64::from(i), if i == 200 { 1e9 } else { f64::from(i) })).collect();
    let smoothed = plot::smooth(&points);
    assert_eq!(smoothed.len(), points.len());
    for (s, p) in smoothed.iter().zip(&points) {
        // At the ends the neighbourhood is one-sided, so its middle lies a few steps inwards.
        assert!((s.1 - p.0).abs() <= 5.0, "{s:?}");
    }
}

#[test]
fn every_colour_of_a_plot_follows_the_theme() {
    let html = render(&full()).unwrap();
    let theme = plot::theme();
    let mut seen = 0;
    for attribute in [" stroke=\"#", " fill=\"#"] {
        for (at, _) in html.match_indices(attribute) {
            let colour = &html[at + 1..at + attribute.len() + 7];
            assert!(theme.contains(colour), "{colour}");
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn dates_are_civil() {
    for (unix, text) in [
        (0, "1970-01-01 00:00 UTC"),
        (951_782_340, "2000-02-28 23:59 UTC"),
        (951_868_800, "2000-03-01 00:00 UTC"),
        (1_795_415_400, "2026-11-23 06:30 UTC"),
    ] {
        assert_eq!(super::format::utc(unix), text);
    }
}
