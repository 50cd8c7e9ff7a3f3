//! The runner: the same records whatever the partitions, threads and memory; kills, strangers and damage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;

use super::file::{Reader, Writer, read_footer};
use super::sort::{Sorter, fan_in};
use super::*;
use crate::plan::{Broken, BrokenPart, Emit, Input, Map, Reduce, Repeat, Stage, Step, Values};

/// Lines of text in splits; a line `?` is broken.
struct Lines(Vec<Vec<String>>);

impl Source for Lines {
    fn fingerprint(&self) -> String {
        blake3::hash(format!("{:?}", self.0).as_bytes()).to_hex().to_string()
    }

    fn splits(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self, split: usize) -> u64 {
        self.0[split].iter().map(|line| line.len() as u64).sum()
    }

    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        broken: &mut Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        for (at, line) in self.0[split].iter().enumerate() {
            if line == "?" {
                broken(BrokenPart::new(&format!("split {split}, line {at}"), None, "a question mark"))?;
            } else {
                emit(&[], line.as_bytes())?;
            }
            tick(line.len() as u64);
        }
        Ok(())
    }
}

struct Words;

impl Map for Words {
    fn map(&self, _: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        value.split(|&byte| byte == b' ').try_for_each(|word| emit(word, value))
    }
}

/// Counts values and joins what must have come in order.
struct Count;

impl Reduce for Count {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let (mut count, mut last) = (0_u64, Vec::new());
        while let Some(value) = values.next()? {
            assert!(*last <= *value, "values are sorted");
            last = value.to_vec();
            count += 1;
        }
        emit(key, &[&count.to_be_bytes()[..], &last].concat())
    }
}

/// Takes the first value only.
struct FirstOnly;

impl Reduce for FirstOnly {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let first = values.next()?.map(<[u8]>::to_vec).unwrap();
        emit(key, &first)
    }
}

/// Halves numbers, but for 1.
struct Halve;

impl Map for Halve {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let number: u64 = std::str::from_utf8(value).unwrap().parse().unwrap();
        emit(key, (number / 2).max(1).to_string().as_bytes())
    }
}

/// Counts calls, and fails at the call of this number.
struct Fails(Arc<AtomicUsize>, usize);

impl Map for Fails {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        if self.0.fetch_add(1, Ordering::SeqCst) + 1 == self.1 {
            return Err(CurateError::Record { what: "test", problem: "stopped".to_owned() });
        }
        emit(key, value)
    }
}

fn functions() -> Registry {
    let mut registry = Registry::default();
    registry.map("words", |_, _| Ok(Box::new(Words)));
    registry.map("halve", |_, _| Ok(Box::new(Halve)));
    registry.reduce("count", |_| Ok(Box::new(Count)));
    registry.reduce("first-only", |_| Ok(Box::new(FirstOnly)));
    registry
}

