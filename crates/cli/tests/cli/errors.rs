//! What can go wrong: the exit code, a message that names the thing and says what to do, and nothing left that looks
//! finished.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::world::{
    Dice, arg, assert_tidy, command, contents, copy_dir, flip_byte, llamero, llamero_reading, names, prose,
    recipe, run_args, said, shared, write,
};

/// A folder with the test's recipe over the shared corpus.
fn start() -> (TempDir, PathBuf, PathBuf) {
    let tmp = tempfile::tempdir().unwrap();
    let (file, run) = (tmp.path().join("recipe.toml"), tmp.path().join("run"));
    write(&file, recipe(&shared().sources));
    (tmp, file, run)
}

/// Asserts that a run folder, if there is one, holds no model and no report.
fn nothing_finished(run: &Path) {
    let left = if run.exists() { names(run) } else { Vec::new() };
    for name in ["pretrain", "sft", "evaluate", "report.html"] {
        assert!(!left.contains(&name.to_owned()), "{left:?}");
    }
}

#[test]
fn a_wrong_value_is_named_before_anything_is_done() {
    let (_tmp, file, run) = start();
    let cases: &[(&str, &[&str])] = &[
        ("pretrain.stepz=3", &["pretrain.stepz", "expected one of", "`micro_batch`"]),
        ("stepz=3", &["`stepz`", "`curate`", "`pretrain`"]),
        ("pretrain.optimizer.lr=3", &["pretrain.optimizer.lr", "`peak_lr`"]),
        ("=3", &["--set =3", "key"]),
        ("pretrain.steps", &["--set pretrain.steps", "key=value"]),
        ("pretrain.steps=many", &["pretrain.steps", "many"]),
        ("pretrain.steps=0", &["pretrain", "steps", "1 to 2^40"]),
        ("pretrain.optimizer.beta1=1.0", &["pretrain", "optimizer.beta1", "below 1"]),
        ("sft.micro_batch=0", &["sft", "micro_batch", "1 to 65536"]),
        ("sft.sequence=4096", &["sft.sequence", "4096", "pretrain.sequence"]),
        ("instruct.choices=9", &["instruct.choices", "2 to 8"]),
        ("curate.max_control_share=2.0", &["curate.max_control_share", "from 0 to 1"]),
        ("curate.sources=[]", &["curate.sources", "one or more"]),
        ("curate.sources=/data", &["curate.sources", "/data"]),
        ("data.held_out=0.9", &["data.held_out", "at most 0.5"]),
        ("tokenizer.vocab_size=100", &["tokenizer.vocab_size", "576"]),
        ("model.preset=2b", &["model.preset", "2b", "`300k`"]),
        ("model.dtype=f16", &["model.dtype", "`bf16`"]),
        ("evaluate.max_tokens=0", &["evaluate.max_tokens", "at least 1"]),
        ("run.threads=0", &["run.threads", "at least 1"]),
        ("run.checkpoint_seconds=-1.0", &["run.checkpoint_seconds", "at least 0"]),
        ("run.checkpoint_every=soon", &["run.checkpoint_every", "soon", "`90s`"]),
        ("run.checkpoint_every=\"30s\"", &["run.checkpoint_every", "run.checkpoint_seconds", "give one"]),
        ("run.keep_checkpoints=0", &["run.keep_checkpoints", "at least 1"]),
        ("run.remote_checkpoints=file://here", &["run.remote_checkpoints", "file://here", "file:///mnt/x"]),
        ("budget=5x", &["budget", "5x", "`8m`"]),
    ];
    for (set, phrases) in cases {
        llamero(run_args(&file, &run, &[set])).fails(1, phrases);
        assert!(!run.exists(), "{set} left {:?}", names(&run));
    }
}

#[test]
fn a_recipe_that_cannot_be_read_is_located() {
    let tmp = tempfile::tempdir().unwrap();
    let (file, run) = (tmp.path().join("recipe.toml"), tmp.path().join("run"));
    let cases: &[(&str, &[&str])] = &[
        ("[model]\npreset = \"300k\"\n", &["pretrain.steps", "missing", "hint:", "budget"]),
        ("", &["model.preset", "missing", "hint:", "budget"]),
        ("[pretrain\n", &["line 1", "]"]),
        ("[pretrain]\nsteps = \"x\"\n", &["line 2", "pretrain.steps"]),
        ("[pretrain]\nstepz = 1\n", &["line 2", "stepz", "`steps`"]),
        ("budget = \"2s\"\n", &["budget", "hint:"]),
    ];
    for (text, phrases) in cases {
        write(&file, text);
        let said = llamero(run_args(&file, &run, &[])).fails(1, phrases);
        assert!(said.contains("recipe.toml") || text.starts_with("budget"), "{said}");
        nothing_finished(&run);
    }
    let missing = tmp.path().join("nope.toml");
    llamero(run_args(&missing, &run, &[])).fails(1, &["nope.toml", "no such file", "hint:"]);
    llamero(run_args(tmp.path(), &run, &[])).fails(1, &["it is not a file", "hint:"]);
    write(&file, recipe(tmp.path()));
    llamero(run_args(&file, &file, &[])).fails(1, &["run.dir", "recipe.toml"]);
}

