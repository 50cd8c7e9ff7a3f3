//! Curation on a cluster: a scheduler and executors as processes of their own, on loopback.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::curate::work_of_run;
use crate::world::{Dice, arg, command, llamero, said, write};

const WORDS: &str = "the of and that have with this from they were when there which their would about other people many \
    than then these some into could water been called find long down day come made may part over new sound take only little \
    work know place year live back give most very after thing our just name good sentence man think say great where help";

const MENU: &str = "Subscribe to our letter and follow the herd of this house, as many others did before.";

/// Lines of two sentences.
fn text(dice: &mut Dice, lines: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let sentence = |dice: &mut Dice| {
        let picked: Vec<&str> = (0..12).map(|_| words[dice.below(words.len() as u64) as usize]).collect();
        let (first, rest) = picked[0].split_at(1);
        format!("{}{rest} {}.", first.to_uppercase(), picked[1..].join(" "))
    };
    (0..lines).map(|_| format!("{} {}\n", sentence(dice), sentence(dice))).collect()
}

fn response(url: &str, date: &str, text: &str) -> String {
    let body: String = text.lines().map(|line| format!("<p>{line}</p>\n")).collect();
    let html =
        format!("<html><head><title>A page</title></head><body><article>{body}</article></body></html>");
    let http = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}");
    format!(
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{url}>\r\nWARC-Date: {date}\r\n\
         WARC-Target-URI: {url}\r\nContent-Length: {}\r\n\r\n{http}\r\n\r\n",
        http.len()
    )
}

/// Writes a crawl and files of JSON Lines, each large enough for a map task of its own, and a recipe with a word for all of it.
fn recipe(folder: &Path, documents: u64) -> PathBuf {
    let mut dice = Dice(11);
    let texts: Vec<String> = (0..documents).map(|_| text(&mut dice, 9)).collect();
    let mut crawl = String::new();
    for (n, text) in texts.iter().enumerate() {
        let menu = if n % 3 == 0 { format!("{MENU}\n") } else { String::new() };
        crawl +=
            &response(&format!("https://good.example/{n}"), "2025-01-01T00:00:00Z", &(text.clone() + &menu));
    }
    // Older texts of known addresses, copies and near copies under others, and what no rule lets pass.
    for (n, text) in texts.iter().enumerate().take(documents as usize / 4) {
        let again = text.to_owned() + "One more line of words that the other one has not, as it is said.\n";
        crawl += &response(&format!("https://good.example/{n}"), "2024-01-01T00:00:00Z", &again);
        crawl += &response(&format!("https://copy.example/{n}"), "2024-01-01T00:00:00Z", text);
        crawl += &response(&format!("https://near.example/{n}"), "2024-01-01T00:00:00Z", &again);
        let repeated = "The same sentence comes again and again in this place of the world. ".repeat(30);
        crawl += &response(&format!("https://again.example/{n}"), "2024-01-01T00:00:00Z", &repeated);
    }
    write(&folder.join("texts/crawl.warc"), crawl);
    for file in 0..3 {
        // One line that is too large to be kept makes the file as large as a split.
        let mut lines = format!("{}\n", json!({ "text": "x".repeat(16 << 20) }));
        for n in 0..documents / 4 {
            lines += &format!("{}\n", json!({ "id": format!("{file}-{n}"), "text": text(&mut dice, 7) }));
        }
        lines += "{\"text\": \"torn\n";
        write(&folder.join(format!("texts/{file}.jsonl")), lines);
    }
    let recipe = folder.join("recipe.toml");
    let curate = format!(
        "[curate]\nsources = [{:?}]\nread = {{}}\nextract = {{}}\nurl_duplicates = {{}}\nnear_duplicates = {{}}\n\
         common_lines = {{}}\ngopher_repetition = {{}}\ngopher_quality = {{}}\nc4 = {{}}\nkl_outliers = {{ max_nats = 6.0 }}\n\
         mix = {{ proportions = {{ prose = 1.0 }}, annealing = {{ size = 20000, proportions = {{ prose = 1.0 }} }} }}\n",
        arg(&folder.join("texts"))
    );
    write(&recipe, curate);
    recipe
}

fn run_args(recipe: &Path, run: &Path, more: &[&str]) -> Vec<String> {
    let set = format!("run.dir={:?}", arg(run));
    let args = ["curate", "run", arg(recipe), "--set", &set];
    args.iter().chain(more).map(|&arg| arg.to_owned()).collect()
}

