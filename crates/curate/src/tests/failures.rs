//! Input that cannot be used: each error says what was found and what to do.

use super::*;

/// The message of a run that must fail.
fn failure(config: &CurateConfig) -> String {
    match run(config) {
        Ok(outcome) => panic!("kept {:?}", outcome.kept_urls()),
        Err(error) => error.to_string(),
    }
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn an_empty_folder_is_an_error() {
    let root = folder(&[(".git/HEAD", b"x")]);
    let message = failure(&config_for(&[root.path()]));
    assert_says(
        &message,
        &[root.path().to_str().unwrap(), "matches no file", "only hidden entries", "(1)", "\nhint: "],
    );
    let message = failure(&config_for(&[folder(&[]).path()]));
    assert_says(&message, &["matches no file: it is empty\nhint: "]);
}

#[test]
fn a_folder_of_pictures_is_an_error() {
    let picture = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
    let names: Vec<_> = (0..30).map(|i| format!("picture{i}.png")).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &picture[..])).collect();
    files.extend([("a.txt", &b""[..]), ("b.txt", &b""[..])]);
    let root = folder(&files);
    let config = config_for(&[root.path()]);
    assert_says(&failure(&config), &["all 32 files were dropped", "30 `binary`, 2 `empty`", "\nhint: "]);
    let out = root.path().join("out");
    assert!(curate(&config, &inventory(&config, &()).unwrap(), &out, &()).is_err());
    assert!(!out.exists(), "nothing may be written when nothing is kept");
}

#[test]
fn sources_that_do_not_exist_are_errors() {
    let root = folder(&[("a.md", prose(1).as_bytes())]);
    for (source, parts) in [
        ("missing", ["cannot be opened", "\nhint: "]),
        ("missing/*.md", ["is not a folder", "\nhint: "]),
        ("*.txt", ["matches no file: it has only files of other names (1)", "\nhint: "]),
        ("[", ["is not a valid glob", "\nhint: "]),
    ] {
        // One good source does not hide a bad one.
        let message = failure(&config_for(&[root.path(), &root.path().join(source)]));
        assert_says(&message, &[source]);
        assert_says(&message, &parts);
    }
    for (home, part) in [(None, "`CARGO_HOME`"), (Some(root.path().to_path_buf()), "cannot be listed at")] {
        let message = inventory_at(&CurateConfig::default(), home, &()).unwrap_err().to_string();
        assert_says(&message, &["source `cargo-registry`", part, "\nhint: "]);
    }
}

#[test]
fn values_out_of_range_name_key_value_and_range() {
    let base = CurateConfig::default();
    for (config, parts) in [
        (CurateConfig { sources: vec![], ..base.clone() }, ["`curate.sources` is `[]`", "one or more"]),
        (
            CurateConfig { sources: vec![" ".into()], ..base.clone() },
            ["`curate.sources`", "none of them blank"],
        ),
        (
            CurateConfig { max_document_bytes: 0, ..base.clone() },
            ["`curate.max_document_bytes` is `0`", "from 1 to"],
        ),
        (CurateConfig { max_document_bytes: 1 << 40, ..base.clone() }, ["is `1099511627776`", "from 1 to"]),
        (
            CurateConfig { max_corpus_bytes: Some(7), ..base.clone() },
            ["`curate.max_corpus_bytes` is `7`", "1048576 or more"],
        ),
        (
            CurateConfig { min_letter_share: f64::NAN, ..base.clone() },
            ["`curate.min_letter_share` is `NaN`", "0 to 1"],
        ),
        (
            CurateConfig { max_repeated_share: 1.5, ..base.clone() },
            ["`curate.max_repeated_share` is `1.5`", "0 to 1"],
        ),
        (CurateConfig { max_code_line: 0, ..base.clone() }, ["`curate.max_code_line` is `0`", "1 or more"]),
    ] {
        let message = config.validate().unwrap_err().to_string();
        assert_says(&message, &parts);
        assert!(inventory(&config, &()).is_err());
    }
    base.validate().unwrap();
}

