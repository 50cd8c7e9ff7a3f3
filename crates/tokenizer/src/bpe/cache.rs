//! Short pieces as numbers: which of them are tokens, and what others were encoded to before.

/// The longest piece that is a number, in bytes.
pub(crate) const LONGEST: usize = 15;

/// The longest piece that is four numbers.
pub(crate) const LONGEST_OF_FOUR: usize = 63;

/// A short piece as a number: its bytes, and in the highest byte how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u128);

/// A piece of up to [`LONGEST_OF_FOUR`] bytes as four numbers: its bytes, and in the highest byte how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyOfFour([u128; 4]);

// Derived, this would call a function for numbers that are in registers.
impl PartialEq for KeyOfFour {
    #[inline]
    fn eq(&self, other: &KeyOfFour) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differs, (one, two)| differs | (one ^ two)) == 0
    }
}

/// What a cache finds pieces by.
pub(crate) trait Keys: Copy + PartialEq {
    /// No piece.
    const NONE: Self;

    fn hash(self) -> u64;
}

/// A cache of short pieces: 32 bytes an entry, up to 16 MiB.
pub(crate) type ShortCache = Cache<Key, 4, { 1 << 18 }>;

/// A cache of pieces that are longer or become more ids: 128 bytes an entry, up to 8 MiB.
pub(crate) type MediumCache = Cache<KeyOfFour, 15, { 1 << 15 }>;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
struct Entry<K, const IDS: usize> {
    key: K,
    /// In the highest bits of the first, how many there are; 0 where there are too many.
    ids: [u32; IDS],
}

/// The pieces that one slot keeps, the later one first. Two short ones are a line of memory.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Pair<K, const IDS: usize>([Entry<K, IDS>; 2]);

/// Where in the first id the number of ids begins; ids are smaller.
const COUNT_AT: u32 = super::merge::PLACES.trailing_ones();

/// No short piece.
pub(crate) const LONG: Key = Key(u128::MAX);

/// Keeps the last two pieces of each slot, in up to `MOST` slots, where these became at most `IDS` ids. Starts small and grows
/// with the text that it has seen.
#[derive(Debug)]
pub(crate) struct Cache<K, const IDS: usize, const MOST: usize> {
    slots: Vec<Pair<K, IDS>>,
    /// How far to shift a hash for a slot.
    shift: u32,
    /// Bytes of text that it was made fit for.
    bytes: usize,
}

impl<K: Keys, const IDS: usize, const MOST: usize> Default for Cache<K, IDS, MOST> {
    fn default() -> Self {
        let mut cache = Self { slots: Vec::new(), shift: 0, bytes: 0 };
        cache.resize(64);
        cache
    }
}

/// The first bytes of a number, so many.
const FIRST_BYTES: [u128; LONGEST + 1] = {
    let mut masks = [0; LONGEST + 1];
    let mut len = 1;
    while len <= LONGEST {
        masks[len] = masks[len - 1] << 8 | 0xFF;
        len += 1;
    }
    masks
};

impl Key {
    /// The piece of `text` at `begin` of `len` bytes, at most [`LONGEST`].
    #[inline]
    pub(crate) fn new(text: &[u8], begin: usize, len: usize) -> Key {
        let bytes = match text[begin..].first_chunk() {
            Some(bytes) => u128::from_le_bytes(*bytes),
            None => {
                let mut bytes = [0; 16];
                bytes[..len].copy_from_slice(&text[begin..begin + len]);
                u128::from_le_bytes(bytes)
            }
        };
        Key(bytes & FIRST_BYTES[len] | (len as u128) << 120)
    }
}

impl Keys for Key {
    const NONE: Key = Key(0);

    #[inline]
    fn hash(self) -> u64 {
        let (low, high) = (self.0 as u64, (self.0 >> 64) as u64);
        low.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ high.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(32)
    }
}

impl KeyOfFour {
    /// The piece `piece` of at most [`LONGEST_OF_FOUR`] bytes.
    #[inline]
    pub(crate) fn new(piece: &[u8]) -> KeyOfFour {
        let mut bytes = [0; 64];
        bytes[..piece.len()].copy_from_slice(piece);
        bytes[LONGEST_OF_FOUR] = piece.len() as u8;
        let (parts, _) = bytes.as_chunks::<16>();
        KeyOfFour(std::array::from_fn(|i| u128::from_le_bytes(parts[i])))
    }
}

impl Keys for KeyOfFour {
    const NONE: KeyOfFour = KeyOfFour([0; 4]);

    #[inline]
    fn hash(self) -> u64 {
        self.0.iter().fold(0, |hash: u64, &part| {
            hash.rotate_left(23).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ Key(part).hash()
        })
    }
}

