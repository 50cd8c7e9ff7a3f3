//! All filters on, over WARC, JSON Lines and HTML made here.

use std::io::Write;

use serde_json::json;

use super::*;
use crate::local::MIN_MEMORY_BYTES;
use crate::quality::{Example, TrainConfig, train};

const WORDS: &str = "the of and that have with this from they were when there which their would about other \
    people many than then these some into could water been called find long down day come made may part over \
    new sound take only little work know place year live back give most very after thing our just name good \
    sentence man think say great where help through much before line right too mean old any same tell boy \
    follow came want show also around form three small set put end does another well large must big even such \
    because turn here why ask went men read need land different home move try kind hand picture again change \
    off play spell air away animal house point page letter mother answer found study still learn should world";

const GERMAN: &str = "der die und das nicht von sie ist des sich mit dem dass ein auch eine als aber auf nach wird \
    bei einer um am sind noch wie einem über einen so zum war haben nur oder aus mehr wenn sein durch man schon \
    Jahre immer gegen vom können hier unter ihre habe kommt Haus Stadt Wasser Leben Zeit Tag Menschen Wege";

const RARE: &str = "zygote quixotic of the xylem and obelisk phlox that quartz have gnomon with vizier topaz sphinx \
    onyx jackal basilisk kumquat yurt fjord crypt lynx pyx nymph glyph tryst hymnal vortex zephyr";

const BAD: &str = "the of and that have with this from they junk pills junk casino junk spam junk pills casino spam \
    when there which their would about other people many";

/// Words in a fixed disorder: the same for the same number.
fn text(words: &str, number: u64, lines: u64) -> String {
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words[(state >> 33) as usize % words.len()]
    };
    let mut text = String::new();
    for _ in 0..lines {
        for _ in 0..2 {
            let sentence: Vec<_> = (0..12).map(|_| word()).collect();
            text += &format!("{} {}. ", capital(sentence[0]), sentence[1..].join(" "));
        }
        text.pop();
        text.push('\n');
    }
    text
}

fn capital(word: &str) -> String {
    let first = word.chars().next().unwrap();
    first.to_uppercase().chain(word[first.len_utf8()..].chars()).collect()
}

fn page(text: &str) -> String {
    let body: String = text.lines().map(|line| format!("<p>{line}</p>\n")).collect();
    format!("<html><head><title>A page</title></head><body><article>{body}</article></body></html>")
}

fn response(url: &str, date: &str, html: &str) -> Vec<u8> {
    let http = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}");
    format!(
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{url}>\r\nWARC-Date: {date}\r\n\
         WARC-Target-URI: {url}\r\nContent-Length: {}\r\n\r\n{http}\r\n\r\n",
        http.len()
    )
    .into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const OLD: &str = "2024-01-01T00:00:00Z";
const NEW: &str = "2025-01-01T00:00:00Z";
const EXAM: &str =
    "How many llamas stand upon the seventh terrace when the condor turns north at dawn in winter";
const MENU: &str = "Subscribe to our letter and follow the herd of this house.";

/// Address and reason of every page that is dropped, `kept` of the others.
type Expected = BTreeMap<String, &'static str>;

