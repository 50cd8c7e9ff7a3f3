//! Semantic duplicates (SemDeDup, Abbas et al. 2023): embeddings are clustered by k-means; of documents nearer than a
//! threshold inside a cluster one is kept. In a cluster of more than 16,384 documents, each is compared with the 16,384 before it in
//! the order of their cosines with the centroid.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

pub use super::given::Given;
use super::label::{id_of, id_text, label, newness};
use crate::encoder::{Embed, Encoder, OpenEncoder, Pooling, Precision, Vectors};
use crate::item::{Value, decode, encode};
use crate::plan::{Emit, Input, Map, Plan, Record, Reduce, Registry, Step, Values, parameters};
use crate::{CurateError, Dropped};

pub(super) fn register(registry: &mut Registry) {
    registry.map("sample", |found, _| Ok(Box::new(parameters::<Sample>("sample", found)?)));
    registry.reduce_of::<KMeans>("k-means");
    registry.map("nearest", |found, side| Ok(Box::new(Nearest::new(&parameters("nearest", found)?, side)?)));
    registry.reduce_of::<Semantic>("semantic");
    register_embed(registry, crate::encoder::none());
}

/// Registers the map `embed`, whose models `open` opens.
pub(crate) fn register_embed(registry: &mut Registry, open: Arc<OpenEncoder>) {
    registry.map("embed", move |found, _| {
        Ok(Box::new(match Vectors::of(found)? {
            Vectors::Model(encoder) => Embedder::Model(open(&encoder)?),
            Vectors::File(path) => Embedder::File(Given::open(&path)?),
        }))
    });
}

/// Of near documents, which is kept.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The one farthest from the centroid, as SemDeDup does.
    #[default]
    Farthest,
    /// The one nearest to the centroid.
    Nearest,
}

/// How semantic duplicates are found.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Semantic {
    /// Clusters, but not more than one for every 32 documents of the sample, so that like documents can meet in a small corpus.
    pub clusters: u32,
    /// Rounds of k-means at most.
    pub rounds: u32,
    /// Documents, drawn by a hash of their id, that k-means learns from; they are held in memory.
    pub sample: u32,
    /// Documents of a cosine above this are duplicates.
    pub threshold: f64,
    /// Which is kept.
    pub keep: Keep,
    /// Take the mean of the sample's vectors from every vector first: hidden states of language models have much in common,
    /// whatever the text, and cosines of what is left say more.
    pub center: bool,
    /// Seed of the draw.
    pub seed: u64,
    /// The language model whose hidden states are the vectors: what `llamero generate` opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// The model's hash by [`model_hash`](crate::model_hash); another one is refused. A run fills it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_hash: Option<String>,
    /// How hidden states become one vector.
    pub pooling: Pooling,
    /// Most tokens that the model reads together; longer texts are read in windows, and their vector is the mean over them.
    pub window: u32,
    /// Tokens of a text that count, from its first on; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// What the model computes in.
    pub precision: Precision,
    /// Vectors that somebody brings, instead of a model: see [`Given`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embeddings: Option<PathBuf>,
}

impl Default for Semantic {
    fn default() -> Self {
        Self {
            clusters: 1_000,
            rounds: 20,
            sample: 100_000,
            threshold: 0.95,
            keep: Keep::Farthest,
            center: false,
            seed: 1,
            model: None,
            model_hash: None,
            pooling: Pooling::Mean,
            window: Encoder::WINDOW,
            max_tokens: None,
            precision: Precision::F32,
            embeddings: None,
        }
    }
}

