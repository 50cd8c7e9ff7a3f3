//! What is taken, kept and dropped, through both steps.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

#[test]
fn every_reason_is_counted_and_listed() {
    let good = prose(1);
    let repeated = "one line that comes again\n".repeat(20);
    let table: String = (0..60).map(|i| format!("{i}, {},\n", i * 7)).collect();
    let generated = format!("// @generated\n{}", "pub fn name() {}\n".repeat(3) + &prose(8));
    let dos = format!("\u{feff}{}", good.replace('\n', "  \r\n"));
    let root = folder(&[
        ("docs/good.md", good.as_bytes()),
        ("docs/same.md", dos.as_bytes()),
        (
            "src/good.rs",
            b"/// The area of a field.\npub fn area(a: f64, b: f64) -> f64 {\n    a * b\n}\n// end of file\n",
        ),
        ("empty.txt", b""),
        ("blank.txt", b" \n \n"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
        ("latin.txt", b"Le caf\xE9 est ferm\xE9."),
        ("huge.txt", "many words ".repeat(120_000).as_bytes()),
        ("short.txt", b"short"),
        ("min.js", "var a = 1; ".repeat(600).as_bytes()),
        ("table.rs", table.as_bytes()),
        ("again.txt", repeated.as_bytes()),
        ("made.rs", generated.as_bytes()),
    ]);
    let outcome = run(&config_for(&[root.path()])).unwrap();
    let (kept, lost) = match outcome.kept_urls()[..] {
        ["docs/good.md", "src/good.rs"] => ("docs/good.md", "docs/same.md"),
        ["docs/same.md", "src/good.rs"] => ("docs/same.md", "docs/good.md"),
        ref other => panic!("{other:?}"),
    };
    let expected = BTreeMap::from([
        (lost, "exact_duplicate"),
        ("empty.txt", "empty"),
        ("blank.txt", "empty"),
        ("picture.png", "binary"),
        ("latin.txt", "not_utf8"),
        ("huge.txt", "huge"),
        ("short.txt", "too_short"),
        ("min.js", "long_lines"),
        ("table.rs", "low_letters"),
        ("again.txt", "repeated_lines"),
        ("made.rs", "generated"),
    ]);
    assert_eq!(outcome.reasons(), expected);
    assert_eq!(outcome.report.dropped["empty"].count, 2);
    // Both share a version (none), so the lower id stays.
    let id = |url: &str| blake3::hash(url.as_bytes()).to_hex();
    assert!(id(kept).as_str() < id(lost).as_str());
    assert_eq!(
        outcome.dropped.iter().find(|record| record.url == lost).unwrap().survivor.as_deref(),
        Some(&id(kept)[..32])
    );
    let row = |url: &str| outcome.rows.iter().find(|row| row[1] == url).unwrap();
    assert_eq!((row(kept)[2].as_str(), row(kept)[5].as_str()), ("docs", "prose"));
    assert_eq!((row("src/good.rs")[2].as_str(), row("src/good.rs")[5].as_str()), ("src", "code"));
    assert!(!row(kept)[6].contains('\r') && row(kept)[6].starts_with("Herd number 1"));
}

/// A cargo home with two index folders.
fn cargo_home() -> TempDir {
    let home = TempDir::new().unwrap();
    let licence = prose(100);
    let (new, old, other) = (prose(1), prose(2), prose(3));
    let index = |name: &str| home.path().join("registry/src").join(name);
    write_all(
        &index("one"),
        &[
            ("alpha-0.9.0/src/lib.rs", old.as_bytes()),
            ("alpha-0.9.0/LICENSE-MIT", licence.as_bytes()),
            ("alpha-0.10.0/src/lib.rs", new.as_bytes()),
            ("alpha-0.10.0/LICENSE-MIT", licence.as_bytes()),
            ("alpha-0.10.0/Cargo.toml.orig", other.as_bytes()),
            ("alpha-0.10.0/data.json", other.as_bytes()),
            ("alpha-0.10.0/.github/notes.md", other.as_bytes()),
            ("alpha-0.10.0/src/target/mod.rs", prose(4).as_bytes()),
            ("README.md", other.as_bytes()),
            ("no-version/README.md", other.as_bytes()),
        ],
    );
    write_all(
        &index("two"),
        &[
            ("beta-kit-2.0.0-rc.1/LICENSE", licence.as_bytes()),
            ("beta-kit-2.0.0-rc.1/README.md", other.as_bytes()),
            ("alpha-0.10.0/src/lib.rs", new.as_bytes()),
            ("gamma-1.0.0/Cargo.toml", prose(5).as_bytes()),
        ],
    );
    home
}

#[test]
fn the_registry_keeps_the_newest_version_of_each_crate() {
    let home = cargo_home();
    let outcome = run_at(&CurateConfig::default(), Some(home.path().to_path_buf())).unwrap();
    let kept = outcome.kept_urls();
    assert_eq!(
        outcome.reasons(),
        BTreeMap::from([
            ("alpha-0.9.0/src/lib.rs", "older_version"),
            ("alpha-0.9.0/LICENSE-MIT", "older_version"),
            // The highest version holds the licence, though another id is lower or higher.
            ("alpha-0.10.0/LICENSE-MIT", "exact_duplicate"),
        ])
    );
    // Two indexes hold the same crate, which is taken once.
    assert!(kept.contains(&"alpha-0.10.0/src/lib.rs"));
    assert!(kept.contains(&"beta-kit-2.0.0-rc.1/LICENSE"));
    assert_eq!(kept.len(), 5, "{kept:?}");
    let sources: BTreeMap<_, _> = outcome.rows.iter().map(|row| (row[1].as_str(), row[2].as_str())).collect();
    assert_eq!(sources["beta-kit-2.0.0-rc.1/README.md"], "beta-kit");
    assert_eq!(sources["alpha-0.10.0/src/target/mod.rs"], "alpha");
}

#[test]
fn the_number_of_indexes_does_not_show() {
    let home = cargo_home();
    let files = |home: &TempDir| {
        let inventory = inventory_at(&CurateConfig::default(), Some(home.path().to_path_buf()), &()).unwrap();
        let urls: Vec<_> = inventory.files.into_iter().map(|file| file.url).collect();
        (inventory.id, urls)
    };
    let before = files(&home);
    assert!(before.1.iter().all(|url| !url.contains('#')), "{:?}", before.1);
    let third = home.path().join("registry/src/two-again");
    write_all(
        &third,
        &[
            ("alpha-0.10.0/src/lib.rs", b"another text"),
            ("gamma-1.0.0/Cargo.toml", prose(5).as_bytes()),
            ("gamma-1.0.0/README.md", b"more"),
        ],
    );
    assert_eq!(files(&home), before);
}

#[test]
fn the_inventory_tells_registry_files_from_others() {
    let home = cargo_home();
    let registry = home.path().join("registry/src/one");
    let pinned = CurateConfig { crates: Some(vec!["alpha-0.9.0".to_owned()]), ..CurateConfig::default() };
    let inside = inventory_at(&pinned, Some(home.path().to_path_buf()), &()).unwrap();
    let outside = inventory(&config_for(&[&registry.join("{alpha-0.9.0,none}/**")]), &()).unwrap();
    let urls = |inventory: &Inventory| -> Vec<_> { inventory.files.iter().map(|f| f.url.clone()).collect() };
    assert_eq!(urls(&inside), urls(&outside));
    assert_ne!(inside.files[0].source, outside.files[0].source);
    // Curation groups by source, so the same files of other sources are another input.
    assert_ne!(inside.id, outside.id);
}

#[test]
fn hidden_files_and_build_folders_are_not_taken() {
    let text = prose(1);
    let root = folder(&[
        ("a.md", text.as_bytes()),
        (".git/config.md", text.as_bytes()),
        (".hidden.md", text.as_bytes()),
        ("project/Cargo.toml", b"x"),
        ("project/target/doc.md", text.as_bytes()),
        ("tagged/target/CACHEDIR.TAG", b"x"),
        ("src/target/mod.rs", text.as_bytes()),
    ]);
    let inventory = inventory(&config_for(&[root.path()]), &()).unwrap();
    let urls: Vec<_> = inventory.files.iter().map(|file| file.url.as_str()).collect();
    assert_eq!(urls, ["a.md", "project/Cargo.toml", "src/target/mod.rs"]);
    assert_eq!(inventory.passed["hidden entries or build folders"], 4);
}

#[test]
fn sources_may_be_globs_and_files() {
    let root = folder(&[
        ("docs/a.md", prose(1).as_bytes()),
        ("docs/deep/er/b.md", prose(2).as_bytes()),
        ("docs/c.txt", prose(3).as_bytes()),
        ("other/d.md", prose(4).as_bytes()),
        ("lone[1].md", prose(5).as_bytes()),
    ]);
    let urls = |source: &str| {
        let outcome = run(&config_for(&[&root.path().join(source)])).unwrap();
        outcome.kept_urls().join(" ")
    };
    assert_eq!(urls("docs/**/*.md"), "a.md deep/er/b.md");
    assert_eq!(urls("docs/*.md"), "a.md");
    assert_eq!(urls("{docs,other}/*.md"), "docs/a.md other/d.md");
    assert_eq!(urls("docs/c.txt"), "c.txt");
    assert_eq!(urls("lone[1].md"), "lone[1].md", "a file of that very name comes before the glob");
}

#[test]
fn equal_paths_of_two_sources_stay_two_documents() {
    let one = folder(&[("a.md", prose(1).as_bytes()), ("a.md#2", prose(9).as_bytes())]);
    let two = folder(&[("a.md", prose(2).as_bytes())]);
    let three = folder(&[("a.md", prose(3).as_bytes())]);
    let paths = [one.path(), two.path(), three.path()];
    let outcome = run(&config_for(&paths)).unwrap();
    assert_eq!(outcome.kept_urls(), ["a.md", "a.md#2", "a.md#3", "a.md#4"]);
    let turned = run(&config_for(&[paths[2], paths[0], paths[1]])).unwrap();
    assert_eq!(outcome.inventory.id, turned.inventory.id);
    assert_eq!(outcome.bytes, turned.bytes);
}

#[test]
fn the_cap_keeps_whole_sources_but_for_one() {
    let files: Vec<_> = (0..60).map(|i| (format!("source{}/doc{i}.md", i % 6), prose(i))).collect();
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_bytes())).collect();
    let root = folder(&files);
    let all = run(&config_for(&[root.path()])).unwrap();
    assert_eq!(all.rows.len(), 60);
    let limit = all.report.bytes_kept / 2;
    let config = CurateConfig {
        max_corpus_bytes: Some(limit),
        max_document_bytes: limit.min(1000),
        ..config_for(&[root.path()])
    };
    let capped = run(&config).unwrap();
    assert!(capped.report.bytes_kept <= limit && capped.report.bytes_kept > limit - 1000);
    assert!(capped.dropped.iter().all(|record| record.reason == "over_corpus_cap"));
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &capped.rows {
        *kept.entry(row[2].as_str()).or_default() += 1;
    }
    assert!(kept.values().filter(|&&count| count != 10).count() <= 1, "{kept:?}");
}

