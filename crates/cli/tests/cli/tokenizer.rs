//! `llamero tokenizer`: encode, decode, inspect and compare, on a tokenizer of a moment.

use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::{Dice, arg, command, llamero, llamero_reading, prose, said, write};

/// Two tokenizers, and the text of the first.
struct Trained {
    _tmp: TempDir,
    text: PathBuf,
    first: PathBuf,
    second: PathBuf,
}

static TRAINED: LazyLock<Trained> = LazyLock::new(|| {
    let tmp = tempfile::tempdir().unwrap();
    let train = |seed: u64, size: &str| {
        let (text, out) = (tmp.path().join(format!("{seed}.txt")), tmp.path().join(seed.to_string()));
        write(&text, prose(&mut Dice(seed), 40));
        llamero(["tokenizer", "train", "--input", arg(&text), "--vocab-size", size, "--out", arg(&out)]).ok();
        (text, out)
    };
    let ((text, first), (_, second)) = (train(3, "640"), train(4, "700"));
    Trained { _tmp: tmp, text, first, second }
});

/// `llamero tokenizer COMMAND --tokenizer FIRST …` over `input`.
fn coder(command: &str, more: &[&str], input: &str) -> crate::world::Said {
    let args = ["tokenizer", command, "--tokenizer", arg(&TRAINED.first)];
    llamero_reading(args.iter().chain(more), input)
}

fn ids(text: &str) -> Vec<u64> {
    text.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// The id that a special token has.
fn special(name: &str) -> u64 {
    let found = ids(&coder("encode", &["--special"], name).ok());
    assert_eq!(found.len(), 1, "{name}");
    found[0]
}

#[test]
fn names_of_special_tokens_are_text_unless_asked_for() {
    let text = "so<|eot_id|>it";
    let plain = ids(&coder("encode", &[], text).ok());
    let with = ids(&coder("encode", &["--special"], text).ok());
    let eot = special("<|eot_id|>");
    assert!(!plain.contains(&eot) && with.contains(&eot) && with.len() < plain.len());
    let words = with.iter().map(u64::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(coder("decode", &[], &words).ok(), text);
    assert_eq!(coder("decode", &["--skip-special"], &words).ok(), "soit");
    let line = json!({ "ids": with }).to_string();
    assert_eq!(coder("decode", &["--skip-special", "--jsonl"], &line).ok(), "{\"text\":\"soit\"}\n");
    // Around every document.
    let around = ids(&coder("encode", &["--bos", "--eos"], text).ok());
    let (bos, eos) = (special("<|begin_of_text|>"), special("<|end_of_text|>"));
    assert_eq!(around, [&[bos], &plain[..], &[eos]].concat());
    let lines = format!("{}\n{}\n", json!({ "text": text }), json!({ "text": "" }));
    let lines = coder("encode", &["--bos", "--eos", "--jsonl"], &lines).ok();
    assert_eq!(lines, format!("{}\n{}\n", json!({ "ids": around }), json!({ "ids": [bos, eos] })));
}

#[test]
fn long_files_are_encoded_as_they_are_read() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("long.txt");
    let text = std::fs::read_to_string(&TRAINED.text).unwrap();
    let long = text.repeat((3 << 20) / text.len() + 1) + &"x".repeat(2 << 20);
    write(&file, &long);
    let whole = coder("encode", &["--jsonl"], &json!({ "text": long }).to_string()).ok();
    for threads in ["1", "3"] {
        let parts = coder("encode", &["--json", "--threads", threads, arg(&file)], "").ok();
        assert!(parts == whole, "not the ids of the whole with {threads} threads");
    }
    let report: Value = coder("encode", &["--count", "--json", arg(&file), arg(&TRAINED.text)], "").json();
    let whole: Value = serde_json::from_str(&whole).unwrap();
    let tokens = whole["ids"].as_array().unwrap().len();
    assert_eq!(report["files"][0]["tokens"], tokens);
    assert_eq!(report["total"]["bytes"], long.len() + text.len());
    assert_eq!(report["total"]["documents"], 2);
    let each = report["files"][0]["bytes_per_token"].as_f64().unwrap();
    assert!((each - long.len() as f64 / tokens as f64).abs() < 1e-9);
    let words = coder("encode", &["--count"], "the thing").ok();
    assert!(words.starts_with("all: ") && words.contains("9 bytes, "), "{words}");
    // As bytes, exactly, and each file on a line of its own.
    let two = coder("encode", &[arg(&file), arg(&TRAINED.text)], "").ok();
    assert_eq!(two.lines().count(), 2);
    let words = tmp.path().join("ids.txt");
    write(&words, two);
    assert!(coder("decode", &[arg(&words)], "").ok() == long + &text);
}

#[test]
fn bad_input_is_located() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("bad.txt");
    write(&file, b"one\ntwo \xff three");
    let bad =
        coder("encode", &["--count", arg(&file)], "").fails(1, &["bad.txt", "offset 8", "line 2", "hint:"]);
    assert!(bad.contains("not UTF-8"), "{bad}");
    coder("encode", &["--count", arg(tmp.path())], "").fails(1, &["is a folder", "hint:"]);
    coder("encode", &[arg(&file), arg(&tmp.path().join("nope.txt"))], "").fails(1, &["nope.txt"]);
    coder("encode", &["--threads", "0"], "").fails(2, &["--threads"]);
    let jsonl = "{\"text\": \"a\"}\n\n{\"text\": 1}\n";
    coder("encode", &["--jsonl", "--count"], jsonl).fails(1, &["line 3 of standard input", "{\"text\": …}"]);
    coder("decode", &[], "\n \nseven 2").fails(1, &["line 3", "`seven`", "not a token id", "hint:"]);
    coder("decode", &[], "\n99999999").fails(1, &["line 2", "99999999", "vocabulary size"]);
    coder("decode", &[], "-1").fails(1, &["`-1`"]);
    coder("decode", &[], "4294967296").fails(1, &["`4294967296`"]);
    let jsonl = "{\"ids\": []}\n{\"ids\": [640]}\n";
    let said = coder("decode", &["--jsonl"], jsonl);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("line 2 of standard input") && said.err.contains("640"), "{}", said.err);
    // Half a character is what it is.
    let mut child = command(["tokenizer", "decode", "--tokenizer", arg(&TRAINED.first)]);
    child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let first = ids(&coder("encode", &[], "\u{1f999}").ok())[0].to_string();
    let mut child = child.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), first.as_bytes()).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"\xf0");
}

