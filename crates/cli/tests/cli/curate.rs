//! `llamero curate run`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::world::{Dice, arg, command, llamero, llamero_reading, prose, recipe as world_recipe, write};

/// A recipe over JSON Lines of so many texts, of which every fifth is nearly another one.
fn recipe(folder: &Path, texts: usize) -> PathBuf {
    let mut state = 7_u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let letter = |at: u32| char::from(b'a' + (state >> (32 + 5 * at)) as u8 % 26);
        (0..4).map(letter).collect::<String>()
    };
    let mut lines = String::new();
    let mut before = String::new();
    for n in 0..texts {
        let text = if n % 5 == 4 {
            format!("{before} {}", word())
        } else {
            (0..80).map(|_| word()).collect::<Vec<_>>().join(" ")
        };
        lines += &format!("{}\n", json!({ "id": n.to_string(), "text": text }));
        before = text;
    }
    write(&folder.join("texts.jsonl"), lines);
    let recipe = folder.join("recipe.toml");
    let curate = format!(
        "[curate]\nsources = [{:?}]\nread = {{}}\nnear_duplicates = {{}}\ncommon_lines = {{}}\n",
        arg(&folder.join("texts.jsonl"))
    );
    write(&recipe, curate);
    recipe
}

fn run_args(recipe: &Path, run: &Path) -> Vec<String> {
    let set = format!("run.dir={:?}", arg(run));
    let args = ["curate", "run", arg(recipe), "--set", &set, "--threads", "1", "--partitions", "5"];
    args.map(str::to_owned).to_vec()
}

/// The folder in which a run that is not finished has its stages; one that is not there, as long as it has none.
pub(crate) fn work_of_run(run: &Path) -> PathBuf {
    let work = run.join("curate.partial/resume");
    let entries = fs::read_dir(&work).into_iter().flatten().map(|entry| entry.unwrap());
    let folder = entries.into_iter().find(|entry| entry.file_name().to_string_lossy().starts_with("run-"));
    folder.map_or(work.join("none"), |folder| folder.path())
}

/// Starts a run and kills it as soon as the stage is finished; gives which files that stage then has, and when they were written.
fn killed_after(recipe: &Path, run: &Path, stage: &str) -> BTreeMap<String, (u64, i64)> {
    let mut child =
        command(run_args(recipe, run)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let work = || work_of_run(run);
    while !work().join(stage).join("done.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before `{stage}` was seen to be finished");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was killed too late");
    let entries = fs::read_dir(work().join("documents")).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            (entry.file_name().into_string().unwrap(), (meta.ino(), meta.mtime_nsec()))
        })
        .collect()
}

#[test]
fn a_killed_run_keeps_what_is_finished_and_ends_with_the_same_bytes() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 20_000);
    let (whole, broken) = (tmp.path().join("whole"), tmp.path().join("broken"));
    llamero(run_args(&recipe, &whole)).ok();
    let first = killed_after(&recipe, &broken, "documents");
    assert!(first.len() > 1, "{first:?}");
    let second = killed_after(&recipe, &broken, "exact");
    assert_eq!(first, second, "documents were read again");
    let said = llamero(run_args(&recipe, &broken));
    assert!(said.err.contains("resuming"), "{}", said.err);
    said.ok();
    for name in ["documents.parquet", "dropped.jsonl", "report.json"] {
        let bytes = |run: &Path| fs::read(run.join("curate").join(name)).unwrap();
        assert!(bytes(&whole) == bytes(&broken), "{name} differs");
    }
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(whole.join("curate/report.json")).unwrap()).unwrap();
    assert_eq!(report["documents_in"], 20_000);
    assert_eq!(report["dropped"]["near_duplicate"]["count"], 4_000);
    // A third time there is nothing to do.
    assert!(llamero(run_args(&recipe, &broken)).ok().contains("was there already"));
}

