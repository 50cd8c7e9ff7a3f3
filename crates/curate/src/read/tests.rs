//! Reading whole files: made here, damaged here, and those of others where they are at hand.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// A WARC record of its own, with its empty lines.
fn response(number: usize, html: &str) -> Vec<u8> {
    let http = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}");
    let head = format!(
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Date: 2024-01-02T03:04:05Z\r\n\
         WARC-Target-URI: http://example.com/{number}\r\nContent-Length: {}\r\n\r\n",
        http.len()
    );
    format!("{head}{http}\r\n\r\n").into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    // With a checksum, as writers of WARC do.
    let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn read(name: &str, bytes: &[u8], config: &ReadConfig) -> (Vec<Record>, Vec<Broken>) {
    let (mut records, mut broken) = (Vec::new(), Vec::new());
    for found in Input::memory(name, bytes.to_vec()).records(config) {
        match found {
            Ok(record) => records.push(record),
            Err(part) => broken.push(part),
        }
    }
    (records, broken)
}

pub(super) fn ids(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.document.id.as_str()).collect()
}

#[test]
fn all_compressions_of_a_warc_hold_the_same_documents() {
    let parts: Vec<_> =
        (0..20).map(|n| response(n, &format!("<p>page {n} {}", "x".repeat(n * 977)))).collect();
    let join = |pack: fn(&[u8]) -> Vec<u8>| parts.iter().flat_map(|part| pack(part)).collect::<Vec<u8>>();
    let config = ReadConfig::default();
    let (plain, broken) = read("a.warc", &parts.concat(), &config);
    assert_eq!((plain.len(), broken.len()), (20, 0));
    assert_eq!(plain[3].place.offset, parts[..3].iter().map(Vec::len).sum::<usize>() as u64);
    assert_eq!(plain[3].document.url, "http://example.com/3");
    assert_eq!(plain[3].document.date, "2024-01-02T03:04:05Z");
    for packed in [join(gzip), join(zstd), gzip(&parts.concat()), zstd(&parts.concat())] {
        let (records, broken) = read("a.warc", &packed, &config);
        assert_eq!(broken, []);
        let documents = |records: &[Record]| records.iter().map(|r| r.document.clone()).collect::<Vec<_>>();
        assert_eq!(documents(&records), documents(&plain));
        assert!(records.iter().zip(&plain).all(|(a, b)| a.place.position == b.place.position));
    }
    // Each member can be read alone, from its offset.
    let packed = join(gzip);
    let (records, _) = read("a.warc", &packed, &config);
    let (alone, _) = read("a.warc", &packed[records[7].place.offset as usize..], &config);
    assert_eq!(alone[0].document, records[7].document);
}

#[test]
fn a_zstd_dictionary_in_front_is_used() {
    let record = response(1, "<p>with a dictionary");
    let words = response(0, "<p>with a dictionary, of raw content");
    let mut packed = vec![0x5d, 0x2a, 0x4d, 0x18];
    packed.extend((words.len() as u32).to_le_bytes());
    packed.extend(&words);
    let mut encoder = ::zstd::stream::write::Encoder::with_dictionary(Vec::new(), 1, &words).unwrap();
    encoder.write_all(&record).unwrap();
    packed.extend(encoder.finish().unwrap());
    let (records, broken) = read("a.warc.zst", &packed, &ReadConfig::default());
    assert_eq!((ids(&records), broken.len()), (vec!["urn:uuid:1"], 0));
}

