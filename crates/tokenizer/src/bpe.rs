//! The merges within a piece.
//!
//! A piece starts as its bytes. As long as two neighbours have a merge, the pair whose merge comes first is joined, the
//! leftmost of equals. There are two kinds of vocabulary:
//!
//! - **Ranks**, as in `tiktoken`: ids are ranks, and two tokens have a merge when both joined are a token, whose rank is the
//!   merge's place.
//! - **A list of merges**, as in Hugging Face's files and GGUF: the place in the list is the merge's, and ids are free.

mod cache;
mod index;
mod merge;
#[cfg(test)]
mod tests;

use crate::tokens::{Merges, Tokens};
use crate::{Error, Result};
use cache::{Key, KeyOfFour, MediumCache, ShortCache, ShortTokens};
use index::{NONE, Places, TokenIndex};
use merge::{Merging, Rules, merge_short};
use std::collections::HashMap;
use std::ops::Range;

pub(crate) type FixedMap<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// How many bytes of a long piece are merged at once, at the least.
const WINDOW: usize = 1024;

/// How many of the longest tokens such a stretch has room for, at the least.
const TOKENS: usize = 8;

/// How many pieces are looked up at once.
const BATCH: usize = 64;

/// How many bytes may be compared to find out which ranks are made of which: some seconds' worth, and a hundred times what Llama 3's
/// take.
const MOST_COMPARED: u64 = 1 << 30;

/// What turns the pieces of a text into ids.
#[derive(Debug)]
pub(crate) struct Bpe {
    /// By id.
    tokens: Tokens,
    index: TokenIndex,
    places: Places,
    /// The token that the merge of each place makes; nothing where the place is the id.
    results: Option<Vec<u32>>,
    /// What each byte starts as; [`NONE`] for bytes that are left out.
    bytes: [u32; 256],
    /// Whether a piece that is a token is that token, whatever the merges would make of it.
    whole_pieces: bool,
    /// With that, the short tokens.
    short_tokens: Option<ShortTokens>,
    /// Where a long piece may be merged stretch by stretch: how many bytes at once, see [`Bpe::merge_stretches`].
    window: Option<usize>,
    /// What a byte becomes that is no token.
    unknown: Option<u32>,
}

/// What a list of merges needs beside it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MergeRules {
    /// Whether a piece that is a token is that token ("ignore merges").
    pub(crate) whole_pieces: bool,
    /// What a byte becomes that is no token. Nothing: it is left out.
    pub(crate) unknown: Option<u32>,
}

/// Memory that the encoding of one piece leaves for the next, by the same tokenizer.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    cache: ShortCache,
    medium: MediumCache,
    merging: Merging,
    /// Short pieces of the last batch that were not in the cache.
    missed: usize,
}

impl Scratch {
    /// Makes the memory fit for a text of `bytes`.
    pub(crate) fn prepare(&mut self, bytes: usize) {
        self.cache.prepare(bytes);
        // One piece of some 16 is long.
        self.medium.prepare(bytes / 16);
    }
}

impl Bpe {
    /// A vocabulary whose ranks are the first `ranks` of `tokens`. These must be distinct, not empty, and include every single
    /// byte.
    pub(crate) fn of_ranks(tokens: Tokens, ranks: usize) -> Result<Bpe> {
        let mut bpe = Bpe::without_merges(tokens, 0..ranks as u32, NONE)?;
        bpe.check_lengths(ranks)?;
        if let Some(byte) = bpe.bytes.iter().position(|&id| id == NONE) {
            return Err(problem(format!("the byte `0x{byte:02x}` is not a token; all 256 must be")));
        }
        bpe.treat_whole_pieces_as_tokens();
        let pairs = match trained_pairs(&bpe, ranks) {
            Some(pairs) => {
                bpe.window = Some(bpe.stretch());
                pairs
            }
            None => bpe.splits(ranks).into_iter().map(|(id, left, right)| ((left, right), id)).collect(),
        };
        bpe.places = Places::new(ranks, pairs.iter().copied())?;
        Ok(bpe)
    }

