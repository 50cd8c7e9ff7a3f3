//! The sampler against one that sorts everything, and its penalties against their definitions.

use std::collections::BTreeMap;

use super::{engine, generate, ids};
use crate::sampler::uniform;
use crate::{FORBID, InferError, SamplingParams, sample};

/// Penalties and biases, one token after the other.
fn edited(logits: &[f32], params: &SamplingParams, history: &[u32]) -> Vec<f32> {
    let window = params.penalty_window.unwrap_or(history.len()).min(history.len());
    let recent = &history[history.len() - window..];
    let edit = |(id, &logit): (u32, &f32)| {
        let mut x = logit;
        match params.logit_bias.get(&id) {
            Some(&FORBID) => return f32::NEG_INFINITY,
            Some(&bias) => x += bias as f32,
            None => {}
        }
        let count = recent.iter().filter(|&&seen| seen == id).count();
        if count > 0 {
            let factor = params.repetition_penalty as f32;
            x = if x > 0.0 { x / factor } else { x * factor };
            x -= count as f32 * params.frequency_penalty as f32;
            x -= params.presence_penalty as f32;
        }
        x
    };
    (0..).zip(logits).map(edit).collect()
}

/// The definition: weigh all, sort all, cut by each filter in turn, draw from what is left.
fn reference(logits: &[f32], params: &SamplingParams, history: &[u32], position: usize) -> u32 {
    let logits = edited(logits, params, history);
    let mut all: Vec<(u32, f32)> = (0..).zip(logits).collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    let max = f64::from(all[0].1);
    if params.temperature == 0.0 {
        return all[0].0;
    }
    let mut all: Vec<(u32, f64)> =
        all.into_iter().map(|(id, x)| (id, libm::exp((f64::from(x) - max) / params.temperature))).collect();
    all.truncate(params.top_k.unwrap_or(usize::MAX));
    let total: f64 = all.iter().map(|c| c.1).sum();
    let mut before = 0.0;
    all.retain(|c| {
        let keep = params.top_p == 1.0 || before < params.top_p * total;
        before += c.1;
        keep
    });
    all.retain(|c| c.1 >= params.min_p);
    let mut left = uniform(params.seed, position as u64) * all.iter().map(|c| c.1).sum::<f64>();
    let drawn = all.iter().find(|c| {
        left -= c.1;
        left < 0.0
    });
    drawn.unwrap_or(&all[all.len() - 1]).0
}

/// Logits of many shapes: flat, peaked, with many equals, with huge differences.
fn shapes(len: usize) -> Vec<Vec<f32>> {
    let uniform: Vec<f32> = ids(3, 4 * len).iter().map(|&id| (id as f32 + 0.5) / 512.0).collect();
    let of = |f: &dyn Fn(&[f32]) -> f32| uniform.chunks(4).map(f).collect::<Vec<f32>>();
    let fine = |u: &[f32]| u[0] + u[1] / 512.0;
    vec![
        of(&|u| fine(u) * 1e-3),
        of(&|u| fine(u) * 4.0 - 2.0),
        of(&|u| -fine(u).ln() * 2.0),
        of(&|u| 20.0 - 30.0 * fine(u)),
        of(&|u| (u[0] * 5.0).floor()),
        of(&|u| (u[0] - 0.5) * u[1] * 3e38),
        of(&|_| -0.0),
    ]
}

