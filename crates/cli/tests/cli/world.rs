//! A small corpus, a recipe that learns from it in about two seconds, and one finished run that tests share.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

/// Stages of a settled recipe, in order.
pub(crate) const STAGES: [&str; 7] =
    ["curate", "tokenizer", "instruct", "tokens", "pretrain", "sft", "evaluate"];

/// What a call of the binary gave.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// The standard output of a call that went well.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// The standard output of a call that went well, as JSON on one line.
    pub(crate) fn json(self) -> Value {
        let out = self.ok();
        assert_eq!(out.lines().count(), 1, "{out}");
        serde_json::from_str(&out).unwrap()
    }

    /// The message of a call that failed with `code`, printed nothing, and says all of `phrases`.
    pub(crate) fn fails(self, code: i32, phrases: &[&str]) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{self:?}");
        for phrase in phrases {
            assert!(self.err.contains(phrase), "no `{phrase}` in: {}", self.err);
        }
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self.err
    }
}

/// The binary with these arguments.
pub(crate) fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llamero"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs the binary without input.
pub(crate) fn llamero<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Said {
    said(&command(args).output().unwrap())
}

/// Runs the binary with `input` on its standard input.
pub(crate) fn llamero_reading<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, input: &str) -> Said {
    let mut command = command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    said(&child.wait_with_output().unwrap())
}

/// What a call that is over gave.
pub(crate) fn said(output: &std::process::Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `run RECIPE` into `dir` with these `--set`s.
pub(crate) fn run_args(recipe: &Path, dir: &Path, sets: &[&str]) -> Vec<String> {
    let mut args = vec!["run".into(), arg(recipe).into(), "--set".into(), format!("run.dir={}", arg(dir))];
    args.extend(sets.iter().flat_map(|set| ["--set".to_string(), (*set).to_string()]));
    args
}

/// Numbers that look random and are always the same.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

const WORDS: &str = "the a of to in for and with from by on as is are was has have uses takes gives model text token \
    layer weight step value time crate file line table tree graph node edge path name key lock thread queue buffer \
    fast small large simple safe plain exact stable reads writes sorts maps joins splits counts finds checks parses";

/// Prose of `paragraphs` paragraphs.
pub(crate) fn prose(dice: &mut Dice, paragraphs: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let paragraph = |dice: &mut Dice| {
        let sentence = |dice: &mut Dice| {
            let length = 5 + dice.below(9);
            let picked: Vec<&str> =
                (0..length).map(|_| words[dice.below(words.len() as u64) as usize]).collect();
            picked.join(" ") + "."
        };
        (0..6).map(|_| sentence(dice)).collect::<Vec<_>>().join(" ")
    };
    (0..paragraphs).map(|_| paragraph(dice)).collect::<Vec<_>>().join("\n\n")
}

/// Writes a file and the folders it lies in.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A folder of crates with a description, a readme and some code each.
pub(crate) fn crates(dir: &Path, num_crates: usize) {
    let mut dice = Dice(7);
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    for i in 0..num_crates {
        let folder = dir.join(format!("demo{i}-1.0.{i}"));
        let (what, how) = (words[20 + i % 20], words[40 + i % 17]);
        let manifest = format!(
            "[package]\nname = \"demo{i}\"\nversion = \"1.0.{i}\"\nedition = \"2024\"\n\
             description = \"A {what} that {how} number {i} well\"\nlicense = \"MIT OR Apache-2.0\"\n"
        );
        write(&folder.join("Cargo.toml"), manifest);
        write(&folder.join("README.md"), format!("# demo{i}\n\n{}\n", prose(&mut dice, 5)));
        let functions = (0..8).map(|j| {
            let (a, b) = (words[dice.below(60) as usize], words[dice.below(60) as usize]);
            format!("/// The {a} of a {b}.\npub fn {a}_{j}({b}: u64) -> u64 {{\n    {b} + {j}\n}}\n")
        });
        let code = functions.collect::<Vec<_>>().join("\n");
        write(&folder.join("src/lib.rs"), code);
    }
}

/// A recipe without a budget that learns from `sources`.
pub(crate) fn recipe(sources: &Path) -> String {
    format!(
        r#"
[run]
threads = 2
checkpoint_seconds = 0.02
start_over = true
[curate]
sources = [{:?}]
[tokenizer]
vocab_size = 640
[data]
max_held_out_tokens = 1500
[model]
preset = "300k"
[pretrain]
steps = 60
sequence = 160
batch = 4
micro_batch = 2
optimizer = {{ peak_lr = 3e-3, warmup_steps = 4 }}
[instruct]
max_questions = 8
[sft]
steps = 40
sequence = 160
batch = 4
micro_batch = 2
optimizer = {{ peak_lr = 1e-3, warmup_steps = 4 }}
[evaluate]
prompts = ["pub fn "]
questions = ["What is the crate demo3 for?"]
max_tokens = 8
"#,
        arg(sources)
    )
}

/// Corpus, recipe, a run of it without interruption, and its model exported.
pub(crate) struct Shared {
    pub(crate) sources: PathBuf,
    pub(crate) recipe: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) exported: PathBuf,
    /// What the run printed with `--json`.
    pub(crate) summary: Value,
    /// What it logged.
    pub(crate) log: String,
    /// Keeps another test process out of the folder until this one ends.
    _lock: fs::File,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = fs::File::create(root.join("shared.lock")).unwrap();
    lock.lock().unwrap();
    let root = root.join("shared");
    if root.exists() {
        fs::remove_dir_all(&root).unwrap();
    }
    let [sources, file, run, exported] = ["sources", "recipe.toml", "run", "exported"].map(|n| root.join(n));
    crates(&sources, 24);
    write(&file, recipe(&sources));
    let mut args = run_args(&file, &run, &["budget=10m"]);
    args.push("--json".into());
    let said = llamero(args);
    let log = said.err.clone();
    let summary = said.json();
    llamero(["export", arg(&run), "--out", arg(&exported)]).ok();
    Shared { sources, recipe: file, run, exported, summary, log, _lock: lock }
});