/// Writes a crawl, JSON Lines and a page, and says what must become of each document.
fn write_sources(root: &Path) -> Expected {
    let mut expected = Expected::new();
    let mut crawl = Vec::new();
    let mut add = |name: &str, date: &str, text: &str, fate: &'static str| {
        let url = format!("https://{name}");
        crawl.push(gzip(&response(&url, date, &page(text))));
        expected.insert(url, fate);
    };
    for n in 0..24 {
        // More than six have this line, and lose it.
        let menu = if n < 8 { MENU.to_owned() + "\n" } else { String::new() };
        add(&format!("good.example/{n}"), NEW, &(text(WORDS, n, 10) + &menu), "kept");
    }
    add("porn.example/1", NEW, &text(WORDS, 30, 10), "hard_blacklisted");
    add("blocked.example/1", NEW, &text(WORDS, 31, 10), "domain");
    add("sub.blocked.example/1", NEW, &text(WORDS, 32, 10), "domain");
    add("short.example/1", NEW, "Too short to say much of anything.", "too_short");
    add("exact.example/b", OLD, &text(WORDS, 8, 10), "exact_duplicate");
    let near = text(WORDS, 9, 10) + "One more.\n";
    add("near.example/b", OLD, &near, "near_duplicate");
    for n in 0..3 {
        add(&format!("deutsch.example/{n}"), NEW, &text(GERMAN, 40 + n, 10), "kept");
    }
    let again =
        "The same sentence comes again and again in this place of the world, and that is all. ".repeat(30);
    add("again.example/1", NEW, &again, "top_3_gram");
    add("words.example/1", NEW, &text(RARE, 50, 10), "unigram_divergence");
    let dirty = text(WORDS, 51, 10).replace(". ", " smut. ");
    add("dirty.example/1", NEW, &dirty, "dirty_words");
    add("bad.example/1", NEW, &text(BAD, 52, 12), "quality");
    add("exam.example/1", NEW, &(text(WORDS, 53, 10) + EXAM + ".\n"), "contamination");
    let mail = "Write to llama@herd.example for more about this house and the land.";
    add("mail.example/1", NEW, &(text(WORDS, 54, 10) + mail + "\n"), "kept");
    let maths = "Then \\(x^2 + y^2 = z^2\\) and \\(\\frac{a}{b} = c\\) hold, as they should and would with all of that.\n";
    add("maths.example/1", NEW, &(text(WORDS, 55, 2) + maths + &text(WORDS, 56, 2)), "kept");
    // The same address, with another text of an older day.
    let mut crawl: Vec<u8> = crawl.concat();
    let older = gzip(&response("http://www.good.example/3/", OLD, &page(&text(WORDS, 60, 10))));
    expected.insert("http://www.good.example/3/".to_owned(), "url_duplicate");
    crawl.extend(older);
    // A member that is damaged in its middle, and one behind it.
    let mut damaged = gzip(&response("https://damaged.example/1", NEW, &page(&text(WORDS, 61, 40))));
    let middle = damaged.len() / 2;
    damaged[middle..middle + 20].fill(0xA5);
    crawl.extend(damaged);
    for status in ["404 Not Found", "301 Moved", "301 Moved", "503 Busy"] {
        let page = String::from_utf8(response("https://gone.example/1", NEW, "")).unwrap();
        // A status of as many bytes keeps the length right.
        let page = page.replace("200 OK", status).replace("Content-Type: text/html; charset=utf-8\r\n", "");
        let gone = page.len() - page.find("HTTP/").unwrap() - 4;
        let said = page.find("Content-Length: ").unwrap() + "Content-Length: ".len();
        let end = said + page[said..].find('\r').unwrap();
        crawl.extend(gzip(format!("{}{gone}{}", &page[..said], &page[end..]).as_bytes()));
    }
    crawl.extend(gzip(&response("https://behind.example/1", NEW, &page(&text(WORDS, 62, 10)))));
    expected.insert("https://behind.example/1".to_owned(), "kept");

    let mut lines = String::new();
    for n in 0..6 {
        let code: String = (0..12)
            .map(|at| format!("fn add_{n}_{at}(a: &[u8], b: u64) -> u64 {{ a[{at}] as u64 + b * {n}; }}\n"))
            .collect();
        let url = format!("https://code.example/{n}.rs");
        lines += &(json!({"id": "7", "text": code, "url": url}).to_string() + "\n");
        expected.insert(url, "kept");
    }
    lines += "{\"text\": 7}\nno json\n";
    let html = page(&text(WORDS, 70, 10));
    expected.insert("data/page.html".to_owned(), "kept");
    write_all(
        root,
        &[
            ("data/crawl.warc.gz", &crawl),
            ("data/more.jsonl.gz", &gzip(lines.as_bytes())),
            ("data/page.html", html.as_bytes()),
            ("lists/domains", b"blocked.example\n"),
            ("lists/dirty", b"smut\n"),
            ("lists/exam.txt", EXAM.as_bytes()),
        ],
    );
    let labelled = |words: &str, label: &str| -> Vec<Example> {
        let example = |n| Example { text: text(words, n, 4), label: label.to_owned() };
        (100..140).map(example).collect()
    };
    let examples = [labelled(WORDS, "good"), labelled(BAD, "bad")];
    let model =
        train(&examples.concat(), &TrainConfig { epochs: 50, ..TrainConfig::default() }, |_, _| ()).unwrap();
    model.save(&root.join("lists/quality.bin")).unwrap();
    expected
}

