//! `llamero tokenizer train`: the same result however it is run, and nothing overwritten unasked.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::world::{Said, arg, llamero, names, write};

const FILES: [&str; 3] = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"];

fn train(input: &[&Path], size: &str, out: &Path, more: &[&str]) -> Said {
    let input = input.iter().map(|path| arg(path));
    let start = ["tokenizer", "train", "--input"].into_iter().chain(input);
    llamero(start.chain(["--vocab-size", size, "--out", arg(out)]).chain(more.iter().copied()))
}

fn model(out: &Path) -> String {
    fs::read_to_string(out.join("tokenizer.model")).unwrap()
}

/// Hundreds of words, of letters that leave others to learn.
fn prose(seed: usize) -> String {
    let letter = |n: usize| char::from(b"abcdfghiklmops"[n % 14]);
    let word = |i: usize| {
        let n = i * 2_654_435_761 % (300 + seed);
        [letter(n), letter(n / 14), letter(n / 7 + 3), ' '].iter().collect::<String>()
    };
    // More than a piece.
    (0..400_000).map(|i| word(i + seed) + if i % 9 == 0 { "\n" } else { "" }).collect()
}

#[test]
fn the_result_does_not_depend_on_how_texts_are_laid_out() {
    let tmp = tempfile::tempdir().unwrap();
    let [plain, lines, first, second] = ["laws.txt", "all.jsonl", "a", "b"].map(|name| tmp.path().join(name));
    write(&plain, prose(1));
    let line = |text: &str| json!({ "text": text, "domain": "laws", "lang": "xx" }).to_string() + "\n";
    write(&lines, line(&prose(1)));
    let report = train(&[&plain], "600", &first, &["--json"]).json();
    assert_eq!(names(&first), FILES);
    let other = train(&[&lines], "600", &second, &["--json", "--threads", "1", "--memory", "1GiB"]).json();
    assert_eq!(model(&first), model(&second));
    for (report, languages) in [(&report, 0), (&other, 1)] {
        assert_eq!(report["documents"], 1);
        assert_eq!(report["fit"]["all"]["tokens"], report["tokens"]);
        assert_eq!(report["fit"]["domains"]["laws"], report["fit"]["all"]);
        assert_eq!(report["fit"]["languages"].as_object().unwrap().len(), languages);
        assert_eq!(report["fit"]["unreachable"].as_array().unwrap().len(), 13);
    }
    let table = train(&[&lines], "600", &second, &["--force"]).ok();
    for phrase in ["600 entries", "domain laws", "language xx", "bytes/token", "ordinary tokens"] {
        assert!(table.contains(phrase), "no `{phrase}` in {table}");
    }
    let part =
        train(&[&plain], "600", &second, &["--force", "--limit-bytes", "1kB", "--no-report", "--json"])
            .json();
    assert_eq!((&part["bytes"], &part["fit"]), (&json!(1000), &Value::Null));
}

#[test]
fn a_base_keeps_its_tokens() {
    let tmp = tempfile::tempdir().unwrap();
    let [one, other, base, more] = ["1.txt", "2.txt", "base", "more"].map(|name| tmp.path().join(name));
    write(&one, prose(1));
    write(&other, "neue Wörter, neue Wörter, neue Wörter; ".repeat(50));
    train(&[&one], "560", &base, &[]).ok();
    let said = train(&[&other], "570", &more, &["--extend", arg(&base)]).ok();
    assert!(said.contains("moved from 304 to 559 to 314 to 569"), "{said}");
    let (base_model, more_model) = (model(&base), model(&more));
    assert!(more_model.starts_with(&base_model) && more_model.lines().count() == 314);
    for size in ["560", "570"] {
        train(&[&other], size, &tmp.path().join("x"), &["--extend", arg(&more)])
            .fails(1, &[&format!("`{size}`"), "`570`", "hint:"]);
    }
    let report = train(&[&other], "580", &tmp.path().join("y"), &["--extend", arg(&more), "--json"]).json();
    assert_eq!(report["special_tokens_moved"], json!({ "from": 314, "to": 315 }));
}

#[test]
fn what_is_there_stays_and_what_is_wrong_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let [text, bad, out] = ["a.txt", "b.jsonl", "out"].map(|name| tmp.path().join(name));
    write(&text, prose(2));
    write(&bad, "{\"text\": \"a\"}\n{\"txt\": 1}\n");
    train(&[&bad], "600", &out, &[]).fails(1, &["b.jsonl", "line 2", "{\"text\": …}"]);
    train(&[&text], "600", &out, &["--memory", "1MiB"]).fails(1, &["--memory", "128 MiB"]);
    train(&[&text], "600", &out, &["--memory", "much"]).fails(2, &["--memory", "2GiB"]);
    let empty = tmp.path().join("empty.txt");
    write(&empty, "");
    train(&[&empty], "600", &out, &[]).fails(1, &["there is no text"]);
    fs::remove_file(&empty).unwrap();
    train(&[Path::new("-")], "600", &out, &[]).fails(1, &["--input -", "twice", "hint:"]);
    train(&[&text], "600", &out, &["--release", "july-2024"]).fails(1, &["--release", "--extend"]);
    train(&[&text], "600", &out, &["--threads", "0"]).fails(2, &["--threads", "1 to 1024"]);
    assert_eq!(names(tmp.path()), ["a.txt", "b.jsonl"]);
    let said = train(&[&text], "9000", &out, &["--min-word-count", "3"]);
    assert!(said.code == Some(0) && said.err.contains("`--min-word-count` than 3"), "{said:?}");
    train(&[&text], "600", &out, &["--force"]).ok();
    let before = model(&out);
    train(&[&text], "580", &out, &[]).fails(1, &["not empty", "--force"]);
    assert_eq!(model(&out), before);
    let beside = ["old", "partial"].map(|end| out.with_extension(end).join("thesis.txt"));
    beside.iter().for_each(|path| write(path, "years of work"));
    train(&[&text], "580", &out, &["--force"]).ok();
    assert!(beside.iter().all(|path| fs::read(path).unwrap() == b"years of work"));
    assert_ne!(model(&out), before);
    write(&out.join("mine.txt"), "");
    train(&[&text], "600", &out, &["--force"]).fails(1, &["mine.txt", "hint:"]);
    assert_eq!(names(tmp.path()), ["a.txt", "b.jsonl", "out", "out.old", "out.partial"]);
}