impl Semantic {
    /// Where the vectors come from.
    ///
    /// # Errors
    /// Neither a model nor a file of vectors, or both; a number out of range.
    pub fn vectors(&self) -> Result<Vectors, CurateError> {
        let bad = |key, found: &str, allowed: &str| {
            Err(CurateError::OutOfRange { key, found: found.to_owned(), allowed: allowed.to_owned() })
        };
        match (&self.model, &self.embeddings) {
            (Some(model), None) => {
                let encoder = Encoder {
                    model: model.clone(),
                    hash: self.model_hash.clone(),
                    pooling: self.pooling,
                    window: self.window,
                    max_tokens: self.max_tokens,
                    precision: self.precision,
                };
                encoder.validate()?;
                Ok(Vectors::Model(encoder))
            }
            (None, Some(path)) => Ok(Vectors::File(path.clone())),
            (Some(_), Some(_)) => {
                bad("semantic.embeddings", "given", "absent where there is `curate.semantic.model`")
            }
            (None, None) => bad(
                "semantic.model",
                "absent",
                "the path of a model that embeds texts, unless `curate.semantic.embeddings` names a file of vectors",
            ),
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// A value out of range.
    pub fn validate(&self) -> Result<(), CurateError> {
        let least = [("semantic.clusters", self.clusters), ("semantic.sample", self.sample)];
        if let Some((key, _)) = least.into_iter().find(|(_, found)| *found == 0) {
            let (found, allowed) = ("0".to_owned(), "1 or more".to_owned());
            return Err(CurateError::OutOfRange { key, found, allowed });
        }
        if !(-1.0..=1.0).contains(&self.threshold) {
            let (found, allowed) = (self.threshold.to_string(), "a cosine, from -1 to 1".to_owned());
            return Err(CurateError::OutOfRange { key: "semantic.threshold", found, allowed });
        }
        self.vectors().map(|_| ())
    }

    /// Appends stages up to `semantic`, which has the documents of the task `documents`, judged.
    ///
    /// # Errors
    /// Those of [`Semantic::vectors`].
    pub fn append(&self, plan: &mut Plan, documents: &str) -> Result<(), CurateError> {
        plan.stage(
            "semantic-embeddings",
            vec![Input::through(documents, vec![self.vectors()?.step()?])],
            None,
        );
        let sample = Step::with("sample", &Sample { seed: self.seed })?;
        let kmeans =
            KMeans { clusters: self.clusters, rounds: self.rounds, sample: self.sample, center: self.center };
        let embeddings = "semantic-embeddings";
        plan.stage(
            "semantic-centroids",
            vec![Input::through(embeddings, vec![sample])],
            Some(Step::with("k-means", &kmeans)?),
        );
        let mut nearest =
            Input::through(embeddings, vec![Step::with("nearest", &Towards { keep: self.keep })?]);
        nearest.side = Some("semantic-centroids".to_owned());
        plan.stage("semantic-verdicts", vec![nearest], Some(Step::with("semantic", self)?));
        let inputs = vec![Input::all(documents), Input::all("semantic-verdicts")];
        plan.stage("semantic", inputs, Some(Step::new("judge")));
        Ok(())
    }
}

/// A document's vector, of length 1.
#[derive(Serialize, Deserialize)]
struct Embedding {
    label: Vec<u8>,
    vector: Vec<f32>,
}

enum Embedder {
    Model(Arc<dyn Embed>),
    File(Given),
}

impl Map for Embedder {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let Some(item) = Value::document(value)?.filter(|item| item.dropped.is_none()) else {
            return Ok(());
        };
        let vector = match self {
            Embedder::Model(model) => model.embed(&item.document.text)?,
            Embedder::File(given) => Some(given.of(&item.document, &String::from_utf8_lossy(key))?),
        };
        // A text without anything that the model knows means nothing, and is nobody's duplicate.
        let Some(mut vector) = vector else { return Ok(()) };
        // No cosine with such a vector can be compared, and everything near it would be lost from sight.
        if let Some(at) = vector.iter().position(|value| !value.is_finite()) {
            let (id, found) = (String::from_utf8_lossy(key), vector[at]);
            let problem = format!("the one of `{id}` has {found} at place {at}, which is no finite number");
            return Err(CurateError::Record { what: "a vector", problem });
        }
        if !normalise(&mut vector) {
            return Ok(());
        }
        let embedding = Embedding { label: label(&newness(&item.document), key), vector };
        emit(key, &encode("an embedding", &embedding)?)
    }
}

/// Puts all vectors under one key, in the order of a hash of their ids.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    seed: u64,
}

impl Map for Sample {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let order = XxHash3_64::oneshot(key) ^ self.seed;
        let order = XxHash3_64::oneshot(&order.to_be_bytes()).to_be_bytes();
        emit(&[], &[&order, value].concat())
    }
}

/// Spherical k-means over the first vectors: centroids begin at the first ones and sums follow the vectors' order, so the
/// result is one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KMeans {
    clusters: u32,
    rounds: u32,
    sample: u32,
    center: bool,
}

impl Reduce for KMeans {
    fn reduce(&self, _: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let mut vectors = Vec::new();
        while vectors.len() < self.sample as usize
            && let Some(value) = values.next()?
        {
            let embedding: Embedding = decode("an embedding", value.get(8..).unwrap_or_default())?;
            if vectors.first().is_some_and(|first: &Vec<f32>| first.len() != embedding.vector.len()) {
                let problem = "vectors differ in length".to_owned();
                return Err(CurateError::Record { what: "an embedding", problem });
            }
            vectors.push(embedding.vector);
        }
        if self.center {
            let mean = mean(&vectors);
            vectors.iter_mut().for_each(|vector| center(vector, &mean));
            emit(MEAN, &encode("a centroid", &mean)?)?;
        }
        for (at, centroid) in self.centroids(&vectors).iter().enumerate() {
            emit(&(at as u32).to_be_bytes(), &encode("a centroid", centroid)?)?;
        }
        Ok(())
    }
}

