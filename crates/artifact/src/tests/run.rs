//! Skip, resume, rebuild, lock, lineage.

use super::{key, names, stage};
use crate::{ArtifactError, Begin, Draft, InputRef, MANIFEST, Outcome, Reason, RunDir, StageKey, why};
use std::collections::BTreeMap;
use std::fs;

fn folder() -> (tempfile::TempDir, RunDir) {
    let tmp = tempfile::tempdir().unwrap();
    let run = RunDir::create(tmp.path().join("a/run")).unwrap();
    (tmp, run)
}

fn work(begin: Begin) -> Draft {
    match begin {
        Begin::Work(draft) => draft,
        Begin::Done(artifact) => panic!("`{}` is done", artifact.path().display()),
    }
}

#[test]
fn the_same_id_is_skipped_and_another_rebuilt() {
    let (_tmp, run) = folder();
    let first = stage(&run, &key(1)).unwrap();
    let when = fs::metadata(first.path().join(MANIFEST)).unwrap().modified().unwrap();
    let again = stage(&run, &key(1)).unwrap();
    assert_eq!(fs::metadata(again.path().join(MANIFEST)).unwrap().modified().unwrap(), when);
    let draft = work(run.begin("words", &key(2)).unwrap());
    assert_eq!(draft.reason(), &Reason::Changed(key(1).id()));
    run.artifact("words", "words").unwrap().verify().unwrap();
    drop(draft);
    let second = stage(&run, &key(2)).unwrap();
    assert_eq!((second.id(), second.path()), (key(2).id().as_str(), first.path()));
    assert_eq!(names(run.path()), [".lock", "words"]);
}

#[test]
fn the_manifest_tells_all() {
    let (_tmp, run) = folder();
    let artifact = stage(&run, &key(1)).unwrap();
    let manifest = artifact.manifest();
    let files: Vec<_> = manifest.files.iter().map(|f| (f.path.as_str(), f.rows)).collect();
    assert_eq!(files, [("empty", None), ("sub/words.txt", Some(3))]);
    assert_eq!((manifest.kind.as_str(), manifest.stage.as_str(), manifest.schema), ("words", "words", 1));
    assert_eq!(manifest.recipe, key(1).recipe);
    assert_eq!(manifest.metrics["loss"], 0.1);
    assert_eq!((manifest.provenance.seed, manifest.provenance.wall_seconds), (Some(5), 1.5));
    assert!(manifest.provenance.rustc.starts_with("rustc "));
    assert_eq!(names(artifact.path()), ["empty", MANIFEST, "sub"], "no work state is left");
    assert_eq!(crate::Artifact::open(artifact.path(), None).unwrap().manifest(), manifest);
}

#[test]
fn a_draft_is_resumed_by_its_own_id_only() {
    let (_tmp, run) = folder();
    let draft = work(run.begin("words", &key(1)).unwrap());
    assert!(!draft.resumed());
    fs::create_dir(draft.path().join("resume")).unwrap();
    fs::write(draft.path().join("resume/step"), "7").unwrap();
    fs::write(draft.path().join("resume/.step.tmp"), "cut sh").unwrap();
    drop(draft);
    let draft = work(run.begin("words", &key(1)).unwrap());
    assert!(draft.resumed());
    assert_eq!(names(&draft.path().join("resume")), ["step"]);
    drop(draft);
    let draft = work(run.begin("words", &key(2)).unwrap());
    assert!(!draft.resumed());
    assert_eq!(names(draft.path()), [".draft.json"]);
    let path = draft.path().to_owned();
    draft.discard();
    assert!(!path.exists());
}

#[test]
fn a_draft_survives_a_look_at_what_is_done() {
    let (_tmp, run) = folder();
    stage(&run, &key(1)).unwrap();
    drop(work(run.begin("words", &key(2)).unwrap()));
    assert!(matches!(run.begin("words", &key(1)).unwrap(), Begin::Done(_)));
    assert!(work(run.begin("words", &key(2)).unwrap()).resumed());
}

