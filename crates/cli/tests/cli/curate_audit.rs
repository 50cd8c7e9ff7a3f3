//! `llamero curate report`, `why-dropped` and `sample`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::world::{Dice, arg, command, copy_dir, llamero, names, prose, shared, write};

const HOSTILE: &str = "https://evil.example/\"><script>alert(1)</script>";
const SHORT: &str = "<img src=x onerror=alert(1)> \u{1b}[31mred";

/// A record of a WARC file.
fn record(kind: &str, url: &str, block: &str) -> String {
    format!(
        "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: {}\r\n\r\n{block}\r\n\r\n",
        block.len()
    )
}

fn page(status: &str, kind: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n{body}")
}

/// Thirty texts, four that are nearly the first, a copy of one of those, twelve short ones, and a crawl of one page.
fn sources(folder: &Path) {
    let mut dice = Dice(11);
    let mut lines = Vec::new();
    let mut add = |url: &str, text: &str| lines.push(json!({ "url": url, "text": text }).to_string());
    let texts: Vec<String> = (0..30).map(|_| prose(&mut dice, 5)).collect();
    for (n, text) in texts.iter().enumerate() {
        add(&format!("https://a.example/{n}"), text);
    }
    for n in 0..4 {
        let url = if n == 0 { HOSTILE.to_owned() } else { format!("https://near.example/{n}") };
        add(&url, &format!("{}\n\nWords that only number {n} has.", texts[0]));
    }
    add("https://copy.example/", &format!("{}\n\nWords that only number 2 has.", texts[0]));
    (0..12).for_each(|n| add(&format!("https://short.example/{}", n % 6), &format!("{SHORT} {n}")));
    write(&folder.join("texts.jsonl"), lines.join("\n"));
    let crawl = [
        record("warcinfo", "", "software: none"),
        record("request", "https://b.example/", "GET / HTTP/1.1\r\n\r\n"),
        record("response", "https://b.example/", &page("200 OK", "text/plain", &prose(&mut dice, 5))),
        record("response", "https://b.example/gone", &page("404 Not Found", "text/html", "gone")),
        record("response", "https://b.example/old", &page("301 Moved", "text/html", "")),
        record("response", "https://b.example/i.png", &page("200 OK", "image/png", "png")),
    ];
    write(&folder.join("crawl.warc"), crawl.concat());
}

fn curate(recipe: &Path, run: &Path, sets: &[&str]) -> crate::world::Said {
    let mut args = vec!["curate".to_owned(), "run".into(), arg(recipe).into(), "--set".into()];
    args.push(format!("run.dir={:?}", arg(run)));
    args.extend(sets.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
    llamero(args)
}

/// A recipe and the folder of its run.
fn corpus() -> &'static (PathBuf, PathBuf) {
    static CORPUS: LazyLock<(PathBuf, PathBuf)> = LazyLock::new(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("curate_audit");
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        sources(&root.join("sources"));
        let (recipe, run) = (root.join("recipe.toml"), root.join("run"));
        let curate_section = format!(
            "[curate]\nsources = [{:?}]\nread = {{}}\nnear_duplicates = {{}}\nmax_control_share = 0.1\n",
            arg(&root.join("sources"))
        );
        write(&recipe, curate_section);
        curate(&recipe, &run, &[]).ok();
        (recipe, run)
    });
    &CORPUS
}

fn audit(command: &str, rest: &[&str]) -> crate::world::Said {
    llamero([&["curate", command, arg(&corpus().1)], rest].concat())
}

#[test]
fn the_report_counts_what_is_no_document() {
    let data = audit("report", &["--json"]).json();
    let report = &data["report"];
    let passed = json!({
        "descriptions of files": 1,
        "images": 1,
        "redirects (3xx)": 1,
        "requests": 1,
        "responses that say the page is not there (404, 410)": 1,
    });
    assert_eq!(report["passed"], passed);
    assert_eq!((&report["documents_in"], &report["documents_kept"]), (&48.into(), &31.into()));
    assert_eq!(report["origins"]["number"], 6);
    assert_eq!(report["origins"]["listed"][0]["name"], "a.example");
    let near = &report["duplicates"]["near_duplicate"];
    assert_eq!((&near["clusters"], &near["dropped"]), (&1.into(), &4.into()));
    assert_eq!(near["largest"][0]["survivor"], "sources/texts.jsonl#0");
    assert_eq!(data["survivors"]["sources/texts.jsonl#0"]["url"], "https://a.example/0");
    assert_eq!(data["samples"]["too_short"].as_array().unwrap().len(), 3);
    // Nothing but `--out` writes a page then.
    assert!(!names(&corpus().1).contains(&"report.html".to_owned()));
}