#[test]
fn records_too_large_cut_or_with_wrong_lengths_are_told_and_passed_over() {
    let good = |n| response(n, "<p>good");
    let config = ReadConfig { max_record_bytes: 1000, ..ReadConfig::default() };
    let large = response(1, &"x".repeat(300_000));
    let (records, broken) = read("a.warc", &[good(0), large.clone(), good(2)].concat(), &config);
    assert_eq!(ids(&records), ["urn:uuid:0", "urn:uuid:2"]);
    assert!(broken[0].reason.contains("300059 bytes, more than the 1000 allowed"), "{broken:?}");
    assert_eq!(broken[0].place.offset, good(0).len() as u64);
    assert_eq!(broken[0].place.length + 4, large.len() as u64);

    let wrong = |length: &str| {
        let text = String::from_utf8(good(1))
            .unwrap()
            .replace("Content-Length: 66", &format!("Content-Length: {length}"));
        assert_ne!(text.as_bytes(), good(1));
        text.into_bytes()
    };
    for length in ["60", "80", "99", "999999999999", "", "x"] {
        let (records, broken) = read("a.warc", &[good(0), wrong(length), good(2)].concat(), &config);
        assert_eq!(ids(&records), ["urn:uuid:0", "urn:uuid:2"], "{length}");
        assert_eq!((broken.len(), broken[0].place.offset), (1, good(0).len() as u64), "{length} {broken:?}");
        // A member of its own ends it as well.
        let members = [gzip(&good(0)), gzip(&wrong(length)), gzip(&good(2))].concat();
        let (records, broken) = read("a.warc.gz", &members, &config);
        assert_eq!(
            (ids(&records), broken.len()),
            (vec!["urn:uuid:0", "urn:uuid:2"], 1),
            "{length} {broken:?}"
        );
    }
    let whole = [good(0), good(1)].concat();
    let (records, broken) = read("a.warc", &whole[..whole.len() - 9], &config);
    assert_eq!((ids(&records), broken.len()), (vec!["urn:uuid:0"], 1));
    let (_, broken) = read("a.warc", b"no WARC at all\n", &config);
    assert_eq!(broken.len(), 1);
}

#[test]
fn asked_to_stop_it_stops() {
    let bytes = [b"stray\r\n".to_vec(), response(1, "<p>good")].concat();
    let config = ReadConfig { on_error: OnError::Stop, ..ReadConfig::default() };
    let (records, broken) = read("a.warc", &bytes, &config);
    assert_eq!((records.len(), broken.len()), (0, 1));
    assert_eq!(broken[0].to_string(), "`a.warc`, byte 0: belongs to no record");
}

#[test]
fn what_is_meant_to_be_no_document_is_counted() {
    let image = String::from_utf8(response(0, "x"))
        .unwrap()
        .replace("text/html; charset=utf-8", "image/png; charset=utf-8");
    let missing = String::from_utf8(response(1, "x")).unwrap().replace("200 OK", "404 OK");
    let request =
        String::from_utf8(response(2, "x")).unwrap().replace("WARC-Type: response", "WARC-Type: request");
    let bytes = [image, missing, request].concat().into_bytes();
    let input = Input::memory("a.warc", bytes);
    let mut records = input.records(&ReadConfig::default());
    assert_eq!(records.next(), None);
    let passed: Vec<_> = records.passed().values().collect();
    assert_eq!(passed, [&1, &1, &1], "{:?}", records.passed());
}

#[test]
fn json_lines_give_documents_or_reasons() {
    let lines = concat!(
        "\u{feff}{\"text\": \"a\", \"id\": 7, \"metadata\": {\"n\": 1, \"who\": \"x\"}, \"added\": \"2023\"}\n",
        "\n",
        "{\"text\": \"b\"}\r\n",
        "{\"text\": 1}\n",
        "{broken\n",
        "[1]\n",
        "{\"text\": \"last\", \"url\": \"http://x\", \"lang\": \"deu_Latn\"}"
    );
    let config = ReadConfig::default();
    for packed in [lines.as_bytes().to_vec(), gzip(lines.as_bytes()), zstd(lines.as_bytes())] {
        let (records, broken) = read("d/a.jsonl", &packed, &config);
        assert_eq!(ids(&records), ["7", "d/a.jsonl#78", "d/a.jsonl#117"]);
        let meta: BTreeMap<_, _> =
            [("added", "2023"), ("n", "1"), ("who", "x")].map(|(k, v)| (k.into(), v.into())).into();
        assert_eq!(records[0].document.meta, meta);
        assert_eq!((records[2].document.url.as_str(), records[2].document.lang.as_str()), ("http://x", "de"));
        let reasons: Vec<_> = broken.iter().map(|b| (b.place.position, b.reason.as_str())).collect();
        assert_eq!(
            reasons[0],
            (93, "has no string in the field `text` (`read.fields.text`); its fields are `text`")
        );
        assert!(reasons[1].1.starts_with("is no JSON"));
        assert_eq!(reasons[2].1, "is JSON, but no object");
    }
    let small = ReadConfig { max_record_bytes: 20, ..ReadConfig::default() };
    let long = format!("{{\"text\": \"{}\"}}\n{{\"text\": \"b\"}}", "x".repeat(200_000));
    let (records, broken) = read("a.jsonl", long.as_bytes(), &small);
    assert_eq!((records.len(), broken.len()), (1, 1));
    assert_eq!(broken[0].reason, "a line of 200013 bytes, more than the 20 allowed");
}

