//! Training, scoring and decoding compute the same bits.

use llamero_autograd::Tape;
use llamero_cpu::Cpu;
use llamero_model::{Config, Input, Recompute};
use llamero_tensor::{Backend, DType, Segments};

use super::{CONTEXT, bits, config, engine, engine_of, generate, ids, model};
use crate::{Finish, Lm, SamplingParams};

/// Models that differ in what could make a difference: dtype, a table that is look-up and output in one, and sizes that
/// span several tiles and blocks of a kernel and leave remainders.
fn variants() -> Vec<(Config, DType)> {
    let tied = Config { tied: true, ..config() };
    let odd = Config { dim: 78, heads: 6, kv_heads: 3, head_dim: 14, ffn: 203, layers: 1, ..config() };
    vec![
        (config(), DType::F32),
        (config(), DType::Bf16),
        (tied, DType::F32),
        (odd.clone(), DType::F32),
        (odd, DType::Bf16),
    ]
}

/// The losses of training, on one thread: a recording tape over the model before it is arranged for inference.
fn training_nll(config: &Config, dtype: DType, tokens: &[u32]) -> Vec<f32> {
    let backend = Cpu::new(1).unwrap();
    let model = model(config, &backend, dtype, 1);
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let segments = Segments::documents([inputs.len()]);
    let mut tape = Tape::record(&backend);
    let h = model.forward(&mut tape, Input::Tokens(inputs), &segments, Recompute::Nothing);
    let nll = tape.linear_cross_entropy(h, model.head().unwrap(), targets);
    backend.download(nll.value())
}

#[test]
fn scores_are_those_of_training() {
    for (config, dtype) in variants() {
        let tokens = ids(5, 90);
        let expected = training_nll(&config, dtype, &tokens);
        let found = engine_of(&config, dtype).score_tokens(&tokens).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{dtype}, tied {}", config.tied);
    }
}

#[test]
fn long_windows_are_read_in_chunks_with_the_same_scores() {
    let config = Config { context: 1500, layers: 1, ..config() };
    for dtype in [DType::F32, DType::Bf16] {
        let engine = engine_of(&config, dtype);
        for len in [1025, 1026, 1500] {
            let tokens = ids(5, len);
            let expected = bits(&training_nll(&config, dtype, &tokens));
            assert_eq!(bits(&engine.score_tokens(&tokens).unwrap()), expected, "{len} tokens, {dtype}");
            let scores = engine.score(&tokens[..1100.min(len - 7)], &tokens[1100.min(len - 7)..]).unwrap();
            let nll: Vec<f32> = scores.iter().map(|x| -x).collect();
            assert_eq!(bits(&nll), expected[expected.len() - nll.len()..], "{len} tokens, {dtype}");
        }
    }
}

#[test]
fn log_probabilities_of_sampling_are_those_of_training() {
    for (config, dtype) in variants() {
        let engine = engine_of(&config, dtype);
        for (prompt_len, chunk) in [(1, 1), (2, 8), (7, 3), (64, 64), (65, 16), (100, 7), (100, 512)] {
            let engine = engine_of(&config, dtype).with_prefill_chunk(chunk);
            let prompt = ids(prompt_len as u64, prompt_len);
            let params =
                SamplingParams { temperature: 1.3, max_tokens: 12, seed: 9, ..SamplingParams::default() };
            let answer = generate(&engine, &prompt, &params);
            assert_eq!((answer.ids.len(), answer.finish), (12, Finish::Length));
            let whole = [prompt.as_slice(), &answer.ids].concat();
            let nll = training_nll(&config, dtype, &whole);
            let expected: Vec<f32> = nll[prompt_len - 1..].iter().map(|x| -x).collect();
            assert_eq!(
                bits(&answer.logprobs),
                bits(&expected),
                "prompt {prompt_len}, chunk {chunk}, {dtype}"
            );
        }
        // The chunk does not change what is said either.
        let prompt = ids(8, 50);
        let params = SamplingParams { max_tokens: 20, ..SamplingParams::default() };
        let expected = generate(&engine, &prompt, &params);
        for chunk in [1, 13, 49, 50] {
            let other = engine_of(&config, dtype).with_prefill_chunk(chunk);
            assert_eq!(generate(&other, &prompt, &params), expected, "chunk {chunk}");
        }
    }
}

