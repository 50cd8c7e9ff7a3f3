//! The merges within a piece.
//!
//! The rule is that of `tiktoken`: a piece that is a token is that token; otherwise the piece starts as its bytes, and as
//! long as two neighbours joined are a token, the pair whose token has the lowest rank is joined, the leftmost of equals.

use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

pub(crate) type FixedMap<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// No token; also the end of a linked list.
const NONE: u32 = u32::MAX;

/// Up to this many bytes, scanning for the lowest rank beats a heap.
const SHORT: usize = 128;

/// The ranks and what is derived from them.
#[derive(Debug)]
pub(crate) struct Bpe {
    tokens: Vec<Box<[u8]>>,
    ids: FixedMap<Box<[u8]>, u32>,
    /// The token that two tokens joined are, for all pairs that have one.
    pairs: FixedMap<(u32, u32), u32>,
    bytes: [u32; 256],
}

/// Memory that the encoding of one piece leaves for the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// (token, what it becomes when joined with its right neighbour)
    parts: Vec<(u32, u32)>,
    links: Vec<Link>,
    /// (rank, index of the left token)
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    id: u32,
    joined: u32,
    previous: u32,
    next: u32,
}

impl Bpe {
    /// Takes the tokens in the order of their ranks. They must be distinct, not empty, and include every single byte.
    pub(crate) fn new(tokens: Vec<Vec<u8>>) -> Result<Bpe> {
        let problem = |problem: String| Err(Error::Vocabulary { problem });
        if tokens.len() > crate::tokenizer::MAX_RANKS {
            return problem(format!("`{}` ranks do not fit 32-bit ids", tokens.len()));
        }
        let tokens: Vec<Box<[u8]>> = tokens.into_iter().map(Vec::into_boxed_slice).collect();
        let mut ids = FixedMap::with_capacity_and_hasher(tokens.len(), Default::default());
        for (token, id) in tokens.iter().zip(0u32..) {
            if token.is_empty() {
                return problem(format!("the token of rank `{id}` is empty"));
            }
            if let Some(other) = ids.insert(token.clone(), id) {
                let token = token.escape_ascii();
                return problem(format!("ranks `{other}` and `{id}` are the same token `{token}`"));
            }
        }
        let mut bytes = [NONE; 256];
        for (byte, id) in (0u8..).zip(&mut bytes) {
            match ids.get([byte].as_slice()) {
                Some(found) => *id = *found,
                None => return problem(format!("the byte `0x{byte:02x}` is not a token; all 256 must be")),
            }
        }
        let mut pairs = FixedMap::default();
        for (token, id) in tokens.iter().zip(0u32..) {
            for middle in 1..token.len() {
                let (left, right) = token.split_at(middle);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    pairs.insert((left, right), id);
                }
            }
        }
        Ok(Bpe { tokens, ids, pairs, bytes })
    }

    /// The tokens in the order of their ranks.
    pub(crate) fn tokens(&self) -> &[Box<[u8]>] {
        &self.tokens
    }

    /// The id of the token made of `bytes`.
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.ids.get(bytes).copied()
    }

    /// Every pair of tokens that joined are a token: (the token, left, right), sorted.
    pub(crate) fn merges(&self) -> Vec<(u32, u32, u32)> {
        let mut merges: Vec<_> = self.pairs.iter().map(|(&(left, right), &id)| (id, left, right)).collect();
        merges.sort_unstable();
        merges
    }

    /// The token that `left` and `right` joined are.
    pub(crate) fn join(&self, left: u32, right: u32) -> Option<u32> {
        self.pairs.get(&(left, right)).copied()
    }

    /// Appends the ids of `piece`.
    #[inline]
    pub(crate) fn encode(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if let Some(id) = self.id(piece) {
            out.push(id);
        } else if piece.len() <= SHORT {
            self.merge_short(piece, scratch, out);
        } else {
            self.merge_long(piece, scratch, out);
        }
    }

    fn joined(&self, left: u32, right: u32) -> u32 {
        self.join(left, right).unwrap_or(NONE)
    }

    /// Quadratic, but quick for the short pieces that nearly all are.
    fn merge_short(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let parts = &mut scratch.parts;
        parts.clear();
        parts.extend(piece.iter().map(|&byte| (self.bytes[usize::from(byte)], NONE)));
        for i in 1..parts.len() {
            parts[i - 1].1 = self.joined(parts[i - 1].0, parts[i].0);
        }
        loop {
            let (mut lowest, mut at) = (NONE, 0);
            for (i, &(_, joined)) in parts.iter().enumerate() {
                if joined < lowest {
                    (lowest, at) = (joined, i);
                }
            }
            if lowest == NONE {
                break;
            }
            parts.remove(at + 1);
            let right = parts.get(at + 1).map_or(NONE, |&(right, _)| self.joined(lowest, right));
            parts[at] = (lowest, right);
            if at > 0 {
                parts[at - 1].1 = self.joined(parts[at - 1].0, lowest);
            }
        }
        out.extend(parts.iter().map(|&(id, _)| id));
    }

    /// The same with a linked list and a heap: n log n.
    fn merge_long(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { links, queue, .. } = scratch;
        queue.clear();
        links.clear();
        links.extend(piece.iter().zip(0u32..).map(|(&byte, i)| Link {
            id: self.bytes[usize::from(byte)],
            joined: NONE,
            previous: i.wrapping_sub(1),
            next: i + 1,
        }));
        let last = links.len() - 1;
        links[last].next = NONE;
        for i in 0..last {
            self.consider(i as u32, links, queue);
        }
        while let Some(Reverse((rank, at))) = queue.pop() {
            let left = links[at as usize];
            // The entry is out of date when either neighbour has been joined with another since.
            if left.joined != rank {
                continue;
            }
            let right = links[left.next as usize];
            links[left.next as usize].joined = NONE;
            links[at as usize] = Link { id: rank, next: right.next, ..left };
            if right.next != NONE {
                links[right.next as usize].previous = at;
            }
            self.consider(at, links, queue);
            if left.previous != NONE {
                self.consider(left.previous, links, queue);
            }
        }
        let mut at = 0;
        while at != NONE {
            out.push(links[at as usize].id);
            at = links[at as usize].next;
        }
    }

    /// Finds what the token at `at` joined with the next one is, and queues it.
    fn consider(&self, at: u32, links: &mut [Link], queue: &mut BinaryHeap<Reverse<(u32, u32)>>) {
        let Link { id, next, .. } = links[at as usize];
        let joined = if next == NONE { NONE } else { self.joined(id, links[next as usize].id) };
        links[at as usize].joined = joined;
        if joined != NONE {
            queue.push(Reverse((joined, at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tokens over `alphabet` beyond the single bytes, and pieces over the same letters.
    fn vocabulary_and_piece(len: usize) -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u8>)> {
        let letters = || proptest::sample::select(b"abc".to_vec());
        let token = proptest::collection::vec(letters(), 2..7);
        (proptest::collection::hash_set(token, 0..60), proptest::collection::vec(letters(), 1..len)).prop_map(
            |(tokens, piece)| {
                let mut tokens: Vec<_> = tokens.into_iter().collect();
                tokens.sort_by_key(|token| blake3::hash(token).to_hex().to_string());
                ((0..=255u8).map(|byte| vec![byte]).chain(tokens).collect(), piece)
            },
        )
    }

    /// The rule at the top of this file, word for word, on byte strings.
    fn oracle(tokens: &[Vec<u8>], piece: &[u8]) -> Vec<u32> {
        let rank = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
        if let Some(id) = rank(piece) {
            return vec![id as u32];
        }
        let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
        while let Some((_, at)) = (0..parts.len() - 1)
            .filter_map(|i| rank(&[parts[i].as_slice(), parts[i + 1].as_slice()].concat()).map(|r| (r, i)))
            .min()
        {
            let right = parts.remove(at + 1);
            parts[at].extend(right);
        }
        parts.iter().map(|part| rank(part).unwrap() as u32).collect()
    }

    proptest! {
        #[test]
        fn both_ways_of_merging_follow_the_rule((tokens, piece) in vocabulary_and_piece(40)) {
            let bpe = Bpe::new(tokens.clone()).unwrap();
            let mut scratch = Scratch::default();
            let expected = oracle(&tokens, &piece);
            let mut out = Vec::new();
            bpe.encode(&piece, &mut scratch, &mut out);
            prop_assert_eq!(&out, &expected);
            if bpe.id(&piece).is_none() {
                out.clear();
                bpe.merge_long(&piece, &mut scratch, &mut out);
                prop_assert_eq!(&out, &expected);
            }
        }

        #[test]
        fn the_way_is_chosen_by_length_only((tokens, piece) in vocabulary_and_piece(400)) {
            let bpe = Bpe::new(tokens).unwrap();
            let mut scratch = Scratch::default();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            bpe.merge_short(&piece, &mut scratch, &mut short);
            bpe.merge_long(&piece, &mut scratch, &mut long);
            prop_assert_eq!(short, long);
        }
    }

    #[test]
    fn bad_vocabularies_are_named() {
        let bytes = || (0..=255u8).map(|byte| vec![byte]);
        let error = |tokens: Vec<Vec<u8>>| Bpe::new(tokens).unwrap_err().to_string();
        assert_eq!(
            error(bytes().chain([vec![]]).collect()),
            "bad vocabulary: the token of rank `256` is empty"
        );
        assert_eq!(
            error(bytes().chain([b"a\n".to_vec(), b"a\n".to_vec()]).collect()),
            "bad vocabulary: ranks `256` and `257` are the same token `a\\n`"
        );
        assert_eq!(
            error(bytes().skip(1).collect()),
            "bad vocabulary: the byte `0x00` is not a token; all 256 must be"
        );
    }
}
