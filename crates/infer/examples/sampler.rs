//! How long a draw from a vocabulary of Llama 3's size takes: `cargo run --release -p llamero-infer --example sampler`.
//!
//! The logits are normal with deviation 2.5, as those of a trained model are but for its few likely tokens; `sure` has some of
//! these in addition, `unsure` has not.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use llamero_infer::{SamplingParams, sample};

const VOCAB: usize = 128_256;
const ROUNDS: usize = 101;

#[expect(clippy::print_stdout, reason = "it is a benchmark")]
fn main() {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let unsure: Vec<f32> =
        (0..VOCAB).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 2.5).collect();
    let mut sure = unsure.clone();
    for i in 0..40 {
        sure[i * 3001] = 20.0 - 0.2 * i as f32;
    }
    let history: Vec<u32> = (0..4096u32).map(|i| i * 7919 % VOCAB as u32).collect();
    let base = SamplingParams::default();
    let penalties = SamplingParams {
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        logit_bias: BTreeMap::from([(3, -100.0)]),
        ..base.clone()
    };
    let cases = [
        ("greedy", SamplingParams::greedy(1)),
        ("temperature 0.6, top_p 0.9", base.clone()),
        ("temperature 1, top_p 0.95", SamplingParams { temperature: 1.0, top_p: 0.95, ..base.clone() }),
        ("temperature 1", SamplingParams { temperature: 1.0, top_p: 1.0, ..base.clone() }),
        (
            "temperature 1, top_k 50",
            SamplingParams { temperature: 1.0, top_p: 1.0, top_k: Some(50), ..base.clone() },
        ),
        (
            "temperature 1, min_p 0.05",
            SamplingParams { temperature: 1.0, top_p: 1.0, min_p: 0.05, ..base.clone() },
        ),
        ("temperature 0.6, top_p 0.9, penalties over 4,096 tokens", penalties),
    ];
    for (name, params) in cases {
        let time = |logits: &[f32]| {
            let mut times: Vec<f64> = (0..ROUNDS)
                .map(|position| {
                    let start = Instant::now();
                    black_box(sample(black_box(logits), &params, &history, position))
                        .expect("these logits are numbers");
                    start.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            times.sort_by(f64::total_cmp);
            times[ROUNDS / 2]
        };
        let (sure, unsure) = (time(&sure), time(&unsure));
        println!("{name}: {sure:.3} ms sure, {unsure:.3} ms unsure");
    }
}