#[test]
fn what_is_cached_does_not_change_an_answer() {
    let engine = engine();
    let params = SamplingParams { max_tokens: 10, seed: 4, ..SamplingParams::default() };
    let first = ids(1, 60);
    // Continues the first, differs from it early, is a beginning of it, is equal, has nothing in common.
    let mut other = first.clone();
    other[17] ^= 1;
    let nothing: Vec<u32> = first.iter().map(|id| id ^ 1).collect();
    let longer = [first.as_slice(), &ids(2, 30)].concat();
    let cases = [(longer, 60), (other, 17), (first[..30].to_vec(), 29), (first.clone(), 59), (nothing, 0)];
    generate(&engine, &first, &params);
    for (i, (prompt, at_least)) in cases.into_iter().enumerate() {
        let cached = generate(&engine, &prompt, &params);
        let fresh = generate(&super::engine(), &prompt, &params);
        assert_eq!(cached.ids, fresh.ids, "case {i}");
        assert_eq!(bits(&cached.logprobs), bits(&fresh.logprobs), "case {i}");
        assert!(cached.cached >= at_least, "case {i}: {}", cached.cached);
        assert_eq!(fresh.cached, 0);
    }
}

#[test]
fn documents_scored_together_are_scored_as_alone() {
    let engine = engine();
    // Lengths of which some pack into one pass and some need windows.
    let documents: Vec<Vec<u32>> =
        [2, 160, 161, 162, 500, 3, 90, 400, 2, 700].map(|n| ids(n as u64, n)).to_vec();
    let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    let together = engine.score_batch(&slices).unwrap();
    for (ids, found) in slices.iter().zip(&together) {
        assert_eq!(found.len(), ids.len() - 1);
        assert_eq!(bits(found), bits(&engine.score_tokens(ids).unwrap()), "{} tokens", ids.len());
    }
}

#[test]
fn windows_read_what_they_say() {
    let engine = engine();
    let tokens = ids(3, CONTEXT * 2 + 20);
    let found = engine.score_tokens(&tokens).unwrap();
    let expected = [
        engine.score_tokens(&tokens[..CONTEXT + 1]).unwrap(),
        engine.score_tokens(&tokens[CONTEXT / 2..CONTEXT * 3 / 2 + 1]).unwrap()[CONTEXT / 2..].to_vec(),
        engine.score_tokens(&tokens[CONTEXT..CONTEXT * 2 + 1]).unwrap()[CONTEXT / 2..].to_vec(),
        engine.score_tokens(&tokens[CONTEXT * 3 / 2..]).unwrap()[CONTEXT / 2..].to_vec(),
    ];
    assert_eq!(bits(&found), bits(&expected.concat()));
}

#[test]
fn choices_are_scored_as_continuations() {
    let engine = engine();
    let prompt = ids(6, 30);
    let choices = [ids(1, 1), ids(2, 9), ids(3, 2), ids(2, 9), ids(4, 80)];
    let found = engine.choose(&prompt, &choices).unwrap();
    for (choice, &found) in choices.iter().zip(&found) {
        let scores = engine.score(&prompt, choice).unwrap();
        assert_eq!(scores.len(), choice.len());
        let nll = training_nll(&config(), DType::F32, &[prompt.as_slice(), choice].concat());
        let expected: Vec<f32> = nll[prompt.len() - 1..].iter().map(|x| -x).collect();
        assert_eq!(bits(&scores), bits(&expected));
        assert_eq!(found, scores.iter().map(|&x| f64::from(x)).sum::<f64>());
    }
    assert_eq!(found[1], found[3]);
    // Everything is cached now.
    assert_eq!(engine.choose(&prompt, &choices).unwrap(), found);
}

#[test]
fn a_text_is_scored_from_the_beginning_of_text() {
    let engine = engine();
    let text = "Grüße, Lama!";
    let score = engine.score_text(text).unwrap();
    let mut ids = Vec::from_iter(engine.tokenizer().special().begin_of_text);
    ids.extend(engine.tokenizer().encode(text));
    let nll: f64 = engine.score_tokens(&ids).unwrap().iter().map(|&x| f64::from(x)).sum();
    assert_eq!((score.tokens, score.bytes, score.nll), (ids.len() - 1, text.len(), nll));
    // A byte is a token here: the bits per byte are those per token, near the 9 bits of guessing among 512.
    assert_eq!(score.bits_per_byte, nll / std::f64::consts::LN_2 / text.len() as f64);
    assert!((8.0..11.0).contains(&score.bits_per_byte), "{score:?}");
    let json = serde_json::to_value(score).unwrap();
    for key in ["tokens", "nll", "bits_per_byte"] {
        assert!(json[key].is_number(), "{key}");
    }
}