    /// A vocabulary with a list of `merges`. The tokens `ids` must be distinct and not empty, and what a merge makes must be
    /// among them.
    pub(crate) fn of_merges(
        tokens: Tokens,
        ids: impl Iterator<Item = u32>,
        merges: &Merges,
        rules: MergeRules,
    ) -> Result<Bpe> {
        let mut bpe = Bpe::without_merges(tokens, ids, rules.unknown.unwrap_or(NONE))?;
        if rules.whole_pieces {
            bpe.treat_whole_pieces_as_tokens();
        }
        // The last merge that makes each token.
        let mut made_by = vec![None; bpe.tokens.len()];
        let (mut pairs, mut results) = (Vec::with_capacity(merges.len()), Vec::with_capacity(merges.len()));
        for ((left, right), place) in merges.iter().zip(0u32..) {
            let shown = || format!("merge `{place}`, `{} {}`", left.escape_ascii(), right.escape_ascii());
            let id = |token: &[u8]| {
                bpe.id(token)
                    .ok_or_else(|| problem(format!("{}: `{}` is not a token", shown(), token.escape_ascii())))
            };
            pairs.push(((id(left)?, id(right)?), place));
            let result = id(&[left, right].concat())?;
            results.push(result);
            made_by[result as usize] = Some(place);
        }
        let follows = |&((left, right), place): &((u32, u32), u32)| {
            [left, right].iter().all(|&part| made_by[part as usize] < Some(place))
        };
        let in_order = pairs.iter().all(follows);
        pairs.sort_unstable();
        if let Some(two) = pairs.windows(2).find(|two| two[0].0 == two[1].0) {
            let (other, place) = (two[0].1, two[1].1);
            let shown = merges.iter().nth(place as usize).map(|(left, right)| [left, b" ", right].concat());
            return Err(problem(format!(
                "merge `{place}`, `{}`: the same as merge `{other}`",
                shown.unwrap_or_default().escape_ascii()
            )));
        }
        bpe.places = Places::new(bpe.tokens.len(), pairs.iter().copied())?;
        bpe.results = Some(results);
        // A byte is its token, or left out.
        let own = |(byte, &id): (usize, &u32)| id == NONE || bpe.id(&[byte as u8]) == Some(id);
        if in_order && bpe.bytes.iter().enumerate().all(own) {
            bpe.window = Some(bpe.stretch());
        }
        Ok(bpe)
    }

    /// A vocabulary of the tokens `ids`.
    fn without_merges(mut tokens: Tokens, ids: impl Iterator<Item = u32>, missing_byte: u32) -> Result<Bpe> {
        tokens.shrink();
        if tokens.len() > merge::PLACES as usize {
            let most = merge::PLACES;
            return Err(problem(format!(
                "`{}` tokens are too many, at most `{most}` are possible",
                tokens.len()
            )));
        }
        let mut index = TokenIndex::with_capacity(tokens.len());
        for id in ids {
            if tokens[id as usize].is_empty() {
                return Err(problem(format!("the token `{id}` is empty")));
            }
            if let Some(other) = index.insert(&tokens, id) {
                let token = tokens[id as usize].escape_ascii();
                return Err(problem(format!("`{other}` and `{id}` are the same token `{token}`")));
            }
        }
        let byte = |byte: usize| index.get(&tokens, &[byte as u8]).unwrap_or(missing_byte);
        let bytes = std::array::from_fn(byte);
        Ok(Bpe {
            tokens,
            index,
            places: Places::none(),
            results: None,
            bytes,
            whole_pieces: false,
            short_tokens: None,
            window: None,
            unknown: Some(missing_byte).filter(|&id| id != NONE),
        })
    }

    /// How many bytes of a long piece to merge at once.
    fn stretch(&self) -> usize {
        let longest = self.tokens.iter().map(<[u8]>::len).max().unwrap_or(0);
        WINDOW.max(longest.saturating_mul(TOKENS))
    }