#[test]
fn sources_that_hold_no_text_are_refused() {
    let (tmp, file, run) = start();
    let (empty, images, one) = (tmp.path().join("empty"), tmp.path().join("images"), tmp.path().join("one"));
    fs::create_dir(&empty).unwrap();
    let mut dice = Dice(9);
    for i in 0..3 {
        let bytes: Vec<u8> = (0..5000).map(|_| dice.below(256) as u8).collect();
        write(&images.join(format!("{i}.jpg")), bytes);
    }
    write(&one.join("only.md"), prose(&mut dice, 3));
    let cases: &[(&Path, &[&str])] = &[
        (&empty, &["matches no file", "hint:", "curate.sources"]),
        (&images, &["all 3 files were dropped", "`binary`", "hint:"]),
        (&one, &["hint:", "documents", "curate.sources"]),
        (&tmp.path().join("nowhere"), &["nowhere", "hint:", "curate.sources"]),
    ];
    for (sources, phrases) in cases {
        let set = format!("curate.sources=[{:?}]", arg(sources));
        let said = llamero(run_args(&file, &run, &[&set])).fails(1, phrases);
        assert!(said.contains(arg(sources)) || said.contains("stage `"), "{said}");
        nothing_finished(&run);
        let model = llamero(["generate", arg(&run), "--prompt", "x"]).fails(1, &["no model", "hint:"]);
        assert!(model.contains(arg(&run)), "{model}");
    }
    // The same folder goes on once the sources are right.
    llamero(run_args(&file, &run, &["pretrain.steps=1", "sft.steps=1"])).ok();
    assert_tidy(&run, false);
}

#[test]
fn a_context_too_short_for_every_question_is_said_before_training() {
    let (_tmp, file, run) = start();
    let short = ["pretrain.sequence=24", "sft.sequence=24"];
    llamero(run_args(&file, &run, &short))
        .fails(1, &["questions", "24 tokens", "hint:", "pretrain.sequence"]);
    nothing_finished(&run);
}

#[test]
fn what_is_no_model_is_told_apart() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let half = tmp.path().join("half");
    fs::create_dir(&half).unwrap();
    fs::copy(shared.exported.join("config.json"), half.join("config.json")).unwrap();
    let cases: &[(PathBuf, &[&str])] = &[
        (tmp.path().join("nope"), &["no model at", "no such file or folder"]),
        (shared.run.join("curate"), &["kind `curate`", "`sft`"]),
        (shared.recipe.clone(), &["it is a file"]),
        (shared.run.join("tokenizer/tokenizer.model"), &["it is a tokenizer"]),
        (tmp.path().to_owned(), &["no model at"]),
        (half, &["no `model.safetensors`"]),
    ];
    for (path, phrases) in cases {
        let path = arg(path);
        let file = arg(&shared.recipe);
        let out = tmp.path().join("out");
        let calls: [&[&str]; 4] = [
            &["generate", path, "--prompt", "x", "--max-tokens", "3"],
            &["score", path, "--text", file],
            &["chat", path],
            &["export", path, "--out", arg(&out)],
        ];
        for call in calls {
            let said = llamero(call).fails(1, phrases);
            assert!(said.contains(path) && said.contains("hint:"), "{call:?}: {said}");
        }
        assert!(!out.exists());
        llamero(["inspect", path, "--json"]).fails(1, &[path]);
    }
    llamero(["inspect", "9b"]).fails(1, &["`9b`", "405b"]);
    llamero(["why", arg(tmp.path())]).fails(1, &[arg(tmp.path())]);
}

#[test]
fn one_flipped_byte_is_never_used() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    for file in ["model.safetensors", "config.json", "tokenizer.model"] {
        let model = tmp.path().join(file).join("sft");
        copy_dir(&shared.run.join("sft"), &model);
        flip_byte(&model.join(file));
        let out = tmp.path().join("out");
        let calls: [&[&str]; 4] = [
            &["generate", arg(&model), "--prompt", "x"],
            &["score", arg(&model), "--text", arg(&shared.recipe), "--json"],
            &["export", arg(&model), "--out", arg(&out)],
            &["inspect", arg(&model), "--json"],
        ];
        for call in calls {
            llamero(call).fails(1, &[file, "damaged", "blake3", "hint:"]);
        }
        assert_eq!(names(tmp.path()).iter().filter(|name| name.starts_with("out")).count(), 0);
    }
}

