//! Joins the pairs of a piece in their order.

use super::index::NONE;

/// So many merges are looked through at once for the first of them.
const BLOCK: usize = 16;
const BLOCK_BITS: u32 = BLOCK.trailing_zeros();

/// No merge can have this place or a later one: a place is kept beside where in a block it is.
pub(crate) const PLACES: u32 = NONE >> BLOCK_BITS;

/// What [`Merging`] asks a vocabulary.
pub(crate) trait Rules {
    /// What a byte starts as; [`NONE`] where it is left out.
    fn byte(&self, byte: u8) -> u32;
    /// The place of the merge of two tokens; [`NONE`] where there is none.
    fn place(&self, left: u32, right: u32) -> u32;
    /// The token that the merge at `place` makes.
    fn result(&self, place: u32) -> u32;
}

/// A piece while its tokens are joined. Everything is by the place of a token's first byte.
#[derive(Debug, Default)]
pub(crate) struct Merging {
    tokens: Vec<Token>,
    /// The merges of each token with the next one, in blocks; then the first merges of the blocks, in blocks; and so on up
    /// to a single block. An entry is the merge's place, and in the lowest bits where in its block it is: the least of a
    /// block is the leftmost of those that come first. [`NONE`] is no merge.
    levels: Vec<Vec<u32>>,
}

/// What two tokens joined have changed: the merges of the token before them, of their own, and of the right one.
struct Joined {
    before: usize,
    next: usize,
    /// The place of the first of the new merges.
    least: u32,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    id: u32,
    previous: u32,
    next: u32,
}

impl Merging {
    /// Joins all that can be joined of `piece`. Bytes without a token are left out. Returns the tokens where these are two.
    pub(crate) fn run(&mut self, rules: &impl Rules, piece: &[u8]) -> Option<(u32, u32)> {
        self.tokens.clear();
        let start = piece.iter().map(|&byte| rules.byte(byte)).filter(|&id| id != NONE);
        self.tokens.extend(start.zip(0u32..).map(|(id, at)| Token {
            id,
            previous: at.wrapping_sub(1),
            next: at + 1,
        }));
        self.build(rules);
        while let Some((place, block)) = self.first() {
            self.join_in_block(rules, place, block);
        }
        let left = self.tokens.first()?;
        let right = self.tokens.get(left.next as usize)?;
        (right.next as usize == self.tokens.len()).then_some((left.id, right.id))
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

    fn build(&mut self, rules: &impl Rules) {
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
            self.levels[0][at] = entry(rules.place(two[0].id, two[1].id), at);
        }
        for level in 1..height {
            for at in 0..self.levels[level - 1].len() / BLOCK {
                self.levels[level][at] = entry(least(&self.levels[level - 1], at) >> BLOCK_BITS, at);
            }
        }
    }

    /// The place of the merge that comes first, and the leftmost block where it is.
    #[inline]
    fn first(&self) -> Option<(u32, usize)> {
        let (mut at, mut block) = (0, 0);
        let mut found = NONE;
        for level in self.levels.iter().rev() {
            block = at;
            found = least(level, block);
            if found == NONE {
                return None;
            }
            at = block * BLOCK + found as usize % BLOCK;
        }
        Some((found >> BLOCK_BITS, block))
    }

    /// Does the merges at `place` in `block`, from the left, as long as none that comes before them turns up.
    #[inline]
    fn join_in_block(&mut self, rules: &impl Rules, place: u32, block: usize) {
        let (first, mut last) = (block * BLOCK, block);
        for at in first..first + BLOCK {
            // Each join changes what is behind it.
            if self.levels[0][at] >> BLOCK_BITS != place {
                continue;
            }
            let joined = self.join(rules, place, at);
            if self.levels.len() > 1 {
                let before = joined.before / BLOCK;
                if before != block {
                    self.refresh(before);
                }
                last = joined.next / BLOCK;
            }
            if joined.least <= place {
                break;
            }
        }
        if self.levels.len() > 1 {
            self.refresh(block);
            if last != block {
                self.refresh(last);
            }
        }
    }

    /// Joins the token at `at` with the next one. The upper levels are left as they are.
    #[inline]
    fn join(&mut self, rules: &impl Rules, place: u32, at: usize) -> Joined {
        let left = self.tokens[at];
        let (id, next) = (rules.result(place), self.tokens[left.next as usize].next);
        self.tokens[at] = Token { id, next, ..left };
        let (mut with_next, mut with_before, mut before) = (NONE, NONE, at);
        if let Some(after) = self.tokens.get_mut(next as usize) {
            after.previous = at as u32;
            with_next = rules.place(id, after.id);
        }
        let merges = &mut self.levels[0];
        merges[left.next as usize] = NONE;
        merges[at] = entry(with_next, at);
        if left.previous != NONE {
            before = left.previous as usize;
            with_before = rules.place(self.tokens[before].id, id);
            merges[before] = entry(with_before, before);
        }
        Joined { before, next: left.next as usize, least: with_next.min(with_before) }
    }

    /// Tells the upper levels what the first merge of a block is now.
    fn refresh(&mut self, mut block: usize) {
        for level in 1..self.levels.len() {
            let entry = entry(least(&self.levels[level - 1], block) >> BLOCK_BITS, block);
            if self.levels[level][block] == entry {
                break;
            }
            self.levels[level][block] = entry;
            block /= BLOCK;
        }
    }
}

/// The most bytes that [`merge_short`] takes.
pub(crate) const SHORT: usize = 31;

/// What [`Merging::run`] finds, for a piece that is so short that looking through all merges each time is quickest.
#[inline]
pub(crate) fn merge_short(rules: &impl Rules, piece: &[u8], out: &mut Vec<u32>) {
    let mut ids = [0; SHORT];
    // The place of the merge of each token with the next one.
    let mut places = [NONE; SHORT];
    let mut count = 0;
    for id in piece.iter().map(|&byte| rules.byte(byte)).filter(|&id| id != NONE) {
        ids[count] = id;
        count += 1;
    }
    for at in 1..count {
        places[at - 1] = rules.place(ids[at - 1], ids[at]);
    }
    while count > 1 {
        let (mut place, mut at) = (places[0], 0);
        for (other, &next) in places[..count - 1].iter().enumerate().skip(1) {
            if next < place {
                (place, at) = (next, other);
            }
        }
        if place == NONE {
            break;
        }
        let id = rules.result(place);
        count -= 1;
        ids[at] = id;
        for after in at + 1..count {
            ids[after] = ids[after + 1];
            places[after] = places[after + 1];
        }
        places[at] = if at + 1 < count { rules.place(id, ids[at + 1]) } else { NONE };
        if at > 0 {
            places[at - 1] = rules.place(ids[at - 1], id);
        }
    }
    out.extend_from_slice(&ids[..count]);
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
