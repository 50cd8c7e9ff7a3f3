//! How far every op is from the `f64` oracle, as a Markdown table: `cargo run --release -p llamero-cpu --example accuracy`.
//!
//! Inputs are random and are rounded to the dtype before either side sees them. A cell is the worst error of an element
//! over the largest element of the exact result, and the ratio of the root mean squares of error and result. Storing a
//! result in bf16 alone may put an element off by 2⁻⁸ = 3.9e-3 of itself.

use half::bf16;
use llamero_cpu::{Cpu, CpuError, Path};
use llamero_tensor::testing::{Oracle, random, random_ids, suite};
use llamero_tensor::{
    AdamW, AdamWState, Backend, DType, Heads, Master, NO_TARGET, RopeDirection, RowLoss, Segments, Shape,
    Tensor,
};

/// Tokens, width, feed-forward width and vocabulary.
const T: usize = 96;
const C: usize = 192;
const F: usize = 512;
const V: usize = 700;
const HEADS: Heads = Heads { query: 6, kv: 2, dim: 32 };
const EPS: f32 = 1e-5;

/// A backend, and the dtype to try it with.
struct On<'a> {
    backend: &'a dyn Backend,
    /// Copies a tensor out without rounding.
    values: &'a dyn Fn(&Tensor) -> Vec<f64>,
    dtype: DType,
}

/// A result by name.
type Results = Vec<(&'static str, Vec<f64>)>;

impl On<'_> {
    /// Values in `[−scale, scale)` as `dtype` holds them.
    fn input(&self, seed: u64, rows: usize, cols: usize, scale: f32) -> Tensor {
        let mut host = random(seed, rows * cols, scale);
        if self.dtype == DType::Bf16 {
            host.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
        }
        self.backend.upload(&host, Shape::new(rows, cols), self.dtype)
    }

    /// A gradient to add to: not zero, so that the sum is seen, too.
    fn gradient(&self, rows: usize, cols: usize) -> Tensor {
        self.backend.upload(&random(99, rows * cols, 0.1), Shape::new(rows, cols), DType::F32)
    }

    fn linear(&self) -> Results {
        let (x, w, dy) = (self.input(1, T, C, 1.0), self.input(2, F, C, 0.1), self.input(3, T, F, 1.0));
        let mut dw = self.gradient(F, C);
        self.backend.linear_backward_weight(&dy, &x, &mut dw);
        vec![
            ("linear", (self.values)(&self.backend.linear(&x, &w))),
            ("linear, dx", (self.values)(&self.backend.linear_backward_input(&dy, &w))),
            ("linear, dw", (self.values)(&dw)),
        ]
    }

    fn norm(&self) -> Results {
        let (x, w, dy) = (self.input(1, T, C, 2.0), self.input(2, 1, C, 1.0), self.input(3, T, C, 1.0));
        let mut dw = self.gradient(1, C);
        let dx = self.backend.rms_norm_backward(&dy, &x, &w, EPS, &mut dw);
        vec![
            ("rms_norm", (self.values)(&self.backend.rms_norm(&x, &w, EPS))),
            ("rms_norm, dx", (self.values)(&dx)),
            ("rms_norm, dw", (self.values)(&dw)),
        ]
    }

    fn rope(&self) -> Results {
        let (x, segments) = (self.input(1, T, HEADS.width(), 2.0), Segments::documents([T / 3, T - T / 3]));
        let table = suite::rope_table(T, HEADS.dim);
        let turn =
            |direction| (self.values)(&self.backend.rope(x.clone(), HEADS, &segments, &table, direction));
        vec![("rope", turn(RopeDirection::Forward)), ("rope, backward", turn(RopeDirection::Backward))]
    }

    fn attention(&self) -> Results {
        let segments = Segments::documents([T / 3, T - T / 3]);
        let (qkv, dy) = (self.input(1, T, HEADS.width(), 2.0), self.input(2, T, HEADS.query_width(), 1.0));
        let saved = self.backend.attention(&qkv, HEADS, &segments);
        let d_qkv = self.backend.attention_backward(&dy, &qkv, &saved, HEADS, &segments);
        vec![
            ("attention", (self.values)(&saved.out)),
            ("attention, log-sum-exp", (self.values)(&saved.lse)),
            ("attention, dqkv", (self.values)(&d_qkv)),
        ]
    }

    fn elementwise(&self) -> Results {
        let (a, b) = (self.input(1, T, 2 * F, 3.0), self.input(2, T, 2 * F, 3.0));
        let dy = self.input(3, T, F, 1.0);
        let mut table = self.gradient(V, F);
        self.backend.embed_backward(&dy, &random_ids(4, T, 20), &mut table);
        vec![
            ("add", (self.values)(&self.backend.add(&a, &b))),
            ("swiglu", (self.values)(&self.backend.swiglu(&a))),
            ("swiglu, backward", (self.values)(&self.backend.swiglu_backward(&dy, a.clone()))),
            ("embed, dtable", (self.values)(&table)),
            ("sum_of_squares", vec![self.backend.sum_of_squares(&a)]),
        ]
    }

    fn head(&self) -> Results {
        let (h, w) = (self.input(1, T, C, 1.0), self.input(2, V, C, 0.2));
        let mut targets = random_ids(3, T, V as u32);
        targets[T / 2] = NO_TARGET;
        let loss = self.backend.linear_cross_entropy(&h, &w, &targets);
        let d_nll = self.backend.upload(&[1.0 / T as f32; T], Shape::new(T, 1), DType::F32);
        // Its result is small, so nothing that would hide its error is there before.
        let mut dw = self.backend.zeros(Shape::new(V, C), DType::F32);
        let inputs = (&h, &w);
        let dh = self.backend.linear_cross_entropy_backward(
            RowLoss::cross_entropy(&d_nll),
            inputs,
            &targets,
            &loss.lse,
            &mut dw,
        );
        vec![
            ("cross-entropy", (self.values)(&loss.nll)),
            ("cross-entropy, dh", (self.values)(&dh)),
            ("cross-entropy, dw", (self.values)(&dw)),
        ]
    }

    /// The same, loss and gradient at once, as training does it.
    fn head_at_once(&self) -> Results {
        let (h, w) = (self.input(1, T, C, 1.0), self.input(2, V, C, 0.2));
        let targets = random_ids(3, T, V as u32);
        let d_nll = self.backend.upload(&[1.0 / T as f32; T], Shape::new(T, 1), DType::F32);
        let mut dw = self.backend.zeros(Shape::new(V, C), DType::F32);
        let (loss, dh) = self.backend.linear_cross_entropy_with_gradient(
            RowLoss::cross_entropy(&d_nll),
            (&h, &w),
            &targets,
            &mut dw,
        );
        vec![
            ("cross-entropy with gradient", (self.values)(&loss.nll)),
            ("cross-entropy with gradient, dh", (self.values)(&dh)),
            ("cross-entropy with gradient, dw", (self.values)(&dw)),
        ]
    }

    /// Weights and moments are f32 whatever the model computes in.
    fn adamw(&self) -> Results {
        if self.dtype != DType::F32 {
            return Vec::new();
        }
        let (grad, mut weight) = (self.input(1, T, C, 0.1), self.input(2, T, C, 0.1));
        let (mut m, mut v) = (self.gradient(T, C), self.backend.zeros(grad.shape(), DType::F32));
        let step = AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            bias1: 0.19,
            bias2: 0.0975,
            grad_scale: 0.7,
        };
        self.backend.adamw(
            AdamWState { weight: Master::F32(&mut weight), m: &mut m, v: &mut v },
            &grad,
            &step,
        );
        vec![
            ("adamw, weight", (self.values)(&weight)),
            ("adamw, m", (self.values)(&m)),
            ("adamw, v", (self.values)(&v)),
        ]
    }

    fn all(&self) -> Results {
        let groups = [
            Self::linear,
            Self::norm,
            Self::rope,
            Self::attention,
            Self::elementwise,
            Self::head,
            Self::head_at_once,
            Self::adamw,
        ];
        groups.iter().flat_map(|group| group(self)).collect()
    }
}