#[test]
fn unknown_keys_are_refused_and_missing_ones_have_defaults() {
    let parsed: CurateConfig = serde_json::from_str(r#"{"min_characters": 5}"#).unwrap();
    assert_eq!(parsed, CurateConfig { min_characters: 5, ..CurateConfig::default() });
    let message = serde_json::from_str::<CurateConfig>(r#"{"min_character": 5}"#).unwrap_err().to_string();
    assert_says(&message, &["min_character", "min_characters"]);
}

#[test]
fn files_that_change_after_the_inventory_are_errors() {
    let changes: [fn(&Path); 4] = [
        |path| fs::write(path, prose(1).replace("Herd", "Hard")).unwrap(),
        |path| fs::write(path, prose(1) + "more").unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| fs::remove_file(path).unwrap(),
    ];
    for change in changes {
        let root = folder(&[("a.md", prose(1).as_bytes()), ("b.md", prose(2).as_bytes())]);
        let config = config_for(&[root.path()]);
        let inventory = inventory(&config, &()).unwrap();
        change(&root.path().join("a.md"));
        let error = curate(&config, &inventory, &root.path().join("out"), &()).unwrap_err();
        assert!(matches!(&error, CurateError::Changed { path, .. } if path.ends_with("a.md")), "{error}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let root = folder(&[("a.md", prose(1).as_bytes())]);
    let config = config_for(&[root.path()]);
    let inventory = inventory(&config, &()).unwrap();
    let error = curate(&config, &inventory, &root.path().join("a.md"), &()).unwrap_err();
    assert!(matches!(&error, CurateError::Write { path, .. } if path.ends_with("a.md")), "{error}");
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_and_special_files_are_not_followed() {
        let root = folder(&[("a/b/text.md", prose(1).as_bytes())]);
        symlink(root.path(), root.path().join("a/b/loop")).unwrap();
        symlink("self", root.path().join("self")).unwrap();
        symlink("text.md", root.path().join("a/b/link.md")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
        let outcome = run(&config_for(&[root.path()])).unwrap();
        assert_eq!(outcome.kept_urls(), ["a/b/text.md"]);
        assert_eq!(outcome.report.documents_in, 1);
        assert_eq!(outcome.report.passed["symbolic links or special files"], 4);
        // A link that is named is read.
        let named = run(&config_for(&[&root.path().join("a/b/link.md")])).unwrap();
        assert_eq!(named.kept_urls(), ["link.md"]);
        assert_says(
            &failure(&config_for(&[&root.path().join("socket")])),
            &["neither a folder nor a regular file"],
        );
        assert_says(&failure(&config_for(&[&root.path().join("self")])), &["cannot be opened"]);
    }

    #[test]
    fn files_without_permission_are_listed_as_unreadable() {
        let root = folder(&[
            ("good.md", prose(1).as_bytes()),
            ("secret.md", prose(2).as_bytes()),
            ("vault/inside.md", prose(3).as_bytes()),
        ]);
        let closed = [root.path().join("secret.md"), root.path().join("vault")];
        for path in &closed {
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        }
        if File::open(&closed[0]).is_ok() {
            println!("skipped: this user may read files without permission");
        } else {
            let outcome = run(&config_for(&[root.path()])).unwrap();
            assert_eq!(
                outcome.reasons(),
                BTreeMap::from([("secret.md", "unreadable"), ("vault", "unreadable")])
            );
            assert_says(&failure(&config_for(&[&closed[1]])), &["cannot be listed"]);
        }
        for path in &closed {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// A regular file that opens but does not read, for every user.
    #[cfg(target_os = "linux")]
    #[test]
    fn files_that_fail_while_being_read_are_unreadable() {
        let root = folder(&[("good.md", prose(1).as_bytes())]);
        let outcome = run(&config_for(&[root.path(), Path::new("/proc/self/mem")])).unwrap();
        assert_eq!(outcome.reasons(), BTreeMap::from([("mem", "unreadable")]));
        let alone = failure(&config_for(&[Path::new("/proc/self/mem")]));
        assert_says(&alone, &["all 1 files were dropped: 1 `unreadable`"]);
    }

    #[test]
    fn names_that_are_not_text_are_no_obstacle() {
        use std::os::unix::ffi::OsStrExt;
        let root = TempDir::new().unwrap();
        for (at, name) in [&b"a\xFF.md"[..], b"a\xFE.md", b"new\nline \"quoted\".md"].into_iter().enumerate()
        {
            let path = root.path().join(std::ffi::OsStr::from_bytes(name));
            if let Err(error) = fs::write(path, prose(at)) {
                println!("skipped: this file system refuses the name: {error}");
                return;
            }
        }
        let outcome = run(&config_for(&[root.path()])).unwrap();
        assert_eq!(outcome.kept_urls(), ["a\u{fffd}.md", "a\u{fffd}.md#2", "new\nline \"quoted\".md"]);
    }
}
