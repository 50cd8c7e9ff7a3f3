//! Learning merges from counted words.
//!
//! All words lie one after the other in one array of cells. At first each token takes one cell; a token made of two takes
//! the cells of both, and its id stands in the first and the last of them, so that the neighbours of a token are found
//! from either side. Words are ordered by their counts, so that a cell's count is found by its place.
//!
//! Of each pair we know how often it occurs and the places where it did when it was first seen. A pair of tokens comes
//! into being when the later of its tokens does, and never again, so these lists only get stale: a place counts where
//! both tokens still stand. For the same reason a pair's count only falls, and one that is below the least is forgotten.

use super::queue::{Candidate, Queue};
use crate::{Error, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

/// The end of a word, and the inside of a token.
const NONE: u32 = u32::MAX;

/// How many places are looked at before they are replaced.
const LOOK_AHEAD: usize = 64;

pub(super) type Pair = (u32, u32);

type Map<T> = HashMap<Pair, T, foldhash::fast::FixedState>;

/// Words as tokens, ready to be merged.
pub(super) struct Corpus {
    /// Words, each followed by [`NONE`]; one stands before the first.
    cells: Vec<u32>,
    /// The first place of each count, and the count.
    counts: Vec<(u32, u64)>,
    /// Tokens of the text, those of words of one token included.
    tokens: u64,
}

impl Corpus {
    /// An empty one with room for so many cells: a word takes one for each token, and one more.
    pub(super) fn new(cells: usize) -> Result<Corpus> {
        if cells >= NONE as usize {
            return Err(Error::TooManyWords { cells });
        }
        let mut all = Vec::with_capacity(cells + 1);
        all.push(NONE);
        Ok(Corpus { cells: all, counts: Vec::new(), tokens: 0 })
    }

    /// Adds a word. Words come in the order of their counts.
    pub(super) fn push(&mut self, word: impl Iterator<Item = u32>, count: u64) {
        let start = self.cells.len();
        self.cells.extend(word);
        let len = self.cells.len() - start;
        self.tokens += len as u64 * count;
        if len < 2 {
            return self.cells.truncate(start);
        }
        if self.counts.last().is_none_or(|&(_, last)| last != count) {
            self.counts.push((start as u32, count));
        }
        self.cells.push(NONE);
    }
}

/// Where a pair was, in `Merger::places`.
#[derive(Clone, Copy)]
struct Occurrences {
    count: u64,
    start: usize,
    len: u32,
}

/// The state of learning.
pub(super) struct Merger<'a> {
    tokens: Vec<Rc<[u8]>>,
    /// How many cells each token takes.
    widths: Vec<u32>,
    corpus: Corpus,
    pairs: Map<Occurrences>,
    places: Vec<u32>,
    /// When there are more places than this, stale ones are removed.
    full: usize,
    queue: Queue,
    least: u64,
    left: Side,
    right: Side,
    /// Whether a pair must not become a token; called once for each that would.
    refuse: &'a mut dyn FnMut(Pair, u32) -> bool,
}

/// The neighbours of the pair that is merged, on one side.
#[derive(Default)]
struct Side {
    /// The place of each token in `groups`, or [`NONE`].
    group_of: Vec<u32>,
    groups: Vec<Group>,
    /// (group, where the new pair begins)
    places: Vec<(u32, u32)>,
}

struct Group {
    token: u32,
    count: u64,
    len: u32,
    /// Where the next place goes, while they are sorted.
    next: usize,
}

