//! The trait a device implements: about 25 coarse kernels, each forward beside its backward.
//!
//! Contracts that hold for every implementation and that the op suite checks:
//! - a shape that does not fit panics, naming the op and the shapes (a bug in the caller, not bad input);
//! - activations have the dtype of their inputs; sums are accumulated in `f32`; gradients of weights are `f32`
//!   and are *added* to the buffer they are given;
//! - a row of a result depends on that row's inputs only, never on how many rows stand beside it, nor on the
//!   number of threads: scoring, training and decoding give the same bits.

use std::ops::Range;

use bytes::Bytes;

use crate::{
    DType, GatheredSegment, Heads, KV_PAGE, KvFormat, KvLayout, LowHalves, PagedSegment, RopeDirection,
    RopeTable, Segments, Shape, StoredRows, Tensor, checksum, kv,
};

/// The target of a row that takes no part in the loss.
pub const NO_TARGET: u32 = u32::MAX;

/// The target of a row that takes part in the loss, but whose target is in another slice of the vocabulary than the
/// one given: its logit counts as 0 here, and no logit's gradient is that of the target.
pub const TARGET_ELSEWHERE: u32 = u32::MAX - 1;

/// Result of [`Backend::attention`].
pub struct Attention {
    /// `[T, H·D]`.
    pub out: Tensor,
    /// Log-sum-exp of the scaled scores of every row and head, `[T, H]` f32; all that the backward pass needs.
    pub lse: Tensor,
}

/// Result of [`Backend::linear_cross_entropy`].
pub struct CrossEntropy {
    /// Negative log-likelihood of each row's target in nats, `[T, 1]` f32; 0 for rows without a target.
    pub nll: Tensor,
    /// Log-sum-exp of each row's logits, `[T, 1]` f32; 0 for rows without a target.
    pub lse: Tensor,
}

/// The loss of a row and how much it counts: `nll + z · lse²`.
#[derive(Clone, Copy)]
pub struct RowLoss<'a> {
    /// Derivative of the whole loss by that of each row, `[T, 1]` f32.
    pub d_row: &'a Tensor,
    /// Coefficient of the squared log-sum-exp (z-loss; Chowdhery et al. 2022, §5); 0 leaves the cross-entropy alone.
    pub z: f32,
}

impl<'a> RowLoss<'a> {
    /// The cross-entropy alone.
    pub fn cross_entropy(d_row: &'a Tensor) -> Self {
        Self { d_row, z: 0.0 }
    }
}

/// Hyper-parameters of one AdamW step (Loshchilov and Hutter 2019, decoupled weight decay).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay; the weight shrinks by `lr · weight_decay`.
    pub weight_decay: f32,
    /// `1 − beta1^t`.
    pub bias1: f32,
    /// `1 − beta2^t`.
    pub bias2: f32,
    /// The gradient is multiplied by this first (clipping).
    pub grad_scale: f32,
}

/// The f32 master weights of one parameter.
pub enum Master<'a> {
    /// As they are, when the model computes in f32.
    F32(&'a mut Tensor),
    /// In the two halves of [`Backend::split`], when it computes in bf16: no second copy.
    Split {
        /// The bf16 weights that the model computes with.
        high: &'a mut Tensor,
        /// The rest.
        low: &'a mut LowHalves,
    },
}

impl Master<'_> {
    /// Rows and columns.
    pub fn shape(&self) -> Shape {
        match self {
            Master::F32(weight) => weight.shape(),
            Master::Split { high, .. } => high.shape(),
        }
    }
}

/// What AdamW updates of one parameter, all of one shape.
pub struct AdamWState<'a> {
    /// Master weights.
    pub weight: Master<'a>,
    /// First moment, f32.
    pub m: &'a mut Tensor,
    /// Second moment, f32.
    pub v: &'a mut Tensor,
}

/// Bytes of tensor storage that a backend holds for its callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in live tensors now.
    pub live_bytes: usize,
    /// Largest `live_bytes` since the start or the last [`Backend::reset_peak`].
    pub peak_bytes: usize,
}

/// A device: owns storage and runs the kernels.
pub trait Backend: Send + Sync {
    /// Name for logs and provenance, e.g. `cpu/avx512 x2`.
    fn name(&self) -> String;

