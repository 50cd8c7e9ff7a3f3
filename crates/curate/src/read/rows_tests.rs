//! Parquet: columns of all kinds, groups that are broken or lie.

use std::sync::Arc;

use super::tests::{ids, read};
use super::{Fields, Input, ReadConfig, Record};

#[test]
fn rows_of_parquet() {
    use arrow_array::{Int64Array, RecordBatch, StringArray};
    use arrow_schema::{DataType, Field, Schema};
    let fields = [("text", DataType::Utf8), ("id", DataType::Int64), ("kind", DataType::Utf8)];
    let schema = Arc::new(Schema::new(fields.map(|(name, kind)| Field::new(name, kind, true)).to_vec()));
    let text: Vec<_> = (0..100).map(|n| (n != 5).then(|| format!("text {n}"))).collect();
    let id: Vec<_> = (0..100_i64).map(|n| (n != 7).then_some(n * 10)).collect();
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(StringArray::from(text)),
            Arc::new(Int64Array::from(id)),
            Arc::new(StringArray::from(vec![Some("k"); 100])),
        ],
    );
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, schema, None).unwrap();
    writer.write(&batch.unwrap()).unwrap();
    writer.close().unwrap();
    let (records, broken) = read("a.parquet", &bytes, &ReadConfig::default());
    assert_eq!((records.len(), broken.len()), (99, 1));
    assert_eq!(broken[0].reason, "row 5 has no `text`");
    assert_eq!((ids(&records)[0], ids(&records)[6]), ("0", "a.parquet#7"));
    assert_eq!(
        (records[98].document.text.as_str(), records[98].document.meta["kind"].as_str()),
        ("text 99", "k")
    );
    let (records, broken) = read("a.parquet", &bytes[..bytes.len() - 9], &ReadConfig::default());
    assert_eq!((records.len(), broken.len()), (0, 1));
    let other =
        ReadConfig { fields: Fields { text: "body".into(), ..Fields::default() }, ..ReadConfig::default() };
    let (_, broken) = read("a.parquet", &bytes, &other);
    assert_eq!(
        broken[0].reason,
        "has no column of strings `body` (`read.fields.text`); its columns are `text`, `id`, `kind`"
    );
}

#[test]
fn columns_of_all_kinds_are_read() {
    use arrow_array::types::Int8Type;
    use arrow_array::{
        ArrayRef, DictionaryArray, Int8Array, RecordBatch, StringArray, StringViewArray, StructArray,
        UInt16Array,
    };
    let text = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let structure = StructArray::from(vec![
        (
            Arc::new(arrow_schema::Field::new("licence", arrow_schema::DataType::Utf8, true)),
            text(&["mit", "bsd"]),
        ),
        (
            Arc::new(arrow_schema::Field::new("stars", arrow_schema::DataType::UInt16, true)),
            Arc::new(UInt16Array::from(vec![Some(7), None])) as ArrayRef,
        ),
    ]);
    let lang: DictionaryArray<Int8Type> = ["German", "en-GB"].into_iter().collect();
    let write = |metadata: ArrayRef| {
        let batch = RecordBatch::try_from_iter([
            ("text", Arc::new(StringViewArray::from(vec!["one", "two"])) as ArrayRef),
            ("lang", Arc::new(lang.clone()) as ArrayRef),
            ("small", Arc::new(Int8Array::from(vec![-3, 4])) as ArrayRef),
            ("metadata", metadata),
        ])
        .unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    let json = text(&[r#"{"licence": "mit", "stars": 7}"#, r#"{"licence": "bsd", "stars": null}"#]);
    for bytes in [write(Arc::new(structure)), write(json)] {
        let (records, broken) = read("a.parquet", &bytes, &ReadConfig::default());
        assert!(broken.is_empty(), "{broken:?}");
        let of = |record: &Record| {
            (record.document.text.clone(), record.document.lang.clone(), record.document.meta.clone())
        };
        let meta = |entries: &[(&str, &str)]| {
            entries.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        assert_eq!(
            records.iter().map(of).collect::<Vec<_>>(),
            [
                ("one".into(), "de".into(), meta(&[("licence", "mit"), ("small", "-3"), ("stars", "7")])),
                ("two".into(), "en".into(), meta(&[("licence", "bsd"), ("small", "4")])),
            ]
        );
    }
}

/// A Parquet file of a column `text`, each row written by itself.
pub(super) fn parquet_of(rows: &[&str], dictionary: bool, rows_of_group: usize) -> Vec<u8> {
    use arrow_array::{RecordBatch, StringArray};
    use arrow_schema::{DataType, Field, Schema};
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]));
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_dictionary_enabled(dictionary)
        .set_dictionary_page_size_limit(1 << 30)
        .set_max_row_group_row_count(Some(rows_of_group))
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .build();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, Arc::clone(&schema), Some(properties)).unwrap();
    for row in rows {
        let column = Arc::new(StringArray::from(vec![*row]));
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap()).unwrap();
    }
    writer.close().unwrap();
    bytes
}

