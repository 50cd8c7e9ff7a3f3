//! Guessed tokens change the number of passes, and nothing else.

use std::sync::Arc;

use llamero_model::Config;
use llamero_tensor::{DType, KvFormat};

use super::{backend, bits, config, engine_of, generate, ids, model};
use crate::testing::byte_tokenizer;
use crate::{Engine, EngineOptions, Guess, InferError, SamplingParams};

fn wide() -> Config {
    Config { context: 400, ..config() }
}

/// Draws that repeat themselves, so that there is something to look up.
fn repetitive(max_tokens: usize) -> SamplingParams {
    SamplingParams { temperature: 0.02, max_tokens, seed: 1, ..SamplingParams::default() }
}

fn check(plain: &Engine, guessing: &Engine, params: &SamplingParams, prompt: &[u32]) -> (u64, u64) {
    let passes = |engine: &Engine| {
        let before = engine.counts().passes;
        let answer = generate(engine, prompt, params);
        (answer, engine.counts().passes - before)
    };
    let ((expected, of_plain), (found, of_guessing)) = (passes(plain), passes(guessing));
    assert_eq!(found.ids, expected.ids);
    assert_eq!(bits(&found.logprobs), bits(&expected.logprobs));
    assert_eq!(found.finish, expected.finish);
    (of_plain, of_guessing)
}

#[test]
fn looked_up_tokens_save_passes_over_repetitive_text() {
    for (dtype, kv) in
        [(DType::F32, KvFormat::Same), (DType::Bf16, KvFormat::Same), (DType::Bf16, KvFormat::Int8)]
    {
        let options = EngineOptions { kv, ..EngineOptions::default() };
        let plain = engine_of(&wide(), dtype).with_options(options);
        let guessing =
            engine_of(&wide(), dtype).with_options(EngineOptions { guess: Guess::Lookup, ..options });
        let prompt: Vec<u32> = ids(3, 12).repeat(6);
        for params in [SamplingParams::greedy(150), repetitive(150)] {
            let (of_plain, of_guessing) = check(&plain, &guessing, &params, &prompt);
            assert!(of_guessing * 2 < of_plain, "{dtype}: {of_guessing} passes, {of_plain} without guesses");
        }
        let counts = guessing.counts();
        assert!(counts.accepted * 2 > counts.guessed, "{counts:?}");
        assert_eq!(plain.counts().guessed, 0);
    }
}

#[test]
fn a_draft_model_saves_passes_and_changes_no_answer() {
    let target = || engine_of(&wide(), DType::F32);
    let draft_of = |layers, seed| {
        let (backend, config) = (backend(), Config { layers, ..wide() });
        let model = model(&config, &*backend, DType::F32, seed);
        Arc::new(Engine::new(model, byte_tokenizer(), backend).unwrap())
    };
    let plain = target();
    // The model itself is always right; another one hardly ever.
    for (draft, is_right) in [(draft_of(2, 1), true), (draft_of(1, 9), false)] {
        let guessing = target().with_draft(draft).unwrap();
        for (n, temperature) in [(1, 0.0), (70, 0.0), (130, 1.0), (9, 1.4)] {
            let params = SamplingParams {
                temperature,
                top_p: 1.0,
                max_tokens: 100,
                seed: n,
                ..SamplingParams::default()
            };
            let (of_plain, of_guessing) = check(&plain, &guessing, &params, &ids(n, n as usize));
            if is_right {
                assert!(of_guessing * 5 < of_plain, "{of_guessing} passes, {of_plain} without guesses");
            }
        }
        let counts = guessing.counts();
        assert!(counts.guessed > 0 && (counts.accepted == counts.guessed) == is_right, "{counts:?}");
    }
}

#[test]
fn a_draft_model_shares_the_memory_of_keys_and_values() {
    let plain = engine_of(&wide(), DType::F32);
    let draft = Arc::new(engine_of(&wide(), DType::F32));
    let kv_bytes = Some(7 * (plain.page_bytes() + draft.page_bytes()));
    let options = EngineOptions { kv_bytes, ..EngineOptions::default() };
    let guessing = engine_of(&wide(), DType::F32).with_options(options).with_draft(draft).unwrap();
    assert_eq!((guessing.desk().pages(), guessing.draft_pages().limit()), (7, 7));
    // Several that do not fit together, and one that fills everything.
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (plain, guessing) = (&plain, &guessing);
            scope.spawn(move || {
                let params = SamplingParams::greedy(120);
                let (found, expected) =
                    (generate(guessing, &ids(n, 90), &params), generate(plain, &ids(n, 90), &params));
                assert_eq!(found.ids, expected.ids);
            });
        }
    });
    check(&plain, &guessing, &SamplingParams::greedy(500), &ids(9, 30));
    assert!(guessing.counts().accepted > 0);
    assert_eq!(guessing.draft_pages().live(), 0);
}

#[test]
fn guesses_end_where_the_answer_does() {
    let params =
        |max_tokens| SamplingParams { repetition_penalty: 1.2, ..SamplingParams::greedy(max_tokens) };
    let plain = engine_of(&config(), DType::F32);
    let guessing =
        engine_of(&config(), DType::F32).with_draft(Arc::new(engine_of(&config(), DType::F32))).unwrap();
    // To the end of the context, by any number of tokens, and to a stop token.
    let prompt = ids(5, 120);
    check(&plain, &guessing, &params(500), &prompt);
    for n in 1..20 {
        check(&plain, &guessing, &params(n), &prompt);
    }
    let said = generate(&plain, &prompt, &params(30));
    let stop = SamplingParams { stop: vec![said.ids[17]], ..params(30) };
    check(&plain, &guessing, &stop, &prompt);
}

#[test]
fn a_draft_model_must_speak_the_same_tokens() {
    use llamero_tokenizer::Tokenizer;
    let mut ranks: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    ranks.push(b"ab".to_vec());
    let tokenizer = Tokenizer::from_ranks(ranks).unwrap();
    let config = Config { vocab: tokenizer.vocab_size(), ..config() };
    let backend = backend();
    let draft = Engine::new(model(&config, &*backend, DType::F32, 1), tokenizer, backend).unwrap();
    match engine_of(&super::config(), DType::F32).with_draft(Arc::new(draft)) {
        Err(InferError::Draft { model: 512, draft: 513 }) => {}
        other => panic!("{:?}", other.err()),
    }
}