    /// Bytes in use.
    fn memory(&self) -> Memory;

    /// Runs `work`, which calls this backend many times, where its calls cost least: a backend with threads of its own
    /// runs it on one of them and so hands over once and not at every call. Results are the same without it. The
    /// work must not wait for other users of the same backend: the thread may be needed for their calls.
    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    /// What a device that checks itself found wrong since it was last asked, in words.
    fn take_faults(&self) -> Vec<String> {
        Vec::new()
    }

    /// Starts a new measurement of the peak.
    fn reset_peak(&self);

    /// Copies host values into a new tensor, rounding to nearest even for bf16. `host.len()` is `shape.elements()`.
    fn upload(&self, host: &[f32], shape: Shape, dtype: DType) -> Tensor;

    /// Copies a tensor to the host.
    fn download(&self, x: &Tensor) -> Vec<f32>;

    /// The elements of some rows as they are stored: what goes to other ranks. Does not copy where it can be avoided; then
    /// the storage is shared until the bytes are dropped.
    fn download_raw(&self, x: &Tensor, rows: Range<usize>) -> Bytes {
        let cols = x.cols();
        let host = self.download(x);
        let host = host[rows.start * cols..rows.end * cols].iter();
        match x.dtype() {
            DType::F32 => host.flat_map(|x| x.to_ne_bytes()).collect(),
            DType::Bf16 => host.flat_map(|x| ((x.to_bits() >> 16) as u16).to_ne_bytes()).collect(),
        }
    }

    /// A tensor from what [`Backend::download_raw`] gave of one or of several tensors, one after another.
    fn upload_raw(&self, raw: &[&[u8]], shape: Shape, dtype: DType) -> Tensor {
        let bytes: Vec<u8> = raw.iter().flat_map(|part| part.iter().copied()).collect();
        let host: Vec<f32> = match dtype {
            DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(),
            DType::Bf16 => {
                let bits = bytes.as_chunks().0.iter().map(|b| u32::from(u16::from_ne_bytes(*b)) << 16);
                bits.map(f32::from_bits).collect()
            }
        };
        self.upload(&host, shape, dtype)
    }

    /// The sum of what [`Backend::download_raw`] gave of several tensors of one shape, in f32 and in this order.
    fn sum_raw(&self, raw: &[&[u8]], shape: Shape, dtype: DType) -> Tensor {
        let mut sum = self.zeros(shape, DType::F32);
        for part in raw {
            self.add_assign(&mut sum, &self.upload_raw(&[part], shape, dtype));
        }
        sum
    }

    /// A tensor of zeros.
    fn zeros(&self, shape: Shape, dtype: DType) -> Tensor;

    /// `x` in another dtype.
    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor;

    /// Divides f32 values into bf16 ones and the rest, from which [`Backend::join`] makes the same bits again.
    ///
    /// bf16 is rounded to nearest with ties away from zero, `high = (bits + 0x8000) >> 16`, so that the rest
    /// `low = bits − (high << 16)` always fits a signed 16-bit number; of a tie rounded to even it could be +0x8000 or
    /// −0x8000. Values beyond the largest bf16 round to infinity and still join to themselves. A NaN stays a NaN, but
    /// loses the bits that tell it from others.
    fn split(&self, x: &Tensor) -> (Tensor, LowHalves);

    /// The f32 values that [`Backend::split`] divided.
    fn join(&self, high: &Tensor, low: &LowHalves) -> Tensor;

    /// A copy of a weight `[N, K]` arranged for [`Backend::linear`], for weights that are used many times unchanged.
    /// The result behaves like `w` in `linear` (same bits), `linear_cross_entropy` and `embed`, and nowhere else. As there, rows
    /// must be of its dtype.
    fn pack(&self, w: &Tensor) -> Tensor;

