//! The whole model against finite differences, in f64: every op's backward and how the ops are joined.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::{Made, config, llama};
use llamero_autograd::{Gradients, Tape, Targets};
use llamero_comm::Solo;
use llamero_model::{Config, Input, Llama, Placement, Recompute, RopeScaling};
use llamero_tensor::testing::{Oracle, splitmix};
use llamero_tensor::{Backend, DType, NO_TARGET, RowLoss, Segments, Shape};
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

    /// Σ over rows of (nll + z · lse²) · (row + 1), so that no row may be taken for another.
    fn loss(&self, z: f32) -> f64 {
        let mut tape = Tape::infer(&self.oracle);
        let segments = Segments::documents(self.documents.iter().copied());
        let h = self.model.forward(&mut tape, Input::Tokens(&self.tokens), &segments, Recompute::Nothing);
        let head = &self.model.head().unwrap().value;
        let found = self.oracle.linear_cross_entropy(h.value(), head, &self.targets);
        let [nll, lse] = [found.nll, found.lse].map(|x| self.oracle.download_f64(&x));
        let rows = nll.iter().zip(lse).map(|(nll, lse)| nll + f64::from(z) * lse * lse);
        rows.enumerate().map(|(i, x)| x * (i + 1) as f64).sum()
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

    /// The same with `z` times the squared log-sum-exp added to each row, from the pass that training takes.
    fn gradients_with_z(&self, z: f32) -> Vec<(usize, Vec<f64>)> {
        let mut tape = Tape::record(&self.oracle);
        let segments = Segments::documents(self.documents.iter().copied());
        let h = self.model.forward(&mut tape, Input::Tokens(&self.tokens), &segments, Recompute::Nothing);
        let rows: Vec<f64> = (1..=self.tokens.len()).map(|i| i as f64).collect();
        let d_row = self.oracle.upload_f64(&rows, Shape::new(rows.len(), 1), DType::F32);
        let targets = Targets { ids: &self.targets, loss: RowLoss { d_row: &d_row, z } };
        let mut gradients = Gradients::new(&self.oracle);
        self.model.finish(tape, h, targets, None, &mut gradients).unwrap();
        gradients.iter().map(|(id, g)| (id, self.oracle.download_f64(g))).collect()
    }

    /// The loss with one weight moved.
    fn loss_with(&mut self, z: f32, id: usize, element: usize, by: f64) -> f64 {
        let Self { oracle, model, .. } = self;
        let param = model.params_mut().find(|p| p.id == id).unwrap();
        let kept = param.value.clone();
        let mut values = oracle.download_f64(&kept);
        values[element] += by;
        param.value = oracle.upload_f64(&values, kept.shape(), DType::F32);
        let loss = self.loss(z);
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
        check(&mut problem, 0.0, gradients);
        let gradients = problem.gradients_with_z(0.0);
        assert_eq!(gradients, problem.gradients(Recompute::Nothing), "the pass that training takes");
        let gradients = problem.gradients_with_z(0.125);
        check(&mut problem, 0.125, gradients);
    }
}

fn check(problem: &mut Problem, z: f32, gradients: Vec<(usize, Vec<f64>)>) {
    let mut state = 9;
    for (id, gradient) in gradients {
        let name = problem.model.params().find(|p| p.id == id).unwrap().name.clone();
        let largest = gradient.iter().fold(0.0, |a: f64, g| a.max(g.abs()));
        assert!(largest > 1e-3, "`{name}`: gradient of {largest:e} is too small to check");
        for _ in 0..12 {
            let element = splitmix(&mut state) as usize % gradient.len();
            let [up, down] = [STEP, -STEP].map(|by| problem.loss_with(z, id, element, by));
            let apart = (gradient[element] - (up - down) / (2.0 * STEP)).abs() / largest;
            assert!(apart < TOLERANCE, "z {z}, `{name}`, element {element}: {apart:e} apart");
        }
    }
}