/// Everything on.
fn config(root: &Path) -> CurateConfig {
    let list = |name: &str| root.join("lists").join(name);
    serde_json::from_value(json!({
        "sources": [root.join("data")],
        "read": {},
        "url_block": {"domains": [list("domains")]},
        "extract": {},
        "pii": {},
        "language": {},
        "url_duplicates": {},
        "near_duplicates": {},
        "common_lines": {},
        "gopher_repetition": {},
        "gopher_quality": {},
        "ngram_coverage": {},
        "c4": {},
        "fineweb": {},
        "dirty_words": {"lists": [list("dirty")]},
        "kl_outliers": {"max_nats": 6.0},
        "quality": [{"model": list("quality.bin"), "label": "good", "min_probability": 0.2, "domains": ["prose"]}],
        "decontaminate": {"sets": [{"name": "exam", "text": list("exam.txt")}]},
    }))
    .unwrap()
}

/// All files of a run by name, with its report.
fn files(
    config: &CurateConfig,
    partitions: u32,
    threads: usize,
) -> Result<(CurateReport, BTreeMap<String, Vec<u8>>), CurateError> {
    let out = TempDir::new().unwrap();
    let options = RunOptions { partitions: Some(partitions), threads, ..RunOptions::default() };
    let inventory = inventory(config, &())?;
    let report = curate_with(config, &inventory, out.path(), &options, &())?;
    let files = walkdir::WalkDir::new(out.path()).into_iter().map(Result::unwrap);
    let files = files.filter(|entry| entry.file_type().is_file()).map(|entry| {
        let name = entry.path().strip_prefix(out.path()).unwrap().to_str().unwrap().to_owned();
        (name, fs::read(entry.path()).unwrap())
    });
    Ok((report, files.collect()))
}

fn rows(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Vec<[String; COLUMNS.len()]> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("rows");
    fs::write(&path, &files[name]).unwrap();
    read_rows(&path).0
}