    fn treat_whole_pieces_as_tokens(&mut self) {
        let ids = (0u32..).zip(self.tokens.iter()).filter(|&(id, token)| self.id(token) == Some(id));
        self.short_tokens = Some(ShortTokens::new(ids));
        self.whole_pieces = true;
    }

    /// The bytes of every id, those of added tokens included.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Every merge in order: (its place, left, right). With ranks, every way to split a token in two tokens.
    pub(crate) fn merges(&self) -> Vec<(u32, u32, u32)> {
        if self.has_ranks() {
            return self.splits(self.tokens.len());
        }
        let mut merges: Vec<_> =
            self.places.iter().map(|((left, right), place)| (place, left, right)).collect();
        merges.sort_unstable();
        merges
    }

    /// Refuses ranks for which [`Bpe::splits`] would take minutes: thousands of tokens, each of another length.
    fn check_lengths(&self, ranks: usize) -> Result<()> {
        let lengths = self.lengths();
        let shorter = |token: &[u8]| lengths.partition_point(|&length| length < token.len()) as u64;
        let compared: u64 =
            self.tokens.iter().take(ranks).map(|token| shorter(token) * token.len() as u64).sum();
        if compared > MOST_COMPARED {
            return Err(problem(format!(
                "the tokens have `{}` lengths of up to `{}` bytes; to see which are made of which, `{compared}` bytes would \
                 have to be compared, and at most `{MOST_COMPARED}` are",
                lengths.len(),
                lengths.last().unwrap_or(&0)
            )));
        }
        Ok(())
    }

