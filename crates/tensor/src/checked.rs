//! A device whose matrix products are checked: algorithm-based fault tolerance (Huang and Abraham 1984).
//!
//! Of a product `C = A B` one knows `C s = A (B s)` for every vector `s`, and the right side costs two products of a matrix and a
//! vector. With random signs for `s` (Freivalds 1979) one wrong element of a row always shows, if it is wrong by more than
//! rounding: over random signs the rounding errors `eⱼ` of a row add up to more than `8 √Σ eⱼ²` with a probability below
//! 3·10⁻¹⁴ (Hoeffding), whatever the data. The bounds of `eⱼ` are those of the op suite, with |aᵢ·bⱼ| ≤ ‖aᵢ‖ ‖bⱼ‖.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::{
    AdamW, AdamWState, Attention, Backend, CrossEntropy, DType, GatheredSegment, Heads, KvLayout, LowHalves,
    Memory, PagedSegment, RopeDirection, RopeTable, RowLoss, Segments, Shape, StoredRows, Tensor,
};

/// A device that checks some of its matrix products (`linear` and its gradients; not attention and the head).
pub struct CheckedProducts<'b> {
    inner: &'b dyn Backend,
    /// Every so many products one is checked.
    every: u64,
    count: AtomicU64,
    found: Mutex<Vec<String>>,
    /// Not 0: which bit of the next product to turn over.
    damage: AtomicU64,
}

/// Standard deviations of a sum of rounding errors with random signs that are taken for rounding.
const DEVIATIONS: f64 = 8.0;

/// Half the distance from 1 to the next number.
fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::Bf16 => 1.0 / 256.0,
    }
}

/// A matrix on the host, as rows or turned.
struct Matrix {
    values: Vec<f32>,
    cols: usize,
    turned: bool,
}

impl Matrix {
    fn rows(&self) -> usize {
        let rows = self.values.len() / self.cols.max(1);
        if self.turned { self.cols } else { rows }
    }

    /// Product with a vector.
    fn times(&self, s: &[f64]) -> Vec<f64> {
        let rows = self.values.chunks_exact(self.cols.max(1));
        if !self.turned {
            let dot = |row: &[f32]| row.iter().zip(s).map(|(x, s)| f64::from(*x) * s).sum();
            return rows.map(dot).collect();
        }
        let mut sums = vec![0.0; self.cols];
        for (row, s) in rows.zip(s) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * s);
        }
        sums
    }

    /// Sum of the squares of each row.
    fn squares(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.rows()];
        for (i, row) in self.values.chunks_exact(self.cols.max(1)).enumerate() {
            for (j, x) in row.iter().enumerate() {
                sums[if self.turned { j } else { i }] += f64::from(*x).powi(2);
            }
        }
        sums
    }
}

impl<'b> CheckedProducts<'b> {
    /// Checks every `every`-th product of `inner`; none with 0.
    pub fn new(inner: &'b dyn Backend, every: u64) -> Self {
        Self { inner, every, count: AtomicU64::new(0), found: Mutex::default(), damage: AtomicU64::new(0) }
    }

    /// A fault to be found: the next product has a bit turned over, chosen by `random`.
    pub fn damage_next(&self, random: u64) {
        self.damage.store(random.max(1), Ordering::Relaxed);
    }

    fn host(&self, x: &Tensor, turned: bool) -> Matrix {
        Matrix { values: self.inner.download(x), cols: x.cols(), turned }
    }

    /// The number of this product, if it is one to be checked.
    fn turn(&self) -> Option<u64> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        (self.every > 0 && count.is_multiple_of(self.every)).then_some(count)
    }

    /// The product, with a bit turned over when that was asked for.
    fn damaged(&self, c: Tensor) -> Tensor {
        if self.damage.load(Ordering::Relaxed) == 0 || c.shape().elements() == 0 {
            return c;
        }
        let random = self.damage.swap(0, Ordering::Relaxed);
        let mut bytes = self.inner.download_raw(&c, 0..c.rows()).to_vec();
        let bit = random % (8 * bytes.len() as u64);
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        self.inner.upload_raw(&[&bytes], c.shape(), c.dtype())
    }

    /// Checks `c = before + a b`.
    fn check(&self, op: &str, seed: u64, (a, b): (&Matrix, &Matrix), before: Option<&Matrix>, c: &Tensor) {
        let (dtype, depth) = (c.dtype(), b.rows());
        let c = self.host(c, false);
        let signs: Vec<f64> = (0..c.cols as u64).map(|j| sign(seed, j)).collect();
        let expected = a.times(&b.times(&signs));
        let found = c.times(&signs);
        let norm_b = b.squares().iter().sum::<f64>().sqrt();
        let chain = (depth + 2) as f64 * unit_roundoff(DType::F32);
        let rounding = if before.is_some() { 0.0 } else { unit_roundoff(dtype) };
        let (sums_before, squares_before) = match before {
            Some(before) => (before.times(&signs), before.squares()),
            None => (vec![0.0; found.len()], vec![0.0; found.len()]),
        };
        for (i, (square_a, square_c)) in a.squares().iter().zip(c.squares()).enumerate() {
            let error = chain * (square_a.sqrt() * norm_b + squares_before[i].sqrt());
            // A NaN or an infinity that comes from the inputs is no fault of the product.
            if !error.is_finite() {
                continue;
            }
            let limit = DEVIATIONS * (error + rounding * square_c.sqrt()) + f64::from(f32::MIN_POSITIVE);
            let off = (found[i] - sums_before[i] - expected[i]).abs();
            let right = off <= limit;
            if !right {
                let text = format!("row {i} of {op} is off by {off:.3e} where rounding allows {limit:.3e}");
                self.found.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                return;
            }
        }
    }
}

