//! Whatever is wrong with an artifact is found and named.

use super::{key, stage};
use crate::{Artifact, ArtifactError, Begin, MANIFEST, Reason, RunDir};
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

fn made() -> (tempfile::TempDir, RunDir, Artifact) {
    let tmp = tempfile::tempdir().unwrap();
    let run = RunDir::create(tmp.path().join("run")).unwrap();
    let artifact = stage(&run, &key(1)).unwrap();
    (tmp, run, artifact)
}

/// Opens and verifies as somebody who does not trust the disk.
fn check(path: &Path) -> Result<(), ArtifactError> {
    Artifact::open(path, Some("words"))?.verify()
}

proptest! {
    #[test]
    fn one_flipped_bit_anywhere_is_found(
        name in prop::sample::select(vec![MANIFEST, "sub/words.txt"]),
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        static MADE: LazyLock<(tempfile::TempDir, RunDir, Artifact)> = LazyLock::new(made);
        let dir = MADE.2.path();
        prop_assert!(check(dir).is_ok());
        let path = dir.join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[at.index(good.len())] ^= 1 << bit;
        fs::write(&path, &bad).unwrap();
        let found = check(dir);
        fs::write(&path, &good).unwrap();
        let found = found.expect_err("the flip was not found");
        prop_assert!(found.to_string().contains(name), "{}", found);
    }
}

#[test]
fn a_flip_names_the_file_and_both_hashes() {
    let (_tmp, _run, artifact) = made();
    let path = artifact.file("sub/words.txt").unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[3] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let entry = artifact.manifest().files.iter().find(|f| f.path == "sub/words.txt").unwrap();
    match artifact.verify().unwrap_err() {
        ArtifactError::HashMismatch { path: named, expected, found } => {
            assert_eq!(named, path);
            assert_eq!(expected, entry.blake3);
            assert_eq!(found, blake3::hash(&bytes).to_hex().to_string());
        }
        other => panic!("{other}"),
    }
}

#[test]
fn missing_and_resized_files() {
    let (_tmp, run, artifact) = made();
    let path = artifact.file("sub/words.txt").unwrap();
    let good = fs::read(&path).unwrap();
    for bad in [&good[1..], &[&good[..], b"x"].concat()] {
        fs::write(&path, bad).unwrap();
        let error = artifact.file("sub/words.txt").unwrap_err();
        let sizes = (bad.len() as u64, good.len() as u64);
        assert!(
            matches!(&error, ArtifactError::WrongSize { found, expected, .. } if (*found, *expected) == sizes),
            "{error}"
        );
        let Begin::Work(draft) = run.begin("words", &key(1)).unwrap() else { panic!("taken as done") };
        assert!(matches!(draft.reason(), Reason::Damaged(what) if what.contains("words.txt")));
        draft.discard();
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(artifact.verify().unwrap_err(), ArtifactError::MissingFile { .. }));
    let again = stage(&run, &key(1)).unwrap();
    again.verify().unwrap();
    assert_eq!(fs::read(path).unwrap(), good, "a damaged artifact is rebuilt");
}

#[test]
fn a_damaged_manifest_is_rebuilt() {
    let (_tmp, run, artifact) = made();
    for bad in ["", "{}", "{\n  \"digest\": \"\"\n}\n"] {
        fs::write(artifact.path().join(MANIFEST), bad).unwrap();
        let error = Artifact::open(artifact.path(), None).unwrap_err();
        assert!(matches!(error, ArtifactError::BadManifest { .. }), "{error}");
        stage(&run, &key(1)).unwrap().verify().unwrap();
    }
}

#[test]
fn a_manifest_cannot_point_out_of_its_folder() {
    let (_tmp, _run, artifact) = made();
    for evil in ["../x", "/etc/passwd", "", "a/../../x"] {
        let mut manifest = artifact.manifest().clone();
        manifest.files[0].path = evil.into();
        manifest.write(artifact.path()).unwrap();
        let error = Artifact::open(artifact.path(), None).unwrap_err();
        assert!(matches!(error, ArtifactError::BadManifest { .. }), "{evil}: {error}");
    }
}

#[test]
fn wrong_kind_and_unlisted_file() {
    let (_tmp, run, artifact) = made();
    let error = run.artifact("words", "tokenizer").unwrap_err().to_string();
    assert!(error.contains("`words`, expected `tokenizer`"), "{error}");
    let error = artifact.file("nope").unwrap_err().to_string();
    assert!(error.contains("`nope`") && error.contains("`sub/words.txt`"), "{error}");
}

#[test]
fn not_an_artifact() {
    let (tmp, run, artifact) = made();
    let file = artifact.path().join("empty");
    for path in [tmp.path().join("nowhere"), file] {
        let error = Artifact::open(&path, None).unwrap_err();
        assert!(matches!(error, ArtifactError::NotAnArtifact { .. }), "{error}");
    }
    fs::remove_file(artifact.path().join(MANIFEST)).unwrap();
    let error = Artifact::open(artifact.path(), None).unwrap_err();
    assert!(matches!(&error, ArtifactError::NoManifest { files: 2, .. }), "{error}");
    assert!(!error.to_string().contains("resumes"), "{error}");
    let error = run.begin("words", &key(1)).unwrap_err();
    assert!(
        matches!(error, ArtifactError::InTheWay { .. }),
        "files of unknown origin are never replaced: {error}"
    );
}

#[test]
fn unfinished_says_how_far() {
    let (_tmp, run, _) = made();
    let Begin::Work(draft) = run.begin("other", &key(2)).unwrap() else { panic!("done") };
    fs::write(draft.path().join("a.bin"), [0; 10]).unwrap();
    draft.progress("step 3 of 9").unwrap();
    for path in [run.path().join("other"), draft.path().to_owned()] {
        let error = Artifact::open(&path, None).unwrap_err().to_string();
        for part in ["unfinished", "1 files, 10 bytes", "step 3 of 9", "run the same recipe again", "other"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
