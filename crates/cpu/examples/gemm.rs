//! Speed of the matrix products and of attention: `cargo run --release -p llamero-cpu --example gemm [-- NAME]`.
//!
//! Prints the best of a few runs, in GFLOP/s; attention counts the pairs under the causal mask only.

use std::time::Instant;

use llamero_cpu::Cpu;
use llamero_tensor::{Backend, DType, Heads, RowLoss, Segments, Shape, Tensor};

/// Whether the first argument, if any, is part of the name.
fn wanted(name: &str) -> bool {
    std::env::args().nth(1).is_none_or(|filter| name.contains(&filter))
}

fn best(mut f: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    let mut runs = 0;
    while runs < 3 || (start.elapsed().as_secs_f64() < 0.4 && runs < 1000) {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn values(cpu: &Cpu, rows: usize, cols: usize, dtype: DType) -> Tensor {
    let x: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1013) as f32 - 506.0) * 1e-3).collect();
    cpu.upload(&x, Shape::new(rows, cols), dtype)
}

#[expect(clippy::print_stdout, reason = "it is a benchmark")]
fn report(cpu: &Cpu, what: &str, flops: f64, f: impl FnMut()) {
    if !wanted(what) {
        return;
    }
    let seconds = best(f);
    println!("{:16} {what:40} {:9.3} ms {:8.1} GFLOP/s", cpu.name(), seconds * 1e3, flops / seconds / 1e9);
}

fn products(cpu: &Cpu, t: usize, k: usize, n: usize, dtype: DType) {
    let (x, w, dy) = (values(cpu, t, k, dtype), values(cpu, n, k, dtype), values(cpu, t, n, dtype));
    let mut dw = cpu.zeros(Shape::new(n, k), DType::F32);
    let flops = 2.0 * t as f64 * k as f64 * n as f64;
    let name = |op| format!("{op} {dtype} T={t} K={k} N={n}");
    report(cpu, &name("linear (NT)"), flops, || drop(cpu.linear(&x, &w)));
    report(cpu, &name("dx (NN)"), flops, || drop(cpu.linear_backward_input(&dy, &w)));
    report(cpu, &name("dw (TN)"), flops, || cpu.linear_backward_weight(&dy, &x, &mut dw));
}

fn decode(cpu: &Cpu, t: usize, k: usize, n: usize) {
    let (x, w) = (values(cpu, t, k, DType::F32), values(cpu, n, k, DType::F32));
    let packed = cpu.pack(&w);
    let flops = 2.0 * t as f64 * k as f64 * n as f64;
    report(cpu, &format!("packed linear T={t} K={k} N={n}"), flops, || drop(cpu.linear(&x, &packed)));
}

fn attention(cpu: &Cpu, heads: Heads, lengths: &[usize], dtype: DType) {
    let segments = Segments::documents(lengths.iter().copied());
    let qkv = values(cpu, segments.total_rows(), heads.width(), dtype);
    let dy = values(cpu, segments.total_rows(), heads.query_width(), dtype);
    let flops = 4.0 * segments.attention_pairs() as f64 * heads.query_width() as f64;
    let name =
        format!("{dtype} {}x{} H={} G={} D={}", lengths.len(), lengths[0], heads.query, heads.kv, heads.dim);
    if !wanted(&format!("attention {name}")) && !wanted(&format!("attention backward {name}")) {
        return;
    }
    let saved = cpu.attention(&qkv, heads, &segments);
    report(cpu, &format!("attention {name}"), flops, || drop(cpu.attention(&qkv, heads, &segments)));
    let backward = || drop(cpu.attention_backward(&dy, &qkv, &saved, heads, &segments));
    report(cpu, &format!("attention backward {name}"), 2.5 * flops, backward);
}

fn head(cpu: &Cpu, t: usize, c: usize, v: usize) {
    let (h, w) = (values(cpu, t, c, DType::F32), values(cpu, v, c, DType::F32));
    let targets: Vec<u32> = (0..t).map(|i| (i * 31 % v) as u32).collect();
    let flops = 2.0 * t as f64 * c as f64 * v as f64;
    let forward = || drop(cpu.linear_cross_entropy(&h, &w, &targets));
    report(cpu, &format!("cross-entropy T={t} C={c} V={v}"), flops, forward);
    if !wanted(&format!("cross-entropy backward T={t} C={c} V={v}")) {
        return;
    }
    let lse = cpu.linear_cross_entropy(&h, &w, &targets).lse;
    let d_nll = values(cpu, t, 1, DType::F32);
    let mut dw = cpu.zeros(Shape::new(v, c), DType::F32);
    let backward = || {
        drop(cpu.linear_cross_entropy_backward(
            RowLoss::cross_entropy(&d_nll),
            (&h, &w),
            &targets,
            &lse,
            &mut dw,
        ))
    };
    report(cpu, &format!("cross-entropy backward T={t} C={c} V={v}"), 3.0 * flops, backward);
}

fn rows(cpu: &Cpu, t: usize, c: usize) {
    let (x, w) = (values(cpu, t, c, DType::F32), values(cpu, 1, c, DType::F32));
    let mut dw = cpu.zeros(Shape::new(1, c), DType::F32);
    let n = (t * c) as f64;
    report(cpu, &format!("rms_norm T={t} C={c} (elements)"), n, || drop(cpu.rms_norm(&x, &w, 1e-5)));
    let backward = || drop(cpu.rms_norm_backward(&x, &x, &w, 1e-5, &mut dw));
    report(cpu, &format!("rms_norm backward T={t} C={c} (elements)"), n, backward);
    report(cpu, &format!("swiglu T={t} F={} (elements)", c / 2), n / 2.0, || drop(cpu.swiglu(&x)));
}

fn main() -> Result<(), llamero_cpu::CpuError> {
    for threads in [1, 2] {
        let cpu = Cpu::new(threads)?;
        products(&cpu, 2048, 2048, 2048, DType::F32);
        for (k, n) in [
            (2048, 2048),
            (768, 4096),
            (2048, 768),
            (768, 1280),
            (768, 768),
            (768, 32000),
            (288, 1536),
            (2048, 16384),
            (8192, 2048),
        ] {
            products(&cpu, 2048, k, n, DType::Bf16);
        }
        decode(&cpu, 1, 512, 4096);
        decode(&cpu, 4, 512, 4096);
        decode(&cpu, 1, 4096, 8192);
        for dtype in [DType::F32, DType::Bf16] {
            attention(&cpu, Heads { query: 12, kv: 4, dim: 64 }, &[1024; 2], dtype);
            attention(&cpu, Heads { query: 8, kv: 4, dim: 64 }, &[1024; 4], dtype);
            attention(&cpu, Heads { query: 6, kv: 2, dim: 48 }, &[512; 8], dtype);
            for count in [1, 4, 16, 64] {
                attention(&cpu, Heads { query: 12, kv: 4, dim: 64 }, &vec![8192 / count; count], dtype);
            }
        }
        head(&cpu, 2048, 384, 16384);
        rows(&cpu, 2048, 2048);
    }
    Ok(())
}
