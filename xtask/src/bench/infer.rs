//! Using a model: reading a prompt, decoding, and many requests at once, beside llama.cpp and transformers.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::session::{Label, Server, Session, number, words};
use super::table::{against, markdown, median};

/// Prompt of `prefill`, tokens of `decode`; requests at once, and tokens of each.
const PREFILL: usize = 512;
const DECODE: usize = 128;
const REQUESTS: usize = 8;
const REQUEST_PROMPT: usize = 128;
const REQUEST_TOKENS: usize = 64;
/// Peak memory at most this many times the file with keys and values.
const MEMORY: f64 = 1.2;
/// Seconds from the start of a process to its first token, at most; and the prompt, about 20 tokens.
const COLD: f64 = 0.5;
const COLD_PROMPT: &str =
    "The cat sat on the mat and looked at the old man who was in the house all day long";

/// Times the best peer that an encoding is asked to reach.
struct Target {
    /// In the file's name.
    encoding: &'static str,
    /// In the order of [`CASES`].
    times: [f64; 3],
}

const TARGETS: [Target; 3] = [
    Target { encoding: "Q4_1", times: [3.5, 2.5, 2.5] },
    Target { encoding: "Q8_0", times: [2.0, 1.8, 2.5] },
    Target { encoding: "BF16", times: [1.3, 1.1, 2.5] },
];

/// What is measured, as it stands in the tables.
const CASES: [&str; 3] = ["prefill 512", "decode 128", "8 × (128 + 64)"];

/// What one program gave for one case.
struct Series {
    by: &'static str,
    case: usize,
    speeds: Vec<f64>,
    memory: Vec<f64>,
    /// Bytes of keys and values at their peak; ours only.
    kv: Vec<f64>,
    command: String,
}

/// What was measured with one file.
#[derive(Default)]
struct Measured {
    series: Vec<Series>,
    /// Seconds of whole processes that generate one token.
    cold: Vec<f64>,
    /// Tokens of their prompt.
    cold_tokens: usize,
}

/// The peers of one file, as long as it is measured.
struct Peers {
    server: Server,
    transformers: Option<Server>,
    llamacpp: Vec<String>,
}

pub(super) fn run(session: &mut Session) -> Result<String, String> {
    let mut report = String::new();
    for model in session.options.models.clone() {
        let measured = measure(session, &model)?;
        let size = fs::metadata(&model).map_err(|e| format!("cannot read `{}`: {e}", model.display()))?.len();
        let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        report += &table(&name, size as f64, &measured);
    }
    Ok(report)
}

fn measure(session: &mut Session, model: &Path) -> Result<Measured, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let bin = session.options.llamacpp.clone().unwrap_or_default();
    let llamacpp = vec!["--bin".into(), text(&bin), "--model".into(), text(model)];
    let is_bf16 = encoding(&text(model)).is_some_and(|target| target.encoding == "BF16");
    let transformers = match session.options.hf.clone().filter(|_| is_bf16) {
        Some(folder) => Some(session.server("infer_transformers.py", &["--model".into(), text(&folder)])?),
        None => None,
    };
    let server = session.server("infer_llamacpp.py", &llamacpp)?;
    let mut peers = Peers { server, transformers, llamacpp };
    let mut all = Measured::default();
    for round in 0..session.options.samples {
        for case in 0..CASES.len() {
            for (by, mut value) in one_round(session, model, &mut peers, (case, round))? {
                let command = value["command"].as_str().unwrap_or_default().replace(&text(model), "FILE");
                value["command"] = command.replace(&format!("{}/", text(&bin)), "").into();
                add(&mut all.series, (by, case), &value)?;
            }
        }
        let label = Label { bench: "infer", case: "cold", by: "llamero", round };
        let ours =
            ["generate", &text(model), "--max-tokens", "1", "--temperature", "0", "--prompt", COLD_PROMPT];
        let value = session.timed(&label, &ours.map(str::to_owned))?;
        all.cold.push(number(&value, "wall_s")?);
        all.cold_tokens = value["prompt_ids"].as_array().map_or(0, Vec::len);
    }
    Ok(all)
}

