//! Requests over channels.

use std::sync::Arc;
use std::time::Duration;

use llamero_model::Config;
use llamero_tensor::DType;

use super::{CONTEXT, bits, config, engine, engine_of, generate, ids};
use crate::{EngineOptions, Event, Finish, InferError, Logprobs, Request, SamplingParams, Service, Task};

fn service() -> Service {
    Service::start(Arc::new(engine())).unwrap()
}

#[test]
fn a_service_says_what_the_engine_says() {
    let service = service();
    let params = SamplingParams { max_tokens: 20, seed: 3, ..SamplingParams::default() };
    let prompts: Vec<Vec<u32>> = (1..12).map(|n| ids(n, 9 * n as usize)).collect();
    let handles: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let mut request = Request::generate(prompt.clone(), params.clone());
            if let Task::Generate { logprobs, .. } = &mut request.task {
                *logprobs = Logprobs::EachToken;
            }
            service.submit(request).unwrap()
        })
        .collect();
    let engine = engine();
    for (prompt, handle) in prompts.iter().zip(handles) {
        let expected = generate(&engine, prompt, &params);
        let mut events: Vec<Event> = handle.collect();
        match events.pop() {
            Some(Event::Done(answer)) => {
                assert_eq!((&answer.ids, answer.finish), (&expected.ids, Finish::Length));
                assert_eq!(bits(&answer.logprobs), bits(&expected.logprobs));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(events.len(), 20);
    }
    let scored = service.submit(Request::score(prompts[3].clone(), 10)).unwrap().next_event();
    let expected = engine.score_continuation(&prompts[3][..10], &prompts[3][10..]).unwrap();
    match scored {
        Some(Event::Scored(scores)) => assert_eq!(bits(&scores), bits(&expected)),
        other => panic!("{other:?}"),
    }
    // A caller in its own thread meets the same scheduler.
    assert_eq!(
        generate(service.engine(), &prompts[0], &params).ids,
        generate(&engine, &prompts[0], &params).ids
    );
}

#[test]
fn what_cannot_be_done_is_said_at_once() {
    let small = engine_of(&config(), DType::F32);
    let kv_bytes = Some(2 * small.page_bytes());
    let service =
        Service::start(Arc::new(small.with_options(EngineOptions { kv_bytes, ..EngineOptions::default() })))
            .unwrap();
    let fails = |request| service.submit(request).err().unwrap();
    let greedy = SamplingParams::greedy;
    assert!(matches!(fails(Request::generate(vec![], greedy(3))), InferError::EmptyPrompt));
    assert!(matches!(fails(Request::generate(ids(1, CONTEXT), greedy(3))), InferError::TooLong { .. }));
    assert!(matches!(fails(Request::generate(vec![512], greedy(3))), InferError::UnknownToken { .. }));
    assert!(matches!(fails(Request::score(ids(1, 5), 0)), InferError::EmptyPrompt));
    assert!(matches!(fails(Request::score(ids(1, 5), 5)), InferError::NothingToScore { .. }));
    let error = fails(Request::generate(ids(1, 100), greedy(30)));
    match error {
        InferError::Memory { tokens: 129, needed, limit } => {
            assert_eq!((needed, Some(limit)), (limit / 2 * 3, kv_bytes))
        }
        other => panic!("{other:?}"),
    }
    // What just fits waits for its turn.
    let handles: Vec<_> =
        (0..5).map(|n| service.submit(Request::generate(ids(n, 100), greedy(29))).unwrap()).collect();
    for handle in handles {
        assert!(matches!(handle.last(), Some(Event::Done(answer)) if answer.ids.len() == 29));
    }
}

#[test]
fn a_request_can_be_cancelled_and_a_service_stopped() {
    let service = service();
    let long = || Request::generate(ids(1, 4), SamplingParams::greedy(150));
    let mut first = service.submit(long()).unwrap();
    assert!(matches!(first.next_event(), Some(Event::Token { .. })));
    first.cancel();
    match first.by_ref().last() {
        Some(Event::Done(answer)) => assert!(answer.finish == Finish::Cancelled || answer.ids.len() == 150),
        other => panic!("{other:?}"),
    }
    assert!(first.next_event().is_none());
    drop(service.submit(long()).unwrap());
    let handles: Vec<_> = (0..20).map(|_| service.submit(long()).unwrap()).collect();
    let engine = Arc::clone(service.engine());
    drop(service);
    for handle in handles {
        assert!(matches!(handle.last(), Some(Event::Done(_))));
    }
    // The engine itself goes on.
    assert_eq!(generate(&engine, &ids(1, 4), &SamplingParams::greedy(5)).ids.len(), 5);
}

#[test]
fn a_service_that_stops_during_a_pass_of_others_still_tells_its_callers() {
    const PROMPT: usize = 3000;
    let engine = engine_of(&Config { context: PROMPT + 1, ..config() }, DType::F32);
    let options = EngineOptions { rows: PROMPT, prefix_bytes: Some(0), ..EngineOptions::default() };
    let engine = Arc::new(engine.with_options(options));
    for round in 0..5 {
        let service = Service::start(Arc::clone(&engine)).unwrap();
        let mut handle = std::thread::scope(|scope| {
            // One long pass, which is its last one.
            let other = scope.spawn(|| generate(&engine, &ids(round, PROMPT), &SamplingParams::greedy(1)));
            while !engine.desk().is_busy() && !other.is_finished() {
                std::thread::yield_now();
            }
            let handle = service.submit(Request::generate(ids(1, 4), SamplingParams::greedy(5))).unwrap();
            drop(service);
            handle
        });
        let mut last = None;
        while let Some(event) = handle.next_event_within(Duration::ZERO) {
            last = Some(event);
        }
        assert!(matches!(last, Some(Event::Done(_))), "round {round}: {last:?}");
    }
}
