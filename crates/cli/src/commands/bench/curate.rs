//! `llamero bench curate`: filters and deduplication over documents in files, run as a plan on this machine.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use llamero_curate::dedup::lines::CommonLines;
use llamero_curate::dedup::{MinHash, SketchOf, Verdicts, exact};
use llamero_curate::filter::{C4, GopherQuality, GopherRepetition, HeuristicsConfig};
use llamero_curate::local::{Done, Local, folder_bytes};
use llamero_curate::plan::{Input, Plan, Source, Step};
use llamero_curate::read::ReadConfig;
use llamero_curate::{
    CurateConfig, CurateError, FILTERS, Item, OWN_ID, Progress, READ_SOURCE, Value, build_source, inventory,
    registry, source,
};
use serde::Serialize;

use super::{CommonArgs, print_rows};
use crate::commands::print_json;
use crate::report::format::{count, precise_bytes};

#[derive(Args)]
#[command(
    after_help = "Documents are read, judged, and written with the reason of each that is dropped, as JSON Lines. `filters` are Gopher's \
    repetition and quality and all of C4; `minhash` drops near duplicates (14 × 8 over 5-grams); `all` is both but for C4's rule on \
    ends of lines, exact duplicates, and lines that many documents share. `seconds` is all of it, `cpu_seconds` the time that processors spent, which other \
    programs disturb less.\n\n\
    Examples:\n  \
    llamero bench curate --text documents.jsonl --stage filters --threads 1 --json\n  \
    llamero bench curate --text corpus/ --stage all --memory-mib 1024 --partitions 16"
)]
pub(crate) struct CurateArgs {
    /// Files, folders or globs of documents; JSON Lines have the fields `id` and `text`.
    #[arg(long, required = true, num_args = 1..)]
    text: Vec<String>,
    /// What is done.
    #[arg(long, value_enum, default_value = "all")]
    stage: StageArg,
    /// Write what became of each document here, as JSON Lines: `{"id", "text"}` or `{"id", "reason"}`.
    #[arg(long)]
    judged: Option<PathBuf>,
    /// Folder for partitions, removed at the end; one of the system's for temporary files when absent.
    #[arg(long)]
    work: Option<PathBuf>,
    /// Memory for buffers, in MiB; at least one for each thread.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    memory_mib: u64,
    /// Partitions of a shuffle.
    #[arg(long, default_value_t = 1)]
    partitions: u32,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum StageArg {
    Filters,
    Minhash,
    All,
}

#[derive(Serialize)]
struct Report {
    stage: StageArg,
    threads: usize,
    partitions: u32,
    documents: u64,
    kept: u64,
    bytes: u64,
    seconds: f64,
    /// Absent where the system does not tell.
    cpu_seconds: Option<f64>,
    documents_per_s: f64,
    dropped: BTreeMap<String, u64>,
    broken: usize,
    phases: Vec<Phase>,
    /// Absent where the system does not tell.
    peak_memory_bytes: Option<u64>,
    /// Of the work folder, looked at whenever a partition is done.
    peak_disk_bytes: u64,
}

#[derive(Serialize)]
struct Phase {
    name: String,
    seconds: f64,
}

pub(super) fn curate(args: &CurateArgs) -> Result<()> {
    let report = run(args)?;
    if args.common.json {
        return print_json(&report);
    }
    let mut rows = vec![
        ("documents".to_owned(), format!("{} ({})", count(report.documents), precise_bytes(report.bytes))),
        ("kept".to_owned(), count(report.kept)),
        ("threads, partitions".to_owned(), format!("{}, {}", report.threads, report.partitions)),
        ("time".to_owned(), format!("{:.2} s", report.seconds)),
        ("processor time".to_owned(), report.cpu_seconds.map_or("unknown".into(), |s| format!("{s:.2} s"))),
        ("speed".to_owned(), format!("{:.0} documents/s", report.documents_per_s)),
        (
            "largest resident memory".to_owned(),
            report.peak_memory_bytes.map_or("unknown".into(), precise_bytes),
        ),
        ("largest work folder".to_owned(), precise_bytes(report.peak_disk_bytes)),
    ];
    rows.extend(report.dropped.iter().map(|(reason, &number)| (format!("  {reason}"), count(number))));
    rows.extend(report.phases.iter().map(|p| (format!("  {}", p.name), format!("{:.2} s", p.seconds))));
    print_rows(&rows)
}

fn run(args: &CurateArgs) -> Result<Report> {
    let memory_bytes = args.memory_mib << 20;
    crate::pipeline::check_memory("--memory-mib", memory_bytes, args.common.threads())?;
    let work = match &args.work {
        Some(path) => path.clone(),
        None => std::env::temp_dir().join(format!("llamero-bench-curate-{}", std::process::id())),
    };
    let (begun, busy) = (Instant::now(), crate::machine::cpu_seconds());
    let config = CurateConfig {
        sources: args.text.clone(),
        read: Some(ReadConfig::default()),
        ..CurateConfig::default()
    };
    let source = build_source(&source(&config, &inventory(&config, &())?)?)?;
    let local = Local {
        memory_bytes,
        threads: args.common.threads(),
        partitions: args.partitions,
        restart: true,
        ..Local::new(&work)
    };
    let watch = Watch::new(&work);
    let sources: BTreeMap<&str, &dyn Source> = [(READ_SOURCE, &*source)].into();
    let done = local.run(&plan(args.stage)?, &registry(), &sources, &watch)?;
    watch.phase("write", 0);
    let mut report = Report {
        stage: args.stage,
        threads: local.threads,
        partitions: local.partitions,
        documents: 0,
        kept: 0,
        bytes: 0,
        seconds: 0.0,
        cpu_seconds: None,
        documents_per_s: 0.0,
        dropped: BTreeMap::new(),
        broken: done.stages.values().map(|stage| stage.broken.len()).sum(),
        phases: Vec::new(),
        peak_memory_bytes: None,
        peak_disk_bytes: 0,
    };
    let judged = args.judged.clone().unwrap_or_else(|| work.join("judged.jsonl"));
    write(&done, &judged, &mut report).with_context(|| format!("cannot write `{}`", judged.display()))?;
    watch.look();
    done.remove()?;
    report.seconds = begun.elapsed().as_secs_f64();
    report.cpu_seconds = crate::machine::cpu_seconds().zip(busy).map(|(now, before)| now - before);
    report.documents_per_s = report.documents as f64 / report.seconds;
    report.peak_memory_bytes = crate::machine::peak_memory();
    report.peak_disk_bytes = watch.disk.load(Ordering::Relaxed);
    report.phases = watch.phases();
    Ok(report)
}

fn plan(stage: StageArg) -> Result<Plan, CurateError> {
    let mut plan = Plan { sources: vec![READ_SOURCE.to_owned()], tasks: Vec::new() };
    let heuristics = HeuristicsConfig {
        gopher_repetition: Some(GopherRepetition::default()),
        gopher_quality: Some(GopherQuality::default()),
        // As FineWeb has it: the rule on ends of lines costs a third of the text.
        c4: Some(C4 { terminal_punctuation: stage != StageArg::All, ..C4::default() }),
        ngram_coverage: None,
        fineweb: None,
    };
    let filters = match stage {
        StageArg::Minhash => Vec::new(),
        _ => vec![Step::with(FILTERS, &[Step::with("heuristics", &heuristics)?])?],
    };
    plan.stage("documents", vec![Input::through(READ_SOURCE, filters)], None);
    if stage == StageArg::Filters {
        return Ok(plan);
    }
    let minhash = MinHash::default();
    let sketches = SketchOf { url: false, text: stage == StageArg::All, minhash: Some(minhash.clone()) };
    plan.stage("sketches", vec![Input::through("documents", vec![sketches.step()?])], None);
    let mut verdicts = Verdicts::of(&mut plan, "sketches");
    if stage == StageArg::All {
        exact::append(&mut verdicts)?;
    }
    minhash.append(&mut verdicts)?;
    verdicts.judge("documents", "corpus");
    if stage == StageArg::All {
        CommonLines::default().append(&mut plan, "corpus")?;
    }
    Ok(plan)
}

/// Writes what became of each document, and counts.
fn write(done: &Done, path: &Path, report: &mut Report) -> Result<()> {
    #[derive(Serialize)]
    struct Judged<'a> {
        id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<&'a str>,
    }
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    let failed = Cell::new(None);
    done.in_order(|_, value| {
        let Some(item) = Value::document(value)? else { return Ok(()) };
        let Item { document, bytes, dropped, .. } = item;
        report.documents += 1;
        report.bytes += bytes;
        let reason = dropped.as_ref().map(|dropped| dropped.reason.as_str());
        match reason {
            Some(reason) => *report.dropped.entry(reason.to_owned()).or_default() += 1,
            None => report.kept += 1,
        }
        let text = reason.is_none().then_some(document.text.as_str());
        let id = document.meta.get(OWN_ID).unwrap_or(&document.id);
        let written = serde_json::to_writer(&mut file, &Judged { id, reason, text });
        let written = written.map_err(std::io::Error::from).and_then(|()| file.write_all(b"\n"));
        if let Err(error) = written {
            failed.set(Some(error));
        }
        Ok(())
    })?;
    failed.into_inner().map_or(Ok(()), Err)?;
    Ok(file.flush()?)
}