#[test]
fn what_is_damaged_stays_until_it_is_made_again() {
    let (_tmp, run) = folder();
    let made = stage(&run, &key(1)).unwrap();
    let file = made.file("sub/words.txt").unwrap();
    let good = fs::read(&file).unwrap();
    let bad: Vec<u8> = good.iter().map(|b| b ^ 1).collect();
    fs::write(&file, &bad).unwrap();
    assert!(made.verify().unwrap_err().is_damage());
    // Sizes are right, so a look that does not hash takes it as done.
    assert!(matches!(run.begin("words", &key(1)).unwrap(), Begin::Done(_)));
    let draft = work(run.begin_again("words", &key(1)).unwrap());
    assert!(matches!(draft.reason(), Reason::Damaged(what) if what.contains("words")));
    fs::create_dir(draft.path().join("resume")).unwrap();
    fs::write(draft.path().join("resume/step"), "7").unwrap();
    drop(draft);
    assert_eq!(fs::read(&file).unwrap(), bad, "it stays where it is");

    // Interrupted, the work goes on, whichever way it is begun.
    for again in [false, true] {
        let begun = if again { run.begin_again("words", &key(1)) } else { run.begin("words", &key(1)) };
        let draft = work(begun.unwrap());
        assert!(draft.resumed() && draft.path().join("resume/step").is_file());
    }
    // Finished and not yet renamed, it is published.
    let twin = RunDir::create(run.path().join("twin")).unwrap();
    let finished = stage(&twin, &key(1)).unwrap();
    let partial = run.path().join("words.partial");
    fs::remove_dir_all(&partial).unwrap();
    fs::rename(finished.path(), &partial).unwrap();
    let Begin::Done(artifact) = run.begin_again("words", &key(1)).unwrap() else { panic!("not published") };
    artifact.verify().unwrap();
    assert_eq!(fs::read(&file).unwrap(), good);

    // Whole again, it makes the draft superfluous.
    drop(work(run.begin_again("words", &key(1)).unwrap()));
    assert!(matches!(run.begin("words", &key(1)).unwrap(), Begin::Done(_)));
    assert!(!partial.exists());
}

#[test]
fn only_changed_bytes_are_damage() {
    let (_tmp, run) = folder();
    let made = stage(&run, &key(1)).unwrap();
    assert!(!run.artifact("words", "tokenizer").unwrap_err().is_damage());
    assert!(!run.artifact("nowhere", "words").unwrap_err().is_damage());
    fs::write(made.path().join("sub/words.txt"), "short").unwrap();
    assert!(made.verify().unwrap_err().is_damage());
    fs::remove_file(made.path().join("sub/words.txt")).unwrap();
    assert!(made.verify().unwrap_err().is_damage());
    fs::write(made.path().join(MANIFEST), "{}").unwrap();
    assert!(run.artifact("words", "words").unwrap_err().is_damage());
}

#[test]
fn drafts_that_cannot_be_finished() {
    let (_tmp, run) = folder();
    let fails = |fill: &dyn Fn(&std::path::Path), rows: &[&str], says: &str| {
        let draft = work(run.begin("bad", &key(1)).unwrap());
        fill(draft.path());
        let path = draft.path().to_owned();
        let rows: BTreeMap<String, u64> = rows.iter().map(|r| ((*r).to_owned(), 1)).collect();
        let error = draft.finish(Outcome { rows, ..Outcome::default() }).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(run.artifact("bad", "words").is_err());
        fs::remove_dir_all(path).unwrap();
    };
    fails(&|_| (), &[], "wrote no files");
    fails(&|d| fs::write(d.join("a"), "x").unwrap(), &["b"], "`b`");
    fails(&|d| fs::write(d.join(MANIFEST), "x").unwrap(), &[], "reserved");
    #[cfg(unix)]
    fails(&|d| std::os::unix::fs::symlink("/etc/hosts", d.join("link")).unwrap(), &[], "not a plain file");
}

#[test]
fn one_process_at_a_time() {
    let (_tmp, run) = folder();
    let path = run.path().to_owned();
    let refused = || match RunDir::create(&path).unwrap_err() {
        error @ ArtifactError::Locked { .. } => error.to_string(),
        other => panic!("{other}"),
    };
    let text = refused();
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    let draft = work(run.begin("words", &key(1)).unwrap());
    drop(run);
    refused();
    drop(draft);
    RunDir::create(&path).unwrap();
}