fn plan_of(maps: &[&str], reduce: &str) -> Plan {
    let mut plan = Plan { sources: vec!["lines".to_owned()], tasks: Vec::new() };
    let maps = maps.iter().map(|name| Step::new(name)).collect();
    plan.stage("made", vec![Input::through("lines", maps)], None);
    plan.stage("reduced", vec![Input::all("made")], Some(Step::new(reduce)));
    plan
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

fn run(
    local: &Local,
    plan: &Plan,
    registry: &Registry,
    lines: &Lines,
) -> Result<(Done, Records), CurateError> {
    let sources: BTreeMap<&str, &dyn Source> = [("lines", lines as &dyn Source)].into();
    let done = local.run(plan, registry, &sources, &())?;
    let mut records = Vec::new();
    done.in_order(|key, value| {
        records.push((key.to_vec(), value.to_vec()));
        Ok(())
    })?;
    Ok((done, records))
}

fn text(splits: usize, lines: usize) -> Lines {
    let line =
        |split, at: usize| format!("a{} common {} line{} of words", at % 97, (split * at) % 1009, at % 7);
    Lines((0..splits).map(|split| (0..lines).map(|at| line(split, at)).collect()).collect())
}

fn expected(lines: &Lines) -> Records {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in lines.0.iter().flatten() {
        line.split(' ').for_each(|word| groups.entry(word).or_default().push(line));
    }
    let value = |lines: Vec<&str>| {
        [&(lines.len() as u64).to_be_bytes()[..], lines.iter().max().unwrap().as_bytes()].concat()
    };
    groups.into_iter().map(|(word, lines)| (word.as_bytes().to_vec(), value(lines))).collect()
}

#[test]
fn neither_partitions_nor_threads_nor_memory_show() {
    // Enough records for several runs a task at the least memory, and enough tasks for merges of merges.
    let lines = text(9, 3_000);
    let expected = expected(&lines);
    for (partitions, threads) in [(1, 1), (2, 2), (7, 1), (7, 2)] {
        let work = TempDir::new().unwrap();
        let memory_bytes = MIN_MEMORY_BYTES * threads as u64;
        let local = Local { partitions, threads, memory_bytes, ..Local::new(&work.path().join("work")) };
        let (done, records) = run(&local, &plan_of(&["words"], "count"), &functions(), &lines).unwrap();
        assert!(records == expected, "{partitions} partitions, {threads} threads");
        assert_eq!(done.stages["made"].records, 9 * 3_000 * 6);
        done.remove().unwrap();
        assert!(!local.work.exists());
    }
}

#[test]
fn values_that_a_reduce_leaves_are_skipped() {
    let lines = text(3, 50);
    let work = TempDir::new().unwrap();
    let local = Local { partitions: 3, ..Local::new(&work.path().join("work")) };
    let (_, records) = run(&local, &plan_of(&["words"], "first-only"), &functions(), &lines).unwrap();
    let keys = |records: &Records| records.iter().map(|record| record.0.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&records), keys(&expected(&lines)));
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let lines = text(8, 40);
    let total = 8 * 40;
    // After the last record too, when all is left to the second stage.
    for stop_at in [1, 100, total] {
        let work = TempDir::new().unwrap();
        let local = Local { partitions: 2, ..Local::new(&work.path().join("work")) };
        let calls = Arc::new(AtomicUsize::new(0));
        let with = |stop_at: usize| {
            let mut registry = functions();
            let calls = Arc::clone(&calls);
            registry.map("fails", move |_, _| Ok(Box::new(Fails(Arc::clone(&calls), stop_at))));
            registry
        };
        let plan = plan_of(&["fails", "words"], "count");
        assert!(run(&local, &plan, &with(stop_at), &lines).is_err());
        let (_, records) = run(&local, &plan, &with(usize::MAX), &lines).unwrap();
        assert!(records == expected(&lines));
        // Splits that were finished are not read again; the one that was stopped is.
        assert_eq!(calls.load(Ordering::SeqCst), total + (stop_at - 1) % 40 + 1);
        // A run that is done does nothing.
        let (_, again) = run(&local, &plan, &with(usize::MAX), &lines).unwrap();
        assert!(records == again);
        assert_eq!(calls.load(Ordering::SeqCst), total + (stop_at - 1) % 40 + 1);
    }
}

/// The folder of a stage in a work folder of one run.
fn stage_of(local: &Local, stage: &str) -> PathBuf {
    let entries = std::fs::read_dir(&local.work).unwrap().map(|entry| entry.unwrap().path());
    let is_run = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("run-");
    let runs: Vec<PathBuf> = entries.filter(is_run).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    runs[0].join(stage)
}

#[test]
fn a_partition_without_its_end_is_made_again() {
    let lines = text(8, 40);
    let work = TempDir::new().unwrap();
    let local = Local::new(&work.path().join("work"));
    let plan = plan_of(&["fails", "words"], "count");
    let with = |stop_at: usize| {
        let mut registry = functions();
        registry.map("fails", move |_, _| Ok(Box::new(Fails(Arc::new(AtomicUsize::new(0)), stop_at))));
        registry
    };
    assert!(run(&local, &plan, &with(100), &lines).is_err());
    let part = stage_of(&local, "made").join("part-00000.run");
    let bytes = std::fs::read(&part).unwrap();
    std::fs::write(&part, &bytes[..bytes.len() / 2]).unwrap();
    let (_, records) = run(&local, &plan, &with(usize::MAX), &lines).unwrap();
    assert!(records == expected(&lines));
}

#[test]
fn large_records_are_merged_with_few_others() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.run");
    let mut sorter = Sorter::new(&path, 1, 4 << 20).unwrap();
    for at in 0..9_u8 {
        sorter.push(0, &[9 - at], &vec![at; 3 << 20]).unwrap();
    }
    (0..9_u8).for_each(|at| sorter.push(0, &[100 + at], &[at]).unwrap());
    sorter.finish().unwrap();
    let segments: Vec<_> =
        read_footer(&path).unwrap().segments.into_iter().map(|segment| (path.clone(), segment)).collect();
    assert!(segments.len() >= 9 && segments[0].1.largest > 3 << 20);
    assert_eq!(fan_in(&segments, 4 << 20), 2, "two at the least");
    assert_eq!(fan_in(&segments, 20 << 20), 3, "each takes two blocks of 3 MiB");
    let mut merge = Merge::open(segments, 4 << 20, &folder.path().join("scratch")).unwrap();
    let mut keys = Vec::new();
    while let Some((key, _)) = merge.peek() {
        keys.push(key[0]);
        merge.advance().unwrap();
    }
    assert_eq!(keys, (1..=9).chain(100..109).collect::<Vec<u8>>());
}