#[test]
fn every_filter_has_its_say() {
    let root = TempDir::new().unwrap();
    let expected = write_sources(root.path());
    let (report, files) = files(&config(root.path()), 2, 2).unwrap();
    let mut found: BTreeMap<String, String> = String::from_utf8_lossy(&files[DROPPED_FILE])
        .lines()
        .map(|line| serde_json::from_str::<DroppedRecord>(line).unwrap())
        .map(|record| (record.url, record.reason))
        .collect();
    let kept = rows(&files, DOCUMENTS_FILE);
    found.extend(kept.iter().map(|row| (row[1].clone(), "kept".to_owned())));
    let wrong: Vec<_> = expected
        .iter()
        .filter(|(url, fate)| found.get(*url).map(String::as_str) != Some(fate))
        .map(|(url, fate)| format!("{url}: {fate}, but {:?}", found.get(url)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(found.len(), expected.len());

    let row = |url: &str| kept.iter().find(|row| row[1] == url).unwrap();
    assert!(
        row("https://good.example/1")[6].ends_with(".\n") || !row("https://good.example/1")[6].contains(MENU)
    );
    assert!(row("https://mail.example/1")[6].contains("[EMAIL]"));
    let domain = |url: &str| row(url)[5].as_str();
    assert_eq!(domain("https://good.example/3"), "prose");
    assert_eq!(domain("https://deutsch.example/1"), "multilingual");
    assert_eq!(domain("https://maths.example/1"), "maths");
    assert_eq!(domain("https://code.example/1.rs"), "code");
    assert_eq!(row("https://deutsch.example/1")[4], "de");
    assert_eq!(row("https://good.example/3")[3], NEW);
    let ids: std::collections::BTreeSet<_> = kept.iter().map(|row| &row[0]).collect();
    assert_eq!(ids.len(), kept.len(), "ids of the source that are equal must not be");

    // The record that is damaged and what is left behind it, the number, and the line that is no JSON.
    assert_eq!(report.broken.count, 4, "{:?}", report.broken);
    assert!(report.broken.examples.iter().any(|part| part.contains("crawl.warc.gz, byte ")));
    assert_eq!(String::from_utf8_lossy(&files[BROKEN_FILE]).lines().count(), 4);
    let passed: Vec<_> = report.passed.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    let wanted = [
        ("errors of the server (5xx)", 1),
        ("redirects (3xx)", 2),
        ("responses that say the page is not there (404, 410)", 1),
    ];
    assert_eq!(passed, wanted);
    check_report(&report);
    let steps: Vec<_> = report.steps.iter().map(|passage| passage.step.as_str()).collect();
    assert_eq!(
        steps.join(" "),
        "url_block extract kind plain_text huge too_short long_lines low_letters repeated_lines generated pii language \
         domain url_duplicates exact_duplicates near_duplicates common_lines gopher_repetition gopher_quality ngram_coverage c4 fineweb \
         dirty_words too_little_left kl_outliers quality decontaminate"
    );
    let passage = |step: &str| report.steps.iter().find(|passage| passage.step == step).unwrap();
    assert!(passage("extract").after.bytes < passage("extract").before.bytes);
    assert_eq!((passage("pii").edited, passage("common_lines").edited), (1, 8));
    let dropped =
        ["gopher_repetition", "gopher_quality", "decontaminate"].map(|step| passage(step).dropped());
    assert_eq!(dropped, [1, 0, 1]);
}

/// What must hold for every report.
fn check_report(report: &CurateReport) {
    let dropped: u64 = report.dropped.values().map(|tally| tally.count).sum();
    assert_eq!(report.documents_in, report.documents_kept + dropped);
    let exam = &report.evaluation_sets[0];
    assert_eq!((exam.name.as_str(), exam.examples, exam.too_short), ("exam", 1, 0));
    assert_eq!(report.steps[0].before.documents, report.documents_in);
    for pair in report.steps.windows(2) {
        assert_eq!(pair[0].after, pair[1].before, "{pair:?}");
    }
    let origins = &report.origins;
    let origins = || origins.listed.iter().map(|origin| &origin.documents).chain([&origins.others]);
    assert_eq!(origins().map(|own| own.before.documents).sum::<u64>(), report.documents_in);
    assert_eq!(origins().map(|own| own.after.bytes).sum::<u64>(), report.bytes_kept);
    for (reason, found) in &report.duplicates {
        assert_eq!(found.dropped, report.dropped[reason].count);
        assert_eq!(found.sizes.values().sum::<u64>(), found.clusters);
    }
    let last = &report.steps.last().unwrap().after;
    assert_eq!((last.documents, last.bytes), (report.documents_kept, report.bytes_kept));
    for parts in [&report.languages.values().collect::<Vec<_>>(), &report.lengths.values().collect()] {
        let sum = |of: fn(&BeforeAfter) -> u64| parts.iter().map(|part| of(part)).sum::<u64>();
        assert_eq!(sum(|part| part.before.documents), report.documents_in);
        assert_eq!(sum(|part| part.after.documents), report.documents_kept);
        assert_eq!(sum(|part| part.after.bytes), report.bytes_kept);
    }
}

#[test]
fn neither_partitions_nor_threads_show_in_the_whole_pipeline() {
    let root = TempDir::new().unwrap();
    write_sources(root.path());
    let mut config = config(root.path());
    config.mix = Some(MixConfig { annealing: Some(Default::default()), ..MixConfig::default() });
    let one = files(&config, 1, 1).unwrap();
    for (partitions, threads) in [(2, 2), (7, 1), (7, 3)] {
        let other = files(&config, partitions, threads).unwrap();
        assert!(one == other, "{partitions} partitions, {threads} threads");
    }
    check_report(&one.0);
    assert!(one.1.contains_key("annealing/documents.parquet") && one.1.contains_key(MIX_FILE));
}

#[test]
fn tags_and_metadata_are_columns_and_an_empty_draw_is_none() {
    let root = TempDir::new().unwrap();
    write_sources(root.path());
    let mut config = config(root.path());
    let (_, all) = files(&config, 1, 1).unwrap();
    let rows = rows(&all, DOCUMENTS_FILE);
    let object = |text: &str| serde_json::from_str::<BTreeMap<String, serde_json::Value>>(text).unwrap();
    assert!(rows.iter().any(|row| object(&row[7]).contains_key("lang.score")), "{}", rows[0][7]);
    assert!(rows.iter().any(|row| !object(&row[8]).is_empty()));
    config.mix = Some(MixConfig {
        require: [("nobody.gives".to_owned(), 0.5)].into(),
        annealing: Some(Default::default()),
        ..MixConfig::default()
    });
    let error = files(&config, 1, 1).unwrap_err().to_string();
    assert!(
        error.contains("the draw `mix` of the mix came out empty: ") && error.contains("hint:"),
        "{error}"
    );
}

#[test]
fn a_source_is_data() {
    let root = TempDir::new().unwrap();
    write_sources(root.path());
    let plain = CurateConfig { sources: config(root.path()).sources, ..CurateConfig::default() };
    for config in [config(root.path()), plain] {
        let inventory = inventory(&config, &()).unwrap();
        let step = source(&config, &inventory).unwrap();
        let text = serde_json::to_string(&step).unwrap();
        let here = build_source(&step).unwrap();
        let there = build_source(&serde_json::from_str(&text).unwrap()).unwrap();
        let read = |source: &dyn crate::plan::Source| {
            let (mut records, mut broken) = (Vec::new(), Vec::new());
            for split in 0..source.splits() {
                let mut emit = |key: &[u8], value: &[u8]| {
                    records.push((key.to_vec(), value.to_vec()));
                    Ok(())
                };
                let mut note = |part: crate::plan::BrokenPart| {
                    broken.push(part);
                    Ok(())
                };
                source.read(split, &mut emit, &mut note, &|_| ()).unwrap();
            }
            (records, broken)
        };
        assert_eq!(here.fingerprint(), there.fingerprint());
        let (one, two) = (read(&*here), read(&*there));
        assert!(one == two && !one.0.is_empty());
    }
}

#[test]
fn a_broken_record_ends_the_run_when_it_is_told_to() {
    let root = TempDir::new().unwrap();
    write_sources(root.path());
    let mut config = config(root.path());
    config.read.as_mut().unwrap().on_error = crate::read::OnError::Stop;
    let error = files(&config, 1, 1).unwrap_err().to_string();
    assert!(error.contains("crawl.warc.gz, byte ") && error.contains("is broken"), "{error}");
}

#[test]
fn what_cannot_work_is_said_before_anything_is_read() {
    let root = TempDir::new().unwrap();
    write_sources(root.path());
    let fails = |change: &dyn Fn(&mut CurateConfig), parts: &[&str]| {
        let mut config = config(root.path());
        change(&mut config);
        let error = files(&config, 1, 1).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "`{part}` is not in: {error}"));
    };
    fails(&|config| config.quality[0].model = "nowhere.bin".into(), &["nowhere.bin", "quality[0].model"]);
    fails(&|config| config.quality[0].label = "goud".into(), &["goud", "good"]);
    fails(&|config| config.kl_outliers.as_mut().unwrap().max_nats = -1.0, &["max_nats", "-1"]);
    fails(&|config| config.semantic = Some(Default::default()), &["embed"]);
    fails(&|config| config.sources = vec![REGISTRY.to_owned()], &["curate.sources", "curate.read"]);
    fails(&|config| config.read = None, &["curate.extract", "curate.read"]);
    fails(
        &|config| config.mix = Some(serde_json::from_value(json!({"proportions": {"poetry": 1}})).unwrap()),
        &["curate.mix.proportions", "poetry", "prose"],
    );
}