/// When phases began, and how large the work folder was.
struct Watch {
    work: PathBuf,
    begun: Mutex<Vec<(String, Instant)>>,
    disk: AtomicU64,
}

impl Watch {
    fn new(work: &Path) -> Self {
        Self { work: work.to_owned(), begun: Mutex::new(Vec::new()), disk: AtomicU64::new(0) }
    }

    fn look(&self) {
        self.disk.fetch_max(folder_bytes(&self.work), Ordering::Relaxed);
    }

    fn phases(&self) -> Vec<Phase> {
        let begun = self.begun.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let ends = begun.iter().skip(1).map(|&(_, at)| at).chain([Instant::now()]);
        let phase = |((name, from), to): (&(String, Instant), Instant)| Phase {
            name: name.clone(),
            seconds: (to - *from).as_secs_f64(),
        };
        begun.iter().zip(ends).map(phase).collect()
    }
}

impl Progress for Watch {
    fn phase(&self, name: &str, _: u64) {
        let mut begun = self.begun.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        begun.push((name.to_owned(), Instant::now()));
    }

    fn advance(&self, _: u64) {}

    fn partition(&self, _: u64, _: u64) {
        self.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stage: StageArg, texts: &[&str]) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("documents.jsonl");
        let lines: String = texts
            .iter()
            .enumerate()
            .map(|(id, text)| format!("{{\"id\":\"{id}\",\"text\":\"{text}\"}}\n"))
            .collect();
        std::fs::write(&path, lines).unwrap();
        run(&CurateArgs {
            text: vec![path.to_string_lossy().into_owned()],
            stage,
            judged: None,
            work: Some(folder.path().join("work")),
            memory_mib: 16,
            partitions: 2,
            common: CommonArgs { threads: Some(1), json: true },
        })
        .unwrap()
    }

    #[test]
    fn documents_are_counted_by_reason() {
        let one = "The quick brown fox jumps over the lazy dog.";
        let minhash = report(StageArg::Minhash, &[one, one, "Another text that has a few words of its own."]);
        assert_eq!((minhash.documents, minhash.kept, minhash.dropped["near_duplicate"]), (3, 2, 1));
        let all = report(StageArg::All, &[one]);
        assert_eq!((all.kept, all.dropped.values().sum::<u64>()), (0, 1));
        assert!(all.phases.iter().any(|phase| phase.name == "documents") && all.peak_disk_bytes > 0);
    }
}
