//! Silent corruption of weights: what several ranks hold alike must stay alike.
//!
//! Data-parallel and context-parallel ranks hold the same weights, tensor-parallel ranks the same norms, and the two ends of a
//! pipeline the same tied table. A bit that turned over on one of them shows in a checksum. (Moments and the lower halves of
//! masters are held once and are not covered here; nor are, along the data-parallel axis, weights that are sharded.)

use std::collections::{BTreeMap, BTreeSet};

use llamero_comm::{Comm, CommError, Op};
use llamero_model::Shard;

use crate::mesh::MeshPlace;
use crate::{Finding, Sign, TrainError, Trainer};

/// Bytes of a checksum.
const HASH: usize = size_of::<u64>();

impl Trainer<'_> {
    /// Compares what ranks hold alike. Every rank calls it at the same time and gets the same list, in order; empty when all
    /// is well.
    pub fn check_replicas(&self, step: u64) -> Result<Vec<Finding>, TrainError> {
        let (ranks, backend) = (self.ranks(), self.backend());
        let (mesh, at) = (ranks.mesh, ranks.at);
        let config = &self.model().config;
        let table = config.params();
        // By parameter; of a tied table on one rank that holds it twice, the first.
        let mut hashes: BTreeMap<usize, [u8; HASH]> = BTreeMap::new();
        let mut sharded = BTreeSet::new();
        for param in self.stages().iter().flat_map(|stage| stage.params()) {
            if param.is_sharded() {
                sharded.insert(param.id);
            }
            hashes.entry(param.id).or_insert_with(|| backend.checksum(&param.value).to_ne_bytes());
        }
        let dp = |n: usize| mesh.rank(mesh.replica(n, at));
        let tp = |tp: usize| mesh.rank(MeshPlace { tp, ..at });
        let ends = |end: usize| mesh.rank(MeshPlace { pp: end * (mesh.pp - 1), ..at });
        type Axis<'a> = (&'a dyn Comm, &'a dyn Fn(usize) -> usize, &'a dyn Fn(usize) -> bool);
        let whole = |id: usize| table[id].shard == Shard::Whole;
        let axes: [Axis<'_>; 3] = [
            (&*ranks.dp, &dp, &|id| !sharded.contains(&id)),
            (&*ranks.tp, &tp, &whole),
            (&*ranks.ends, &ends, &|id| id == 0 && config.tied),
        ];
        let mut found = Vec::new();
        for (comm, rank, compared) in axes {
            if comm.size() == 1 {
                continue;
            }
            let ids: Vec<usize> = hashes.keys().copied().filter(|&id| compared(id)).collect();
            let own: Vec<u8> = ids.iter().flat_map(|id| hashes[id]).collect();
            let bodies = comm.all_gather(own.into())?;
            for (from, body) in bodies.iter().enumerate() {
                let (found, expected) = (body.len() / HASH, ids.len());
                if body.len() != expected * HASH {
                    let (op, rank) = (Op::AllGather.name(), comm.rank());
                    return Err(CommError::Length { op, rank, from, found, expected }.into());
                }
            }
            for (i, id) in ids.iter().enumerate() {
                let of: Vec<&[u8]> = bodies.iter().map(|body| &body[i * HASH..(i + 1) * HASH]).collect();
                let apart = outliers(&of);
                if !apart.is_empty() {
                    let ranks = apart.into_iter().map(rank).collect();
                    let tensor = table[*id].name.clone();
                    found.push(Finding { step, tensor, sign: Sign::Replicas, ranks });
                }
            }
        }
        let text = serde_json::to_vec(&found)
            .map_err(|e| TrainError::OtherRank { rank: ranks.all.rank(), reason: e.to_string() })?;
        let mut all = Vec::new();
        for (rank, body) in ranks.all.all_gather(text.into())?.iter().enumerate() {
            let of_rank: Vec<Finding> = serde_json::from_slice(body)
                .map_err(|e| TrainError::OtherRank { rank, reason: format!("its findings: {e}") })?;
            all.extend(of_rank);
        }
        all.sort();
        all.dedup();
        Ok(all)
    }
}

/// Which of some values are not the one that more than half of them are; all, when there is none and they differ.
fn outliers(values: &[&[u8]]) -> Vec<usize> {
    let votes = |value: &[u8]| values.iter().filter(|v| **v == value).count();
    let most = values.iter().copied().max_by_key(|value| votes(value)).unwrap_or_default();
    let majority = 2 * votes(most) > values.len();
    (0..values.len()).filter(|&i| if majority { values[i] != most } else { true }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_is_right() {
        let (a, b, c) = (&[1u8][..], &[2u8][..], &[3u8][..]);
        assert!(outliers(&[a, a, a]).is_empty());
        assert_eq!(outliers(&[a, b, a]), [1]);
        assert_eq!(outliers(&[b, a, a, a]), [0]);
        assert_eq!(outliers(&[a, b]), [0, 1]);
        assert_eq!(outliers(&[a, b, c]), [0, 1, 2]);
    }
}
