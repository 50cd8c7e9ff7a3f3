//! The model and batch that `bench train` runs: named shapes, and options that change them.

use anyhow::Result;
use clap::{Args, ValueEnum};
use llamero_model::Config;

use super::{size, usage};

/// Shapes that figures are published for.
#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// 7.7M parameters, 8 × 512 tokens
    #[value(name = "8m")]
    M8,
    /// 56M parameters, 4 × 1024 tokens
    #[value(name = "56m")]
    M56,
    /// 125M parameters, 2 × 1024 tokens
    #[value(name = "125m")]
    M125,
    /// Llama 3's vocabulary on the blocks of 125m, 1 × 8192 tokens
    #[value(name = "125m-long")]
    M125Long,
}

/// Sizes; what is not given comes from the named shape.
#[derive(Args)]
pub(super) struct ShapeArgs {
    /// A named shape; the options below change single sizes of it.
    #[arg(long, value_enum, default_value = "8m")]
    shape: Name,
    /// Model width.
    #[arg(long, value_parser = size)]
    dim: Option<usize>,
    /// Blocks.
    #[arg(long, value_parser = size)]
    layers: Option<usize>,
    /// Query heads; a divisor of the width.
    #[arg(long, value_parser = size)]
    heads: Option<usize>,
    /// Key and value heads; a divisor of the query heads.
    #[arg(long, value_parser = size)]
    kv_heads: Option<usize>,
    /// Feed-forward width.
    #[arg(long, value_parser = size)]
    ffn: Option<usize>,
    /// Vocabulary.
    #[arg(long, value_parser = size)]
    vocab: Option<usize>,
    /// Tokens of a sequence.
    #[arg(long, value_parser = size)]
    seq: Option<usize>,
    /// Sequences of a step.
    #[arg(long, value_parser = size)]
    batch: Option<usize>,
}

/// A model and the batch it is trained with.
pub(super) struct Workload {
    pub(super) model: Config,
    /// Tokens of a sequence.
    pub(super) seq: usize,
    /// Sequences of a step.
    pub(super) batch: usize,
}

impl ShapeArgs {
    /// The sizes that the options ask for.
    ///
    /// # Errors
    /// An error of usage where they do not fit together.
    pub(super) fn workload(&self) -> Result<Workload> {
        // Width, blocks, query heads, key/value heads, feed-forward width, vocabulary, tokens, sequences.
        let named = match self.shape {
            Name::M8 => [288, 6, 6, 2, 768, 4096, 512, 8],
            Name::M56 => [512, 8, 8, 4, 1408, 32_000, 1024, 4],
            Name::M125 => [768, 12, 12, 4, 2048, 32_000, 1024, 2],
            Name::M125Long => [768, 12, 12, 4, 2048, 128_256, 8192, 1],
        };
        let given =
            [self.dim, self.layers, self.heads, self.kv_heads, self.ffn, self.vocab, self.seq, self.batch];
        let mut sizes = named;
        for (size, given) in sizes.iter_mut().zip(given) {
            *size = given.unwrap_or(*size);
        }
        let [dim, layers, heads, kv_heads, ffn, vocab, seq, batch] = sizes;
        if !dim.is_multiple_of(heads) {
            return Err(usage(format!("--heads {heads} does not divide --dim {dim}")));
        }
        let model = Config {
            dim,
            layers,
            heads,
            kv_heads,
            head_dim: dim / heads,
            ffn,
            vocab,
            context: seq,
            rope_theta: 500_000.0,
            rope_scaling: None,
            norm_eps: 1e-5,
            tied: false,
        };
        model.validate().map_err(usage)?;
        Ok(Workload { model, seq, batch })
    }
}

/// Operations of a training step per token, forward and backward: 6 for each parameter outside the embedding table, and
/// for attention 6·layers·seq·dim, because a token sees half of its sequence on average.
pub(super) fn flops_per_token(Workload { model, seq, .. }: &Workload) -> f64 {
    let products = 6.0 * (model.num_params() - (model.vocab * model.dim) as u64) as f64;
    products + 6.0 * (model.layers * seq * model.dim) as f64
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        shape: ShapeArgs,
    }

    fn workload(args: &[&str]) -> Result<Workload> {
        Line::parse_from([&["bench"], args].concat()).shape.workload()
    }

    #[test]
    fn named_shapes_have_the_sizes_of_their_names() {
        for (name, params) in [("8m", 7.7e6), ("56m", 56e6), ("125m", 125e6)] {
            let found = workload(&["--shape", name]).unwrap();
            assert!((found.model.num_params() as f64 / params - 1.0).abs() < 0.01, "{name}");
        }
        let long = workload(&["--shape", "125m-long"]).unwrap();
        assert_eq!((long.model.vocab, long.seq, long.batch, long.model.layers), (128_256, 8192, 1, 12));
    }

    #[test]
    fn options_change_a_shape_and_must_fit() {
        let found = workload(&["--shape", "8m", "--layers", "2", "--batch", "3"]).unwrap();
        assert_eq!((found.model.layers, found.batch, found.model.dim), (2, 3, 288));
        let error = workload(&["--heads", "5"]).err().unwrap().to_string();
        assert!(error.contains("--heads 5") && error.contains("--dim 288"), "{error}");
        let error = workload(&["--kv-heads", "4"]).err().unwrap().to_string();
        assert!(error.contains("kv_heads"), "{error}");
    }

    #[test]
    fn flops_follow_the_formula() {
        let args = "--dim 8 --layers 2 --heads 2 --kv-heads 1 --ffn 16 --vocab 10 --seq 4 --batch 1";
        let found = workload(&args.split(' ').collect::<Vec<_>>()).unwrap();
        // A block: wqkv 16×8, wo 8×8, w13 32×8, w2 8×16, two norms; then the last norm and the output projection.
        let params = 2 * (16 * 8 + 8 * 8 + 32 * 8 + 8 * 16 + 2 * 8) + 8 + 10 * 8;
        assert_eq!(flops_per_token(&found), (6 * params + 6 * 2 * 4 * 8) as f64);
    }
}
