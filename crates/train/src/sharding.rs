//! What the ranks of the data-parallel axis divide among each other.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is divided among the ranks that hold the same slice of the same stage (ZeRO stages 1 to 3, Rajbhandari et al. 2020; with
/// parameters it is also called fully sharded data parallelism). Each level divides what the one before divides, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharding {
    /// State of the optimiser. Gradients are whole until the last micro-batch's sweep has finished them.
    #[default]
    Optimizer,
    /// Gradients too: what a micro-batch's sweep has finished is added up over ranks at once, and each rank keeps its rows. With
    /// several micro-batches on several ranks the order of the sums is another one, and the size of micro-batches shows in
    /// their rounding.
    Gradients,
    /// Weights too: they are gathered for every pass and let go after use. Same bits as with `Gradients`.
    Parameters,
}

impl Sharding {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Optimizer, "optimizer"), (Self::Gradients, "gradients"), (Self::Parameters, "parameters")];
}

impl fmt::Display for Sharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(sharding, _)| sharding == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Sharding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text).map(|(sharding, _)| *sharding);
        found.ok_or_else(|| format!("`{text}`; expected `optimizer`, `gradients` or `parameters`"))
    }
}
