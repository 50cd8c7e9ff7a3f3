//! Finite differences in `f64`: the proof that the oracle's backward formulas are the gradients of its forward ones.

use super::suite::rope_table;
use super::{Oracle, random, random_ids};
use crate::{
    Attention, Backend, DType, GatheredSegment, Heads, NO_TARGET, RopeDirection, RowLoss, Segment, Segments,
    Shape, Tensor,
};

/// Step of the central difference: its own error is of order `STEP²`, that of rounding `2⁻⁵³ / STEP`.
const STEP: f64 = 1e-5;

/// Largest difference allowed, relative to the largest element of the gradient.
const TOLERANCE: f64 = 1e-7;

/// An input of a function: its name, its values, and the gradient to check.
pub struct Checked {
    /// Named in failures.
    pub name: &'static str,
    /// Where the gradient is taken.
    pub values: Vec<f64>,
    /// The gradient of the loss for `values`.
    pub gradient: Vec<f64>,
}

/// Compares every gradient with central differences of `loss`, a function of all the inputs' values in their order.
/// Panics at the first element that differs.
pub fn check(op: &str, inputs: &[Checked], loss: impl Fn(&[Vec<f64>]) -> f64) {
    let mut at: Vec<Vec<f64>> = inputs.iter().map(|input| input.values.clone()).collect();
    for (n, input) in inputs.iter().enumerate() {
        let name = input.name;
        let (got, want) = (input.gradient.len(), input.values.len());
        assert!(got == want, "{op}: gradient of {name} has {got} elements, want {want}");
        let largest = input.gradient.iter().fold(0.0, |a: f64, g| a.max(g.abs()));
        assert!(largest > 0.0, "{op}: gradient of {name} is zero everywhere, so there is nothing to check");
        for i in 0..input.values.len() {
            let mut shifted = |by: f64| {
                at[n][i] = input.values[i] + by;
                let loss = loss(&at);
                at[n][i] = input.values[i];
                loss
            };
            let numeric = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
            let (got, tolerance) = (input.gradient[i], TOLERANCE * largest);
            assert!(
                (got - numeric).abs() <= tolerance,
                "{op}: gradient of {name}, element {i}: got {got:e}, finite difference {numeric:e}, tolerance {tolerance:e}"
            );
        }
    }
}

/// Checks every backward op of the exact oracle.
pub fn run() {
    linear();
    rms_norm();
    rope();
    attention();
    attention_gathered();
    swiglu();
    embed();
    linear_cross_entropy();
}

fn values(seed: u64, n: usize) -> Vec<f64> {
    random(seed, n, 1.0).into_iter().map(f64::from).collect()
}

/// `Σ c · x` for fixed coefficients `c`: a scalar of a tensor, whose gradient is `c`.
fn contract(oracle: &Oracle, x: &Tensor, c: &[f64]) -> f64 {
    oracle.download_f64(x).iter().zip(c).map(|(x, c)| x * c).sum()
}

/// Runs `f` on a gradient buffer that is not zero and returns what `f` added to it.
fn added(oracle: &Oracle, shape: Shape, f: impl FnOnce(&mut Tensor)) -> Vec<f64> {
    let before = values(77, shape.elements());
    let mut buffer = oracle.upload_f64(&before, shape, DType::F32);
    f(&mut buffer);
    oracle.download_f64(&buffer).iter().zip(before).map(|(after, before)| after - before).collect()
}

fn tensor(oracle: &Oracle, values: &[f64], shape: Shape) -> Tensor {
    oracle.upload_f64(values, shape, DType::F32)
}

/// `linear_backward_input` and `linear_backward_weight`.
pub fn linear() {
    let oracle = Oracle::exact();
    let (x_shape, w_shape, y_shape) = (Shape::new(3, 7), Shape::new(5, 7), Shape::new(3, 5));
    let (x, w, c) = (values(1, 21), values(2, 35), values(3, 15));
    let y =
        |at: &[Vec<f64>]| oracle.linear(&tensor(&oracle, &at[0], x_shape), &tensor(&oracle, &at[1], w_shape));
    let dy = tensor(&oracle, &c, y_shape);
    let dx = oracle.download_f64(&oracle.linear_backward_input(&dy, &tensor(&oracle, &w, w_shape)));
    let dw =
        added(&oracle, w_shape, |dw| oracle.linear_backward_weight(&dy, &tensor(&oracle, &x, x_shape), dw));
    let inputs =
        [Checked { name: "x", values: x, gradient: dx }, Checked { name: "w", values: w, gradient: dw }];
    check("linear", &inputs, |at| contract(&oracle, &y(at), &c));
}