impl<'a> Merger<'a> {
    /// `tokens` are those that the words consist of; pairs less frequent than `least` are not made tokens.
    pub(super) fn new(
        tokens: Vec<Rc<[u8]>>,
        corpus: Corpus,
        least: u64,
        refuse: &'a mut dyn FnMut(Pair, u32) -> bool,
    ) -> Merger<'a> {
        let mut merger = Merger {
            widths: vec![1; tokens.len()],
            tokens,
            corpus,
            pairs: Map::default(),
            places: Vec::new(),
            full: 0,
            queue: Queue::default(),
            least: least.max(1),
            left: Side::default(),
            right: Side::default(),
            refuse,
        };
        merger.find_pairs();
        merger
    }

    /// Bytes of memory that learning takes at most from here on, about.
    pub(super) fn memory(&self) -> usize {
        // A slot of the map with its byte of control, seven of eight used at most and half of them after growth.
        let pair = size_of::<(Pair, Occurrences)>() + 1;
        self.corpus.cells.capacity() * 4 + self.full * 4 + self.pairs.len() * (pair * 2 + Queue::ENTRY)
    }

    /// Finds all pairs and their places.
    fn find_pairs(&mut self) {
        let Corpus { cells, counts, .. } = &self.corpus;
        let mut weights = Weights::new(counts);
        for (place, two) in (0u32..).zip(cells.windows(2)) {
            if two[0] != NONE && two[1] != NONE {
                let found =
                    self.pairs.entry((two[0], two[1])).or_insert(Occurrences { count: 0, start: 0, len: 0 });
                found.count += weights.at(place);
                found.len += 1;
            }
        }
        self.pairs.retain(|_, found| found.count >= self.least);
        let mut sum = 0;
        for found in self.pairs.values_mut() {
            found.start = sum;
            sum += found.len as usize;
            found.len = 0;
        }
        self.places = vec![0; sum];
        self.full = sum * 2 + (1 << 16);
        for (place, two) in (0u32..).zip(cells.windows(2)) {
            if two[0] != NONE
                && two[1] != NONE
                && let Some(found) = self.pairs.get_mut(&(two[0], two[1]))
            {
                self.places[found.start + found.len as usize] = place;
                found.len += 1;
            }
        }
        let all = self.pairs.iter().map(|(&pair, found)| (found.count, pair));
        self.queue = all.collect();
    }

    /// Makes tokens until there are `wanted` or no pair is frequent enough. Gives them in the order of their ids, and
    /// how many of them the text takes.
    pub(super) fn learn(mut self, wanted: usize, progress: &mut dyn FnMut(u64, u64)) -> (Vec<Vec<u8>>, u64) {
        let first = self.tokens.len();
        let merges = wanted.saturating_sub(first) as u64;
        progress(0, merges);
        while self.tokens.len() < wanted {
            let count = |pair: Pair| self.pairs.get(&pair).map_or(0, |found| found.count);
            let Some(best) = self.queue.pop(&count, &|pair| candidate(&self.tokens, pair)) else { break };
            self.merge(best);
            progress((self.tokens.len() - first) as u64, merges);
        }
        (self.tokens.iter().map(|token| token.to_vec()).collect(), self.corpus.tokens)
    }

    /// Makes a token of `best` and replaces the pair everywhere. No two pairs make the same token: inside a stretch of text
    /// that becomes one token, all merges happen in the order of the ranks, the same in every word.
    fn merge(&mut self, best: Candidate) {
        let Candidate { left, right, pair } = best;
        let Some(found) = self.pairs.remove(&pair) else { return };
        let new = self.tokens.len() as u32;
        if (self.refuse)(pair, new) {
            return;
        }
        self.tokens.push([&*left, &*right].concat().into());
        self.widths.push(self.widths[pair.0 as usize] + self.widths[pair.1 as usize]);
        self.replace(pair, new, found);

        let (mut before, mut after) = (std::mem::take(&mut self.left), std::mem::take(&mut self.right));
        // What follows first: on the left stands the new token itself where two follow each other, and then its pair with
        // what follows, just made, is lost again.
        after.sort(self.least, &mut self.places);
        for group in &after.groups {
            self.gain((new, group.token), group);
            self.lose((pair.1, group.token), group.count);
        }
        before.sort(self.least, &mut self.places);
        for group in &before.groups {
            self.gain((group.token, new), group);
            self.lose((group.token, pair.0), group.count);
        }
        let made = after.groups.iter().map(|group| (new, group.token));
        for pair in made.chain(before.groups.iter().map(|group| (group.token, new))) {
            if let Some(found) = self.pairs.get(&pair) {
                self.queue.push(found.count, pair, &|pair| candidate(&self.tokens, pair));
            }
        }
        after.clear();
        before.clear();
        (self.left, self.right) = (before, after);
        if self.places.len() > self.full {
            self.remove_stale_places();
        }
    }

    /// Replaces `pair` from the left by `new`, and notes the neighbours.
    fn replace(&mut self, pair: Pair, new: u32, found: Occurrences) {
        let [a, b] = [pair.0, pair.1].map(|id| self.widths[id as usize] as usize);
        self.left.begin(self.tokens.len());
        self.right.begin(self.tokens.len());
        let Corpus { cells, counts, tokens } = &mut self.corpus;
        let mut weights = Weights::new(counts);
        // Places are looked at some at a time without a branch, so that the latencies of the memory overlap.
        let mut ahead = [0; LOOK_AHEAD];
        for places in self.places[found.start..][..found.len as usize].chunks(LOOK_AHEAD) {
            let mut len = 0;
            for &place in places {
                ahead[len] = place;
                len += usize::from(cells[place as usize] == pair.0);
            }
            for &place in &ahead[..len] {
                let (first, second) = (place as usize, place as usize + a);
                // The first token may be gone by now: in `aaa`, both places have been looked at before one is replaced.
                if cells[first] != pair.0 || cells[second] != pair.1 {
                    continue;
                }
                let count = weights.at(place);
                *tokens -= count;
                let (before, after) = (cells[first - 1], cells[second + b]);
                (cells[second - 1], cells[second]) = (NONE, NONE);
                (cells[first], cells[second + b - 1]) = (new, new);
                if before != NONE {
                    self.left.add(before, count, place - self.widths[before as usize]);
                }
                if after != NONE {
                    self.right.add(after, count, place);
                }
            }
        }
    }

    fn gain(&mut self, pair: Pair, group: &Group) {
        if group.count >= self.least {
            let start = group.next - group.len as usize;
            self.pairs.insert(pair, Occurrences { count: group.count, start, len: group.len });
        }
    }

    fn lose(&mut self, pair: Pair, count: u64) {
        if let Entry::Occupied(mut entry) = self.pairs.entry(pair) {
            entry.get_mut().count -= count;
            if entry.get().count < self.least {
                entry.remove();
            }
        }
    }

    /// Keeps the places where pairs still are.
    fn remove_stale_places(&mut self) {
        let mut order: Vec<(usize, Pair)> =
            self.pairs.iter().map(|(&pair, found)| (found.start, pair)).collect();
        order.sort_unstable();
        let (cells, mut end) = (&self.corpus.cells, 0);
        for (_, pair) in order {
            let Some(found) = self.pairs.get_mut(&pair) else { continue };
            let (start, width) = (end, self.widths[pair.0 as usize]);
            for from in found.start..found.start + found.len as usize {
                let place = self.places[from];
                if cells[place as usize] == pair.0 && cells[(place + width) as usize] == pair.1 {
                    self.places[end] = place;
                    end += 1;
                }
            }
            (found.start, found.len) = (start, (end - start) as u32);
        }
        self.places.truncate(end);
        self.full = self.full.max(end * 2);
    }
}