/// One result of each program.
fn one_round(
    session: &mut Session,
    model: &Path,
    peers: &mut Peers,
    (case, round): (usize, usize),
) -> Result<Vec<(&'static str, Value)>, String> {
    let label = |by| Label { bench: "infer", case: CASES[case], by, round };
    let (ours, key) = match case {
        0 => (format!("--prompt-tokens {PREFILL} --gen-tokens 1"), "prefill_tokens_per_s"),
        1 => (format!("--prompt-tokens 1 --gen-tokens {DECODE}"), "decode_tokens_per_s"),
        _ => (
            format!(
                "--prompt-tokens {REQUEST_PROMPT} --gen-tokens {REQUEST_TOKENS} --concurrency {REQUESTS}"
            ),
            "generated_tokens_per_s",
        ),
    };
    let args = [vec!["infer".into(), model.to_string_lossy().into_owned()], words(&ours)].concat();
    let mut value = session.ours(&label("llamero"), &args)?;
    value["tokens_per_s"] = number(&value, key)?.into();
    value["command"] = format!("llamero bench infer FILE {ours}: {key}").into();
    let mut results = vec![("llamero", value)];
    let tokens = [PREFILL, DECODE][case.min(1)];
    if case == 2 {
        let question = json!({ "concurrency": REQUESTS, "prompt_tokens": REQUEST_PROMPT,
            "gen_tokens": REQUEST_TOKENS, "seed": round });
        results.push(("llama.cpp", session.ask(&label("llama.cpp"), &mut peers.server, &question)?));
    } else {
        let name = ["prefill", "decode"][case];
        let args = [peers.llamacpp.clone(), words(&format!("--case {name} --tokens {tokens}"))].concat();
        results.push(("llama.cpp", session.peer(&label("llama.cpp"), "infer_llamacpp.py", &args)?));
        if let Some(server) = &mut peers.transformers {
            let question = json!({ "case": name, "tokens": tokens, "seed": round });
            results.push(("transformers", session.ask(&label("transformers"), server, &question)?));
        }
    }
    Ok(results)
}

fn add(all: &mut Vec<Series>, (by, case): (&'static str, usize), value: &Value) -> Result<(), String> {
    let at = all.iter().position(|s| s.by == by && s.case == case).unwrap_or_else(|| {
        let command = value["command"].as_str().unwrap_or_default().to_owned();
        all.push(Series { by, case, speeds: Vec::new(), memory: Vec::new(), kv: Vec::new(), command });
        all.len() - 1
    });
    all[at].speeds.push(number(value, "tokens_per_s")?);
    all[at].memory.extend(value["peak_memory_bytes"].as_f64());
    all[at].kv.extend(value["peak_kv_bytes"].as_f64());
    Ok(())
}

fn encoding(file: &str) -> Option<&'static Target> {
    let name = file.rsplit('/').next().unwrap_or(file).to_uppercase();
    TARGETS.iter().find(|target| name.contains(target.encoding))
}

fn table(name: &str, size: f64, measured: &Measured) -> String {
    let all = &measured.series;
    let mut rows = Vec::new();
    for (case, what) in CASES.iter().enumerate() {
        let of_case: Vec<&Series> = all.iter().filter(|s| s.case == case).collect();
        let ours = of_case.iter().find(|s| s.by == "llamero").map_or(f64::NAN, |s| median(&s.speeds));
        let peers = of_case.iter().filter(|s| s.by != "llamero").map(|s| median(&s.speeds));
        let best = peers.fold(f64::NAN, f64::max);
        for series in of_case {
            let speed = median(&series.speeds);
            let is_best = series.by != "llamero" && speed == best;
            let target = encoding(name).filter(|_| is_best).map(|target| target.times[case]);
            let cell =
                target.map_or(String::new(), |times| against(format!("≥ {times}"), ours / best >= times));
            let ratio =
                if series.by == "llamero" { String::new() } else { format!("**{:.2}**", ours / speed) };
            let memory = match series.memory.as_slice() {
                [] => String::new(),
                all => format!("{:.0} MB", median(all) / 1e6),
            };
            let (by, command) = (series.by.to_owned(), format!("`{}`", series.command));
            rows.push(vec![(*what).into(), by, format!("{speed:.1}"), ratio, cell, memory, command]);
        }
    }
    let header = ["what", "by", "tokens/s", "ours / it", "target", "peak memory", "command"];
    format!("### {name}\n\n{}\n{}\n", markdown(&header, &rows), limits(size, measured))
}

