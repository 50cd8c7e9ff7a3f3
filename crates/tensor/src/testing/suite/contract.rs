//! What holds across ops: shapes are checked, shared storage is not written, results do not depend on threads.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::check::{Bench, DTYPES};
use super::rope::table as rope_table;
use super::stored::encoded;
use crate::testing::{random, random_ids};
use crate::{
    AdamW, AdamWState, Attention, Backend, DType, Encoding, GatheredSegment, Heads, Master, NO_TARGET,
    RopeDirection, RowLoss, Segment, Segments, Shape, Tensor,
};

const STEP: AdamW = AdamW {
    lr: 0.01,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    bias1: 0.1,
    bias2: 0.05,
    grad_scale: 1.0,
};

/// Fails unless `f` panics with a message that names `op`.
fn panics<R>(backend: &dyn Backend, op: &str, what: &str, f: impl FnOnce() -> R) {
    let name = backend.name();
    let Err(payload) = catch_unwind(AssertUnwindSafe(f)) else { panic!("{name}: {op}: {what} was accepted") };
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
    assert!(text.contains(op), "{name}: {op}: {what} panics without naming the op: `{text}`");
}

/// A shape that does not fit panics and names the op. Prints the panics it provokes.
pub fn shapes_that_do_not_fit(backend: &dyn Backend) {
    let z = |rows, cols| backend.zeros(Shape::new(rows, cols), DType::F32);
    let heads = Heads { query: 2, kv: 1, dim: 4 };
    let segments = Segments::documents([3, 2]);
    let what = "a shape that does not fit";
    panics(backend, "upload", what, || backend.upload(&[1.0; 5], Shape::new(2, 3), DType::F32));
    panics(backend, "linear", what, || backend.linear(&z(2, 3), &z(5, 4)));
    panics(backend, "linear_backward_input", what, || backend.linear_backward_input(&z(2, 3), &z(5, 4)));
    panics(backend, "linear_backward_weight", what, || {
        backend.linear_backward_weight(&z(2, 3), &z(4, 5), &mut z(3, 5));
    });
    panics(backend, "linear_backward_weight", "a gradient that does not fit", || {
        backend.linear_backward_weight(&z(2, 3), &z(2, 5), &mut z(5, 3));
    });
    panics(backend, "add", what, || backend.add(&z(2, 3), &z(3, 2)));
    panics(backend, "add_assign", what, || backend.add_assign(&mut z(2, 3), &z(2, 4)));
    panics(backend, "rms_norm", what, || backend.rms_norm(&z(2, 3), &z(1, 4), 1e-5));
    panics(backend, "rms_norm_backward", what, || {
        backend.rms_norm_backward(&z(2, 3), &z(3, 3), &z(1, 3), 1e-5, &mut z(1, 3))
    });
    panics(backend, "rope", what, || {
        backend.rope(z(5, 15), heads, &segments, &rope_table(9, 4), RopeDirection::Forward)
    });
    panics(backend, "rope", "a position outside the table", || {
        backend.rope(z(5, 16), heads, &segments, &rope_table(2, 4), RopeDirection::Forward)
    });
    panics(backend, "attention", "a wrong number of rows", || backend.attention(&z(6, 16), heads, &segments));
    let gathered = |past| [GatheredSegment { segment: Segment { rows: 0..5, past }, first: 2 }];
    panics(backend, "attention_gathered", "a key that is not there", || {
        backend.attention_gathered(&z(5, 16), &z(9, 8), heads, &gathered(3))
    });
    panics(backend, "attention_gathered_backward", what, || {
        let saved = Attention { out: z(5, 8), lse: z(5, 2) };
        backend.attention_gathered_backward(&z(5, 8), (&z(5, 16), &z(9, 7)), &saved, heads, &gathered(2))
    });
    panics(backend, "concat_columns", what, || backend.concat_columns(&z(5, 8), &z(4, 8)));
    panics(backend, "attention_backward", what, || {
        let saved = Attention { out: z(5, 8), lse: z(5, 2) };
        backend.attention_backward(&z(4, 8), &z(5, 16), &saved, heads, &segments)
    });
    panics(backend, "swiglu", "an odd width", || backend.swiglu(&z(2, 5)));
    panics(backend, "swiglu_backward", what, || backend.swiglu_backward(&z(2, 5), z(2, 5)));
    panics(backend, "embed", "an id outside the table", || backend.embed(&z(3, 4), &[0, 3]));
    panics(backend, "embed_backward", "an id outside the table", || {
        backend.embed_backward(&z(2, 4), &[0, 3], &mut z(3, 4));
    });
    panics(backend, "linear_cross_entropy", what, || {
        backend.linear_cross_entropy(&z(2, 3), &z(5, 4), &[0, 1])
    });
    panics(backend, "linear_cross_entropy", "a target outside the vocabulary", || {
        backend.linear_cross_entropy(&z(2, 3), &z(5, 3), &[0, 5])
    });
    panics(backend, "linear_cross_entropy", "a missing target", || {
        backend.linear_cross_entropy(&z(2, 3), &z(5, 3), &[0])
    });
    panics(backend, "copy_rows", "a window outside the source", || {
        backend.copy_rows(&mut z(4, 2), 0, &z(4, 3), 0..2, 2..4);
    });
    panics(backend, "copy_rows", "a row outside the destination", || {
        backend.copy_rows(&mut z(4, 3), 3, &z(4, 3), 0..2, 0..3);
    });
    panics(backend, "adamw", what, || {
        let state = AdamWState { weight: Master::F32(&mut z(2, 3)), m: &mut z(2, 3), v: &mut z(2, 3) };
        backend.adamw(state, &z(3, 2), &STEP);
    });
    panics(backend, "adamw", "lower halves that do not fit", || {
        let (mut high, mut low) = (backend.split(&z(2, 3)).0, backend.split(&z(3, 2)).1);
        let weight = Master::Split { high: &mut high, low: &mut low };
        let state = AdamWState { weight, m: &mut z(2, 3), v: &mut z(2, 3) };
        backend.adamw(state, &z(2, 3), &STEP);
    });
    panics(backend, "join", what, || backend.join(&backend.split(&z(2, 3)).0, &backend.split(&z(3, 2)).1));
}

