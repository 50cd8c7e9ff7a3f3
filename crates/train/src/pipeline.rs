//! Pipeline schedules as data: which forward and backward pass a stage does, in which order.
//!
//! A rank holds `V` chunks of blocks. Stage `k` of the `P · V` in the model is chunk `k / P` of rank `k % P`. A schedule lists
//! a rank's actions; what has to arrive before an action and what is sent after it follow from the stage's number.
//! With `V` = 1 this is one-forward-one-backward (Narayanan et al. 2019), with more the interleaved schedule (Narayanan et al.
//! 2021) with the tunable number `N` of micro-batches that follow each other in a chunk ("The Llama 3 Herd of Models" §3.3.2).

use std::ops::Range;

use llamero_comm::share;
use llamero_model::Config;
use serde::{Deserialize, Serialize};

/// How the stages of a pipeline share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// Chunks of blocks on each rank, `V`.
    pub chunks: usize,
    /// Micro-batches that follow each other in a chunk, `N`; as many as there are stages when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<usize>,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self { chunks: 1, run: None }
    }
}

/// One pass of one micro-batch through one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Forward.
    Forward {
        /// Chunk of this rank.
        chunk: usize,
        /// Micro-batch.
        micro: usize,
    },
    /// Backward.
    Backward {
        /// Chunk of this rank.
        chunk: usize,
        /// Micro-batch.
        micro: usize,
    },
}

/// Size of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Ranks, `P`.
    pub ranks: usize,
    /// Chunks a rank, `V`.
    pub chunks: usize,
    /// Micro-batches of a step, `M`.
    pub micros: usize,
    /// Micro-batches that follow each other in a chunk, `N` ≥ `P`; matters only with several chunks.
    pub run: usize,
}

impl Pipeline {
    /// Stages of the model.
    pub fn stages(&self) -> usize {
        self.ranks * self.chunks
    }

    /// Number of the stage that is `chunk` of `rank`.
    pub fn stage(&self, rank: usize, chunk: usize) -> usize {
        chunk * self.ranks + rank
    }

    /// Runs of micro-batches that go through a chunk one after another. Where `N` does not divide `M` they are longer, for
    /// ranks would wait for each other in a run shorter than `P`.
    fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let runs = if self.chunks == 1 { 1 } else { (self.micros / self.run.max(1)).max(1) };
        let micros = self.micros;
        (0..runs).map(move |run| share(micros, run, runs))
    }

    /// Chunk and micro-batch of every forward pass, in order; `backward` goes through the chunks the other way.
    fn order(&self, backward: bool) -> Vec<(usize, usize)> {
        let mut order = Vec::with_capacity(self.micros * self.chunks);
        for run in self.runs() {
            for chunk in 0..self.chunks {
                let chunk = if backward { self.chunks - 1 - chunk } else { chunk };
                order.extend(run.clone().map(|micro| (chunk, micro)));
            }
        }
        order
    }

    /// Forward passes that a rank does before its first backward pass, when there are as many.
    pub fn warm_up(&self, rank: usize) -> usize {
        let after = self.ranks - 1 - rank;
        let longest = self.runs().map(|run| run.len()).max().unwrap_or(0);
        if self.chunks == 1 { after } else { 2 * after + (self.chunks - 1) * longest }
    }

    /// What a rank does in a step.
    pub fn schedule(&self, rank: usize) -> Vec<Action> {
        let (forward, backward) = (self.order(false), self.order(true));
        let warm_up = self.warm_up(rank).min(forward.len());
        let forward = forward.into_iter().map(|(chunk, micro)| Action::Forward { chunk, micro });
        let backward = backward.into_iter().map(|(chunk, micro)| Action::Backward { chunk, micro });
        let (mut forward, mut backward) = (forward, backward);
        let mut actions: Vec<Action> = forward.by_ref().take(warm_up).collect();
        for next in forward {
            actions.push(next);
            actions.extend(backward.next());
        }
        actions.extend(backward);
        actions
    }
}