/// What we ask of ourselves, whatever the peers do.
fn limits(size: f64, measured: &Measured) -> String {
    let mut rows = Vec::new();
    let ours = measured.series.iter().filter(|s| s.by == "llamero");
    for series in ours.filter(|s| !s.memory.is_empty() && !s.kv.is_empty()) {
        let (memory, kv) = (median(&series.memory), median(&series.kv));
        let times = memory / (size + kv);
        rows.push(vec![
            format!("{}: peak memory / (file + keys and values)", CASES[series.case]),
            format!("{:.0} / ({:.1} + {:.1}) MB = **{times:.2}**", memory / 1e6, size / 1e6, kv / 1e6),
            against(format!("≤ {MEMORY}"), times <= MEMORY),
        ]);
    }
    if !measured.cold.is_empty() {
        let seconds = median(&measured.cold);
        rows.push(vec![
            format!("a new process, a prompt of {} tokens, one token", measured.cold_tokens),
            format!("**{seconds:.3} s**"),
            against(format!("≤ {COLD} s"), seconds <= COLD),
        ]);
    }
    markdown(&["limit", "figure", "target"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_become_a_table_with_the_better_peer_as_the_mark() {
        let mut all = Measured { cold: vec![0.4, 0.9, 0.45], cold_tokens: 20, ..Measured::default() };
        let value = |speed: f64| json!({ "tokens_per_s": speed, "peak_memory_bytes": 3e8, "peak_kv_bytes": 3e7, "command": "run it" });
        for (by, speeds) in [
            ("llamero", [1200.0, 1300.0, 1250.0]),
            ("llama.cpp", [700.0, 800.0, 750.0]),
            ("transformers", [1000.0; 3]),
        ] {
            for speed in speeds {
                add(&mut all.series, (by, 0), &value(speed)).unwrap();
            }
        }
        let report = table("m.BF16.gguf", 2.7e8, &all);
        for row in [
            "| prefill 512 | llamero | 1250.0 |  |  | 300 MB | `run it` |",
            "| prefill 512 | llama.cpp | 750.0 | **1.67** |  | 300 MB | `run it` |",
            "| prefill 512 | transformers | 1000.0 | **1.25** | ≥ 1.3 ✗ | 300 MB | `run it` |",
            "| prefill 512: peak memory / (file + keys and values) | 300 / (270.0 + 30.0) MB = **1.00** | ≤ 1.2 ✓ |",
            "| a new process, a prompt of 20 tokens, one token | **0.450 s** | ≤ 0.5 s ✓ |",
        ] {
            assert!(report.contains(row), "no `{row}` in {report}");
        }
        assert!(add(&mut all.series, ("llamero", 1), &json!({})).is_err());
        // Half the file: the same memory is too much, and so is the slower process.
        all.cold = vec![0.6];
        let report = limits(1.35e8, &all);
        assert!(
            report.contains("**1.82** | ≤ 1.2 ✗") && report.contains("**0.600 s** | ≤ 0.5 s ✗"),
            "{report}"
        );
    }

    #[test]
    fn targets_go_by_the_name_of_the_file() {
        assert_eq!(encoding("Q8_0/a.q4_1.gguf").map(|t| t.times[0]), Some(3.5));
        assert!(encoding("BF16/model.gguf").is_none());
    }
}
