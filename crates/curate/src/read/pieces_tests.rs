//! Files that are read in pieces give what they give as a whole.

use std::ops::Range;

use proptest::prelude::*;
use tempfile::TempDir;

use super::rows_tests::parquet_of;
use super::store::PIECE_BYTES;
use super::{Broken, Format, Input, ReadConfig, Record};

fn read(input: &Input, range: Range<u64>, config: &ReadConfig) -> Vec<Result<Record, Broken>> {
    input.records_in(range, config).collect()
}

/// Ranges of `step` bytes that cover everything.
fn ranges(bytes: u64, step: u64) -> Vec<Range<u64>> {
    let starts = (0..bytes.max(1)).step_by(step as usize);
    starts.map(|start| start..if start + step < bytes { start + step } else { u64::MAX }).collect()
}

fn assert_pieces(name: &str, bytes: &[u8], steps: impl IntoIterator<Item = u64>, config: &ReadConfig) {
    let input = Input::memory(name, bytes.to_vec());
    // How many records in a row have no text depends on where the row is cut.
    let counts = |found: &Result<Record, Broken>| !matches!(found, Err(part) if part.reason.contains("`read.fields.text`"));
    let whole: Vec<_> = input.records(config).filter(counts).collect();
    for step in steps {
        let ranges = ranges(bytes.len() as u64, step);
        let pieces = ranges.into_iter().flat_map(|range| read(&input, range, config));
        let pieces: Vec<_> = pieces.filter(counts).collect();
        assert_eq!(whole, pieces, "{name} in pieces of {step} bytes");
    }
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-zé ]{0,60}".prop_map(|text| format!("{{\"text\": \"{text}\"}}")),
        1 => (0..200_usize).prop_map(|length| format!("{{\"text\": \"{}\"}}", "long ".repeat(length))),
        1 => Just(String::new()),
        1 => Just("{\"text\": 7}".to_owned()),
        1 => Just("\u{feff}no JSON".to_owned()),
    ]
}

proptest! {
    #[test]
    fn lines(
        lines in prop::collection::vec((line(), prop_oneof![Just("\n"), Just("\r\n")]), 0..30),
        last in prop_oneof![Just(""), Just("{\"text\": \"no end\"}"), Just("\n\n")],
        step in 1..700_u64,
        limit in prop_oneof![Just(300), Just(64 << 20)],
    ) {
        let text: String = lines.iter().map(|(line, end)| format!("{line}{end}")).collect();
        let config = ReadConfig { max_record_bytes: limit, ..ReadConfig::default() };
        assert_pieces("a.jsonl", (text + last).as_bytes(), [step], &config);
    }
}

#[test]
fn every_cut_of_a_short_file() {
    let text = "{\"text\": \"one\"}\n\n{\"text\": \"two\"}\r\nbroken\n{\"text\": \"three\"}";
    assert_pieces("a.jsonl", text.as_bytes(), 1..=text.len() as u64 + 1, &ReadConfig::default());
}

#[test]
fn rows() {
    let rows: Vec<_> = (0..50).map(|at| format!("row {at} {}", "words ".repeat(at * 7 % 40))).collect();
    let rows: Vec<_> = rows.iter().map(String::as_str).collect();
    for dictionary in [false, true] {
        let bytes = parquet_of(&rows, dictionary, 3);
        assert_pieces("a.parquet", &bytes, [1, 100, 333, 1000, 1 << 20], &ReadConfig::default());
        let mut damaged = bytes;
        let at = damaged.windows(6).position(|window| window == b"row 21").unwrap();
        damaged[at - 4..at].fill(0xFF);
        assert_pieces("a.parquet", &damaged, [100, 1000], &ReadConfig::default());
    }
}

#[test]
fn a_compressed_file_is_one_piece_whatever_its_name() {
    use std::io::Write;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    (0..500).for_each(|at| writeln!(packer, "{{\"text\": \"line {at}\"}}").unwrap());
    assert_pieces("a.jsonl", &packer.finish().unwrap(), [100, 999], &ReadConfig::default());
    let config = ReadConfig::default();
    assert!(config.has_pieces("a.JSONL") && config.has_pieces("a.parquet"));
    assert!(!config.has_pieces("a.jsonl.gz") && !config.has_pieces("a.warc") && !config.has_pieces("a.txt"));
    let config = ReadConfig { format: Some(Format::Jsonl), ..config };
    assert!(config.has_pieces("a.txt") && !config.has_pieces("a.txt.zst"));
}

#[test]
fn each_piece_is_read_only_if_it_is_what_was_listed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.jsonl");
    let text: String = (0..1000).map(|at| format!("{{\"text\": \"line {at}\"}}\n")).collect();
    std::fs::write(&path, &text).unwrap();
    let config = ReadConfig::default();
    let listed = super::find(&[path.to_str().unwrap().to_owned()]).unwrap()[0].listed();
    let ranges = listed.ranges(&config);
    assert_eq!(ranges.len() as u64, (text.len() as u64).div_ceil(PIECE_BYTES));
    let count = |range: &Range<u64>| {
        listed.input(range).map(|input| input.records_in(range.clone(), &config).count())
    };
    assert_eq!(ranges.iter().map(|range| count(range).unwrap()).sum::<usize>(), 1000);

    let changed = text.replacen("line 500", "lime 500", 1);
    std::fs::write(&path, changed).unwrap();
    let at = text.find("line 500").unwrap() as u64;
    for range in &ranges {
        assert_eq!(count(range).is_err(), range.contains(&at), "{range:?}");
    }
    assert!(count(&(0..u64::MAX)).is_err());

    std::fs::write(&path, text + &"\n".repeat(PIECE_BYTES as usize)).unwrap();
    for range in &ranges {
        let error = count(range).unwrap_err().to_string();
        assert!(error.contains("its content is different"), "{error}");
    }
}
