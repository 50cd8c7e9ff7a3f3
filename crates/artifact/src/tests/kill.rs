//! Stops before every single change to the disk, and a full disk there.

use super::{key, names, stage, verified_stage};
use crate::failpoint::Stop;
use crate::{Artifact, ArtifactError, Begin, RunDir, fsutil};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

const KILL: ErrorKind = ErrorKind::Interrupted;

/// Every file of a finished stage but for the manifest, whose provenance holds the time.
fn contents(artifact: &Artifact) -> BTreeMap<String, Vec<u8>> {
    artifact.verify().unwrap();
    let files = &artifact.manifest().files;
    files.iter().map(|f| (f.path.clone(), fs::read(artifact.path().join(&f.path)).unwrap())).collect()
}

/// Runs a stage with at most this many changes to the disk; whether that was enough.
fn attempt(dir: &Path, n: u64, allowed: usize, kind: ErrorKind) -> Result<Artifact, ArtifactError> {
    let run = RunDir::create(dir).unwrap();
    let _stop = Stop::after(allowed, kind);
    stage(&run, &key(n))
}

/// What must hold on disk at any moment.
fn nothing_half(dir: &Path, allowed_ids: &[String]) {
    if let Ok(artifact) = Artifact::open(dir.join("words"), None) {
        artifact.verify().unwrap();
        assert!(allowed_ids.contains(&artifact.id().to_owned()));
    }
}

/// Kills a stage before its step `first`, its second attempt before step `second`, then lets the third finish.
/// Returns whether the first attempt ran to its end.
fn killed_twice(old: Option<u64>, first: usize, second: usize) -> bool {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("run");
    if let Some(old) = old {
        stage(&RunDir::create(&dir).unwrap(), &key(old)).unwrap();
    }
    let ids: Vec<String> = old.into_iter().chain([2]).map(|n| key(n).id()).collect();
    let ended = attempt(&dir, 2, first, KILL).is_ok();
    nothing_half(&dir, &ids);
    drop(attempt(&dir, 2, second, KILL));
    nothing_half(&dir, &ids);
    let done = stage(&RunDir::create(&dir).unwrap(), &key(2)).unwrap();
    assert_eq!(done.id(), key(2).id());
    let clean = tempfile::tempdir().unwrap();
    let reference = stage(&RunDir::create(clean.path()).unwrap(), &key(2)).unwrap();
    assert_eq!(contents(&done), contents(&reference), "killed at {first}, then at {second}");
    assert_eq!(done.manifest().files, reference.manifest().files);
    assert_eq!(names(&dir), [".lock", "words"], "leftovers after kills at {first}, then at {second}");
    ended
}

/// Runs `check` for 0, 1, 2 … steps until it says that the work ran to its end, which takes more than `least`.
fn every_step(least: usize, mut check: impl FnMut(usize) -> bool) {
    let steps = (0..200).find(|&n| check(n)).expect("ends within 200 steps");
    assert!(steps > least, "only {steps} steps: the fail points are not reached");
}

#[test]
fn two_kills_of_a_new_stage() {
    every_step(20, |first| {
        for second in (first % 5..40).step_by(5) {
            killed_twice(None, first, second);
        }
        killed_twice(None, first, 200)
    });
}

#[test]
fn two_kills_of_a_replacement() {
    every_step(20, |first| {
        for second in (first % 5..40).step_by(5) {
            killed_twice(Some(1), first, second);
        }
        killed_twice(Some(1), first, 200)
    });
}

#[test]
fn the_older_artifact_stays_until_the_newer_is_there() {
    every_step(20, |first| {
        let tmp = tempfile::tempdir().unwrap();
        let old = stage(&RunDir::create(tmp.path()).unwrap(), &key(1)).unwrap();
        let kept = contents(&old);
        let ended = attempt(tmp.path(), 2, first, KILL).is_ok();
        let run = RunDir::create(tmp.path()).unwrap();
        // A third recipe, which has to be worked on, makes `begin` tidy up and leave what can be read.
        let third = run.begin("words", &key(3)).unwrap();
        assert!(matches!(third, Begin::Work(_)));
        let readable = run.artifact("words", "words").unwrap();
        if readable.id() == key(1).id() {
            assert_eq!(contents(&readable), kept);
        } else {
            assert_eq!(readable.id(), key(2).id());
            readable.verify().unwrap();
        }
        ended
    });
}

