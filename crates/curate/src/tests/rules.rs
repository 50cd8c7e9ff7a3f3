//! Each rule with a case on either side of its limit, and all of them on arbitrary bytes.

use proptest::prelude::*;

use super::prose;
use crate::dedup::exact::fingerprint;
use crate::plan::{Step, collect};
use crate::rules::{CODE, FileLimits, PROSE, Subject, domain, is_notice, judge_file, normalise, text_rules};
use crate::{CurateConfig, Document, FILTERS, Item, Value, registry};

/// The reason for which a file of this name and content is dropped under the default configuration.
fn reason(name: &str, bytes: &[u8]) -> Option<String> {
    reason_with(&CurateConfig::default(), name, bytes)
}

fn reason_with(config: &CurateConfig, name: &str, bytes: &[u8]) -> Option<String> {
    let subject = Subject { problem: None, size: bytes.len() as u64, bytes };
    let dropped = judge_file(&subject, &FileLimits::of(config)).or_else(|| {
        let text = normalise(std::str::from_utf8(bytes).unwrap_or_default());
        let domain = domain(name, &text).to_owned();
        let document = Document { domain, text: text.into_owned(), ..Document::default() };
        let step = Step::with(FILTERS, &text_rules(config).unwrap()).unwrap();
        let filters = registry().build_map(&step, &[]).unwrap();
        let value = Value::Item(Box::new(Item::new(document, subject.size))).encode().unwrap();
        let records = collect(&*filters, b"id", &value).unwrap();
        assert_eq!((records.len(), &records[0].key[..]), (1, &b"id"[..]));
        let item = Value::item(&records[0].value).unwrap();
        assert!(item.dropped.is_none() || item.document.text.is_empty());
        item.dropped
    })?;
    assert!(!dropped.detail.is_empty());
    Some(dropped.reason)
}

#[test]
fn unreadable_files_are_dropped_before_anything_else() {
    let subject = Subject { problem: Some("permission denied"), size: 0, bytes: b"" };
    let dropped = judge_file(&subject, &FileLimits::of(&CurateConfig::default())).unwrap();
    assert_eq!((dropped.reason.as_str(), dropped.detail.as_str()), ("unreadable", "permission denied"));
}

#[test]
fn huge_begins_above_the_limit() {
    let text = prose(1);
    let limit = text.len() as u64;
    let at = CurateConfig { max_document_bytes: limit, ..CurateConfig::default() };
    assert_eq!(reason_with(&at, "a.md", text.as_bytes()), None);
    let below = CurateConfig { max_document_bytes: limit - 1, ..CurateConfig::default() };
    assert_eq!(reason_with(&below, "a.md", text.as_bytes()), Some("huge".to_owned()));
}

#[test]
fn empty_is_nothing_but_white_space() {
    for bytes in [&b""[..], b" \r\n\t \n", b"\xEF\xBB\xBF", b"\xEF\xBB\xBF \n"] {
        assert_eq!(reason("a.md", bytes), Some("empty".to_owned()), "{bytes:?}");
    }
    assert_eq!(reason("a.md", b"\n.\n"), Some("too_short".to_owned()));
}

#[test]
fn binary_is_a_zero_byte_or_many_controls() {
    let text = prose(2);
    assert_eq!(reason("a.md", format!("{text}\0").as_bytes()), Some("binary".to_owned()));
    assert_eq!(
        reason(
            "a.md",
            "UTF-16 text".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>().as_slice()
        ),
        Some("binary".to_owned())
    );
    assert_eq!(
        reason("a.md", format!("{text}{}", "\u{1b}".repeat(20)).as_bytes()),
        Some("binary".to_owned())
    );
    // A few escape codes, tabs and form feeds are found in good text.
    assert_eq!(reason("a.md", format!("{text}\u{1b}[0m\t\t\t\t\t\t\t\t\t\u{c}").as_bytes()), None);
}

#[test]
fn not_utf8_is_an_invalid_byte() {
    let text = prose(3);
    assert_eq!(
        reason("a.md", [text.as_bytes(), b"caf\xE9\n"].concat().as_slice()),
        Some("not_utf8".to_owned())
    );
    assert_eq!(reason("a.md", format!("{text}café\n").as_bytes()), None);
}

#[test]
fn too_short_counts_characters_not_bytes() {
    assert_eq!(reason("a.md", "é".repeat(63).as_bytes()), Some("too_short".to_owned()));
    assert_eq!(reason("a.md", "é".repeat(64).as_bytes()), None);
    assert_eq!(reason("a.md", format!("  {}  \n", "é".repeat(63)).as_bytes()), Some("too_short".to_owned()));
}

#[test]
fn long_lines_are_minified_code_or_encoded_data() {
    let words = "let it = be; ".repeat(500);
    assert_eq!(reason("a.js", words.as_bytes()), Some("long_lines".to_owned()), "one line above the limit");
    assert_eq!(reason("a.txt", words.as_bytes()), None, "prose may keep a paragraph on a line");
    let wide: String = (0..40).map(|i| format!("{i} {}\n", "some words ".repeat(16))).collect();
    assert_eq!(reason("a.js", wide.as_bytes()), Some("long_lines".to_owned()), "long on average");
    let normal: String = (0..40).map(|i| format!("let name{i} = value{i};\n")).collect();
    assert_eq!(reason("a.js", normal.as_bytes()), None);
    let encoded = format!("{}{}\n", prose(4), "QmFzZTY0".repeat(251));
    assert_eq!(reason("a.md", encoded.as_bytes()), Some("long_lines".to_owned()), "base64 in Markdown");
    let shorter = format!("{}{}\n", prose(4), "QmFzZTY0".repeat(250));
    assert_eq!(reason("a.md", shorter.as_bytes()), None);
    assert_eq!(reason("a.md", "草原上有一群羊驼".repeat(500).as_bytes()), None, "no spaces between words");
}