#[test]
fn inspect_shows_the_vocabulary_and_single_tokens() {
    let first = arg(&TRAINED.first);
    let report = llamero(["tokenizer", "inspect", first, "--json"]).json();
    assert_eq!((&report["vocab_size"], &report["special"]), (&640.into(), &256.into()));
    assert_eq!((&report["ordinary"], &report["ranks"]), (&384.into(), &true.into()));
    let sum =
        |value: &Value| -> u64 { value.as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum() };
    assert_eq!(sum(&report["lengths"]), 384);
    let scripts = report["scripts"].as_array().unwrap();
    assert_eq!(scripts.iter().map(|s| s[1].as_u64().unwrap()).sum::<u64>(), 384);
    // 128 bytes are no characters, and letters are the most.
    assert!(
        scripts.contains(&json!(["parts of characters", 128])) && scripts[0][0] == "Latin",
        "{scripts:?}"
    );
    assert_eq!(report["missing_bytes"], json!([]));
    let longest = &report["longest"][0];
    let text = longest["text"].as_str().unwrap();
    assert!(longest["len"].as_u64().unwrap() > 2);
    let shown = llamero(["tokenizer", "inspect", first, "--json", "--token", text]).json();
    assert_eq!(shown, json!([longest]));
    let shown = llamero(["tokenizer", "inspect", first, "--json", "--id", &longest["id"].to_string()]).json();
    assert_eq!(shown, json!([longest]));
    let eot = llamero(["tokenizer", "inspect", first, "--token", "<|eot_id|>"]).ok();
    assert!(eot.contains("special") && eot.lines().count() == 1, "{eot}");
    llamero(["tokenizer", "inspect", first, "--id", "640"]).fails(1, &["`640`", "below 640"]);
    llamero(["tokenizer", "inspect", first, "--token", ""]).fails(1, &["`--token`", "empty"]);
    let words = llamero(["tokenizer", "inspect", first]).ok();
    for phrase in
        ["Llama 3's", "fingerprint", "chat template", "<|begin_of_text|>", "Latin", "longest tokens"]
    {
        assert!(words.contains(phrase), "no `{phrase}` in {words}");
    }
}

