//! From a global sequence number to a packed training sequence.
//!
//! An epoch is all documents in an order shuffled by (seed, epoch), laid end to end and cut every `length` tokens; the
//! sequences are then visited in another shuffled order, so that the parts of one long document do not fill the steps
//! of a stretch of training. A sequence holds whole documents and at most two cut ones; a document that continues from
//! another sequence starts again at position 0, because its earlier part is not visible. The last token of a document
//! has no target.
//!
//! Where a run goes from short sequences to long ones, `length` is the longest, and shorter ones are parts of such a chunk.
//! The documents of one domain can be read as a stream of their own, with their own epochs.

use std::ops::Range;
use std::sync::{Mutex, OnceLock};

use crate::{DataError, Domain, TokenStore, shuffled};

/// One training sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The next token inside the same document, or `u32::MAX` where there is none.
    pub targets: Vec<u32>,
    /// Lengths of the document runs; they add up to the number of tokens.
    pub documents: Vec<usize>,
}

/// Several sequences packed one after another for a single forward pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Targets, `u32::MAX` where there is none.
    pub targets: Vec<u32>,
    /// Lengths of the document runs.
    pub documents: Vec<usize>,
}

impl Batch {
    /// Packs sequences in order.
    pub fn pack(sequences: impl IntoIterator<Item = Sequence>) -> Self {
        let mut batch = Self::default();
        for mut s in sequences {
            batch.tokens.append(&mut s.tokens);
            batch.targets.append(&mut s.targets);
            batch.documents.append(&mut s.documents);
        }
        batch
    }

    /// Number of rows that count in the loss.
    pub fn num_targets(&self) -> usize {
        self.targets.iter().filter(|&&t| t != u32::MAX).count()
    }
}

/// Where a sequence of a run is read: in a part of a chunk of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the sequence in the run.
    pub number: u64,
    /// The stream: the documents of a domain, or all of them.
    pub domain: Option<Domain>,
    /// Number of the chunk in its stream, counted over all epochs.
    pub chunk: u64,
    /// Tokens of the chunk.
    pub part: Range<usize>,
}

/// Reads sequences from a store, cut from chunks of a fixed length.
pub struct Loader {
    store: TokenStore,
    length: usize,
    seed: u64,
    all: Stream,
    /// In the order of [`Domain::ALL`], made when first asked for.
    of_domain: [OnceLock<Stream>; Domain::ALL.len()],
}

/// Documents that are read one after another, epoch by epoch.
struct Stream {
    /// `None` where they are all of the store.
    documents: Option<Vec<u32>>,
    tokens: u64,
    seed: u64,
    epoch: Mutex<Option<Epoch>>,
}

impl Stream {
    fn of_domain(store: &TokenStore, domain: Domain, seed: u64) -> Self {
        let own = |d: &u32| store.document(*d as usize).domain == domain;
        let documents: Vec<u32> = (0..store.num_documents() as u32).filter(own).collect();
        let length = |d: &u32| {
            let tokens = store.document(*d as usize).tokens;
            tokens.end - tokens.start
        };
        let tokens = documents.iter().map(length).sum();
        // Another order than that of the whole store, and of every other domain.
        let seed = seed ^ (domain as u64 + 1).wrapping_mul(0xa076_1d64_78bd_642f);
        Self { documents: Some(documents), tokens, seed, epoch: Mutex::new(None) }
    }
}

struct Epoch {
    number: u64,
    order: Vec<u32>,
    /// End of each document of `order` in the epoch's stream.
    ends: Vec<u64>,
    /// Order in which the cut sequences are visited.
    visits: Vec<u32>,
}

impl Loader {
    /// A loader of sequences of `length` tokens, or parts of them; the store must hold at least one sequence.
    pub fn new(store: TokenStore, length: usize, seed: u64) -> Result<Self, DataError> {
        let all = Stream { documents: None, tokens: store.num_tokens(), seed, epoch: Mutex::new(None) };
        let loader =
            Self { store, length, seed, all, of_domain: [const { OnceLock::new() }; Domain::ALL.len()] };
        loader.stream(None)?;
        Ok(loader)
    }

    /// Whole sequences in one pass over the documents; the rest of the stream is left out of that pass.
    pub fn sequences_per_epoch(&self) -> u64 {
        self.all.tokens / self.length as u64
    }

    /// Tokens that are read of a domain in one pass over its documents. An error when they are too few for a sequence.
    pub fn tokens_per_epoch(&self, domain: Domain) -> Result<u64, DataError> {
        let length = self.length as u64;
        self.stream(Some(domain)).map(|stream| stream.tokens / length * length)
    }

    /// The store read from.
    pub fn store(&self) -> &TokenStore {
        &self.store
    }