/// `rms_norm_backward`.
pub fn rms_norm() {
    let oracle = Oracle::exact();
    let (shape, w_shape, eps) = (Shape::new(3, 7), Shape::new(1, 7), 1e-2);
    let (x, w, c) = (values(1, 21), values(2, 7), values(3, 21));
    let mut dx = Vec::new();
    let dw = added(&oracle, w_shape, |dw| {
        let [dy, x] = [&c, &x].map(|v| tensor(&oracle, v, shape));
        let w = tensor(&oracle, &w, w_shape);
        dx = oracle.download_f64(&oracle.rms_norm_backward(&dy, &x, &w, eps, dw));
    });
    let inputs =
        [Checked { name: "x", values: x, gradient: dx }, Checked { name: "w", values: w, gradient: dw }];
    check("rms_norm", &inputs, |at| {
        let (x, w) = (tensor(&oracle, &at[0], shape), tensor(&oracle, &at[1], w_shape));
        contract(&oracle, &oracle.rms_norm(&x, &w, eps), &c)
    });
}

fn layout() -> (Heads, Segments, Shape) {
    let (heads, segments) = (Heads { query: 4, kv: 2, dim: 4 }, Segments::documents([1, 6, 2]));
    let shape = Shape::new(segments.total_rows(), heads.width());
    (heads, segments, shape)
}

/// `rope` with [`RopeDirection::Backward`].
pub fn rope() {
    let oracle = Oracle::exact();
    let (heads, segments, shape) = layout();
    let table = rope_table(6, heads.dim);
    let (qkv, c) = (values(1, shape.elements()), values(2, shape.elements()));
    let turn =
        |v: &[f64], direction| oracle.rope(tensor(&oracle, v, shape), heads, &segments, &table, direction);
    let gradient = oracle.download_f64(&turn(&c, RopeDirection::Backward));
    let inputs = [Checked { name: "qkv", values: qkv, gradient }];
    check("rope", &inputs, |at| contract(&oracle, &turn(&at[0], RopeDirection::Forward), &c));
}

/// `attention_backward`, with grouped heads and several documents.
pub fn attention() {
    let oracle = Oracle::exact();
    let (heads, segments, shape) = layout();
    let qkv: Vec<f64> = values(1, shape.elements()).iter().map(|v| 2.0 * v).collect();
    let out = Shape::new(shape.rows, heads.query_width());
    let c = values(2, out.elements());
    let forward = |v: &[f64]| -> Attention { oracle.attention(&tensor(&oracle, v, shape), heads, &segments) };
    let dy = tensor(&oracle, &c, out);
    let d_qkv =
        oracle.attention_backward(&dy, &tensor(&oracle, &qkv, shape), &forward(&qkv), heads, &segments);
    let inputs = [Checked { name: "qkv", values: qkv, gradient: oracle.download_f64(&d_qkv) }];
    check("attention", &inputs, |at| contract(&oracle, &forward(&at[0]).out, &c));
}