#[test]
fn another_recipe_replaces_a_finished_corpus_only_when_asked() {
    let tmp = tempfile::tempdir().unwrap();
    let (recipe, run) = (recipe(tmp.path(), 20), tmp.path().join("run"));
    let said = llamero(run_args(&recipe, &run));
    let folder = run.join("curate");
    assert!(
        said.err.lines().next().unwrap().contains(&format!("into `{}`", folder.display())),
        "{}",
        said.err
    );
    said.ok();
    let report = || fs::read(folder.join("report.json")).unwrap();
    let before = report();
    let with = |more: &[&str]| {
        llamero(run_args(&recipe, &run).iter().map(String::as_str).chain(more.iter().copied()))
    };
    let other = [
        "--set",
        "curate.min_characters=70",
        "--set",
        "curate.pii={}",
        "--set",
        "curate.common_lines.max_seen=3",
    ];
    with(&other).fails(
        1,
        &[
            "holds a finished corpus of another recipe or other inputs",
            "`curate.min_characters` was 64 and is 70",
            "`curate.pii` was absent and is {",
            "`curate.common_lines.max_seen` was 6 and is 3",
            "`--replace`",
        ],
    );
    assert_eq!(report(), before);
    let sources = tmp.path().join("texts.jsonl");
    write(&sources, fs::read_to_string(&sources).unwrap() + "{\"text\": \"short\"}\n");
    let told = with(&[]).fails(1, &["`curate.sources`: the files have other contents or names"]);
    assert!(!told.contains("min_characters"), "{told}");
    let said = with(&["--replace"]);
    assert!(said.err.contains("it will be replaced"), "{}", said.err);
    said.ok();
    assert_ne!(report(), before);
    assert!(with(&[]).ok().contains("was there already"));
}

#[test]
fn the_summary_shows_every_step_that_ran() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 20);
    let mut args = run_args(&recipe, &tmp.path().join("run"));
    args.extend(
        ["--set", "curate.gopher_repetition={}", "--set", "curate.ngram_coverage={}"].map(str::to_owned),
    );
    let said = llamero(args).ok();
    let row = |step: &str| -> Vec<&str> {
        let line = said.lines().find(|line| line.split(' ').next() == Some(step));
        line.unwrap_or_else(|| panic!("no {step}: {said}")).split_whitespace().skip(1).take(3).collect()
    };
    assert_eq!(row("step"), ["documents", "in", "dropped"]);
    assert_eq!(row("generated"), ["20", "0", "0"]);
    assert_eq!(row("near_duplicates"), ["20", "4", "0"]);
    assert_eq!(row("gopher_repetition"), ["16", "0", "0"]);
    assert_eq!(row("ngram_coverage"), ["16", "0", "0"]);
}

#[test]
fn what_cannot_work_is_refused_at_once_and_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let (recipe, run) = (recipe(tmp.path(), 20), tmp.path().join("runs/one"));
    let dir = format!("run.dir={:?}", arg(&run));
    let with = |more: &[&str]| llamero([&["curate", "run", arg(&recipe), "--set", &dir], more].concat());
    with(&["--memory", "1", "--threads", "3"])
        .fails(1, &["`--memory` is 1 B, but must be at least 3 MiB: 1 MiB for each of 3 threads"]);
    with(&["--partitions", "257"])
        .fails(1, &["`--partitions` is 257, but must be at most 256 for inputs of "]);
    with(&["--partitions", "4097"]).fails(2, &["4097 is not in 1..=4096"]);
    with(&["--partitions", "-1"]).fails(2, &["-1 is not in 1..=4096"]);
    for size in ["\"1GB\"", "-1"] {
        with(&["--set", &format!("curate.mix={{size={size}}}")])
            .fails(1, &["curate.mix", "a whole number of bytes"]);
    }
    with(&["--set", "curate.sources=[\"nowhere/at-all\"]"]).fails(
        1,
        &["/nowhere/at-all` cannot be opened", "relative paths start in the folder that llamero is run in"],
    );
    assert!(!run.exists());
    with(&["--estimate"]).ok();
    assert!(!run.exists());

    let quiz = tmp.path().join("nothing.jsonl");
    let hash = |more: &[&str]| llamero([&["curate", "hash-eval", arg(&quiz)], more].concat());
    for ngram in ["65", "0", "-1"] {
        let range = format!("{ngram} is not in 1..=64");
        hash(&["--out", "x.hashes", "--ngram", ngram]).fails(2, &[&range]);
    }
    hash(&["--out", arg(tmp.path())]).fails(1, &["is a folder", "hint:"]);
    hash(&["--out", arg(&tmp.path().join("no/quiz.hashes"))]).fails(1, &["is no folder", "hint:"]);
    hash(&["--out", arg(&tmp.path().join("quiz.hashes"))]).fails(1, &["nothing.jsonl"]);
}

