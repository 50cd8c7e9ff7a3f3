//! An answer is the same alone and in any company.

use std::sync::Arc;
use std::sync::mpsc::channel;

use llamero_cpu::Cpu;
use llamero_model::gguf::Writer;
use llamero_model::{Config, StopTokens, hf, weights};
use llamero_tensor::{DType, Encoding, KvFormat};

use super::{backend, bits, config, engine_of, engine_on, ids, model};
use crate::request::Cancel;
use crate::scheduler::Job;
use crate::testing::byte_tokenizer;
use crate::{
    Engine, EngineOptions, Event, Generation, Guess, Logprobs, Request, SamplingParams, Task, gguf_vocabulary,
};

const REQUESTS: usize = 64;

fn wide() -> Config {
    Config { context: 420, ..config() }
}

fn engine(dtype: DType, options: EngineOptions) -> Engine {
    engine_of(&wide(), dtype).with_options(options)
}

/// Room for so many pages, half of them for later requests.
fn pages(engine: Engine, pages: u64) -> Engine {
    let (kv_bytes, prefix_bytes) = (Some(pages * engine.page_bytes()), Some(engine.page_bytes() * pages / 2));
    let options = EngineOptions { kv_bytes, prefix_bytes, ..*engine.options() };
    engine.with_options(options)
}

/// Mixed lengths, greedy and sampled, with and without penalties; a third begins alike, some are equal.
fn requests() -> Vec<Request> {
    let shared = ids(77, 150);
    let request = |n: usize| {
        let mut prompt = if n.is_multiple_of(3) { shared[..(n * 7) % 150 + 1].to_vec() } else { Vec::new() };
        prompt.extend(ids((n % 50) as u64, 1 + (n * 37) % 170));
        let max_tokens = 1 + (n * 29) % 90;
        let params = match n % 4 {
            0 => SamplingParams::greedy(max_tokens),
            1 => SamplingParams {
                temperature: 1.5,
                top_p: 1.0,
                max_tokens,
                seed: n as u64,
                ..SamplingParams::default()
            },
            2 => SamplingParams { temperature: 0.8, max_tokens, seed: n as u64, ..SamplingParams::default() },
            _ => SamplingParams { repetition_penalty: 1.3, ..SamplingParams::greedy(max_tokens) },
        };
        let logprobs = if n.is_multiple_of(5) { Logprobs::EachToken } else { Logprobs::AtEnd };
        let task = Task::Generate { params, logprobs, guess: Guess::Off };
        Request { ids: prompt, task, priority: (n % 7) as i32 / 3, stream: n.is_multiple_of(2) }
    };
    (0..REQUESTS).map(request).collect()
}

/// Answers of requests that come at the same time.
fn together(engine: &Engine, requests: &[Request]) -> Vec<Generation> {
    let submit = |request: &Request| {
        engine.check(request).unwrap();
        let (sender, events) = channel();
        (Job::new(request.clone(), engine.context(), sender, Cancel::default()), events)
    };
    let (jobs, events): (Vec<_>, Vec<_>) = requests.iter().map(submit).unzip();
    engine.desk().submit(jobs);
    let mut answers = Vec::new();
    for events in events {
        let mut streamed = Vec::new();
        answers.push(loop {
            match engine.next_event(&events) {
                Event::Token { id, logprob } => streamed.push((id, logprob)),
                Event::Done(generation) => break generation,
                other => panic!("{other:?}"),
            }
        });
        let answer = &answers[answers.len() - 1];
        for (n, (id, logprob)) in streamed.into_iter().enumerate() {
            assert_eq!(id, answer.ids[n]);
            assert!(logprob.is_none_or(|x| x.to_bits() == answer.logprobs[n].to_bits()));
        }
    }
    answers
}

fn same(found: &[Generation], expected: &[Generation], what: &str) {
    for (n, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.ids, expected.ids, "{what}, request {n}");
        assert_eq!(bits(&found.logprobs), bits(&expected.logprobs), "{what}, request {n}");
        assert_eq!(found.finish, expected.finish, "{what}, request {n}");
    }
}

