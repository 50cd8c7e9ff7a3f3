//! Which pair becomes a token next.

use super::merging::Pair;
use std::collections::BinaryHeap;
use std::rc::Rc;

/// A pair that may become a token. The derived order is the one that training follows among equally frequent pairs.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub(super) left: Rc<[u8]>,
    pub(super) right: Rc<[u8]>,
    pub(super) pair: Pair,
}

/// All pairs by their counts, and those of the highest count by their bytes too. Counts fall while pairs wait, which is
/// found out when their turn comes.
#[derive(Default)]
pub(super) struct Queue {
    /// At least the pair's present count, and the pair.
    pairs: BinaryHeap<(u64, Pair)>,
    /// Pairs that had the count `highest`.
    level: BinaryHeap<Candidate>,
    highest: u64,
}

impl FromIterator<(u64, Pair)> for Queue {
    fn from_iter<I: IntoIterator<Item = (u64, Pair)>>(pairs: I) -> Queue {
        Queue { pairs: pairs.into_iter().collect(), level: BinaryHeap::new(), highest: 0 }
    }
}

impl Queue {
    /// Bytes of memory of an entry.
    pub(super) const ENTRY: usize = size_of::<(u64, Pair)>();

    /// Adds a pair, which must not be there. Its count must not be greater than that of the last pair taken.
    pub(super) fn push(&mut self, count: u64, pair: Pair, candidate: &dyn Fn(Pair) -> Candidate) {
        if count == self.highest {
            self.level.push(candidate(pair));
        } else {
            self.pairs.push((count, pair));
        }
    }

    /// Takes the pair with the highest count, of several the one whose bytes are the greatest. `count` gives the present
    /// count, 0 for a pair that is not wanted any more.
    pub(super) fn pop(
        &mut self,
        count: &dyn Fn(Pair) -> u64,
        candidate: &dyn Fn(Pair) -> Candidate,
    ) -> Option<Candidate> {
        loop {
            if let Some(best) = self.level.pop() {
                match count(best.pair) {
                    0 => (),
                    now if now == self.highest => return Some(best),
                    now => self.pairs.push((now, best.pair)),
                }
                continue;
            }
            self.highest = self.pairs.peek()?.0;
            while let Some(&(then, pair)) = self.pairs.peek()
                && then == self.highest
            {
                self.pairs.pop();
                match count(pair) {
                    0 => (),
                    now if now == then => self.level.push(candidate(pair)),
                    now => self.pairs.push((now, pair)),
                }
            }
        }
    }
}
