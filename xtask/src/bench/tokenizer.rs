//! Encoding text, beside tiktoken, tokenizers and quicktok: the same ranks, the same documents, as many threads.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::options::Options;
use super::session::{Label, Session, number};
use super::table::{against, markdown, median};

const SCRIPT: &str = "tokenizer_peers.py";
const OURS: &str = "llamero";

/// A peer, and how many times its speed is asked for.
struct Peer {
    name: &'static str,
    times: f64,
}

const PEERS: [Peer; 3] = [
    Peer { name: "quicktok", times: 1.2 },
    Peer { name: "tiktoken", times: 8.0 },
    Peer { name: "tokenizers", times: 40.0 },
];

/// What one program gave with one number of threads.
struct Series {
    by: &'static str,
    threads: usize,
    speeds: Vec<f64>,
    loads: Vec<f64>,
    memory: Vec<f64>,
}

/// How a peer's ids compare with ours.
struct Compared {
    by: String,
    documents: u64,
    differing: u64,
    /// The first document that differs, counted from 1.
    first: Option<u64>,
}

pub(super) fn run(session: &mut Session) -> Result<String, String> {
    let texts = session.options.text.clone().ok_or("`--text` is needed")?;
    let tokenizer = session.options.tokenizer.clone().ok_or("`--tokenizer` is needed")?;
    let common: Vec<String> =
        ["--tokenizer", &shown(&tokenizer), "--text", &shown(&texts)].map(str::to_owned).into();
    let peers = wanted(&session.options)?;
    let compared = compare(session, &peers, &texts, &common)?;
    let mut all = Vec::new();
    for round in 0..session.options.samples {
        for threads in session.options.thread_counts.clone() {
            let case = format!("{threads} threads");
            let with_threads = [&common[..], &["--threads".into(), threads.to_string()]].concat();
            let label = |by| Label { bench: "tokenizer", case: &case, by, round };
            let ours = [vec!["tokenizer".into(), "--reps".into(), "1".into()], with_threads.clone()].concat();
            let value = session.ours(&label(OURS), &ours)?;
            add(&mut all, (OURS, threads), &value)?;
            for peer in &peers {
                let args = [vec!["--peer".into(), peer.name.into()], with_threads.clone()].concat();
                let value = session.peer(&label(peer.name), SCRIPT, &args)?;
                add(&mut all, (peer.name, threads), &value)?;
            }
        }
    }
    Ok(format!("{}\n{}", speeds(&all), ids(&compared)))
}

/// The peers whose name holds `--filter`.
fn wanted(options: &Options) -> Result<Vec<&'static Peer>, String> {
    let found: Vec<&Peer> = PEERS.iter().filter(|peer| peer.name.contains(&options.filter)).collect();
    if found.is_empty() {
        return Err(format!(
            "`--filter {}` names none of {}",
            options.filter,
            PEERS.map(|p| p.name).join(", ")
        ));
    }
    Ok(found)
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Every document's ids, ours and theirs; before anything is timed, so that what is missing is found at once.
fn compare(
    session: &mut Session,
    peers: &[&Peer],
    texts: &Path,
    common: &[String],
) -> Result<Vec<Compared>, String> {
    if texts.extension().is_none_or(|extension| extension != "jsonl") {
        eprintln!("tokenizer: ids are compared for a `.jsonl` only");
        return Ok(Vec::new());
    }
    let file = Scratch(std::env::temp_dir().join(format!("llamero-bench-ids-{}.jsonl", std::process::id())));
    let cannot = |e| format!("cannot write `{}`: {e}", file.0.display());
    let args = ["tokenizer", "encode", "--jsonl", "--tokenizer", &common[1], &common[3]].map(str::to_owned);
    session.output_to(&args, File::create(&file.0).map_err(cannot)?)?;
    let mut all = Vec::new();
    for peer in peers {
        let label = Label { bench: "tokenizer", case: "ids", by: peer.name, round: 0 };
        let own = ["--peer", peer.name, "--ids", &shown(&file.0)].map(str::to_owned);
        let value = session.peer(&label, SCRIPT, &[&own[..], common].concat())?;
        all.push(Compared {
            by: format!("{} {}", peer.name, value["version"].as_str().unwrap_or_default()),
            documents: number(&value, "documents")? as u64,
            differing: number(&value, "differing")? as u64,
            first: value["first_differing"].as_u64().map(|at| at + 1),
        });
    }
    Ok(all)
}