#[test]
fn compare_says_what_differs_and_ends_with_one() {
    let (first, second, text) = (arg(&TRAINED.first), arg(&TRAINED.second), arg(&TRAINED.text));
    // The same tokenizer in two formats.
    let model = TRAINED.first.join("tokenizer.model");
    let same = llamero(["tokenizer", "compare", first, arg(&model), "--text", text, "--json"]).json();
    assert_eq!((&same["equal"], &same["texts"][0]["differing"]), (&true.into(), &0.into()));
    assert_eq!(same["tokens"]["shared"], 384);
    assert!(llamero(["tokenizer", "compare", first, arg(&model)]).ok().ends_with("equal\n"));
    // Two that learned from other texts.
    let said =
        said(&command(["tokenizer", "compare", first, second, "--text", text, "--json"]).output().unwrap());
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("differ"), "{}", said.err);
    let report: Value = serde_json::from_str(&said.out).unwrap();
    let count = |key: &str| report["tokens"][key].as_u64().unwrap();
    assert_eq!((count("shared") + count("only_a"), count("shared") + count("only_b")), (384, 444));
    assert!(count("shared") >= 256);
    assert_eq!((&report["special"]["shared"], &report["special"]["moved"]), (&256.into(), &256.into()));
    let of_text = &report["texts"][0];
    let encoded = |path: &str| ids(&llamero(["tokenizer", "encode", "--tokenizer", path, text]).ok());
    let (of_first, of_second) = (encoded(first), encoded(second));
    assert_eq!(
        (&of_text["tokens_a"], &of_text["tokens_b"]),
        (&of_first.len().into(), &of_second.len().into())
    );
    let at = of_first.iter().zip(&of_second).take_while(|(a, b)| a == b).count();
    assert_eq!(of_text["first"]["a"][0][0], of_first[at]);
    assert_eq!(of_text["first"]["b"][0][0], of_second[at]);
    let tmp = tempfile::tempdir().unwrap();
    let lines = tmp.path().join("lines.jsonl");
    write(
        &lines,
        format!("{}\n{}\n", json!({ "text": "" }), json!({ "text": std::fs::read_to_string(text).unwrap() })),
    );
    let said = command(["tokenizer", "compare", first, second, "--text", arg(&lines)]).output().unwrap();
    let said = crate::world::said(&said);
    assert!(said.out.contains("1 of 2 documents differ") && said.out.contains("in line 2, "), "{}", said.out);
    assert!(said.out.ends_with("different\n"), "{}", said.out);
}

#[test]
fn the_benchmark_counts_what_encode_counts() {
    let (first, text) = (arg(&TRAINED.first), arg(&TRAINED.text));
    let args = ["bench", "tokenizer", "--tokenizer", first, "--text", text, "--reps", "1", "--json"];
    let result = llamero(args.iter().chain(&["--threads", "2"])).json();
    let counted = coder("encode", &["--count", "--json", text], "").json();
    assert_eq!(result["tokens"], counted["total"]["tokens"]);
    assert_eq!(result["bytes"], counted["total"]["bytes"]);
    for key in ["mb_per_s", "decode_mb_per_s", "load_s", "bytes_per_token"] {
        assert!(result[key].as_f64().is_some_and(|value| value > 0.0), "`{key}` of {result}");
    }
    let words = llamero(&args[..8]).ok();
    assert!(words.contains("MB/s") && words.contains("1 documents"), "{words}");
    let tmp = tempfile::tempdir().unwrap();
    let bad = tmp.path().join("bad.jsonl");
    write(&bad, "{\"text\": \"a\"}\n{}\n");
    llamero(["bench", "tokenizer", "--tokenizer", first, "--text", arg(&bad)])
        .fails(1, &["line 2 of", "bad.jsonl", "{\"text\": …}"]);
}

/// SmolLM2, whose vocabulary lacks some bytes, if `cargo xtask fixtures` has fetched it.
fn smollm2() -> Option<PathBuf> {
    let folder = std::env::var_os("LLAMERO_FIXTURES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")), PathBuf::from);
    let file = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    file.exists().then_some(file)
}

