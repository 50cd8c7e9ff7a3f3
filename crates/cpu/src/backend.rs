//! The trait: shape checks, types, and handing over to the kernels.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use half::bf16;
use llamero_tensor::{
    AdamW, AdamWState, Attention, Backend, CrossEntropy, DType, GatheredSegment, Heads, KV_PAGE, KvLayout,
    LowHalves, Master, Memory, PagedSegment, RopeDirection, RopeTable, RowLoss, Segments, Shape, StoredRows,
    TARGET_ELSEWHERE, Tensor,
};

use crate::Cpu;
use crate::attention::Page;
use crate::gemm::{Mat, Out, Right, gemm, pack_panels};
use crate::loss::{self, Head, Outputs, OverSlices, Saved};
use crate::master::{join_all, split_all};
use crate::ops::{self, MasterMut};
use crate::storage::{
    Raw, Storage, Stored, accumulator, aligned, data, elements, elements_mut, f32s, low_halves,
    low_halves_mut, mat, own, produce, storage, typed,
};

/// Panics with the op and the shapes of its tensors unless the condition holds.
macro_rules! fits {
    ($op:literal, $ok:expr, $($x:ident),+) => {
        assert!($ok, concat!($op, ": shapes do not fit:", $(" ", stringify!($x), " {:?}",)+), $($x),+)
    };
}

/// Evaluates an expression with `E` bound to the element type of a dtype.
macro_rules! with_type {
    ($dtype:expr, $e:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $e = f32;
                $body
            }
            DType::Bf16 => {
                type $e = half::bf16;
                $body
            }
        }
    };
}

mod attention;
mod weights;

impl Cpu {
    /// `[m, n]` of the given dtype from a product.
    fn product(&self, (m, n, k): (usize, usize, usize), a: Mat<'_>, b: Right<'_>, dtype: DType) -> Tensor {
        let shape = Shape::new(m, n);
        match dtype {
            DType::F32 => produce(&self.exec, shape, |c| gemm(&self.exec, (m, n, k), a, b, Out::F32(c))),
            DType::Bf16 => produce(&self.exec, shape, |c| gemm(&self.exec, (m, n, k), a, b, Out::Bf16(c))),
        }
    }