#[test]
fn a_run_folder_has_one_worker_and_no_model_until_it_is_done() {
    let (_tmp, file, run) = start();
    let long = ["pretrain.steps=100000"];
    let mut worker =
        command(run_args(&file, &run, &long)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !run.join("pretrain.partial/resume").is_dir() {
        assert!(worker.try_wait().unwrap().is_none(), "the run ended early");
        std::thread::sleep(Duration::from_millis(2));
    }
    let process = format!("process {}", worker.id());
    let second = llamero(run_args(&file, &run, &long));
    let models = [run.clone(), run.join("pretrain"), run.join("pretrain.partial")];
    let unfinished =
        models.each_ref().map(|model| (llamero(["generate", arg(model), "--prompt", "x"]), model));
    worker.kill().unwrap();
    worker.wait().unwrap();
    second.fails(1, &[arg(&run), "in use by", &process, "hint:"]);
    for (said, model) in unfinished {
        said.fails(1, &[arg(model), "unfinished", "hint:", "resumes"]);
    }
    nothing_finished(&run);
}

#[test]
fn bad_input_of_commands_is_named() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let (model, dir) = (arg(&shared.run), tmp.path());
    let [empty, binary, missing] = ["empty.txt", "binary.bin", "missing.txt"].map(|n| dir.join(n));
    write(&empty, "");
    write(&binary, b"abc\xff\xfe");
    let score = |file: &Path| llamero(["score", model, "--text", arg(file), "--json"]);
    score(&empty).fails(1, &["nothing to score", "empty"]);
    score(&binary).fails(1, &["binary.bin", "not UTF-8", "at 3", "hint:"]);
    score(&missing).fails(1, &["missing.txt"]);
    let generate = |key: &str, value: &str| llamero(["generate", model, "--prompt", "x", key, value]);
    generate("--max-tokens", "0").fails(2, &["--max-tokens", "1 or more"]);
    generate("--top-k", "0").fails(2, &["--top-k", "1 or more"]);
    generate("--min-p", "-0.5").fails(2, &["--min-p", "0 to 1"]);
    generate("--temperature", "-1").fails(2, &["--temperature", "'-1'", "positive"]);
    generate("--top-p", "1.5").fails(2, &["--top-p", "1.5", "at most 1"]);
    generate("--repetition-penalty", "0").fails(2, &["--repetition-penalty", "'0'", "0.1 to 10"]);
    generate("--frequency-penalty", "-3").fails(2, &["--frequency-penalty", "-3", "-2 to 2"]);
    generate("--presence-penalty", "nan").fails(2, &["--presence-penalty", "nan"]);
    generate("--penalty-window", "0").fails(2, &["--penalty-window", "1 or more"]);
    generate("--logit-bias", "3=200").fails(2, &["--logit-bias", "`200`", "-100 forbids"]);
    generate("--threads", "0").fails(2, &["--threads", "1 to 1024"]);
    generate("--logit-bias", "999999=1").fails(1, &["999999", "vocabulary"]);
    generate("--kv-memory", "0").fails(2, &["--kv-memory", "0 is not in 1.."]);
    for seed in ["-1", "1.5", "18446744073709551616"] {
        generate("--seed", seed).fails(2, &["--seed", "from 0 to 2^64-1"]);
    }
    generate("--seed", "18446744073709551615").ok();
    generate("--stop", "").fails(2, &["--stop", "one character"]);
    llamero(["generate", model, "--prompt-file", arg(&binary)])
        .fails(1, &["binary.bin", "not UTF-8", "at 3"]);
    llamero(["generate", arg(&missing), "--prompt", "x"])
        .fails(1, &["no model at", "missing.txt", "no such file or folder"]);
    for preset in ["8b", "llama3-8b"] {
        let says = [preset, "preset", "no weights", "hint:"];
        llamero(["generate", preset, "--prompt", "x"]).fails(1, &says);
        llamero(["score", preset, "--text", arg(&empty.with_file_name("binary.bin"))]).fails(1, &["UTF-8"]);
        llamero(["chat", preset]).fails(1, &says);
        llamero(["convert", preset, "x.gguf"]).fails(1, &says);
        llamero(["export", preset, "--out", "x"]).fails(1, &says);
        llamero(["bench", "infer", preset]).fails(1, &says);
    }
    let long = "word ".repeat(400);
    llamero(["generate", model, "--prompt", &long]).fails(1, &["prompt", "does not fit", "160"]);
    let tokenizer = shared.run.join("tokenizer");
    let coder = |command: &str, path: &Path, input: &str| {
        llamero_reading(["tokenizer", command, "--tokenizer", arg(path), "--jsonl"], input)
    };
    coder("encode", &missing, "").fails(1, &["missing.txt"]);
    coder("encode", &tokenizer, "{\"txt\": 1}\n").fails(1, &["line 1", "{\"text\": …}"]);
    coder("decode", &tokenizer, "{\"ids\": [99999999]}\n").fails(1, &["99999999", "vocabulary"]);
    let out = dir.join("own");
    let train = |input: &Path, size: &str| {
        llamero(["tokenizer", "train", "--input", arg(input), "--vocab-size", size, "--out", arg(&out)])
    };
    train(&missing, "600").fails(1, &["missing.txt"]);
    train(&shared.recipe, "6").fails(1, &["vocabulary size `6`", "512"]);
    assert!(!out.exists());
    let full = arg(&shared.exported);
    llamero(["export", model, "--out", full]).fails(1, &[full, "not empty", "hint:", "--out"]);
}