    /// The lengths that tokens have, in order.
    fn lengths(&self) -> Vec<usize> {
        let mut lengths: Vec<usize> = self.tokens.iter().map(<[u8]>::len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// Every way to split one of the first `count` tokens in two that are in the index: (its id, left, right), in this order.
    fn splits(&self, count: usize) -> Vec<(u32, u32, u32)> {
        // Without a look at the lengths that there are, a single token of a megabyte would take hours.
        let lengths = self.lengths();
        let mut splits = Vec::new();
        for (token, id) in self.tokens.iter().take(count).zip(0u32..) {
            if self.id(token) != Some(id) {
                continue;
            }
            let first = splits.len();
            for &middle in
                lengths.iter().filter(|&&middle| middle > 0).take_while(|&&middle| middle < token.len())
            {
                let (left, right) = token.split_at(middle);
                if lengths.binary_search(&right.len()).is_ok()
                    && let (Some(left), Some(right)) = (self.id(left), self.id(right))
                {
                    splits.push((id, left, right));
                }
            }
            splits[first..].sort_unstable();
        }
        splits
    }

    /// Whether ids are ranks; otherwise there is a list of merges.
    pub(crate) fn has_ranks(&self) -> bool {
        self.results.is_none()
    }

    /// Whether a piece that is a token is that token.
    pub(crate) fn whole_pieces(&self) -> bool {
        self.whole_pieces
    }

    /// What a byte becomes that is no token, where the file names it.
    pub(crate) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Whether a byte is no token.
    pub(crate) fn lacks_a_byte(&self) -> bool {
        (0..=255).any(|byte| self.id(&[byte]).is_none())
    }

    /// Bytes of UTF-8 that are left out.
    pub(crate) fn missing_bytes(&self) -> Vec<u8> {
        let occurs = |byte: u8| !matches!(byte, 0xC0 | 0xC1 | 0xF5..=0xFF);
        (0..=255).filter(|&byte| occurs(byte) && self.byte(byte) == NONE).collect()
    }

    /// The id of the token made of `bytes`.
    #[inline]
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.index.get(&self.tokens, bytes)
    }

    /// Appends the ids of the pieces of `text` that `next` finds.
    ///
    /// Most of the time goes into waiting for memory. So the pieces of a batch are looked up one right after another first: no
    /// look-up needs what another finds, and a processor waits for many of them at once.
    #[inline]
    pub(crate) fn encode(
        &self,
        text: &[u8],
        mut next: impl FnMut() -> Option<Range<usize>>,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let mut keys = [cache::LONG; BATCH];
        let mut begins = [0; BATCH + 1];
        loop {
            let mut count = 0;
            while count < BATCH
                && let Some(piece) = next()
            {
                let short = piece.len() <= cache::LONGEST;
                keys[count] = if short { Key::new(text, piece.start, piece.len()) } else { cache::LONG };
                begins[count] = piece.start;
                begins[count + 1] = piece.end;
                count += 1;
            }
            self.encode_batch(text, &begins[..count + 1], &keys[..count], scratch, out);
            if count < BATCH {
                return;
            }
        }
    }

    /// Appends the ids of the pieces of `text` between each two of `begins`.
    #[inline(never)]
    fn encode_batch(
        &self,
        text: &[u8],
        begins: &[usize],
        keys: &[Key],
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let mut slots = [0; BATCH];
        for (&key, slot) in keys.iter().zip(&mut slots) {
            *slot = scratch.cache.slot(key);
        }
        // What is touched is in the processor's caches then, which is all that is wanted of it.
        std::hint::black_box(scratch.cache.touch(&slots[..keys.len()]));
        // Where all of the last batch were known, all of this one most likely are, too.
        let missed = std::mem::take(&mut scratch.missed);
        if let Some(tokens) = self.short_tokens.as_ref().filter(|_| missed > 0) {
            let mut unknown = 0u64;
            for (at, (&key, &slot)) in keys.iter().zip(&slots).enumerate() {
                unknown |= u64::from(!scratch.cache.knows(slot, key)) << at;
            }
            let mut found = 0u64;
            while unknown != 0 {
                let at = unknown.trailing_zeros();
                found |= u64::from(tokens.touch(keys[at as usize])) << at;
                unknown &= unknown - 1;
            }
            std::hint::black_box(found);
        }
        for ((&key, &slot), two) in keys.iter().zip(&slots).zip(begins.windows(2)) {
            let piece = &text[two[0]..two[1]];
            if key == cache::LONG {
                self.encode_medium(piece, scratch, out);
                continue;
            }
            match scratch.cache.get(slot, key, out) {
                None => {
                    scratch.missed += 1;
                    self.encode_short(piece, key, scratch, out);
                }
                Some(0) => self.encode_medium(piece, scratch, out),
                Some(_) => {}
            }
        }
    }

    /// Appends the ids of a short piece that is not in the cache.
    #[inline(never)]
    fn encode_short(&self, piece: &[u8], key: Key, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let before = out.len();
        match self.short_tokens.as_ref().and_then(|tokens| tokens.get(key)) {
            Some(id) => out.push(id),
            None => merge_short(self, piece, out),
        }
        scratch.cache.put(key, &out[before..]);
    }

    /// Appends the ids of a piece that is not short, or became too many ids for the cache of those.
    #[inline(never)]
    fn encode_medium(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if piece.len() > cache::LONGEST_OF_FOUR {
            return self.encode_long(piece, &mut scratch.merging, out);
        }
        let key = KeyOfFour::new(piece);
        let slot = scratch.medium.slot(key);
        if matches!(scratch.medium.get(slot, key, out), None | Some(0)) {
            let before = out.len();
            self.encode_long(piece, &mut scratch.merging, out);
            scratch.medium.put(key, &out[before..]);
        }
    }

    /// Appends the ids of a piece that is not known.
    #[inline(never)]
    fn encode_long(&self, piece: &[u8], merging: &mut Merging, out: &mut Vec<u32>) {
        if self.whole_pieces
            && let Some(id) = self.id(piece)
        {
            out.push(id);
        } else if piece.len() <= merge::SHORT {
            merge_short(self, piece, out);
        } else if let Some(window) = self.window.filter(|&window| piece.len() > window) {
            if piece.iter().all(|&byte| self.byte(byte) != NONE) {
                self.merge_stretches(piece, window, merging, out);
            } else {
                let kept: Vec<u8> = piece.iter().copied().filter(|&byte| self.byte(byte) != NONE).collect();
                self.merge_stretches(&kept, window, merging, out);
            }
        } else {
            let _ = merging.run(self, piece);
            out.extend(merging.tokens().map(|(_, id)| id));
        }
    }

    /// What the merges make of `bytes`, whether or not these are a token.
    pub(crate) fn merged(&self, bytes: &[u8]) -> Vec<u32> {
        let mut merging = Merging::default();
        let _ = merging.run(self, bytes);
        merging.tokens().map(|(_, id)| id).collect()
    }

    /// Merges a long piece stretch by stretch of `least` bytes, which takes time that is linear in its length and stays in the
    /// caches.
    ///
    /// A stretch begins with the last token of the one before and must begin with the same token again. When it does, both
    /// may be put together. Why: two neighbours of a result are also the result for their bytes alone. And where merges come after
    /// those of their parts, so that they happen in the order of their places, a row of tokens of which each two neighbours
    /// are the result for their bytes is the result for all bytes: the first merge across a border would have happened in the
    /// two neighbours alone as well.
    ///
    /// Why it ends: a stretch that cannot be put together takes back a token and is tried again twice as long. As `least` is
    /// [`TOKENS`] tokens, that comes further than what was taken back.
    fn merge_stretches(&self, piece: &[u8], least: usize, merging: &mut Merging, out: &mut Vec<u32>) {
        let first = out.len();
        let (mut begin, mut window) = (0, least);
        loop {
            let end = piece.len().min(begin + window);
            let _ = merging.run(self, &piece[begin..end]);
            let mut tokens = merging.tokens();
            if out.len() > first && tokens.next().map(|(_, id)| id) != out.last().copied() {
                // What follows changes the last token. It is taken back, and more is merged at once.
                out.pop();
                begin -= out[first..].last().map_or(begin, |&id| self.tokens[id as usize].len());
                window *= 2;
                continue;
            }
            if end == piece.len() {
                out.extend(tokens.map(|(_, id)| id));
                return;
            }
            // The stretch's end most likely changes the last tokens.
            let keep = window - window / 8;
            let before = out.len();
            let start = begin;
            for (at, id) in tokens.take_while(|&(at, id)| at + self.tokens[id as usize].len() <= keep) {
                out.push(id);
                begin = start + at;
            }
            // Whatever has made a stretch long is behind.
            window = if out.len() == before { window * 2 } else { least };
        }
    }
}

impl Rules for Bpe {
    #[inline]
    fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    #[inline]
    fn place(&self, left: u32, right: u32) -> u32 {
        self.places.get(left, right)
    }

