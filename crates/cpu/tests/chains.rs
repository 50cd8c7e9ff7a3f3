//! The definition of every product, and what follows from it: the same bits however the work is divided.

use llamero_cpu::{Cpu, Path};
use llamero_tensor::testing::{random, random_ids};
use llamero_tensor::{
    Backend, DType, Heads, KV_PAGE, KvFormat, KvLayout, NO_TARGET, PagedSegment, RowLoss, Segment, Segments,
    Shape, Tensor,
};

fn bits(cpu: &Cpu, x: &Tensor) -> Vec<u32> {
    cpu.download(x).iter().map(|x| x.to_bits()).collect()
}

fn tensor(cpu: &Cpu, seed: u64, rows: usize, cols: usize) -> Tensor {
    cpu.upload(&random(seed, rows * cols, 1.0), Shape::new(rows, cols), DType::F32)
}

/// One chain of fused multiply-adds, from `start`.
fn chain(start: f32, n: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> u32 {
    (0..n).fold(start, |sum, k| a(k).mul_add(b(k), sum)).to_bits()
}

#[test]
fn every_element_of_a_product_is_one_chain() {
    let fastest = Path::available().pop().unwrap();
    for (path, threads) in [(fastest, 1), (fastest, 3), (Path::Scalar, 1)] {
        let cpu = Cpu::with_path(threads, path).unwrap();
        for (t, k, n) in
            [(1, 600, 45), (13, 300, 70), (401, 257, 33), (5, 33, 2100), (7, 1, 3), (1, 131_100, 64)]
        {
            let (x, w) = (random(1, t * k, 1.0), random(2, n * k, 1.0));
            let dy = random(3, t * n, 1.0);
            let before = random(4, n * k, 1.0);
            let up = |x: &[f32], rows, cols| cpu.upload(x, Shape::new(rows, cols), DType::F32);
            let (tx, tw, tdy) = (up(&x, t, k), up(&w, n, k), up(&dy, t, n));
            let y: Vec<u32> =
                (0..t * n).map(|e| chain(0.0, k, |i| x[e / n * k + i], |i| w[e % n * k + i])).collect();
            assert!(bits(&cpu, &cpu.linear(&tx, &tw)) == y, "linear {t} {k} {n}");
            assert!(bits(&cpu, &cpu.linear(&tx, &cpu.pack(&tw))) == y, "packed linear {t} {k} {n}");
            let dx: Vec<u32> =
                (0..t * k).map(|e| chain(0.0, n, |i| dy[e / k * n + i], |i| w[i * k + e % k])).collect();
            assert!(bits(&cpu, &cpu.linear_backward_input(&tdy, &tw)) == dx, "dx {t} {k} {n}");
            let mut dw = up(&before, n, k);
            cpu.linear_backward_weight(&tdy, &tx, &mut dw);
            let want: Vec<u32> = (0..n * k)
                .map(|e| chain(before[e], t, |i| dy[i * n + e / k], |i| x[i * k + e % k]))
                .collect();
            assert!(bits(&cpu, &dw) == want, "dw {t} {k} {n}");
        }
    }
}

/// Rows `range` of `x` as a tensor of their own.
fn part(cpu: &Cpu, x: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let mut out = cpu.zeros(Shape::new(range.len(), x.cols()), x.dtype());
    cpu.copy_rows(&mut out, 0, x, range, 0..x.cols());
    out
}

#[test]
fn weight_gradients_of_two_halves_are_those_of_the_whole() {
    let cpu = Cpu::new(2).unwrap();
    let (t, c, v, cut) = (300, 48, 1500, 113);
    let (h, w, g) = (tensor(&cpu, 1, t, c), tensor(&cpu, 2, v, c), tensor(&cpu, 3, 1, c));
    let dy = tensor(&cpu, 4, t, c);
    let d_nll = tensor(&cpu, 5, t, 1);
    let mut targets = random_ids(6, t, v as u32);
    targets[7] = NO_TARGET;
    let ids = random_ids(7, t, 20);
    let run = |ranges: &[std::ops::Range<usize>]| -> Vec<Vec<u32>> {
        let mut dw = cpu.zeros(Shape::new(v, c), DType::F32);
        let mut square = cpu.zeros(Shape::new(c, c), DType::F32);
        let mut dg = cpu.zeros(Shape::new(1, c), DType::F32);
        let mut table = cpu.zeros(Shape::new(20, c), DType::F32);
        for r in ranges {
            let (h, dy, d_nll) =
                (part(&cpu, &h, r.clone()), part(&cpu, &dy, r.clone()), part(&cpu, &d_nll, r.clone()));
            let targets = &targets[r.clone()];
            let lse = cpu.linear_cross_entropy(&h, &w, targets).lse;
            cpu.linear_cross_entropy_backward(
                RowLoss::cross_entropy(&d_nll),
                (&h, &w),
                targets,
                &lse,
                &mut dw,
            );
            cpu.linear_backward_weight(&dy, &h, &mut square);
            cpu.rms_norm_backward(&dy, &h, &g, 1e-5, &mut dg);
            cpu.embed_backward(&dy, &ids[r.clone()], &mut table);
        }
        [dw, square, dg, table].iter().map(|x| bits(&cpu, x)).collect()
    };
    let whole = 0..t;
    assert!(run(std::slice::from_ref(&whole)) == run(&[0..cut, cut..t]));
}

#[test]
fn packed_head_gives_the_same_loss() {
    let cpu = Cpu::new(2).unwrap();
    let (t, c, v) = (200, 40, 1301);
    let (h, w) = (tensor(&cpu, 1, t, c), tensor(&cpu, 2, v, c));
    let targets = random_ids(3, t, v as u32);
    let plain = cpu.linear_cross_entropy(&h, &w, &targets);
    let packed = cpu.linear_cross_entropy(&h, &cpu.pack(&w), &targets);
    assert!(
        bits(&cpu, &plain.nll) == bits(&cpu, &packed.nll)
            && bits(&cpu, &plain.lse) == bits(&cpu, &packed.lse)
    );
}

#[test]
fn losses_of_many_rows_are_those_of_some_at_a_time() {
    let cpu = Cpu::new(2).unwrap();
    let (t, c, v) = (4500, 24, 1301);
    let (h, w) = (tensor(&cpu, 1, t, c), tensor(&cpu, 2, v, c));
    let mut targets = random_ids(3, t, v as u32);
    targets.iter_mut().step_by(7).for_each(|target| *target = NO_TARGET);
    let losses = |rows: std::ops::Range<usize>| {
        let result = cpu.linear_cross_entropy(&part(&cpu, &h, rows.clone()), &w, &targets[rows]);
        (bits(&cpu, &result.nll), bits(&cpu, &result.lse))
    };
    let (nll, lse) = losses(0..t);
    for first in (0..t).step_by(900) {
        let rows = first..first + 900;
        assert!(losses(rows.clone()) == (nll[rows.clone()].to_vec(), lse[rows.clone()].to_vec()), "{rows:?}");
    }
}

#[test]
fn losses_of_more_rows_take_no_more_work_space() {
    let cpu = Cpu::new(1).unwrap();
    let w = tensor(&cpu, 2, 40_000, 4);
    let work_space = |t: usize| {
        let (h, targets) = (tensor(&cpu, 1, t, 4), random_ids(3, t, 40_000));
        cpu.reset_peak();
        let before = cpu.memory().live_bytes;
        let losses = cpu.linear_cross_entropy(&h, &w, &targets);
        let results = cpu.memory().live_bytes - before;
        drop(losses);
        cpu.memory().peak_bytes - before - results
    };
    let few = work_space(2048);
    // Maximum, sum and target's logit of 79 blocks of the vocabulary.
    assert!(few > 2048 * 79 * 12);
    assert_eq!(work_space(6000), few);
}

/// Heads that divide unevenly, a wide one, and one beyond the depth of a block.
const HEADS: [Heads; 4] = [
    Heads { query: 6, kv: 2, dim: 20 },
    Heads { query: 4, kv: 4, dim: 64 },
    Heads { query: 8, kv: 1, dim: 32 },
    Heads { query: 2, kv: 1, dim: 290 },
];

#[test]
fn attention_is_the_same_for_any_division_of_the_work() {
    // The long documents are divided by queries and by keys when there is more than one thread; with 64 threads the
    // parts would be shorter than a block.
    let segments = Segments::documents([3, 700, 64, 1, 130, 200]);
    let rows = segments.total_rows();
    let fastest = Path::available().pop().unwrap();
    let f32_runs = [(fastest, 1), (fastest, 2), (fastest, 3), (fastest, 64), (Path::Scalar, 5)];
    let bf16_runs = [(fastest, 1), (fastest, 2), (fastest, 3), (fastest, 64), (fastest, 5)];
    for heads in HEADS {
        for (dtype, runs) in [(DType::F32, f32_runs), (DType::Bf16, bf16_runs)] {
            let mut first: Option<[Vec<u32>; 3]> = None;
            for (path, threads) in runs {
                let cpu = Cpu::with_path(threads, path).unwrap();
                let qkv = cpu.cast(&tensor(&cpu, 1, rows, heads.width()), dtype);
                let dy = cpu.cast(&tensor(&cpu, 2, rows, heads.query_width()), dtype);
                let saved = cpu.attention(&qkv, heads, &segments);
                let dx = cpu.attention_backward(&dy, &qkv, &saved, heads, &segments);
                let found = [&saved.out, &saved.lse, &dx].map(|x| bits(&cpu, x));
                let same = *first.get_or_insert_with(|| found.clone()) == found;
                assert!(same, "{heads:?} {dtype} {path:?} x{threads}");
            }
        }
    }
}

#[test]
fn paged_attention_equals_the_whole_whatever_the_chunks() {
    let cpu = Cpu::new(2).unwrap();
    let len = 200;
    for heads in HEADS {
        let qkv = tensor(&cpu, 1, len, heads.width());
        let whole = bits(&cpu, &cpu.attention(&qkv, heads, &Segments::documents([len])).out);
        let layer = (KvLayout { layers: 1, heads, format: KvFormat::Same }, 0);
        // All positions are there from the beginning: rows must not see those after them.
        let pages = (0..len).step_by(KV_PAGE).map(|first| {
            let mut page = cpu.kv_page(layer.0, DType::F32);
            cpu.kv_append(&mut page, layer, 0, &qkv, first..len.min(first + KV_PAGE));
            page
        });
        let pages: Vec<Tensor> = pages.collect();
        for chunk in [1, 7, 64, 100] {
            let mut found = Vec::new();
            for past in (0..len).step_by(chunk) {
                let n = chunk.min(len - past);
                let segment = Segment { rows: 0..n, past };
                let paged = PagedSegment { segment, pages: pages.iter().collect() };
                let rows = part(&cpu, &qkv, past..past + n);
                found.extend(bits(&cpu, &cpu.attention_paged(&rows, layer, &[paged])));
            }
            assert!(found == whole, "{heads:?} in chunks of {chunk}");
        }
    }
}
