//! Groups over threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::*;

fn on_ranks<R: Send>(size: usize, f: impl Fn(&Group) -> R + Sync) -> Vec<R> {
    each(Threads::group(size), f)
}

fn each<R: Send>(ranks: Vec<Group>, f: impl Fn(&Group) -> R + Sync) -> Vec<R> {
    std::thread::scope(|s| {
        let f = &f;
        let handles: Vec<_> = ranks.into_iter().map(|c| s.spawn(move || f(&c))).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

fn ranks(size: usize, options: WorldOptions) -> Vec<Group> {
    let worlds = Threads::world(size, options);
    worlds.iter().map(|world| world.group("all", 0, (0..size).collect())).collect()
}

#[test]
fn collectives_agree_with_their_definition() {
    for size in 1..=4 {
        // Short and long ones go different ways.
        for length in [3, 5000] {
            let out = on_ranks(size, |c| {
                let r = c.rank() as f32;
                let mut results = vec![];
                for round in 0..20 {
                    let own: Vec<f32> =
                        (0..size * length).map(|i| r * 100.0 + i as f32 + round as f32).collect();
                    let mut sum = own.clone();
                    c.all_reduce(&mut sum).unwrap();
                    let mut part = vec![0.0; length];
                    c.reduce_scatter(&own, &mut part).unwrap();
                    assert_eq!(part, sum[c.rank() * length..][..length]);
                    let all =
                        c.all_gather(Body::from(bytemuck::cast_slice::<f32, u8>(&part).to_vec())).unwrap();
                    let all: Vec<f32> = all.iter().flat_map(|b| bytemuck::pod_collect_to_vec(b)).collect();
                    assert_eq!(all, sum);
                    let mut from_last = vec![r; 2];
                    c.broadcast(&mut from_last, size - 1).unwrap();
                    assert_eq!(from_last, vec![(size - 1) as f32; 2]);
                    c.barrier().unwrap();
                    results.push(sum);
                }
                results
            });
            let expected: f32 = (0..size).map(|r| r as f32 * 100.0).sum();
            assert!(out.iter().all(|o| o == &out[0]));
            assert_eq!(out[0][0][0], expected);
        }
    }
}

#[test]
fn sums_run_in_rank_order() {
    // (1 + 1e8) − 1e8 is 0 in f32, 1 + (1e8 − 1e8) is 1: the order shows.
    let out = on_ranks(3, |c| {
        let mut x = [[1.0, 1e8, -1e8][c.rank()]; 5000];
        c.all_reduce(&mut x).unwrap();
        x
    });
    assert!(out.iter().flatten().all(|x| *x == 0.0));
}

#[test]
fn started_collectives_are_finished_in_any_order() {
    on_ranks(3, |c| {
        let parts = |x: f32| vec![Body::from(x.to_ne_bytes().to_vec()); 3];
        let first = c.start_reduce_scatter(parts(1.0)).unwrap();
        let second = c.start_reduce_scatter(parts(10.0)).unwrap();
        c.barrier().unwrap();
        let mut out = [0.0];
        c.finish_reduce_scatter(second, &mut out).unwrap();
        assert_eq!(out, [30.0]);
        c.finish_reduce_scatter(first, &mut out).unwrap();
        assert_eq!(out, [3.0]);
    });
}

#[test]
fn messages_keep_their_order() {
    on_ranks(2, |c| {
        if c.rank() == 0 {
            (0..10u8).for_each(|i| c.send(1, vec![i].into()).unwrap());
        } else {
            (0..10u8).for_each(|i| assert_eq!(*c.recv(0, Elements::Bytes).unwrap(), [i]));
        }
    });
}

#[test]
fn groups_of_the_same_ranks_do_not_mix() {
    let worlds = Threads::world(4, WorldOptions::default());
    std::thread::scope(|s| {
        for world in worlds {
            s.spawn(move || {
                let row = world.rank() / 2;
                let pair = world.group("pair", 0, vec![2 * row, 2 * row + 1]);
                let all = world.group("all", 1, vec![0, 1, 2, 3]);
                let mut x = [world.rank() as f32];
                if world.rank() == 0 {
                    // Sent before what the others wait for first.
                    pair.send(1, vec![7].into()).unwrap();
                }
                all.all_reduce(&mut x).unwrap();
                assert_eq!(x, [6.0]);
                let mut x = [world.rank() as f32];
                pair.all_reduce(&mut x).unwrap();
                assert_eq!(x, [[1.0, 5.0][row]]);
                if world.rank() == 1 {
                    assert_eq!(*pair.recv(0, Elements::Bytes).unwrap(), [7]);
                }
                all.barrier().unwrap();
            });
        }
    });
}

#[test]
fn a_lost_peer_is_an_error_not_a_hang() {
    let out = on_ranks(2, |c| if c.rank() == 0 { Ok(()) } else { c.barrier() });
    assert_eq!(out[1], Err(CommError::PeerLost { op: "barrier", rank: 1, peer: 0 }));
}

#[test]
fn a_rank_that_is_not_needed_may_leave() {
    let out = on_ranks(3, |c| match c.rank() {
        0 => c.recv(1, Elements::Bytes).map(drop),
        1 => {
            std::thread::sleep(Duration::from_millis(50));
            c.send(0, vec![1].into())
        }
        _ => Ok(()),
    });
    assert_eq!(out, vec![Ok(()); 3]);
}

#[test]
fn a_hanging_peer_is_named_and_the_recorder_tells_the_rest() {
    let options = WorldOptions { timeout: Duration::from_millis(100), records: 2, ..WorldOptions::default() };
    let worlds = Threads::world(3, options);
    let recorders: Vec<_> = worlds.iter().map(|w| Arc::clone(w.recorder())).collect();
    let folder = std::env::temp_dir().join(format!("llamero-flight-{}", std::process::id()));
    worlds.iter().for_each(|world| world.record_to(folder.clone()));
    let groups = worlds.iter().map(|w| w.group("dp", 0, vec![0, 1, 2])).collect();
    drop(worlds);
    let begun = Instant::now();
    let out = each(groups, |c| {
        c.barrier()?;
        c.all_reduce(&mut [1.0; 4])?;
        if c.rank() == 1 {
            std::thread::sleep(Duration::from_millis(1000));
            return Ok(());
        }
        c.all_reduce(&mut [1.0; 4])
    });
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(out[1], Ok(()));
    for rank in [0, 2] {
        let Err(CommError::Timeout { group, op, seq, from, .. }) = &out[rank] else {
            panic!("{:?}", out[rank])
        };
        assert_eq!((group.as_str(), *op, *seq, *from), ("dp", "all_reduce", 2, 1));
        let records = recorders[rank].records();
        let seen: Vec<_> = records.iter().map(|r| (r.seq, r.op, r.took.is_some())).collect();
        assert_eq!(seen, [(1, Op::AllReduce, true), (2, Op::AllReduce, false)]);
        let text = recorders[rank].to_string();
        assert!(text.contains("all_reduce") && text.contains("not done"), "{text}");
        let file = std::fs::read_to_string(folder.join(format!("rank-{rank}.txt"))).unwrap();
        assert!(file.contains("rank 1") && file.contains("not done"), "{file}");
    }
    assert!(!folder.join("rank-1.txt").exists());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn different_elements_are_named() {
    let part = |elements| Body::new(vec![0; 8].into(), elements);
    let out = on_ranks(2, |c| c.all_gather(part(Elements::ALL[1 + c.rank()])));
    let expected = [("bf16", "f32"), ("f32", "bf16")];
    for (rank, result) in out.iter().enumerate() {
        let Err(CommError::Elements { op, from, found, expected: own, .. }) = result else {
            panic!("{result:?}")
        };
        assert_eq!((*op, *from, (*found, *own)), ("all_gather", 1 - rank, expected[rank]));
    }
    let out = on_ranks(2, |c| match c.rank() {
        0 => c.send(1, part(Elements::F32)).map(|()| Body::default()),
        _ => c.recv(0, Elements::Bf16),
    });
    assert!(matches!(out[1], Err(CommError::Elements { op: "send", found: "f32", .. })), "{out:?}");
}

#[test]
fn different_collectives_and_lengths_are_named() {
    let out = on_ranks(2, |c| if c.rank() == 0 { c.barrier() } else { c.all_reduce(&mut [1.0]) });
    assert!(matches!(
        out[0],
        Err(CommError::Mismatch { found: "barrier", expected: "all_reduce", other: 1, .. })
    ));
    let out = on_ranks(2, |c| c.all_reduce(&mut vec![0.0; 1 + c.rank()]));
    assert!(out.iter().all(|r| matches!(r, Err(CommError::Length { .. }))), "{out:?}");
    let error = on_ranks(2, |c| c.start(Op::Barrier, vec![]).map(|p| drop(c.finish(p))).unwrap_err());
    assert!(matches!(error[0], CommError::Parts { found: 0, size: 2, .. }));
}

/// A wire that changes, loses or repeats the messages of rank 0.
struct Faulty {
    wire: Threads,
    fault: fn(Message) -> Vec<Message>,
}

impl Wire for Faulty {
    fn rank(&self) -> usize {
        self.wire.rank()
    }

    fn size(&self) -> usize {
        self.wire.size()
    }

    fn send(&self, to: usize, channel: u32, message: Message) -> Result<(), WireError> {
        let messages = if self.rank() == 0 { (self.fault)(message) } else { vec![message] };
        messages.into_iter().try_for_each(|m| self.wire.send(to, channel, m))
    }

    fn recv(&self, from: usize, channel: u32, deadline: Instant) -> Result<Message, WireError> {
        self.wire.recv(from, channel, deadline)
    }
}

/// What a fault in collectives comes to on rank 1.
fn in_collectives(fault: fn(Message) -> Vec<Message>) -> CommError {
    let options = WorldOptions { timeout: Duration::from_millis(200), hash: true, records: 9 };
    let wires = Threads::wires(2).into_iter();
    let worlds = wires.map(|wire| World::new(Arc::new(Faulty { wire, fault }), options));
    let groups = worlds.map(|w| w.group("dp", 0, vec![0, 1])).collect();
    let mut out = each(groups, |c| (0..4).try_for_each(|_| c.all_reduce(&mut [1.0; 9])));
    out.pop().unwrap().unwrap_err()
}

#[test]
fn collectives_that_are_changed_lost_or_repeated_are_noticed() {
    let twice = in_collectives(|m| vec![m.clone(), m]);
    assert!(matches!(twice, CommError::OutOfTurn { found: 0, expected: 1, .. }), "{twice}");
    let lost = in_collectives(|m| if m.header.seq == 1 { vec![] } else { vec![m] });
    assert!(
        matches!(lost, CommError::Timeout { seq: 1, from: 0, .. } | CommError::PeerLost { .. }),
        "{lost}"
    );
    let changed = in_collectives(|m| {
        let mut body = m.body.to_vec();
        body[7] ^= 1;
        vec![Message { body: body.into(), ..m }]
    });
    assert!(matches!(changed, CommError::Damaged { seq: 0, .. }), "{changed}");
}

fn with_fault(fault: fn(Message) -> Vec<Message>) -> CommError {
    let options = WorldOptions { timeout: Duration::from_millis(200), hash: true, records: 9 };
    let wires = Threads::wires(2).into_iter();
    let worlds = wires.map(|wire| World::new(Arc::new(Faulty { wire, fault }), options));
    let groups = worlds.map(|w| w.group("pp", 0, vec![0, 1])).collect();
    let mut out = each(groups, |c| -> Result<(), CommError> {
        for i in 0..3 {
            if c.rank() == 0 {
                c.send(1, vec![i; 100].into())?;
            } else {
                c.recv(0, Elements::Bytes)?;
            }
        }
        // So that rank 0 does not leave before.
        std::thread::sleep(Duration::from_millis(if c.rank() == 0 { 500 } else { 0 }));
        Ok(())
    });
    out.pop().unwrap().unwrap_err()
}

#[test]
fn messages_that_are_changed_lost_or_repeated_are_noticed() {
    let changed = with_fault(|m| {
        let mut body = m.body.to_vec();
        body[50] ^= 4;
        vec![Message { body: body.into(), ..m }]
    });
    assert!(matches!(changed, CommError::Damaged { seq: 0, from: 0, .. }), "{changed}");
    let lost = with_fault(|m| if m.header.seq == 1 { vec![] } else { vec![m] });
    assert!(matches!(lost, CommError::OutOfTurn { found: 2, expected: 1, .. }), "{lost}");
    let twice = with_fault(|m| vec![m.clone(), m]);
    assert!(matches!(twice, CommError::OutOfTurn { found: 0, expected: 1, .. }), "{twice}");
    let none = with_fault(|_| vec![]);
    assert!(matches!(none, CommError::Timeout { seq: 0, from: 0, .. }), "{none}");
}

#[test]
fn without_hashes_lengths_and_turns_are_still_checked() {
    let quick = WorldOptions { timeout: Duration::from_secs(5), hash: false, records: 1 };
    let out = each(ranks(2, quick), |c| c.all_reduce(&mut vec![0.0; 1 + c.rank()]));
    assert!(out.iter().all(|r| matches!(r, Err(CommError::Length { .. }))), "{out:?}");
}