/// Every file of a corpus by its name, and its id instead of its manifest, which holds times.
fn corpus(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let folder = run.join("curate");
    let mut files = BTreeMap::new();
    let mut left = vec![folder.clone()];
    while let Some(at) = left.pop() {
        for path in fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                left.push(path);
                continue;
            }
            let name = arg(path.strip_prefix(&folder).unwrap()).to_owned();
            let bytes = fs::read(&path).unwrap();
            if name == "manifest.json" {
                let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                files.insert("id".to_owned(), manifest["id"].as_str().unwrap().into());
            } else {
                files.insert(name, bytes);
            }
        }
    }
    files
}

fn assert_same(found: &Path, expected: &BTreeMap<String, Vec<u8>>) {
    let found = corpus(found);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let differ: Vec<_> = found.keys().filter(|name| found[*name] != expected[*name]).collect();
    assert!(differ.is_empty(), "differ: {differ:?}");
}

/// The corpus as it is made without a cluster.
fn expected(recipe: &Path, folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let run = folder.join("local");
    llamero(run_args(recipe, &run, &["--partitions", "3"])).ok();
    let files = corpus(&run);
    let report: serde_json::Value = serde_json::from_slice(&files["report.json"]).unwrap();
    for reason in ["url_duplicate", "exact_duplicate", "near_duplicate", "huge"] {
        assert!(report["dropped"][reason]["count"].as_u64() > Some(0), "no {reason}: {report}");
    }
    assert_eq!(report["broken"]["count"], 3, "{report}");
    assert!(files.contains_key("mix.json") && files.contains_key("broken.jsonl"), "{:?}", files.keys());
    files
}

/// A process of a cluster, and what it says.
struct Process {
    child: Child,
    address: String,
    said: Arc<Mutex<String>>,
}

impl Process {
    /// Starts a process and waits until it says where it listens.
    fn start(args: &[&str]) -> Process {
        let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        while address.is_none() {
            let line =
                lines.next().unwrap_or_else(|| panic!("{args:?} ended: {}", said.lock().unwrap())).unwrap();
            address = line.split_once("listening on ").map(|(_, at)| at.to_owned());
            *said.lock().unwrap() += &(line + "\n");
        }
        let rest = Arc::clone(&said);
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| *rest.lock().unwrap() += &(line + "\n"));
        });
        Process { child, address: address.unwrap(), said }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that is dead already is as good.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.address, self.said.lock().unwrap());
        }
    }
}

struct Cluster {
    scheduler: Process,
    executors: Vec<Process>,
}

impl Cluster {
    fn start(folder: &Path, executors: usize) -> Cluster {
        let scheduler = Process::start(&[
            "curate",
            "scheduler",
            "--port",
            "0",
            "--executor-timeout",
            "8",
            "--log",
            "info",
        ]);
        let executors = (0..executors).map(|n| {
            let work = folder.join(format!("executor-{n}"));
            let own = [
                "--port",
                "0",
                "--work-dir",
                arg(&work),
                "--threads",
                "1",
                "--memory",
                "64MiB",
                "--log",
                "info",
            ];
            Process::start(&[&["curate", "executor", "--scheduler", &scheduler.address], &own[..]].concat())
        });
        let executors = executors.collect();
        Cluster { scheduler, executors }
    }

    fn address(&self) -> String {
        format!("df://{}", self.scheduler.address)
    }
}

/// Waits for a file that the driver of a run will write.
fn wait_for(run: &Path, name: &str, driver: &mut Child) {
    let since = Instant::now();
    while !work_of_run(run).join(name).exists() {
        assert!(driver.try_wait().unwrap().is_none(), "it ended before `{name}` was seen");
        assert!(since.elapsed() < Duration::from_secs(120), "no `{name}`");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn spawn(args: Vec<String>) -> Child {
    command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_cluster_makes_the_same_corpus_for_any_number_of_partitions() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 120);
    let expected = expected(&recipe, tmp.path());
    let cluster = Cluster::start(tmp.path(), 2);
    for partitions in ["1", "2", "7"] {
        let run = tmp.path().join(partitions);
        llamero(run_args(&recipe, &run, &["--cluster", &cluster.address(), "--partitions", partitions])).ok();
        assert_same(&run, &expected);
        assert!(!run.join("curate.partial").exists());
    }
    for executor in &cluster.executors {
        let said = executor.said.lock().unwrap();
        assert!(said.contains("Finished task"), "an executor had nothing to do: {said}");
    }
}

#[test]
fn a_run_outlives_an_executor() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 120);
    let expected = expected(&recipe, tmp.path());
    let mut cluster = Cluster::start(tmp.path(), 2);
    let run = tmp.path().join("run");
    let mut driver = spawn(run_args(&recipe, &run, &["--cluster", &cluster.address(), "--partitions", "7"]));
    // The first reduce has begun: maps are done or in hand, and their records lie with who is killed.
    wait_for(&run, "url/stage.json", &mut driver);
    std::thread::sleep(Duration::from_millis(300));
    cluster.executors[0].kill();
    said(&driver.wait_with_output().unwrap()).ok();
    assert_same(&run, &expected);
}