/// Worst error over the largest value, and the ratio of root mean squares.
fn error(got: &[f64], want: &[f64]) -> (f64, f64) {
    assert_eq!(got.len(), want.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |a: f64, b| a.max(b.abs()));
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let off = || got.iter().zip(want).map(|(g, w)| g - w);
    let worst = largest(&mut off()) / largest(&mut want.iter().copied());
    (worst, (squares(&mut off()) / squares(&mut want.iter().copied())).sqrt())
}

#[expect(clippy::print_stdout, reason = "the table is its result")]
fn main() -> Result<(), CpuError> {
    let paths = Path::available();
    let names: Vec<&str> = paths.iter().map(|path| path.name()).collect();
    println!(
        "Worst error / RMS error, T {T}, C {C}, F {F}, V {V}, heads {}/{} of {}.\n",
        HEADS.query, HEADS.kv, HEADS.dim
    );
    println!("| op | dtype | {} |", names.join(" | "));
    println!("|---|---|{}", "---|".repeat(paths.len()));
    let cpus = paths.into_iter().map(|path| Cpu::with_path(2, path)).collect::<Result<Vec<_>, _>>()?;
    let oracle = Oracle::exact();
    for dtype in [DType::F32, DType::Bf16] {
        let exact = On { backend: &oracle, values: &|x| oracle.download_f64(x), dtype }.all();
        let found = cpus.iter().map(|cpu| {
            let values = |x: &Tensor| cpu.download(x).iter().map(|&v| f64::from(v)).collect();
            On { backend: cpu, values: &values, dtype }.all()
        });
        let found: Vec<Results> = found.collect();
        for (i, (op, want)) in exact.iter().enumerate() {
            let cell = |results: &Results| {
                let (worst, rms) = error(&results[i].1, want);
                format!("{worst:.1e} / {rms:.1e}")
            };
            let cells: Vec<String> = found.iter().map(cell).collect();
            println!("| {op} | {dtype} | {} |", cells.join(" | "));
        }
    }
    Ok(())
}
