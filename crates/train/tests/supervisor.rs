//! The supervisor over jobs that are a few lines of shell.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use llamero_train::{Chaos, Ended, Entry, Event, Goodput, Hosts, Ledger, Orders, Strike, Supervisor};

/// Supervises a script whose `$LEDGER` is the ledger; returns how it ended, what was said and what is in the ledger.
fn supervise(script: &str, stop: bool) -> (Ended, Vec<String>, Vec<Entry>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(dir.path().join("ledger.jsonl"));
    let supervisor = Supervisor {
        ledger: ledger.clone(),
        hang_after: Duration::from_secs(1),
        restarts: 10,
        chaos: None,
        hosts: Hosts::default(),
    };
    let note = r#"note() { echo '{"at":'$(date +%s.%N)','"$1"'}' >> "$LEDGER"; }"#;
    let mut job = |_: &[&str]| {
        let mut sh = Command::new("sh");
        sh.arg("-c").arg(format!("{note}\n{script}")).env("LEDGER", ledger.path()).current_dir(dir.path());
        sh
    };
    let mut said = Vec::new();
    let stop = AtomicBool::new(stop);
    let ended = supervisor.run(&mut job, &stop, &mut |line| said.push(line.to_owned())).unwrap();
    (ended, said, ledger.read().unwrap())
}

const START: &str = r#"
note '"event":"launched","makes":"a","ranks":1'
note '"event":"ready","step":0'
"#;

#[test]
fn a_job_that_gets_nowhere_is_given_up_after_three() {
    let script = format!("{START}\nnote '\"event\":\"step\",\"step\":4'\nkill -9 $$");
    let (ended, said, entries) = supervise(&script, false);
    let Ended::GaveUp(failures) = ended else { panic!("{ended:?}") };
    // The first made a step that was new.
    assert_eq!((failures.len(), said.len()), (4, 3), "{failures:?}");
    assert!(failures.iter().all(|f| f.contains("after 5 steps") && f.contains("signal: 9")), "{failures:?}");
    let sum = Goodput::of(&entries);
    assert_eq!(sum.failures, 4);
}

#[test]
fn a_job_that_hangs_is_killed_and_the_next_goes_on() {
    let script = format!("{START}\nif [ -e second ]; then exit 0; fi\ntouch second\nexec sleep 1000");
    let (ended, said, entries) = supervise(&script, false);
    assert_eq!(ended, Ended::Done);
    assert!(said[0].contains("no sign of life"), "{said:?}");
    assert!(entries.iter().any(|entry| matches!(entry.event, Event::Failed { hung: true, .. })));
    let sum = Goodput::of(&entries);
    assert!(sum.stalled >= 0.9 && sum.failures == 1, "{sum:?}");
}

#[test]
fn a_signal_is_passed_on_and_nothing_is_started_after_it() {
    // Whether the job leaves by itself or the signal ends it.
    for script in
        [format!("trap 'exit 1' USR1\n{START}\nwhile :; do sleep 0.05; done"), "exec sleep 1000".into()]
    {
        let (ended, said, _) = supervise(&script, true);
        assert_eq!(ended, Ended::Left(1));
        assert!(said.is_empty(), "{said:?}");
    }
}

#[test]
fn wrong_usage_and_what_never_trained_end_at_once() {
    for (script, code) in [("exit 2", 2), ("exit 1", 1)] {
        assert_eq!(supervise(script, false).0, Ended::Left(code));
    }
}