#[test]
fn wrong_usage_is_another_exit_code() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["frobnicate"], "frobnicate"),
        (&["run"], "<RECIPE>"),
        (&["generate", "runs/x"], "--prompt-file"),
        (&["generate", "runs/x", "--prompt", "x", "--prompt-file", "y"], "--prompt-file"),
        (&["generate", "runs/x", "--prompt", "x", "--max-tokens", "many"], "--max-tokens"),
        (&["generate", "runs/x", "--prompt", "x", "--logit-bias", "the=1"], "token id"),
        (&["generate", "runs/x", "--prompt", "x", "--dtype", "f16"], "bf16"),
        (&["score", "runs/x", "--json"], "--text"),
        (&["score", "runs/x", "--text", "x", "--tokens"], "--json"),
        (&["export", "runs/x"], "--out"),
        (&["tokenizer"], "encode"),
    ];
    for (args, phrase) in cases {
        llamero(*args).fails(2, &[phrase]);
    }
}

/// A small file system in memory that is gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one, where the system lets this user.
    fn mount(at: &Path, kib: usize) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs", arg(at)]).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }

    fn resize(&self, kib: usize) {
        let size = format!("remount,size={kib}k");
        let status = Command::new("mount").args(["-o", &size, arg(&self.0)]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_stops_the_run_and_more_room_lets_it_finish() {
    let (tmp, file, _) = start();
    let Some(disk) = SmallDisk::mount(&tmp.path().join("disk"), 8) else {
        println!("skipped: this user cannot mount a tmpfs");
        return;
    };
    let run = disk.0.join("run");
    let (mut stages, mut kib) = (Vec::new(), 8);
    // Each time the disk is full somewhere else.
    loop {
        disk.resize(kib);
        let said = llamero(run_args(&file, &run, &["run.checkpoint_seconds=0.3"]));
        if said.code == Some(0) {
            break;
        }
        let text = said.fails(1, &["disk full", arg(&disk.0), "hint: free some space"]);
        assert!(!run.join("report.html").exists());
        stages.extend(
            text.split("disk/run/").skip(1).filter_map(|at| at.split(['/', '`']).next().map(str::to_owned)),
        );
        kib = kib * 3 / 2 + 20;
    }
    stages.dedup();
    assert!(stages.len() >= 4, "the disk was full in {stages:?} only");
    assert_tidy(&run, false);
    assert!(contents(&run) == contents(&shared().run));
}

#[test]
fn only_what_resumes_is_said_to_resume() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let model = arg(&shared.exported);
    let never = |text: String| assert!(!text.contains("resumes"), "{text}");
    for args in [&["generate", model, "--prompt", "x", "--json"][..], &["inspect", model]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = command(args);
        let said = said(&command.stdout(full).output().unwrap());
        never(said.fails(1, &["disk full", "hint: free some space"]));
    }
    never(llamero(["why", model]).fails(1, &[model, "no finished artifact", "hint:", "RUN/sft"]));
    never(llamero(["why", arg(&tmp.path().join("nope"))]).fails(1, &["no such file or folder"]));
    let Some(disk) = SmallDisk::mount(&tmp.path().join("disk"), 64) else {
        println!("skipped: this user cannot mount a tmpfs");
        return;
    };
    for out in ["a.gguf", "folder"] {
        never(
            llamero(["convert", model, arg(&disk.0.join(out))])
                .fails(1, &["disk full", "hint: free some space"]),
        );
        assert!(names(&disk.0).is_empty(), "{:?}", names(&disk.0));
    }
}

#[test]
fn a_tokenizer_is_looked_for_inside_of_a_gguf_file() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("model.gguf");
    let encode = || llamero(["tokenizer", "encode", "--tokenizer", arg(&file)]);
    encode().fails(1, &["model.gguf"]);
    // What would be a line of a `tokenizer.model`.
    write(&file, "YQ== 0\n");
    encode().fails(1, &["model.gguf", "GGUF"]);
}
