//! A small corpus, looked back at.

use super::*;
use crate::tests::{config_for, folder, prose};
use crate::{CurateConfig, curate, inventory};

/// A corpus of files: eight that are kept, two copies of one, a short one, and one that is a copy of a copy but for a line.
fn corpus(out: &Path) -> Corpus {
    let mut files: Vec<(String, String)> = (0..8).map(|n| (format!("herd/{n}.md"), prose(n))).collect();
    files.push(("herd/copy.md".to_owned(), prose(3)));
    files.push(("other/copy.md".to_owned(), prose(3)));
    files.push(("short.md".to_owned(), "Too \u{e9}\u{e9}\u{e9}\u{e9} short.".to_owned()));
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_bytes())).collect();
    let root = folder(&files);
    let config = CurateConfig { excerpt_bytes: 7, ..config_for(&[root.path()]) };
    let inventory = inventory(&config, &()).unwrap();
    curate(&config, &inventory, out, &()).unwrap();
    Corpus::open(out).unwrap()
}

fn find(corpus: &Corpus, name: &str) -> Result<Found, CurateError> {
    corpus.find(&[name.to_owned()]).map(|mut found| found.remove(0))
}

#[test]
fn documents_are_found_by_every_name_they_have() {
    let out = tempfile::tempdir().unwrap();
    let corpus = corpus(out.path());
    let by_url = find(&corpus, "herd/5.md").unwrap();
    assert_eq!(by_url.documents.len(), 1);
    let fate = &by_url.documents[0];
    let place = Place { file: "documents.parquet".to_owned(), times: 1 };
    assert_eq!(fate.outcome, Outcome::Kept { places: vec![place] });
    for name in [&fate.id, &fate.id[..12], "/home/me/herd/5.md"] {
        let found = find(&corpus, name).unwrap();
        assert_eq!((found.documents, found.wanted.as_str()), (by_url.documents.clone(), name));
    }
    // `5.md` is no path below a source, and ends no id.
    assert!(find(&corpus, "5.md").unwrap().documents.is_empty());
    assert!(find(&corpus, "/home/me/xherd/5.md").unwrap().documents.is_empty());

    let short = find(&corpus, "short.md").unwrap();
    let Outcome::Dropped { step, reason, detail, survivor, excerpt } = &short.documents[0].outcome else {
        panic!("{short:?}")
    };
    assert_eq!((step.as_str(), reason.as_str(), survivor), ("too_short", "too_short", &None));
    assert_eq!((detail.as_str(), excerpt.as_str()), ("15 characters, at least 64 wanted", "Too \u{e9}"));

    let copies = ["herd/3.md", "herd/copy.md", "other/copy.md"].map(|name| find(&corpus, name).unwrap());
    let (kept, gone): (Vec<_>, Vec<_>) = copies.iter().partition(|found| found.survivors.is_empty());
    assert_eq!((kept.len(), gone.len()), (1, 2));
    for found in gone {
        assert_eq!(found.survivors, kept[0].documents);
    }
    let clusters = &corpus.report().duplicates["exact_duplicate"];
    assert_eq!((clusters.clusters, clusters.dropped), (1, 2));
    assert_eq!(clusters.largest[0].survivor, kept[0].documents[0].id);
    assert_eq!(clusters.sizes, [(2, 1)].into());
}

