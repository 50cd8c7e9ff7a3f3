//! Sums, the gated unit, and embeddings.

use super::check::{Bench, DTYPES, FEW, Input, U, rounded, rows_alone, same_bits, sum_bound};
use crate::testing::{random, random_ids};
use crate::{Backend, DType, Shape};

const SIZES: [(usize, usize); 11] =
    [(0, 3), (1, 1), (1, 7), (3, 3), (7, 17), (17, 1), (33, 65), (65, 33), (3, 257), (130, 130), (257, 300)];

/// `add`, and `add_assign` for every pair of dtypes it allows.
pub fn add(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for (t, c) in SIZES {
        let shape = Shape::new(t, c);
        for dtype in DTYPES {
            let (a, b) = (bench.random(1, shape, dtype, 1.0), bench.random(2, shape, dtype, 3.0));
            let want = bench.oracle.add(&a.exact, &b.exact);
            let sums = bench.exact(&want);
            let label = format!("add {dtype} {shape}");
            bench.close(&label, &backend.add(&a.device, &b.device), &want, |i| U * sums[i].abs());
        }
        for (acc_dtype, dtype) in
            [(DType::F32, DType::F32), (DType::F32, DType::Bf16), (DType::Bf16, DType::Bf16)]
        {
            let (mut acc, x) = (bench.random(3, shape, acc_dtype, 1.0), bench.random(4, shape, dtype, 3.0));
            bench.oracle.add_assign(&mut acc.exact, &x.exact);
            backend.add_assign(&mut acc.device, &x.device);
            let sums = bench.exact(&acc.exact);
            let label = format!("add_assign {acc_dtype} += {dtype} {shape}");
            bench.close(&label, &acc.device, &acc.exact, |i| U * sums[i].abs());
        }
    }
}

/// Gates and ups side by side, with gates large enough to saturate either way.
fn gate_up(bench: &Bench<'_>, shape: Shape, dtype: DType) -> Input {
    let mut host = random(shape.elements() as u64, shape.elements(), 6.0);
    let extremes = [0.0, -0.0, 30.0, -30.0, 100.0, -100.0, 1e4, -1e4];
    host.iter_mut().step_by(11).zip(extremes).for_each(|(v, extreme)| *v = extreme);
    bench.input(&host, shape, dtype)
}

/// `swiglu`.
pub fn swiglu(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, f) in SIZES {
            let x = gate_up(&bench, Shape::new(t, 2 * f), dtype);
            let want = bench.oracle.swiglu(&x.exact);
            let exact = bench.exact(&want);
            bench.close(
                &format!("swiglu {dtype} [{t}, {}]", 2 * f),
                &backend.swiglu(&x.device),
                &want,
                |i| {
                    // exp of a rounded argument g is off by |g| units.
                    let gate = f64::from(x.host[i / f * 2 * f + i % f]);
                    (FEW + 2.0 * gate.abs()) * U * exact[i].abs()
                },
            );
        }
    }
}

/// `swiglu_backward`, with an input that must be left as it is and with one that may be overwritten.
pub fn swiglu_backward(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, f) in SIZES {
            let x = gate_up(&bench, Shape::new(t, 2 * f), dtype);
            let dy = bench.random(7, Shape::new(t, f), dtype, 1.0);
            let label = format!("swiglu_backward {dtype} dy [{t}, {f}]");
            let want = bench.oracle.swiglu_backward(&dy.exact, x.exact.clone());
            let got = backend.swiglu_backward(&dy.device, x.device.clone());
            same_bits(&format!("{label}, input"), &backend.download(&x.device), &x.host);
            let own = backend.upload(&x.host, Shape::new(t, 2 * f), dtype);
            let in_place = backend.download(&backend.swiglu_backward(&dy.device, own));
            same_bits(&format!("{label}, in place"), &in_place, &backend.download(&got));
            bench.close(&label, &got, &want, |i| {
                let (row, column) = (i / (2 * f), i % f);
                let [gate, up] = [column, f + column].map(|c| f64::from(x.host[row * 2 * f + c]));
                let s = 1.0 / (1.0 + (-gate).exp());
                let slope = if i % (2 * f) < f { up * s * (1.0 + gate.abs() * (1.0 - s)) } else { gate * s };
                (FEW + 3.0 * gate.abs()) * U * (f64::from(dy.host[row * f + column]) * slope).abs()
            });
        }
    }
}

/// `embed` copies rows; `embed_backward` adds them in row order, repeated ids among them, to a buffer that is not zero.
pub fn embed(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, v, c) in [(0, 3, 3), (1, 1, 1), (7, 3, 17), (33, 65, 7), (130, 7, 33), (65, 257, 130)] {
            let ids = random_ids(t as u64, t, v as u32);
            let table = bench.random(1, Shape::new(v, c), dtype, 1.0);
            let label = format!("embed {dtype} table [{v}, {c}], {t} ids");
            let rows = backend.embed(&table.device, &ids);
            assert!(rows.shape() == Shape::new(t, c) && rows.dtype() == dtype, "{label}: result is {rows:?}");
            let want: Vec<f32> =
                ids.iter().flat_map(|&id| table.rows(id as usize..id as usize + 1)).copied().collect();
            same_bits(&label, &backend.download(&rows), &want);
            let packed = backend.embed(&backend.pack(&table.device), &ids);
            same_bits(&format!("{label}, packed"), &backend.download(&packed), &want);

            let dy = bench.random(2, Shape::new(t, c), dtype, 1.0);
            let mut dtable = bench.random(3, Shape::new(v, c), DType::F32, 2.0);
            let mut want = dtable.host.clone();
            for (t, &id) in ids.iter().enumerate() {
                (0..c).for_each(|c_| want[id as usize * c + c_] += dy.host[t * c + c_]);
            }
            backend.embed_backward(&dy.device, &ids, &mut dtable.device);
            let label = format!("embed_backward {dtype} dy [{t}, {c}] dtable [{v}, {c}]");
            same_bits(&label, &backend.download(&dtable.device), &want);
            // The oracle must agree with the sum in row order too.
            bench.oracle.embed_backward(&dy.exact, &ids, &mut dtable.exact);
            bench.close(&label, &dtable.device, &dtable.exact, |_| sum_bound(t + 1, 2.0 + t as f64));
        }
    }
}

/// A row alone gives the bits it gives in a batch.
pub fn row_invariance(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, f) in [(66, 33), (130, 7), (37, 130)] {
            let x = gate_up(&bench, Shape::new(t, 2 * f), dtype);
            let y = bench.random(5, Shape::new(t, 2 * f), dtype, 1.0);
            let dy = rounded(&random(6, t * f, 1.0), dtype);
            rows_alone(&format!("swiglu {dtype} [{t}, {}]", 2 * f), t, |rows| {
                backend.download(&backend.swiglu(&x.upload_rows(backend, rows)))
            });
            rows_alone(&format!("swiglu_backward {dtype} dy [{t}, {f}]"), t, |rows| {
                let dy = backend.upload(&dy[rows.start * f..rows.end * f], Shape::new(rows.len(), f), dtype);
                backend.download(&backend.swiglu_backward(&dy, x.upload_rows(backend, rows)))
            });
            rows_alone(&format!("add {dtype} [{t}, {}]", 2 * f), t, |rows| {
                let [x, y] = [&x, &y].map(|v| v.upload_rows(backend, rows.clone()));
                backend.download(&backend.add(&x, &y))
            });
        }
    }
}
