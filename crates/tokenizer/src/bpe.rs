//! The merges within a piece.
//!
//! A piece starts as its bytes. As long as two neighbours have a merge, the pair whose merge comes first is joined, the
//! leftmost of equals. There are two kinds of vocabulary:
//!
//! - **Ranks**, as in `tiktoken`: ids are ranks, and two tokens have a merge when both joined are a token, whose rank is the
//!   merge's place.
//! - **A list of merges**, as in Hugging Face's files and GGUF: the place in the list is the merge's, and ids are free.

use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

pub(crate) type FixedMap<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// A string of bytes that is a token.
pub(crate) type Token = Box<[u8]>;

/// No token and no merge; also the end of a linked list.
const NONE: u32 = u32::MAX;

/// Up to this many bytes, scanning for the lowest rank beats a heap.
const SHORT: usize = 128;

/// What turns the pieces of a text into ids.
#[derive(Debug)]
pub(crate) struct Bpe {
    ids: FixedMap<Token, u32>,
    /// The place of the merge of two tokens, for all pairs that have one.
    places: FixedMap<(u32, u32), u32>,
    /// The token that the merge of each place makes; nothing where the place is the id.
    results: Option<Vec<u32>>,
    /// What each byte starts as; [`NONE`] for bytes that are left out.
    bytes: [u32; 256],
    /// Whether a piece that is a token is that token, whatever the merges would make of it.
    whole_pieces: bool,
}

/// What a list of merges needs beside it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MergeRules {
    /// Whether a piece that is a token is that token ("ignore merges").
    pub(crate) whole_pieces: bool,
    /// What a byte becomes that is no token. Nothing: it is left out.
    pub(crate) unknown: Option<u32>,
}

/// Memory that the encoding of one piece leaves for the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// (token, the place of its merge with its right neighbour)
    parts: Vec<(u32, u32)>,
    links: Vec<Link>,
    /// (place of the merge, index of the left token)
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    id: u32,
    /// The place of its merge with the next one.
    place: u32,
    previous: u32,
    next: u32,
}