/// Vectors that a cluster is to have, about: with fewer, a near copy would be a centroid of its own.
const VECTORS_OF_A_CLUSTER: usize = 32;

/// The key of the mean among centroids, whose keys have four bytes.
const MEAN: &[u8] = &[];

/// The mean of vectors; empty where there are none.
fn mean(vectors: &[Vec<f32>]) -> Vec<f32> {
    let mut sums = vec![0.0_f64; vectors.first().map_or(0, Vec::len)];
    for vector in vectors {
        sums.iter_mut().zip(vector).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    sums.into_iter().map(|sum| (sum / vectors.len() as f64) as f32).collect()
}

/// What a vector has beyond the mean, with length 1; zeros stay zeros.
fn center(vector: &mut [f32], mean: &[f32]) {
    vector.iter_mut().zip(mean).for_each(|(value, mean)| *value -= mean);
    normalise(vector);
}

impl KMeans {
    fn centroids(&self, vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let clusters = (self.clusters as usize).min(vectors.len().div_ceil(VECTORS_OF_A_CLUSTER));
        let mut centroids: Vec<Vec<f32>> = Vec::new();
        for vector in vectors {
            if centroids.len() == clusters {
                break;
            }
            if !centroids.contains(vector) {
                centroids.push(vector.clone());
            }
        }
        let mut before = Vec::new();
        for _ in 0..self.rounds {
            let nearest: Vec<usize> = vectors.iter().map(|vector| nearest(&centroids, vector)).collect();
            if nearest == before {
                break;
            }
            let mut sums = vec![vec![0.0_f64; vectors.first().map_or(0, Vec::len)]; centroids.len()];
            for (vector, &cluster) in vectors.iter().zip(&nearest) {
                sums[cluster].iter_mut().zip(vector).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            for (centroid, sum) in centroids.iter_mut().zip(sums) {
                let mut mean: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
                // A centroid without vectors stays where it is.
                if normalise(&mut mean) {
                    *centroid = mean;
                }
            }
            before = nearest;
        }
        centroids
    }
}

/// Index of the centroid with the greatest cosine; of equals the first.
fn nearest(centroids: &[Vec<f32>], vector: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (at, centroid) in centroids.iter().enumerate() {
        let cosine = dot(centroid, vector);
        if cosine > best.1 {
            best = (at, cosine);
        }
    }
    best.0
}

/// What [`Nearest`] orders members by.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Towards {
    keep: Keep,
}

/// Sends each vector to its nearest centroid, so that members come in the order in which they are preferred.
struct Nearest {
    keep: Keep,
    centroids: Vec<Vec<f32>>,
    mean: Option<Vec<f32>>,
}

impl Nearest {
    fn new(towards: &Towards, side: &[Record]) -> Result<Nearest, CurateError> {
        let vector = |record: &Record| decode("a centroid", &record.value);
        let (mean, centroids): (Vec<&Record>, Vec<&Record>) =
            side.iter().partition(|record| record.key == MEAN);
        Ok(Nearest {
            keep: towards.keep,
            centroids: centroids.into_iter().map(vector).collect::<Result<_, _>>()?,
            mean: mean.first().map(|record| vector(record)).transpose()?,
        })
    }
}

impl Map for Nearest {
    fn map(&self, _: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let mut embedding: Embedding = decode("an embedding", value)?;
        if let Some(mean) = &self.mean {
            center(&mut embedding.vector, mean);
        }
        let cluster = nearest(&self.centroids, &embedding.vector);
        let Some(centroid) = self.centroids.get(cluster) else { return Ok(()) };
        let cosine = dot(centroid, &embedding.vector);
        let member = member(self.keep, cosine, &embedding)?;
        emit(&(cluster as u32).to_be_bytes(), &member)
    }
}

/// A member of a cluster as bytes that sort: by its cosine with the centroid, the preferred first, then by its label.
fn member(keep: Keep, cosine: f32, embedding: &Embedding) -> Result<Vec<u8>, CurateError> {
    // The order of `total_cmp` as that of bytes.
    let bits = cosine.to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    let order = match keep {
        Keep::Farthest => ascending,
        Keep::Nearest => !ascending,
    };
    let mut bytes = order.to_be_bytes().to_vec();
    for &byte in &embedding.label {
        bytes.push(byte);
        // Two zeros end the label, so that it sorts before every longer one that begins with it.
        if byte == 0 {
            bytes.push(0xFF);
        }
    }
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&encode("a member", embedding)?);
    Ok(bytes)
}

/// Reads what [`member`] wrote.
fn member_of(bytes: &[u8]) -> Result<Embedding, CurateError> {
    let mut at = 4;
    loop {
        match bytes.get(at..) {
            Some([0, 0, rest @ ..]) => return decode("a member", rest),
            Some([0, _, ..]) => at += 2,
            Some([_, ..]) => at += 1,
            _ => {
                let problem = "its label has no end".to_owned();
                return Err(CurateError::Record { what: "a member", problem });
            }
        }
    }
}