#[test]
fn the_page_holds_hostile_text_as_text() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    copy_dir(&corpus().1, &run);
    // Of a run or of the corpus itself, beside the corpus.
    let beside = run.join("curation.html");
    assert_eq!(llamero(["curate", "report", arg(&run)]).ok().trim(), arg(&beside));
    let html = fs::read_to_string(&beside).unwrap();
    fs::remove_file(&beside).unwrap();
    llamero(["curate", "report", arg(&run.join("curate"))]).ok();
    assert_eq!(fs::read_to_string(&beside).unwrap(), html);
    for text in [
        "Left after each step",
        "near_duplicates",
        "https://evil.example/&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;",
        "&lt;img src=x onerror=alert(1)&gt; \u{241b}[31mred",
        "https://a.example/0</code>\n and 4 like it",
        "redirects (3xx)",
    ] {
        assert!(html.contains(text), "no {text}");
    }
    assert!(!html.contains("<script") && !html.contains("<img") && !html.contains('\u{1b}'));
    let chosen = tmp.path().join("chosen.html");
    audit("report", &["--out", arg(&chosen)]).ok();
    assert!(fs::read_to_string(&chosen).unwrap().contains("<svg"));
    audit("report", &["--out", arg(tmp.path())]).fails(1, &["is a folder", "hint:"]);
}

#[test]
fn the_page_of_a_run_has_the_funnel() {
    let html = fs::read_to_string(shared().run.join("report.html")).unwrap();
    assert!(html.contains("Left after each step") && html.contains("repeated_lines"));
    let said = llamero(["curate", "report", arg(&shared().run), "--json"]).json();
    assert!(said["report"]["documents_in"].as_u64() > Some(0));
}

#[test]
fn a_dropped_document_is_followed_to_its_survivor() {
    let copy = audit("why-dropped", &["https://copy.example/"]).ok();
    let order = [
        "https://copy.example/ (sources/texts.jsonl#",
        "dropped by exact_duplicates: exact_duplicate",
        "in its place: https://near.example/2",
        "dropped by near_duplicates: near_duplicate",
        "in its place: https://a.example/0 (sources/texts.jsonl#0)",
        "kept: documents.parquet",
    ];
    let places: Vec<_> =
        order.iter().map(|text| copy.find(text).unwrap_or_else(|| panic!("no {text}: {copy}"))).collect();
    assert!(places.is_sorted(), "{copy}");

    let found = audit("why-dropped", &["https://copy.example/", "sources/texts.jsonl#0", "--json"]).json();
    assert_eq!(found[0]["documents"][0]["outcome"], "dropped");
    assert_eq!(found[0]["survivors"].as_array().unwrap().len(), 2);
    let kept = &found[1]["documents"][0];
    assert_eq!((&kept["outcome"], &kept["places"][0]["times"]), (&"kept".into(), &1.into()));

    // Two documents of one URL are both told of; a short id is too vague, a longer one is not.
    let both = audit("why-dropped", &["https://short.example/1"]).ok();
    assert_eq!(both.matches("too_short").count(), 4, "{both}");
    assert!(both.contains("at least 64 wanted") && !both.contains('\u{1b}'), "{both}");
    audit("why-dropped", &["sources/texts.jsonl#"])
        .fails(1, &["fits several documents", "\n  sources/texts.jsonl#0", "hint:"]);
    let id = found[0]["documents"][0]["id"].as_str().unwrap();
    let prefix = &id[..id.len() - 1];
    assert_eq!(audit("why-dropped", &[prefix]).ok(), copy, "{prefix}");
}