#[test]
fn what_a_dead_scheduler_leaves_is_taken_up_by_another() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 60);
    let expected = expected(&recipe, tmp.path());
    let run = tmp.path().join("run");
    {
        let mut cluster = Cluster::start(tmp.path(), 1);
        let mut driver =
            spawn(run_args(&recipe, &run, &["--cluster", &cluster.address(), "--partitions", "2"]));
        wait_for(&run, "documents/done.json", &mut driver);
        cluster.scheduler.kill();
        let since = Instant::now();
        let address = cluster.address();
        said(&driver.wait_with_output().unwrap()).fails(1, &[&address, "llamero curate scheduler"]);
        assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    }
    let documents = work_of_run(&run).join("documents");
    let parts: Vec<_> = (0..3).map(|at| documents.join(format!("part-{at:05}.run"))).collect();
    let written =
        || parts[..2].iter().map(|part| fs::metadata(part).unwrap().modified().unwrap()).collect::<Vec<_>>();
    let before = written();
    // What lost its end on the way, such as on a machine that went down, is made again, and nothing else.
    let last = fs::read(&parts[2]).unwrap();
    fs::write(&parts[2], &last[..last.len() / 2]).unwrap();
    let cluster = Cluster::start(tmp.path(), 1);
    let args = run_args(&recipe, &run, &["--cluster", &cluster.address(), "--partitions", "2"]);
    // A driver that is killed is taken up as well.
    let mut driver = spawn(args.clone());
    wait_for(&run, "exact/done.json", &mut driver);
    driver.kill().unwrap();
    driver.wait().unwrap();
    assert_eq!(fs::read(&parts[2]).unwrap(), last);
    assert_eq!(written(), before, "documents were read again");
    let again = llamero(args);
    assert!(again.err.contains("resuming"), "{}", again.err);
    again.ok();
    assert_same(&run, &expected);
}

#[test]
fn an_executors_error_reaches_the_user_in_its_words() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 8);
    let cluster = Cluster::start(tmp.path(), 1);
    let stop = ["--cluster", &cluster.address(), "--set", "curate.read={on_error=\"stop\"}"];
    let found = llamero(run_args(&recipe, &tmp.path().join("cluster"), &stop))
        .fails(1, &["is broken", ".jsonl, byte "]);
    let local = llamero(run_args(&recipe, &tmp.path().join("local"), &["--threads", "1", stop[2], stop[3]]));
    let local = local.fails(1, &["is broken"]);
    let broken = |said: &str| {
        let line = said.lines().find(|line| line.contains("is broken")).unwrap().to_owned();
        let (_, problem) = line.split_once(", byte ").unwrap();
        problem.to_owned()
    };
    assert_eq!(broken(&found), broken(&local), "{found}\n{local}");
}

#[test]
fn a_scheduler_that_is_not_there_is_told_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    let recipe = recipe(tmp.path(), 8);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("df://127.0.0.1:{port}");
    let since = Instant::now();
    let run = tmp.path().join("run");
    llamero(run_args(&recipe, &run, &["--cluster", &address]))
        .fails(1, &[&address, "does not answer", "llamero curate scheduler"]);
    llamero(run_args(&recipe, &run, &["--cluster", "127.0.0.1:1"])).fails(1, &["df://HOST:PORT"]);
    let scheduler = format!("127.0.0.1:{port}");
    let work = tmp.path().join("work");
    let executor = [
        "curate",
        "executor",
        "--scheduler",
        &scheduler,
        "--wait",
        "0",
        "--port",
        "0",
        "--work-dir",
        arg(&work),
    ];
    llamero(executor).fails(1, &[&address, "Could not connect to scheduler", "llamero curate scheduler"]);
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[test]
fn an_executor_shares_its_folder_with_no_other() {
    let tmp = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(tmp.path(), 1);
    let work = tmp.path().join("executor-0");
    let other = [
        "curate",
        "executor",
        "--scheduler",
        &cluster.scheduler.address,
        "--port",
        "0",
        "--work-dir",
        arg(&work),
    ];
    llamero(other).fails(1, &["in use by another executor", "a folder of its own"]);
}