#[test]
fn a_changed_model_is_another_input() {
    let root = TempDir::new().unwrap();
    write_sources(root.path());
    let config = config(root.path());
    let before = inventory(&config, &()).unwrap();
    fs::write(root.path().join("lists/dirty"), "smut\nsleaze\n").unwrap();
    let after = inventory(&config, &()).unwrap();
    assert_eq!(before.id, after.id);
    assert_ne!(before.side_files, after.side_files);
    assert_ne!(source(&config, &before).unwrap(), source(&config, &after).unwrap());
}

#[test]
fn a_sample_tells_what_the_whole_takes() {
    let root = TempDir::new().unwrap();
    write_sources(root.path());
    let config = config(root.path());
    let inventory = inventory(&config, &()).unwrap();
    let scratch = root.path().join("scratch");
    let options = RunOptions { threads: 1, ..RunOptions::default() };
    let of = |bytes| {
        estimate(&config, &inventory, &registry(), &options, (bytes, &scratch), &|| Some(1 << 20)).unwrap()
    };
    let (part, whole) = (of(inventory.bytes / 3), of(inventory.bytes * 2));
    assert!(!scratch.exists());
    let (report, _) = files(&config, 1, 1).unwrap();
    assert_eq!(whole.documents, report.documents_in);
    assert!(part.sample_bytes < inventory.bytes * 3 / 4 && whole.sample_bytes == inventory.bytes);
    let ratio = part.documents as f64 / report.documents_in as f64;
    assert!((0.5..2.0).contains(&ratio), "{part:?}");
    assert!(whole.disk_bytes > 10_000 && whole.seconds > 0.0);
    // There is far less than buffers may hold.
    assert!((10_000..options.memory_bytes / 10).contains(&whole.memory_bytes), "{whole:?}");
    let tight = RunOptions { memory_bytes: MIN_MEMORY_BYTES, ..options };
    let bytes = inventory.bytes * 2;
    let capped = estimate(&config, &inventory, &registry(), &tight, (bytes, &scratch), &|| None).unwrap();
    assert!(capped.memory_bytes <= MIN_MEMORY_BYTES, "{capped:?}");
}