#[test]
#[cfg(not(feature = "ballista"))]
fn a_build_without_ballista_says_so() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 10);
    let set = format!("run.dir={:?}", arg(&tmp.path().join("run")));
    let run = ["curate", "run", arg(&recipe), "--set", &set, "--cluster", "df://127.0.0.1:1"];
    llamero(run).fails(1, &["df://127.0.0.1:1", "no Ballista", "--features ballista"]);
    llamero(["curate", "scheduler"]).fails(1, &["no Ballista", "--features ballista"]);
    let executor = ["curate", "executor", "--work-dir", arg(tmp.path())];
    llamero(executor).fails(1, &["no Ballista", "--features ballista"]);
}

#[test]
fn a_clusters_memory_and_threads_are_not_the_drivers_to_give() {
    for other in [&["--threads", "2"][..], &["--memory", "1GiB"], &["--estimate"]] {
        let args = [&["curate", "run", "recipe.toml", "--cluster", "df://127.0.0.1:1"], other].concat();
        llamero(args).fails(2, &["--cluster", other[0]]);
    }
}

#[test]
fn a_mix_of_several_shards_is_trained_on() {
    let tmp = tempfile::tempdir().unwrap();
    let mut dice = Dice(3);
    // Without URLs, so that documents are told apart by their ids alone.
    let lines: Vec<_> = (0..60).map(|_| json!({ "text": prose(&mut dice, 3) }).to_string()).collect();
    let (sources, file, run) =
        (tmp.path().join("texts.jsonl"), tmp.path().join("recipe.toml"), tmp.path().join("run"));
    write(&sources, lines.join("\n"));
    write(&file, world_recipe(&sources));
    let sets = [
        "curate.read={}",
        "curate.mix={proportions={prose=1}, size=150000, shard_bytes=30000, annealing={proportions={prose=1}, size=9000}}",
        "tokenizer.sample_bytes=60000",
        "pretrain.steps=6",
    ];
    let dir = format!("run.dir={:?}", arg(&run));
    let mut args = vec!["pretrain", arg(&file), "--set", &dir, "--json"];
    args.extend(sets.iter().flat_map(|set| ["--set", *set]));
    let trained = llamero(&args).json();
    assert!(
        trained["loss"].as_f64().unwrap().is_finite() && trained["tokens"].as_u64() > Some(0),
        "{trained}"
    );

    let report = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(run.join(name)).unwrap()).unwrap()
    };
    let (mix, tokens) = (report("curate/mix.json"), report("tokens/report.json"));
    let shards = fs::read_dir(run.join("curate")).unwrap().map(|entry| entry.unwrap().file_name());
    let shards = shards.filter(|name| name.to_string_lossy().starts_with("documents-")).count();
    assert!(shards >= 4, "{shards} shards");
    assert!(run.join("curate/annealing/documents.parquet").exists());
    // Every copy that the mix wrote is in one of the two stores, or was too much to hold out; none of annealing is.
    let number = |key: &str| tokens[key].as_u64().unwrap();
    let all = number("train_documents") + number("held_out_documents") + number("left_out_documents");
    assert_eq!(all, mix["mix"]["documents"].as_u64().unwrap(), "{tokens} {mix}");
    assert!(mix["mix"]["domains"]["prose"]["epochs"].as_f64() > Some(1.0), "{mix}");
    assert!(llamero(&args).ok().contains("loss"), "a second time there is nothing to do");
}

