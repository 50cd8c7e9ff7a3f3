//! Filters and MinHash deduplication, beside datatrove: the same documents, one thread, from JSON Lines to JSON Lines.

use std::path::Path;

use serde_json::Value;

use super::session::{Label, Session, number};
use super::table::{against, gib, markdown, median};

const SCRIPT: &str = "curate_datatrove.py";
/// Each stage, and how many times the documents of a second of processor time are to be ours.
const STAGES: [(&str, f64); 2] = [("filters", 20.0), ("minhash", 20.0)];
const OURS: &str = "llamero";

/// What one program gave in one stage.
struct Series {
    stage: &'static str,
    by: String,
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
    memory: Vec<f64>,
    documents: f64,
    kept: f64,
}

pub(super) fn run(session: &mut Session) -> Result<String, String> {
    let text = session.options.text.clone().ok_or("`--text` is needed")?.to_string_lossy().into_owned();
    let judged = std::env::temp_dir().join(format!("llamero-bench-judged-{}.jsonl", std::process::id()));
    let measured = measure(session, &text, &judged);
    // It may never have been made.
    drop(std::fs::remove_file(&judged));
    measured
}

fn measure(session: &mut Session, text: &str, judged: &Path) -> Result<String, String> {
    let mut all: Vec<Series> = Vec::new();
    let wanted = session.options.filter.clone();
    let stages: Vec<_> = STAGES.iter().filter(|(stage, _)| stage.contains(&wanted)).collect();
    let mut difference = String::new();
    for round in 0..session.options.samples {
        for &&(stage, _) in &stages {
            let label = |by| Label { bench: "curate", case: stage, by, round };
            let common = ["--stage", stage, "--text", text].map(str::to_owned);
            let keep = ["--judged".to_owned(), judged.to_string_lossy().into_owned()];
            let ours = [&["curate".to_owned()], &common[..], &keep].concat();
            add(&mut all, stage, OURS, &session.ours(&label(OURS), &ours)?)?;
            let theirs = session.peer(&label("datatrove"), SCRIPT, &common)?;
            add(&mut all, stage, theirs["version"].as_str().unwrap_or("datatrove"), &theirs)?;
            if round == 0 && stage == "filters" {
                let compared = session.peer(&label("judged"), SCRIPT, &[&common[..], &keep].concat())?;
                difference = differences(&compared)?;
            }
        }
    }
    Ok(format!("{}\n{difference}", speeds(&all)))
}

fn add(all: &mut Vec<Series>, stage: &'static str, by: &str, value: &Value) -> Result<(), String> {
    let at = all.iter().position(|s| s.stage == stage && s.by == by).unwrap_or_else(|| {
        let (seconds, cpu_seconds, memory) = Default::default();
        let series =
            Series { stage, by: by.to_owned(), seconds, cpu_seconds, memory, documents: 0.0, kept: 0.0 };
        all.push(series);
        all.len() - 1
    });
    let series = &mut all[at];
    series.seconds.push(number(value, "seconds")?);
    series.cpu_seconds.push(number(value, "cpu_seconds")?);
    series.memory.extend(value["peak_memory_bytes"].as_f64());
    series.documents = number(value, "documents")?;
    series.kept = number(value, "kept")?;
    Ok(())
}

fn speeds(all: &[Series]) -> String {
    let mut rows = Vec::new();
    for series in all {
        let ours = all.iter().find(|s| s.by == OURS && s.stage == series.stage);
        let rate = series.documents / median(&series.cpu_seconds);
        let times = ours.map_or(f64::NAN, |s| s.documents / median(&s.cpu_seconds)) / rate;
        let wanted = STAGES.iter().find(|(stage, _)| *stage == series.stage && series.by != OURS);
        rows.push(vec![
            series.stage.to_owned(),
            series.by.clone(),
            format!("{rate:.0}"),
            wanted.map_or(String::new(), |_| format!("**{times:.1}**")),
            wanted.map_or(String::new(), |(_, least)| against(format!("≥ {least}"), times >= *least)),
            format!("{:.2} s", median(&series.cpu_seconds)),
            format!("{:.2} s", median(&series.seconds)),
            format!("{} of {}", series.kept, series.documents),
            gib(median(&series.memory)),
        ]);
    }
    let header = [
        "stage",
        "by",
        "documents/s of a core",
        "ours / it",
        "target",
        "processor time",
        "wall time",
        "kept",
        "peak memory",
    ];
    markdown(&header, &rows)
}

/// Documents of the filters that the two sides judge differently.
fn differences(compared: &Value) -> Result<String, String> {
    let row = ["documents", "kept_by_one_only", "other_reasons", "other_texts"].map(|key| {
        let count = number(compared, key);
        count.map(|count| count.to_string())
    });
    let row: Vec<String> = row.into_iter().collect::<Result<_, _>>()?;
    let first = markdown(
        &["documents", "kept by one side only", "dropped for another reason", "kept with another text"],
        &[row],
    );
    let pairs: Vec<Vec<String>> = compared["pairs"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(pair, count)| {
            let example = compared["examples"][pair].as_str().unwrap_or_default().to_owned();
            vec![pair.clone(), count.to_string(), example]
        })
        .collect();
    if pairs.is_empty() {
        return Ok(first);
    }
    Ok(format!("{first}\n{}", markdown(&["ours, not theirs", "documents", "for example"], &pairs)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rounds_become_a_table_of_documents_per_core() {
        let mut all = Vec::new();
        for cpu in [1.0, 3.0, 2.0] {
            let value = json!({ "seconds": cpu, "cpu_seconds": cpu, "documents": 1000, "kept": 10, "peak_memory_bytes": 1 << 30 });
            add(&mut all, "filters", OURS, &value).unwrap();
            let value = json!({ "seconds": 90, "cpu_seconds": 30.0 * cpu, "documents": 1000, "kept": 11, "peak_memory_bytes": 1 << 29 });
            add(&mut all, "filters", "datatrove 1", &value).unwrap();
        }
        let report = speeds(&all);
        for row in [
            "| filters | llamero | 500 |  |  | 2.00 s | 2.00 s | 10 of 1000 | 1.00 GiB |",
            "| filters | datatrove 1 | 17 | **30.0** | ≥ 20 ✓ | 60.00 s | 90.00 s | 11 of 1000 | 0.50 GiB |",
        ] {
            assert!(report.contains(row), "no `{row}` in {report}");
        }
        assert!(add(&mut all, "filters", OURS, &json!({})).is_err());
    }

    #[test]
    fn differences_are_listed_with_an_example() {
        let compared = json!({ "documents": 9, "kept_by_one_only": 1, "other_reasons": 0, "other_texts": 2,
            "pairs": { "kept, not empty": 1 }, "examples": { "kept, not empty": "a7" } });
        let report = differences(&compared).unwrap();
        assert!(report.contains("| 9 | 1 | 0 | 2 |") && report.contains("| kept, not empty | 1 | a7 |"));
        assert!(differences(&json!({})).is_err());
    }
}
