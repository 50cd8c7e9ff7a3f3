//! Curation with our own models: semantic duplicates, and classifiers on top of a model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::world::{arg, copy_dir, llamero, shared, write};

/// Paragraphs of this repository's own documents.
fn paragraphs() -> Vec<String> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut found = Vec::new();
    for name in ["ARCHITECTURE.md", "docs/parallelism.md"] {
        let text = fs::read_to_string(root.join(name)).unwrap();
        let plain = text.split("\n\n").map(|part| part.replace('\n', " "));
        found.extend(plain.filter(|part| part.len() > 300 && !part.contains('|') && !part.contains("```")));
    }
    found.truncate(40);
    assert!(found.len() > 20, "{}", found.len());
    found
}

/// The text without its last word.
fn nearly(text: &str) -> String {
    text.rsplit_once(' ').unwrap().0.to_owned()
}

/// The same said twice.
const PARAPHRASES: [[&str; 2]; 6] = [
    [
        "The old bridge was closed on Monday after engineers found cracks in two of its pillars. Repairs are expected to take six \
         months, and traffic will be sent over the new motorway.",
        "Engineers discovered fractures in a pair of the ancient bridge's supports, so it was shut on Monday; fixing it should last \
         half a year, with vehicles redirected to the new motorway.",
    ],
    [
        "To make bread, mix flour, water, salt and yeast, knead the dough for ten minutes, let it rise for an hour, and bake it in a \
         hot oven until the crust is brown.",
        "Bread is made by combining yeast, salt, water and flour; the dough is kneaded ten minutes, left an hour to rise, then baked \
         in a hot oven till its crust browns.",
    ],
    [
        "Photosynthesis lets plants turn sunlight, water and carbon dioxide into sugar and oxygen. It happens in chloroplasts, which \
         hold a green pigment called chlorophyll.",
        "In chloroplasts, whose green pigment is chlorophyll, plants carry out photosynthesis: from light, carbon dioxide and water \
         they produce oxygen and sugar.",
    ],
    [
        "The company reported a profit of two million dollars for the third quarter, up from one million a year earlier, and said it \
         would hire fifty people by spring.",
        "Third-quarter earnings at the firm doubled from a year ago to two million dollars; it plans to add fifty staff before spring.",
    ],
    [
        "A binary search looks at the middle of a sorted list, throws away the half that cannot hold the value, and repeats until the \
         value is found or nothing is left.",
        "With a sorted list, binary search inspects the middle element, discards the half where the value can't be, and goes on until \
         it is found or the list is empty.",
    ],
    [
        "She had lived by the sea all her life, and every morning she walked along the beach with her dog, looking for shells that the \
         tide had left behind in the night.",
        "Having spent her whole life at the seaside, she took her dog along the beach each morning to search for the shells left \
         overnight by the tide.",
    ],
];

/// Writes documents as JSON Lines, and a recipe over them with these lines of `[curate]`.
fn recipe(folder: &Path, texts: &[(String, String)], curate: &str) -> PathBuf {
    let lines: String = texts
        .iter()
        .map(|(id, text)| {
            format!("{}\n", json!({"id": id, "url": format!("https://{id}.example/"), "text": text}))
        })
        .collect();
    write(&folder.join("docs.jsonl"), lines);
    let recipe = folder.join("recipe.toml");
    let head = format!(
        "[curate]\nsources = [{:?}]\nread = {{}}\nmin_characters = 1\n",
        arg(&folder.join("docs.jsonl"))
    );
    write(&recipe, head + curate);
    recipe
}

fn run(recipe: &Path, run: &Path, partitions: u32, threads: u32) -> Value {
    let set = format!("run.dir={:?}", arg(run));
    let (partitions, threads) = (partitions.to_string(), threads.to_string());
    let args = [
        "curate",
        "run",
        arg(recipe),
        "--set",
        &set,
        "--partitions",
        &partitions,
        "--threads",
        &threads,
        "--json",
    ];
    llamero(args).json()
}

/// The URLs that were dropped, with reason and, where it is a duplicate, the id of the survivor.
fn dropped(run: &Path) -> BTreeMap<String, (String, Option<String>)> {
    let text = fs::read_to_string(run.join("curate/dropped.jsonl")).unwrap();
    let record = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| record[key].as_str().map(str::to_owned);
        (text("own_id").unwrap(), (text("reason").unwrap(), text("survivor")))
    };
    text.lines().map(record).collect()
}

