//! The mesh of ranks: data, pipeline, context and tensor parallelism.
//!
//! Ranks are numbered with tensor parallelism innermost, then context, pipeline and data ("The Llama 3 Herd of Models" §3.3.2: the
//! innermost needs the most bandwidth).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use llamero_comm::{Comm, Solo, World};
use llamero_model::Config;
use serde::{Deserialize, Serialize};

use crate::{TrainConfig, TrainError};

/// Ranks along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mesh {
    /// Data parallel: each group of the others trains on its own sequences.
    pub dp: usize,
    /// Pipeline stages.
    pub pp: usize,
    /// Context parallel: rows of each sequence are divided.
    #[serde(skip_serializing_if = "is_one")]
    pub cp: usize,
    /// Tensor parallel: weights and rows of activations are divided.
    pub tp: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(n: &usize) -> bool {
    *n == 1
}

impl Default for Mesh {
    fn default() -> Self {
        Self { dp: 1, pp: 1, cp: 1, tp: 1 }
    }
}

impl Mesh {
    /// Ranks in all.
    pub fn size(&self) -> usize {
        self.dp * self.pp * self.cp * self.tp
    }

    /// Where a rank is.
    pub fn place(&self, rank: usize) -> MeshPlace {
        let (tp, rank) = (rank % self.tp, rank / self.tp);
        let (cp, rank) = (rank % self.cp, rank / self.cp);
        MeshPlace { tp, cp, pp: rank % self.pp, dp: rank / self.pp }
    }

    /// The rank at a place.
    pub fn rank(&self, at: MeshPlace) -> usize {
        ((at.dp * self.pp + at.pp) * self.cp + at.cp) * self.tp + at.tp
    }

    /// The place of number `n` among the ranks that hold the same weights as the one at `at`.
    pub(crate) fn replica(&self, n: usize, at: MeshPlace) -> MeshPlace {
        MeshPlace { dp: n / self.cp, cp: n % self.cp, ..at }
    }

    /// Whether a model and its training can be divided like this.
    pub fn check(&self, model: &Config, config: &TrainConfig) -> Result<(), TrainError> {
        let wrong = |reason: String| Err(TrainError::Mesh { mesh: self.to_string(), reason });
        let Self { dp, pp, cp, tp } = *self;
        if [dp, pp, cp, tp].contains(&0) {
            return wrong("every axis has at least one rank".into());
        }
        for (what, n) in [("heads", model.heads), ("kv_heads", model.kv_heads), ("ffn", model.ffn)] {
            if n % tp != 0 {
                let all = [model.heads, model.kv_heads, model.ffn];
                let fit = divisors(|d| all.iter().all(|n| n.is_multiple_of(d)), model.kv_heads);
                return wrong(format!("tp must divide `model.{what}`, which is {n}\nhint: tp can be {fit}"));
            }
        }
        if model.vocab < tp {
            return wrong(format!("tp is larger than the vocabulary of {}\nhint: lower it", model.vocab));
        }
        let stages = pp * config.pipeline.chunks;
        if stages > model.layers + 2 {
            let (layers, most) = (model.layers, model.layers + 2);
            return wrong(format!(
                "{stages} pipeline stages (chunks included) for {layers} layers\n\
                 hint: at most {most}: lower pp, or the chunks"
            ));
        }
        for phase in config.phases() {
            let sequences = phase.batch;
            if !sequences.is_multiple_of(dp) {
                let fit = divisors(|d| sequences.is_multiple_of(d), sequences);
                return wrong(format!(
                    "dp must divide `batch`, which is {sequences}\nhint: dp can be {fit}; or change `batch`"
                ));
            }
            let length = phase.sequence;
            if cp > 1 && !length.is_multiple_of(2 * cp) {
                return wrong(format!(
                    "cp={cp} cuts each sequence into {} equal chunks, but `sequence` is {length}; use a multiple of {}",
                    2 * cp,
                    2 * cp
                ));
            }
            let micros = (sequences / dp).div_ceil(phase.micro_batch);
            if config.pipeline.chunks > 1 && micros < pp {
                return wrong(format!(
                    "{micros} micro-batches are fewer than the {pp} stages that an interleaved schedule fills\n\
                     hint: a larger `batch`, a smaller `micro_batch` or dp, or one chunk"
                ));
            }
        }
        Ok(())
    }
}

/// The numbers up to `most` that fit, as text.
fn divisors(fits: impl Fn(usize) -> bool, most: usize) -> String {
    let all: Vec<String> = (1..=most).filter(|&d| fits(d)).map(|d| d.to_string()).collect();
    match all.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "1".into(),
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dp={},pp={},", self.dp, self.pp)?;
        if self.cp > 1 {
            write!(f, "cp={},", self.cp)?;
        }
        write!(f, "tp={}", self.tp)
    }
}

impl FromStr for Mesh {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mesh = Self::default();
        let mut seen = Vec::new();
        for part in text.split(',') {
            let found = || {
                format!("`{part}` in a mesh; expected e.g. `dp=2,pp=2,tp=2`, each of dp, pp, cp and tp once")
            };
            let (axis, n) = part.trim().split_once('=').ok_or_else(found)?;
            let n: usize = n.trim().parse().ok().filter(|n| (1..=1 << 20).contains(n)).ok_or_else(found)?;
            if seen.contains(&axis.trim()) {
                return Err(found());
            }
            seen.push(axis.trim());
            match axis.trim() {
                "dp" => mesh.dp = n,
                "pp" => mesh.pp = n,
                "cp" => mesh.cp = n,
                "tp" => mesh.tp = n,
                _ => return Err(found()),
            }
        }
        Ok(mesh)
    }
}