/// −1 or 1.
fn sign(seed: u64, j: u64) -> f64 {
    let x = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ j).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    if x >> 63 == 0 { 1.0 } else { -1.0 }
}

impl Backend for CheckedProducts<'_> {
    fn name(&self) -> String {
        format!("{}, products checked", self.inner.name())
    }

    fn take_faults(&self) -> Vec<String> {
        let mut found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        found.extend(self.inner.take_faults());
        found
    }

    fn linear(&self, x: &Tensor, w: &Tensor) -> Tensor {
        let y = self.damaged(self.inner.linear(x, w));
        if let Some(seed) = self.turn() {
            self.check("linear", seed, (&self.host(x, false), &self.host(w, true)), None, &y);
        }
        y
    }

    fn linear_backward_input(&self, dy: &Tensor, w: &Tensor) -> Tensor {
        let dx = self.damaged(self.inner.linear_backward_input(dy, w));
        if let Some(seed) = self.turn() {
            let op = "linear_backward_input";
            self.check(op, seed, (&self.host(dy, false), &self.host(w, false)), None, &dx);
        }
        dx
    }

    fn linear_backward_weight(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) {
        let turn = self.turn();
        let before = turn.map(|_| self.host(dw, false));
        self.inner.linear_backward_weight(dy, x, dw);
        if self.damage.load(Ordering::Relaxed) != 0 {
            *dw = self.damaged(dw.clone());
        }
        if let Some(seed) = turn {
            let op = "linear_backward_weight";
            self.check(op, seed, (&self.host(dy, true), &self.host(x, false)), before.as_ref(), dw);
        }
    }

    fn memory(&self) -> Memory {
        self.inner.memory()
    }

    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        self.inner.scope(work);
    }

    fn reset_peak(&self) {
        self.inner.reset_peak();
    }

    fn upload(&self, host: &[f32], shape: Shape, dtype: DType) -> Tensor {
        self.inner.upload(host, shape, dtype)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        self.inner.download(x)
    }

    fn download_raw(&self, x: &Tensor, rows: Range<usize>) -> Bytes {
        self.inner.download_raw(x, rows)
    }

    fn upload_raw(&self, raw: &[&[u8]], shape: Shape, dtype: DType) -> Tensor {
        self.inner.upload_raw(raw, shape, dtype)
    }

    fn sum_raw(&self, raw: &[&[u8]], shape: Shape, dtype: DType) -> Tensor {
        self.inner.sum_raw(raw, shape, dtype)
    }

    fn zeros(&self, shape: Shape, dtype: DType) -> Tensor {
        self.inner.zeros(shape, dtype)
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor {
        self.inner.cast(x, dtype)
    }

    fn split(&self, x: &Tensor) -> (Tensor, LowHalves) {
        self.inner.split(x)
    }

    fn join(&self, high: &Tensor, low: &LowHalves) -> Tensor {
        self.inner.join(high, low)
    }

    /// As it is: the checks read it.
    fn pack(&self, w: &Tensor) -> Tensor {
        w.clone()
    }

    fn copy_rows(&self, dst: &mut Tensor, at: usize, src: &Tensor, rows: Range<usize>, cols: Range<usize>) {
        self.inner.copy_rows(dst, at, src, rows, cols);
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.inner.add(a, b)
    }

    fn add_assign(&self, acc: &mut Tensor, x: &Tensor) {
        self.inner.add_assign(acc, x);
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32) -> Tensor {
        self.inner.rms_norm(x, w, eps)
    }

    fn rms_norm_backward(&self, dy: &Tensor, x: &Tensor, w: &Tensor, eps: f32, dw: &mut Tensor) -> Tensor {
        self.inner.rms_norm_backward(dy, x, w, eps, dw)
    }

    fn rope(
        &self,
        qkv: Tensor,
        heads: Heads,
        segments: &Segments,
        table: &RopeTable,
        direction: RopeDirection,
    ) -> Tensor {
        self.inner.rope(qkv, heads, segments, table, direction)
    }

    fn attention(&self, qkv: &Tensor, heads: Heads, segments: &Segments) -> Attention {
        self.inner.attention(qkv, heads, segments)
    }

    fn attention_backward(
        &self,
        dy: &Tensor,
        qkv: &Tensor,
        saved: &Attention,
        heads: Heads,
        segments: &Segments,
    ) -> Tensor {
        self.inner.attention_backward(dy, qkv, saved, heads, segments)
    }

    fn pack_stored(&self, parts: &[StoredRows<'_>], shape: Shape, dtype: DType) -> Tensor {
        // As it is, for packed weights cannot be looked at.
        let values: Vec<f32> = parts.iter().flat_map(|part| part.decode(shape.cols)).collect();
        self.inner.upload(&values, shape, dtype)
    }

    fn linear_f32(&self, x: &Tensor, w: &Tensor) -> Tensor {
        self.inner.linear_f32(x, w)
    }

    fn prefetch(&self, w: &Tensor) {
        self.inner.prefetch(w);
    }

    fn kv_page(&self, layout: KvLayout, dtype: DType) -> Tensor {
        self.inner.kv_page(layout, dtype)
    }

    fn kv_append(
        &self,
        page: &mut Tensor,
        layer: (KvLayout, usize),
        at: usize,
        qkv: &Tensor,
        rows: Range<usize>,
    ) {
        self.inner.kv_append(page, layer, at, qkv, rows);
    }

    fn kv_copy(&self, page: &Tensor) -> Tensor {
        self.inner.kv_copy(page)
    }

    fn kv_save(&self, page: &Tensor) -> Bytes {
        self.inner.kv_save(page)
    }

    fn kv_restore(&self, saved: &Bytes, layout: KvLayout, dtype: DType) -> Tensor {
        self.inner.kv_restore(saved, layout, dtype)
    }

    fn kv_page_bytes(&self, layout: KvLayout, dtype: DType) -> usize {
        self.inner.kv_page_bytes(layout, dtype)
    }

    fn attention_paged(
        &self,
        qkv: &Tensor,
        layer: (KvLayout, usize),
        segments: &[PagedSegment<'_>],
    ) -> Tensor {
        self.inner.attention_paged(qkv, layer, segments)
    }

    fn attention_gathered(
        &self,
        qkv: &Tensor,
        kv: &Tensor,
        heads: Heads,
        segments: &[GatheredSegment],
    ) -> Attention {
        self.inner.attention_gathered(qkv, kv, heads, segments)
    }

    fn attention_gathered_backward(
        &self,
        dy: &Tensor,
        input: (&Tensor, &Tensor),
        saved: &Attention,
        heads: Heads,
        segments: &[GatheredSegment],
    ) -> (Tensor, Tensor) {
        self.inner.attention_gathered_backward(dy, input, saved, heads, segments)
    }

    fn concat_columns(&self, left: &Tensor, right: &Tensor) -> Tensor {
        self.inner.concat_columns(left, right)
    }

    fn swiglu(&self, gate_up: &Tensor) -> Tensor {
        self.inner.swiglu(gate_up)
    }

    fn swiglu_backward(&self, dy: &Tensor, gate_up: Tensor) -> Tensor {
        self.inner.swiglu_backward(dy, gate_up)
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        self.inner.embed(table, ids)
    }

    fn embed_backward(&self, dy: &Tensor, ids: &[u32], dtable: &mut Tensor) {
        self.inner.embed_backward(dy, ids, dtable);
    }

    fn linear_cross_entropy(&self, h: &Tensor, w: &Tensor, targets: &[u32]) -> CrossEntropy {
        self.inner.linear_cross_entropy(h, w, targets)
    }

    fn linear_cross_entropy_backward(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        lse: &Tensor,
        dw: &mut Tensor,
    ) -> Tensor {
        self.inner.linear_cross_entropy_backward(loss, input, targets, lse, dw)
    }

    fn linear_cross_entropy_with_gradient(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        dw: &mut Tensor,
    ) -> (CrossEntropy, Tensor) {
        self.inner.linear_cross_entropy_with_gradient(loss, input, targets, dw)
    }

    fn linear_cross_entropy_with_gradient_of_slice(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        dw: &mut Tensor,
        combine: &mut dyn FnMut(&mut [[f32; 2]]),
    ) -> (CrossEntropy, Tensor) {
        self.inner.linear_cross_entropy_with_gradient_of_slice(loss, input, targets, dw, combine)
    }

    fn adamw(&self, state: AdamWState<'_>, grad: &Tensor, step: &AdamW) {
        self.inner.adamw(state, grad, step);
    }

    fn sum_of_squares(&self, x: &Tensor) -> f64 {
        self.inner.sum_of_squares(x)
    }

    fn checksum(&self, x: &Tensor) -> u64 {
        self.inner.checksum(x)
    }

    fn checksum_low(&self, low: &LowHalves) -> u64 {
        self.inner.checksum_low(low)
    }
}
