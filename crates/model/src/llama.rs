//! The forward pass of Llama 3 (Meta's `model.py`; "The Llama 3 Herd of Models" §3.2).
//!
//! `T` packed tokens, `C` model width, `H`/`G` query and key/value heads of width `D`, `F` feed-forward width, `V` vocabulary.
//!
//! ```text
//! h   = x + wo(attention(rope(wqkv(rms_norm(x)))))      wqkv [(H+2G)·D, C]   wo [C, H·D]
//! out = h + w2(swiglu(w13(rms_norm(h))))                w13  [2F, C]         w2 [C, F]
//! ```
//! A final norm follows the last block. The output projection is not part of the forward pass: training fuses it with
//! the loss, sampling needs it for the last row only.

use std::ops::Range;
use std::sync::Arc;

use llamero_autograd::{GradSink, Param, Tape, Targets, Var};
use llamero_comm::{Comm, CommError, Solo};
use llamero_tensor::{Backend, CrossEntropy, DType, Heads, RopeTable, Segments, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Config, Division, Linear, ParamSpec, Placement, Shard, Vocabulary, rope_table};

/// One decoder block.
pub struct Block {
    /// Index in the whole model.
    pub layer: usize,
    /// Norm before attention, `[1, C]`.
    pub attention_norm: Param,
    /// Queries, keys and values in one product.
    pub wqkv: Linear,
    /// Attention output.
    pub wo: Linear,
    /// Norm before the feed-forward network, `[1, C]`.
    pub ffn_norm: Param,
    /// Gate and up projections in one product.
    pub w13: Linear,
    /// Down projection.
    pub w2: Linear,
    heads: Heads,
    rope: RopeTable,
    eps: f32,
}

impl Block {
    fn forward<'m>(&'m self, tape: &mut Tape<'m>, x: Var, segments: &Segments) -> Var {
        let rows = segments.total_rows();
        let h = tape.rms_norm(x.clone(), &self.attention_norm, self.eps);
        let qkv = self.wqkv.forward(tape, h, rows);
        let qkv = tape.rope(qkv, self.heads, segments, &self.rope);
        let a = tape.attention(self.layer, qkv, self.heads, segments);
        let a = self.wo.forward(tape, a, rows);
        let x = tape.add(x, a);
        let h = tape.rms_norm(x.clone(), &self.ffn_norm, self.eps);
        let h = self.w13.forward(tape, h, rows);
        let h = tape.swiglu(h);
        let h = self.w2.forward(tape, h, rows);
        tape.add(x, h)
    }

    /// Its parameters, in the order of the table.
    fn params(&self) -> [&Param; 6] {
        [
            &self.attention_norm,
            &self.wqkv.weight,
            &self.wo.weight,
            &self.ffn_norm,
            &self.w13.weight,
            &self.w2.weight,
        ]
    }
}

/// What enters a model or one of its stages.
pub enum Input<'m> {
    /// Token ids, at the first stage.
    Tokens(&'m [u32]),
    /// Hidden states `[T, C]` of the stage before.
    Hidden(Var),
}

/// What is computed again in the backward pass instead of being kept. The gradients have the same bits whatever is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Keep every activation.
    #[serde(rename = "none")]
    Nothing,
    /// Keep all but the outputs of ops that cost next to nothing: norms and SwiGLU.
    #[default]
    Selective,
    /// Keep each block's input only; within the block that is computed again, as `Selective`.
    Blocks,
}

/// A model, or the run of blocks that is one stage of it; the ends are absent where a stage does not hold them.
pub struct Llama {
    /// Sizes of the whole model.
    pub config: Config,
    /// Embedding table `[V, C]`.
    pub embedding: Option<Param>,
    /// Decoder blocks.
    pub blocks: Vec<Block>,
    /// Final norm `[1, C]`.
    pub norm: Option<Param>,
    /// Output projection `[V, C]`; `None` when it is the embedding table.
    pub output: Option<Param>,
    vocabulary: Vocabulary,
}

