//! Generates `src/split/unicode_table.rs` from the `regex-syntax` crate's Unicode data, and fails when the two differ.
//!
//! `LLAMERO_WRITE_UNICODE_TABLE=1 cargo test -p llamero-tokenizer --test unicode_table` writes the file anew.
//! A different Unicode version changes how text is split, hence the ids of a trained tokenizer: write it on purpose only.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use regex_syntax::hir::{Class, HirKind};
use std::fmt::Write as _;

/// The code points where membership in `pattern`, a character class, begins and ends, alternating.
fn boundaries(pattern: &str) -> Vec<u32> {
    let hir = regex_syntax::parse(pattern).unwrap();
    let HirKind::Class(Class::Unicode(class)) = hir.kind() else { panic!("`{pattern}` is not a class") };
    class.ranges().iter().flat_map(|r| [r.start() as u32, r.end() as u32 + 1]).collect()
}

fn generate() -> String {
    let mut text = String::from(
        "//! Character classes of Unicode 16.0, the version whose tables the reference tokenizers use.\n\
         //!\n\
         //! Written by `tests/unicode_table.rs`; do not edit. Each list alternates between the code point where\n\
         //! membership begins and the one where it ends (exclusive).\n",
    );
    for (name, pattern, what) in [
        ("LETTERS", r"\p{L}", "General category L"),
        ("NUMBERS", r"\p{N}", "General category N"),
        ("WHITE_SPACE", r"\s", "Property `White_Space`"),
    ] {
        write!(text, "\n/// {what} (`{pattern}`).\n#[rustfmt::skip]\npub(crate) const {name}: &[u32] = &[\n")
            .unwrap();
        for line in boundaries(pattern).chunks(12) {
            let cells: Vec<String> = line.iter().map(|c| format!("0x{c:X},")).collect();
            writeln!(text, "    {}", cells.join(" ")).unwrap();
        }
        text.push_str("];\n");
    }
    text
}

#[test]
fn committed_table_is_what_the_generator_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/split/unicode_table.rs");
    let generated = generate();
    if std::env::var_os("LLAMERO_WRITE_UNICODE_TABLE").is_some() {
        std::fs::write(path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        committed == generated,
        "{path} differs from the data of `regex-syntax`; see the top of this test file"
    );
}