#[test]
fn reading_needs_no_lock_and_begins_nothing() {
    let (tmp, run) = folder();
    stage(&run, &key(1)).unwrap();
    let reader = RunDir::open_readonly(run.path()).unwrap();
    reader.artifact("words", "words").unwrap();
    assert!(matches!(reader.begin("words", &key(1)).unwrap_err(), ArtifactError::ReadOnly { .. }));
    assert!(RunDir::open_readonly(tmp.path().join("nowhere")).is_err());
}

#[test]
fn a_folder_in_which_nothing_was_made_goes_again() {
    let (tmp, run) = folder();
    let path = run.path().to_owned();
    drop(run);
    assert!(!path.exists());
    let run = RunDir::create(&path).unwrap();
    let draft = work(run.begin("words", &key(1)).unwrap());
    drop(run);
    assert!(
        matches!(RunDir::create(&path).unwrap_err(), ArtifactError::Locked { .. }),
        "the draft has the lock"
    );
    draft.discard();
    assert!(!path.exists());
    // What a killed process left, but nothing that was there before.
    fs::create_dir(&path).unwrap();
    fs::write(path.join(".lock"), "7").unwrap();
    drop(RunDir::create(&path).unwrap());
    assert!(!path.exists());
    drop(RunDir::create(tmp.path()).unwrap());
    assert_eq!(names(tmp.path()), [".lock", "a"]);
    fs::create_dir(&path).unwrap();
    drop(RunDir::create(&path).unwrap());
    assert_eq!(names(&path), [".lock"]);
}

#[test]
fn names_and_things_in_the_way() {
    let (_tmp, run) = folder();
    for bad in ["", "a.b", "a/b", "..", "words.partial"] {
        assert!(matches!(run.begin(bad, &key(1)).unwrap_err(), ArtifactError::BadStageName { .. }), "{bad}");
    }
    fs::write(run.path().join("words"), "a file").unwrap();
    assert!(matches!(run.begin("words", &key(1)).unwrap_err(), ArtifactError::InTheWay { .. }));
    fs::create_dir(run.path().join("mine")).unwrap();
    drop(work(run.begin("mine", &key(1)).unwrap()));
    fs::write(run.path().join("mine/thesis.txt"), "years of work").unwrap();
    let error = run.begin("mine", &key(1)).unwrap_err();
    assert!(matches!(error, ArtifactError::InTheWay { .. }), "{error}");
}

#[test]
fn lineage_is_a_tree() {
    let (_tmp, run) = folder();
    let make = |name: &str, kind: &str, inputs: Vec<InputRef>| {
        let key = StageKey { kind: kind.into(), schema: 1, recipe: serde_json::json!({}), inputs };
        let draft = work(run.begin(name, &key).unwrap());
        fs::write(draft.path().join("data"), name).unwrap();
        draft.finish(Outcome::default()).unwrap()
    };
    let source = InputRef { name: "source".into(), kind: "files".into(), id: crate::fingerprint(b"source") };
    let corpus = make("curate", "corpus", vec![source.clone()]);
    let tokenizer = make("tokenizer", "tokenizer", vec![corpus.as_input("corpus")]);
    let model = make("pretrain", "model", vec![tokenizer.as_input("tokenizer"), corpus.as_input("corpus")]);
    let tree = why(model.path()).unwrap();
    let expected = format!(
        "pretrain [model] {}  stage `pretrain`, 1 files, 8 bytes, 0.0 s\n\
        \x20 tokenizer [tokenizer] {}  stage `tokenizer`, 1 files, 9 bytes, 0.0 s\n\
        \x20   corpus [corpus] {}  stage `curate`, 1 files, 6 bytes, 0.0 s\n\
        \x20     source [files] {}  (from outside the run)\n\
        \x20 corpus [corpus] {}  (see above)\n",
        model.id(),
        tokenizer.id(),
        corpus.id(),
        source.id,
        corpus.id(),
    );
    assert_eq!(tree.to_string(), expected);
    let json = serde_json::to_value(&tree).unwrap();
    assert_eq!(json["inputs"][0]["inputs"][0]["manifest"]["stage"], "curate");
    // An input that is damaged is a leaf; the artifact itself must open.
    fs::write(tokenizer.path().join(MANIFEST), "x").unwrap();
    assert!(why(model.path()).unwrap().inputs[0].manifest.is_none());
    assert!(why(tokenizer.path()).is_err());
}