#[test]
fn only_what_curation_wrote_is_removed() {
    let (lines, others) = (text(2, 10), text(2, 11));
    let work = TempDir::new().unwrap();
    let local = Local { restart: true, ..Local::new(&work.path().join("work")) };
    let plan = plan_of(&["words"], "count");
    let (done, _) = run(&local, &plan, &functions(), &lines).unwrap();
    // Another run that gives up does not take the folder away from the one that is in it.
    assert!(run(&local, &plan, &functions(), &others).is_err());
    discard(&local.work);
    let reduced = stage_of(&local, "reduced");
    assert!(reduced.exists());
    let thesis = local.work.join("thesis.txt");
    std::fs::write(&thesis, "years of work").unwrap();
    drop(done);
    let error = run(&local, &plan, &functions(), &others).err().unwrap().to_string();
    assert!(error.contains("thesis.txt"), "{error}");
    discard(&local.work);
    assert!(thesis.exists() && !reduced.exists());

    let foreign = work.path().join("foreign");
    std::fs::create_dir_all(foreign.join("made")).unwrap();
    std::fs::write(foreign.join("plan.json"), "{\"tasks\": \"of somebody else\"}").unwrap();
    let error = run(&Local { work: foreign.clone(), ..local }, &plan, &functions(), &lines)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("plan.json"), "{error}");
    discard(&foreign);
    assert!(foreign.join("made").exists());

    // A file of somebody else that has the name of ours.
    let locked = work.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::write(locked.join("lock"), "of a door").unwrap();
    let error = run(&Local { work: locked.clone(), ..Local::new(&foreign) }, &plan, &functions(), &lines);
    assert!(error.err().unwrap().to_string().contains("`lock`"));
    assert_eq!(std::fs::read(locked.join("lock")).unwrap(), b"of a door");
}

#[test]
fn another_plan_or_input_is_refused_or_starts_anew() {
    let (lines, others) = (text(2, 10), text(2, 11));
    let work = TempDir::new().unwrap();
    let local = Local::new(&work.path().join("work"));
    let plan = plan_of(&["words"], "count");
    run(&local, &plan, &functions(), &lines).unwrap();
    for (plan, lines) in [(plan_of(&["words"], "first-only"), &lines), (plan.clone(), &others)] {
        let error = run(&local, &plan, &functions(), lines).err().unwrap().to_string();
        assert!(error.contains("another plan") && error.contains("hint:"), "{error}");
    }
    let anew = Local { restart: true, ..local.clone() };
    let (_, records) = run(&anew, &plan, &functions(), &others).unwrap();
    assert!(records == expected(&others));

    let stranger = work.path().join("stranger");
    std::fs::create_dir(&stranger).unwrap();
    std::fs::write(stranger.join("thesis.txt"), "years of work").unwrap();
    let error =
        run(&Local { work: stranger, ..anew }, &plan, &functions(), &lines).err().unwrap().to_string();
    assert!(error.contains("thesis.txt"), "{error}");
}

#[test]
fn a_folder_in_use_is_refused() {
    let lines = text(1, 1);
    let work = TempDir::new().unwrap();
    let local = Local::new(work.path());
    let (done, _) = run(&local, &plan_of(&["words"], "count"), &functions(), &lines).unwrap();
    let error = run(&local, &plan_of(&["words"], "count"), &functions(), &lines).err().unwrap().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(done);
    run(&local, &plan_of(&["words"], "count"), &functions(), &lines).unwrap();
}

#[test]
fn nothing_is_not_a_result() {
    let work = TempDir::new().unwrap();
    for lines in [Lines(vec![]), Lines(vec![vec![], vec!["?".to_owned()]])] {
        let local = Local { restart: true, ..Local::new(work.path()) };
        let error = run(&local, &plan_of(&["words"], "count"), &functions(), &lines).err().unwrap();
        assert!(matches!(&error, CurateError::EmptyOutput { stage, .. } if stage == "reduced"), "{error}");
    }
}

