//! Joins the pairs of a piece in their order.

use super::Bpe;
use super::index::NONE;

/// So many merges are looked through at once for the first of them.
const BLOCK: usize = 16;
const BLOCK_BITS: u32 = BLOCK.trailing_zeros();

/// No merge can have this place or a later one: a place is kept beside where in a block it is.
pub(crate) const PLACES: u32 = NONE >> BLOCK_BITS;

/// A piece while its tokens are joined. Everything is by the place of a token's first byte.
#[derive(Debug, Default)]
pub(crate) struct Merging {
    tokens: Vec<Token>,
    /// The merges of each token with the next one, in blocks; then the first merges of the blocks, in blocks; and so on up
    /// to a single block. An entry is the merge's place, and in the lowest bits where in its block it is: the least of a
    /// block is the leftmost of those that come first. [`NONE`] is no merge.
    levels: Vec<Vec<u32>>,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    id: u32,
    previous: u32,
    next: u32,
}

impl Merging {
    /// Joins all that can be joined of `piece`. Bytes without a token are left out.
    pub(crate) fn run(&mut self, bpe: &Bpe, piece: &[u8]) {
        self.tokens.clear();
        let start = piece.iter().map(|&byte| bpe.byte(byte)).filter(|&id| id != NONE);
        self.tokens.extend(start.zip(0u32..).map(|(id, at)| Token {
            id,
            previous: at.wrapping_sub(1),
            next: at + 1,
        }));
        self.build(bpe);
        while let Some((place, at)) = self.first() {
            self.join(bpe, place, at);
        }
    }

    /// The tokens from left to right: where each begins, and its id. Where no byte was left out, the first is the place in the
    /// piece.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (usize, u32)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let token = self.tokens.get(at)?;
            let found = (at, token.id);
            at = token.next as usize;
            Some(found)
        })
    }

    fn build(&mut self, bpe: &Bpe) {
        let mut len = self.tokens.len().max(1);
        let mut height = 0;
        loop {
            if self.levels.len() == height {
                self.levels.push(Vec::new());
            }
            self.levels[height].clear();
            self.levels[height].resize(len.next_multiple_of(BLOCK), NONE);
            len = len.div_ceil(BLOCK);
            height += 1;
            if len == 1 {
                break;
            }
        }
        self.levels.truncate(height);
        for (at, two) in self.tokens.windows(2).enumerate() {
            self.levels[0][at] = entry(bpe.place(two[0].id, two[1].id), at);
        }
        for level in 1..height {
            for at in 0..self.levels[level - 1].len() / BLOCK {
                self.levels[level][at] = entry(least(&self.levels[level - 1], at) >> BLOCK_BITS, at);
            }
        }
    }

    /// The merge that comes first: its place, and where its left token is.
    #[inline]
    fn first(&self) -> Option<(u32, usize)> {
        let mut at = 0;
        let mut found = NONE;
        for level in self.levels.iter().rev() {
            found = least(level, at);
            if found == NONE {
                return None;
            }
            at = at * BLOCK + found as usize % BLOCK;
        }
        Some((found >> BLOCK_BITS, at))
    }

    /// Joins the token at `at` with the next one.
    #[inline]
    fn join(&mut self, bpe: &Bpe, place: u32, at: usize) {
        let left = self.tokens[at];
        let (id, next) = (bpe.result(place), self.tokens[left.next as usize].next);
        self.tokens[at] = Token { id, next, ..left };
        self.set(left.next as usize, PLACES);
        let mut with_next = PLACES;
        if let Some(after) = self.tokens.get_mut(next as usize) {
            after.previous = at as u32;
            with_next = bpe.place(id, after.id);
        }
        self.set(at, with_next);
        if left.previous != NONE {
            let before = left.previous as usize;
            self.set(before, bpe.place(self.tokens[before].id, id));
        }
    }

    /// Notes the place of the merge of the token at `at` with the next one.
    #[inline]
    fn set(&mut self, mut at: usize, place: u32) {
        let mut place = place;
        for level in &mut self.levels {
            let entry = entry(place, at);
            if level[at] == entry {
                break;
            }
            level[at] = entry;
            at /= BLOCK;
            place = least(level, at) >> BLOCK_BITS;
        }
    }
}

#[inline]
fn entry(place: u32, at: usize) -> u32 {
    if place >= PLACES { NONE } else { place << BLOCK_BITS | (at % BLOCK) as u32 }
}

/// The least entry of the block `block`.
#[inline]
fn least(level: &[u32], block: usize) -> u32 {
    match level.as_chunks::<BLOCK>().0.get(block) {
        Some(entries) => entries.iter().fold(NONE, |least, &entry| least.min(entry)),
        None => NONE,
    }
}