#[test]
fn records_without_a_text_are_told_once() {
    let lines = "{\"id\": 1, \"content\": \"a\"}\n".repeat(12);
    for on_error in [OnError::Skip, OnError::Stop] {
        let mut config = ReadConfig { on_error, ..ReadConfig::default() };
        config.fields.text = "body".into();
        let (records, broken) = read("a.jsonl", lines.as_bytes(), &config);
        assert_eq!((records.len(), broken.len()), (0, 1));
        assert_eq!(
            broken[0].reason,
            "none of its 12 records has a string in the field `body` (`read.fields.text`); \
             the fields of the first are `content`, `id`"
        );
        assert_eq!(broken[0].place.length, lines.len() as u64);
    }
    let mixed = format!("{lines}{{\"text\": \"b\"}}\n{lines}broken\n{{}}");
    let (records, broken) = read("a.jsonl", mixed.as_bytes(), &ReadConfig::default());
    let reasons: Vec<_> = broken.iter().map(|part| part.reason.as_str()).collect();
    assert_eq!((records.len(), reasons.len()), (1, 4), "{reasons:?}");
    for row in &reasons[..2] {
        assert!(
            row.starts_with("12 records in a row have no string in the field `text` (`read.fields.text`)"),
            "{row}"
        );
    }
    assert!(reasons[2].starts_with("is no JSON"));
    assert_eq!(reasons[3], "has no string in the field `text` (`read.fields.text`); its fields are none");
}

#[test]
fn what_is_no_page_is_not_read_as_one() {
    let config = ReadConfig { format: Some(Format::Html), ..ReadConfig::default() };
    for (bytes, title) in
        [(&b"{\"text\": \"a\"}\n"[..], "JSON Lines"), (b"WARC/1.0\r\n", "WARC"), (b"PAR1", "Parquet")]
    {
        let (records, broken) = read("a.jsonl", bytes, &config);
        assert_eq!(records.len(), 0);
        assert!(
            broken[0].reason.starts_with(&format!("begins like {title}, but its format is given as HTML")),
            "{broken:?}"
        );
    }
    for page in ["<p>a", "plain words"] {
        assert_eq!(read("a.jsonl", page.as_bytes(), &config).0.len(), 1);
    }
}

#[test]
fn files_of_one_document() {
    let config = ReadConfig::default();
    let (records, _) = read("d/a.html", b"<meta charset=windows-1252><p>caf\xe9", &config);
    assert_eq!(records[0].document.text, "<meta charset=windows-1252><p>caf\u{e9}");
    assert_eq!(records[0].document.meta[CONTENT_TYPE], HTML);
    let (records, _) = read("d/Makefile", "all: \u{e9}".as_bytes(), &config);
    assert_eq!(
        (records[0].document.id.as_str(), records[0].document.text.as_str()),
        ("d/Makefile", "all: \u{e9}")
    );
    let (_, broken) = read("d/a.png", b"\x89PNG\r\n", &config);
    assert_eq!(broken[0].reason, "is no text: byte 0 is not UTF-8");
    let (_, broken) = read("d/a.txt.gz", &gzip(b"hello hello")[..15], &config);
    assert_eq!(broken[0].reason, "the gzip member is cut off");
}

