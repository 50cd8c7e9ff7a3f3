//! Connected components by alternating large stars and small stars (Kiveris et al., "Connected Components in MapReduce and
//! Beyond", 2014): each round is two shuffles of edges, memory is constant, and the number of rounds grows with the
//! logarithm of the longest chain, where passing labels from neighbour to neighbour would need as many rounds as the chain is
//! long.
//!
//! An edge is a record of two labels. At the end each key that is not the least of its component has one edge, to the least.

use serde::{Deserialize, Serialize};

use crate::CurateError;
use crate::plan::{Emit, Input, Map, Plan, Reduce, Registry, Repeat, Stage, Step, Task, Values};

pub(super) fn register(registry: &mut Registry) {
    registry.map_of::<BothWays>("both-ways");
    registry.map_of::<Downwards>("downwards");
    registry.reduce_of::<LargeStar>("large-star");
    registry.reduce_of::<SmallStar>("small-star");
}

/// Appends the repeat `name` over the edges of the task `edges`.
pub fn append(plan: &mut Plan, edges: &str, name: &str) {
    let stage = |own: &str, from: &str, map: &str, reduce: &str| Stage {
        name: format!("{name}-{own}"),
        inputs: vec![Input::through(from, vec![Step::new(map)])],
        reduce: Some(Step::new(reduce)),
    };
    let large = stage("large", name, "both-ways", "large-star");
    let small = stage("small", &large.name, "downwards", "small-star");
    plan.tasks.push(Task::Repeat(Repeat {
        name: name.to_owned(),
        start: edges.to_owned(),
        stages: vec![large, small],
    }));
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BothWays {}

impl Map for BothWays {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        emit(key, value)?;
        emit(value, key)
    }
}

/// From the greater label to the lesser.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Downwards {}

impl Map for Downwards {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        if key >= value { emit(key, value) } else { emit(value, key) }
    }
}

/// Joins the greater neighbours of a label to the least of its neighbourhood.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LargeStar {}

impl Reduce for LargeStar {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let (mut least, mut last) = (None, Vec::new());
        while let Some(neighbour) = values.next()? {
            let least = least.get_or_insert_with(|| neighbour.min(key).to_vec());
            // Neighbours are sorted, so a repeated edge follows its first.
            if neighbour > key && neighbour != last {
                emit(neighbour, least)?;
                neighbour.clone_into(&mut last);
            }
        }
        Ok(())
    }
}

/// Joins a label and its lesser neighbours to the least of them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SmallStar {}

impl Reduce for SmallStar {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let Some(least) = values.next()?.map(<[u8]>::to_vec) else { return Ok(()) };
        if least == key {
            return Ok(());
        }
        emit(key, &least)?;
        let mut last = least.clone();
        while let Some(neighbour) = values.next()? {
            if neighbour != last && neighbour != key {
                emit(neighbour, &least)?;
                neighbour.clone_into(&mut last);
            }
        }
        Ok(())
    }
}