    /// Loss and gradient of the head in one pass, over all of the vocabulary or a slice of it.
    fn head_with_gradient(
        &self,
        op: &str,
        RowLoss { d_row, z }: RowLoss<'_>,
        (h, w): (&Tensor, &Tensor),
        targets: &[u32],
        (dw, combine): (&mut Tensor, Option<OverSlices<'_>>),
    ) -> (CrossEntropy, Tensor) {
        check_targets(op, targets, h, w);
        let shape = Shape::new(h.rows(), 1);
        let fits = d_row.shape() == shape && dw.shape() == w.shape() && (h.cols() > 0 || combine.is_none());
        assert!(fits, "{op}: shapes do not fit: d_row {d_row:?} h {h:?} w {w:?} dw {dw:?}");
        if h.cols() == 0 {
            let loss = self.linear_cross_entropy(h, w, targets);
            let dh = self.linear_cross_entropy_backward(RowLoss { d_row, z }, (h, w), targets, &loss.lse, dw);
            return (loss, dh);
        }
        let [mut nll, mut lse] = [(); 2].map(|()| self.exec.memory.stale::<f32>(h.rows()));
        let (input, w, d_row) = ((data(op, h), h.cols()), mat(op, w), f32s(op, d_row));
        let (dw, dw_is_zero) = accumulator(op, dw);
        let mut combine = combine;
        let dh = with_type!(h.dtype(), E => produce::<E>(&self.exec, h.shape(), |dh| {
            let out = Outputs { nll: &mut nll, lse: &mut lse, dh, dw, dw_is_zero };
            loss::with_gradient(&self.exec, input, w, (d_row, z, targets), (out, combine.take()));
        }));
        let [nll, lse] = [nll, lse].map(|x| Tensor::from_storage(shape, DType::F32, Storage::F32(x)));
        (CrossEntropy { nll, lse }, dh)
    }
}

fn check_heads(op: &str, qkv: &Tensor, heads: Heads, rows: usize) {
    let divides = heads.kv > 0 && heads.dim > 0 && heads.query.is_multiple_of(heads.kv);
    assert!(
        divides && qkv.cols() == heads.width() && qkv.rows() == rows,
        "{op}: shapes do not fit: qkv {qkv:?} {heads:?} segments of {rows} rows"
    );
}

fn check_ids(op: &str, ids: &[u32], table: &Tensor) {
    if let Some((row, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= table.rows()) {
        panic!("{op}: id {id} of row {row} is outside the table {table:?}");
    }
}

fn check_targets(op: &str, targets: &[u32], h: &Tensor, w: &Tensor) {
    assert!(
        h.rows() == targets.len() && h.cols() == w.cols(),
        "{op}: shapes do not fit: h {h:?} w {w:?} targets {}",
        targets.len()
    );
    if let Some((row, id)) =
        targets.iter().enumerate().find(|(_, t)| **t < TARGET_ELSEWHERE && **t as usize >= w.rows())
    {
        panic!("{op}: target {id} of row {row} is outside the vocabulary of w {w:?}");
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu/{} x{}", self.path().name(), self.threads())
    }

    fn memory(&self) -> Memory {
        self.exec.memory.memory()
    }

    fn reset_peak(&self) {
        self.exec.memory.reset_peak();
    }

    fn upload(&self, host: &[f32], shape: Shape, dtype: DType) -> Tensor {
        assert!(host.len() == shape.elements(), "upload: {} values do not fit {shape}", host.len());
        with_type!(dtype, E => produce::<E>(&self.exec, shape, |out| ops::convert(&self.exec, host, out)))
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        let mut out = vec![0.0; x.shape().elements()];
        typed!(data("download", x), x => ops::convert(&self.exec, x, &mut out));
        out
    }

    fn download_raw(&self, x: &Tensor, rows: Range<usize>) -> Bytes {
        let row = x.cols() * x.dtype().bytes();
        Bytes::from_owner(Raw(x.clone())).slice(rows.start * row..rows.end * row)
    }

    fn upload_raw(&self, raw: &[&[u8]], shape: Shape, dtype: DType) -> Tensor {
        let (found, expected) =
            (raw.iter().map(|r| r.len()).sum::<usize>(), shape.elements() * dtype.bytes());
        assert!(found == expected, "upload_raw: {found} bytes do not fit {shape} of {dtype}");
        with_type!(dtype, E => produce::<E>(&self.exec, shape, |out| {
            let mut rest: &mut [u8] = bytemuck::cast_slice_mut(out);
            for part in raw {
                let (here, tail) = rest.split_at_mut(part.len());
                here.copy_from_slice(part);
                rest = tail;
            }
        }))
    }

    fn sum_raw(&self, raw: &[&[u8]], shape: Shape, dtype: DType) -> Tensor {
        with_type!(dtype, E => {
            let parts: Vec<Cow<'_, [E]>> = raw.iter().map(|bytes| aligned("sum_raw", bytes, shape)).collect();
            produce::<f32>(&self.exec, shape, |out| ops::sum(&self.exec, &parts, out))
        })
    }

    fn zeros(&self, shape: Shape, dtype: DType) -> Tensor {
        with_type!(dtype, E => {
            let zeros = self.exec.memory.zeros::<E>(shape.elements());
            Tensor::from_storage(shape, dtype, E::wrap(zeros))
        })
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Tensor {
        let shape = x.shape();
        typed!(data("cast", x), x => {
            with_type!(dtype, E => produce::<E>(&self.exec, shape, |out| ops::convert(&self.exec, x, out)))
        })
    }

    fn split(&self, x: &Tensor) -> (Tensor, LowHalves) {
        let (shape, values) = (x.shape(), f32s("split", x));
        let mut low = self.exec.memory.stale::<i16>(shape.elements());
        let high = produce(&self.exec, shape, |high| split_all(&self.exec, values, high, &mut low));
        (high, LowHalves::from_storage(shape, low))
    }

    fn join(&self, high: &Tensor, low: &LowHalves) -> Tensor {
        fits!("join", high.shape() == low.shape(), high, low);
        let (upper, lower) = (elements::<bf16>("join", high), low_halves("join", low));
        produce(&self.exec, high.shape(), |out| join_all(&self.exec, upper, lower, out))
    }

    fn pack(&self, w: &Tensor) -> Tensor {
        let pairs = self.exec.pairs() && w.dtype() == DType::Bf16;
        let panels = pack_panels(&self.exec, mat("pack", w).t(), (w.cols(), w.rows()), pairs);
        Tensor::from_storage(w.shape(), w.dtype(), Storage::Panels(panels))
    }

    fn pack_stored(&self, parts: &[StoredRows<'_>], shape: Shape, dtype: DType) -> Tensor {
        weights::pack_stored(self, parts, shape, dtype)
    }

    fn prefetch(&self, w: &Tensor) {
        if let (Some(ahead), Some(data)) = (self.exec.ahead(), weights::first_bytes(w)) {
            ahead.announce(data);
        }
    }

    fn copy_rows(&self, dst: &mut Tensor, at: usize, src: &Tensor, rows: Range<usize>, cols: Range<usize>) {
        let fits = rows.start <= rows.end && cols.start <= cols.end && dst.cols() == cols.len();
        let inside = rows.end <= src.rows() && cols.end <= src.cols() && at + rows.len() <= dst.rows();
        assert!(
            fits && inside && dst.dtype() == src.dtype(),
            "copy_rows: shapes do not fit: {src:?} rows {rows:?} columns {cols:?} to {dst:?} at {at}"
        );
        let (width, from) = (cols.len(), src.cols());
        with_type!(src.dtype(), E => {
            let src = elements::<E>("copy_rows", src);
            let dst = elements_mut::<E>("copy_rows", dst);
            for (i, row) in rows.enumerate() {
                dst[(at + i) * width..][..width].copy_from_slice(&src[row * from + cols.start..][..width]);
            }
        });
    }

    fn linear(&self, x: &Tensor, w: &Tensor) -> Tensor {
        weights::linear(self, x, w, x.dtype())
    }

    fn linear_f32(&self, x: &Tensor, w: &Tensor) -> Tensor {
        weights::linear(self, x, w, DType::F32)
    }

    fn linear_backward_input(&self, dy: &Tensor, w: &Tensor) -> Tensor {
        fits!("linear_backward_input", dy.cols() == w.rows(), dy, w);
        let (a, b) = (mat("linear_backward_input", dy), mat("linear_backward_input", w));
        self.product((dy.rows(), w.cols(), dy.cols()), a, Right::Mat(b), dy.dtype())
    }

    fn linear_backward_weight(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) {
        let fits = dy.rows() == x.rows() && dw.rows() == dy.cols() && dw.cols() == x.cols();
        fits!("linear_backward_weight", fits, dy, x, dw);
        let (a, b) = (mat("linear_backward_weight", dy), mat("linear_backward_weight", x));
        let (dw, zeros) = accumulator("linear_backward_weight", dw);
        let out = if zeros { Out::F32(dw) } else { Out::Add(dw) };
        gemm(&self.exec, (dy.cols(), x.cols(), dy.rows()), a.t(), Right::Mat(b), out);
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        fits!("add", a.shape() == b.shape(), a, b);
        with_type!(a.dtype(), E => {
            let (x, y) = (elements::<E>("add", a), elements("add", b));
            produce::<E>(&self.exec, a.shape(), |out| ops::add(&self.exec, x, y, out))
        })
    }

    fn add_assign(&self, acc: &mut Tensor, x: &Tensor) {
        fits!("add_assign", acc.shape() == x.shape(), acc, x);
        with_type!(acc.dtype(), E => {
            let acc = elements_mut::<E>("add_assign", acc);
            typed!(data("add_assign", x), x => ops::add_assign(&self.exec, acc, x));
        });
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32) -> Tensor {
        fits!("rms_norm", w.shape() == Shape::new(1, x.cols()), x, w);
        with_type!(x.dtype(), E => {
            let rows = elements::<E>("rms_norm", x);
            produce::<E>(&self.exec, x.shape(), |out| {
                typed!(data("rms_norm", w), w => ops::rms_norm(&self.exec, rows, w, eps, out));
            })
        })
    }

    fn rms_norm_backward(&self, dy: &Tensor, x: &Tensor, w: &Tensor, eps: f32, dw: &mut Tensor) -> Tensor {
        const OP: &str = "rms_norm_backward";
        let row = Shape::new(1, x.cols());
        let fits = dy.shape() == x.shape() && w.shape() == row && dw.shape() == row;
        fits!("rms_norm_backward", fits, dy, x, w, dw);
        let dw = elements_mut::<f32>(OP, dw);
        with_type!(x.dtype(), E => {
            let rows = (elements::<E>(OP, dy), elements::<E>(OP, x));
            produce::<E>(&self.exec, x.shape(), |dx| {
                typed!(data(OP, w), w => ops::rms_norm_backward(&self.exec, rows, w, eps, (dx, dw)));
            })
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
        check_heads("rope", &qkv, heads, segments.total_rows());
        let last = segments.iter().map(|s| s.past + s.rows.len()).max().unwrap_or(0);
        assert!(
            2 * table.half() == heads.dim && last <= table.positions(),
            "rope: {last} positions of {heads:?} do not fit a table of {} positions of {}",
            table.positions(),
            2 * table.half()
        );
        with_type!(qkv.dtype(), E => {
            own::<E>(&self.exec, "rope", &mut qkv);
            ops::rope(&self.exec, elements_mut::<E>("rope", &mut qkv), heads, (segments, table, direction));
        });
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

    fn kv_page(&self, layout: KvLayout, dtype: DType) -> Tensor {
        let shape = Shape::new(layout.layers * 2 * KV_PAGE, layout.heads.kv_width());
        Tensor::from_storage(shape, dtype, Storage::Page(Page::new(&self.exec, layout, dtype)))
    }

    fn kv_append(
        &self,
        page: &mut Tensor,
        layer: (KvLayout, usize),
        at: usize,
        qkv: &Tensor,
        rows: Range<usize>,
    ) {
        attention::append(self, page, layer, at, (qkv, rows));
    }

    fn kv_copy(&self, page: &Tensor) -> Tensor {
        let Storage::Page(from) = storage("kv_copy", page) else { panic!("kv_copy: {page:?} is no page") };
        Tensor::from_storage(page.shape(), page.dtype(), Storage::Page(from.copy(&self.exec)))
    }

    fn kv_save(&self, page: &Tensor) -> Bytes {
        let Storage::Page(from) = storage("kv_save", page) else { panic!("kv_save: {page:?} is no page") };
        from.save().into()
    }

    fn kv_restore(&self, saved: &Bytes, layout: KvLayout, dtype: DType) -> Tensor {
        let mut page = Page::new(&self.exec, layout, dtype);
        page.restore(saved);
        let shape = Shape::new(layout.layers * 2 * KV_PAGE, layout.heads.kv_width());
        Tensor::from_storage(shape, dtype, Storage::Page(page))
    }

    fn kv_page_bytes(&self, layout: KvLayout, dtype: DType) -> usize {
        Page::bytes(&self.exec, layout, dtype)
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
        fits!("concat_columns", left.rows() == right.rows(), left, right);
        let shape = Shape::new(left.rows(), left.cols() + right.cols());
        with_type!(left.dtype(), E => {
            let left = (elements::<E>("concat_columns", left), left.cols());
            typed!(data("concat_columns", right), x => {
                produce::<E>(&self.exec, shape, |out| {
                    ops::concat_columns(&self.exec, left, (x, right.cols()), out);
                })
            })
        })
    }

    fn swiglu(&self, gate_up: &Tensor) -> Tensor {
        fits!("swiglu", gate_up.cols().is_multiple_of(2), gate_up);
        let shape = Shape::new(gate_up.rows(), gate_up.cols() / 2);
        with_type!(gate_up.dtype(), E => {
            let x = elements::<E>("swiglu", gate_up);
            produce::<E>(&self.exec, shape, |out| ops::swiglu(&self.exec, x, shape.cols, out))
        })
    }

    fn swiglu_backward(&self, dy: &Tensor, mut gate_up: Tensor) -> Tensor {
        let fits = gate_up.shape() == Shape::new(dy.rows(), 2 * dy.cols());
        fits!("swiglu_backward", fits, dy, gate_up);
        with_type!(gate_up.dtype(), E => {
            let dy_elements = elements::<E>("swiglu_backward", dy);
            own::<E>(&self.exec, "swiglu_backward", &mut gate_up);
            let x = elements_mut::<E>("swiglu_backward", &mut gate_up);
            ops::swiglu_backward(&self.exec, dy_elements, dy.cols(), x);
        });
        gate_up
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        if let Storage::Panels(_) | Storage::Blocks(_) = storage("embed", table) {
            check_ids("embed", ids, table);
            return weights::embed(self, table, ids);
        }
        check_ids("embed", ids, table);
        let shape = Shape::new(ids.len(), table.cols());
        with_type!(table.dtype(), E => {
            let rows = elements::<E>("embed", table);
            produce::<E>(&self.exec, shape, |out| ops::embed(&self.exec, rows, ids, shape.cols, out))
        })
    }

    fn embed_backward(&self, dy: &Tensor, ids: &[u32], dtable: &mut Tensor) {
        check_ids("embed_backward", ids, dtable);
        let fits = dy.shape() == Shape::new(ids.len(), dtable.cols());
        fits!("embed_backward", fits, dy, dtable);
        let dtable = elements_mut::<f32>("embed_backward", dtable);
        let width = dy.cols();
        typed!(data("embed_backward", dy), dy => ops::embed_backward(&self.exec, dy, ids, width, dtable));
    }

    fn linear_cross_entropy(&self, h: &Tensor, w: &Tensor, targets: &[u32]) -> CrossEntropy {
        const OP: &str = "linear_cross_entropy";
        check_targets(OP, targets, h, w);
        let head = match storage(OP, w) {
            Storage::Panels(panels) => Head::Panels(panels),
            Storage::Blocks(blocks) => Head::Blocks(blocks),
            _ => Head::Mat(mat(OP, w)),
        };
        let shape = Shape::new(h.rows(), 1);
        let mut lse = self.exec.memory.stale::<f32>(h.rows());
        let nll = produce::<f32>(&self.exec, shape, |nll| {
            loss::forward(&self.exec, (data(OP, h), h.cols()), (head, w.rows()), targets, (nll, &mut lse));
        });
        CrossEntropy { nll, lse: Tensor::from_storage(shape, DType::F32, Storage::F32(lse)) }
    }

    fn linear_cross_entropy_backward(
        &self,
        RowLoss { d_row, z }: RowLoss<'_>,
        (h, w): (&Tensor, &Tensor),
        targets: &[u32],
        lse: &Tensor,
        dw: &mut Tensor,
    ) -> Tensor {
        const OP: &str = "linear_cross_entropy_backward";
        check_targets(OP, targets, h, w);
        let column = Shape::new(h.rows(), 1);
        let fits = d_row.shape() == column && lse.shape() == column && dw.shape() == w.shape();
        fits!("linear_cross_entropy_backward", fits, d_row, h, w, lse, dw);
        let saved = Saved { d_row: f32s(OP, d_row), z, lse: f32s(OP, lse), targets };
        let dw = elements_mut::<f32>(OP, dw);
        let input = (data(OP, h), h.cols());
        with_type!(h.dtype(), E => produce::<E>(&self.exec, h.shape(), |dh| {
            loss::backward(&self.exec, input, mat(OP, w), &saved, (dh, dw));
        }))
    }

    fn linear_cross_entropy_with_gradient(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        dw: &mut Tensor,
    ) -> (CrossEntropy, Tensor) {
        self.head_with_gradient("linear_cross_entropy_with_gradient", loss, input, targets, (dw, None))
    }

    fn linear_cross_entropy_with_gradient_of_slice(
        &self,
        loss: RowLoss<'_>,
        input: (&Tensor, &Tensor),
        targets: &[u32],
        dw: &mut Tensor,
        combine: &mut dyn FnMut(&mut [[f32; 2]]),
    ) -> (CrossEntropy, Tensor) {
        const OP: &str = "linear_cross_entropy_with_gradient_of_slice";
        self.head_with_gradient(OP, loss, input, targets, (dw, Some(combine)))
    }

    fn adamw(&self, state: AdamWState<'_>, grad: &Tensor, step: &AdamW) {
        let AdamWState { weight, m, v } = state;
        let shape = grad.shape();
        let w = weight.shape();
        fits!("adamw", w == shape && m.shape() == shape && v.shape() == shape, w, m, v, grad);
        let weight = match weight {
            Master::F32(weight) => MasterMut::F32(elements_mut("adamw", weight)),
            Master::Split { high, low } => {
                fits!("adamw", low.shape() == shape, high, low, grad);
                MasterMut::Split(elements_mut("adamw", high), low_halves_mut("adamw", low))
            }
        };
        let [m, v] = [m, v].map(|x| elements_mut::<f32>("adamw", x));
        ops::adamw(&self.exec, weight, (m, v), f32s("adamw", grad), step);
    }

    fn sum_of_squares(&self, x: &Tensor) -> f64 {
        typed!(data("sum_of_squares", x), x => ops::sum_of_squares(&self.exec, x))
    }

    fn checksum(&self, x: &Tensor) -> u64 {
        typed!(data("checksum", x), x => ops::checksum(&self.exec, bytemuck::cast_slice(x)))
    }

    fn checksum_low(&self, low: &LowHalves) -> u64 {
        ops::checksum(&self.exec, bytemuck::cast_slice(low_halves("checksum_low", low)))
    }
}