/// `attention_gathered_backward`, with two runs of one document, a run of another, and keys that no query sees.
pub fn attention_gathered() {
    let oracle = Oracle::exact();
    let heads = Heads { query: 4, kv: 2, dim: 4 };
    let of = |rows, past, first| GatheredSegment { segment: Segment { rows, past }, first };
    let segments = [of(0..2, 1, 0), of(2..3, 5, 0), of(3..5, 0, 7)];
    let (q_shape, kv_shape) = (Shape::new(5, heads.width()), Shape::new(10, 2 * heads.kv_width()));
    let [q, kv] = [q_shape, kv_shape]
        .map(|shape| -> Vec<f64> { values(1, shape.elements()).iter().map(|v| 2.0 * v).collect() });
    let out = Shape::new(q_shape.rows, heads.query_width());
    let c = values(2, out.elements());
    let forward = |q: &[f64], kv: &[f64]| -> Attention {
        let (q, kv) = (tensor(&oracle, q, q_shape), tensor(&oracle, kv, kv_shape));
        oracle.attention_gathered(&q, &kv, heads, &segments)
    };
    let dy = tensor(&oracle, &c, out);
    let input = (&tensor(&oracle, &q, q_shape), &tensor(&oracle, &kv, kv_shape));
    let (dq, d_kv) = oracle.attention_gathered_backward(&dy, input, &forward(&q, &kv), heads, &segments);
    // Of the keys and values beside the queries nothing is read.
    let zeros = oracle.zeros(Shape::new(q_shape.rows, 2 * heads.kv_width()), DType::F32);
    let gradient = oracle.download_f64(&oracle.concat_columns(&dq, &zeros));
    let inputs = [
        Checked { name: "qkv", values: q, gradient },
        Checked { name: "kv", values: kv, gradient: oracle.download_f64(&d_kv) },
    ];
    check("attention_gathered", &inputs, |at| contract(&oracle, &forward(&at[0], &at[1]).out, &c));
}

/// `swiglu_backward`.
pub fn swiglu() {
    let oracle = Oracle::exact();
    let (shape, half) = (Shape::new(3, 14), Shape::new(3, 7));
    let x: Vec<f64> = values(1, 42).iter().map(|v| 4.0 * v).collect();
    let c = values(2, 21);
    let gradient =
        oracle.download_f64(&oracle.swiglu_backward(&tensor(&oracle, &c, half), tensor(&oracle, &x, shape)));
    let inputs = [Checked { name: "gate_up", values: x, gradient }];
    check("swiglu", &inputs, |at| contract(&oracle, &oracle.swiglu(&tensor(&oracle, &at[0], shape)), &c));
}

/// `embed_backward`, with repeated ids.
pub fn embed() {
    let oracle = Oracle::exact();
    let (table, rows, ids) = (Shape::new(5, 3), Shape::new(6, 3), [4, 0, 4, 2, 4, 0]);
    let (x, c) = (values(1, 15), values(2, 18));
    let gradient = added(&oracle, table, |d| oracle.embed_backward(&tensor(&oracle, &c, rows), &ids, d));
    let inputs = [Checked { name: "table", values: x, gradient }];
    check("embed", &inputs, |at| contract(&oracle, &oracle.embed(&tensor(&oracle, &at[0], table), &ids), &c));
}

/// `linear_cross_entropy_backward`, with rows that do not count; without and with a z-loss.
pub fn linear_cross_entropy() {
    for z in [0.0, 0.25] {
        linear_cross_entropy_and(z);
    }
}

fn linear_cross_entropy_and(z: f32) {
    let oracle = Oracle::exact();
    let (h_shape, w_shape, rows) = (Shape::new(6, 5), Shape::new(9, 5), Shape::new(6, 1));
    let (h, w, c) = (values(1, 30), values(2, 45), values(3, 6));
    let mut targets = random_ids(4, 6, 9);
    (targets[1], targets[5]) = (NO_TARGET, NO_TARGET);
    let forward = |h: &[f64], w: &[f64]| {
        oracle.linear_cross_entropy(&tensor(&oracle, h, h_shape), &tensor(&oracle, w, w_shape), &targets)
    };
    let (d_row, lse) = (tensor(&oracle, &c, rows), forward(&h, &w).lse);
    let mut dh = Vec::new();
    let dw = added(&oracle, w_shape, |dw| {
        let (h, w) = (tensor(&oracle, &h, h_shape), tensor(&oracle, &w, w_shape));
        let loss = RowLoss { d_row: &d_row, z };
        let d = oracle.linear_cross_entropy_backward(loss, (&h, &w), &targets, &lse, dw);
        dh = oracle.download_f64(&d);
    });
    let inputs =
        [Checked { name: "h", values: h, gradient: dh }, Checked { name: "w", values: w, gradient: dw }];
    let op = format!("linear_cross_entropy, z {z}");
    check(&op, &inputs, |at| {
        let found = forward(&at[0], &at[1]);
        let [nll, lse] = [&found.nll, &found.lse].map(|x| oracle.download_f64(x));
        let rows = nll.iter().zip(&lse).map(|(nll, lse)| nll + f64::from(z) * lse * lse);
        rows.zip(&c).map(|(row, c)| row * c).sum()
    });
}
