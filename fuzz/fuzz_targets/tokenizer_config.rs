//! Any bytes as the `tokenizer_config.json` beside a good `tokenizer.json`: read or refused.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use llamero_tokenizer::{Tokenizer, Trainer};
use tempfile::TempDir;

static FOLDER: LazyLock<Option<TempDir>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().ok()?;
    let (tokenizer, _) = Trainer::new(520).train(["the thing, the thing"].iter(), &mut |_, _| ()).ok()?;
    tokenizer.save_hf(folder.path()).ok()?;
    Some(folder)
});

libfuzzer_sys::fuzz_target!(|contents: &[u8]| {
    let Some(folder) = &*FOLDER else { panic!("no folder for temporary files") };
    assert!(fs::write(folder.path().join("tokenizer_config.json"), contents).is_ok());
    if let Ok(tokenizer) = Tokenizer::load(folder.path()) {
        let ids = tokenizer.encode("the thing");
        assert_eq!(tokenizer.decode(&ids).ok().as_deref(), Some("the thing"));
    }
});
