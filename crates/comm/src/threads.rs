//! Ranks that are threads of one process.
//!
//! Every collective is one exchange: each rank puts its contribution on the board, waits until all have, reads what
//! it needs, and waits until all have read. A rank that is dropped is noted as gone, so that peers that still need it get
//! [`CommError::PeerLost`] instead of waiting for ever.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{Comm, CommError};

/// One rank of a group of threads.
pub struct Threads {
    rank: usize,
    size: usize,
    group: Arc<Group>,
}

struct Group {
    board: Mutex<Board>,
    changed: Condvar,
}

/// A rank's contribution to a collective, and the collective's name.
type Post = (&'static str, Arc<[f32]>);

struct Board {
    posts: Vec<Option<Post>>,
    reading: usize,
    mail: Vec<VecDeque<Vec<f32>>>,
    gone: Vec<bool>,
}

impl Threads {
    /// The ranks of a group of `size`, to be moved to a thread each.
    pub fn group(size: usize) -> Vec<Self> {
        let board = Board {
            posts: vec![None; size],
            reading: 0,
            mail: (0..size * size).map(|_| VecDeque::new()).collect(),
            gone: vec![false; size],
        };
        let group = Arc::new(Group { board: Mutex::new(board), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, size, group: Arc::clone(&group) }).collect()
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // A poisoned board only means that a peer panicked; `gone` tells the rest.
        self.group.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until<'a>(
        &'a self,
        op: &'static str,
        mut board: MutexGuard<'a, Board>,
        (needed, ready): (Range<usize>, impl Fn(&Board) -> bool),
    ) -> Result<MutexGuard<'a, Board>, CommError> {
        while !ready(&board) {
            if board.gone[needed.clone()].contains(&true) {
                return Err(CommError::PeerLost { op, rank: self.rank });
            }
            board = self.group.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(board)
    }

    /// Every rank's contribution, in rank order.
    fn exchange(&self, op: &'static str, x: &[f32]) -> Result<Vec<Arc<[f32]>>, CommError> {
        let board = self.board();
        // The previous exchange must have been read by everybody before this rank may post again.
        let mut board = self.wait_until(op, board, (0..self.size, |b| b.reading == 0))?;
        board.posts[self.rank] = Some((op, x.into()));
        if board.posts.iter().all(Option::is_some) {
            board.reading = self.size;
        }
        self.group.changed.notify_all();
        let mut board = self.wait_until(op, board, (0..self.size, |b| b.reading > 0))?;
        let posts: Vec<_> = board.posts.iter().flatten().cloned().collect();
        board.reading -= 1;
        if board.reading == 0 {
            board.posts.fill(None);
        }
        drop(board);
        self.group.changed.notify_all();
        if let Some((other, (name, _))) = posts.iter().enumerate().find(|(_, (name, _))| *name != op) {
            return Err(CommError::Mismatch { rank: self.rank, found: op, other, expected: name });
        }
        Ok(posts.into_iter().map(|(_, x)| x).collect())
    }

    fn length(&self, op: &'static str, found: usize, expected: usize) -> Result<(), CommError> {
        if found == expected {
            return Ok(());
        }
        Err(CommError::Length { op, rank: self.rank, size: self.size, found, expected })
    }

    fn peer(&self, op: &'static str, rank: usize) -> Result<(), CommError> {
        if rank < self.size && rank != self.rank {
            return Ok(());
        }
        Err(CommError::NoSuchPeer { op, rank, size: self.size })
    }

    fn sum(
        &self,
        op: &'static str,
        posts: &[Arc<[f32]>],
        from: usize,
        x: &mut [f32],
    ) -> Result<(), CommError> {
        for post in posts {
            self.length(op, post.len(), posts[self.rank].len())?;
        }
        for (i, value) in x.iter_mut().enumerate() {
            *value = posts.iter().map(|p| p[from + i]).sum();
        }
        Ok(())
    }
}

impl Comm for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, x: &mut [f32]) -> Result<(), CommError> {
        let posts = self.exchange("all_reduce", x)?;
        self.sum("all_reduce", &posts, 0, x)
    }

    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]) -> Result<(), CommError> {
        self.length("reduce_scatter", input.len(), output.len() * self.size)?;
        let posts = self.exchange("reduce_scatter", input)?;
        self.sum("reduce_scatter", &posts, self.rank * output.len(), output)
    }

    fn all_gather(&self, input: &[f32], output: &mut [f32]) -> Result<(), CommError> {
        self.length("all_gather", output.len(), input.len() * self.size)?;
        let posts = self.exchange("all_gather", input)?;
        let mut rest = output;
        for post in &posts {
            self.length("all_gather", post.len(), input.len())?;
            let (own, tail) = rest.split_at_mut(post.len());
            own.copy_from_slice(post);
            rest = tail;
        }
        Ok(())
    }

    fn broadcast(&self, x: &mut [f32], root: usize) -> Result<(), CommError> {
        if root >= self.size {
            return Err(CommError::NoSuchPeer { op: "broadcast", rank: root, size: self.size });
        }
        let posts = self.exchange("broadcast", if self.rank == root { x } else { &[] })?;
        self.length("broadcast", x.len(), posts[root].len())?;
        x.copy_from_slice(&posts[root]);
        Ok(())
    }

    fn send(&self, to: usize, x: &[f32]) -> Result<(), CommError> {
        self.peer("send", to)?;
        self.board().mail[self.rank * self.size + to].push_back(x.to_vec());
        self.group.changed.notify_all();
        Ok(())
    }

    fn recv(&self, from: usize, x: &mut [f32]) -> Result<(), CommError> {
        self.peer("recv", from)?;
        let slot = from * self.size + self.rank;
        let board = self.board();
        let mut board = self.wait_until("recv", board, (from..from + 1, |b| !b.mail[slot].is_empty()))?;
        let message = board.mail[slot].pop_front().unwrap_or_default();
        self.length("recv", x.len(), message.len())?;
        x.copy_from_slice(&message);
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.exchange("barrier", &[]).map(drop)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.board().gone[self.rank] = true;
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_ranks<R: Send>(size: usize, f: impl Fn(&Threads) -> R + Sync) -> Vec<R> {
        std::thread::scope(|s| {
            let ranks = Threads::group(size);
            let handles: Vec<_> = ranks
                .into_iter()
                .map(|c| {
                    s.spawn(|| {
                        let c = c;
                        f(&c)
                    })
                })
                .collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        })
    }

    #[test]
    fn collectives_agree_with_their_definition() {
        for size in 1..=4 {
            let out = on_ranks(size, |c| {
                let r = c.rank() as f32;
                let mut results = vec![];
                for round in 0..50 {
                    let own: Vec<f32> = (0..size * 3).map(|i| r * 100.0 + i as f32 + round as f32).collect();
                    let mut sum = own.clone();
                    c.all_reduce(&mut sum).unwrap();
                    let mut share = vec![0.0; 3];
                    c.reduce_scatter(&own, &mut share).unwrap();
                    assert_eq!(share, sum[c.rank() * 3..c.rank() * 3 + 3]);
                    let mut all = vec![0.0; size * 3];
                    c.all_gather(&share, &mut all).unwrap();
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

    #[test]
    fn messages_keep_their_order() {
        on_ranks(2, |c| {
            if c.rank() == 0 {
                (0..10).for_each(|i| c.send(1, &[i as f32]).unwrap());
            } else {
                for i in 0..10 {
                    let mut x = [0.0];
                    c.recv(0, &mut x).unwrap();
                    assert_eq!(x, [i as f32]);
                }
            }
        });
    }

    #[test]
    fn a_lost_peer_is_an_error_not_a_hang() {
        let out = on_ranks(2, |c| if c.rank() == 0 { Ok(()) } else { c.barrier() });
        assert_eq!(out[1], Err(CommError::PeerLost { op: "barrier", rank: 1 }));
    }

    #[test]
    fn a_rank_that_is_not_needed_may_leave() {
        let out = on_ranks(3, |c| match c.rank() {
            0 => c.recv(1, &mut [0.0]),
            1 => {
                std::thread::sleep(std::time::Duration::from_millis(50));
                c.send(0, &[1.0])
            }
            _ => Ok(()),
        });
        assert_eq!(out, vec![Ok(()); 3]);
        let out = on_ranks(3, |c| if c.rank() == 0 { c.recv(1, &mut [0.0]) } else { Ok(()) });
        assert_eq!(out[0], Err(CommError::PeerLost { op: "recv", rank: 0 }));
    }

    #[test]
    fn different_collectives_and_lengths_are_named() {
        let out = on_ranks(2, |c| if c.rank() == 0 { c.barrier() } else { c.all_reduce(&mut [1.0]) });
        assert!(matches!(
            out[0],
            Err(CommError::Mismatch { found: "barrier", expected: "all_reduce", other: 1, .. })
        ));
        let out = on_ranks(2, |c| c.all_reduce(&mut vec![0.0; 1 + c.rank()]));
        assert!(out.iter().all(|r| matches!(r, Err(CommError::Length { .. }))));
    }
}