    /// A weight `[N, K]` as a file stores it, arranged for [`Backend::linear`] with rows of `dtype`, as by [`Backend::pack`].
    /// `parts` are its runs of rows, in order.
    ///
    /// In f32 every weight has the value that its encoding says. In bf16 plain encodings are rounded to bf16; a backend may keep
    /// quantised ones in their blocks, and then rounds rows of activations to 8 bits for the product, in runs of 32 elements of
    /// one row: a row of the result still depends on its own inputs only.
    fn pack_stored(&self, parts: &[StoredRows<'_>], shape: Shape, dtype: DType) -> Tensor {
        let values: Vec<f32> = parts.iter().flat_map(|part| part.decode(shape.cols)).collect();
        self.pack(&self.upload(&values, shape, dtype))
    }

    /// Says that a packed weight will be multiplied soon, after those announced before: a backend may bring it nearer while it
    /// has nothing else to do. Changes no result.
    fn prefetch(&self, _w: &Tensor) {}

    /// Copies `src[rows, cols]` over the rows of `dst` that start at `at`. `dst` must not be shared and has as many
    /// columns as `cols`.
    fn copy_rows(&self, dst: &mut Tensor, at: usize, src: &Tensor, rows: Range<usize>, cols: Range<usize>);

    /// `y = x wᵀ`: `x [T, K]`, `w [N, K]` of one dtype → `[T, N]`.
    fn linear(&self, x: &Tensor, w: &Tensor) -> Tensor;

    /// [`Backend::linear`] in f32: sums of a bf16 product are not rounded once more. For logits, of which the largest counts.
    fn linear_f32(&self, x: &Tensor, w: &Tensor) -> Tensor;

    /// Gradient of [`Backend::linear`] for its input: `dx = dy w`: `dy [T, N]`, `w [N, K]` → `[T, K]`.
    fn linear_backward_input(&self, dy: &Tensor, w: &Tensor) -> Tensor;

    /// Gradient of [`Backend::linear`] for its weight: `dw += dyᵀ x`: `dy [T, N]`, `x [T, K]`, `dw [N, K]` f32.
    fn linear_backward_weight(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor);

    /// `a + b`, equal shapes.
    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor;

    /// `acc += x`, equal shapes; `acc` may be f32 while `x` is bf16.
    fn add_assign(&self, acc: &mut Tensor, x: &Tensor);

    /// Root-mean-square norm over the columns, computed in f32, cast back, then multiplied by the weight:
    /// `x [T, C]`, `w [1, C]` → `[T, C]` (Zhang and Sennrich 2019).
    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32) -> Tensor;

    /// Gradient of [`Backend::rms_norm`]: returns `dx [T, C]` and adds into `dw [1, C]` f32.
    fn rms_norm_backward(&self, dy: &Tensor, x: &Tensor, w: &Tensor, eps: f32, dw: &mut Tensor) -> Tensor;

    /// Rotary embedding of the queries and keys of `qkv [T, (H+2G)·D]`; values pass unchanged. Rotation in f32. The
    /// result takes the storage of `qkv` where that is not shared; otherwise `qkv` is copied.
    /// Linear and orthogonal, so the backward pass is the same op with [`RopeDirection::Backward`].
    fn rope(
        &self,
        qkv: Tensor,
        heads: Heads,
        segments: &Segments,
        table: &RopeTable,
        direction: RopeDirection,
    ) -> Tensor;

    /// Causal attention inside each segment, scores scaled by `D^-½`, softmax in f32:
    /// `qkv [T, (H+2G)·D]` → `[T, H·D]`. Blocked; nothing of size `T²` is made. Segments have no past.
    fn attention(&self, qkv: &Tensor, heads: Heads, segments: &Segments) -> Attention;

    /// Gradient of [`Backend::attention`] for `qkv`, from the saved output and log-sum-exp.
    fn attention_backward(
        &self,
        dy: &Tensor,
        qkv: &Tensor,
        saved: &Attention,
        heads: Heads,
        segments: &Segments,
    ) -> Tensor;

    /// An empty page of keys and values of all layers, [`KV_PAGE`] positions of a request with activations of `dtype`. Only the
    /// `kv_` and paged ops read it.
    fn kv_page(&self, layout: KvLayout, dtype: DType) -> Tensor {
        self.zeros(Shape::new(layout.layers * 2 * KV_PAGE, layout.heads.kv_width()), dtype)
    }

