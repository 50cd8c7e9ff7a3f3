//! The sampler, alone and in an engine.

use std::ops::ControlFlow;

use super::{engine, generate, ids};
use crate::{Finish, Generation, InferError, SamplingParams, sample};

/// Logits of the probabilities ½, ¼, ⅛, 1/16, 1/16, in an order that is not theirs.
fn logits() -> Vec<f32> {
    [4.0f64, 16.0, 2.0, 8.0, 16.0].map(|p| -libm::log(p) as f32).to_vec()
}

fn draws(params: &SamplingParams, n: usize) -> Vec<usize> {
    let mut counts = vec![0; 5];
    for position in 0..n {
        counts[sample(&logits(), params, &[], position).unwrap() as usize] += 1;
    }
    counts
}

fn all() -> SamplingParams {
    SamplingParams { temperature: 1.0, top_p: 1.0, ..SamplingParams::default() }
}

#[test]
fn greedy_takes_the_lowest_of_the_likeliest() {
    let greedy = SamplingParams::greedy(1);
    for (logits, expected) in
        [(vec![1.0, 3.0, 3.0], 1), (vec![-0.0, 0.0], 0), (vec![5.0], 0), (vec![-9.0, -8.0], 1)]
    {
        assert_eq!(sample(&logits, &greedy, &[], 0).unwrap(), expected);
    }
}

#[test]
fn narrow_filters_are_greedy() {
    let ties = vec![0.5f32, 2.0, 1.0, 2.0, 2.0];
    for temperature in [0.1, 1.0, 1e9] {
        for narrow in [SamplingParams { top_k: Some(1), ..all() }, SamplingParams { top_p: 1e-12, ..all() }] {
            let narrow = SamplingParams { temperature, ..narrow };
            for position in 0..200 {
                assert_eq!(sample(&ties, &narrow, &[], position).unwrap(), 1, "{narrow:?}");
            }
        }
    }
    let only_ties = SamplingParams { min_p: 1.0, ..all() };
    assert!((0..200).all(|position| [1, 3, 4].contains(&sample(&ties, &only_ties, &[], position).unwrap())));
}

#[test]
fn tokens_come_as_often_as_they_should() {
    let n = 40_000;
    // Five standard deviations of a count are at most 500.
    for (params, shares) in [
        (all(), [0.25, 0.0625, 0.5, 0.125, 0.0625]),
        (SamplingParams { temperature: 0.5, ..all() }, [4.0, 0.25, 16.0, 1.0, 0.25].map(|w| w / 21.5)),
        (SamplingParams { top_k: Some(2), ..all() }, [1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0, 0.0]),
        // Of the two equals, the lower id.
        (SamplingParams { top_k: Some(4), ..all() }, [4.0, 1.0, 8.0, 2.0, 0.0].map(|w| w / 15.0)),
        (SamplingParams { top_p: 0.7, ..all() }, [1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0, 0.0]),
        (SamplingParams { top_p: 0.76, ..all() }, [2.0 / 7.0, 0.0, 4.0 / 7.0, 1.0 / 7.0, 0.0]),
        (SamplingParams { min_p: 0.24, ..all() }, [2.0 / 7.0, 0.0, 4.0 / 7.0, 1.0 / 7.0, 0.0]),
        // top_p looks at what top_k left: ½ of ⅞ is less than 0.6, ¾ of ⅞ is more.
        (SamplingParams { top_k: Some(3), top_p: 0.6, ..all() }, [1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0, 0.0]),
    ] {
        for (id, (&count, share)) in draws(&params, n).iter().zip(shares).enumerate() {
            assert!((count as f64 - share * n as f64).abs() <= 500.0, "{params:?}: {count} of token {id}");
            assert!(share > 0.0 || count == 0, "{params:?}: {count} of token {id}");
        }
    }
}

#[test]
fn the_short_cut_for_large_vocabularies_keeps_the_nucleus() {
    // Against a nucleus of the whole, sorted vocabulary.
    let logits: Vec<f32> = ids(7, 5000).iter().map(|&id| id as f32 * 0.03).collect();
    for top_p in [0.01, 0.5, 0.9, 0.999] {
        let mut sorted: Vec<(f64, u32)> =
            (0u32..).zip(&logits).map(|(id, &x)| (libm::exp(f64::from(x)), id)).collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let total: f64 = sorted.iter().map(|c| c.0).sum();
        let mut sum = 0.0;
        let end = sorted.iter().position(|c| {
            sum += c.0;
            sum >= top_p * total
        });
        let nucleus: Vec<u32> = sorted[..=end.unwrap()].iter().map(|c| c.1).collect();
        let params = SamplingParams { top_p, ..all() };
        let drawn: Vec<u32> =
            (0..3000).map(|position| sample(&logits, &params, &[], position).unwrap()).collect();
        assert!(drawn.iter().all(|id| nucleus.contains(id)), "top_p {top_p}");
        // The far half of the nucleus is reached too.
        let far = &nucleus[nucleus.len() / 2..];
        assert!(drawn.iter().any(|id| far.contains(id)), "top_p {top_p}");
    }
}