/// A set that nothing of can match must not look like one that keeps a corpus clean.
#[test]
fn evaluation_sets_say_how_many_examples_they_have() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 20);
    let (set, hashes, run) =
        (tmp.path().join("quiz.txt"), tmp.path().join("quiz.hashes"), tmp.path().join("run"));
    let examples =
        ["which river did the herd cross on that day", "who led them over all the ice", "too short"];
    write(&set, examples.join("\r\n\r\n"));
    let hashed = llamero(["curate", "hash-eval", arg(&set), "--out", arg(&hashes)]);
    assert!(hashed.err.contains("1 examples have fewer than 6 words"), "{}", hashed.err);
    assert!(hashed.ok().contains("2 examples of `quiz`"));
    let mut args = run_args(&recipe, &run);
    args.extend([
        "--set".to_owned(),
        format!("curate.decontaminate={{sets=[{{hashes={:?}}}]}}", arg(&hashes)),
    ]);
    let said = llamero(&args).ok();
    assert!(
        said.contains("evaluation set quiz: 2 examples, 1 more are too short to be recognised"),
        "{said}"
    );
    args.push("--json".to_owned());
    let sets = llamero(&args).json()["report"]["evaluation_sets"].clone();
    assert_eq!(sets, json!([{"name": "quiz", "examples": 2, "too_short": 1}]));
}

/// A file whose texts are in another field is lost whole, which the count of documents does not show.
#[test]
fn a_lost_file_is_named_in_the_last_lines() {
    let tmp = tempfile::tempdir().unwrap();
    let (recipe, run) = (recipe(tmp.path(), 20), tmp.path().join("run"));
    let other = tmp.path().join("other.jsonl");
    write(&other, "{\"body\": \"a\"}\n{\"body\": \"b\"}\n");
    let sources = format!("curate.sources=[{:?}, {:?}]", arg(&tmp.path().join("texts.jsonl")), arg(&other));
    let mut args = run_args(&recipe, &run);
    args.extend(["--set".to_owned(), sources]);
    let said = llamero(&args).ok();
    let lines: Vec<_> = said.lines().rev().take(3).collect();
    assert!(lines[0].starts_with("corpus: "), "{said}");
    assert_eq!(
        lines[1],
        "  `other.jsonl` gave no document: none of its 2 records has a string in the field `text` (`read.fields.text`); \
         the fields of the first are `body`"
    );
    assert_eq!(lines[2], "warning: 1 of the inputs gave no document:");
    args.push("--json".to_owned());
    assert_eq!(llamero(&args).json()["report"]["broken"]["lost"], 1);
}

/// What `curate extract` prints of an input has the ids of the corpus, and documents are set apart.
#[test]
fn extract_tells_documents_apart() {
    let tmp = tempfile::tempdir().unwrap();
    let (texts, page) = (tmp.path().join("a.jsonl"), tmp.path().join("page.html"));
    let lines = "{\"id\": 7, \"text\": \"one\", \"url\": \"http://a.example/\"}\n{\"text\": \"two\"}\n";
    write(&texts, lines);
    write(&page, "<article><h1>Head</h1><p>Words.</p></article><footer>Copyright 2024</footer>");
    let headed = "=== http://a.example/\none\n\n=== a.jsonl#53\ntwo\n";
    assert_eq!(llamero(["curate", "extract", arg(&texts)]).ok(), headed);
    let piped = llamero_reading(["curate", "extract", "-"], lines).ok();
    assert_eq!(piped, headed.replace("a.jsonl", "-"));
    assert_eq!(llamero(["curate", "extract", arg(&page)]).ok(), "Head\n\nWords.\n");
    let json = llamero(["curate", "extract", "--json", arg(&texts), arg(&page)]).ok();
    let rows: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<_> =
        rows.iter().map(|row| (row["id"].as_str().unwrap(), row["own_id"].as_str().unwrap())).collect();
    assert_eq!(ids, [("a.jsonl#0", "7"), ("a.jsonl#53", ""), ("page.html", "")]);
    assert_eq!((&rows[2]["title"], &rows[2]["date"]), (&json!("Head"), &json!("")));
    llamero(["curate", "extract", "--format", "html", arg(&texts)])
        .fails(1, &["`a.jsonl`, byte 0: begins like JSON Lines, but its format is given as HTML"]);
}

#[test]
fn a_step_that_is_false_is_told_how_it_is_turned_off() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 20);
    llamero(["curate", "run", arg(&recipe), "--set", "curate.gopher_quality=false"])
        .fails(1, &["gopher_quality", "it is off where its key is left out"]);
}
