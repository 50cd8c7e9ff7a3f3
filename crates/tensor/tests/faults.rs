//! The op suite must fail for a backend that is wrong: each fault here is one that a fast kernel could have.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llamero_tensor::testing::Oracle;
use llamero_tensor::testing::suite::{self, Group};
use llamero_tensor::{
    AdamW, AdamWState, Attention, Backend, CrossEntropy, DType, GatheredSegment, Heads, KvLayout, LowHalves,
    Master, Memory, PagedSegment, RopeDirection, RopeTable, RowLoss, Segment, Segments, Shape, Tensor,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    UploadTruncates,
    CopyIgnoresColumns,
    MemoryNeverFreed,
    AddForgets,
    LinearDropsLastTerm,
    LinearRoundsToBf16,
    LinearDependsOnRows,
    LinearSwallowsNan,
    LinearInputTransposed,
    WeightGradientOverwrites,
    NormForgetsEps,
    NormGradientWithoutMean,
    NormGradientOverwrites,
    RopeTurnsValues,
    RopeDirectionLost,
    RopePositionsFromZero,
    RopeWrongInPlace,
    RopeAlwaysCopies,
    AttentionCrossesDocuments,
    AttentionUnscaled,
    AttentionGradientForgetsOutput,
    AttentionDependsOnPacking,
    PagedMissesLastRow,
    GatheredPositionsFromZero,
    GatheredForgetsEarlierRuns,
    ConcatTruncates,
    SwigluSwapped,
    SwigluGradientOfSigmoid,
    EmbedGradientOnce,
    HeadCountsMasked,
    HeadSwallowsNan,
    HeadGradientOverwrites,
    HeadGradientForgetsTarget,
    HeadGradientForgetsZ,
    HeadAtOnceForgetsScale,
    HeadAtOnceForgetsZ,
    HeadAtOnceCountsMasked,
    HeadAtOnceSwallowsNan,
    AdamWCoupledDecay,
    AdamWWithoutBias,
    AdamWForgetsLowHalves,
    SplitRoundsToEven,
    JoinForgetsLowHalves,
    SquaresInF32,
    ChecksumOfValues,
    ChecksumOfUpperBits,
}

struct Faulty {
    inner: Oracle,
    fault: Fault,
}

impl Faulty {
    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// `x` with its elements changed.
    fn map(&self, x: &Tensor, f: impl Fn(usize, f32) -> f32) -> Tensor {
        let values: Vec<f32> = self.download(x).iter().enumerate().map(|(i, &v)| f(i, v)).collect();
        self.inner.upload(&values, x.shape(), x.dtype())
    }

    fn zeroed_if(&self, fault: Fault, x: &mut Tensor) {
        if self.is(fault) {
            *x = self.inner.zeros(x.shape(), x.dtype());
        }
    }
}

impl Backend for Faulty {
    fn name(&self) -> String {
        format!("oracle with {:?}", self.fault)
    }
    fn memory(&self) -> Memory {
        let mut memory = self.inner.memory();
        if self.is(Fault::MemoryNeverFreed) {
            memory.live_bytes = memory.peak_bytes;
        }
        memory
    }
    fn reset_peak(&self) {
        self.inner.reset_peak();
    }
    fn upload(&self, host: &[f32], shape: Shape, dtype: DType) -> Tensor {
        if self.is(Fault::UploadTruncates) && dtype == DType::Bf16 {
            let cut: Vec<f32> = host.iter().map(|v| f32::from_bits(v.to_bits() & 0xffff_0000)).collect();
            return self.inner.upload(&cut, shape, dtype);
        }
        self.inner.upload(host, shape, dtype)
    }
    fn download(&self, x: &Tensor) -> Vec<f32> {
        self.inner.download(x)
    }
    fn zeros(&self, shape: Shape, dtype: DType) -> Tensor {
        self.inner.zeros(shape, dtype)
    }
    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor {
        self.inner.cast(x, dtype)
    }
    fn split(&self, x: &Tensor) -> (Tensor, LowHalves) {
        let (high, low) = self.inner.split(x);
        (if self.is(Fault::SplitRoundsToEven) { self.inner.cast(x, DType::Bf16) } else { high }, low)
    }
    fn join(&self, high: &Tensor, low: &LowHalves) -> Tensor {
        if self.is(Fault::JoinForgetsLowHalves) {
            return self.inner.cast(high, DType::F32);
        }
        self.inner.join(high, low)
    }
    fn pack(&self, w: &Tensor) -> Tensor {
        self.inner.pack(w)
    }
    fn copy_rows(&self, dst: &mut Tensor, at: usize, src: &Tensor, rows: Range<usize>, cols: Range<usize>) {
        let cols = if self.is(Fault::CopyIgnoresColumns) { 0..cols.len() } else { cols };
        self.inner.copy_rows(dst, at, src, rows, cols);
    }
    fn linear_f32(&self, x: &Tensor, w: &Tensor) -> Tensor {
        self.inner.linear_f32(x, w)
    }