#[test]
fn inputs_are_found_on_disk_and_in_stores() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("crawl");
    std::fs::create_dir_all(root.join("b")).unwrap();
    for name in ["a.jsonl", "b/c.jsonl", "b/d.txt"] {
        std::fs::write(root.join(name), "{\"text\": \"x\"}").unwrap();
    }
    let names = |entries: &[String]| {
        find(entries).map(|inputs| inputs.iter().map(|input| input.name().to_owned()).collect::<Vec<_>>())
    };
    let root = root.to_str().unwrap().to_owned();
    let all = ["crawl/a.jsonl", "crawl/b/c.jsonl", "crawl/b/d.txt"];
    assert_eq!(names(std::slice::from_ref(&root)).unwrap(), all);
    assert_eq!(names(&[format!("file://{root}/")]).unwrap(), all);
    assert_eq!(names(&[format!("{root}/**/*.jsonl")]).unwrap(), all[..2]);
    assert_eq!(names(&[format!("{root}/b/d.txt"), format!("{root}/a.jsonl")]).unwrap(), ["a.jsonl", "d.txt"]);
    let twice = names(&[root.clone(), format!("{root}/")]).unwrap_err();
    assert!(twice.to_string().contains("`crawl/a.jsonl` is found twice"), "{twice}");
    assert!(names(&["nowhere/at/all".into()]).is_err());
    assert!(names(&["scheme://a/b".into()]).is_err());

    let store = object_store::memory::InMemory::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let line = format!("{{\"text\": \"{}\"}}\n", "x".repeat(1000)).repeat(20_000);
    for name in ["crawl/a.jsonl", "crawl/b/c.jsonl", "other/d.jsonl"] {
        let key = name.into();
        let put = object_store::ObjectStoreExt::put(&store, &key, line.clone().into());
        runtime.block_on(put).unwrap();
    }
    let store: Arc<dyn object_store::ObjectStore> = Arc::new(store);
    for (path, found) in
        [("crawl/", &all[..2]), ("crawl/b/*.jsonl", &["b/c.jsonl"]), ("crawl/a.jsonl", &["a.jsonl"])]
    {
        let inputs = remote::find_in(Arc::clone(&store), path).unwrap();
        let mut names: Vec<_> = inputs.iter().map(Input::name).collect();
        names.sort_unstable();
        assert_eq!(names, found);
        let records = inputs[0].records(&ReadConfig::default());
        assert_eq!(records.filter(|record| record.is_ok()).count(), 20_000);
    }
}

/// The records of a WARC file, in words: how many of each type, and where the broken ones are.
fn summary(bytes: Vec<u8>) -> String {
    let stream = Stream::new(Box::new(Arc::<[u8]>::from(bytes))).unwrap();
    let (mut kinds, mut broken) = (BTreeMap::new(), String::new());
    for record in WarcReader::new(stream, 1 << 20, false) {
        match record {
            Ok(record) => *kinds.entry(record.kind().to_owned()).or_insert(0) += 1,
            Err(flaw) => broken.push_str(&format!(" broken@{}", flaw.place.offset)),
        }
    }
    let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    kinds.join(" ") + &broken
}

/// Fixtures of warcio, resiliparse, whirlwind and dolma: what warcio or FastWARC find in them, or what is right where these give
/// up.
const FIXTURES: &[(&str, &str)] = &[
    ("dolma-tests/warc/sample-0000.warc.gz", "1 metadata 22 request 2 resource 22 response 1 warcinfo"),
    ("dolma-tests/warc/sample-0001.warc.gz", "1 metadata 15 request 2 resource 15 response 1 warcinfo"),
    ("warc/resiliparse/block-sized-records.warc.gz", "3 unknown"),
    ("warc/resiliparse/clipped.warc.gz", " broken@0"),
    ("warc/resiliparse/warcfile.warc.gz", "16 metadata 17 request 16 response 1 warcinfo"),
    ("warc/warcio/bad.arc", " broken@0"),
    ("warc/warcio/example-bad-non-chunked.warc.gz", "2 request 1 response 1 revisit 2 warcinfo"),
    ("warc/warcio/example-bad.warc.gz.bad", "2 request 2 response 1 revisit 1 warcinfo"),
    ("warc/warcio/example-digest.warc", "4 request"),
    ("warc/warcio/example-iana.org-chunked.warc", "1 request 1 response 1 warcinfo"),
    ("warc/warcio/example-resource.warc.gz", "1 resource 2 warcinfo"),
    ("warc/warcio/example-space-in-target-uri.warc.gz", "1 resource 1 warcinfo"),
    ("warc/warcio/example-space-in-url.arc", " broken@0"),
    ("warc/warcio/example-trunc.warc", "1 request 2 warcinfo broken@1197"),
    (
        "warc/warcio/example-wget-bad-target-uri.warc.gz",
        "1 metadata 1 request 2 resource 1 response 1 warcinfo",
    ),
    ("warc/warcio/example-wrong-chunks.warc.gz", "1 request 1 response"),
    ("warc/warcio/example.arc", " broken@0"),
    ("warc/warcio/example.arc.gz", " broken@0"),
    ("warc/warcio/example.warc", "2 request 1 response 1 revisit 2 warcinfo"),
    ("warc/warcio/example.warc.gz", "2 request 1 response 1 revisit 2 warcinfo"),
    ("warc/warcio/post-test.warc.gz", "3 request 3 response"),
    ("warc/whirlwind/whirlwind.warc.gz", "1 metadata 1 request 1 response 1 warcinfo"),
    ("warc/whirlwind/whirlwind.warc.wat.gz", "1 metadata 1 warcinfo"),
    ("warc/whirlwind/whirlwind.warc.wet.gz", "1 conversion 1 warcinfo"),
];

