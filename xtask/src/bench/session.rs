//! Running our binary and the peer's scripts, and keeping every result.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use super::options::Options;

/// What a run is about, for the list of all results.
pub(super) struct Label<'a> {
    pub(super) bench: &'a str,
    pub(super) case: &'a str,
    /// `llamero`, or the variant of the peer.
    pub(super) by: &'a str,
    pub(super) round: usize,
}

/// One call of `cargo xtask bench`.
pub(super) struct Session {
    pub(super) options: Options,
    pub(super) root: PathBuf,
    llamero: PathBuf,
    torch: Option<String>,
    results: Vec<Value>,
}

impl Session {
    /// Finds the programs, and fails before anything is measured where one is missing.
    pub(super) fn new(root: &Path, options: Options) -> Result<Self, String> {
        let torch = match (&options.python, options.modules()) {
            (Some(python), Some(modules)) => Some(torch_version(python, modules)?),
            _ => None,
        };
        let llamero = match &options.llamero {
            Some(path) if path.is_file() => path.clone(),
            Some(path) => return Err(format!("`--llamero {}` is not a file", path.display())),
            None => crate::binary::build(root)?,
        };
        Ok(Self { options, root: root.to_owned(), llamero, torch, results: Vec::new() })
    }

    /// A line on what is measured where.
    pub(super) fn machine(&self) -> String {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let processor = model.map_or("unknown processor", |(_, name)| name);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = match self.options.thread_counts.as_slice() {
            [] => cores.to_string(),
            counts => counts.iter().map(usize::to_string).collect::<Vec<_>>().join(" and "),
        };
        let torch = self.torch.as_deref().map_or(String::new(), |version| format!(", PyTorch {version}"));
        let samples = self.options.samples;
        format!("{processor}, {cores} cores, {threads} threads{torch}, medians of {samples} rounds\n")
    }

    /// `llamero bench …`, its JSON.
    pub(super) fn ours(&mut self, label: &Label<'_>, args: &[String]) -> Result<Value, String> {
        let mut command = Command::new(&self.llamero);
        command.arg("bench").args(args).arg("--json").args(self.threads());
        self.keep(label, &mut command)
    }

    /// Another command of ours, its JSON with `wall_s`: seconds from the start of the process to its end.
    pub(super) fn timed(&mut self, label: &Label<'_>, args: &[String]) -> Result<Value, String> {
        let mut command = Command::new(&self.llamero);
        command.args(args).arg("--json").args(self.threads());
        announce(label);
        let begun = Instant::now();
        let mut value = json_of(&mut command)?;
        value["wall_s"] = begun.elapsed().as_secs_f64().into();
        self.record(label, &value);
        Ok(value)
    }

    /// Another command of ours, its output in a file.
    pub(super) fn output_to(&self, args: &[String], file: fs::File) -> Result<(), String> {
        let mut command = Command::new(&self.llamero);
        let output = command.args(args).stdout(file).output();
        let output = output.map_err(|e| format!("cannot run {command:?}: {e}"))?;
        if !output.status.success() {
            let err = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{command:?} failed with {}:\n{}", output.status, tail(&err, 20)));
        }
        Ok(())
    }

    /// A script of `benches/peers`, its JSON.
    pub(super) fn peer(&mut self, label: &Label<'_>, script: &str, args: &[String]) -> Result<Value, String> {
        let mut command = Command::new(self.python()?);
        command.arg(self.script(script)).args(args).args(self.threads());
        self.keep(label, &mut command)
    }

    fn keep(&mut self, label: &Label<'_>, command: &mut Command) -> Result<Value, String> {
        announce(label);
        let value = json_of(command)?;
        self.record(label, &value);
        Ok(value)
    }

    /// The answer of a peer that serves.
    pub(super) fn ask(
        &mut self,
        label: &Label<'_>,
        peer: &mut Server,
        question: &Value,
    ) -> Result<Value, String> {
        announce(label);
        let value = peer.ask(question)?;
        self.record(label, &value);
        Ok(value)
    }

    /// Adds a result to the list.
    pub(super) fn record(&mut self, label: &Label<'_>, value: &Value) {
        let Label { bench, case, by, round } = *label;
        self.results.push(json!({ "bench": bench, "case": case, "by": by, "round": round, "result": value }));
    }

    /// Number of results so far.
    pub(super) fn results(&self) -> usize {
        self.results.len()
    }

    /// Writes all results.
    pub(super) fn write_json(&self, path: &Path) -> Result<(), String> {
        let all = json!({ "machine": self.machine().trim(), "results": self.results });
        fs::write(path, format!("{all:#}\n")).map_err(|e| format!("cannot write `{}`: {e}", path.display()))
    }

