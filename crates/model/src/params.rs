//! The parameter table: one row per tensor, and everything that depends only on names and shapes.

use std::ops::Range;

use llamero_comm::share;
use llamero_tensor::Shape;

use crate::Config;

/// How a tensor is divided over the ranks of the tensor-parallel axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shard {
    /// Every rank holds all of it.
    Whole,
    /// Each part's rows (outputs, entries of the vocabulary) are divided.
    Rows,
    /// Columns (inputs) are divided.
    Columns,
}

/// Distribution of the initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All ones.
    Ones,
    /// Normal with this standard deviation, cut at three of them.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

/// A tensor of the file formats: a run of rows of a fused parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamPart {
    /// Name in Hugging Face's files.
    pub hf_name: String,
    /// Its rows.
    pub rows: usize,
    /// Its initial values.
    pub init: Init,
}

/// One parameter of a model, whole (before any division over ranks).
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Index in the table.
    pub id: usize,
    /// Global name in Meta's terms; `wqkv` and `w13` are fused.
    pub name: String,
    /// Block that it belongs to, or `None` for the ends.
    pub layer: Option<usize>,
    /// Shape; the parts' rows add up to its rows.
    pub shape: Shape,
    /// Division over tensor-parallel ranks.
    pub shard: Shard,
    /// Whether weight decay applies (matrices, not norms).
    pub decay: bool,
    /// The tensors it is made of.
    pub parts: Vec<ParamPart>,
}

/// Kinds of weights that an optimiser may treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Weights of norms.
    Norm,
    /// Embedding and output projection: a row for each entry of the vocabulary.
    Vocabulary,
    /// Every other matrix.
    Matrix,
}

impl ParamSpec {
    /// Its kind.
    pub fn group(&self) -> Group {
        match (self.decay, self.layer) {
            (false, _) => Group::Norm,
            (true, None) => Group::Vocabulary,
            (true, Some(_)) => Group::Matrix,
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.rows as u64 * self.shape.cols as u64
    }

    /// Shape of one rank's slice.
    pub fn local_shape(&self, place: &Placement) -> Shape {
        match self.shard {
            Shard::Whole => self.shape,
            Shard::Rows => Shape::new(self.local_rows(place).map(|rows| rows.len()).sum(), self.shape.cols),
            Shard::Columns => Shape::new(self.shape.rows, self.local_cols(place).len()),
        }
    }

    /// The parts that `rows` of the whole tensor meet, each with its own rows that are meant.
    pub fn parts_in(&self, rows: Range<usize>) -> impl Iterator<Item = (&ParamPart, Range<usize>)> {
        let mut first = 0;
        let parts = self.parts.iter().map(move |part| {
            let own = |row: usize| row.clamp(first, first + part.rows) - first;
            let own = own(rows.start)..own(rows.end);
            first += part.rows;
            (part, own)
        });
        parts.filter(|(_, own)| !own.is_empty())
    }

    /// Rows of the whole tensor that one rank holds, in the order in which it holds them.
    pub fn local_rows(&self, place: &Placement) -> impl Iterator<Item = Range<usize>> {
        let (n, rank) = if self.shard == Shard::Rows { (place.tp_size, place.tp_rank) } else { (1, 0) };
        let mut first = 0;
        self.parts.iter().map(move |part| {
            let own = share(part.rows, rank, n);
            let own = first + own.start..first + own.end;
            first += part.rows;
            own
        })
    }

    /// Those of [`ParamSpec::local_rows`] that are rows `own` of the rank's slice.
    pub fn rows_of_slice(&self, place: &Placement, own: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut first = 0;
        self.local_rows(place).filter_map(move |run| {
            let (from, to) = (own.start.max(first), own.end.min(first + run.len()));
            let rows = (from < to).then(|| run.start + from - first..run.start + to - first);
            first += run.len();
            rows
        })
    }

    /// Columns of the whole tensor that one rank holds.
    pub fn local_cols(&self, place: &Placement) -> Range<usize> {
        let cols = self.shape.cols;
        match self.shard {
            Shard::Whole | Shard::Rows => 0..cols,
            Shard::Columns => share(cols, place.tp_rank, place.tp_size),
        }
    }
}

/// The part of a model that one rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Blocks.
    pub layers: Range<usize>,
    /// Whether it holds the embedding.
    pub first: bool,
    /// Whether it holds the final norm and the output projection.
    pub last: bool,
    /// Rank on the tensor-parallel axis.
    pub tp_rank: usize,
    /// Ranks on the tensor-parallel axis; divides heads, key/value heads and the feed-forward width.
    pub tp_size: usize,
}

impl Placement {
    /// The whole model on one rank.
    pub fn whole(config: &Config) -> Self {
        Self::stage(config.layers, 0..config.layers)
    }

    /// A run of the `all` blocks of a model, and the ends beside it.
    pub fn stage(all: usize, layers: Range<usize>) -> Self {
        let (first, last) = (layers.start == 0, layers.end == all);
        Self { layers, first, last, tp_rank: 0, tp_size: 1 }
    }