    /// Sequence number `index`, counted over all epochs, when all have the full length and all domains are read as one.
    pub fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        self.read(&Place { number: index, domain: None, chunk: index, part: 0..self.length })
    }

    /// The sequence at a place. Its number does not matter.
    pub fn read(&self, place: &Place) -> Result<Sequence, DataError> {
        let Place { domain, chunk, part, .. } = place;
        let length = self.length;
        assert!(part.end <= length, "read: tokens {part:?} of chunks of {length}");
        let stream = self.stream(*domain)?;
        let per_epoch = stream.tokens / length as u64;
        let (number, within) = (chunk / per_epoch, chunk % per_epoch);
        let mut cached = stream.epoch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if cached.as_ref().is_none_or(|e| e.number != number) {
            *cached = Some(self.epoch(stream, number));
        }
        let Some(epoch) = cached.as_ref() else { unreachable!("the epoch was just set") };
        let start = u64::from(epoch.visits[within as usize]) * length as u64;
        self.cut(epoch, start + part.start as u64..start + part.end as u64)
    }

    fn stream(&self, domain: Option<Domain>) -> Result<&Stream, DataError> {
        let stream = match domain {
            None => &self.all,
            Some(domain) => self.of_domain[domain as usize]
                .get_or_init(|| Stream::of_domain(&self.store, domain, self.seed)),
        };
        if stream.tokens >= self.length as u64 {
            return Ok(stream);
        }
        let of = domain.map(|domain| format!(" of domain `{}`", domain.name())).unwrap_or_default();
        Err(DataError::TooLittle {
            found: format!(
                "{} training tokens{of}, fewer than one sequence of {}",
                stream.tokens, self.length
            ),
            hint: "give more text in `curate.sources`, or a shorter `pretrain.sequence`".into(),
        })
    }

    fn epoch(&self, stream: &Stream, number: u64) -> Epoch {
        let count = stream.documents.as_ref().map_or(self.store.num_documents(), Vec::len);
        let mut order = shuffled(count, stream.seed, number);
        if let Some(documents) = &stream.documents {
            order.iter_mut().for_each(|d| *d = documents[*d as usize]);
        }
        let mut end = 0;
        let ends = order.iter().map(|&d| {
            let tokens = self.store.document(d as usize).tokens;
            end += tokens.end - tokens.start;
            end
        });
        let ends = ends.collect();
        let visits = shuffled((stream.tokens / self.length as u64) as usize, !stream.seed, number);
        Epoch { number, order, ends, visits }
    }

    fn cut(&self, epoch: &Epoch, range: Range<u64>) -> Result<Sequence, DataError> {
        let mut sequence = Sequence::default();
        let mut at = range.start;
        let mut i = epoch.ends.partition_point(|&end| end <= at);
        while at < range.end {
            let document = self.store.document(epoch.order[i] as usize).tokens;
            let begins = epoch.ends[i] - (document.end - document.start);
            let take = range.end.min(epoch.ends[i]) - at;
            let first = document.start + (at - begins);
            // One token more than the run, where the document has it: the target of the run's last row.
            let mut ids = Vec::with_capacity(take as usize + 1);
            self.store.read(first..(first + take + 1).min(document.end), &mut ids)?;
            if take > 0 {
                sequence.tokens.extend(&ids[..take as usize]);
                sequence.targets.extend(&ids[1..]);
                sequence.targets.resize(sequence.tokens.len(), u32::MAX);
                sequence.documents.push(take as usize);
            }
            at += take;
            i += 1;
        }
        Ok(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenWriter;

    fn store(dir: &std::path::Path, lengths: &[usize]) -> TokenStore {
        let mut writer = TokenWriter::create(dir, "train", 50_000, "test").unwrap();
        for (d, &n) in lengths.iter().enumerate() {
            let ids: Vec<u32> = (0..n).map(|i| (d * 100 + i) as u32).collect();
            writer.push(&ids, n, Domain::Prose).unwrap();
        }
        writer.finish().unwrap();
        TokenStore::open(dir, "train").unwrap()
    }

    #[test]
    fn an_epoch_visits_every_token_once_and_never_crosses_a_document() {
        let dir = tempfile::tempdir().unwrap();
        let lengths = [5, 1, 17, 30, 2, 9, 40, 8];
        let loader = Loader::new(store(dir.path(), &lengths), 8, 3).unwrap();
        let mut seen = Vec::new();
        for i in 0..loader.sequences_per_epoch() {
            let s = loader.sequence(i).unwrap();
            assert_eq!((s.tokens.len(), s.targets.len()), (8, 8));
            assert_eq!(s.documents.iter().sum::<usize>(), 8);
            let mut row = 0;
            for n in &s.documents {
                for r in row..row + n {
                    let (token, target) = (s.tokens[r], s.targets[r]);
                    let last = token % 100 == lengths[token as usize / 100] as u32 - 1;
                    assert_eq!(target, if last { u32::MAX } else { token + 1 });
                    assert_eq!(token / 100, s.tokens[row] / 100);
                }
                row += n;
            }
            seen.extend(s.tokens);
        }
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((seen.len(), count), (112, 112));
    }

    #[test]
    fn sequences_depend_on_their_number_only() {
        let dir = tempfile::tempdir().unwrap();
        let loader = Loader::new(store(dir.path(), &[50, 60, 70]), 16, 9).unwrap();
        let forward: Vec<_> = (0..40).map(|i| loader.sequence(i).unwrap()).collect();
        for i in (0..40).rev() {
            assert_eq!(loader.sequence(i).unwrap(), forward[i as usize]);
        }
        let epoch = loader.sequences_per_epoch() as usize;
        assert_ne!(forward[..epoch], forward[epoch..2 * epoch]);
    }

    #[test]
    fn a_domain_is_a_stream_of_its_own_and_parts_make_a_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = TokenWriter::create(dir.path(), "train", 2_000, "test").unwrap();
        for d in 0..20u32 {
            let ids: Vec<u32> = (0..3 + d % 7).map(|i| d * 100 + i).collect();
            let domain = if d % 3 == 0 { Domain::Code } else { Domain::Prose };
            writer.push(&ids, 1, domain).unwrap();
        }
        writer.finish().unwrap();
        let open = |seed| Loader::new(TokenStore::open(dir.path(), "train").unwrap(), 8, seed).unwrap();
        let loader = open(5);
        for domain in [Domain::Prose, Domain::Code] {
            let at =
                |chunk, part| loader.read(&Place { number: 0, domain: Some(domain), chunk, part }).unwrap();
            let chunks = loader.tokens_per_epoch(domain).unwrap() / 8;
            assert!(chunks > 2);
            let mut seen = Vec::new();
            for chunk in 0..chunks {
                let (whole, halves) = (at(chunk, 0..8), [at(chunk, 0..4), at(chunk, 4..8)]);
                assert_eq!(whole.tokens, halves.each_ref().map(|half| half.tokens.clone()).concat());
                assert_eq!(whole.targets, halves.each_ref().map(|half| half.targets.clone()).concat());
                assert!(halves.iter().all(|half| half.documents.iter().sum::<usize>() == 4));
                assert!(whole.tokens.iter().all(|t| (t / 100 % 3 == 0) == (domain == Domain::Code)));
                seen.extend(whole.tokens);
            }
            let first = seen.clone();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len() as u64, chunks * 8, "a token was seen twice");
            let second: Vec<u32> = (chunks..2 * chunks).flat_map(|chunk| at(chunk, 0..8).tokens).collect();
            assert_ne!(first, second);
        }
        let whole: Vec<_> = (0..9).map(|i| loader.sequence(i).unwrap()).collect();
        let fresh = open(5);
        assert!(
            (0..9).rev().all(|i| fresh.sequence(i).unwrap() == whole[i as usize]),
            "domains change the whole"
        );
    }

    #[test]
    fn a_domain_without_text_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let loader = Loader::new(store(dir.path(), &[50]), 16, 9).unwrap();
        let error = loader.tokens_per_epoch(Domain::Code).unwrap_err().to_string();
        assert!(error.contains("0 training tokens of domain `code`"), "{error}");
    }

    #[test]
    fn parts_of_a_long_document_are_spread() {
        let dir = tempfile::tempdir().unwrap();
        let mut lengths = vec![20; 64];
        lengths.push(640);
        let mut writer = TokenWriter::create(dir.path(), "train", 100, "test").unwrap();
        for (d, &n) in lengths.iter().enumerate() {
            writer.push(&vec![d as u32; n], n, Domain::Prose).unwrap();
        }
        writer.finish().unwrap();
        let loader = Loader::new(TokenStore::open(dir.path(), "train").unwrap(), 10, 3).unwrap();
        let long = |i| loader.sequence(i).unwrap().tokens.iter().filter(|&&t| t == 64).count() > 5;
        let of_long: Vec<bool> = (0..loader.sequences_per_epoch()).map(long).collect();
        assert!(
            of_long.chunks(24).all(|c| (2..23).contains(&c.iter().filter(|&&l| l).count())),
            "{of_long:?}"
        );
    }

    #[test]
    fn too_little_text_and_damage_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Loader::new(store(dir.path(), &[5]), 16, 9).err().unwrap();
        assert!(error.to_string().contains("5 training tokens"), "{error}");
        let path = dir.path().join("train.tokens");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[1..]).unwrap();
        assert!(TokenStore::open(dir.path(), "train").unwrap_err().to_string().contains("train.tokens"));
        std::fs::write(&path, vec![0xff; bytes.len()]).unwrap();
        let store = TokenStore::open(dir.path(), "train").unwrap();
        let error = store.read(0..5, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("65535"), "{error}");
        let index = dir.path().join("train.index");
        let mut bytes = std::fs::read(&index).unwrap();
        bytes[0] ^= 0x40;
        std::fs::write(&index, bytes).unwrap();
        assert!(TokenStore::open(dir.path(), "train").unwrap_err().to_string().contains("train.index"));
    }
}