#[test]
fn what_has_no_token_is_said_once() {
    let Some(model) = smollm2() else {
        println!("skipped: no files of `cargo xtask fixtures`");
        return;
    };
    let model = arg(&model);
    let tmp = tempfile::tempdir().unwrap();
    let (text, good) = (tmp.path().join("text"), tmp.path().join("good"));
    write(&text, "a\u{4}b\u{4}c \u{40000}");
    write(&good, "a b c");
    let says = "warning: 3 bytes that the tokenizer has no token for were left out (0x04, 0xf1)";
    let calls: [&[&str]; 7] = [
        &["tokenizer", "encode", "--tokenizer", model],
        &["tokenizer", "encode", "--count", "--json", "--tokenizer", model],
        &["bench", "tokenizer", "--reps", "1", "--tokenizer", model, "--text"],
        &["generate", model, "--max-tokens", "1", "--prompt-file"],
        &["score", model, "--text"],
        &["chat", model, "--max-tokens", "1"],
        &["tokenizer", "encode", "--jsonl", "--tokenizer", model],
    ];
    for call in calls {
        let of = |file: &std::path::Path| match call {
            ["chat", ..] => llamero_reading(call, &std::fs::read_to_string(file).unwrap()),
            [.., "--jsonl", _, _] => {
                let text = std::fs::read_to_string(file).unwrap();
                llamero_reading(call, &json!({ "text": text }).to_string())
            }
            _ => llamero(call.iter().copied().chain([arg(file)])),
        };
        let said = of(&text);
        assert_eq!((said.code, said.err.matches(says).count()), (Some(0), 1), "{call:?}: {said:?}");
        let said = of(&good);
        assert!(said.code == Some(0) && !said.err.contains("left out"), "{call:?}: {said:?}");
    }
    let same = llamero(["tokenizer", "compare", model, model, "--text", arg(&text)]);
    assert!(same.err.contains("warning: by A, 3 bytes") && same.err.contains("by B, 3 bytes"), "{same:?}");
}

#[test]
fn ranks_get_the_special_tokens_of_the_release_that_is_asked_for() {
    let model = TRAINED.first.join("tokenizer.model");
    let id = |release: &str| {
        let args = ["tokenizer", "encode", "--special", "--tokenizer", arg(&model), "--release", release];
        ids(&llamero_reading(args, "<|eom_id|>").ok()).len()
    };
    assert!(id("april-2024") > 1 && id("july-2024") == 1);
    let inspect = |path: &str| llamero(["tokenizer", "inspect", path, "--release", "july-2024"]);
    assert!(inspect(arg(&model)).ok().contains("<|eom_id|>"));
    // A file that names them itself.
    inspect(arg(&TRAINED.first)).fails(1, &["--release", "tokenizer.model", "hint:"]);
    inspect(arg(&TRAINED.first.join("tokenizer.json"))).fails(1, &["--release", "hint:"]);
    llamero(["tokenizer", "inspect", arg(&model), "--release", "may"]).fails(2, &["july-2024"]);
}

#[test]
fn a_folder_with_several_tokenizers_is_no_riddle() {
    let tmp = tempfile::tempdir().unwrap();
    let folder = tmp.path().join("several");
    for name in ["a.gguf", "b.gguf"] {
        write(&folder.join(name), "");
    }
    let inspect = || llamero(["tokenizer", "inspect", arg(&folder)]);
    inspect().fails(1, &["several GGUF files", "`a.gguf`", "hint:"]);
    let Some(model) = smollm2() else {
        println!("skipped: no files of `cargo xtask fixtures`");
        return;
    };
    std::fs::remove_file(folder.join("b.gguf")).unwrap();
    std::fs::remove_file(folder.join("a.gguf")).unwrap();
    std::os::unix::fs::symlink(std::path::absolute(model).unwrap(), folder.join("a.gguf")).unwrap();
    let said = inspect();
    assert!(said.code == Some(0) && !said.err.contains("note:"), "{said:?}");
    std::fs::copy(TRAINED.first.join("tokenizer.model"), folder.join("tokenizer.model")).unwrap();
    let said = inspect();
    assert!(said.err.contains("note: the tokenizer is that of") && said.err.contains("a.gguf"), "{said:?}");
    assert!(said.out.contains("49,152"), "{}", said.out);
}

#[test]
fn compressed_text_and_marks_of_order_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("a.txt.gz");
    write(&file, b"\x1f\x8b");
    coder("encode", &[arg(&file)], "").fails(1, &["a.txt.gz", "compressed", "hint:"]);
    coder("encode", &["--jsonl"], "\u{feff}{\"text\": \"a\"}\n")
        .fails(1, &["line 1", "byte order mark", "hint:"]);
    let readme = tmp.path().join("README.md");
    write(&readme, "# Title\n\ntext\n");
    llamero(["tokenizer", "inspect", arg(&readme)]).fails(1, &["README.md:1", "no `tokenizer.model`"]);
}