/// Changes a byte of the stage's file and leaves its size.
fn flip(dir: &Path) {
    let path = dir.join("words/sub/words.txt");
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn two_kills_of_a_rebuilding_of_what_is_damaged() {
    let reference = tempfile::tempdir().unwrap();
    let reference = contents(&stage(&RunDir::create(reference.path()).unwrap(), &key(2)).unwrap());
    every_step(20, |first| {
        for second in (first % 5..40).step_by(5) {
            let tmp = tempfile::tempdir().unwrap();
            let dir = tmp.path().join("run");
            let attempt = |allowed| {
                let run = RunDir::create(&dir).unwrap();
                let _stop = Stop::after(allowed, KILL);
                verified_stage(&run, &key(2))
            };
            stage(&RunDir::create(&dir).unwrap(), &key(2)).unwrap();
            flip(&dir);
            for allowed in [first, second] {
                drop(attempt(allowed));
                // The damaged folder, or the new one, is there whatever happened.
                let there =
                    ["words", "words.old"].iter().any(|name| dir.join(name).join("manifest.json").is_file());
                assert!(there, "nothing is left after kills at {first}, then at {second}");
            }
            let done = attempt(usize::MAX).unwrap();
            assert_eq!(contents(&done), reference, "killed at {first}, then at {second}");
            assert_eq!(names(&dir), [".lock", "words"], "leftovers after kills at {first}, then at {second}");
        }
        completes_rebuilding(first)
    });
}

/// Whether this many steps are enough to rebuild a damaged stage.
fn completes_rebuilding(allowed: usize) -> bool {
    let tmp = tempfile::tempdir().unwrap();
    let run = RunDir::create(tmp.path()).unwrap();
    stage(&run, &key(2)).unwrap();
    flip(tmp.path());
    let _stop = Stop::after(allowed, KILL);
    verified_stage(&run, &key(2)).is_ok()
}

#[test]
fn a_draft_half_removed_is_not_resumed() {
    // The first name sorts before every other, so it goes first if nothing sees to the order.
    let files = ["!first", "data", "resume-not"];
    every_step(5, |allowed| {
        let tmp = tempfile::tempdir().unwrap();
        let run = RunDir::create(tmp.path()).unwrap();
        let Begin::Work(draft) = run.begin("words", &key(1)).unwrap() else { panic!("done") };
        files.iter().for_each(|name| fs::write(draft.path().join(name), "x").unwrap());
        let stop = Stop::after(allowed, KILL);
        let ended = run.begin("words", &key(2)).is_ok();
        drop(stop);
        let Begin::Work(draft) = run.begin("words", &key(1)).unwrap() else { panic!("done") };
        let left = names(draft.path());
        if draft.resumed() {
            assert!(files.iter().all(|name| left.contains(&(*name).to_owned())), "holes: {left:?}");
        } else {
            assert_eq!(left, [".draft.json"]);
        }
        ended
    });
}

#[test]
fn a_full_disk_is_said_and_survived() {
    every_step(20, |first| {
        let tmp = tempfile::tempdir().unwrap();
        let ended = match attempt(tmp.path(), 2, first, ErrorKind::StorageFull) {
            Ok(_) => true,
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(&error, ArtifactError::DiskFull { .. }), "{text}");
                assert!(text.contains("disk full") && text.contains("words"), "{text}");
                false
            }
        };
        stage(&RunDir::create(tmp.path()).unwrap(), &key(2)).unwrap().verify().unwrap();
        ended
    });
}

#[test]
fn a_really_full_device() {
    let path = Path::new("/dev/full");
    let Ok(file) = fs::File::options().write(true).open(path) else {
        println!("skipped: this system has no /dev/full");
        return;
    };
    let error = fsutil::write_synced(file, path, b"some bytes").unwrap_err();
    assert!(matches!(error, ArtifactError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("/dev/full"), "{error}");
}

#[test]
fn a_killed_write_leaves_the_old_bytes() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("file");
    fsutil::write_atomic(&path, b"old").unwrap();
    for allowed in 0..3 {
        let stop = Stop::after(allowed, KILL);
        assert!(fsutil::write_atomic(&path, b"newer").is_err());
        drop(stop);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
    fsutil::write_atomic(&path, b"newer").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"newer");
    assert_eq!(names(tmp.path()), ["file"]);
}

#[test]
fn a_finished_draft_that_was_not_renamed_is_published() {
    let tmp = tempfile::tempdir().unwrap();
    let run = RunDir::create(tmp.path()).unwrap();
    let done = stage(&run, &key(1)).unwrap();
    let partial = run.path().join("words.partial");
    fs::rename(done.path(), &partial).unwrap();
    let error = run.artifact("words", "words").unwrap_err().to_string();
    assert!(error.contains("only the last rename is missing"), "{error}");
    assert!(matches!(run.begin("words", &key(1)).unwrap(), Begin::Done(_)));
    // The same with a file cut short is not.
    fs::rename(done.path(), &partial).unwrap();
    fs::write(partial.join("sub/words.txt"), "short").unwrap();
    let Begin::Work(draft) = run.begin("words", &key(1)).unwrap() else { panic!("half taken as done") };
    assert!(!draft.resumed());
    assert_eq!(names(draft.path()), [".draft.json"]);
}

#[test]
fn two_writers_of_one_file_do_not_meet() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("model");
    let fill = |bytes: &'static [u8]| {
        fsutil::write_atomic_with(&path, |out| {
            std::io::Write::write_all(out, bytes).map_err(|e| ArtifactError::io("write", &path, e))
        })
    };
    let temp = fsutil::temporary(&path).unwrap();
    fs::write(&temp, b"half of what another").unwrap();
    let other = fs::File::open(&temp).unwrap();
    other.lock().unwrap();
    assert!(fill(b"ours").unwrap_err().to_string().contains("another process is writing"));
    assert_eq!(fs::read(&temp).unwrap(), b"half of what another");
    drop(other);
    // What a killed writer left is written over, however long it is.
    fill(b"ours").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"ours");
    assert!(!temp.exists());
}
