//! Any bytes as `tokenizer.model`: read or refused; what is read decodes what it encodes. What is refused is read again with
//! every byte as a token before it, so that more gets through.
#![no_main]

use std::fmt::Write as _;
use std::fs;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llamero_tokenizer::Tokenizer;
use tempfile::TempDir;

static FOLDER: LazyLock<Option<TempDir>> = LazyLock::new(|| tempfile::tempdir().ok());

static BYTES: LazyLock<String> = LazyLock::new(|| {
    (0..=255_u8).fold(String::new(), |mut lines, byte| {
        let _ = writeln!(lines, "{} {byte}", STANDARD.encode([byte]));
        lines
    })
});

libfuzzer_sys::fuzz_target!(|contents: &[u8]| {
    let Some(folder) = &*FOLDER else { panic!("no folder for temporary files") };
    let path = folder.path().join("tokenizer.model");
    for contents in [contents, &[BYTES.as_bytes(), contents].concat()] {
        assert!(fs::write(&path, contents).is_ok());
        if let Ok(tokenizer) = Tokenizer::load(&path) {
            let text = "The thing's <|eot_id|> 123\n\n  é🦙";
            let ids = tokenizer.encode(text);
            assert_eq!(tokenizer.decode(&ids).ok().as_deref(), Some(text));
        }
    }
});