#[test]
fn a_file_that_is_lost_is_named() {
    let root = TempDir::new().unwrap();
    let write = |name: &str, text: String| fs::write(root.path().join(name), text).unwrap();
    let prose =
        "The herd crossed the river before the winter came, and nobody was lost on the way to the village.";
    write("good.jsonl", format!("{{\"text\": \"{prose}\"}}\n"));
    write("other.jsonl", format!("{{\"content\": \"{prose}\"}}\n").repeat(3));
    write("torn.parquet", "PAR1".to_owned());
    write("torn.jsonl", "{\n[]\n".to_owned());
    let sources = ["good.jsonl", "other.jsonl", "torn.jsonl", "torn.parquet"];
    let sources = sources.map(|name| root.path().join(name).to_string_lossy().into_owned()).to_vec();
    let config = CurateConfig { sources, read: Some(Default::default()), ..CurateConfig::default() };
    let (report, written) = files(&config, 1, 1).unwrap();
    assert_eq!(
        (report.documents_in, report.broken.count, report.broken.lost),
        (1, 4, 3),
        "{:?}",
        report.broken
    );
    let examples = &report.broken.examples;
    assert_eq!(
        examples[0],
        "`other.jsonl` gave no document: none of its 3 records has a string in the field `text` (`read.fields.text`); \
         the fields of the first are `content`"
    );
    assert!(examples[1].starts_with("`torn.jsonl` gave no document: is no JSON: "), "{examples:?}");
    assert!(
        examples[2].starts_with("`torn.parquet` gave no document: cannot be read as Parquet"),
        "{examples:?}"
    );
    assert!(examples[3].starts_with("`torn.jsonl, byte 2` is broken"), "{examples:?}");
    let lines = String::from_utf8_lossy(&written[BROKEN_FILE]).into_owned();
    let parts =
        lines.lines().map(|line| serde_json::from_str::<crate::plan::BrokenPart>(line).unwrap().to_string());
    assert_eq!(parts.collect::<Vec<_>>(), *examples);

    // Of large files that are read in pieces, one of which all pieces are lost and one of which only some are.
    let line = |key: &str| format!("{{\"{key}\": \"{prose}\"}}\n").repeat(100);
    write("large.jsonl", line("content"));
    write("half.jsonl", line("text") + &line("content"));
    write("empty.jsonl", String::new());
    let mut large = config.clone();
    large.sources.extend(
        ["large.jsonl", "half.jsonl", "empty.jsonl"].map(|name| root.path().join(name).display().to_string()),
    );
    let report = files(&large, 1, 2).unwrap().0;
    let named = |name: &str| {
        report.broken.examples.iter().filter(|part| part.starts_with(&format!("`{name}` gave no"))).count()
    };
    assert_eq!(
        (report.broken.lost, named("large.jsonl"), named("half.jsonl")),
        (5, 1, 0),
        "{:?}",
        report.broken
    );

    let mut lost = config.clone();
    lost.sources.remove(0);
    let error = files(&lost, 1, 1).unwrap_err().to_string();
    assert!(
        error.contains("4 parts that cannot be read:\n  `other.jsonl` gave no document: none of"),
        "{error}"
    );
    let mut strict = config;
    strict.read.as_mut().unwrap().on_error = crate::read::OnError::Stop;
    let error = files(&strict, 1, 1).unwrap_err().to_string();
    assert!(error.contains("`other.jsonl, byte 0` is broken: none of its 3 records has"), "{error}");
}

#[test]
fn steps_and_languages_that_are_none_are_refused_with_what_to_write() {
    let fails =
        |section: serde_json::Value| serde_json::from_value::<CurateConfig>(section).unwrap_err().to_string();
    for step in ["read", "extract", "pii", "gopher_quality", "quality", "mix"] {
        let error = fails(json!({ step: false }));
        assert!(error.contains("off where its key is left out"), "{step}: {error}");
        let error = fails(json!({ step: true }));
        assert!(error.contains("write `{}` to turn it on"), "{step}: {error}");
        let error = fails(json!({ step: 7 }));
        assert!(error.contains("expected the settings of a step"), "{step}: {error}");
    }
    assert!(fails(json!({ "gopher_quality": { "min_wrods": 3 } })).contains("min_wrods"));
    for (name, is_good) in
        [("English", true), ("eng_Latn", true), ("ceb", true), ("Englisch", false), ("", false)]
    {
        let config = CurateConfig { main_language: name.to_owned(), ..CurateConfig::default() };
        assert_eq!(config.validate().is_ok(), is_good, "{name}");
    }
}