/// A file that goes when it is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn add(all: &mut Vec<Series>, (by, threads): (&'static str, usize), value: &Value) -> Result<(), String> {
    let at = all.iter().position(|s| s.by == by && s.threads == threads).unwrap_or_else(|| {
        all.push(Series { by, threads, speeds: Vec::new(), loads: Vec::new(), memory: Vec::new() });
        all.len() - 1
    });
    all[at].speeds.push(number(value, "mb_per_s")?);
    all[at].loads.push(number(value, "load_s")?);
    all[at].memory.extend(value["peak_memory_bytes"].as_f64());
    Ok(())
}

fn speeds(all: &[Series]) -> String {
    let mut rows = Vec::new();
    for series in all {
        let speed = median(&series.speeds);
        let ours = all.iter().find(|s| s.by == OURS && s.threads == series.threads);
        let times = ours.map_or(f64::NAN, |s| median(&s.speeds)) / speed;
        let peer = PEERS.iter().find(|peer| peer.name == series.by);
        rows.push(vec![
            series.threads.to_string(),
            series.by.to_owned(),
            format!("{speed:.1}"),
            peer.map_or(String::new(), |_| format!("**{times:.2}**")),
            peer.map_or(String::new(), |peer| against(format!("≥ {}", peer.times), times >= peer.times)),
            format!("{:.2} s", median(&series.loads)),
            if series.memory.is_empty() {
                String::new()
            } else {
                format!("{:.0} MB", median(&series.memory) / 1e6)
            },
        ]);
    }
    markdown(&["threads", "by", "MB/s", "ours / it", "target", "load", "peak memory"], &rows)
}

fn ids(compared: &[Compared]) -> String {
    let rows: Vec<Vec<String>> = compared
        .iter()
        .map(|c| {
            let first = c.first.map_or(String::new(), |line| line.to_string());
            vec![c.by.clone(), c.documents.to_string(), c.differing.to_string(), first]
        })
        .collect();
    if rows.is_empty() {
        String::new()
    } else {
        markdown(&["ids of", "documents", "differ from ours", "first"], &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rounds_become_a_table_for_every_number_of_threads() {
        let mut all = Vec::new();
        for (by, threads, values) in [
            ("llamero", 1, [90.0, 80.0, 100.0]),
            ("tiktoken", 1, [10.0, 10.0, 11.0]),
            ("llamero", 2, [100.0; 3]),
            ("tiktoken", 2, [20.0; 3]),
        ] {
            for speed in values {
                let value = json!({ "mb_per_s": speed, "load_s": 0.5, "peak_memory_bytes": 2e8 });
                add(&mut all, (by, threads), &value).unwrap();
            }
        }
        let report = speeds(&all);
        for row in [
            "| 1 | llamero | 90.0 |  |  | 0.50 s | 200 MB |",
            "| 1 | tiktoken | 10.0 | **9.00** | ≥ 8 ✓ | 0.50 s | 200 MB |",
            "| 2 | tiktoken | 20.0 | **5.00** | ≥ 8 ✗ | 0.50 s | 200 MB |",
        ] {
            assert!(report.contains(row), "no `{row}` in {report}");
        }
        assert!(add(&mut all, ("llamero", 1), &json!({})).is_err());
        let one = Compared { by: "quicktok 1".into(), documents: 9, differing: 2, first: Some(4) };
        assert!(ids(&[one]).contains("| quicktok 1 | 9 | 2 | 4 |"));
        assert_eq!(ids(&[]), "");
    }
}