#[test]
fn one_document_is_a_corpus() {
    let root = folder(&[("only.txt", prose(1).as_bytes())]);
    let outcome = run(&config_for(&[root.path()])).unwrap();
    assert_eq!(outcome.rows.len(), 1);
    assert_eq!(outcome.rows[0][6], prose(1));
    assert_eq!(outcome.rows[0][2], "only.txt");
}

/// Adds up what it is told.
#[derive(Default)]
struct Sum(Mutex<Vec<(String, u64, u64)>>);

impl Progress for Sum {
    fn phase(&self, name: &str, total_bytes: u64) {
        self.0.lock().unwrap().push((name.to_owned(), total_bytes, 0));
    }

    fn advance(&self, bytes: u64) {
        self.0.lock().unwrap().last_mut().unwrap().2 += bytes;
    }
}

#[test]
fn progress_reaches_its_totals() {
    let root = folder(&[("a.md", prose(1).as_bytes()), ("b.md", prose(2).as_bytes()), ("c", b"")]);
    let (config, sum, out) = (config_for(&[root.path()]), Sum::default(), TempDir::new().unwrap());
    let inventory = inventory(&config, &sum).unwrap();
    curate(&config, &inventory, &out.path().join("new/folder"), &sum).unwrap();
    let phases = sum.0.into_inner().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase.0.as_str()).collect();
    assert_eq!(names[..3], ["inventory", "documents", "sketches"]);
    assert_eq!(names.last(), Some(&"write"));
    assert!(phases.iter().all(|phase| phase.1 == phase.2 && phase.1 > 0), "{phases:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_folder_is_accounted_for(
        files in prop::collection::btree_map("[a-z]{1,3}(/[a-z]{1,2}X)?(\\.(md|rs|bin))?", prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[a-z \n]{0,300}".prop_map(String::into_bytes),
            (0..4_usize).prop_map(|seed| prose(seed).into_bytes()),
        ], 0..12),
    ) {
        let root = folder(&[("zzzz.md", prose(99).as_bytes())]);
        for (path, content) in &files {
            let path = root.path().join(path);
            // A name may already be taken by a folder, or the other way round.
            if std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).is_ok() && !path.is_dir() {
                std::fs::write(&path, content).unwrap();
            }
        }
        // `run` checks every count; here also that kept text is the file's text.
        let outcome = run(&config_for(&[root.path()])).unwrap();
        for row in &outcome.rows {
            let content = std::fs::read_to_string(root.path().join(&row[1])).unwrap();
            prop_assert_eq!(crate::rules::normalise(&content), row[6].as_str());
        }
    }
}

#[test]
fn named_crates_pin_the_registry() {
    let home = cargo_home();
    let pinned = |names: &[&str]| CurateConfig {
        crates: Some(names.iter().map(|&name| name.to_owned()).collect()),
        ..CurateConfig::default()
    };
    let run = |names: &[&str]| run_at(&pinned(names), Some(home.path().to_path_buf()));
    let before = run(&["beta-kit-2.0.0-rc.1", "gamma-1.0.0"]).unwrap();
    assert!(before.rows.iter().all(|row| row[2] == "beta-kit" || row[2] == "gamma"));
    // What is fetched later changes nothing.
    write_all(&home.path().join("registry/src/two"), &[("delta-1.0.0/README.md", prose(9).as_bytes())]);
    let after = run(&["beta-kit-2.0.0-rc.1", "gamma-1.0.0"]).unwrap();
    assert_eq!(before.kept_urls(), after.kept_urls());
    let error = run(&["gamma-2.0.0"]).err().unwrap().to_string();
    assert!(error.contains("`gamma-2.0.0`") && error.contains("hint:"), "{error}");
}