/// Where a rank is in the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeshPlace {
    /// On the data-parallel axis.
    pub dp: usize,
    /// Pipeline stage.
    pub pp: usize,
    /// On the context-parallel axis.
    pub cp: usize,
    /// On the tensor-parallel axis.
    pub tp: usize,
}

/// A rank's groups.
#[derive(Clone)]
pub struct Ranks {
    /// The mesh.
    pub mesh: Mesh,
    /// This rank's place.
    pub at: MeshPlace,
    /// The ranks that hold the other slices of the same weights.
    pub tp: Arc<dyn Comm>,
    /// The ranks that have the other rows of the same sequences: keys and values are gathered here.
    pub cp: Arc<dyn Comm>,
    /// The other stages: activations go forwards here.
    pub pp: Arc<dyn Comm>,
    /// The other stages again: gradients go backwards here, so that neither waits for the other.
    pub pp_back: Arc<dyn Comm>,
    /// The ranks with the same slice of the same stage, which train on other sequences or on other rows of them: gradients
    /// are summed and the state of the optimiser is divided over both axes, data and context.
    pub dp: Arc<dyn Comm>,
    /// First and last stage, where both hold a tied table; elsewhere this rank alone.
    pub ends: Arc<dyn Comm>,
    /// Everybody.
    pub all: Arc<dyn Comm>,
    /// What the groups are made of; `None` for a rank alone.
    pub world: Option<World>,
}

impl Ranks {
    /// One rank that does everything.
    pub fn solo() -> Self {
        let solo: Arc<dyn Comm> = Arc::new(Solo);
        let groups = || Arc::clone(&solo);
        Self {
            mesh: Mesh::default(),
            at: MeshPlace::default(),
            tp: groups(),
            cp: groups(),
            pp: groups(),
            pp_back: groups(),
            dp: groups(),
            ends: groups(),
            all: groups(),
            world: None,
        }
    }

    /// The ranks that would hold the same state, which they divide among each other: optimiser, and as the run is set up
    /// gradients and weights.
    pub fn shards(&self) -> &Arc<dyn Comm> {
        &self.dp
    }

    /// This rank's groups in a world of as many ranks as the mesh has.
    pub fn new(world: &World, mesh: Mesh) -> Self {
        assert_eq!(world.size(), mesh.size(), "a mesh of {mesh} on {} ranks", world.size());
        let at = mesh.place(world.rank());
        let group = |name: &str, number: u32, members: Vec<MeshPlace>| -> Arc<dyn Comm> {
            let members: Vec<usize> = members.into_iter().map(|place| mesh.rank(place)).collect();
            if members.len() == 1 {
                return Arc::new(Solo);
            }
            Arc::new(world.group(name, number, members))
        };
        let stages = || (0..mesh.pp).map(|pp| MeshPlace { pp, ..at }).collect();
        let last = mesh.pp - 1;
        let ends = if mesh.pp > 1 && (at.pp == 0 || at.pp == last) {
            vec![MeshPlace { pp: 0, ..at }, MeshPlace { pp: last, ..at }]
        } else {
            vec![at]
        };
        Self {
            mesh,
            at,
            tp: group("tp", 0, (0..mesh.tp).map(|tp| MeshPlace { tp, ..at }).collect()),
            pp: group("pp", 1, stages()),
            pp_back: group("pp-back", 2, stages()),
            dp: group("dp", 3, (0..mesh.dp * mesh.cp).map(|n| mesh.replica(n, at)).collect()),
            ends: group("ends", 4, ends),
            all: group("all", 5, (0..mesh.size()).map(|rank| mesh.place(rank)).collect()),
            cp: group("cp", 6, (0..mesh.cp).map(|cp| MeshPlace { cp, ..at }).collect()),
            world: Some(world.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_places_are_each_other_in_reverse() {
        let mesh: Mesh = "dp=3, pp=2,tp=4".parse().unwrap();
        assert_eq!((mesh.size(), mesh.to_string().as_str()), (24, "dp=3,pp=2,tp=4"));
        for rank in 0..mesh.size() {
            assert_eq!(mesh.rank(mesh.place(rank)), rank);
        }
        // Neighbours share a tensor-parallel group.
        assert_eq!(mesh.place(1), MeshPlace { tp: 1, ..MeshPlace::default() });
        assert_eq!(mesh.place(4), MeshPlace { pp: 1, ..MeshPlace::default() });
        // Then come the rows of a sequence, before the stages.
        let mesh: Mesh = "cp=3,dp=2,pp=2,tp=4".parse().unwrap();
        assert_eq!((mesh.size(), mesh.to_string().as_str()), (48, "dp=2,pp=2,cp=3,tp=4"));
        assert!((0..mesh.size()).all(|rank| mesh.rank(mesh.place(rank)) == rank));
        assert_eq!(mesh.place(4), MeshPlace { cp: 1, ..MeshPlace::default() });
        assert_eq!(mesh.place(12), MeshPlace { pp: 1, ..MeshPlace::default() });
        // Ranks with the same weights, in the order of ranks.
        let replicas: Vec<usize> = (0..6).map(|n| mesh.rank(mesh.replica(n, mesh.place(17)))).collect();
        assert_eq!(replicas, [13, 17, 21, 37, 41, 45]);
    }

    #[test]
    fn what_is_no_mesh_is_said() {
        for text in ["dp", "dp=0", "xp=2", "dp=2;tp=2", "tp=-1", "", "dp=2,dp=4"] {
            assert!(text.parse::<Mesh>().unwrap_err().contains("dp=2,pp=2,tp=2"), "{text}");
        }
    }
}