/// Blocks of each stage. The output projection takes the room of as many as its products cost, and the embedding, which costs
/// memory only, that of one where the output projection takes no more: then the first and the last stage have one block less
/// each, as in §3.3.2. In a small model with a large vocabulary the output projection alone sets the balance.
pub fn stage_layers(config: &Config, stages: usize) -> Vec<Range<usize>> {
    let table = config.params();
    let of_layer: u64 = table.iter().filter(|s| s.layer == Some(0)).map(|s| s.elements()).sum();
    let head = ((config.vocab * config.dim) as u64).div_ceil(of_layer.max(1)) as usize;
    // The last stage has room for all of it, so that none before it is empty.
    let head = head.clamp(1, (config.layers + 1).div_ceil(stages).max(1));
    let embedding = usize::from(head == 1);
    let slots = embedding + config.layers + head;
    (0..stages)
        .map(|stage| {
            let own = share(slots, stage, stages);
            let layer = |slot: usize| slot.saturating_sub(embedding).min(config.layers);
            let start = if stage == 0 { 0 } else { layer(own.start) };
            let end = if stage + 1 == stages { config.layers } else { layer(own.end) };
            start..end
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// When every pass ends, when a forward pass takes 1 and a backward pass 2 and messages take no time. `None` when
    /// the ranks wait for each other.
    fn simulate(p: &Pipeline) -> Option<u64> {
        let schedules: Vec<Vec<Action>> = (0..p.ranks).map(|rank| p.schedule(rank)).collect();
        let (mut at, mut clock) = (vec![0; p.ranks], vec![0u64; p.ranks]);
        let mut done: HashMap<(bool, usize, usize), u64> = HashMap::new();
        loop {
            let mut moved = false;
            for rank in 0..p.ranks {
                while let Some(&action) = schedules[rank].get(at[rank]) {
                    let (forward, chunk, micro) = match action {
                        Action::Forward { chunk, micro } => (true, chunk, micro),
                        Action::Backward { chunk, micro } => (false, chunk, micro),
                    };
                    let stage = p.stage(rank, chunk);
                    let needs = match (forward, stage) {
                        (true, 0) => None,
                        (true, stage) => Some((true, stage - 1, micro)),
                        (false, stage) if stage + 1 == p.stages() => Some((true, stage, micro)),
                        (false, stage) => Some((false, stage + 1, micro)),
                    };
                    let ready = match needs {
                        None => 0,
                        Some(needs) => match done.get(&needs) {
                            Some(&time) => time,
                            None => break,
                        },
                    };
                    clock[rank] = clock[rank].max(ready) + if forward { 1 } else { 2 };
                    done.insert((forward, stage, micro), clock[rank]);
                    at[rank] += 1;
                    moved = true;
                }
            }
            if (0..p.ranks).all(|rank| at[rank] == schedules[rank].len()) {
                return clock.into_iter().max();
            }
            if !moved {
                return None;
            }
        }
    }

    fn pipelines() -> impl Strategy<Value = Pipeline> {
        (1usize..7, 1usize..5, 1usize..25, 0usize..5).prop_map(|(ranks, chunks, micros, more)| {
            let micros = if chunks > 1 { micros.max(ranks) } else { micros };
            Pipeline { ranks, chunks, micros, run: ranks + more }
        })
    }

    proptest! {
        #[test]
        fn every_pass_once_in_order_within_memory_and_without_deadlock(p in pipelines()) {
            for rank in 0..p.ranks {
                let actions = p.schedule(rank);
                prop_assert_eq!(actions.len(), 2 * p.micros * p.chunks);
                let (mut held, mut most) = (0usize, 0);
                let mut forward = vec![0; p.chunks];
                let mut backward = vec![0; p.chunks];
                for action in actions {
                    match action {
                        Action::Forward { chunk, micro } => {
                            // Gradients of micro-batches are added in order, whatever the schedule.
                            prop_assert_eq!(micro, forward[chunk]);
                            forward[chunk] += 1;
                            held += 1;
                            most = most.max(held);
                        }
                        Action::Backward { chunk, micro } => {
                            prop_assert_eq!(micro, backward[chunk]);
                            backward[chunk] += 1;
                            prop_assert!(backward[chunk] <= forward[chunk]);
                            held -= 1;
                        }
                    }
                }
                prop_assert_eq!(held, 0);
                prop_assert!(most <= p.warm_up(rank) + 1);
                if p.chunks == 1 {
                    // One-forward-one-backward holds a micro-batch for each stage from here to the end.
                    prop_assert_eq!(most, (p.ranks - rank).min(p.micros));
                }
                // Messages carry no number: what the next rank expects first is what is sent first.
                let next = (rank + 1) % p.ranks;
                let passes = |rank: usize, forward: bool| {
                    p.schedule(rank).into_iter().filter_map(move |action| match action {
                        Action::Forward { chunk, micro } if forward => Some((p.stage(rank, chunk), micro)),
                        Action::Backward { chunk, micro } if !forward => Some((p.stage(rank, chunk), micro)),
                        _ => None,
                    })
                };
                let sent = passes(rank, true).filter(|(stage, _)| stage + 1 < p.stages());
                let wanted = passes(next, true).filter(|(stage, _)| *stage > 0);
                prop_assert!(sent.map(|(stage, micro)| (stage + 1, micro)).eq(wanted));
                let sent_back = passes(next, false).filter(|(stage, _)| *stage > 0);
                let wanted = passes(rank, false).filter(|(stage, _)| stage + 1 < p.stages());
                prop_assert!(sent_back.map(|(stage, micro)| (stage - 1, micro)).eq(wanted));
            }
            prop_assert!(simulate(&p).is_some());
        }

        #[test]
        fn the_bubble_is_that_of_the_paper(ranks in 1usize..7, chunks in 1usize..5, runs in 1usize..5) {
            let p = Pipeline { ranks, chunks, micros: ranks * runs, run: ranks };
            let work = 3 * (p.micros * p.chunks) as u64;
            // Relative to the work it is (P − 1) / (V · M).
            prop_assert_eq!(simulate(&p), Some(work + 3 * (p.ranks as u64 - 1)));
        }

        #[test]
        fn stages_cover_all_layers_in_order(stages in 1usize..9, layers in 7usize..40, vocab in 100usize..50_000) {
            let config = Config { layers, vocab, ..Config::preset("1m").unwrap() };
            let stages = stage_layers(&config, stages);
            let mut next = 0;
            for stage in &stages {
                prop_assert_eq!(stage.start, next);
                next = stage.end;
            }
            prop_assert_eq!(next, layers);
            let inner = &stages[1..stages.len().max(2) - 1];
            prop_assert!(stages.len() > layers || inner.iter().all(|stage| !stage.is_empty()), "{:?}", stages);
        }
    }

    #[test]
    fn ends_have_one_layer_less() {
        let config = Config::preset("405b").unwrap();
        let layers: Vec<usize> = stage_layers(&config, 16).into_iter().map(|s| s.len()).collect();
        assert_eq!((layers[0], layers[15]), (7, 7));
        assert!(layers[1..15].iter().all(|&n| n == 8), "{layers:?}");
    }
}