impl Bpe {
    /// A vocabulary of ranks. The tokens must be distinct, not empty, and include every single byte.
    pub(crate) fn of_ranks(tokens: &[Token]) -> Result<Bpe> {
        if tokens.len() > crate::tokenizer::MAX_RANKS {
            return Err(problem(format!("`{}` ranks do not fit 32-bit ids", tokens.len())));
        }
        let ids = index(tokens.iter().zip(0u32..).map(|(token, id)| (id, token)))?;
        let bytes = bytes(&ids, NONE);
        if let Some(byte) = bytes.iter().position(|&id| id == NONE) {
            return Err(problem(format!("the byte `0x{byte:02x}` is not a token; all 256 must be")));
        }
        let mut places = FixedMap::default();
        for (token, id) in tokens.iter().zip(0u32..) {
            for middle in 1..token.len() {
                let (left, right) = token.split_at(middle);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    places.insert((left, right), id);
                }
            }
        }
        Ok(Bpe { ids, places, results: None, bytes, whole_pieces: true })
    }

    /// A vocabulary with a list of `merges`. The `tokens` must be distinct and not empty, and what a merge makes must be
    /// among them.
    pub(crate) fn of_merges<'a>(
        tokens: impl Iterator<Item = (u32, &'a Token)>,
        merges: &[(Token, Token)],
        rules: MergeRules,
    ) -> Result<Bpe> {
        let ids = index(tokens)?;
        let bytes = bytes(&ids, rules.unknown.unwrap_or(NONE));
        let mut places = FixedMap::with_capacity_and_hasher(merges.len(), Default::default());
        let mut results = Vec::with_capacity(merges.len());
        for ((left, right), place) in merges.iter().zip(0u32..) {
            let shown = || format!("merge `{place}`, `{} {}`", left.escape_ascii(), right.escape_ascii());
            let id = |token: &[u8]| {
                ids.get(token)
                    .copied()
                    .ok_or_else(|| problem(format!("{}: `{}` is not a token", shown(), token.escape_ascii())))
            };
            if let Some(other) = places.insert((id(left)?, id(right)?), place) {
                return Err(problem(format!("{}: the same as merge `{other}`", shown())));
            }
            results.push(id(&[&left[..], right].concat())?);
        }
        Ok(Bpe { ids, places, results: Some(results), bytes, whole_pieces: rules.whole_pieces })
    }

    /// Every merge in order: (its place, left, right).
    pub(crate) fn merges(&self) -> Vec<(u32, u32, u32)> {
        let mut merges: Vec<_> =
            self.places.iter().map(|(&(left, right), &place)| (place, left, right)).collect();
        merges.sort_unstable();
        merges
    }

    /// Whether ids are ranks; otherwise there is a list of merges.
    pub(crate) fn has_ranks(&self) -> bool {
        self.results.is_none()
    }

    /// Whether a piece that is a token is that token.
    pub(crate) fn whole_pieces(&self) -> bool {
        self.whole_pieces
    }

    /// Bytes of UTF-8 that are left out.
    pub(crate) fn missing_bytes(&self) -> Vec<u8> {
        let occurs = |byte: u8| !matches!(byte, 0xC0 | 0xC1 | 0xF5..=0xFF);
        (0..=255).filter(|&byte| occurs(byte) && self.bytes[usize::from(byte)] == NONE).collect()
    }

    /// The id of the token made of `bytes`.
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.ids.get(bytes).copied()
    }

    /// Appends the ids of `piece`.
    #[inline]
    pub(crate) fn encode(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if self.whole_pieces
            && let Some(id) = self.id(piece)
        {
            out.push(id);
        } else if piece.len() <= SHORT {
            self.merge_short(piece, scratch, out);
        } else {
            self.merge_long(piece, scratch, out);
        }
    }

    /// The place of the merge of two tokens.
    fn place(&self, left: u32, right: u32) -> u32 {
        self.places.get(&(left, right)).copied().unwrap_or(NONE)
    }

    /// The token that the merge at `place` makes.
    fn result(&self, place: u32) -> u32 {
        self.results.as_ref().map_or(place, |results| results[place as usize])
    }

    /// What the bytes of a piece start as.
    fn start<'a>(&'a self, piece: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
        piece.iter().map(|&byte| self.bytes[usize::from(byte)]).filter(|&id| id != NONE)
    }

    /// Quadratic, but quick for the short pieces that nearly all are.
    fn merge_short(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let parts = &mut scratch.parts;
        parts.clear();
        parts.extend(self.start(piece).map(|id| (id, NONE)));
        for i in 1..parts.len() {
            parts[i - 1].1 = self.place(parts[i - 1].0, parts[i].0);
        }
        loop {
            let (mut first, mut at) = (NONE, 0);
            for (i, &(_, place)) in parts.iter().enumerate() {
                if place < first {
                    (first, at) = (place, i);
                }
            }
            if first == NONE {
                break;
            }
            let joined = self.result(first);
            parts.remove(at + 1);
            let right = parts.get(at + 1).map_or(NONE, |&(right, _)| self.place(joined, right));
            parts[at] = (joined, right);
            if at > 0 {
                parts[at - 1].1 = self.place(parts[at - 1].0, joined);
            }
        }
        out.extend(parts.iter().map(|&(id, _)| id));
    }

    /// The same with a linked list and a heap: n log n.
    fn merge_long(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { links, queue, .. } = scratch;
        queue.clear();
        links.clear();
        links.extend(self.start(piece).zip(0u32..).map(|(id, i)| Link {
            id,
            place: NONE,
            previous: i.wrapping_sub(1),
            next: i + 1,
        }));
        let Some(last) = links.len().checked_sub(1) else { return };
        links[last].next = NONE;
        for i in 0..last {
            self.consider(i as u32, links, queue);
        }
        while let Some(Reverse((place, at))) = queue.pop() {
            let left = links[at as usize];
            // The entry is out of date when either neighbour has been joined with another since.
            if left.place != place {
                continue;
            }
            let right = links[left.next as usize];
            links[left.next as usize].place = NONE;
            links[at as usize] = Link { id: self.result(place), next: right.next, ..left };
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

    /// Finds the merge of the token at `at` with the next one, and queues it.
    fn consider(&self, at: u32, links: &mut [Link], queue: &mut BinaryHeap<Reverse<(u32, u32)>>) {
        let Link { id, next, .. } = links[at as usize];
        let place = if next == NONE { NONE } else { self.place(id, links[next as usize].id) };
        links[at as usize].place = place;
        if place != NONE {
            queue.push(Reverse((place, at)));
        }
    }
}

fn problem(problem: String) -> Error {
    Error::Vocabulary { problem }
}

/// The ids of the tokens, which must be distinct and not empty.
fn index<'a>(tokens: impl Iterator<Item = (u32, &'a Token)>) -> Result<FixedMap<Token, u32>> {
    let mut ids = FixedMap::with_capacity_and_hasher(tokens.size_hint().0, Default::default());
    for (id, token) in tokens {
        if token.is_empty() {
            return Err(problem(format!("the token `{id}` is empty")));
        }
        if let Some(other) = ids.insert(token.clone(), id) {
            return Err(problem(format!(
                "`{other}` and `{id}` are the same token `{}`",
                token.escape_ascii()
            )));
        }
    }
    Ok(ids)
}