impl Llama {
    /// Token ids or hidden states → hidden states `[T, C]`, after the final norm when this holds the last block.
    pub fn forward<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        input: Input<'m>,
        segments: &Segments,
        recompute: Recompute,
    ) -> Var {
        if recompute != Recompute::Nothing {
            tape.recompute_cheap();
        }
        tape.soon(self.blocks.first().into_iter().flat_map(Block::params));
        let mut x = match (input, &self.embedding) {
            (Input::Tokens(ids), Some(table)) => tape.embed_over_ranks(self.vocabulary.part(table), ids),
            (Input::Hidden(x), _) => x,
            (Input::Tokens(_), None) => panic!("forward: tokens given to a stage without an embedding"),
        };
        for (i, block) in self.blocks.iter().enumerate() {
            match self.blocks.get(i + 1) {
                Some(next) => tape.soon(next.params()),
                None => tape.soon(self.head()),
            }
            x = match recompute {
                Recompute::Nothing | Recompute::Selective => block.forward(tape, x, segments),
                Recompute::Blocks => {
                    let segments = segments.clone();
                    tape.recompute(x, move |tape, x| block.forward(tape, x, &segments))
                }
            };
        }
        match &self.norm {
            Some(norm) => tape.rms_norm(x, norm, self.config.norm_eps),
            None => x,
        }
    }

    /// The output projection `[V, C]`: a weight of its own, or the embedding table when tied. `None` on a stage
    /// without the last block.
    pub fn head(&self) -> Option<&Param> {
        self.norm.as_ref()?;
        self.output.as_ref().or(self.embedding.as_ref())
    }

    /// Ends the training pass of a stage with the last block: losses of all rows, and the backward sweep from the hidden
    /// states `h` that [`Llama::forward`] gave, as in [`Tape::finish_with_cross_entropy`].
    pub fn finish<'m>(
        &'m self,
        tape: Tape<'m>,
        h: Var,
        targets: Targets<'_>,
        wanted: Option<&Var>,
        sink: &mut dyn GradSink,
    ) -> Result<(CrossEntropy, Option<Tensor>), CommError> {
        let Some(head) = self.head() else { panic!("finish: a stage without the last block") };
        tape.finish_with_cross_entropy_over_ranks(h, self.vocabulary.part(head), targets, wanted, sink)
    }

    /// Builds what `place` holds from `values`, which gives runs of rows of whole tensors: never more than a piece of a
    /// tensor is there twice.
    pub fn build<E>(
        config: &Config,
        place: &Placement,
        device: (&dyn Backend, DType),
        division: impl Into<Division>,
        mut values: impl FnMut(&ParamSpec, Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let (mut params, division) = (Vec::new(), division.into());
        for spec in config.params().iter().filter(|s| place.holds(config, s)) {
            params.push((spec.shard, division.param(spec, place, device, &mut values)?));
        }
        Ok(Self::assemble(config, place, &division, params))
    }

    /// A whole model on one rank from its parameters, in the order of the table.
    pub fn from_params(config: &Config, params: Vec<Param>) -> Self {
        let table = config.params();
        let (found, expected) = (params.len(), table.len());
        assert!(found == expected, "from_params: {found} parameters for a model of {expected}");
        for (spec, param) in table.iter().zip(&params) {
            let (shape, expected) = (param.shape(), spec.shape);
            assert!(shape == expected, "from_params: `{}` is {shape}, not {expected}", spec.name);
        }
        let ranks: Arc<dyn Comm> = Arc::new(Solo);
        let params = table.iter().map(|spec| spec.shard).zip(params).collect();
        Self::assemble(config, &Placement::whole(config), &Division::from(&ranks), params)
    }

    /// Puts the parameters, in the order of the table, where they belong.
    fn assemble(
        config: &Config,
        place: &Placement,
        division: &Division,
        params: Vec<(Shard, Param)>,
    ) -> Self {
        let rope = rope_table(config, config.context);
        let heads = Heads {
            query: config.heads / place.tp_size,
            kv: config.kv_heads / place.tp_size,
            dim: config.head_dim,
        };
        let mut params = params.into_iter().peekable();
        let mut named = |name: &str| params.next_if(|(_, p)| p.name.ends_with(name));
        let embedding = named("tok_embeddings.weight").map(|(_, p)| p);
        let mut must =
            |name: &str| named(name).expect("the table lists every parameter of a block in this order");
        let linear =
            |(shard, weight): (Shard, Param)| Linear::new(weight, shard, Arc::clone(&division.slices));
        let mut blocks = Vec::with_capacity(place.layers.len());
        for layer in place.layers.clone() {
            blocks.push(Block {
                layer,
                attention_norm: must("attention_norm.weight").1,
                wqkv: linear(must("wqkv.weight")),
                wo: linear(must("wo.weight")),
                ffn_norm: must("ffn_norm.weight").1,
                w13: linear(must("w13.weight")),
                w2: linear(must("w2.weight")),
                heads,
                rope: rope.clone(),
                eps: config.norm_eps,
            });
        }
        let norm = named("norm.weight").map(|(_, p)| p);
        let output = named("output.weight").map(|(_, p)| p);
        let vocabulary = Vocabulary::new(config.vocab, Arc::clone(&division.slices));
        Self { config: config.clone(), embedding, blocks, norm, output, vocabulary }
    }

    /// Every parameter held, in the order of the table.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let blocks = self.blocks.iter().flat_map(Block::params);
        self.embedding.iter().chain(blocks).chain(&self.norm).chain(&self.output)
    }

    /// Every parameter held, for updating.
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let blocks = self.blocks.iter_mut().flat_map(|b| {
            let Block { attention_norm, wqkv, wo, ffn_norm, w13, w2, .. } = b;
            [attention_norm, &mut wqkv.weight, &mut wo.weight, ffn_norm, &mut w13.weight, &mut w2.weight]
        });
        self.embedding.iter_mut().chain(blocks).chain(&mut self.norm).chain(&mut self.output)
    }

    /// Arranges every matrix for inference: the model can no longer be trained.
    pub fn pack(&mut self, backend: &dyn Backend) {
        for b in &mut self.blocks {
            for linear in [&mut b.wqkv, &mut b.wo, &mut b.w13, &mut b.w2] {
                linear.weight.value = backend.pack(&linear.weight.value);
            }
        }
        // An embedding that is not the output projection is only looked up.
        let tied = self.output.is_none();
        for table in self.output.iter_mut().chain(self.embedding.iter_mut().filter(|_| tied)) {
            table.value = backend.pack(&table.value);
        }
    }
}