    fn linear(&self, x: &Tensor, w: &Tensor) -> Tensor {
        let y = self.inner.linear(x, w);
        match self.fault {
            Fault::LinearDropsLastTerm if x.cols() == 257 => {
                let last = x.cols() - 1;
                self.inner.linear(&self.map(x, |i, v| if i % x.cols() == last { 0.0 } else { v }), w)
            }
            Fault::LinearRoundsToBf16 => self.inner.cast(&self.inner.cast(&y, DType::Bf16), y.dtype()),
            Fault::LinearDependsOnRows if x.rows() > 16 => {
                self.map(&y, |_, v| f32::from_bits(v.to_bits() ^ 0x1_0000))
            }
            Fault::LinearSwallowsNan => self.map(&y, |_, v| if v.is_nan() { 0.0 } else { v }),
            _ => y,
        }
    }
    fn linear_backward_input(&self, dy: &Tensor, w: &Tensor) -> Tensor {
        if self.is(Fault::LinearInputTransposed) && w.rows() == w.cols() {
            return self.inner.linear(dy, w);
        }
        self.inner.linear_backward_input(dy, w)
    }
    fn linear_backward_weight(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) {
        self.zeroed_if(Fault::WeightGradientOverwrites, dw);
        self.inner.linear_backward_weight(dy, x, dw);
    }
    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.inner.add(a, b)
    }
    fn add_assign(&self, acc: &mut Tensor, x: &Tensor) {
        self.zeroed_if(Fault::AddForgets, acc);
        self.inner.add_assign(acc, x);
    }
    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32) -> Tensor {
        self.inner.rms_norm(x, w, if self.is(Fault::NormForgetsEps) { 0.0 } else { eps })
    }
    fn rms_norm_backward(&self, dy: &Tensor, x: &Tensor, w: &Tensor, eps: f32, dw: &mut Tensor) -> Tensor {
        self.zeroed_if(Fault::NormGradientOverwrites, dw);
        let dx = self.inner.rms_norm_backward(dy, x, w, eps, dw);
        if self.is(Fault::NormGradientWithoutMean) {
            let (dy, w) = (self.download(dy), self.download(w));
            return self.map(&dx, |i, _| dy[i] * w[i % w.len()]);
        }
        dx
    }
    fn rope(
        &self,
        qkv: Tensor,
        heads: Heads,
        segments: &Segments,
        table: &RopeTable,
        direction: RopeDirection,
    ) -> Tensor {
        let direction = if self.is(Fault::RopeDirectionLost) { RopeDirection::Forward } else { direction };
        let from_zero =
            || Segments::new(segments.iter().map(|s| Segment { rows: s.rows.clone(), past: 0 }).collect());
        let segments = if self.is(Fault::RopePositionsFromZero) { from_zero() } else { segments.clone() };
        let direction = match direction {
            RopeDirection::Backward if self.is(Fault::RopeWrongInPlace) && !qkv.is_shared() => {
                RopeDirection::Forward
            }
            direction => direction,
        };
        let qkv = if self.is(Fault::RopeAlwaysCopies) { self.map(&qkv, |_, v| v) } else { qkv };
        let turned = self.inner.rope(qkv, heads, &segments, table, direction);
        let values_at = heads.query_width() + heads.kv_width();
        if self.is(Fault::RopeTurnsValues) {
            return self.map(&turned, |i, v| if i % heads.width() >= values_at { -v } else { v });
        }
        turned
    }
    fn attention(&self, qkv: &Tensor, heads: Heads, segments: &Segments) -> Attention {
        let one = Segments::documents([segments.total_rows()]);
        let segments = if self.is(Fault::AttentionCrossesDocuments) { &one } else { segments };
        if self.is(Fault::AttentionUnscaled) {
            let qkv =
                self.map(qkv, |i, v| if i % heads.width() < heads.query_width() { v * 1.01 } else { v });
            return self.inner.attention(&qkv, heads, segments);
        }
        let mut result = self.inner.attention(qkv, heads, segments);
        if self.is(Fault::AttentionDependsOnPacking) && segments.len() > 1 {
            result.lse = self.map(&result.lse, |_, v| f32::from_bits(v.to_bits() ^ 1));
        }
        result
    }
    fn attention_backward(
        &self,
        dy: &Tensor,
        qkv: &Tensor,
        saved: &Attention,
        heads: Heads,
        segments: &Segments,
    ) -> Tensor {
        let out = if self.is(Fault::AttentionGradientForgetsOutput) {
            self.inner.zeros(saved.out.shape(), saved.out.dtype())
        } else {
            saved.out.clone()
        };
        let saved = Attention { out, lse: saved.lse.clone() };
        self.inner.attention_backward(dy, qkv, &saved, heads, segments)
    }
    fn attention_paged(
        &self,
        qkv: &Tensor,
        layer: (KvLayout, usize),
        segments: &[PagedSegment<'_>],
    ) -> Tensor {
        let shift = usize::from(self.is(Fault::PagedMissesLastRow));
        let earlier = segments.iter().map(|s| PagedSegment {
            segment: Segment { rows: s.segment.rows.clone(), past: s.segment.past.saturating_sub(shift) },
            pages: s.pages.clone(),
        });
        self.inner.attention_paged(qkv, layer, &earlier.collect::<Vec<_>>())
    }
    fn attention_gathered(
        &self,
        qkv: &Tensor,
        kv: &Tensor,
        heads: Heads,
        segments: &[GatheredSegment],
    ) -> Attention {
        if self.is(Fault::GatheredPositionsFromZero) {
            let moved = |s: &GatheredSegment| GatheredSegment {
                segment: Segment { past: 0, ..s.segment.clone() },
                first: s.first + s.segment.past,
            };
            return self.inner.attention_gathered(
                qkv,
                kv,
                heads,
                &segments.iter().map(moved).collect::<Vec<_>>(),
            );
        }
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
        let (dq, d_kv) = self.inner.attention_gathered_backward(dy, input, saved, heads, segments);
        if !self.is(Fault::GatheredForgetsEarlierRuns) {
            return (dq, d_kv);
        }
        // Rows of an earlier run of a document push nothing to its keys.
        let later = |row: usize| {
            let own = segments.iter().position(|s| s.segment.rows.contains(&row));
            own.is_some_and(|n| segments.get(n + 1).is_none_or(|next| next.first != segments[n].first))
        };
        let last = self.map(dy, |i, v| if later(i / dy.cols()) { v } else { 0.0 });
        (dq, self.inner.attention_gathered_backward(&last, input, saved, heads, segments).1)
    }
    fn concat_columns(&self, left: &Tensor, right: &Tensor) -> Tensor {
        if self.is(Fault::ConcatTruncates) && left.dtype() == DType::Bf16 {
            let cut = self.map(right, |_, v| f32::from_bits(v.to_bits() & 0xffff_0000));
            return self.inner.concat_columns(left, &cut);
        }
        self.inner.concat_columns(left, right)
    }
    fn swiglu(&self, gate_up: &Tensor) -> Tensor {
        if self.is(Fault::SwigluSwapped) {
            let (values, half) = (self.download(gate_up), gate_up.cols() / 2);
            let other = |i: usize| if i % (2 * half) < half { i + half } else { i - half };
            return self.inner.swiglu(&self.map(gate_up, |i, _| values[other(i)]));
        }
        self.inner.swiglu(gate_up)
    }
    fn swiglu_backward(&self, dy: &Tensor, gate_up: Tensor) -> Tensor {
        let d = self.inner.swiglu_backward(dy, gate_up);
        let gate = self.is(Fault::SwigluGradientOfSigmoid);
        self.map(&d, |i, v| if gate && i % d.cols() < dy.cols() { v * 1.1 } else { v })
    }
    fn embed(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        self.inner.embed(table, ids)
    }
    fn embed_backward(&self, dy: &Tensor, ids: &[u32], dtable: &mut Tensor) {
        if self.is(Fault::EmbedGradientOnce) && !ids.is_empty() {
            let first =
                self.map(dy, |i, v| if ids[..i / dy.cols()].contains(&ids[i / dy.cols()]) { 0.0 } else { v });
            return self.inner.embed_backward(&first, ids, dtable);
        }
        self.inner.embed_backward(dy, ids, dtable);
    }
    fn linear_cross_entropy(&self, h: &Tensor, w: &Tensor, targets: &[u32]) -> CrossEntropy {
        let mut loss = self.inner.linear_cross_entropy(h, w, targets);
        if self.is(Fault::HeadCountsMasked) {
            loss.nll = self.map(&loss.nll, |i, v| if targets[i] == u32::MAX { 1.0 } else { v });
        }
        if self.is(Fault::HeadSwallowsNan) {
            loss.nll = self.map(&loss.nll, |_, v| if v.is_nan() { 0.0 } else { v });
        }
        loss
    }
    fn linear_cross_entropy_backward(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        lse: &Tensor,
        dw: &mut Tensor,
    ) -> Tensor {
        self.zeroed_if(Fault::HeadGradientOverwrites, dw);
        let shifted =
            self.map(lse, |_, v| if self.is(Fault::HeadGradientForgetsTarget) { v + 0.1 } else { v });
        let z = if self.is(Fault::HeadGradientForgetsZ) { 0.0 } else { loss.z };
        self.inner.linear_cross_entropy_backward(RowLoss { z, ..loss }, input, targets, &shifted, dw)
    }
    fn linear_cross_entropy_with_gradient(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        dw: &mut Tensor,
    ) -> (CrossEntropy, Tensor) {
        let forgets = self.is(Fault::HeadAtOnceForgetsScale);
        let scaled = self.map(loss.d_row, |_, v| if forgets { 1.0 } else { v });
        let z = if self.is(Fault::HeadAtOnceForgetsZ) { 0.0 } else { loss.z };
        let loss = RowLoss { d_row: &scaled, z };
        let (mut loss, mut dh) = self.inner.linear_cross_entropy_with_gradient(loss, input, targets, dw);
        if self.is(Fault::HeadAtOnceCountsMasked) {
            loss.nll = self.map(&loss.nll, |i, v| if targets[i] == u32::MAX { 1.0 } else { v });
        }
        if self.is(Fault::HeadAtOnceSwallowsNan) {
            dh = self.map(&dh, |_, v| if v.is_nan() { 0.0 } else { v });
        }
        (loss, dh)
    }
    fn adamw(&self, mut state: AdamWState<'_>, grad: &Tensor, step: &AdamW) {
        let mut step = *step;
        if self.is(Fault::AdamWWithoutBias) {
            (step.bias1, step.bias2) = (1.0, 1.0);
        }
        if self.is(Fault::AdamWCoupledDecay) {
            let Master::F32(weight) = &state.weight else { panic!("not asked for") };
            let weight = self.download(weight);
            let grad = self.map(grad, |i, g| g + step.weight_decay * weight[i] / step.grad_scale);
            step.weight_decay = 0.0;
            return self.inner.adamw(state, &grad, &step);
        }
        if let (true, Master::Split { high, low }) =
            (self.is(Fault::AdamWForgetsLowHalves), &mut state.weight)
        {
            **low = self.inner.split(&self.inner.cast(high, DType::F32)).1;
        }
        self.inner.adamw(state, grad, &step);
    }
    fn sum_of_squares(&self, x: &Tensor) -> f64 {
        if self.is(Fault::SquaresInF32) {
            return f64::from(self.download(x).iter().map(|v| v * v).sum::<f32>());
        }
        self.inner.sum_of_squares(x)
    }
    fn checksum(&self, x: &Tensor) -> u64 {
        if self.is(Fault::ChecksumOfValues) {
            return self.download(x).iter().fold(0, |sum, v| sum ^ u64::from(v.to_bits()));
        }
        self.inner.checksum(x)
    }
    fn checksum_low(&self, low: &LowHalves) -> u64 {
        if self.is(Fault::ChecksumOfUpperBits) {
            let whole = self.inner.join(&self.inner.zeros(low.shape(), DType::Bf16), low);
            return self.inner.checksum(&self.inner.cast(&whole, DType::Bf16));
        }
        self.inner.checksum_low(low)
    }
}

