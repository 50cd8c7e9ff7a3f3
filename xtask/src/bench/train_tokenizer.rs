//! Training a tokenizer, beside `tokenizers` and `rustbpe` on the same text with the same pattern and threads.

use std::path::Path;

use serde_json::Value;

use super::session::{Label, Session, number};
use super::table::{against, gib, markdown, median};

/// Who is measured, and how many times as long they are to take.
const PEERS: [(&str, f64); 2] = [("tokenizers", 4.0), ("rustbpe", 2.0)];
/// Bytes per token differ by this share at most.
const COMPRESSION: f64 = 0.002;

/// What one program gave.
#[derive(Default)]
struct Series {
    by: String,
    seconds: Vec<f64>,
    memory: Vec<f64>,
    bytes_per_token: f64,
    command: String,
}

pub(super) fn run(session: &mut Session) -> Result<String, String> {
    let text = session.options.text.clone().ok_or("`--text` is needed")?.to_string_lossy().into_owned();
    let size = session.options.vocab_size.to_string();
    let out = std::env::temp_dir().join(format!("llamero-bench-tokenizer-{}", std::process::id()));
    let measured = measure(session, &text, &size, &out);
    // It may never have been made.
    drop(std::fs::remove_dir_all(&out));
    let bytes = std::fs::metadata(&text).map_err(|e| format!("cannot read `{text}`: {e}"))?.len();
    Ok(format!("### {size} tokens of {:.0} MB\n\n{}", bytes as f64 / 1e6, table(&measured?)))
}

fn measure(session: &mut Session, text: &str, size: &str, out: &Path) -> Result<Vec<Series>, String> {
    let mut all: Vec<Series> =
        ["llamero"].into_iter().chain(PEERS.map(|(by, _)| by)).map(Series::new).collect();
    let ours =
        ["tokenizer", "train", "--input", text, "--vocab-size", size, "--force", "--no-report", "--out"];
    let ours: Vec<String> =
        ours.map(str::to_owned).into_iter().chain([out.to_string_lossy().into_owned()]).collect();
    for round in 0..session.options.samples {
        let label = |by| Label { bench: "tokenizer-train", case: size, by, round };
        all[0].add(&session.timed(&label("llamero"), &ours)?)?;
        for (series, (by, _)) in all[1..].iter_mut().zip(PEERS) {
            let mut args: Vec<String> =
                ["--by", by, "--text", text, "--vocab-size", size].map(str::to_owned).into();
            if round == 0 {
                args.push("--count-tokens".into());
            }
            series.add(&session.peer(&label(by), "train_tokenizer.py", &args)?)?;
        }
    }
    Ok(all)
}

impl Series {
    fn new(by: &str) -> Self {
        Self { by: by.into(), ..Self::default() }
    }

    fn add(&mut self, value: &Value) -> Result<(), String> {
        self.seconds.push(number(value, "train_seconds")?);
        self.memory.push(number(value, "peak_memory_bytes")?);
        if let Some(found) = value["bytes_per_token"].as_f64() {
            self.bytes_per_token = found;
        }
        self.command = value["command"].as_str().unwrap_or("llamero tokenizer train").to_owned();
        Ok(())
    }
}

/// Ours comes first.
fn table(all: &[Series]) -> String {
    let Some(ours) = all.first() else { return String::new() };
    let mine = median(&ours.seconds);
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|series| {
            let seconds = median(&series.seconds);
            let wanted = PEERS.iter().find(|(by, _)| *by == series.by).map(|&(_, times)| times);
            let differs = ours.bytes_per_token / series.bytes_per_token - 1.0;
            let same = against(format!("{:+.3} %", differs * 100.0), differs.abs() <= COMPRESSION);
            let speed = |times| against(format!("≥ {times}"), seconds / mine >= times);
            vec![
                series.command.clone(),
                format!("{seconds:.2}"),
                wanted.map_or(String::new(), |_| format!("**{:.2}**", seconds / mine)),
                wanted.map_or(String::new(), speed),
                format!("{:.4}", series.bytes_per_token),
                wanted.map_or(String::new(), |_| same),
                gib(median(&series.memory)),
            ]
        })
        .collect();
    let header = ["by", "seconds", "it / ours", "target", "bytes/token", "ours is", "peak memory"];
    markdown(&header, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rounds_become_a_table_of_times() {
        let mut all: Vec<Series> = ["llamero", "tokenizers", "rustbpe"].map(Series::new).into();
        let value = |seconds: f64, fit: f64, command: Option<&str>| json!({ "train_seconds": seconds, "peak_memory_bytes": 1 << 30, "bytes_per_token": fit, "command": command });
        for seconds in [2.0, 1.0, 1.5] {
            all[0].add(&value(seconds, 4.0, None)).unwrap();
        }
        all[1].add(&value(9.0, 4.0, Some("tokenizers 1"))).unwrap();
        all[2].add(&value(2.0, 4.1, Some("rustbpe 2"))).unwrap();
        let report = table(&all);
        for row in [
            "| llamero tokenizer train | 1.50 |  |  | 4.0000 |  | 1.00 GiB |",
            "| tokenizers 1 | 9.00 | **6.00** | ≥ 4 ✓ | 4.0000 | +0.000 % ✓ | 1.00 GiB |",
            "| rustbpe 2 | 2.00 | **1.33** | ≥ 2 ✗ | 4.1000 | -2.439 % ✗ | 1.00 GiB |",
        ] {
            assert!(report.contains(row), "no `{row}` in {report}");
        }
        assert!(all[0].add(&json!({})).is_err());
    }
}