/// Members before it that a document is compared with, at most; they are held in memory. Documents that mean the same have
/// nearly the same cosine with the centroid, so they stand near each other.
const COMPARED: usize = 16_384;

impl Semantic {
    /// [`Reduce::reduce`] with the number of members that one is compared with.
    fn reduce_with(
        &self,
        compared: usize,
        values: &mut dyn Values,
        emit: &mut Emit,
    ) -> Result<(), CurateError> {
        // Each with the label of its survivor.
        let mut members: VecDeque<(Vec<f32>, Vec<u8>)> = VecDeque::new();
        while let Some(value) = values.next()? {
            let Embedding { label, vector } = member_of(value)?;
            let cosines = members.iter().map(|(earlier, _)| dot(earlier, &vector));
            let nearest = cosines.enumerate().reduce(|best, next| {
                if next.1.total_cmp(&best.1) == Ordering::Greater { next } else { best }
            });
            let duplicate = nearest.filter(|(_, cosine)| f64::from(*cosine) > self.threshold);
            let survivor = duplicate.map_or_else(|| label.clone(), |(earlier, _)| members[earlier].1.clone());
            if let Some((_, cosine)) = duplicate {
                let dropped = Dropped {
                    survivor: Some(id_text(&survivor)?),
                    ..Dropped::new(
                        "semantic_duplicate",
                        format!("a cosine of {cosine:.3}, limit {}", self.threshold),
                    )
                };
                emit(id_of(&label)?, &Value::Verdict(dropped).encode()?)?;
            }
            if members.len() == compared {
                members.pop_front();
            }
            members.push_back((vector, survivor));
        }
        Ok(())
    }
}

impl Reduce for Semantic {
    fn reduce(&self, _: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        self.reduce_with(COMPARED, values, emit)
    }
}

/// Makes a vector's length 1; `false` for a vector of zeros.
fn normalise(vector: &mut [f32]) -> bool {
    let square: f64 = vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    if square <= 0.0 {
        return false;
    }
    let length = square.sqrt();
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    true
}

/// Sums in eight lanes and then over them, always in this order.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let (left, right) = (left.chunks(8), right.chunks(8));
    for (a, b) in left.zip(right) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * y;
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Listed(std::vec::IntoIter<Vec<u8>>, Vec<u8>);

    impl Values for Listed {
        fn next(&mut self) -> Result<Option<&[u8]>, CurateError> {
            let Some(next) = self.0.next() else { return Ok(None) };
            self.1 = next;
            Ok(Some(&self.1))
        }
    }

    #[test]
    fn members_come_in_the_order_of_their_cosines_and_labels() {
        let embedding = |label: &[u8]| Embedding { label: label.to_vec(), vector: vec![1.0, 0.0] };
        let in_order =
            [(-0.5, &b"b"[..]), (0.0, b"a"), (0.25, b"a"), (0.25, b"a\0"), (0.25, b"a#1"), (0.5, b"")];
        for keep in [Keep::Farthest, Keep::Nearest] {
            let bytes: Vec<_> = in_order
                .iter()
                .map(|(cosine, label)| member(keep, *cosine, &embedding(label)).unwrap())
                .collect();
            assert!(
                bytes
                    .iter()
                    .zip(&in_order)
                    .all(|(bytes, (_, label))| member_of(bytes).unwrap().label == *label)
            );
            assert!(bytes[2..5].is_sorted());
            let cosines = [&bytes[0], &bytes[1], &bytes[2], &bytes[5]];
            assert!(if keep == Keep::Farthest {
                cosines.is_sorted()
            } else {
                cosines.iter().rev().is_sorted()
            });
        }
    }

    #[test]
    fn no_more_members_are_held_than_are_compared() {
        // Four directions, each twice: the second of each comes four places behind the first.
        let members = (0..8_u8).map(|at| {
            let mut vector = vec![0.0; 4];
            vector[usize::from(at % 4)] = 1.0;
            let embedding = Embedding { label: label(&[], &[b'a' + at]), vector };
            member(Keep::Farthest, f32::from(at) / 10.0, &embedding).unwrap()
        });
        let members: Vec<_> = members.collect();
        let semantic = Semantic { threshold: 0.9, ..Semantic::default() };
        let found = |compared| {
            let mut found = 0;
            let mut values = Listed(members.clone().into_iter(), Vec::new());
            semantic
                .reduce_with(compared, &mut values, &mut |_, _| {
                    found += 1;
                    Ok(())
                })
                .unwrap();
            found
        };
        assert_eq!((found(4), found(3)), (4, 0));
    }
}
