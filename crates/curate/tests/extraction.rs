//! How much of the articles of 60 real pages is found, beside Python's trafilatura on the same pages.
//!
//! The measure is that of Scrapinghub's article-extraction-benchmark, whose pages and texts these are: words in fours, counted;
//! precision and recall of each page; their means; F1 of the means. `LLAMERO_TEST_DATA` names the folder with the pages, and
//! `LLAMERO_PYTHON` a Python that has trafilatura. To see the table: `cargo test --release -p llamero-curate --test extraction --
//! --nocapture`.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use llamero_curate::{Article, Extract};

/// Extracts the pages, a JSON string a line, as the benchmark does.
const TRAFILATURA: &str = "import sys, json, trafilatura\n\
    for line in sys.stdin:\n    print(json.dumps(trafilatura.extract(json.loads(line), include_comments=False) or ''))";

/// Below this the extractor has become worse.
const MIN_F1: f64 = 0.93;

struct Page {
    html: String,
    article: String,
}

fn gunzip(path: &PathBuf) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap();
    flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

fn pages() -> Option<Vec<Page>> {
    let root = PathBuf::from(std::env::var_os("LLAMERO_TEST_DATA")?).join("corpora/html-extraction");
    let truth: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&gunzip(&root.join("ground-truth.json.gz"))).unwrap();
    let page = |(id, truth): (String, serde_json::Value)| {
        let path = root.join("html").join(format!("{id}.html.gz"));
        let article = truth["articleBody"].as_str().unwrap_or_default().to_owned();
        path.exists().then(|| Page { html: gunzip(&path), article })
    };
    Some(truth.into_iter().filter_map(page).collect())
}

/// Every four words in a row, and how often they come; a shorter text as a whole.
fn shingles(text: &str) -> BTreeMap<Vec<&str>, i64> {
    let words: Vec<_> =
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let mut counts = BTreeMap::new();
    for at in 0..(words.len() + 1).saturating_sub(4).max(usize::from(!words.is_empty())) {
        *counts.entry(words[at..words.len().min(at + 4)].to_vec()).or_default() += 1;
    }
    counts
}

/// Precision, recall and F1 over all pages.
fn scores(pages: &[Page], found: &[String]) -> [f64; 3] {
    let (mut precisions, mut recalls) = (Vec::new(), Vec::new());
    for (page, found) in pages.iter().zip(found) {
        let (truth, found) = (shingles(&page.article), shingles(found));
        let hits: i64 =
            found.iter().map(|(shingle, &count)| count.min(*truth.get(shingle).unwrap_or(&0))).sum();
        let all = |counts: &BTreeMap<Vec<&str>, i64>| counts.values().sum::<i64>();
        for (total, into) in [(all(&found), &mut precisions), (all(&truth), &mut recalls)] {
            if total > 0 {
                into.push(hits as f64 / total as f64);
            }
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (precision, recall) = (mean(&precisions), mean(&recalls));
    [precision, recall, 2.0 * precision * recall / (precision + recall)]
}

fn by_python(python: &std::ffi::OsStr, pages: &[Page]) -> Vec<String> {
    let mut child = Command::new(python)
        .args(["-c", TRAFILATURA])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<_> = pages.iter().map(|page| serde_json::to_string(&page.html).unwrap() + "\n").collect();
    let mut input = child.stdin.take().unwrap();
    let writer =
        std::thread::spawn(move || lines.iter().try_for_each(|line| input.write_all(line.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "the Python of LLAMERO_PYTHON has no trafilatura");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn articles_are_found_in_real_pages() {
    let Some(pages) = pages() else {
        eprintln!("skipped: LLAMERO_TEST_DATA is not set");
        return;
    };
    assert!(!pages.is_empty());
    println!("{:<30} {:>9} {:>7} {:>7} {:>8}", "extractor", "precision", "recall", "F1", "pages/s");
    let row = |name: &str, [precision, recall, f1]: [f64; 3], seconds: f64| {
        let speed = pages.len() as f64 / seconds;
        println!("{name:<30} {precision:>9.3} {recall:>7.3} {f1:>7.3} {speed:>8.1}");
    };
    let mut best = 0.0_f64;
    for alt_text in [true, false] {
        let (article, start) = (Article { alt_text }, Instant::now());
        let text = |page: &Page| {
            article.extract(&page.html, None).map_or_else(|_| String::new(), |found| found.text)
        };
        let found: Vec<_> = pages.iter().map(text).collect();
        let scores = scores(&pages, &found);
        row(
            if alt_text { "llamero" } else { "llamero, no alternative text" },
            scores,
            start.elapsed().as_secs_f64(),
        );
        best = best.max(scores[2]);
    }
    if let Some(python) = std::env::var_os("LLAMERO_PYTHON") {
        let start = Instant::now();
        let found = by_python(&python, &pages);
        row("trafilatura (Python)", scores(&pages, &found), start.elapsed().as_secs_f64());
    } else {
        println!("trafilatura (Python): not run, LLAMERO_PYTHON names no Python that has it");
    }
    assert!(best > MIN_F1, "F1 {best}");
}