/// The shared run.
pub(crate) fn shared() -> &'static Shared {
    &SHARED
}

/// The manifest of a finished artifact.
pub(crate) fn manifest(artifact: &Path) -> Value {
    let path = artifact.join("manifest.json");
    let text = fs::read(&path).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// Id of every stage, and the bytes of every file in it but the manifest, which holds times.
pub(crate) fn contents(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for stage in STAGES {
        let manifest = manifest(&run.join(stage));
        all.insert(format!("{stage} id"), manifest["id"].as_str().unwrap().into());
        for file in names(&run.join(stage)).iter().filter(|name| *name != "manifest.json") {
            all.insert(format!("{stage}/{file}"), fs::read(run.join(stage).join(file)).unwrap());
        }
    }
    all
}

/// Asserts that two runs have equal ids and equal bytes, naming what differs.
pub(crate) fn assert_equal_runs(one: &Path, other: &Path) {
    let (one, other) = (contents(one), contents(other));
    assert!(one.contains_key("pretrain/model.safetensors") && one.contains_key("sft/model.safetensors"));
    let names = |all: &BTreeMap<String, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&one), names(&other));
    let differ: Vec<_> = one.keys().filter(|name| one[*name] != other[*name]).collect();
    assert!(differ.is_empty(), "differ: {differ:?}");
}

/// Names in a folder, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("`{}`: {e}", dir.display()));
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that a finished run holds what a run holds and nothing else.
pub(crate) fn assert_tidy(run: &Path, with_plan: bool) {
    let mut expected: Vec<&str> = STAGES.to_vec();
    expected.extend([".lock", "recipe.toml", "report.html", "pretrain.ledger.jsonl", "sft.ledger.jsonl"]);
    expected.extend(with_plan.then_some("plan"));
    expected.sort_unstable();
    assert_eq!(names(run), expected);
    for stage in STAGES {
        let files = names(&run.join(stage));
        assert!(files.iter().all(|f| !f.starts_with('.') && f != "resume"), "{stage}: {files:?}");
    }
}

/// Changes one byte in the middle of a file.
pub(crate) fn flip_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Copies a folder.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() { copy_dir(&from, &to) } else { fs::copy(&from, &to).map(drop).unwrap() }
    }
}