/// Documents `pN` and what is nearly the same, `qN`; and, if wanted, paraphrases of others, too.
fn planted(paraphrases: bool) -> Vec<(String, String)> {
    let texts = paragraphs();
    let originals = texts.iter().enumerate().map(|(at, text)| (format!("p{at}"), text.clone()));
    let copies = texts.iter().enumerate().step_by(2).map(|(at, text)| (format!("q{at}"), nearly(text)));
    let said = PARAPHRASES.iter().enumerate().filter(|_| paraphrases);
    let said =
        said.flat_map(|(at, pair)| ["p", "q"].map(|kind| format!("{kind}s{at}")).into_iter().zip(*pair));
    originals.chain(copies).chain(said.map(|(id, text)| (id, text.to_owned()))).collect()
}

/// What is planted is found, with at most so many others, whatever the partitions and threads.
fn finds_planted(model: &Path, texts: &[(String, String)], threshold: f64, others: usize) {
    let tmp = tempfile::tempdir().unwrap();
    let curate = format!(
        "[curate.semantic]\nmodel = {:?}\nthreshold = {threshold}\ncenter = true\nclusters = 1\n",
        arg(model)
    );
    let recipe = recipe(tmp.path(), texts, &curate);
    let mut first: Option<(Vec<u8>, Vec<u8>)> = None;
    for (at, (partitions, threads)) in [(1, 1), (2, 1), (7, 2), (1, 2)].into_iter().enumerate() {
        let folder = tmp.path().join(format!("run{at}"));
        run(&recipe, &folder, partitions, threads);
        let bytes = |name: &str| fs::read(folder.join("curate").join(name)).unwrap();
        let files = (bytes("documents.parquet"), bytes("dropped.jsonl"));
        match &first {
            None => {
                let dropped = dropped(&folder);
                assert!(dropped.values().all(|(reason, _)| reason == "semantic_duplicate"), "{dropped:?}");
                let groups: BTreeSet<&str> = dropped.keys().map(|id| &id[1..]).collect();
                let planted = texts.iter().filter(|(id, _)| id.starts_with('q')).map(|(id, _)| &id[1..]);
                let planted: BTreeSet<&str> = planted.collect();
                assert!(groups.is_superset(&planted), "{planted:?} were planted, and found: {dropped:?}");
                assert!(dropped.len() <= planted.len() + others, "{dropped:?}");
                first = Some(files);
            }
            Some(first) => assert!(*first == files, "{partitions} partitions and {threads} threads differ"),
        }
    }
}

#[test]
fn a_model_finds_near_copies_of_real_text() {
    // It has seen little text, so paragraphs about one thing are as near to it as copies.
    finds_planted(&shared().exported, &planted(false), 0.72, 13);
}

/// SmolLM2, if `cargo xtask fixtures` has fetched it.
#[expect(clippy::print_stdout, reason = "says why a test tests less")]
fn smollm2() -> Option<PathBuf> {
    let folder = std::env::var_os("LLAMERO_FIXTURES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")), PathBuf::from);
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("skipped: no files of `cargo xtask fixtures`");
        return None;
    }
    Some(path)
}

#[test]
fn smollm2_finds_near_copies_and_paraphrases() {
    if let Some(model) = smollm2() {
        finds_planted(&model, &planted(true), 0.85, 3);
    }
}

/// Lines of examples: prose is good, code is bad.
fn examples(folder: &Path) -> PathBuf {
    let mut lines = String::new();
    for (at, text) in paragraphs().iter().enumerate() {
        lines += &format!("{}\n", json!({"text": text, "label": "good"}));
        let code = format!("fn f{at}(x: u64) -> u64 {{ let y = x + {at}; y * {at} }}\n").repeat(4);
        lines += &format!("{}\n", json!({"text": code, "label": "bad"}));
    }
    let path = folder.join("labels.jsonl");
    write(&path, lines);
    path
}