#[test]
fn an_unknown_document_is_an_error() {
    let said = audit("why-dropped", &["https://nowhere.example/", "sources/texts.jsonl#0"]);
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("https://a.example/0"), "{}", said.out);
    assert!(said.err.contains("`https://nowhere.example/`: it was neither kept nor dropped"), "{}", said.err);
    audit("why-dropped", &["https://nowhere.example/", "--json"]).fails(1, &["hint:"]);
    audit("why-dropped", &[]).fails(2, &["required"]);
    audit("why-dropped", &[""]).fails(2, &["DOCUMENTS"]);
}

#[test]
fn samples_are_drawn_and_repeatable() {
    let draw =
        |seed: &str| audit("sample", &["--reason", "too_short", "-n", "4", "--seed", seed, "--json"]).json();
    let one = draw("1");
    assert_eq!((&one["of"], one["documents"].as_array().unwrap().len()), (&12.into(), 4));
    assert_eq!(one, draw("1"));
    assert!((2..10).any(|seed| draw(&seed.to_string()) != one));
    let text = one["documents"][0]["excerpt"].as_str().unwrap();
    assert!(text.starts_with(SHORT), "{text}");
    let words = audit("sample", &["--filter", "too_short", "-n", "2"]).ok();
    assert!(words.starts_with("2 of 12 documents dropped\n") && !words.contains('\u{1b}'), "{words}");
    let kept = audit("sample", &["--kept", "-n", "100", "--text", "10", "--json"]).json();
    let documents: &Vec<Value> = kept["documents"].as_array().unwrap();
    assert_eq!((&kept["of"], documents.len()), (&31.into(), 31));
    assert!(documents.iter().all(|own| own["text"].as_str().unwrap().len() <= 10));

    let unknown = ["dropped for `short`", "12 `too_short`", "4 `near_duplicate`", "1 by `exact_duplicates`"];
    audit("sample", &["--reason", "short"]).fails(1, &unknown);
    audit("sample", &["--reason", "too_short", "--filter", "near_duplicates"])
        .fails(1, &["by `near_duplicates`"]);
    audit("sample", &[]).fails(2, &["--reason"]);
    audit("sample", &["--kept", "--reason", "too_short"]).fails(2, &["cannot be used with"]);
    audit("sample", &["--kept", "-n", "0"]).fails(2, &["0 is not in 1..=100000"]);
    audit("sample", &["--kept", "-n", "-1"]).fails(2, &["-1 is not in 1..=100000"]);
    audit("sample", &["--filter", "heuristics"]).fails(
        1,
        &["by `heuristics`, which is no step of this run", "12 by `too_short`", "0 by `low_letters`"],
    );
}

#[test]
fn how_much_of_a_dropped_text_is_kept_is_up_to_the_recipe() {
    let tmp = tempfile::tempdir().unwrap();
    curate(&corpus().0, tmp.path(), &["curate.excerpt_bytes=0"]).ok();
    let lines = fs::read_to_string(tmp.path().join("curate/dropped.jsonl")).unwrap();
    assert!(lines.contains("too_short") && !lines.contains("onerror"), "{lines}");
    let said = curate(&corpus().0, tmp.path(), &["curate.excerpt_bytes=100000"]);
    said.fails(1, &["`curate.excerpt_bytes` is `100000`", "from 0 to 65536"]);
}

#[test]
fn documents_are_called_documents() {
    let tmp = tempfile::tempdir().unwrap();
    curate(&corpus().0, tmp.path(), &["curate.min_characters=100000"])
        .fails(1, &["all 48 documents were dropped: 48 `too_short`"]);
    let only = format!("curate.sources=[{:?}]", arg(&tmp.path().join("only.warc")));
    write(&tmp.path().join("only.warc"), record("request", "https://b.example/", "GET / HTTP/1.1\r\n\r\n"));
    curate(&corpus().0, &tmp.path().join("none"), &[&only])
        .fails(1, &["the sources hold no documents, only 1 requests"]);
}