/// Checks engines over the model that `open` opens.
fn check(kv: KvFormat, open: &dyn Fn() -> Engine) {
    let engine = |options| open().with_options(options);
    let requests = requests();
    let plain = EngineOptions { kv, prefix_bytes: Some(0), ..EngineOptions::default() };
    let solo = engine(plain);
    let alone: Vec<Generation> =
        requests.iter().flat_map(|request| together(&solo, std::slice::from_ref(request))).collect();
    assert_eq!(solo.counts().cached, 0);
    if kv == KvFormat::Same {
        for (request, answer) in requests.iter().zip(&alone) {
            let whole = [request.ids.as_slice(), &answer.ids].concat();
            let nll = solo.score_tokens(&whole).unwrap();
            let scores: Vec<f32> = nll[request.ids.len() - 1..].iter().map(|x| -x).collect();
            assert_eq!(bits(&answer.logprobs), bits(&scores));
        }
    }

    let batch = engine(plain);
    same(&together(&batch, &requests), &alone, "all together");
    assert!(batch.counts().passes < solo.counts().passes / 10, "{:?}", batch.counts());

    let shared = engine(EngineOptions { prefix_bytes: Some(u64::MAX), rows: 100, ..plain });
    same(&together(&shared, &requests), &alone, "with shared beginnings");
    let first = shared.counts();
    same(&together(&shared, &requests), &alone, "with everything cached");
    assert!(first.cached > 0 && shared.counts().cached > 2 * first.cached, "{:?}", shared.counts());

    // What was taken is saved, or read again.
    for host_bytes in [Some(u64::MAX), Some(0)] {
        let narrow = pages(engine(EngineOptions { rows: 40, host_bytes, ..plain }), 14);
        same(&together(&narrow, &requests), &alone, "pre-empted");
        let counts = narrow.counts();
        assert!(counts.preemptions > 10 && counts.cached > 0 && counts.peak_pages <= 14, "{counts:?}");
    }
}

fn check_plain(dtype: DType, kv: KvFormat) {
    check(kv, &|| engine_of(&wide(), dtype));
}

#[test]
fn f32_answers_do_not_depend_on_other_requests() {
    check_plain(DType::F32, KvFormat::Same);
}

#[test]
fn bf16_answers_do_not_depend_on_other_requests() {
    check_plain(DType::Bf16, KvFormat::Same);
}

#[test]
fn answers_over_8_bit_pages_do_not_depend_on_other_requests() {
    check_plain(DType::F32, KvFormat::Int8);
    check_plain(DType::Bf16, KvFormat::Int8);
}

#[test]
fn answers_of_quantised_weights_do_not_depend_on_other_requests() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, tokenizer) = (backend(), byte_tokenizer());
    let config = Config { dim: 64, head_dim: 16, ffn: 96, ..wide() };
    let stop = StopTokens { begin_of_text: Some(256), stop: vec![] };
    hf::save(dir.path(), &model(&config, &*backend, DType::F32, 1), &*backend, &stop).unwrap();
    let weights = weights::open(dir.path()).unwrap();
    for encoding in [Encoding::Q4_1, Encoding::Q8_0] {
        let path = dir.path().join("model.gguf");
        let vocabulary = gguf_vocabulary(&tokenizer, 512).unwrap();
        Writer::new(&*weights, encoding, 1).describe("tiny", vocabulary).write(&path).unwrap();
        check(KvFormat::Same, &|| Engine::open(&path, Arc::clone(&backend), None).unwrap());
        let on = |threads| Engine::open(&path, Arc::new(Cpu::new(threads).unwrap()), None).unwrap();
        let expected = together(&on(2), &requests());
        for threads in [1, 3] {
            let what = format!("{encoding:?} on {threads} threads");
            same(&together(&on(threads), &requests()), &expected, &what);
        }
    }
}

#[test]
fn answers_do_not_depend_on_threads() {
    let requests = requests();
    for (dtype, kv) in
        [(DType::F32, KvFormat::Same), (DType::Bf16, KvFormat::Same), (DType::Bf16, KvFormat::Int8)]
    {
        let options = EngineOptions { kv, ..EngineOptions::default() };
        let of = |threads| together(&engine_on(threads, &wide(), dtype).with_options(options), &requests);
        let expected = of(2);
        for threads in [1, 3] {
            same(&of(threads), &expected, &format!("{dtype} {kv:?} on {threads} threads"));
        }
    }
}

#[test]
fn pages_of_8_bits_change_answers_a_little() {
    let requests = &requests()[..8];
    let of = |kv| together(&engine(DType::F32, EngineOptions { kv, ..EngineOptions::default() }), requests);
    let (exact, rounded) = (of(KvFormat::Same), of(KvFormat::Int8));
    let first = |answers: &[Generation]| answers.iter().map(|a| a.logprobs[0]).collect::<Vec<_>>();
    assert_ne!(bits(&first(&exact)), bits(&first(&rounded)));
    for (a, b) in first(&exact).into_iter().zip(first(&rounded)) {
        assert!((a - b).abs() < 0.05, "{a} {b}");
    }
}

#[test]
fn threads_that_generate_at_once_share_passes() {
    let engine = engine(DType::F32, EngineOptions::default());
    let expected: Vec<Generation> =
        requests()[..8].iter().flat_map(|r| together(&engine, std::slice::from_ref(r))).collect();
    let engine = self::engine(DType::F32, EngineOptions::default());
    let found: Vec<Generation> = std::thread::scope(|scope| {
        let threads: Vec<_> = requests()
            .into_iter()
            .take(8)
            .map(|request| {
                let engine = &engine;
                scope.spawn(move || {
                    let Task::Generate { params, .. } = request.task else { unreachable!() };
                    engine
                        .generate(&request.ids, &params, &mut |_| std::ops::ControlFlow::Continue(()))
                        .unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    same(&found, &expected, "from threads");
}