#[test]
fn a_machine_whose_rank_is_always_at_fault_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(dir.path().join("ledger.jsonl"));
    let hosts = Hosts::new(["good", "bad", "spare"].map(String::from), 1);
    let hang_after = Duration::from_secs(60);
    let supervisor = Supervisor { ledger: ledger.clone(), hang_after, restarts: 10, chaos: None, hosts };
    let mut launched = Vec::new();
    let mut step = 0;
    let mut job = |hosts: &[&str]| {
        launched.push(hosts.join(","));
        step += 1;
        ledger.note(Event::Launched { makes: "a".into(), ranks: 4 }).unwrap();
        ledger.note(Event::Ready { step }).unwrap();
        ledger.note(Event::Step { step }).unwrap();
        let mut sh = Command::new("sh");
        // Its ranks are the third and the fourth of four.
        let note = r#"echo '{"at":1,"event":"blamed","rank":3,"by":2,"reason":"bits"}' >> "$LEDGER"; exit 1"#;
        sh.arg("-c").arg(if hosts.contains(&"bad") { note } else { "exit 0" }).env("LEDGER", ledger.path());
        sh
    };
    let mut said = Vec::new();
    let stop = AtomicBool::new(false);
    let ended = supervisor.run(&mut job, &stop, &mut |line| said.push(line.to_owned())).unwrap();
    assert_eq!(ended, Ended::Done);
    assert_eq!(launched, ["good,bad", "good,bad", "good,bad", "good,spare"]);
    assert!(said.iter().any(|line| line.contains("`bad` (rank 3)") && line.contains("left out")), "{said:?}");
}

#[test]
fn a_job_that_was_asked_to_stop_by_somebody_else_is_not_started_again() {
    let script = format!(
        "{START}\nnote '\"event\":\"step\",\"step\":0'\nnote '\"event\":\"stopped\",\"step\":1'\nexit 1"
    );
    let (ended, said, _) = supervise(&script, false);
    assert_eq!(ended, Ended::Left(1));
    assert!(said.is_empty(), "{said:?}");
}

#[test]
fn after_the_last_step_a_job_may_take_its_time() {
    let script = format!("{START}\nnote '\"event\":\"trained\",\"step\":1'\nsleep 2");
    let (ended, said, entries) = supervise(&script, false);
    assert_eq!(ended, Ended::Done);
    assert!(said.is_empty() && !entries.iter().any(|e| matches!(e.event, Event::Failed { .. })), "{said:?}");
}

/// A job may make its last step just before it is stopped for ever: what it notes then must not give it time without end.
#[test]
fn a_job_that_is_frozen_after_its_last_step_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(dir.path().join("ledger.jsonl"));
    let done = dir.path().join("done");
    let orders = Orders::new(dir.path().join("orders"));
    let chaos = Chaos::new(1, Duration::from_millis(30), dir.path().join("none"), (1, orders));
    let (hosts, hang_after) = (Hosts::default(), Duration::from_millis(500));
    let supervisor =
        Supervisor { ledger: ledger.clone(), hang_after, restarts: 1000, chaos: Some(chaos), hosts };
    let finish = std::thread::spawn({
        let (ledger, done) = (ledger.clone(), done.clone());
        move || {
            let hangs = |entry: &Entry| matches!(entry.event, Event::Injected { fault: Strike::Hang, .. });
            while !ledger.read().unwrap().iter().any(hangs) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::fs::write(done, "").unwrap();
            ledger.note(Event::Trained { step: 9 }).unwrap();
        }
    });
    let mut step = 0;
    let mut job = |_: &[&str]| {
        step += 1000;
        ledger.note(Event::Launched { makes: "a".into(), ranks: 1 }).unwrap();
        ledger.note(Event::Ready { step }).unwrap();
        let mut sh = Command::new("sh");
        let steps = r#"while [ ! -e "$DONE" ]; do echo '{"at":1,"event":"step","step":'$STEP'}' >> "$LEDGER"; STEP=$((STEP + 1)); sleep 0.01; done"#;
        sh.arg("-c").arg(steps).env("LEDGER", ledger.path()).env("DONE", &done).env("STEP", step.to_string());
        sh
    };
    let ended = supervisor.run(&mut job, &AtomicBool::new(false), &mut |_| ()).unwrap();
    assert_eq!(ended, Ended::Done);
    finish.join().unwrap();
    let entries = ledger.read().unwrap();
    assert!(entries.iter().any(|entry| matches!(entry.event, Event::Failed { hung: true, .. })));
}