fn caught(group: Group, fault: Fault) {
    let backend = Faulty { inner: Oracle::rounding(), fault };
    let result = catch_unwind(AssertUnwindSafe(|| group(&backend)));
    let payload = result.err().unwrap_or_else(|| panic!("the suite accepts {fault:?}"));
    let message = payload.downcast_ref::<String>().expect("a message");
    assert!(
        !message.contains("oracle:") && !message.contains("do not fit"),
        "{fault:?} failed by accident: {message}"
    );
}

#[test]
fn faults_in_storage_and_products_are_caught() {
    caught(suite::storage::upload_download, Fault::UploadTruncates);
    caught(suite::storage::copy_rows, Fault::CopyIgnoresColumns);
    caught(suite::storage::memory, Fault::MemoryNeverFreed);
    caught(suite::elementwise::add, Fault::AddForgets);
    caught(suite::linear::forward, Fault::LinearDropsLastTerm);
    caught(suite::linear::forward, Fault::LinearRoundsToBf16);
    caught(suite::linear::row_invariance, Fault::LinearDependsOnRows);
    caught(suite::linear::non_finite, Fault::LinearSwallowsNan);
    caught(suite::linear::backward_input, Fault::LinearInputTransposed);
    caught(suite::linear::backward_weight, Fault::WeightGradientOverwrites);
}