#[test]
fn a_draw_depends_on_seed_and_position_only() {
    let sequence = |seed| {
        let params = SamplingParams { seed, ..all() };
        (0..64).map(|position| sample(&logits(), &params, &[], position).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(sequence(1), sequence(1));
    assert_ne!(sequence(1), sequence(2));
    // Neighbouring seeds are not shifted copies of each other.
    assert_ne!(sequence(1)[1..], sequence(2)[..63]);
    assert_ne!(sequence(2)[1..], sequence(1)[..63]);
}

#[test]
fn an_engine_repeats_itself_for_a_seed() {
    let engine = engine();
    let prompt = ids(2, 5);
    let greedy = generate(&engine, &prompt, &SamplingParams::greedy(16));
    // What was cached by then is the only difference.
    let said = |params: &SamplingParams| Generation { cached: 0, ..generate(&engine, &prompt, params) };
    assert_eq!(said(&SamplingParams { seed: 5, ..SamplingParams::greedy(16) }), greedy);
    let hot = |seed| SamplingParams { seed, max_tokens: 16, ..all() };
    assert_eq!(said(&hot(1)), said(&hot(1)));
    assert_ne!(generate(&engine, &prompt, &hot(1)).ids, generate(&engine, &prompt, &hot(2)).ids);
    let narrow = SamplingParams { top_k: Some(1), ..hot(3) };
    assert_eq!(generate(&engine, &prompt, &narrow).ids, greedy.ids);
    // Greedy means the likeliest: no other first token has a higher log-probability.
    let best =
        (0..512).map(|id| engine.score_continuation(&prompt, &[id]).unwrap()[0]).fold(f32::MIN, f32::max);
    assert_eq!(greedy.logprobs[0], best);
}

#[test]
fn a_generation_goes_on_where_a_shorter_one_ended() {
    let engine = engine();
    let prompt = ids(2, 5);
    let params = |max_tokens| SamplingParams { max_tokens, seed: 3, ..all() };
    let long = generate(&engine, &prompt, &params(20));
    let short = generate(&engine, &prompt, &params(8));
    assert_eq!(short.ids, long.ids[..8]);
    let rest = generate(&engine, &[prompt, short.ids].concat(), &params(12));
    assert_eq!(rest.ids, long.ids[8..]);
}

#[test]
fn stop_tokens_end_and_are_not_streamed() {
    let engine = engine();
    let prompt = ids(2, 5);
    let free = generate(&engine, &prompt, &SamplingParams { max_tokens: 20, ..all() });
    let stop = free.ids[6];
    let first = free.ids.iter().position(|&id| id == stop).unwrap();
    let params = SamplingParams { max_tokens: 20, stop: vec![511, stop], ..all() };
    let mut streamed = Vec::new();
    let stopped = engine
        .generate(&prompt, &params, &mut |id| {
            streamed.push(id);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((stopped.finish, stopped.ids.as_slice()), (Finish::Stop, &free.ids[..=first]));
    assert_eq!((streamed.as_slice(), stopped.content()), (&free.ids[..first], &free.ids[..first]));
    assert_eq!(stopped.logprobs, free.logprobs[..=first]);

    let mut left = 3;
    let cancelled = engine
        .generate(&prompt, &SamplingParams { max_tokens: 20, ..all() }, &mut |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((cancelled.finish, cancelled.ids.as_slice()), (Finish::Cancelled, &free.ids[..3]));
    assert_eq!(cancelled.content(), cancelled.ids);
}

#[test]
fn parameters_out_of_range_are_named() {
    let ok = SamplingParams::default();
    ok.validate().unwrap();
    assert_eq!((ok.temperature, ok.top_p), (0.6, 0.9));
    for (params, key) in [
        (SamplingParams { temperature: -0.1, ..ok.clone() }, "temperature"),
        (SamplingParams { temperature: f64::NAN, ..ok.clone() }, "temperature"),
        (SamplingParams { temperature: f64::INFINITY, ..ok.clone() }, "temperature"),
        (SamplingParams { top_k: Some(0), ..ok.clone() }, "top_k"),
        (SamplingParams { top_p: 0.0, ..ok.clone() }, "top_p"),
        (SamplingParams { top_p: 1.01, ..ok.clone() }, "top_p"),
        (SamplingParams { top_p: f64::NAN, ..ok.clone() }, "top_p"),
        (SamplingParams { min_p: -0.1, ..ok.clone() }, "min_p"),
        (SamplingParams { min_p: 1.1, ..ok.clone() }, "min_p"),
        (SamplingParams { max_tokens: 0, ..ok.clone() }, "max_tokens"),
    ] {
        match params.validate() {
            Err(InferError::Parameter { key: found, .. }) => assert_eq!(found, key),
            other => panic!("{params:?}: {other:?}"),
        }
    }
    assert!(serde_json::from_str::<SamplingParams>(r#"{"temprature": 1}"#).is_err());
    let read: SamplingParams = serde_json::from_str(r#"{"temperature": 0.0}"#).unwrap();
    assert_eq!(read, SamplingParams::greedy(256));
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = logits();
        logits[3] = value;
        for params in [SamplingParams::greedy(1), all()] {
            match sample(&logits, &params, &[], 17) {
                Err(InferError::NonFinite { id: 3, position: 17, .. }) => {}
                other => panic!("{value}: {other:?}"),
            }
        }
    }
}