    #[inline]
    fn result(&self, place: u32) -> u32 {
        self.results.as_ref().map_or(place, |results| results[place as usize])
    }
}

/// The ranks that are there so far while a vocabulary is read.
struct Earlier {
    bytes: [u32; 256],
    places: FixedMap<(u32, u32), u32>,
}

impl Rules for Earlier {
    fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    fn place(&self, left: u32, right: u32) -> u32 {
        self.places.get(&(left, right)).copied().unwrap_or(NONE)
    }

    fn result(&self, place: u32) -> u32 {
        place
    }
}

/// For each of the first `ranks` tokens of several bytes the two that it is made of, where each is made of two that come before
/// it, as in a trained vocabulary. Then these are the only ones that it is ever made of: before its merge's turn, all earlier
/// ones within its bytes have been done.
fn trained_pairs(bpe: &Bpe, ranks: usize) -> Option<Vec<((u32, u32), u32)>> {
    let mut earlier = Earlier { bytes: bpe.bytes, places: FixedMap::default() };
    let mut merging = Merging::default();
    let mut pairs = Vec::with_capacity(ranks);
    for (token, id) in bpe.tokens.iter().take(ranks).zip(0u32..).filter(|(token, _)| token.len() > 1) {
        let pair = merging.run(&earlier, token)?;
        earlier.places.insert(pair, id);
        pairs.push((pair, id));
    }
    Some(pairs)
}

fn problem(problem: String) -> Error {
    Error::Vocabulary { problem }
}
