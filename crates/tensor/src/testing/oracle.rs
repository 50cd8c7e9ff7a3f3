//! A backend that is slow and obviously right: plain loops over `f64`.

mod attention;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;

use crate::{
    AdamW, AdamWState, Attention, Backend, CrossEntropy, DType, GatheredSegment, Heads, KvLayout, LowHalves,
    Master, Memory, NO_TARGET, PagedSegment, RopeDirection, RopeTable, RowLoss, Segments, Shape,
    TARGET_ELSEWHERE, Tensor,
};

/// The scalar oracle. Every kernel computes in `f64`; the two kinds differ in what they store.
#[derive(Debug)]
pub struct Oracle {
    rounding: bool,
    memory: Arc<Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    live: AtomicUsize,
    peak: AtomicUsize,
}

/// Values of a tensor, and the bytes they would take in the tensor's dtype.
struct Storage {
    values: Vec<f64>,
    bytes: usize,
    memory: Arc<Counter>,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.memory.live.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Oracle {
    /// Keeps `f64` everywhere, whatever the dtype: the reference values of the suite and of finite differences.
    pub fn exact() -> Self {
        Self { rounding: false, memory: Arc::default() }
    }

    /// Rounds every stored value to the tensor's dtype: a model of a real backend.
    pub fn rounding() -> Self {
        Self { rounding: true, memory: Arc::default() }
    }

    /// [`Backend::upload`] without the detour through `f32`.
    pub fn upload_f64(&self, host: &[f64], shape: Shape, dtype: DType) -> Tensor {
        assert!(host.len() == shape.elements(), "upload: {} values for shape {shape}", host.len());
        self.make(shape, dtype, host.to_vec())
    }

    /// [`Backend::download`] without the detour through `f32`.
    pub fn download_f64(&self, x: &Tensor) -> Vec<f64> {
        values(x).to_vec()
    }

    fn round(&self, value: f64, dtype: DType) -> f64 {
        match (self.rounding, dtype) {
            (false, _) => value,
            (true, DType::F32) => f64::from(value as f32),
            (true, DType::Bf16) => bf16::from_f32(value as f32).to_f64(),
        }
    }

    fn make(&self, shape: Shape, dtype: DType, mut values: Vec<f64>) -> Tensor {
        debug_assert_eq!(values.len(), shape.elements());
        values.iter_mut().for_each(|v| *v = self.round(*v, dtype));
        Tensor::from_storage(shape, dtype, self.storage(values, dtype.bytes()))
    }

    fn storage(&self, values: Vec<f64>, element_bytes: usize) -> Storage {
        let bytes = values.len() * element_bytes;
        let live = self.memory.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.memory.peak.fetch_max(live, Ordering::Relaxed);
        Storage { values, bytes, memory: self.memory.clone() }
    }

    /// The bf16 half of a master weight.
    fn high_half(&self, value: f64) -> f64 {
        match (self.rounding, value as f32) {
            (true, x) if !x.is_nan() => {
                let bits = x.to_bits().wrapping_add(0x8000) & 0xffff_0000;
                f64::from(f32::from_bits(bits))
            }
            _ => value,
        }
    }

    /// A tensor whose element at `(row, column)` is `f(row, column)`.
    fn build(&self, shape: Shape, dtype: DType, f: impl Fn(usize, usize) -> f64) -> Tensor {
        let cells = (0..shape.rows).flat_map(|i| (0..shape.cols).map(move |j| (i, j)));
        self.make(shape, dtype, cells.map(|(i, j)| f(i, j)).collect())
    }

    /// Replaces every element of `x` by `f(index, element)`.
    fn update(&self, x: &mut Tensor, f: impl Fn(usize, f64) -> f64) {
        let dtype = x.dtype();
        for (i, v) in values_mut(x).iter_mut().enumerate() {
            *v = self.round(f(i, *v), dtype);
        }
    }
}

fn values(x: &Tensor) -> &[f64] {
    let Some(storage) = x.storage::<Storage>() else { panic!("oracle: {x:?} belongs to another backend") };
    &storage.values
}

fn values_mut(x: &mut Tensor) -> &mut [f64] {
    let what = format!("{x:?}");
    let Some(storage) = x.storage_mut::<Storage>() else {
        panic!("oracle: {what} is shared or belongs to another backend and cannot be written")
    };
    &mut storage.values
}

fn wholes(low: &LowHalves) -> &Storage {
    let Some(storage) = low.storage() else { panic!("oracle: {low:?} belong to another backend") };
    storage
}

fn row(x: &Tensor, i: usize) -> &[f64] {
    &values(x)[i * x.cols()..(i + 1) * x.cols()]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln Σ exp x`, shifted by the maximum so that it neither overflows nor underflows; NaN when an element is.
fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

fn require_gradient(op: &str, dw: &Tensor, rows: usize, cols: usize) {
    let fits = dw.shape() == Shape::new(rows, cols) && dw.dtype() == DType::F32;
    assert!(fits, "{op}: gradient {dw:?} is not f32 [{rows}, {cols}]");
}

fn require_targets(op: &str, h: &Tensor, w: &Tensor, targets: &[u32]) {
    assert!(h.cols() == w.cols() && h.dtype() == w.dtype(), "{op}: {h:?} does not fit {w:?}");
    assert!(targets.len() == h.rows(), "{op}: {} targets for {h:?}", targets.len());
    let outside = targets.iter().find(|&&t| t < TARGET_ELSEWHERE && t as usize >= w.rows());
    assert!(outside.is_none(), "{op}: target {outside:?} outside {w:?}");
}

impl Backend for Oracle {
    fn name(&self) -> String {
        if self.rounding { "oracle/rounding" } else { "oracle/exact" }.into()
    }

    fn memory(&self) -> Memory {
        Memory {
            live_bytes: self.memory.live.load(Ordering::Relaxed),
            peak_bytes: self.memory.peak.load(Ordering::Relaxed),
        }
    }

    fn reset_peak(&self) {
        self.memory.peak.store(self.memory.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn upload(&self, host: &[f32], shape: Shape, dtype: DType) -> Tensor {
        let host: Vec<f64> = host.iter().map(|&v| f64::from(v)).collect();
        self.upload_f64(&host, shape, dtype)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        values(x).iter().map(|&v| v as f32).collect()
    }

    fn zeros(&self, shape: Shape, dtype: DType) -> Tensor {
        self.make(shape, dtype, vec![0.0; shape.elements()])
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor {
        self.make(x.shape(), dtype, values(x).to_vec())
    }

    fn split(&self, x: &Tensor) -> (Tensor, LowHalves) {
        assert!(x.dtype() == DType::F32, "split: {x:?} is not f32");
        let high = values(x).iter().map(|&v| self.high_half(v)).collect();
        // Two bytes an element are what the other half needs; the oracle keeps the whole value in it.
        let low = LowHalves::from_storage(x.shape(), self.storage(values(x).to_vec(), 2));
        (self.make(x.shape(), DType::Bf16, high), low)
    }

    fn join(&self, high: &Tensor, low: &LowHalves) -> Tensor {
        let fits = high.dtype() == DType::Bf16 && high.shape() == low.shape();
        assert!(fits, "join: {high:?} does not fit {low:?}");
        self.make(high.shape(), DType::F32, wholes(low).values.clone())
    }

    fn pack(&self, w: &Tensor) -> Tensor {
        w.clone()
    }

    fn copy_rows(&self, dst: &mut Tensor, at: usize, src: &Tensor, rows: Range<usize>, cols: Range<usize>) {
        let fits = rows.start <= rows.end
            && rows.end <= src.rows()
            && cols.start <= cols.end
            && cols.end <= src.cols()
            && cols.len() == dst.cols()
            && at + rows.len() <= dst.rows()
            && dst.dtype() == src.dtype();
        assert!(
            fits,
            "copy_rows: rows {rows:?} and columns {cols:?} of {src:?} do not fit {dst:?} at row {at}"
        );
        let width = dst.cols();
        let out = values_mut(dst);
        for (n, i) in rows.enumerate() {
            out[(at + n) * width..(at + n + 1) * width].copy_from_slice(&row(src, i)[cols.clone()]);
        }
    }

    fn linear(&self, x: &Tensor, w: &Tensor) -> Tensor {
        assert!(x.cols() == w.cols() && x.dtype() == w.dtype(), "linear: {x:?} does not fit {w:?}");
        self.build(Shape::new(x.rows(), w.rows()), x.dtype(), |t, n| dot(row(x, t), row(w, n)))
    }

    fn linear_f32(&self, x: &Tensor, w: &Tensor) -> Tensor {
        assert!(x.cols() == w.cols() && x.dtype() == w.dtype(), "linear: {x:?} does not fit {w:?}");
        self.build(Shape::new(x.rows(), w.rows()), DType::F32, |t, n| dot(row(x, t), row(w, n)))
    }

    fn linear_backward_input(&self, dy: &Tensor, w: &Tensor) -> Tensor {
        let fits = dy.cols() == w.rows() && dy.dtype() == w.dtype();
        assert!(fits, "linear_backward_input: {dy:?} does not fit {w:?}");
        self.build(Shape::new(dy.rows(), w.cols()), dy.dtype(), |t, k| {
            (0..w.rows()).map(|n| row(dy, t)[n] * row(w, n)[k]).sum()
        })
    }

    fn linear_backward_weight(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) {
        let fits = dy.rows() == x.rows() && dy.dtype() == x.dtype();
        assert!(fits, "linear_backward_weight: {dy:?} does not fit {x:?}");
        require_gradient("linear_backward_weight", dw, dy.cols(), x.cols());
        self.update(dw, |i, dw| {
            let (n, k) = (i / x.cols(), i % x.cols());
            dw + (0..x.rows()).map(|t| row(dy, t)[n] * row(x, t)[k]).sum::<f64>()
        });
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        assert!(a.shape() == b.shape() && a.dtype() == b.dtype(), "add: {a:?} does not fit {b:?}");
        self.build(a.shape(), a.dtype(), |i, j| row(a, i)[j] + row(b, i)[j])
    }

    fn add_assign(&self, acc: &mut Tensor, x: &Tensor) {
        let fits = acc.shape() == x.shape() && (acc.dtype() == x.dtype() || acc.dtype() == DType::F32);
        assert!(fits, "add_assign: {acc:?} does not fit {x:?}");
        self.update(acc, |i, acc| acc + values(x)[i]);
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32) -> Tensor {
        let fits = w.shape() == Shape::new(1, x.cols()) && w.dtype() == x.dtype();
        assert!(fits, "rms_norm: {x:?} does not fit {w:?}");
        let inverse: Vec<f64> = (0..x.rows()).map(|t| inverse_rms(row(x, t), eps)).collect();
        self.build(x.shape(), x.dtype(), |t, c| {
            self.round(row(x, t)[c] * inverse[t], x.dtype()) * values(w)[c]
        })
    }

    fn rms_norm_backward(&self, dy: &Tensor, x: &Tensor, w: &Tensor, eps: f32, dw: &mut Tensor) -> Tensor {
        let fits = dy.shape() == x.shape() && w.shape() == Shape::new(1, x.cols());
        assert!(fits, "rms_norm_backward: {dy:?}, {x:?} and {w:?} do not fit");
        require_gradient("rms_norm_backward", dw, 1, x.cols());
        let (inverse, mean): (Vec<f64>, Vec<f64>) = (0..x.rows())
            .map(|t| {
                let r = inverse_rms(row(x, t), eps);
                let weighted: f64 =
                    (0..x.cols()).map(|c| row(dy, t)[c] * values(w)[c] * row(x, t)[c] * r).sum();
                (r, weighted / x.cols() as f64)
            })
            .unzip();
        self.update(dw, |c, dw| {
            dw + (0..x.rows()).map(|t| row(dy, t)[c] * row(x, t)[c] * inverse[t]).sum::<f64>()
        });
        self.build(x.shape(), x.dtype(), |t, c| {
            inverse[t] * (row(dy, t)[c] * values(w)[c] - row(x, t)[c] * inverse[t] * mean[t])
        })
    }

    fn rope(
        &self,
        mut qkv: Tensor,
        heads: Heads,
        segments: &Segments,
        table: &RopeTable,
        direction: RopeDirection,
    ) -> Tensor {
        attention::require_packed("rope", &qkv, heads, segments);
        assert!(table.half() * 2 == heads.dim, "rope: table of {} pairs for {heads:?}", table.half());
        let positions: Vec<usize> = segments.positions().collect();
        let past_end = positions.iter().find(|&&p| p >= table.positions());
        assert!(past_end.is_none(), "rope: position {past_end:?} outside a table of {}", table.positions());
        let half = table.half();
        let turned = |t: usize, c: usize| {
            if c >= heads.query_width() + heads.kv_width() {
                return row(&qkv, t)[c];
            }
            let ((cos, sin), i) = (table.row(positions[t]), c % heads.dim % half);
            let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
            let sin = if direction == RopeDirection::Forward { sin } else { -sin };
            if c % heads.dim < half {
                row(&qkv, t)[c] * cos - row(&qkv, t)[c + half] * sin
            } else {
                row(&qkv, t)[c] * cos + row(&qkv, t)[c - half] * sin
            }
        };
        let cells = (0..qkv.rows()).flat_map(|t| (0..qkv.cols()).map(move |c| (t, c)));
        let values: Vec<f64> = cells.map(|(t, c)| turned(t, c)).collect();
        if qkv.is_shared() {
            return self.make(qkv.shape(), qkv.dtype(), values);
        }
        self.update(&mut qkv, |i, _| values[i]);
        qkv
    }

    fn attention(&self, qkv: &Tensor, heads: Heads, segments: &Segments) -> Attention {
        attention::forward(self, qkv, heads, segments)
    }

    fn attention_backward(
        &self,
        dy: &Tensor,
        qkv: &Tensor,
        saved: &Attention,
        heads: Heads,
        segments: &Segments,
    ) -> Tensor {
        attention::backward(self, dy, qkv, saved, (heads, segments))
    }

    fn attention_paged(
        &self,
        qkv: &Tensor,
        layer: (KvLayout, usize),
        segments: &[PagedSegment<'_>],
    ) -> Tensor {
        attention::paged(self, qkv, layer, segments)
    }

    fn attention_gathered(
        &self,
        qkv: &Tensor,
        kv: &Tensor,
        heads: Heads,
        segments: &[GatheredSegment],
    ) -> Attention {
        attention::gathered(self, (qkv, kv), heads, segments)
    }

    fn attention_gathered_backward(
        &self,
        dy: &Tensor,
        input: (&Tensor, &Tensor),
        saved: &Attention,
        heads: Heads,
        segments: &[GatheredSegment],
    ) -> (Tensor, Tensor) {
        attention::gathered_backward(self, dy, input, saved, (heads, segments))
    }

    fn concat_columns(&self, left: &Tensor, right: &Tensor) -> Tensor {
        assert!(left.rows() == right.rows(), "concat_columns: {left:?} does not fit {right:?}");
        let (rows, width) = (left.rows(), left.cols());
        self.build(Shape::new(rows, width + right.cols()), left.dtype(), |t, c| {
            if c < width { row(left, t)[c] } else { row(right, t)[c - width] }
        })
    }

    fn swiglu(&self, gate_up: &Tensor) -> Tensor {
        assert!(gate_up.cols().is_multiple_of(2), "swiglu: {gate_up:?} has an odd number of columns");
        let width = gate_up.cols() / 2;
        self.build(Shape::new(gate_up.rows(), width), gate_up.dtype(), |t, c| {
            let (gate, up) = (row(gate_up, t)[c], row(gate_up, t)[width + c]);
            gate * sigmoid(gate) * up
        })
    }

    fn swiglu_backward(&self, dy: &Tensor, gate_up: Tensor) -> Tensor {
        let width = dy.cols();
        let fits = gate_up.shape() == Shape::new(dy.rows(), 2 * width) && gate_up.dtype() == dy.dtype();
        assert!(fits, "swiglu_backward: {dy:?} does not fit {gate_up:?}");
        self.build(gate_up.shape(), dy.dtype(), |t, c| {
            let column = c % width;
            let (gate, up) = (row(&gate_up, t)[column], row(&gate_up, t)[width + column]);
            let s = sigmoid(gate);
            let slope = if c < width { up * s * (1.0 + gate * (1.0 - s)) } else { gate * s };
            row(dy, t)[column] * slope
        })
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        let outside = ids.iter().find(|&&id| id as usize >= table.rows());
        assert!(outside.is_none(), "embed: id {outside:?} outside {table:?}");
        self.build(Shape::new(ids.len(), table.cols()), table.dtype(), |t, c| row(table, ids[t] as usize)[c])
    }

    fn embed_backward(&self, dy: &Tensor, ids: &[u32], dtable: &mut Tensor) {
        assert!(dy.rows() == ids.len(), "embed_backward: {} ids for {dy:?}", ids.len());
        require_gradient("embed_backward", dtable, dtable.rows(), dy.cols());
        let outside = ids.iter().find(|&&id| id as usize >= dtable.rows());
        assert!(outside.is_none(), "embed_backward: id {outside:?} outside {dtable:?}");
        let width = dy.cols();
        let out = values_mut(dtable);
        for (t, &id) in ids.iter().enumerate() {
            for c in 0..width {
                let at = id as usize * width + c;
                out[at] = self.round(out[at] + row(dy, t)[c], DType::F32);
            }
        }
    }

    fn linear_cross_entropy(&self, h: &Tensor, w: &Tensor, targets: &[u32]) -> CrossEntropy {
        require_targets("linear_cross_entropy", h, w, targets);
        let (mut nll, mut lse) = (vec![0.0; h.rows()], vec![0.0; h.rows()]);
        for (t, &target) in targets.iter().enumerate().filter(|&(_, &target)| target != NO_TARGET) {
            let logits: Vec<f64> = (0..w.rows()).map(|v| dot(row(h, t), row(w, v))).collect();
            lse[t] = log_sum_exp(&logits);
            nll[t] = lse[t] - if target == TARGET_ELSEWHERE { 0.0 } else { logits[target as usize] };
        }
        let shape = Shape::new(h.rows(), 1);
        CrossEntropy { nll: self.make(shape, DType::F32, nll), lse: self.make(shape, DType::F32, lse) }
    }

    fn linear_cross_entropy_backward(
        &self,
        RowLoss { d_row, z }: RowLoss<'_>,
        (h, w): (&Tensor, &Tensor),
        targets: &[u32],
        lse: &Tensor,
        dw: &mut Tensor,
    ) -> Tensor {
        let op = "linear_cross_entropy_backward";
        require_targets(op, h, w, targets);
        let per_row = Shape::new(h.rows(), 1);
        let fits = d_row.shape() == per_row && lse.shape() == per_row;
        assert!(fits, "{op}: {d_row:?} and {lse:?} do not fit {h:?}");
        require_gradient(op, dw, w.rows(), w.cols());
        let vocabulary = w.rows();
        let mut d_logits = vec![0.0; h.rows() * vocabulary];
        for (t, &target) in targets.iter().enumerate().filter(|&(_, &target)| target != NO_TARGET) {
            let lse = values(lse)[t];
            let d_lse = 1.0 + 2.0 * f64::from(z) * lse;
            for v in 0..vocabulary {
                let p = (dot(row(h, t), row(w, v)) - lse).exp();
                let hit = if v == target as usize { 1.0 } else { 0.0 };
                d_logits[t * vocabulary + v] = values(d_row)[t] * (d_lse * p - hit);
            }
        }
        self.update(dw, |i, dw| {
            let (v, c) = (i / w.cols(), i % w.cols());
            let counted = (0..h.rows()).filter(|&t| targets[t] != NO_TARGET);
            dw + counted.map(|t| d_logits[t * vocabulary + v] * row(h, t)[c]).sum::<f64>()
        });
        self.build(h.shape(), h.dtype(), |t, c| {
            if targets[t] == NO_TARGET {
                return 0.0;
            }
            (0..vocabulary).map(|v| d_logits[t * vocabulary + v] * row(w, v)[c]).sum()
        })
    }

    fn adamw(&self, state: AdamWState<'_>, grad: &Tensor, step: &AdamW) {
        let AdamWState { weight, m, v } = state;
        for x in [&*m, &*v, grad] {
            let fits = x.shape() == grad.shape() && x.dtype() == DType::F32;
            assert!(fits, "adamw: {x:?} does not fit gradient {grad:?}, or is not f32");
        }
        let fits = match &weight {
            Master::F32(weight) => weight.shape() == grad.shape() && weight.dtype() == DType::F32,
            Master::Split { high, low } => high.shape() == grad.shape() && low.shape() == grad.shape(),
        };
        assert!(fits, "adamw: the weights do not fit {grad:?}");
        let [lr, beta1, beta2, eps] = [step.lr, step.beta1, step.beta2, step.eps].map(f64::from);
        let [decay, bias1, bias2, scale] =
            [step.weight_decay, step.bias1, step.bias2, step.grad_scale].map(f64::from);
        let gradient = |i: usize| values(grad)[i] * scale;
        self.update(m, |i, m| beta1 * m + (1.0 - beta1) * gradient(i));
        self.update(v, |i, v| beta2 * v + (1.0 - beta2) * gradient(i).powi(2));
        let (m, v) = (values(m), values(v));
        let updated =
            |i: usize, w: f64| w - lr * decay * w - lr * (m[i] / bias1) / ((v[i] / bias2).sqrt() + eps);
        match weight {
            Master::F32(weight) => self.update(weight, updated),
            Master::Split { high, low } => {
                let mut whole = self.join(high, low);
                self.update(&mut whole, updated);
                (*high, *low) = self.split(&whole);
            }
        }
    }

    fn sum_of_squares(&self, x: &Tensor) -> f64 {
        values(x).iter().map(|v| v * v).sum()
    }
}

/// `1 / √(mean x² + eps)`.
fn inverse_rms(x: &[f64], eps: f32) -> f64 {
    1.0 / (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt()
}