/// The folder `corpora` below `LLAMERO_TEST_DATA`.
fn corpora() -> Option<PathBuf> {
    let found = std::env::var_os("LLAMERO_TEST_DATA").map(|root| PathBuf::from(root).join("corpora"));
    if found.is_none() {
        eprintln!("skipped: LLAMERO_TEST_DATA is not set");
    }
    found
}

#[test]
fn fixtures_of_others_give_the_expected_records() {
    let Some(corpora) = corpora() else { return };
    for (name, expected) in FIXTURES {
        assert_eq!(summary(std::fs::read(corpora.join(name)).unwrap()), *expected, "{name}");
    }
    // None is left out.
    let names = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(corpora.join(folder)).unwrap().map(Result::unwrap);
        entries.map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy())).collect()
    };
    let mut there: Vec<_> = ["warc/resiliparse", "warc/warcio", "warc/whirlwind", "dolma-tests/warc"]
        .into_iter()
        .flat_map(names)
        .filter(|name| !name.ends_with("LICENSE"))
        .collect();
    there.sort();
    assert_eq!(there, FIXTURES.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>());
}

#[test]
fn fixtures_of_others_give_the_expected_documents() {
    let Some(corpora) = corpora() else { return };
    let config = ReadConfig::default();
    let documents = |name: &str, config| read(name, &std::fs::read(corpora.join(name)).unwrap(), config).0;
    let (wet, warc) = (
        documents("warc/whirlwind/whirlwind.warc.wet.gz", &config),
        documents("warc/whirlwind/whirlwind.warc.gz", &config),
    );
    assert_eq!((wet.len(), wet[0].place.offset, warc.len(), warc[0].place.offset), (1, 466, 1, 1023));
    assert!(wet[0].document.text.starts_with("Escopete"), "{}", wet[0].document.text);
    assert_eq!(wet[0].document.url, "https://an.wikipedia.org/wiki/Escopete");
    let iana = documents("warc/warcio/example-iana.org-chunked.warc", &config);
    assert!(iana[0].document.text.ends_with("</html>\n") && !iana[0].document.text.contains('\r'));
    let example = documents("warc/warcio/example.warc.gz", &config);
    assert!(example[0].document.text.contains("<h1>Example Domain</h1>"));
    let crawl = documents("warc/resiliparse/warcfile.warc.gz", &config);
    assert_eq!(crawl.len(), 16);
    let wrong = |record: &&Record| record.document.text.contains('\u{fffd}');
    assert!(
        crawl.iter().filter(wrong).count() <= 1,
        "{:?}",
        crawl.iter().find(wrong).map(|r| &r.document.url)
    );
    let message = ReadConfig { fields: Fields { text: "message".into(), ..Fields::default() }, ..config };
    for end in ["", ".gz", ".zst"] {
        let found = documents(&format!("dolma-tests/formats/test.jsonl{end}"), &message);
        assert_eq!(found[0].document.text, "this is a test");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is damaged in one member, the records in all others are found.
    #[test]
    fn damage_stays_where_it_is(
        sizes in prop::collection::vec(0_usize..3000, 3..8), zstd_frames: bool, at: prop::sample::Index, flip in 1_u8..,
    ) {
        let pack = if zstd_frames { zstd } else { gzip };
        let noise = |n: usize| (0..n).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect::<String>();
        let members: Vec<_> = sizes.iter().enumerate().map(|(n, &size)| pack(&response(n, &noise(size)))).collect();
        let mut bytes = members.concat();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let ends = members.iter().scan(0, |end, member| { *end += member.len(); Some(*end) });
        let hit = ends.take_while(|&end| end <= at).count();
        // The kind of file is told by its very first bytes.
        prop_assume!(at >= 4);
        let (records, broken) = read("a.warc", &bytes, &ReadConfig::default());
        let found = ids(&records);
        for n in (0..members.len()).filter(|&n| n != hit) {
            let id = format!("urn:uuid:{n}");
            prop_assert!(found.contains(&id.as_str()), "{n} is lost, {hit} is damaged: {found:?} {broken:?}");
        }
    }

    /// No bytes make it panic or run for ever.
    #[test]
    fn any_bytes_are_read(bytes: Vec<u8>, head in 0_usize..5) {
        let head: &[u8] = [&b""[..], b"WARC/1.0\r\n", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"PAR1"][head];
        for name in ["a.warc", "a.jsonl", "a.parquet", "a.html", "a.txt", ""] {
            read(name, &[head, &bytes].concat(), &ReadConfig::default());
        }
        drop(Response::parse(&[b"HTTP/1.1 200 OK\r\n".as_slice(), &bytes].concat(), 1000));
    }
}

#[test]
fn a_field_may_be_named_twice() {
    let fields = Fields { id: "url".into(), ..Fields::default() };
    let config = ReadConfig { fields, ..ReadConfig::default() };
    let line = format!(r#"{{"text": "a", "url": "u", "lang": "{}"}}"#, "x".repeat(99));
    let (records, _) = read("a.jsonl", line.as_bytes(), &config);
    let document = &records[0].document;
    assert_eq!((&*document.id, &*document.url, &*document.lang), ("u", "u", ""));
}

#[test]
fn fields_of_a_line_are_kept_as_text_up_to_a_limit() {
    let line = r#"{"id": 7, "none": null, "list": [1, [], {"a": "b\"c", "d": null}, -2.5, true, "x"], "text": "hello",
        "metadata": {"kind": "k", "deep": {"e": [1]}, "no": null}, "big": "#;
    let line = line.replace('\n', "") + "[" + &"[],".repeat(500_000) + "1], \"last\": false}";
    let (records, broken) = read("a.jsonl", line.as_bytes(), &ReadConfig::default());
    assert_eq!((records.len(), broken.len()), (1, 0), "{broken:?}");
    let document = &records[0].document;
    assert_eq!((document.id.as_str(), document.text.as_str()), ("7", "hello"));
    let meta: Vec<_> = document.meta.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        meta,
        [
            ("deep", r#"{"e":[1]}"#),
            ("kind", "k"),
            ("last", "false"),
            ("list", r#"[1,[],{"a":"b\"c","d":null},-2.5,true,"x"]"#),
            ("metadata.left_out", "1"),
        ]
    );
    // Cut inside a character it is still too large, whatever the rest of the record has.
    let room = (1 << 20) - 1;
    let line = format!(r#"{{"text": "hello", "b": "{}😀"}}"#, "x".repeat(room - 2));
    let (records, _) = read("a.jsonl", line.as_bytes(), &ReadConfig::default());
    let meta: Vec<_> =
        records[0].document.meta.iter().map(|(name, value)| (name.as_str(), value.len())).collect();
    assert_eq!(meta, [("metadata.left_out", 1)]);
    let (_, broken) =
        read("a.jsonl", b"[1]\n{\"a\": 1, \"text\": 2}\n{\"text\": \"x\"} y\n", &ReadConfig::default());
    let reasons: Vec<_> = broken.iter().map(|part| part.reason.as_str()).collect();
    assert_eq!(reasons[0], "is JSON, but no object");
    assert_eq!(
        reasons[1],
        "has no string in the field `text` (`read.fields.text`); its fields are `a`, `text`"
    );
    assert!(reasons[2].starts_with("is no JSON: trailing characters"), "{}", reasons[2]);
}