    /// Puts the keys and values of `rows` of `qkv [T, (H+2G)·D]` into a page at positions `at ..` of it. The page must not be
    /// shared.
    fn kv_append(
        &self,
        page: &mut Tensor,
        (layout, layer): (KvLayout, usize),
        at: usize,
        qkv: &Tensor,
        rows: Range<usize>,
    ) {
        let (heads, count) = (layout.heads, rows.len());
        assert!(at + count <= KV_PAGE, "kv_append: {count} positions at {at} of a page of {KV_PAGE}");
        let (first, width) = (heads.query_width(), heads.kv_width());
        let rounded = (layout.format == KvFormat::Int8).then(|| kv::rounded(self, qkv, rows.clone(), heads));
        let (from, rows, first) = match &rounded {
            Some(kv) => (kv, 0..count, 0),
            None => (qkv, rows, first),
        };
        for (i, start) in kv::plain_rows(layer).into_iter().enumerate() {
            let column = first + i * width;
            self.copy_rows(page, start + at, from, rows.clone(), column..column + width);
        }
    }

    /// A copy of a page, for a request that goes on from a part of it.
    fn kv_copy(&self, page: &Tensor) -> Tensor {
        let mut copy = self.zeros(page.shape(), page.dtype());
        self.copy_rows(&mut copy, 0, page, 0..page.rows(), 0..page.cols());
        copy
    }

    /// A page's contents for keeping in the host's memory, from which [`Backend::kv_restore`] makes an equal page.
    fn kv_save(&self, page: &Tensor) -> Bytes {
        Bytes::copy_from_slice(&self.download_raw(page, 0..page.rows()))
    }

    /// The page that [`Backend::kv_save`] saved.
    fn kv_restore(&self, saved: &Bytes, layout: KvLayout, dtype: DType) -> Tensor {
        let shape = Shape::new(layout.layers * 2 * KV_PAGE, layout.heads.kv_width());
        self.upload_raw(&[saved], shape, dtype)
    }

    /// Bytes of a page.
    fn kv_page_bytes(&self, layout: KvLayout, dtype: DType) -> usize {
        layout.layers * 2 * KV_PAGE * layout.heads.kv_width() * dtype.bytes()
    }