#[test]
fn a_classifier_on_a_model_judges_in_a_recipe() {
    let tmp = tempfile::tempdir().unwrap();
    let (labels, head) = (examples(tmp.path()), tmp.path().join("head"));
    let model = tmp.path().join("model");
    copy_dir(&shared().exported, &model);
    let train = |out: &Path, more: &[&str]| {
        let args = ["curate", "train-classifier", arg(&labels), "--model", arg(&model), "--out", arg(out)];
        llamero(args.iter().chain(more))
    };
    let said = train(&head, &["--positive", "good", "--folds", "4", "--json"]).json();
    assert_eq!(
        (&said["labels"], said["examples"].as_u64()),
        (&json!(["bad", "good"]), Some(paragraphs().len() as u64 * 2))
    );
    assert!(said["cross_validation"]["low"].as_f64().unwrap() > 0.9, "{said}");
    // Threads are no part of it.
    let again = tmp.path().join("again");
    train(&again, &["--positive", "good", "--folds", "4", "--threads", "1"]).ok();
    let bytes = |folder: &Path| fs::read(folder.join("classifier.json")).unwrap();
    assert!(bytes(&head) == bytes(&again));
    train(&head, &[]).fails(1, &["head", "--force"]);
    train(&tmp.path().join("none"), &["--positive", "fair", "--folds", "4"])
        .fails(1, &["`fair`", "bad, good"]);
    assert!(!tmp.path().join("none").exists());
    train(&tmp.path().join("none"), &["--epochs", "3"]).fails(2, &["--epochs", "--model"]);
    train(&tmp.path().join("none"), &["--l2", "0"]).fails(2, &["--l2", "above 0"]);

    let texts: Vec<(String, String)> = paragraphs()
        .into_iter()
        .take(6)
        .enumerate()
        .map(|(at, text)| (format!("good{at}"), text))
        .chain((0..6).map(|at| {
            (format!("bad{at}"), format!("fn g{at}(x: u32) -> u32 {{ x * {at} + 1 }}\n").repeat(5))
        }))
        .collect();
    let section = |more: &str| {
        format!(
            "max_repeated_share = 1.0\n[[curate.quality]]\nmodel = {:?}\nlabel = \"good\"\nmin_probability = 0.5\n{more}",
            arg(&head)
        )
    };
    let file = recipe(tmp.path(), &texts, &section(""));
    run(&file, &tmp.path().join("run"), 2, 2);
    let found = dropped(&tmp.path().join("run"));
    assert!(found.values().all(|(reason, _)| reason == "quality"), "{found:?}");
    assert!(found.keys().all(|id| id.starts_with("bad")) && found.len() == 6, "{found:?}");

    // Another model than the head's is refused by name, moved it is fine.
    let moved = tmp.path().join("moved");
    fs::rename(&model, &moved).unwrap();
    let fails = |section: String, parts: &[&str]| {
        let file = recipe(tmp.path(), &texts, &section);
        let set = format!("run.dir={:?}", arg(&tmp.path().join("fails")));
        llamero(["curate", "run", arg(&file), "--set", &set]).fails(1, parts);
    };
    fails(section(""), &["head", arg(&model), "encoder"]);
    let file = recipe(tmp.path(), &texts, &section(&format!("encoder = {:?}\n", arg(&moved))));
    run(&file, &tmp.path().join("moved-run"), 1, 1);
    assert_eq!(dropped(&tmp.path().join("moved-run")), found);
    let other = shared().run.join("pretrain");
    fails(section(&format!("encoder = {:?}\n", arg(&other))), &["head", arg(&other), "hash", "encoder"]);
}

#[test]
fn models_that_cannot_embed_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let texts = vec![("a".to_owned(), "some words and more of them".to_owned())];
    let fails = |curate: String, parts: &[&str]| {
        let file = recipe(tmp.path(), &texts, &curate);
        let set = format!("run.dir={:?}", arg(&tmp.path().join("run")));
        llamero(["curate", "run", arg(&file), "--set", &set]).fails(1, parts);
    };
    let semantic = |key: &str, path: &Path| format!("[curate.semantic]\n{key} = {:?}\n", arg(path));
    fails(semantic("model", &tmp.path().join("nowhere")), &["curate.semantic.model", "nowhere"]);
    fails(
        semantic("model", &tmp.path().join("docs.jsonl")),
        &["curate.semantic.model", "docs.jsonl", "GGUF"],
    );
    fails(semantic("embeddings", &tmp.path().join("docs.jsonl")), &["docs.jsonl", "Parquet"]);
    fails("[curate.semantic]\n".to_owned(), &["curate.semantic.model", "absent"]);
    let pinned = semantic("model", &shared().exported) + "model_hash = \"00\"\n";
    fails(pinned, &["model_hash", "`curate.semantic.model_hash` is 00"]);
}

#[test]
fn an_estimate_counts_the_model() {
    let Some(model) = smollm2() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let texts = planted(false);
    let memory = |curate: &str| {
        let file = recipe(tmp.path(), &texts, curate);
        let set = format!("run.dir={:?}", arg(&tmp.path().join("run")));
        let args = ["curate", "run", arg(&file), "--set", &set, "--memory", "64MiB", "--estimate", "--json"];
        llamero(args).json()["memory_bytes"].as_u64().unwrap()
    };
    let without = memory("gopher_quality = {}\n");
    let with = memory(&format!("[curate.semantic]\nmodel = {:?}\n", arg(&model)));
    // 135 million parameters of 4 bytes.
    assert!(with > without + (500 << 20) && with < without + (1_500 << 20), "{with} and {without}");
}