fn candidate(tokens: &[Rc<[u8]>], pair: Pair) -> Candidate {
    let [left, right] = [pair.0, pair.1].map(|id| tokens[id as usize].clone());
    Candidate { left, right, pair }
}

impl Side {
    fn begin(&mut self, tokens: usize) {
        self.group_of.resize(tokens, NONE);
    }

    fn add(&mut self, token: u32, count: u64, place: u32) {
        let mut group = self.group_of[token as usize];
        if group == NONE {
            group = self.groups.len() as u32;
            self.group_of[token as usize] = group;
            self.groups.push(Group { token, count: 0, len: 0, next: 0 });
        }
        let found = &mut self.groups[group as usize];
        found.count += count;
        found.len += 1;
        self.places.push((group, place));
    }

    /// Appends the places to `all`, group by group, but for groups below `least`.
    fn sort(&mut self, least: u64, all: &mut Vec<u32>) {
        let mut end = all.len();
        for group in self.groups.iter_mut().filter(|group| group.count >= least) {
            group.next = end;
            end += group.len as usize;
        }
        all.resize(end, 0);
        for &(group, place) in &self.places {
            let group = &mut self.groups[group as usize];
            if group.count >= least {
                all[group.next] = place;
                group.next += 1;
            }
        }
    }

    fn clear(&mut self) {
        self.groups.iter().for_each(|group| self.group_of[group.token as usize] = NONE);
        self.groups.clear();
        self.places.clear();
    }
}

/// The counts of words by their places, asked for in ascending order.
struct Weights<'a> {
    counts: &'a [(u32, u64)],
    at: usize,
}

impl<'a> Weights<'a> {
    fn new(counts: &'a [(u32, u64)]) -> Weights<'a> {
        Weights { counts, at: 0 }
    }

    fn at(&mut self, place: u32) -> u64 {
        let ahead = &self.counts[self.at + 1..];
        if ahead.first().is_some_and(|&(start, _)| start <= place) {
            self.at += ahead.partition_point(|&(start, _)| start <= place);
        }
        self.counts[self.at].1
    }
}
