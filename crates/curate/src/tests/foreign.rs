//! What comes from elsewhere: dates, versions, line ends and names as others write them.

use std::sync::Arc;

use arrow_array::{ArrayRef, Date32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use serde_json::{Value, json};

use super::*;

/// A report, rows and dropped documents.
type Found = (CurateReport, Vec<[String; 9]>, Vec<DroppedRecord>);

/// Runs a recipe with `read` and these settings over files.
fn read(files: &[(&str, &[u8])], settings: Value) -> Result<Found, CurateError> {
    let (root, out) = (folder(files), TempDir::new().unwrap());
    let mut settings = settings;
    settings["sources"] = json!([root.path()]);
    settings["read"] = json!({});
    let config: CurateConfig = serde_json::from_value(settings).unwrap();
    let report = curate(&config, &inventory(&config, &())?, out.path(), &())?;
    let dropped = fs::read_to_string(out.path().join(DROPPED_FILE)).unwrap();
    let dropped = dropped.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    Ok((report, read_rows(&out.path().join(DOCUMENTS_FILE)).0, dropped))
}

fn lines(documents: &[Value]) -> Vec<u8> {
    documents.iter().flat_map(|document| format!("{document}\n").into_bytes()).collect()
}

#[test]
fn the_newest_is_the_newest_instant() {
    for (older, newer) in [
        (json!("2024-05-06T10:00:00+09:00"), json!("2024-05-06T05:00:00Z")),
        (json!(999_999_999), json!(1_700_000_000)),
        (json!(1_600_000_000_000_u64), json!(1_700_000_000)),
        (json!("Mon, 06 May 2024 07:08:09 GMT"), json!("2024-05-06T07:08:10Z")),
        (json!("some day"), json!("1999-01-01")),
    ] {
        // The older one comes first and last, so that its id does not decide.
        for swap in [false, true] {
            let of = |date: &Value| json!({"text": prose(1), "url": "https://a.example/", "date": date});
            // What a dump calls a version says nothing.
            let mut documents = [of(&older), of(&newer)];
            documents[0]["version"] = json!("9.0.0");
            documents[0]["metadata"] = json!({"registry.version": "9.0.0"});
            if swap {
                documents.reverse();
            }
            for settings in [json!({"url_duplicates": {}}), json!({})] {
                let (report, rows, _) = read(&[("a.jsonl", &lines(&documents))], settings).unwrap();
                assert_eq!(rows.len(), 1);
                let wanted = crate::date::normalise(&newer.to_string().replace('"', ""));
                assert_eq!(Some(&rows[0][3]), wanted.as_ref(), "{older} {newer}");
                let unread: u64 =
                    report.passed.iter().filter(|(kind, _)| kind.contains("dates")).map(|(_, n)| n).sum();
                assert_eq!(unread, u64::from(older == "some day"));
                assert_eq!(report.documents_in, 2);
            }
        }
    }
}

#[test]
fn dates_of_parquet_are_read() {
    let text: ArrayRef = Arc::new(StringArray::from(vec![prose(1), prose(2)]));
    let columns: [(ArrayRef, &str); 4] = [
        (Arc::new(Date32Array::from(vec![Some(19_849), None])), "2024-05-06"),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1_700_000_000_500_000), None])),
            "2023-11-14T22:13:20.5Z",
        ),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![Some(0), None]).with_timezone("+09:00")),
            "1970-01-01T00:00:00Z",
        ),
        (Arc::new(Int64Array::from(vec![Some(1_700_000_000_123), None])), "2023-11-14T22:13:20.123Z"),
    ];
    for (date, expected) in columns {
        let batch = RecordBatch::try_from_iter([("text", Arc::clone(&text)), ("date", date)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let (_, rows, _) = read(&[("a.parquet", &bytes)], json!({})).unwrap();
        assert_eq!((rows[0][3].as_str(), rows[1][3].as_str()), (expected, ""));
    }
}

#[test]
fn line_ends_and_control_characters_are_the_same_for_all_texts() {
    let plain = prose(3);
    let documents = [
        json!({"text": plain.replace('\n', "\r\n"), "url": "crlf"}),
        json!({"text": format!("{}\0", prose(4)), "url": "nul"}),
        json!({"text": format!("{}{}", prose(5), "\u{1b}".repeat(20)), "url": "controls"}),
    ];
    let settings = json!({"fineweb": {"max_short_lines": false}});
    let (_, rows, dropped) = read(&[("a.jsonl", &lines(&documents))], settings).unwrap();
    assert_eq!(rows.len(), 1, "{dropped:?}");
    assert_eq!((rows[0][1].as_str(), rows[0][6].as_str()), ("crlf", plain.as_str()));
    assert!(dropped.len() == 2 && dropped.iter().all(|record| record.reason == "binary"), "{dropped:?}");
}

#[test]
fn texts_of_which_little_is_left_are_dropped() {
    let code = "A line that speaks of javascript, which the rules take away from here, all of it.";
    let documents = [
        json!({"text": prose(6), "url": "kept"}),
        json!({"text": code, "url": "empty"}),
        json!({"text": format!("{code}\nBut this stays here."), "url": "short"}),
    ];
    let settings = json!({"c4": {"min_sentences": false}});
    let (_, rows, dropped) = read(&[("a.jsonl", &lines(&documents))], settings).unwrap();
    assert_eq!(rows.len(), 1);
    assert!(dropped.iter().all(|record| record.reason == "too_short" && record.step == "too_little_left"));

    let menu = "Home and away, news and weather, sport and culture, letters and people, help and contact.\n";
    let documents: Vec<_> = (0..20)
        .map(|n| json!({"text": format!("{menu}{n}!"), "url": format!("short/{n}")}))
        .chain((0..2).map(|n| json!({"text": format!("{menu}{}", prose(n)), "url": format!("long/{n}")})))
        .collect();
    let (_, rows, dropped) =
        read(&[("a.jsonl", &lines(&documents))], json!({"common_lines": {"normalise": false}})).unwrap();
    assert_eq!((rows.len(), dropped.len()), (2, 20));
    assert!(dropped.iter().all(|record| record.reason == "too_short"), "{dropped:?}");
    // With no limit what has no text goes all the same.
    let settings = json!({"c4": {"min_sentences": false}, "min_characters": 0, "min_letter_share": 0.0});
    let documents = [json!({"text": code}), json!({"text": "And this stays."})];
    assert_eq!(read(&[("a.jsonl", &lines(&documents))], settings).unwrap().1.len(), 1);
}

#[test]
fn names_with_a_hash_sign_make_no_ids_twice() {
    let line = lines(&[json!({"text": prose(7)})]);
    let texts = [prose(8), prose(9), prose(10)];
    let files: [(&str, &[u8]); 4] = [
        ("a.jsonl", &line),
        ("a.jsonl#0", texts[0].as_bytes()),
        ("a.jsonl%230", texts[1].as_bytes()),
        ("b%20.txt", texts[2].as_bytes()),
    ];
    let (_, rows, _) = read(&files, json!({})).unwrap();
    let ids: Vec<&str> = rows.iter().map(|row| row[0].rsplit('/').next().unwrap()).collect();
    assert_eq!(ids, ["a.jsonl#0", "a.jsonl%230", "a.jsonl%25230", "b%2520.txt"]);
}