#[test]
fn a_sample_is_drawn_by_ids_and_seed() {
    let out = tempfile::tempdir().unwrap();
    let corpus = corpus(out.path());
    let draw = |seed| corpus.sample_kept(3, seed).unwrap();
    let ids = |seed| draw(seed).documents.into_iter().map(|kept| kept.id).collect::<Vec<_>>();
    assert_eq!((draw(1).of, ids(1).len()), (8, 3));
    assert_eq!(ids(1), ids(1));
    assert!((2..12).any(|seed| ids(seed) != ids(1)));
    for kept in draw(1).documents {
        let Outcome::Kept { .. } = find(&corpus, &kept.id).unwrap().documents[0].outcome else {
            panic!("{kept:?}")
        };
        assert!(kept.text.starts_with("Herd number"));
    }
    let all = corpus.sample_kept(100, 7).unwrap().documents;
    assert!(all.len() == 8 && all.is_sorted_by(|a, b| a.id < b.id));

    let pick = |reason: &str, step: Option<&str>| Pick {
        reason: Some(reason.to_owned()),
        step: step.map(str::to_owned),
        count: 1,
        seed: 3,
    };
    let one = corpus.sample_dropped(&pick("exact_duplicate", None)).unwrap();
    assert_eq!((one.of, one.documents.len()), (2, 1));
    let reasons = corpus.sample_reasons(5, 3).unwrap();
    assert_eq!((reasons["exact_duplicate"].len(), reasons["too_short"].len()), (2, 1));
    let unknown = corpus.sample_dropped(&pick("short", None)).unwrap_err().to_string();
    assert!(
        unknown.contains("dropped for `short`") && unknown.contains("2 `exact_duplicate`, 1 `too_short`"),
        "{unknown}"
    );
    let step = Pick { reason: None, ..pick("", Some("heuristics")) };
    let step = corpus.sample_dropped(&step).unwrap_err().to_string();
    assert!(
        step.contains("by `heuristics`, which is no step of this run")
            && step.contains("1 by `too_short`, 0 by `long_lines`"),
        "{step}"
    );
    let both = corpus.sample_dropped(&pick("too_short", Some("exact_duplicates"))).unwrap_err().to_string();
    assert!(
        both.contains("for `too_short` by `exact_duplicates`") && both.contains("2 by `exact_duplicates`"),
        "{both}"
    );
}

#[test]
fn documents_are_found_by_the_ids_they_came_with_and_broken_parts_by_their_files() {
    let line = |id: &str, text: &str| serde_json::json!({"id": id, "text": text}).to_string();
    let cut = "{\"id\": \"c\", \"text\": \"cut sh";
    let lines = [line("a", &prose(1)), line("b", "Short."), cut.to_owned(), line("d \"4\"", &prose(4))];
    let root = folder(&[("odd#.jsonl", lines.join("\n").as_bytes())]);
    let config = CurateConfig { read: Some(Default::default()), ..config_for(&[root.path()]) };
    let inventory = inventory(&config, &()).unwrap();
    let out = tempfile::tempdir().unwrap();
    curate(&config, &inventory, out.path(), &()).unwrap();
    let corpus = Corpus::open(out.path()).unwrap();
    let is_kept = |name: &str| {
        let found = find(&corpus, name).unwrap();
        let kept = |fate: &Fate| matches!(fate.outcome, Outcome::Kept { .. });
        (found.documents.iter().map(kept).collect::<Vec<_>>(), found.broken.len())
    };
    assert_eq!(is_kept("a"), (vec![true], 0));
    assert_eq!(is_kept("b"), (vec![false], 0));
    assert_eq!(is_kept("d \"4\""), (vec![true], 0));
    assert_eq!(is_kept("c"), (vec![], 0));
    let at = lines[0].len() + lines[1].len() + 2;
    for (name, parts) in [
        ("odd#.jsonl".to_owned(), 1),
        (format!("odd#.jsonl#{at}"), 1),
        (format!("{}/odd#.jsonl#{at}", root.path().display()), 1),
        (format!("odd%23.jsonl#{at}"), 1),
        (format!("odd%23.jsonl#{}", at + 1), 0),
        ("dd#.jsonl".to_owned(), 0),
    ] {
        assert_eq!(is_kept(&name), (vec![], parts), "{name}");
    }
    // Of a file alone the ids of its documents are no names, though they begin with it.
    let name = find(&corpus, "a").unwrap().documents[0].id.split_once('#').unwrap().0.to_owned();
    assert_eq!(is_kept(&name), (vec![], 1), "{name}");
    let part = &find(&corpus, "odd#.jsonl").unwrap().broken[0];
    assert!(part.input.ends_with("odd#.jsonl") && part.byte == Some(at as u64), "{part}");
    // A file that is lost as a whole is found as well.
    let lost = folder(&[("a.jsonl", line("a", &prose(1)).as_bytes()), ("torn.parquet", b"PAR1")]);
    let config = CurateConfig { sources: vec![lost.path().display().to_string()], ..config };
    let there = tempfile::tempdir().unwrap();
    curate(&config, &crate::inventory(&config, &()).unwrap(), there.path(), &()).unwrap();
    let torn = find(&Corpus::open(there.path()).unwrap(), "torn.parquet").unwrap().broken;
    assert!(torn.len() == 1 && torn[0].lost, "{torn:?}");
    std::fs::write(out.path().join(BROKEN_FILE), "").unwrap();
    let error = find(&corpus, "a").unwrap_err().to_string();
    assert!(
        error.contains("broken.jsonl` is damaged: it has 0 broken parts, but `report.json` counts 1"),
        "{error}"
    );
}