    fn threads(&self) -> Vec<String> {
        self.options.threads.map_or(Vec::new(), |n| vec!["--threads".into(), n.to_string()])
    }

    fn python(&self) -> Result<&Path, String> {
        self.options.python.as_deref().ok_or_else(|| "`--python` is needed".into())
    }

    fn script(&self, name: &str) -> PathBuf {
        self.root.join("benches/peers").join(name)
    }

    /// A peer that answers questions until it is dropped: importing PyTorch takes longer than most products.
    pub(super) fn server(&self, script: &str, args: &[String]) -> Result<Server, String> {
        let mut command = Command::new(self.python()?);
        command.arg(self.script(script)).args(args).arg("--serve").args(self.threads());
        Server::start(command)
    }
}

fn announce(label: &Label<'_>) {
    eprintln!("{} {}: {}, round {}", label.bench, label.case, label.by, label.round + 1);
}

/// A process that answers each line of JSON with one.
pub(super) struct Server {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Server {
    fn start(mut command: Command) -> Result<Self, String> {
        let name = command.get_program().display().to_string();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot run `{name}`: {e}"))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Self { child, stdin, stdout: BufReader::new(stdout) }),
            _ => Err(format!("`{name}` has no pipes")),
        }
    }

    /// The answer to a question.
    pub(super) fn ask(&mut self, question: &Value) -> Result<Value, String> {
        let mut answer = String::new();
        let asked = writeln!(self.stdin, "{question}").and_then(|()| self.stdout.read_line(&mut answer));
        match asked {
            Ok(read) if read > 0 => {
                serde_json::from_str(&answer).map_err(|e| format!("the peer said `{answer}`: {e}"))
            }
            _ => Err(format!("the peer ended at {question}; its message is above")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a program that prints one line of JSON last.
fn json_of(command: &mut Command) -> Result<Value, String> {
    let output = command.output().map_err(|e| format!("cannot run {command:?}: {e}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{command:?} failed with {}:\n{}", output.status, tail(&err, 20)));
    }
    let line = out.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|e| format!("{command:?} printed no JSON: {e}\n{}", tail(&out, 20)))
}

/// The last lines of a text.
fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The version of PyTorch that a Python has.
fn torch_version(python: &Path, modules: &str) -> Result<String, String> {
    let name = python.display();
    let hint = "hint: make a virtual environment from benches/peers/requirements.txt (benches/peers/README.md says how) \
        and give its python with `--python`";
    let output = Command::new(python)
        .args(["-c", &format!("import {modules}; print(torch.__version__)")])
        .output()
        .map_err(|e| format!("cannot run `--python {name}`: {e}\n{hint}"))?;
    if !output.status.success() {
        let why = tail(&String::from_utf8_lossy(&output.stderr), 1);
        return Err(format!("`{name}` cannot import {modules}: {why}\n{hint}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A number of a result.
pub(super) fn number(result: &Value, key: &str) -> Result<f64, String> {
    result[key].as_f64().ok_or_else(|| format!("a result has no number `{key}`: {result}"))
}

/// An argument list from words.
pub(super) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_last_line_is_the_result() {
        let value = json_of(&mut shell("echo warning; echo '{\"a\": 2}'")).unwrap();
        assert_eq!(number(&value, "a"), Ok(2.0));
        assert!(number(&value, "b").unwrap_err().contains("`b`"));
        let failed = json_of(&mut shell("echo why >&2; exit 3")).unwrap_err();
        assert!(failed.contains("why") && failed.contains('3'), "{failed}");
        assert!(json_of(&mut shell("echo hello")).unwrap_err().contains("printed no JSON"));
    }

    #[test]
    fn a_server_answers_and_its_end_is_an_error() {
        let mut server = Server::start(shell("read line; echo \"[$line]\"")).unwrap();
        assert_eq!(server.ask(&json!({ "m": 1 })), Ok(json!([{ "m": 1 }])));
        assert!(server.ask(&json!(2)).unwrap_err().contains("ended"));
    }

    #[test]
    fn a_python_without_torch_gets_a_hint() {
        let missing = torch_version(Path::new("/nowhere/python"), "torch").unwrap_err();
        assert!(missing.contains("/nowhere/python") && missing.contains("hint: "), "{missing}");
        // `false` starts but cannot import anything.
        let without = torch_version(Path::new("false"), "torch, numpy").unwrap_err();
        assert!(without.contains("cannot import torch") && without.contains("requirements.txt"), "{without}");
    }
}