    /// Whether this rank holds the parameter (or a slice of it). A tied embedding is also held by the last stage.
    pub fn holds(&self, config: &Config, spec: &ParamSpec) -> bool {
        let Self { first, last, .. } = *self;
        match (spec.layer, spec.name.as_str()) {
            (Some(layer), _) => self.layers.contains(&layer),
            (None, "tok_embeddings.weight") => first || (last && config.tied),
            (None, _) => last,
        }
    }
}

impl Config {
    /// The table of parameters in forward order.
    ///
    /// Initial values follow torchtitan's Llama 3: inputs of a block 0.02, its outputs (`wo`, `w2`) and `w3`
    /// 0.02/√(2·(layer+1)), output projection `C^-½`; a tied table starts as an output projection. The embedding starts at
    /// 0.02 as in Hugging Face's configurations, not at torchtitan's 1, which learns more slowly at first (LOG.md).
    pub fn params(&self) -> Vec<ParamSpec> {
        let mut table = Table { specs: Vec::with_capacity(2 + 6 * self.layers), cols: self.dim };
        let (c, q, kv) = (self.dim, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let output = Init::Normal { std: (c as f64).sqrt().recip() };
        let embedding = if self.tied { output } else { Init::Normal { std: 0.02 } };
        table.add("tok_embeddings", None, Shard::Rows, &[("model.embed_tokens", self.vocab, embedding)]);
        for layer in 0..self.layers {
            let input = Init::Normal { std: 0.02 };
            let scaled = Init::Normal { std: 0.02 / (2.0 * (layer + 1) as f64).sqrt() };
            let at = Some(layer);
            table.cols = c;
            table.add("attention_norm", at, Shard::Whole, &[("input_layernorm", 1, Init::Ones)]);
            let qkv = [
                ("self_attn.q_proj", q, input),
                ("self_attn.k_proj", kv, input),
                ("self_attn.v_proj", kv, input),
            ];
            table.add("attention.wqkv", at, Shard::Rows, &qkv);
            table.cols = q;
            table.add("attention.wo", at, Shard::Columns, &[("self_attn.o_proj", c, scaled)]);
            table.cols = c;
            table.add("ffn_norm", at, Shard::Whole, &[("post_attention_layernorm", 1, Init::Ones)]);
            let w13 = [("mlp.gate_proj", self.ffn, input), ("mlp.up_proj", self.ffn, scaled)];
            table.add("feed_forward.w13", at, Shard::Rows, &w13);
            table.cols = self.ffn;
            table.add("feed_forward.w2", at, Shard::Columns, &[("mlp.down_proj", c, scaled)]);
        }
        table.cols = c;
        table.add("norm", None, Shard::Whole, &[("model.norm", 1, Init::Ones)]);
        if !self.tied {
            table.add("output", None, Shard::Rows, &[("lm_head", self.vocab, output)]);
        }
        table.specs
    }
}

struct Table {
    specs: Vec<ParamSpec>,
    cols: usize,
}

impl Table {
    fn add(&mut self, name: &str, layer: Option<usize>, shard: Shard, parts: &[(&str, usize, Init)]) {
        let (meta, hf) = match layer {
            Some(layer) => (format!("layers.{layer}."), format!("model.layers.{layer}.")),
            None => (String::new(), String::new()),
        };
        let parts: Vec<_> = parts
            .iter()
            .map(|&(name, rows, init)| ParamPart { hf_name: format!("{hf}{name}.weight"), rows, init })
            .collect();
        let rows = parts.iter().map(|p| p.rows).sum();
        self.specs.push(ParamSpec {
            id: self.specs.len(),
            name: format!("{meta}{name}.weight"),
            layer,
            shape: Shape::new(rows, self.cols),
            shard,
            decay: rows > 1,
            parts,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_all_ranks_make_the_whole() {
        let config = Config { vocab: 41, ..Config::preset("1m").unwrap() };
        for spec in config.params() {
            let whole: Vec<(usize, usize)> =
                (0..spec.shape.rows).flat_map(|i| (0..spec.shape.cols).map(move |j| (i, j))).collect();
            let mut seen: Vec<(usize, usize)> = (0..2)
                .flat_map(|tp_rank| {
                    let place = Placement { tp_rank, tp_size: 2, ..Placement::whole(&config) };
                    let rows: Vec<usize> = spec.local_rows(&place).flatten().collect();
                    let cols = spec.local_cols(&place);
                    assert_eq!(Shape::new(rows.len(), cols.len()), spec.local_shape(&place), "{}", spec.name);
                    rows.into_iter().flat_map(move |i| cols.clone().map(move |j| (i, j)))
                })
                .collect();
            seen.sort_unstable();
            seen.dedup();
            assert!(seen == whole, "{}", spec.name);
        }
    }

    #[test]
    fn stages_hold_every_parameter_once() {
        let config = Config { vocab: 40, ..Config::preset("1m").unwrap() };
        let stage = |layers| Placement::stage(config.layers, layers);
        let (a, b) = (stage(0..2), stage(2..config.layers));
        for spec in config.params() {
            assert!(a.holds(&config, &spec) != b.holds(&config, &spec), "{}", spec.name);
        }
    }
}