#[test]
fn files_that_were_changed_are_noticed() {
    let out = tempfile::tempdir().unwrap();
    let corpus = corpus(out.path());
    let path = out.path().join(DROPPED_FILE);
    let whole = std::fs::read_to_string(&path).unwrap();
    let said = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let names = ["herd/3.md", "herd/copy.md", "other/copy.md"].map(str::to_owned);
        corpus.find(&names).unwrap_err().to_string()
    };
    let lines: Vec<_> = whole.lines().collect();
    let cut = said(&format!("{}\n{}\n", lines[0], lines[1]));
    assert!(
        cut.contains("dropped.jsonl") && cut.contains("has 2 lines, but `report.json` counts 3"),
        "{cut}"
    );
    let broken = said(&format!("{}\n{}\n{}\n", lines[0], &lines[1][..20], lines[2]));
    assert!(broken.contains("dropped.jsonl` is damaged: line 2 is no dropped document"), "{broken}");
    let lost = said(&whole.replace(&survivor(&whole), "lost"));
    assert!(lost.contains("a document was dropped for `lost`, which is nowhere in it"), "{lost}");
}

/// The id that the first duplicate was dropped for.
fn survivor(lines: &str) -> String {
    lines.split("\"survivor\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

/// Every key of a section, and of the sections in it.
fn keys(value: &serde_json::Value, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            into.push(key.clone());
            keys(value, into);
        }),
        serde_json::Value::Array(values) => values.iter().for_each(|value| keys(value, into)),
        _ => {}
    }
}

#[test]
fn the_documentation_names_every_key_and_step() {
    let all: CurateConfig = serde_json::from_value(serde_json::json!({
        "sources": ["x"], "read": {}, "url_block": {}, "extract": {}, "pii": {}, "language": {}, "url_duplicates": {},
        "near_duplicates": {}, "common_lines": {}, "gopher_repetition": {}, "gopher_quality": {}, "ngram_coverage": {},
        "c4": {}, "fineweb": {}, "dirty_words": {}, "kl_outliers": {"max_nats": 1.0},
        "quality": [{"model": "m", "label": "good"}], "semantic": {"model": "m"}, "decontaminate": {},
        "max_corpus_bytes": 1u64 << 40,
    }))
    .unwrap();
    let text = include_str!("../../../../docs/curation.md");
    // A step is called as its section in the recipe, but for those that have none.
    let sections = serde_json::to_value(&all).unwrap();
    let steps = crate::pipeline::steps(&crate::plan(&all).unwrap());
    let without: Vec<_> =
        steps.iter().map(String::as_str).filter(|step| sections.get(step).is_none()).collect();
    assert_eq!(
        without.join(" "),
        "kind plain_text huge too_short long_lines low_letters repeated_lines generated domain exact_duplicates too_little_left"
    );
    let plain =
        sections.as_object().unwrap().iter().filter(|(_, value)| value.is_number() || value.is_boolean());
    for (key, _) in plain {
        assert!(text.contains(&format!("`curate.{key}`")), "{key}");
    }
    let mut names = Vec::new();
    keys(&serde_json::to_value(&all).unwrap(), &mut names);
    names.extend(crate::pipeline::steps(&crate::plan(&all).unwrap()));
    assert!(names.len() > 80, "{names:?}");
    let is_there =
        |name: &&String| text.contains(&format!("`{name}`")) || text.contains(&format!("`curate.{name}`"));
    let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for (limit, key) in
        [("1048576", "max_document_bytes"), ("240", "excerpt_bytes"), ("67108864", "max_record_bytes")]
    {
        assert!(text.contains(&format!("{key}` = {limit}")), "{key}");
    }
}