#[test]
fn a_damaged_corpus_is_told_with_file_and_line() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    copy_dir(&corpus().1, &run);
    let path = run.join("curate/dropped.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<&str> = whole.lines().collect();
    lines[4] = "{\"id\": \"x\"";
    write(&path, lines.join("\n"));
    let all: [&[&str]; 3] = [&["report"], &["why-dropped", "x"], &["sample", "--reason", "too_short"]];
    let call = |args: &[&str]| llamero([&["curate", args[0], arg(&run)], &args[1..]].concat());
    for args in all {
        call(args).fails(1, &["dropped.jsonl` is damaged: line 5 is no dropped document", "hint:"]);
    }
    write(&path, lines[..3].join("\n") + "\n");
    for args in all {
        call(args).fails(1, &["it has 3 lines, but `report.json` counts 17"]);
    }
    write(&path, &whole);
    let rows = run.join("curate/documents.parquet");
    let bytes = fs::read(&rows).unwrap();
    write(&rows, &bytes[..bytes.len() - 9]);
    call(&["sample", "--kept"]).fails(1, &["documents.parquet` is damaged", "Parquet"]);
    write(&run.join("curate/report.json"), "{");
    call(&["report"]).fails(1, &["report.json` is damaged"]);
}

#[test]
fn what_is_no_corpus_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = arg(&corpus().0);
    let empty = arg(tmp.path());
    // A stage of training has a `report.json` of its own.
    let tokens = shared().run.join("tokens");
    for args in [["report", ""], ["why-dropped", "x"], ["sample", "--kept"]] {
        let call =
            |folder: &str| llamero(["curate", args[0], folder, args[1]].iter().filter(|arg| !arg.is_empty()));
        call("/nowhere").fails(1, &["`/nowhere` does not exist", "hint:"]);
        call(recipe).fails(1, &["is a file"]);
        call(empty).fails(1, &["has no `report.json` and `dropped.jsonl` of a curation in it"]);
        call(arg(&tokens)).fails(1, &["of a curation in it"]);
    }
    fs::create_dir(tmp.path().join("curate.partial")).unwrap();
    llamero(["curate", "report", empty]).fails(1, &["is not finished", "run the same"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let args = ["curate", "sample", arg(&corpus().1), "--kept", "-n", "1000", "--text", "100000"];
    let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The output is larger than what a pipe holds.
    let mut first = [0; 64];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_mix_tells_its_shards_and_epochs() {
    let tmp = tempfile::tempdir().unwrap();
    let mix = "curate.mix={proportions={prose=3, code=1}, size=150000, max_epochs=4, shard_bytes=20000, \
        annealing={proportions={prose=1}, size=20000}}";
    let said = curate(&corpus().0, tmp.path(), &[mix]).ok();
    assert!(said.contains("the mix writes these 31 documents ") && said.contains(" times in all"), "{said}");
    let data = llamero(["curate", "report", arg(tmp.path()), "--json"]).json();
    assert!(data["mix"]["mix"]["domains"]["prose"]["epochs"].as_f64().unwrap() > 1.0, "{}", data["mix"]);
    assert!(data["mix"]["annealing"]["documents"].as_u64().unwrap() > 0);
    let names: Vec<String> = (0..30).map(|n| format!("https://a.example/{n}")).collect();
    let args = ["curate", "why-dropped", arg(tmp.path()), "--json"]
        .into_iter()
        .chain(names.iter().map(String::as_str));
    let fates = llamero(args).json();
    let places =
        fates.as_array().unwrap().iter().flat_map(|own| own["documents"][0]["places"].as_array().unwrap());
    let of = |front: &str| -> u64 {
        let own = places.clone().filter(|place| place["file"].as_str().unwrap().starts_with(front));
        own.map(|place| place["times"].as_u64().unwrap()).sum()
    };
    assert!(of("documents-0000") > 45 && of("annealing/documents") > 5, "{fates}");
    let sampled = llamero(["curate", "sample", arg(tmp.path()), "--kept", "-n", "100", "--json"]).json();
    assert_eq!(sampled["documents"].as_array().unwrap().len(), 31, "each is drawn once");
    llamero(["curate", "report", arg(tmp.path())]).ok();
    let html = fs::read_to_string(tmp.path().join("curation.html")).unwrap();
    assert!(html.contains("Mix: annealing") && html.contains("epochs"));
}