/// Writing to a tensor whose storage is shared panics and changes nothing.
pub fn shared_storage(backend: &dyn Backend) {
    let host = random(1, 12, 1.0);
    let mut x = backend.upload(&host, Shape::new(3, 4), DType::F32);
    let other = x.clone();
    let one = backend.upload(&[1.0; 12], Shape::new(3, 4), DType::F32);
    panics(backend, "", "writing to shared storage", || backend.add_assign(&mut x, &one));
    panics(backend, "", "writing to shared storage", || backend.copy_rows(&mut x, 0, &one, 0..3, 0..4));
    assert!(backend.download(&other) == host, "add_assign f32 [3, 4]: a shared tensor was changed");
    drop(other);
    backend.add_assign(&mut x, &one);
    let want: Vec<f32> = host.iter().map(|v| v + 1.0).collect();
    assert!(
        backend.download(&x) == want,
        "add_assign f32 [3, 4]: a tensor that was shared once cannot be written"
    );
}

/// A hash (FNV-1a) of the bits of every op's results on middling inputs. Equal for any number of threads; a backend's
/// tests compare it between pools of different sizes.
pub fn fingerprint(backend: &dyn Backend) -> Vec<(String, u64)> {
    let bench = Bench::new(backend);
    let mut hashes = Vec::new();
    for dtype in DTYPES {
        let mut note = |op: &str, x: &Tensor| {
            let bytes = backend.download(x).into_iter().flat_map(|v| v.to_bits().to_le_bytes());
            let hash = bytes
                .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
            hashes.push((format!("{op} {dtype}"), hash));
        };
        let (t, heads, v) = (150, Heads { query: 4, kv: 2, dim: 16 }, 601);
        let (c, width) = (heads.query_width(), heads.width());
        let input = |seed, rows, cols| bench.random(seed, Shape::new(rows, cols), dtype, 1.0).device;
        let gradient =
            |rows, cols| backend.upload(&random(99, rows * cols, 1.0), Shape::new(rows, cols), DType::F32);
        let (x, w, norm) = (input(1, t, c), input(2, width, c), input(3, 1, c));

        let qkv = backend.linear(&x, &w);
        note("linear", &qkv);
        note("linear packed", &backend.linear(&x, &backend.pack(&w)));
        let dy = input(4, t, width);
        note("linear_backward_input", &backend.linear_backward_input(&dy, &w));
        let mut dw = gradient(width, c);
        backend.linear_backward_weight(&dy, &x, &mut dw);
        note("linear_backward_weight", &dw);
        note("add", &backend.add(&dy, &qkv));
        note("rms_norm", &backend.rms_norm(&x, &norm, 1e-5));
        let (mut d_norm, d_normed) = (gradient(1, c), input(5, t, c));
        note("rms_norm_backward dx", &backend.rms_norm_backward(&d_normed, &x, &norm, 1e-5, &mut d_norm));
        note("rms_norm_backward dw", &d_norm);

        let segments = Segments::documents([70, 1, 79]);
        note(
            "rope",
            &backend.rope(qkv.clone(), heads, &segments, &rope_table(80, heads.dim), RopeDirection::Forward),
        );
        let saved = backend.attention(&qkv, heads, &segments);
        note("attention", &saved.out);
        note("attention lse", &saved.lse);
        note("attention_backward", &backend.attention_backward(&d_normed, &qkv, &saved, heads, &segments));
        let of = |rows, past, first| GatheredSegment { segment: Segment { rows, past }, first };
        let runs = [of(0..70, 30, 0), of(70..100, 110, 0), of(100..150, 20, 140)];
        let kv = input(9, 210, 2 * heads.kv_width());
        let saved = backend.attention_gathered(&qkv, &kv, heads, &runs);
        note("attention_gathered", &saved.out);
        let (dq, d_kv) = backend.attention_gathered_backward(&d_normed, (&qkv, &kv), &saved, heads, &runs);
        note("attention_gathered_backward queries", &dq);
        note("attention_gathered_backward kv", &d_kv);
        note("concat_columns", &backend.concat_columns(&dq, &d_normed));
        note("swiglu", &backend.swiglu(&x));
        note("swiglu_backward", &backend.swiglu_backward(&input(6, t, c / 2), x.clone()));

        for encoding in Encoding::ALL.into_iter().filter(|e| e.is_quantized()) {
            let (stored, _) = encoded(10, &vec![(encoding, 70)], 256);
            let w = backend.pack_stored(&stored, Shape::new(70, 256), dtype);
            note(&format!("blocks of {encoding}"), &backend.linear_f32(&input(11, t, 256), &w));
        }

        let (table, mut ids) = (input(7, v, c), random_ids(8, t, v as u32));
        let mut dtable = gradient(v, c);
        backend.embed_backward(&x, &ids, &mut dtable);
        note("embed_backward", &dtable);
        ids[5] = NO_TARGET;
        let loss = backend.linear_cross_entropy(&x, &table, &ids);
        note("linear_cross_entropy", &loss.nll);
        let d_nll = gradient(t, 1);
        let dh = backend.linear_cross_entropy_backward(
            RowLoss::cross_entropy(&d_nll),
            (&x, &table),
            &ids,
            &loss.lse,
            &mut dtable,
        );
        note("linear_cross_entropy_backward dh", &dh);
        note("linear_cross_entropy_backward dw", &dtable);

        let (mut weight, mut m, mut v) =
            (gradient(width, c), gradient(width, c), backend.zeros(dw.shape(), DType::F32));
        backend.adamw(AdamWState { weight: Master::F32(&mut weight), m: &mut m, v: &mut v }, &dw, &STEP);
        note("adamw", &weight);
        let (mut high, mut low) = backend.split(&weight);
        let split = Master::Split { high: &mut high, low: &mut low };
        backend.adamw(AdamWState { weight: split, m: &mut m, v: &mut v }, &dw, &STEP);
        note("adamw split", &backend.join(&high, &low));
        let sum = backend.sum_of_squares(&dy).to_bits();
        hashes.push((format!("sum_of_squares {dtype}"), sum));
        hashes.push((format!("checksum {dtype}"), backend.checksum(&x)));
    }
    hashes
}
