//! The ladder of restarts, and the remote tier.

use std::path::{Path, PathBuf};

use llamero_tensor::DType;

use super::{STEPS, alone, calm, copy_all, every_change, every_step, on_mesh, steps};
use crate::checkpoint::Checkpoints;
use crate::checkpoint::failpoint::stop_after;
use crate::checkpoint::format::{self, STATE_HASH};
use crate::checkpoint::remote::Remote;

/// A folder of checkpoints and a second place.
struct Places {
    tmp: tempfile::TempDir,
}

impl Places {
    /// After a run until step 4, each with the newest two, or with what the uploads had time for.
    fn filled() -> Self {
        let places = Self { tmp: tempfile::tempdir().unwrap() };
        // One at a time, so that none is passed over for a newer one.
        for until in 1..5 {
            alone(&places.checkpoints(), until).0.unwrap_err();
        }
        assert_eq!((steps(&places.local()), steps(&places.remote())), (vec![3, 4], vec![3, 4]));
        places
    }

    fn local(&self) -> PathBuf {
        self.tmp.path().join("local")
    }

    fn remote(&self) -> PathBuf {
        self.tmp.path().join("far/away")
    }

    fn checkpoints(&self) -> Checkpoints {
        let url = format!("file://{}/", self.remote().display());
        every_step(&self.local()).remote(&url).unwrap()
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// A damage, the step that is gone on from after it, and what is said of each checkpoint passed over.
type Rung = (&'static str, fn(&Places), Option<u64>, &'static [&'static str]);

fn rungs() -> [Rung; 9] {
    [
        ("nothing", |_| (), Some(4), &[]),
        (
            "the newest here is damaged: the other copy",
            |p| flip(&p.local().join("step-0000000004/rank-0000.f32")),
            Some(4),
            &["local/step-0000000004"],
        ),
        (
            "both newest are damaged: the older here",
            |p| {
                flip(&p.local().join("step-0000000004/rank-0000.f32"));
                flip(&p.remote().join("step-0000000004/rank-0000.f32"));
            },
            Some(3),
            &["local/step-0000000004", "far/away/step-0000000004"],
        ),
        ("all here is lost: the newest there", |p| std::fs::remove_dir_all(p.local()).unwrap(), Some(4), &[]),
        (
            "and the newest there is half: the older there",
            |p| {
                std::fs::remove_dir_all(p.local()).unwrap();
                std::fs::remove_file(p.remote().join("step-0000000004").join(STATE_HASH)).unwrap();
            },
            Some(3),
            &["far/away/step-0000000004"],
        ),
        (
            "or has lost a file",
            |p| {
                std::fs::remove_dir_all(p.local()).unwrap();
                std::fs::remove_file(p.remote().join("step-0000000004/rank-0000.f32")).unwrap();
            },
            Some(3),
            &["far/away/step-0000000004"],
        ),
        (
            "or says nonsense",
            |p| {
                std::fs::remove_dir_all(p.local()).unwrap();
                flip(&p.remote().join("step-0000000004/state.json"));
            },
            Some(3),
            &["far/away/step-0000000004"],
        ),
        (
            "the store is out of reach: what is here",
            |p| {
                std::fs::remove_dir_all(p.remote().parent().unwrap()).unwrap();
                std::fs::write(p.remote().parent().unwrap(), b"in the way").unwrap();
            },
            Some(4),
            &["far/away"],
        ),
        (
            "nothing is left anywhere: the start",
            |p| {
                std::fs::remove_dir_all(p.local()).unwrap();
                std::fs::remove_dir_all(p.remote()).unwrap();
            },
            None,
            &[],
        ),
    ]
}

#[test]
fn the_ladder_of_restarts() {
    let (history, weights) = calm();
    for (what, damage, resumed_at, named) in rungs() {
        let places = Places::filled();
        damage(&places);
        let (report, found, seen) = alone(&places.checkpoints(), STEPS);
        let report = report.unwrap();
        assert_eq!(report.resumed_at, resumed_at, "{what}: {:?}", report.remarks);
        assert_eq!(report.history, history, "{what}");
        assert!(found == weights, "{what}");
        assert_eq!(report.remarks, seen.remarks, "{what}: what was not told");
        let passed_over =
            report.remarks.iter().filter(|r| r.contains("passed over") || r.contains("left out")).count();
        assert_eq!(passed_over, named.len(), "{what}: {:?}", report.remarks);
        for name in named {
            assert!(
                report.remarks.iter().any(|remark| remark.contains(name)),
                "{what}: {:?}",
                report.remarks
            );
        }
        let unreachable = what.contains("reach");
        assert_eq!(steps(&places.local()).last(), Some(&5), "{what}");
        if !unreachable {
            assert_eq!(steps(&places.remote()).last(), Some(&5), "{what}");
        }
    }
    // Where there is something, but nothing whole: only when asked.
    let places = Places::filled();
    for dir in [places.local(), places.remote()] {
        for step in [3, 4] {
            flip(&dir.join(format::folder(step)).join("rank-0000.f32"));
        }
    }
    let error = alone(&places.checkpoints(), STEPS).0.unwrap_err();
    assert_eq!(error.to_string().matches(&format::folder(4)).count(), 2, "{error}");
    let report = alone(&places.checkpoints().start_over(true), STEPS).0.unwrap();
    assert_eq!((report.resumed_at, report.history), (None, history));
}

#[test]
fn a_kill_between_any_two_changes_of_the_remote_tier_leaves_a_checkpoint_that_loads() {
    let places = Places::filled();
    alone(&every_step(&places.local()), 5).0.unwrap_err();
    every_change(10, |n| {
        let tmp = tempfile::tempdir().unwrap();
        copy_all(&places.remote(), tmp.path());
        let remote = Remote::open(&format!("file://{}", tmp.path().display())).unwrap();
        stop_after(Some(n));
        let uploaded = remote.upload(&places.local().join(format::folder(5)), 5, 2);
        stop_after(None);
        let stored = remote.list().unwrap();
        let whole: Vec<u64> = stored.iter().filter(|s| s.whole).map(|s| s.step).collect();
        assert!(whole.len() >= 2 && whole.last() >= Some(&4), "stopped after {n} changes: {stored:?}");
        let fetched = tempfile::tempdir().unwrap();
        for step in &whole {
            remote.fetch(*step, fetched.path()).unwrap();
        }
        assert_eq!(steps(fetched.path()), whole);
        uploaded.is_ok() && stored.len() == 2
    });
}

#[test]
fn all_ranks_of_a_mesh_go_on_from_the_remote_tier() {
    let places = Places { tmp: tempfile::tempdir().unwrap() };
    let expected = on_mesh("dp=2,pp=2", DType::F32, &places.checkpoints(), STEPS, &|_, _| ());
    let places = Places { tmp: tempfile::tempdir().unwrap() };
    on_mesh("dp=2,pp=2", DType::F32, &places.checkpoints(), 3, &|_, _| ());
    std::fs::remove_dir_all(places.local()).unwrap();
    let found = on_mesh("dp=2,pp=2", DType::F32, &places.checkpoints(), STEPS, &|_, _| ());
    for ((found, weights, _), (expected, expected_weights, _)) in found.into_iter().zip(expected) {
        let (found, expected) = (found.unwrap(), expected.unwrap());
        assert!(found.resumed_at.is_some());
        assert_eq!(found.history, expected.history);
        assert!(weights == expected_weights);
    }
}

#[test]
fn what_is_no_remote_place_is_said() {
    let other = if cfg!(feature = "cloud") { "nowhere://bucket/x" } else { "s3://bucket/x" };
    for url in ["file://x", other] {
        let Err(error) = Checkpoints::new("x").remote(url) else { panic!("{url} was taken") };
        assert!(error.to_string().contains(url), "{error}");
    }
}