/// The tokens of at most [`LONGEST`] bytes. Unlike in the index of all tokens, a look into one line of memory tells.
#[derive(Debug)]
pub(crate) struct ShortTokens {
    keys: Vec<Key>,
    ids: Vec<u32>,
    shift: u32,
}

impl ShortTokens {
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = (u32, &'a [u8])> + Clone) -> ShortTokens {
        let short = tokens.filter(|(_, token)| token.len() <= LONGEST);
        let count = short.clone().count();
        let slots = (count + count / 3 + 1).next_power_of_two().max(2);
        let mut index = ShortTokens {
            keys: vec![Key::NONE; slots],
            ids: vec![0; slots],
            shift: u64::BITS - slots.trailing_zeros(),
        };
        for (id, token) in short {
            let key = Key::new(token, 0, token.len());
            let (slot, _) = index.slot(key);
            index.keys[slot] = key;
            index.ids[slot] = id;
        }
        index
    }

    /// Whether the first slot where `key` may be has it: one read, that depends on no other.
    #[inline]
    pub(crate) fn touch(&self, key: Key) -> bool {
        self.keys[(key.hash() >> self.shift) as usize] == key
    }

    /// The id of the token `key`.
    #[inline]
    pub(crate) fn get(&self, key: Key) -> Option<u32> {
        let (slot, found) = self.slot(key);
        found.then(|| self.ids[slot])
    }

    /// The slot of `key`, or the empty one where it would be, and which of the two.
    #[inline]
    fn slot(&self, key: Key) -> (usize, bool) {
        let mut slot = (key.hash() >> self.shift) as usize;
        loop {
            let there = self.keys[slot];
            if there == key || there == Key::NONE {
                return (slot, there == key);
            }
            slot = (slot + 1) % self.keys.len();
        }
    }
}

impl<K: Keys, const IDS: usize, const MOST: usize> Cache<K, IDS, MOST> {
    const NOTHING: Entry<K, IDS> = Entry { key: K::NONE, ids: [0; IDS] };

    /// Makes the cache fit for `bytes` more of text.
    pub(crate) fn prepare(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        let wanted = (self.bytes / 64).min(MOST).next_power_of_two();
        if wanted > self.slots.len() {
            self.resize((2 * wanted).min(MOST));
        }
    }

    fn resize(&mut self, slots: usize) {
        self.shift = u64::BITS - slots.trailing_zeros();
        let old = std::mem::replace(&mut self.slots, vec![Pair([Self::NOTHING; 2]); slots]);
        for entry in old.into_iter().flat_map(|pair| pair.0).rev().filter(|entry| entry.key != K::NONE) {
            self.keep(entry);
        }
    }

    #[inline]
    pub(crate) fn slot(&self, key: K) -> usize {
        (key.hash() >> self.shift) as usize
    }

    /// Reads from each of `slots` and does so little with it that a processor waits for many of them at once. What it returns
    /// means nothing.
    #[inline]
    pub(crate) fn touch(&self, slots: &[usize]) -> u32 {
        slots.iter().fold(0, |sum, &slot| sum ^ self.slots[slot].0[0].ids[0])
    }

    /// Whether the slot `slot` knows the ids of the piece `key`: one read, that depends on no other.
    #[inline]
    pub(crate) fn knows(&self, slot: usize, key: K) -> bool {
        let [one, other] = &self.slots[slot].0;
        (one.key == key) | (other.key == key)
    }

    /// Appends the ids of the piece `key` where the slot `slot` knows them, and tells how many: 0 where these were too many to
    /// keep.
    #[inline]
    pub(crate) fn get(&self, slot: usize, key: K, out: &mut Vec<u32>) -> Option<usize> {
        let [one, other] = &self.slots[slot].0;
        let entry = if one.key == key { one } else { other };
        if entry.key != key {
            return None;
        }
        let mut ids = entry.ids;
        let count = (ids[0] >> COUNT_AT) as usize;
        ids[0] &= (1 << COUNT_AT) - 1;
        let len = out.len() + count;
        out.extend_from_slice(&ids);
        out.truncate(len);
        Some(count)
    }

    /// Notes the ids of the piece `key`, or that they are too many.
    #[inline]
    pub(crate) fn put(&mut self, key: K, found: &[u32]) {
        let mut ids = [0; IDS];
        if let Some(kept) = ids.get_mut(..found.len()) {
            kept.copy_from_slice(found);
            ids[0] |= (found.len() as u32) << COUNT_AT;
        }
        self.keep(Entry { key, ids });
    }

    fn keep(&mut self, entry: Entry<K, IDS>) {
        let slot = self.slot(entry.key);
        let Pair([one, other]) = &mut self.slots[slot];
        *other = std::mem::replace(one, entry);
    }
}
