//! The whole model against finite differences, in f64: every op's backward and how the ops are joined.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::{Made, config, llama};
use llamero_autograd::{Gradients, Tape};
use llamero_comm::Solo;
use llamero_model::{Config, Input, Llama, Placement, Recompute, RopeScaling};
use llamero_tensor::testing::{Oracle, splitmix};
use llamero_tensor::{DType, NO_TARGET, Segments, Shape};
use llamero_train::SequenceSource;

/// Step of the central difference; its own error is of order `STEP²`.
const STEP: f64 = 1e-5;
/// Largest difference allowed, relative to the largest element of the gradient; 6e-9 was seen.
const TOLERANCE: f64 = 1e-7;

struct Problem {
    oracle: Oracle,
    model: Llama,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    documents: Vec<usize>,
}

impl Problem {
    fn new(tied: bool) -> Self {
        let scaling =
            RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 16 };
        let small = Config {
            dim: 12,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            ffn: 10,
            vocab: 13,
            rope_scaling: Some(scaling),
            tied,
            ..config()
        };
        let oracle = Oracle::exact();
        let model = llama(&small, &Placement::whole(&small), (&oracle, DType::F32), Arc::new(Solo));
        let made = Made.sequence(0).unwrap().tokens;
        let ids = |from: usize| -> Vec<u32> { made[from..from + 11].iter().map(|t| t % 13).collect() };
        let (tokens, mut targets) = (ids(0), ids(40));
        (targets[3], targets[10]) = (NO_TARGET, NO_TARGET);
        Self { oracle, model, tokens, targets, documents: vec![4, 1, 6] }
    }

    /// Σ over rows of nll · (row + 1), so that no row may be taken for another.
    fn loss(&self) -> f64 {
        let mut tape = Tape::infer(&self.oracle);
        let nll = self.nll(&mut tape, Recompute::Nothing);
        let rows = self.oracle.download_f64(nll.value());
        rows.iter().enumerate().map(|(i, x)| x * (i + 1) as f64).sum()
    }

    fn nll<'m>(&'m self, tape: &mut Tape<'m>, recompute: Recompute) -> llamero_autograd::Var {
        let segments = Segments::documents(self.documents.iter().copied());
        let h = self.model.forward(tape, Input::Tokens(&self.tokens), &segments, recompute);
        tape.linear_cross_entropy(h, self.model.head().unwrap(), &self.targets)
    }

    fn gradients(&self, recompute: Recompute) -> Vec<(usize, Vec<f64>)> {
        let mut tape = Tape::record(&self.oracle);
        let nll = self.nll(&mut tape, recompute);
        let rows: Vec<f64> = (1..=self.tokens.len()).map(|i| i as f64).collect();
        let seed = self.oracle.upload_f64(&rows, Shape::new(rows.len(), 1), DType::F32);
        let mut gradients = Gradients::new(&self.oracle);
        tape.backward(nll, seed, None, &mut gradients).unwrap();
        gradients.iter().map(|(id, g)| (id, self.oracle.download_f64(g))).collect()
    }

    /// The loss with one weight moved.
    fn loss_with(&mut self, id: usize, element: usize, by: f64) -> f64 {
        let Self { oracle, model, .. } = self;
        let param = model.params_mut().find(|p| p.id == id).unwrap();
        let kept = param.value.clone();
        let mut values = oracle.download_f64(&kept);
        values[element] += by;
        param.value = oracle.upload_f64(&values, kept.shape(), DType::F32);
        let loss = self.loss();
        self.model.params_mut().find(|p| p.id == id).unwrap().value = kept;
        loss
    }
}

#[test]
fn gradients_of_every_kind_of_weight_are_slopes_of_the_loss() {
    for tied in [false, true] {
        let mut problem = Problem::new(tied);
        let gradients = problem.gradients(Recompute::Nothing);
        assert_eq!(gradients.len(), problem.model.config.params().len());
        for recompute in [Recompute::Selective, Recompute::Blocks] {
            assert_eq!(gradients, problem.gradients(recompute), "{recompute:?}");
        }
        let mut state = 9;
        for (id, gradient) in gradients {
            let name = problem.model.params().find(|p| p.id == id).unwrap().name.clone();
            let largest = gradient.iter().fold(0.0, |a: f64, g| a.max(g.abs()));
            assert!(largest > 1e-3, "`{name}`: gradient of {largest:e} is too small to check");
            for _ in 0..12 {
                let element = splitmix(&mut state) as usize % gradient.len();
                let slope = (problem.loss_with(id, element, STEP) - problem.loss_with(id, element, -STEP))
                    / (2.0 * STEP);
                let apart = (gradient[element] - slope).abs() / largest;
                assert!(apart < TOLERANCE, "tied {tied}, `{name}`, element {element}: {apart:e} apart");
            }
        }
    }
}