#[test]
fn low_letters_are_tables_of_numbers() {
    let table: String = (0..50).map(|i| format!("{i}, {}, {}, 0x{:x},\n", i * 3, i * i, i * 31)).collect();
    assert_eq!(reason("a.rs", table.as_bytes()), Some("low_letters".to_owned()));
    assert_eq!(
        reason("a.rs", b"fn area(width: f64, height: f64) -> f64 {\n    width * height * 0.5 + 1e-9\n}\n"),
        None
    );
}

#[test]
fn repeated_lines_are_weighed_by_length() {
    let line = "the same line comes again and again\n";
    assert_eq!(reason("a.md", line.repeat(10).as_bytes()), Some("repeated_lines".to_owned()));
    assert_eq!(reason("a.md", format!("{}{}", prose(5), line.repeat(3)).as_bytes()), None);
    let braces: String = (0..30).map(|i| format!("fn with_the_name_{i}() {{\n    }}\n}}\n")).collect();
    assert_eq!(reason("a.rs", braces.as_bytes()), None, "closing braces are no repetition");
}

#[test]
fn generated_code_says_so_at_its_head() {
    let body: String = (0..20).map(|i| format!("pub const NAME_{i}: Kind = Kind::Value{i};\n")).collect();
    for head in
        ["// @generated by a tool", "/* Automatically generated by bindgen */", "# This file is generated."]
    {
        assert_eq!(
            reason("a.rs", format!("{head}\n{body}").as_bytes()),
            Some("generated".to_owned()),
            "{head}"
        );
        assert_eq!(reason("a.rs", format!("{body}{head}\n").as_bytes()), None, "{head} at the end");
        assert_eq!(reason("a.md", format!("{head}\n{}", prose(6)).as_bytes()), None, "{head} in prose");
        let config = CurateConfig { drop_generated: false, ..CurateConfig::default() };
        assert_eq!(reason_with(&config, "a.rs", format!("{head}\n{body}").as_bytes()), None);
    }
    let manifest = "# THIS FILE IS AUTOMATICALLY GENERATED BY CARGO\n[package]\nname = \"llama\"\n\
                    description = \"An animal of the high plain, and its herd\"\n";
    assert_eq!(reason("Cargo.toml", manifest.as_bytes()), None, "published manifests are kept");
}

#[test]
fn domains_follow_the_name_and_then_the_symbols() {
    for name in ["a.md", "A.TXT", "b.rst", "LICENSE", "LICENSE-APACHE-2.0", "README", "notes", "COPYING.3"] {
        assert_eq!(domain(name, "{}{}"), PROSE, "{name}");
    }
    for name in ["a.rs", "Cargo.toml", "x.JSON", "run.sh", "m.py", "Makefile", "license.rs"] {
        assert_eq!(domain(name, "words alone"), CODE, "{name}");
    }
    assert_eq!(domain("a.unknown", "Words, in the main, and a (rare) symbol."), PROSE);
    assert_eq!(domain("a.unknown", "if (a[i] == b) { return f(a, &b); }"), CODE);
    assert!(
        is_notice("LICENSE-MIT") && is_notice("Unlicense") && !is_notice("licenses.rs") && !is_notice("main")
    );
}

#[test]
fn normalisation_touches_only_the_mark_and_line_ends() {
    assert_eq!(normalise("\u{feff}a \r\nb\rc\n\n"), "a \nb\rc\n\n");
    assert_eq!(normalise("a \u{feff}\tb"), "a \u{feff}\tb");
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0..6_usize) {
        let name = ["a.md", "a.rs", "a", "a.bin", ".", "\u{fffd}.é"][at];
        let found = reason(name, &bytes);
        if std::str::from_utf8(&bytes).is_err() {
            prop_assert!(matches!(found.as_deref(), Some("empty" | "binary" | "not_utf8")));
        }
    }

    #[test]
    fn any_text_gets_a_verdict(text in "\\PC{0,200}(\n\\PC{0,200}){0,5}", at in 0..3_usize) {
        let found = reason(["a.md", "a.rs", "a.odd"][at], text.as_bytes());
        prop_assert!(!matches!(found.as_deref(), Some("unreadable" | "huge" | "not_utf8")));
    }

    #[test]
    fn fingerprints_ignore_line_ends_and_trailing_space(
        lines in prop::collection::vec("[ -~é]{0,20}", 1..8), padding in "[ \t]{0,3}",
    ) {
        let unix = lines.join("\n");
        let dos = format!("\u{feff}{}{padding}\r\n\r\n", lines.join(&format!("{padding}\r\n")));
        prop_assert_eq!(fingerprint(&normalise(&unix)), fingerprint(&normalise(&dos)));
        let other = format!("x{unix}");
        prop_assert_ne!(fingerprint(&unix), fingerprint(&other));
    }
}