#[test]
fn draws_are_those_of_sorting_everything() {
    let mut compared = 0;
    for len in [1, 2, 40, 1500] {
        for (shape, logits) in shapes(len).iter().enumerate() {
            for temperature in [0.0, 1e-3, 0.6, 1.0, 1e3] {
                for top_k in [None, Some(1), Some(7), Some(600), Some(10_000)] {
                    for top_p in [1e-9, 0.3, 0.9, 0.999_999, 1.0] {
                        for min_p in [0.0, 1e-6, 0.2, 1.0] {
                            let seed = compared as u64;
                            let params = SamplingParams {
                                temperature,
                                top_k,
                                top_p,
                                min_p,
                                seed,
                                ..Default::default()
                            };
                            let position = compared % 5;
                            let found = sample(logits, &params, &[], position).unwrap();
                            let expected = reference(logits, &params, &[], position);
                            assert_eq!(found, expected, "{len} logits, shape {shape}, {params:?}");
                            compared += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(compared > 10_000);
}

#[test]
fn biases_and_penalties_are_what_their_definitions_say() {
    let mut changed = 0;
    for seed in 0..300u64 {
        let of = |n: u64, values: &[f64]| values[ids(seed * 8 + n, 1)[0] as usize % values.len()];
        let params = SamplingParams {
            temperature: of(0, &[0.0, 0.7, 1.0]),
            repetition_penalty: of(1, &[1.0, 1.3, 0.8, 10.0]),
            frequency_penalty: of(2, &[0.0, 0.4, -2.0]),
            presence_penalty: of(3, &[0.0, 0.9, -0.5]),
            penalty_window: [None, Some(1), Some(20), Some(1000)][ids(seed * 8 + 4, 1)[0] as usize % 4],
            logit_bias: ids(seed + 9, 3).iter().map(|&id| (id % 60, of(5, &[FORBID, -1.5, 3.0]))).collect(),
            seed,
            ..SamplingParams::default()
        };
        params.validate().unwrap();
        let logits: Vec<f32> = ids(seed, 60).iter().map(|&id| id as f32 / 64.0 - 4.0).collect();
        let history: Vec<u32> = ids(seed + 500, 40).iter().map(|id| id % 60).collect();
        let found = sample(&logits, &params, &history, 40).unwrap();
        assert_eq!(found, reference(&logits, &params, &history, 40), "{params:?}");
        changed += usize::from(found != sample(&logits, &params, &[], 40).unwrap());
    }
    assert!(changed > 30, "the history hardly ever matters: {changed}");
}

#[test]
fn penalties_by_hand() {
    let greedy = |edit: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::greedy(1);
        edit(&mut params);
        params
    };
    let logits = [2.0f32, 1.5, -1.0];
    let pick = |params: &SamplingParams, history: &[u32]| sample(&logits, params, history, 0).unwrap();
    // 2 / 1.4 is below 1.5, 2 / 1.3 is not; once is as good as often.
    let repetition = greedy(|p| p.repetition_penalty = 1.4);
    assert_eq!((pick(&repetition, &[]), pick(&repetition, &[0]), pick(&repetition, &[0, 0, 1])), (0, 1, 0));
    assert_eq!(pick(&greedy(|p| p.repetition_penalty = 1.3), &[0, 0]), 0);
    // 2 − 2 · 0.3 is below 1.5, 2 − 0.3 is not.
    let frequency = greedy(|p| p.frequency_penalty = 0.3);
    assert_eq!((pick(&frequency, &[0]), pick(&frequency, &[0, 0])), (0, 1));
    let presence = greedy(|p| p.presence_penalty = 0.6);
    assert_eq!((pick(&presence, &[0]), pick(&presence, &[0, 1, 1])), (1, 0));
    // The window looks at the last tokens.
    let window = greedy(|p| (p.presence_penalty, p.penalty_window) = (0.6, Some(2)));
    assert_eq!((pick(&window, &[0, 2, 2]), pick(&window, &[2, 0, 2])), (0, 1));
    // A negative logit is multiplied.
    let negative = greedy(|p| p.repetition_penalty = 2.0);
    assert_eq!(sample(&[-1.0, -1.5], &negative, &[0], 0).unwrap(), 1);
    let only = greedy(|p| p.logit_bias = BTreeMap::from([(2, 100.0)]));
    assert_eq!(pick(&only, &[]), 2);
}

#[test]
fn forbidden_tokens_never_come_and_something_must_be_left() {
    let logits = [3.0f32, 2.0, 1.0, 0.0];
    let forbid = |ids: &[u32], temperature| SamplingParams {
        temperature,
        top_p: 1.0,
        logit_bias: ids.iter().map(|&id| (id, FORBID)).collect(),
        frequency_penalty: -2.0,
        ..SamplingParams::default()
    };
    for temperature in [0.0, 1.0, 1e9] {
        for top_k in [None, Some(1), Some(3)] {
            let params = SamplingParams { top_k, ..forbid(&[0, 2], temperature) };
            let drawn: Vec<u32> =
                (0..200).map(|position| sample(&logits, &params, &[0, 0, 0], position).unwrap()).collect();
            assert!(drawn.iter().all(|id| [1, 3].contains(id)), "{params:?}");
        }
        match sample(&logits, &forbid(&[0, 1, 2, 3], temperature), &[], 0) {
            Err(InferError::Parameter { key: "logit_bias", .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    for (params, history) in [(forbid(&[4], 0.0), vec![]), (forbid(&[], 1.0), vec![1, 4])] {
        match sample(&logits, &params, &history, 0) {
            Err(InferError::UnknownToken { id: 4, vocab: 4 }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_engine_penalises_prompt_and_answer() {
    let engine = engine();
    let prompt = ids(2, 5);
    let plain = generate(&engine, &prompt, &SamplingParams::greedy(24));
    // Forbidding what came first gives something else, and it never comes.
    let forbidden = plain.ids[0];
    let without =
        SamplingParams { logit_bias: BTreeMap::from([(forbidden, FORBID)]), ..SamplingParams::greedy(24) };
    assert!(!generate(&engine, &prompt, &without).ids.contains(&forbidden));
    // A penalty of a hundred widths of this model's logits lets no token come twice.
    let once =
        SamplingParams { presence_penalty: 2.0, repetition_penalty: 10.0, ..SamplingParams::greedy(24) };
    let mut all = [prompt.clone(), generate(&engine, &prompt, &once).ids].concat();
    all.sort_unstable();
    assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    let unknown = SamplingParams { logit_bias: BTreeMap::from([(512, 1.0)]), ..SamplingParams::greedy(1) };
    match engine.generate(&prompt, &unknown, &mut |_| std::ops::ControlFlow::Continue(())) {
        Err(InferError::UnknownToken { id: 512, vocab: 512 }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn penalties_out_of_range_are_named_and_absent_ones_are_not_written() {
    let ok = SamplingParams::default();
    for (params, key) in [
        (SamplingParams { repetition_penalty: 0.0, ..ok.clone() }, "repetition_penalty"),
        (SamplingParams { repetition_penalty: f64::NAN, ..ok.clone() }, "repetition_penalty"),
        (SamplingParams { frequency_penalty: 2.1, ..ok.clone() }, "frequency_penalty"),
        (SamplingParams { presence_penalty: -2.1, ..ok.clone() }, "presence_penalty"),
        (SamplingParams { penalty_window: Some(0), ..ok.clone() }, "penalty_window"),
        (SamplingParams { logit_bias: BTreeMap::from([(3, f64::NAN)]), ..ok.clone() }, "logit_bias"),
        (SamplingParams { logit_bias: BTreeMap::from([(3, 100.5)]), ..ok.clone() }, "logit_bias"),
    ] {
        match params.validate() {
            Err(InferError::Parameter { key: found, .. }) => assert_eq!(found, key),
            other => panic!("{params:?}: {other:?}"),
        }
    }
    // What was written before there were penalties.
    let before =
        r#"{"temperature":0.6,"top_k":null,"top_p":0.9,"min_p":0.0,"seed":0,"max_tokens":256,"stop":[]}"#;
    assert_eq!(serde_json::to_string(&ok).unwrap(), before);
    let full = SamplingParams {
        repetition_penalty: 1.1,
        frequency_penalty: 0.5,
        presence_penalty: -0.5,
        penalty_window: Some(64),
        logit_bias: BTreeMap::from([(7, FORBID), (300, 2.5)]),
        ..ok
    };
    let text = serde_json::to_string(&full).unwrap();
    assert!(text.ends_with(r#""logit_bias":{"7":-100.0,"300":2.5}}"#), "{text}");
    assert_eq!(serde_json::from_str::<SamplingParams>(&text).unwrap(), full);
}