#[test]
fn faults_in_norm_rope_and_attention_are_caught() {
    caught(suite::norm::forward, Fault::NormForgetsEps);
    caught(suite::norm::backward, Fault::NormGradientWithoutMean);
    caught(suite::norm::backward, Fault::NormGradientOverwrites);
    caught(suite::rope::forward_and_backward, Fault::RopeTurnsValues);
    caught(suite::rope::forward_and_backward, Fault::RopePositionsFromZero);
    caught(suite::rope::forward_and_backward, Fault::RopeWrongInPlace);
    caught(suite::rope::forward_and_backward, Fault::RopeAlwaysCopies);
    caught(suite::rope::identity, Fault::RopeDirectionLost);
    caught(suite::attention::forward, Fault::AttentionCrossesDocuments);
    caught(suite::attention::forward, Fault::AttentionUnscaled);
    caught(suite::attention::packed_documents, Fault::AttentionDependsOnPacking);
    caught(suite::attention::backward, Fault::AttentionGradientForgetsOutput);
    caught(suite::paged::attention, Fault::PagedMissesLastRow);
    caught(suite::gathered::attention_of_parts, Fault::GatheredPositionsFromZero);
    caught(suite::gathered::attention_of_parts, Fault::GatheredForgetsEarlierRuns);
    caught(suite::gathered::concat_columns, Fault::ConcatTruncates);
}

