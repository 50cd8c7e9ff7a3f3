//! Transfers, copies, and the account of memory.

use super::check::{Bench, DTYPES, rounded, same_bits};
use crate::testing::random;
use crate::{Backend, DType, Shape};

/// Values at the edges of rounding: ties to even both ways, the largest finite value, infinities, NaN, signed zeros.
pub(super) fn edges() -> Vec<f32> {
    let tie = 1.0 / 256.0;
    let mut values = vec![0.0, -0.0, 1.0, -1.0, 1.0 + tie, 1.0 + 3.0 * tie, 1.0 + 5.0 * tie, -1.0 - tie];
    values.extend([f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    values.extend([f32::from_bits(0x3f80_7fff), f32::from_bits(0x3f80_8001), 65504.0, 1e-20, 3.0e38]);
    values
}

/// What is downloaded is what was uploaded, rounded to nearest even; zeros are zeros.
pub fn upload_download(backend: &dyn Backend) {
    for dtype in DTYPES {
        for (t, c) in [(0, 5), (1, 1), (3, 7), (17, 33), (130, 257)] {
            let shape = Shape::new(t, c);
            let host = random(1, shape.elements(), 10.0);
            let x = backend.upload(&host, shape, dtype);
            let label = format!("upload {dtype} {shape}");
            assert!(x.shape() == shape && x.dtype() == dtype, "{label}: result is {x:?}");
            same_bits(&label, &backend.download(&x), &rounded(&host, dtype));
            let zeros = backend.zeros(shape, dtype);
            assert!(
                zeros.shape() == shape && zeros.dtype() == dtype,
                "zeros {dtype} {shape}: result is {zeros:?}"
            );
            same_bits(
                &format!("zeros {dtype} {shape}"),
                &backend.download(&zeros),
                &vec![0.0; shape.elements()],
            );
        }
        let host = edges();
        let x = backend.upload(&host, Shape::new(1, host.len()), dtype);
        same_bits(&format!("upload {dtype} edges"), &backend.download(&x), &rounded(&host, dtype));
    }
}

/// `cast` between all pairs of dtypes, rounding to nearest even.
pub fn cast(backend: &dyn Backend) {
    for from in DTYPES {
        for to in DTYPES {
            let mut host = edges();
            host.extend(random(2, 7 * 41 - host.len(), 100.0));
            let shape = Shape::new(7, 41);
            let x = backend.cast(&backend.upload(&host, shape, from), to);
            let label = format!("cast {from} to {to} {shape}");
            assert!(x.shape() == shape && x.dtype() == to, "{label}: result is {x:?}");
            same_bits(&label, &backend.download(&x), &rounded(&rounded(&host, from), to));
        }
    }
}

/// `copy_rows` writes the given window and nothing else.
pub fn copy_rows(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (at, rows, cols) in
            [(0, 0..9, 0..13), (4, 3..7, 5..12), (8, 8..9, 12..13), (2, 5..5, 0..4), (0, 0..1, 3..6)]
        {
            let src = bench.random(1, Shape::new(9, 13), dtype, 1.0);
            let mut dst = bench.random(2, Shape::new(9, cols.len()), dtype, 1.0);
            let mut want = dst.host.clone();
            for (n, row) in rows.clone().enumerate() {
                for (m, col) in cols.clone().enumerate() {
                    want[(at + n) * cols.len() + m] = src.host[row * 13 + col];
                }
            }
            backend.copy_rows(&mut dst.device, at, &src.device, rows.clone(), cols.clone());
            let label = format!("copy_rows {dtype} rows {rows:?} columns {cols:?} of [9, 13] to row {at}");
            same_bits(&label, &backend.download(&dst.device), &want);
        }
    }
}

/// A tensor's checksum is that of its bytes, and every bit of halves counts.
pub fn checksum(backend: &dyn Backend) {
    let bench = Bench::new(backend);
    for dtype in DTYPES {
        for (t, c) in [(0, 5), (1, 1), (3, 7), (130, 257), (517, 301)] {
            let x = bench.random(1, Shape::new(t, c), dtype, 1.0).device;
            let bytes = backend.download_raw(&x, 0..t);
            let (got, want) = (backend.checksum(&x), crate::checksum(&bytes, 0));
            assert!(got == want, "checksum {dtype} [{t}, {c}]: got {got:x}, want {want:x}");
        }
    }
    for (t, c) in [(1, 1), (3, 7), (130, 257)] {
        let host = random(3, t * c, 1.0);
        let low = |host: &[f32]| backend.split(&backend.upload(host, Shape::new(t, c), DType::F32)).1;
        let sum = backend.checksum_low(&low(&host));
        assert!(backend.checksum_low(&low(&host)) == sum, "checksum_low [{t}, {c}]: another sum of the same");
        for bit in 0..15 {
            let mut other = host.clone();
            let last = t * c - 1;
            other[last] = f32::from_bits(other[last].to_bits() ^ (1 << bit));
            assert!(
                backend.checksum_low(&low(&other)) != sum,
                "checksum_low [{t}, {c}]: bit {bit} does not count"
            );
        }
    }
}

/// The live bytes grow with tensors and return to where they were after the last drop; the peak keeps the maximum.
pub fn memory(backend: &dyn Backend) {
    let start = backend.memory().live_bytes;
    backend.reset_peak();
    assert!(
        backend.memory().peak_bytes == start,
        "memory: peak {:?} after a reset at {start} live",
        backend.memory()
    );
    {
        let x = backend.zeros(Shape::new(50, 40), DType::F32);
        let held = backend.memory();
        assert!(
            held.live_bytes >= start + 50 * 40 * 4,
            "memory: {held:?} with a tensor of 8000 bytes above {start}"
        );
        let shared = x.clone();
        assert!(
            backend.memory().live_bytes == held.live_bytes,
            "memory: a clone shares storage: {:?}",
            backend.memory()
        );
        let w = backend.cast(&x, DType::Bf16);
        assert!(
            backend.memory().live_bytes >= held.live_bytes + 50 * 40 * 2,
            "memory: {:?}",
            backend.memory()
        );
        let packed = backend.pack(&w);
        let y = backend.linear(&w, &packed);
        drop((x, w, packed, y));
        assert!(
            backend.memory().live_bytes >= start + 8000,
            "memory: a clone keeps storage: {:?}",
            backend.memory()
        );
        drop(shared);
    }
    let end = backend.memory();
    assert!(
        end.live_bytes == start,
        "memory: {} bytes live after every drop, {start} before",
        end.live_bytes
    );
    assert!(end.peak_bytes >= start + 12_000, "memory: {end:?} after 12000 bytes above {start} were live");
    backend.reset_peak();
    assert!(
        backend.memory().peak_bytes == start,
        "memory: peak {:?} after a reset at {start} live",
        backend.memory()
    );
}