    /// [`Backend::attention`] of rows whose keys and values are in pages, in layer `layer` of them; the queries come from `qkv
    /// [T, (H+2G)·D]`, all keys and values from the pages. Same bits as `attention` over the whole document, where pages keep
    /// elements as they are.
    fn attention_paged(
        &self,
        qkv: &Tensor,
        layer: (KvLayout, usize),
        segments: &[PagedSegment<'_>],
    ) -> Tensor;

    /// [`Backend::attention`] of rows whose documents' keys and values are rows of `kv [S, 2·G·D]` (keys, then values); those in
    /// `qkv [T, (H+2G)·D]` are not read. Same bits, of outputs and log-sum-exps, as `attention` over the whole documents.
    fn attention_gathered(
        &self,
        qkv: &Tensor,
        kv: &Tensor,
        heads: Heads,
        segments: &[GatheredSegment],
    ) -> Attention;

    /// Gradient of [`Backend::attention_gathered`] for its `input` (`qkv`, `kv`): that of the queries, `[T, H·D]`, has the bits
    /// of [`Backend::attention_backward`] over the whole documents; that of `kv`, `[S, 2·G·D]`, is f32, a part of a sum, and zero
    /// where no query sees a key.
    fn attention_gathered_backward(
        &self,
        dy: &Tensor,
        input: (&Tensor, &Tensor),
        saved: &Attention,
        heads: Heads,
        segments: &[GatheredSegment],
    ) -> (Tensor, Tensor);

    /// `left [T, A]` and `right [T, B]` side by side, `[T, A + B]`, in the dtype of `left`.
    fn concat_columns(&self, left: &Tensor, right: &Tensor) -> Tensor;

    /// `silu(gate) · up`: `gate_up [T, 2F]` with the gate in the left half → `[T, F]` (Shazeer 2020).
    fn swiglu(&self, gate_up: &Tensor) -> Tensor;

    /// Gradient of [`Backend::swiglu`]: `[T, 2F]`, in the storage of `gate_up` where nothing else holds it.
    fn swiglu_backward(&self, dy: &Tensor, gate_up: Tensor) -> Tensor;

    /// Rows of `table [V, C]` → `[T, C]`. An id outside the table panics.
    fn embed(&self, table: &Tensor, ids: &[u32]) -> Tensor;

    /// Gradient of [`Backend::embed`]: adds the rows of `dy [T, C]` into `dtable [V, C]` f32, in row order.
    fn embed_backward(&self, dy: &Tensor, ids: &[u32], dtable: &mut Tensor);

    /// Output projection and cross-entropy in one, chunked so that the logits are never all in memory:
    /// `h [T, C]`, `w [V, C]`, `targets` of length `T` with [`NO_TARGET`] for rows that do not count and
    /// [`TARGET_ELSEWHERE`] where `w` is a slice of the vocabulary without the target.
    fn linear_cross_entropy(&self, h: &Tensor, w: &Tensor, targets: &[u32]) -> CrossEntropy;

    /// Gradient of the `loss` of the rows of [`Backend::linear_cross_entropy`]: returns `dh [T, C]`, adds into `dw [V, C]` f32.
    fn linear_cross_entropy_backward(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        lse: &Tensor,
        dw: &mut Tensor,
    ) -> Tensor;

    /// [`Backend::linear_cross_entropy`] and its gradient for a `loss` that is known beforehand: losses, `dh`, and `dw`
    /// added to. A backend that has the logits of a block once may do both with them; results differ from the two
    /// separate calls in rounding only.
    fn linear_cross_entropy_with_gradient(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        dw: &mut Tensor,
    ) -> (CrossEntropy, Tensor) {
        let found = self.linear_cross_entropy(input.0, input.1, targets);
        let dh = self.linear_cross_entropy_backward(loss, input, targets, &found.lse, dw);
        (found, dh)
    }

    /// [`Backend::linear_cross_entropy_with_gradient`] where `w` is a slice of the vocabulary. `combine` is called for some rows
    /// at a time, in order, with the log-sum-exp of each row over this slice and its target's logit (0 where that is
    /// elsewhere), and puts those over the whole vocabulary in their place. Calls depend on `targets` only in whether they are
    /// [`NO_TARGET`], so all slices come to the same ones.
    fn linear_cross_entropy_with_gradient_of_slice(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        dw: &mut Tensor,
        combine: &mut dyn FnMut(&mut [[f32; 2]]),
    ) -> (CrossEntropy, Tensor) {
        let own = self.linear_cross_entropy(input.0, input.1, targets);
        let (lse, nll) = (self.download(&own.lse), self.download(&own.nll));
        let mut rows: Vec<[f32; 2]> = lse.iter().zip(&nll).map(|(lse, nll)| [*lse, lse - nll]).collect();
        combine(&mut rows);
        let counts = |i: usize| f32::from(u8::from(targets[i] != NO_TARGET));
        let column = |value: &dyn Fn([f32; 2]) -> f32| {
            let values: Vec<f32> = rows.iter().enumerate().map(|(i, row)| counts(i) * value(*row)).collect();
            self.upload(&values, Shape::new(values.len(), 1), DType::F32)
        };
        let (lse, nll) = (column(&|[lse, _]| lse), column(&|[lse, target]| lse - target));
        let dh = self.linear_cross_entropy_backward(loss, input, targets, &lse, dw);
        (CrossEntropy { nll, lse }, dh)
    }

    /// One AdamW update of a parameter with gradient `grad` (f32), in one pass. Split weights come to the same bits as
    /// weights that are not.
    fn adamw(&self, state: AdamWState<'_>, grad: &Tensor, step: &AdamW);

    /// Σ x² in f64, in a fixed order.
    fn sum_of_squares(&self, x: &Tensor) -> f64;

    /// [`checksum`] of the elements as they are stored.
    fn checksum(&self, x: &Tensor) -> u64 {
        checksum(&self.download_raw(x, 0..x.rows()), 0)
    }

    /// A sum over lower halves that one changed bit changes, like [`Backend::checksum`].
    fn checksum_low(&self, low: &LowHalves) -> u64 {
        // Beside ones, no bits of a half make a NaN.
        let ones = self.upload(&vec![1.0; low.shape().elements()], low.shape(), DType::Bf16);
        self.checksum(&self.join(&ones, low))
    }
}