fn bytes(ids: &FixedMap<Token, u32>, missing: u32) -> [u32; 256] {
    std::array::from_fn(|byte| ids.get([byte as u8].as_slice()).copied().unwrap_or(missing))
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

    fn boxed(tokens: &[Vec<u8>]) -> Vec<Token> {
        tokens.iter().map(|token| token.clone().into_boxed_slice()).collect()
    }

    /// A list of merges as training makes it: each joins two tokens that are there. With it, the tokens in an order that
    /// has nothing to do with the merges, and a piece.
    fn merges_and_piece(len: usize) -> impl Strategy<Value = (Vec<Token>, Vec<(Token, Token)>, Vec<u8>)> {
        let pairs = proptest::collection::vec((any::<usize>(), any::<usize>()), 0..40);
        let letters = proptest::sample::select(b"abc".to_vec());
        (pairs, proptest::collection::vec(letters, 1..len)).prop_map(|(pairs, piece)| {
            let mut tokens: Vec<Vec<u8>> = vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()];
            let mut merges = Vec::new();
            for (left, right) in pairs {
                let (left, right) =
                    (tokens[left % tokens.len()].clone(), tokens[right % tokens.len()].clone());
                let joined = [left.as_slice(), &right].concat();
                if joined.len() < 9 && !tokens.contains(&joined) {
                    tokens.push(joined);
                    merges.push((left.into_boxed_slice(), right.into_boxed_slice()));
                }
            }
            tokens.sort_by_key(|token| blake3::hash(token).to_hex().to_string());
            (boxed(&tokens), merges, piece)
        })
    }

    /// Merges one after the other over the whole piece, which is the same as the earliest first.
    fn merge_oracle(tokens: &[Token], merges: &[(Token, Token)], piece: &[u8]) -> Vec<u32> {
        let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
        let place = |pair: &[Vec<u8>]| merges.iter().position(|(l, r)| l[..] == pair[0] && r[..] == pair[1]);
        while let Some((_, at)) = parts.windows(2).enumerate().filter_map(|(i, w)| Some((place(w)?, i))).min()
        {
            let right = parts.remove(at + 1);
            parts[at].extend(right);
        }
        parts.iter().map(|part| tokens.iter().position(|t| t[..] == part[..]).unwrap() as u32).collect()
    }

    proptest! {
        #[test]
        fn both_ways_of_merging_follow_the_rule((tokens, piece) in vocabulary_and_piece(40)) {
            let bpe = Bpe::of_ranks(&boxed(&tokens)).unwrap();
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
            let bpe = Bpe::of_ranks(&boxed(&tokens)).unwrap();
            let mut scratch = Scratch::default();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            bpe.merge_short(&piece, &mut scratch, &mut short);
            bpe.merge_long(&piece, &mut scratch, &mut long);
            prop_assert_eq!(short, long);
        }

        #[test]
        fn lists_of_merges_are_followed_in_order((tokens, merges, piece) in merges_and_piece(60)) {
            let numbered = || (0u32..).zip(&tokens);
            let expected = merge_oracle(&tokens, &merges, &piece);
            let mut scratch = Scratch::default();
            let bpe = Bpe::of_merges(numbered(), &merges, MergeRules::default()).unwrap();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            bpe.encode(&piece, &mut scratch, &mut short);
            prop_assert_eq!(&short, &expected);
            bpe.merge_long(&piece, &mut scratch, &mut long);
            prop_assert_eq!(&long, &expected);

            let rules = MergeRules { whole_pieces: true, unknown: None };
            let mut whole = Vec::new();
            Bpe::of_merges(numbered(), &merges, rules).unwrap().encode(&piece, &mut scratch, &mut whole);
            let id = tokens.iter().position(|token| token[..] == piece[..]);
            prop_assert_eq!(whole, id.map_or(expected, |id| vec![id as u32]));
        }
    }

    #[test]
    fn bytes_that_are_no_token_are_left_out_or_unknown() {
        let tokens = boxed(&[b"a".to_vec(), b"aa".to_vec(), b"?".to_vec()]);
        let merges = [(tokens[0].clone(), tokens[0].clone())];
        let encode = |unknown, piece: &[u8]| {
            let rules = MergeRules { whole_pieces: false, unknown };
            let bpe = Bpe::of_merges((0u32..).zip(&tokens), &merges, rules).unwrap();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            bpe.merge_short(piece, &mut Scratch::default(), &mut short);
            bpe.merge_long(piece, &mut Scratch::default(), &mut long);
            assert_eq!(short, long);
            short
        };
        assert_eq!(encode(None, b"axa"), [1]);
        assert!(encode(None, b"xx").is_empty());
        assert_eq!(encode(Some(2), b"axa"), [0, 2, 0]);
    }

    #[test]
    fn bad_vocabularies_are_named() {
        let bytes = || (0..=255u8).map(|byte| vec![byte]);
        let error = |tokens: Vec<Vec<u8>>| Bpe::of_ranks(&boxed(&tokens)).unwrap_err().to_string();
        assert_eq!(error(bytes().chain([vec![]]).collect()), "bad vocabulary: the token `256` is empty");
        assert_eq!(
            error(bytes().chain([b"a\n".to_vec(), b"a\n".to_vec()]).collect()),
            "bad vocabulary: `256` and `257` are the same token `a\\n`"
        );
        assert_eq!(
            error(bytes().skip(1).collect()),
            "bad vocabulary: the byte `0x00` is not a token; all 256 must be"
        );
        let tokens = boxed(&[b"a".to_vec(), b"b".to_vec(), b"ab".to_vec()]);
        let error = |merges: &[(&str, &str)]| {
            let token = |text: &str| text.as_bytes().into();
            let merges: Vec<_> = merges.iter().map(|(l, r)| (token(l), token(r))).collect();
            Bpe::of_merges((0u32..).zip(&tokens), &merges, MergeRules::default()).unwrap_err().to_string()
        };
        assert_eq!(error(&[("a", "b"), ("b", "c")]), "bad vocabulary: merge `1`, `b c`: `c` is not a token");
        assert_eq!(error(&[("b", "a")]), "bad vocabulary: merge `0`, `b a`: `ba` is not a token");
        assert_eq!(
            error(&[("a", "b"), ("a", "b")]),
            "bad vocabulary: merge `1`, `a b`: the same as merge `0`"
        );
    }
}
