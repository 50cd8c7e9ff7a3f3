//! What short pieces were encoded to before.

/// The longest piece that is kept, in bytes.
pub(crate) const LONGEST: usize = 15;

/// The most ids of a piece that is kept.
const IDS: usize = 3;

/// Entries of the largest cache, 512 KiB: larger ones are no faster, for they do not stay in a core's own caches.
const MOST: usize = 1 << 14;

/// A short piece as a number: its bytes, and in the highest byte how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u128);

#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Entry {
    key: Key,
    ids: [u32; IDS],
    count: u32,
}

const EMPTY: Entry = Entry { key: Key(0), ids: [0; IDS], count: 0 };

/// Keeps the last piece of each slot. Starts small and grows with the text that it has seen.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: Vec<Entry>,
    /// How far to shift a hash for a slot.
    shift: u32,
    /// Bytes of text that it was made fit for.
    bytes: usize,
}

impl Default for Cache {
    fn default() -> Cache {
        let mut cache = Cache { entries: Vec::new(), shift: 0, bytes: 0 };
        cache.resize(64);
        cache
    }
}

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
        Key(bytes & ((1 << (8 * len)) - 1) | (len as u128) << 120)
    }

    #[inline]
    fn hash(self) -> u64 {
        let (low, high) = (self.0 as u64, (self.0 >> 64) as u64);
        low.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ high.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(32)
    }
}

impl Cache {
    /// Makes the cache fit for `bytes` more of text.
    pub(crate) fn prepare(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        let wanted = (self.bytes / 16).min(MOST).next_power_of_two();
        if wanted > self.entries.len() {
            self.resize(wanted);
        }
    }

    fn resize(&mut self, entries: usize) {
        self.shift = u64::BITS - entries.trailing_zeros();
        let old = std::mem::replace(&mut self.entries, vec![EMPTY; entries]);
        for entry in old.into_iter().filter(|entry| entry.count != 0) {
            let slot = self.slot(entry.key);
            self.entries[slot] = entry;
        }
    }

    #[inline]
    fn slot(&self, key: Key) -> usize {
        (key.hash() >> self.shift) as usize
    }

    /// Appends the ids of the piece `key` where they are known.
    #[inline]
    pub(crate) fn get(&self, key: Key, out: &mut Vec<u32>) -> bool {
        let entry = &self.entries[self.slot(key)];
        if entry.key != key {
            return false;
        }
        let len = out.len() + entry.count as usize;
        out.extend_from_slice(&entry.ids);
        out.truncate(len);
        true
    }

    /// Notes the ids of the piece `key`.
    #[inline]
    pub(crate) fn put(&mut self, key: Key, found: &[u32]) {
        if (1..=IDS).contains(&found.len()) {
            let mut ids = [0; IDS];
            ids[..found.len()].copy_from_slice(found);
            let slot = self.slot(key);
            self.entries[slot] = Entry { key, ids, count: found.len() as u32 };
        }
    }
}
