//! `llamero chat` when something goes wrong, and when somebody presses Ctrl-C.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::world::{arg, command, copy_dir, llamero_reading, said, shared, write};

const QUESTION: &str = "What is the crate demo3 for?\n";

fn piped(input: &[u8], more: &[&str]) -> crate::world::Said {
    let args = ["chat", arg(&shared().run), "--temperature", "0", "--max-tokens", "8"];
    let mut command = command(args.iter().chain(more));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    said(&child.wait_with_output().unwrap())
}

#[test]
fn a_line_without_an_answer_is_an_error_and_the_rest_is_answered() {
    let long = "word ".repeat(400);
    let input =
        [QUESTION.as_bytes(), b"caf\xe9\n", long.as_bytes(), b"\n/frob\n/clear\n", QUESTION.as_bytes()]
            .concat();
    let plain = piped(&input, &[]);
    let json = piped(&input, &["--json"]);
    assert_eq!((plain.code, json.code), (Some(1), Some(1)), "{plain:?}");
    for said in [&plain.err, &json.err] {
        for phrase in [
            "error: line 2: not UTF-8: an invalid byte at 3",
            "error: line 3: ",
            "does not fit",
            "error: line 4: ",
        ] {
            assert!(said.contains(phrase), "no `{phrase}` in {said}");
        }
    }
    let alone = piped(QUESTION.as_bytes(), &[]).ok();
    assert_eq!(plain.out, alone.repeat(2));
    let lines: Vec<Value> = json.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let errors: Vec<Option<u64>> =
        lines.iter().map(|line| line["error"].as_str().and(line["line"].as_u64())).collect();
    assert_eq!(errors, [None, Some(2), Some(3), Some(4), None]);
    assert_eq!(lines[0]["text"], lines[4]["text"]);
    // Nothing is wrong with a conversation in which nothing goes wrong.
    assert_eq!(piped(QUESTION.as_bytes(), &["--json"]).code, Some(0));
}

#[test]
fn a_model_without_a_chat_format_is_said_before_the_first_message() {
    let tmp = tempfile::tempdir().unwrap();
    let model = tmp.path().join("model");
    copy_dir(&shared().exported, &model);
    write(&model.join("chat_template.jinja"), "{{ raise_exception('no dialogs here') }}");
    let said = llamero_reading(["chat", arg(&model)], "");
    said.fails(1, &["no dialogs here"]);
}

/// A model that would talk for hours: its context is long, and its end is forbidden.
fn talkative(model: &Path) -> Vec<String> {
    copy_dir(&shared().exported, model);
    let config = model.join("config.json");
    let mut sizes: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    sizes["max_position_embeddings"] = 1_000_000.into();
    write(&config, sizes.to_string());
    let ends: Value =
        serde_json::from_slice(&fs::read(model.join("generation_config.json")).unwrap()).unwrap();
    let ends = ends["eos_token_id"].as_array().unwrap();
    assert!(!ends.is_empty());
    let mut args: Vec<String> =
        ["chat", arg(model), "--max-tokens", "900000", "--threads", "1", "--kv-memory", "4096"]
            .map(str::to_owned)
            .to_vec();
    args.extend(ends.iter().flat_map(|id| ["--logit-bias".to_owned(), format!("{id}=-inf")]));
    args
}

#[test]
fn ctrl_c_ends_an_answer_and_at_the_prompt_the_program() {
    let tmp = tempfile::tempdir().unwrap();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let mut options = File::options();
    let side =
        options.read(true).write(true).custom_flags(OpenptFlags::NOCTTY.bits() as i32).open(name).unwrap();
    let mut command = command(talkative(&tmp.path().join("model")));
    command.stdin(side).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    let mut terminal = File::from(terminal);
    let mut out = child.stdout.take().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    for turn in 1..=2 {
        terminal.write_all(b"Tell me all.\n").unwrap();
        // It speaks.
        out.read_exact(&mut [0]).unwrap();
        // Reads on, so that a full pipe is not what holds it up.
        kill_process(pid, Signal::INT).unwrap();
        let note = loop {
            let mut line = String::new();
            assert!(err.read_line(&mut line).unwrap() > 0, "turn {turn}: it ended: {:?}", child.wait());
            if line.contains("note: ") {
                break line;
            }
        };
        assert!(note.contains("the answer was ended after"), "{note}");
        let mut prompt = [0; 2];
        err.read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"> ");
        // What was said until then.
        let mut rest = [0; 1 << 16];
        assert!(out.read(&mut rest).unwrap() > 0);
    }
    kill_process(pid, Signal::INT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "{status:?}");
}