#[test]
fn rows_that_are_small_in_the_file_may_be_large() {
    // 65 rows of 34 MiB are more than an array of strings can hold, and one value in the file.
    let row = "x".repeat(34 << 20);
    let input = Input::memory("a.parquet", parquet_of(&[row.as_str(); 65], true, 100));
    let mut count = 0;
    for record in input.records(&ReadConfig::default()) {
        assert_eq!(record.unwrap().document.text.len(), row.len());
        count += 1;
    }
    assert_eq!(count, 65);
}

#[test]
fn a_broken_row_group_and_a_large_row_are_no_more_than_that() {
    let rows: Vec<_> =
        (0..9).map(|at| format!("row {at} {}", "y".repeat(if at == 7 { 500 } else { 9 }))).collect();
    let rows: Vec<_> = rows.iter().map(String::as_str).collect();
    let bytes = parquet_of(&rows, false, 3);
    let config = ReadConfig { max_record_bytes: 400, ..ReadConfig::default() };
    let (records, broken) = read("a.parquet", &bytes, &config);
    assert_eq!((records.len(), broken.len()), (8, 1));
    assert_eq!(broken[0].reason, "row 7 has 506 bytes, more than the 400 allowed");
    let mut damaged = bytes;
    let at = damaged.windows(5).position(|window| window == b"row 3").unwrap();
    // The length of its first value.
    damaged[at - 4..at].fill(0xFF);
    let (records, broken) = read("a.parquet", &damaged, &config);
    assert_eq!((records.len(), broken.len()), (5, 2), "{broken:?}");
    assert!(broken[0].reason.starts_with("rows 3 to 5 cannot be read: "), "{}", broken[0].reason);
    assert_eq!(ids(&records)[3], "a.parquet#6");
}

#[test]
fn rows_that_a_group_does_not_tell_of_are_broken() {
    let rows: Vec<_> = (0..40).map(|at| format!("row {at}")).collect();
    let rows: Vec<_> = rows.iter().map(String::as_str).collect();
    let bytes = parquet_of(&rows, false, 20);
    let whole = read("a.parquet", &bytes, &ReadConfig::default());
    assert_eq!((whole.0.len(), whole.1.len()), (40, 0));
    // In the footer, which is Thrift, the count of rows of the first group: 20, as a zigzag number, behind the header of a field.
    let footer = bytes.len()
        - 8
        - u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let counts: Vec<usize> =
        (footer..bytes.len() - 8).filter(|&at| bytes[at..at + 2] == [0x16, 40]).collect();
    let mut told = Vec::new();
    for at in counts {
        let mut lie = bytes.clone();
        lie[at + 1] = 14;
        let (records, broken) = read("a.parquet", &lie, &ReadConfig::default());
        let mut ids = ids(&records);
        ids.sort_unstable();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count, "two rows have one id");
        told.extend(broken.into_iter().map(|part| part.reason));
    }
    assert!(told.iter().any(|reason| reason.contains("has more rows than it says")), "{told:?}");
}