#[test]
fn faults_in_gate_embedding_head_and_optimizer_are_caught() {
    caught(suite::elementwise::swiglu, Fault::SwigluSwapped);
    caught(suite::elementwise::swiglu_backward, Fault::SwigluGradientOfSigmoid);
    caught(suite::elementwise::embed, Fault::EmbedGradientOnce);
    caught(suite::head::no_target, Fault::HeadCountsMasked);
    caught(suite::head::non_finite, Fault::HeadSwallowsNan);
    caught(suite::head::backward, Fault::HeadGradientOverwrites);
    caught(suite::head::backward, Fault::HeadGradientForgetsTarget);
    caught(suite::head::with_gradient, Fault::HeadAtOnceForgetsScale);
    caught(suite::head::z_loss, Fault::HeadGradientForgetsZ);
    caught(suite::head::z_loss, Fault::HeadAtOnceForgetsZ);
    caught(suite::head::no_target, Fault::HeadAtOnceCountsMasked);
    caught(suite::head::non_finite, Fault::HeadAtOnceSwallowsNan);
    caught(suite::optimizer::adamw, Fault::AdamWCoupledDecay);
    caught(suite::optimizer::adamw, Fault::AdamWWithoutBias);
    caught(suite::optimizer::split, Fault::SplitRoundsToEven);
    caught(suite::optimizer::split, Fault::JoinForgetsLowHalves);
    caught(suite::optimizer::adamw_split, Fault::AdamWForgetsLowHalves);
    caught(suite::optimizer::sum_of_squares, Fault::SquaresInF32);
    caught(suite::storage::checksum, Fault::ChecksumOfValues);
    caught(suite::storage::checksum, Fault::ChecksumOfUpperBits);
}
