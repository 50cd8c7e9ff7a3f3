//! dolma's expected dedup outputs. Where `LLAMERO_TEST_DATA` has no `corpora/dolma-tests`, it is skipped.
//!
//! dolma marks every occurrence of a paragraph or URL but the first in file order, through a Bloom filter; so do lines with
//! `max_seen = 1, keep_first` when the first file is the newest. Where it differs: dolma's last span of a text counts a line end
//! that is not there, and its paragraph n-gram mode has no counterpart here.

use std::io::Read;

use serde_json::Value as Json;

use super::*;

fn lines_of(name: &str) -> Option<Vec<Json>> {
    let root = std::env::var_os("LLAMERO_TEST_DATA")?;
    let path = std::path::Path::new(&root).join("corpora/dolma-tests").join(name);
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).ok()?).read_to_string(&mut text).ok()?;
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// The documents in their order, the first as the newest.
fn documents() -> Option<Vec<Document>> {
    let found = lines_of("provided/documents/000.json.gz");
    if found.is_none() {
        println!("skipped: LLAMERO_TEST_DATA has no corpora/dolma-tests");
    }
    let text = |value: &Json| value.as_str().unwrap().to_owned();
    Some(
        found?
            .iter()
            .enumerate()
            .map(|(at, json)| Document {
                url: text(&json["metadata"]["url"]),
                ..document(&text(&json["id"]), &format!("{}", 9000 - at), &text(&json["text"]))
            })
            .collect(),
    )
}

#[test]
fn urls_are_dropped_as_dolma_does() {
    let Some(documents) = documents() else { return };
    let mut plan = base_plan();
    let wanted = SketchOf { url: true, ..SketchOf::default() };
    plan.stage("sketches", vec![Input::through("documents", vec![wanted.step().unwrap()])], None);
    let mut verdicts = Verdicts::of(&mut plan, "sketches");
    url::append(&mut verdicts).unwrap();
    verdicts.judge("documents", "judged");
    let items = run(&documents, &plan, &registry());
    for expected in lines_of("expected/dedupe-by-url.json.gz").unwrap() {
        let is_duplicate = expected["attributes"].get("bff_duplicate_url").is_some();
        assert_eq!(
            items[expected["id"].as_str().unwrap()].dropped.is_some(),
            is_duplicate,
            "{}",
            expected["id"]
        );
    }
}

#[test]
fn paragraphs_are_dropped_as_dolma_does() {
    let Some(documents) = documents() else { return };
    let mut plan = base_plan();
    plan.stage("judged", vec![Input::all("documents")], None);
    let common = lines::CommonLines { max_seen: 1, keep_first: true, normalise: false, buckets: 1 };
    common.append(&mut plan, "judged").unwrap();
    let items = run(&documents, &plan, &registry());
    let mut taken = 0;
    for (expected, document) in lines_of("expected/dedupe-paragraphs.json.gz").unwrap().iter().zip(&documents)
    {
        // Spans count characters; what no span covers is kept.
        let spans: Vec<[usize; 3]> =
            serde_json::from_value(expected["attributes"]["bff_duplicate_paragraph_spans"].clone()).unwrap();
        taken += spans.len();
        let is_kept = |at: &usize| !spans.iter().any(|&[start, end, _]| (start..end).contains(at));
        let text: String =
            document.text.chars().enumerate().filter(|(at, _)| is_kept(at)).map(|(_, c)| c).collect();
        assert_eq!(items[&document.id].document.text, text, "{}", document.id);
    }
    assert_eq!(taken, 43);
}
