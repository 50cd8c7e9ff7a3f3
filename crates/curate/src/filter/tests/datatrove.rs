//! The heuristics against datatrove.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::dedup::minhash::is_word_alone;
use crate::filter::characters::is_terminal;
use crate::filter::{Analysis, filter};
use crate::{Document, Filter};

/// What datatrove says of a text.
#[derive(Deserialize)]
struct Golden {
    text: String,
    /// The words, or how many there are.
    words: Value,
    #[serde(flatten)]
    verdicts: BTreeMap<String, Verdict>,
}

#[derive(Deserialize)]
struct Verdict {
    reason: Option<String>,
    /// What is left of the text.
    text: Option<String>,
}

const FILTERS: [&str; 4] = ["gopher_quality", "gopher_repetition", "c4", "fineweb"];

fn judge(filter: &dyn Filter, text: &str) -> (Option<String>, String) {
    let mut document = Document { text: text.to_owned(), ..Document::default() };
    let reason = filter.apply(&mut document).map(|dropped| dropped.reason);
    (reason, document.text)
}

/// Of a text without a word datatrove has no verdict, but a division by zero.
fn is_defined(verdict: &Verdict) -> bool {
    verdict.reason.as_deref() != Some("undefined")
}

#[test]
fn verdicts_and_words_are_those_of_datatrove() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/filters.json");
    let goldens: Vec<Golden> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(goldens.len() > 40);
    let mut reasons = std::collections::BTreeSet::new();
    for golden in &goldens {
        // Its tokenizer of English takes a clause of such scripts for one word; here each character is one.
        if golden.text.contains(is_word_alone) {
            continue;
        }
        let analysis = Analysis::new(&golden.text);
        let words: Vec<&str> = analysis.words.iter().map(|word| &golden.text[word.start..word.end]).collect();
        assert_eq!(json!(words), golden.words, "{:?}", golden.text);
        // Its C4 knows the marks of Latin script alone.
        let is_foreign = golden.text.contains(|c: char| !c.is_ascii() && is_terminal(c));
        for name in FILTERS.into_iter().filter(|name| *name != "c4" || !is_foreign) {
            let expected = &golden.verdicts[name];
            let (reason, text) = judge(&*filter(name, &Value::Null).unwrap(), &golden.text);
            if is_defined(expected) {
                assert_eq!(reason, expected.reason, "{name}: {:?}", golden.text);
                reasons.extend(reason);
            }
            if let Some(expected) = &expected.text {
                assert_eq!(&text, expected, "{name}: {:?}", golden.text);
            }
        }
    }
    assert!(reasons.len() >= 20, "rules that the texts do not meet: {reasons:?}");
}

/// On demand: verdicts on a corpus of real text, made by `tests/goldens/make_filter_goldens.py`.
#[test]
fn agrees_on_a_corpus() {
    let Some(path) = std::env::var_os("LLAMERO_FILTER_VERDICTS").map(PathBuf::from) else {
        eprintln!("skipped: LLAMERO_FILTER_VERDICTS names no file of verdicts");
        return;
    };
    let lines = BufReader::new(fs::File::open(path).unwrap()).lines();
    let goldens: Vec<Golden> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    let count = goldens.len() as f64;
    let same_words = goldens
        .iter()
        .filter(|golden| json!(Analysis::new(&golden.text).words.len()) == golden.words)
        .count();
    eprintln!("{count} documents; the same number of words in {:.2} %", same_words as f64 * 100.0 / count);
    for name in FILTERS {
        let rules = filter(name, &Value::Null).unwrap();
        let (mut decision, mut reason, mut text) = (0, 0, 0);
        let mut differences = BTreeMap::<(String, String), u32>::new();
        for golden in &goldens {
            let expected = &golden.verdicts[name];
            let (found, left) = judge(&*rules, &golden.text);
            decision += u32::from(found.is_some() == expected.reason.is_some());
            reason += u32::from(found == expected.reason);
            text += u32::from(expected.text.as_ref().is_none_or(|expected| *expected == left));
            if found != expected.reason {
                let key = |reason: &Option<String>| reason.clone().unwrap_or_else(|| "kept".to_owned());
                *differences.entry((key(&expected.reason), key(&found))).or_default() += 1;
            }
        }
        let percent = |count: u32| f64::from(count) * 100.0 / goldens.len() as f64;
        eprintln!(
            "{name}: same decision {:.2} %, same reason {:.2} %, same text {:.2} %",
            percent(decision),
            percent(reason),
            percent(text)
        );
        for ((expected, found), count) in differences {
            eprintln!("    {count} times {found} where datatrove has {expected}");
        }
        assert!(percent(decision) > 99.0, "{name}");
    }
    for name in ["gopher_quality", "gopher_repetition", "c4", "fineweb", "heuristics"] {
        let rules = filter(name, &Value::Null).unwrap();
        let documents: Vec<Document> = goldens
            .iter()
            .map(|golden| Document { text: golden.text.clone(), ..Document::default() })
            .collect();
        let start = Instant::now();
        let dropped = documents.into_iter().filter_map(|mut document| rules.apply(&mut document)).count();
        eprintln!(
            "{name}: {:.0} documents a second on one core, {dropped} dropped",
            count / start.elapsed().as_secs_f64()
        );
    }
}