#[test]
fn broken_inputs_are_counted_unless_they_must_stop_the_run() {
    let lines = Lines(vec![vec!["one".to_owned(), "?".to_owned(), "two".to_owned()], vec!["?".to_owned()]]);
    let work = TempDir::new().unwrap();
    let local = Local::new(&work.path().join("work"));
    let plan = plan_of(&["words"], "count");
    for _ in 0..2 {
        // The second time from disk.
        let (done, records) = run(&local, &plan, &functions(), &lines).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(
            done.stages["made"].broken.iter().map(BrokenPart::to_string).collect::<Vec<_>>(),
            ["`split 0, line 1` is broken: a question mark", "`split 1, line 0` is broken: a question mark"]
        );
    }
    let strict = Local { stop_at_broken: true, work: work.path().join("strict"), ..local };
    let error = run(&strict, &plan, &functions(), &lines).err().unwrap().to_string();
    assert!(error.contains("split 0, line 1"), "{error}");
}

#[test]
fn a_repeat_ends_when_nothing_changes() {
    let lines = Lines(vec![vec!["1000".to_owned()], vec!["7".to_owned(), "1".to_owned()]]);
    let mut plan = Plan { sources: vec!["lines".to_owned()], tasks: Vec::new() };
    plan.stage("start", vec![Input::all("lines")], None);
    let body = Stage {
        name: "half".to_owned(),
        inputs: vec![Input::through("until-one", vec![Step::new("halve")])],
        reduce: None,
    };
    plan.tasks.push(Task::Repeat(Repeat {
        name: "until-one".to_owned(),
        start: "start".to_owned(),
        stages: vec![body],
    }));
    plan.stage("counted", vec![Input::all("until-one")], Some(Step::new("count")));
    let text = "start <- lines\nuntil-one <- start, until nothing changes:\n  half <- until-one | halve\n\
                counted <- until-one => count\n";
    assert_eq!(plan.to_string(), text);
    let parsed: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!(parsed, plan);
    let work = TempDir::new().unwrap();
    let (_, records) = run(&Local::new(work.path()), &plan, &functions(), &lines).unwrap();
    assert_eq!(records, [(vec![], [&3_u64.to_be_bytes()[..], b"1"].concat())]);
}

#[test]
fn plans_that_do_not_hang_together_are_refused() {
    let good = plan_of(&["words"], "count");
    let mut names: Vec<(Plan, &str)> = Vec::new();
    let mut change = |part: &'static str, edit: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        edit(&mut plan);
        names.push((plan, part));
    };
    change("reads `nobody`", &|plan| plan.stage("third", vec![Input::all("nobody")], None));
    change("name of two", &|plan| plan.stage("made", vec![Input::all("lines")], None));
    change("not a name", &|plan| plan.stage("../up", vec![Input::all("lines")], None));
    change("has no tasks", &|plan| plan.tasks.clear());
    change("not given", &|plan| plan.sources.push("other".to_owned()));
    change("no map has this name", &|plan| {
        plan.stage("third", vec![Input::through("made", vec![Step::new("wrods")])], None);
    });
    let work = TempDir::new().unwrap();
    for (plan, part) in names {
        let local = Local { restart: true, ..Local::new(work.path()) };
        let error = run(&local, &plan, &functions(), &text(1, 1)).err().unwrap().to_string();
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn damage_is_noticed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("part.run");
    let mut writer = Writer::create(&path).unwrap();
    writer.begin_segment().unwrap();
    (0..2_000_u32).for_each(|at| writer.push(&at.to_be_bytes(), &[7; 60]).unwrap());
    writer.finish().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let read = || -> Result<u32, CurateError> {
        let mut count = 0;
        for segment in read_footer(&path)?.segments {
            let mut reader = Reader::open(&path, segment)?;
            while reader.advance()? {
                count += 1;
            }
        }
        Ok(count)
    };
    assert_eq!(read().unwrap(), 2_000);
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(read(), Err(CurateError::Damaged { .. })), "byte {at} of {}", whole.len());
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(matches!(read(), Err(CurateError::Damaged { .. })), "cut at {at} of {}", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_records_come_back(
        records in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..9), 0..200_000_usize), 0..12),
    ) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("part.run");
        let mut writer = Writer::create(&path).unwrap();
        writer.begin_segment().unwrap();
        for (key, size) in &records {
            writer.push(key, &vec![key.len() as u8; *size]).unwrap();
        }
        let footer = writer.finish().unwrap();
        prop_assert_eq!(&read_footer(&path).unwrap(), &footer);
        prop_assert_eq!(footer.totals.records, records.len() as u64);
        let mut reader = Reader::open(&path, footer.segments[0]).unwrap();
        for (key, size) in &records {
            prop_assert!(reader.advance().unwrap());
            prop_assert_eq!((reader.key(), reader.value().len()), (&key[..], *size));
        }
        prop_assert!(!reader.advance().unwrap());
    }
}
