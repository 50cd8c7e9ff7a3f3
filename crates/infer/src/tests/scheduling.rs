//! The scheduler over a scripted model, whose pages hold the tokens themselves.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use llamero_comm::CommError;
use llamero_tensor::{DType, KV_PAGE, Shape, Tensor};

use crate::cache::Part;
use crate::draft::DraftSession;
use crate::request::Cancel;
use crate::scheduler::{Available, Job, Limits, Model, Output, Scheduler};
use crate::{Event, Finish, Generation, Guess, Logprobs, Request, SamplingParams, Task};

const VOCAB: u64 = 11;
const CONTEXT: usize = 600;

/// Its next token is a hash of all tokens that it finds in the pages of a sequence.
struct Script;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(ids: impl IntoIterator<Item = u32>) -> u64 {
    ids.into_iter().fold(7, |hash, id| mix(hash.wrapping_mul(31).wrapping_add(u64::from(id))))
}

fn next_of(hash: u64) -> u32 {
    (mix(hash) % VOCAB) as u32
}

fn score_of(hash: u64, target: u32) -> f32 {
    (mix(hash ^ u64::from(target)) >> 40) as f32
}

fn page(ids: Vec<u32>) -> Tensor {
    Tensor::from_storage(Shape::new(1, KV_PAGE), DType::F32, ids)
}

fn hashes(rows: Vec<u64>) -> Tensor {
    Tensor::from_storage(Shape::new(rows.len(), 1), DType::F32, rows)
}

fn ids_of(page: &Tensor) -> &Vec<u32> {
    page.storage().unwrap()
}

impl Model for Script {
    fn new_page(&self) -> Tensor {
        page(vec![u32::MAX; KV_PAGE])
    }

    fn copy_page(&self, from: &Tensor) -> Tensor {
        page(ids_of(from).clone())
    }

    fn save_page(&self, page: &Tensor) -> Bytes {
        ids_of(page).iter().flat_map(|id| id.to_le_bytes()).collect()
    }

    fn restore_page(&self, saved: &Bytes) -> Tensor {
        page(saved.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    fn read(&self, parts: &mut [Part<'_>]) -> Result<Output, CommError> {
        let (mut hidden, mut logits) = (Vec::new(), Vec::new());
        for part in parts {
            for (i, id) in part.ids.iter().enumerate() {
                let at = part.sequence.len;
                let page = part.sequence.pages[at / KV_PAGE].tensor_mut();
                page.storage_mut::<Vec<u32>>().unwrap()[at % KV_PAGE] = *id;
                part.sequence.len += 1;
                if i + part.wanted >= part.ids.len() {
                    let all = part.sequence.pages.iter().flat_map(|page| ids_of(page.tensor()));
                    let hash = hash(all.take(part.sequence.len).copied());
                    hidden.push(hash);
                    let next = next_of(hash);
                    logits.extend(
                        (0..VOCAB as u32).filter(|_| part.logits).map(|id| f32::from(u8::from(id == next))),
                    );
                }
            }
        }
        Ok(Output { hidden: hashes(hidden), logits })
    }

    fn keep(&self, hidden: &Tensor, rows: Range<usize>) -> Tensor {
        hashes(hidden.storage::<Vec<u64>>().unwrap()[rows].to_vec())
    }

    fn nll(&self, hidden: &[Tensor], targets: &[u32]) -> Vec<f32> {
        let hashes = hidden.iter().flat_map(|rows| rows.storage::<Vec<u64>>().unwrap());
        hashes.zip(targets).map(|(hash, target)| score_of(*hash, *target)).collect()
    }

    /// Often right, and otherwise the token after.
    fn guess(&self, _: &mut DraftSession, ids: &[u32], _: &SamplingParams, most: usize) -> Vec<u32> {
        let mut ids = ids.to_vec();
        let given = ids.len();
        for _ in 0..most {
            let hash = hash(ids.iter().copied());
            let wrong = u32::from(hash.is_multiple_of(4));
            ids.push((next_of(hash) + wrong) % VOCAB as u32);
        }
        ids.split_off(given)
    }
}

/// What a request must come to.
fn expected(request: &Request) -> (Vec<u32>, Vec<f32>) {
    let mut ids = request.ids.clone();
    let after = |ids: &[u32]| hash(ids.iter().copied());
    match &request.task {
        Task::Generate { params, .. } => {
            let mut logprobs = Vec::new();
            while ids.len() < CONTEXT && logprobs.len() < params.max_tokens {
                let hash = after(&ids);
                let id = next_of(hash);
                logprobs.push(-score_of(hash, id));
                ids.push(id);
                if params.stop.contains(&id) {
                    break;
                }
            }
            (ids.split_off(request.ids.len()), logprobs)
        }
        Task::Score { from } => {
            let scores = (*from..ids.len()).map(|at| -score_of(after(&ids[..at]), ids[at])).collect();
            (Vec::new(), scores)
        }
    }
}

/// A stream of random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) % n as u64) as usize
    }
}

fn generate(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request::generate(prompt, SamplingParams::greedy(max_tokens))
}

fn random_request(random: &mut Random) -> Request {
    // Few roots, so that many begin alike, and a prompt may be the whole of another.
    let (root, shared, own) = (random.below(3) as u32, random.below(200), random.below(60));
    let mut ids: Vec<u32> = (0..=shared as u32).map(|i| (i * (root + 1)) % VOCAB as u32).collect();
    ids.extend((0..own).map(|_| random.below(VOCAB as usize) as u32));
    let priority = random.below(3) as i32;
    if random.below(4) == 0 && ids.len() > 1 {
        let from = 1 + random.below(ids.len() - 1);
        return Request { priority, ..Request::score(ids, from) };
    }
    let stop = if random.below(3) == 0 { vec![random.below(VOCAB as usize) as u32] } else { Vec::new() };
    let params = SamplingParams { stop, ..SamplingParams::greedy(1 + random.below(150)) };
    let logprobs = [Logprobs::Off, Logprobs::AtEnd, Logprobs::EachToken][random.below(3)];
    let guess = [Guess::Off, Guess::Lookup, Guess::Draft][random.below(3)];
    let task = Task::Generate { params, logprobs, guess };
    Request { ids, task, priority, stream: random.below(2) == 0 }
}

/// A request under way, and the step at which its caller leaves, if it does.
struct Caller {
    request: Request,
    events: Receiver<Event>,
    cancel: Cancel,
    leaves: Option<usize>,
}

fn add(scheduler: &mut Scheduler, request: Request) -> Caller {
    let (sender, events) = channel();
    let cancel = Cancel::default();
    scheduler.add(Job::new(request.clone(), CONTEXT, sender, cancel.clone()));
    Caller { request, events, cancel, leaves: None }
}

fn scheduler_of(limits: Limits) -> Scheduler {
    Scheduler::new(limits, Available::unknown())
}

/// Checks all that a caller was told.
fn check(caller: &Caller, left: bool, what: &str) {
    let (ids, logprobs) = expected(&caller.request);
    let mut events: Vec<Event> = caller.events.try_iter().collect();
    let last = events.pop().unwrap_or_else(|| panic!("{what}: no answer"));
    let wanted = match &caller.request.task {
        Task::Generate { logprobs, .. } => *logprobs,
        Task::Score { .. } => Logprobs::AtEnd,
    };
    let mut told = 0;
    for event in events {
        let Event::Token { id, logprob } = event else { panic!("{what}: {event:?} before the last event") };
        assert_eq!(id, ids[told], "{what}");
        assert_eq!(logprob, (wanted == Logprobs::EachToken).then(|| logprobs[told]), "{what}");
        told += 1;
    }
    match last {
        Event::Done(Generation { ids: found, logprobs: scores, finish, .. }) => {
            assert!(left || finish != Finish::Cancelled, "{what}: cancelled");
            let n = if finish == Finish::Cancelled { found.len() } else { ids.len() };
            assert_eq!(found, ids[..n], "{what}");
            let n = if wanted == Logprobs::Off { 0 } else { n };
            assert_eq!(scores, logprobs[..n], "{what}");
            assert!(told <= found.len());
            if caller.request.stream {
                assert_eq!(told, found.len() - usize::from(finish == Finish::Stop), "{what}");
            }
        }
        Event::Scored(found) => assert_eq!(found, logprobs, "{what}"),
        Event::Failed(error) => assert!(left, "{what}: {error}"),
        Event::Token { .. } => panic!("{what}: the answer has no end"),
    }
}

/// Runs a random scenario to its end, and returns a trace of it.
fn scenario(seed: u64) -> Vec<(u64, usize, usize)> {
    let mut random = Random(seed);
    let (rows, sequences) = (1 + random.below(100), 1 + random.below(12));
    // The longest request needs 7 pages.
    let (pages, idle, saved) = (7 + random.below(30), random.below(12), random.below(12));
    let limits = Limits { rows, sequences, pages, idle, saved };
    let mut scheduler = scheduler_of(limits);
    let mut callers: Vec<Caller> = Vec::new();
    let (mut trace, mut step, requests) = (Vec::new(), 0, 3 + random.below(25));
    while callers.len() < requests || scheduler.len() > 0 {
        while callers.len() < requests && random.below(4) != 0 {
            let mut caller = add(&mut scheduler, random_request(&mut random));
            caller.leaves = (random.below(8) == 0).then(|| step + random.below(40));
            callers.push(caller);
        }
        for caller in callers.iter().filter(|caller| caller.leaves == Some(step)) {
            caller.cancel.cancel();
        }
        scheduler.step(&Script);
        trace.push((scheduler.counts.rows, scheduler.live_pages(), scheduler.len()));
        assert!(scheduler.live_pages() <= limits.pages);
        assert!(scheduler.saved_pages() <= limits.saved);
        assert_eq!(scheduler.waiting_drafts(), 0);
        scheduler.tree().check();
        step += 1;
        assert!(step < 20_000, "scenario {seed}: it does not end");
    }
    for (n, caller) in callers.iter().enumerate() {
        check(caller, caller.leaves.is_some(), &format!("scenario {seed}, request {n}"));
    }
    let kept = scheduler.live_pages();
    assert!(kept <= limits.idle && kept == scheduler.kept_pages(), "scenario {seed}: {kept} pages are left");
    trace
}

#[test]
fn everybody_gets_the_right_answer_and_no_page_is_lost() {
    for seed in 0..400 {
        scenario(seed);
    }
}

#[test]
fn the_same_arrivals_make_the_same_passes() {
    for seed in [3, 14, 159] {
        assert_eq!(scenario(seed), scenario(seed));
    }
}

fn limits(pages: usize) -> Limits {
    Limits { rows: 64, sequences: 100, pages, idle: 0, saved: pages }
}

/// Steps until all is done; the order in which callers got their last event.
fn order(scheduler: &mut Scheduler, callers: &[Caller]) -> Vec<usize> {
    let mut order = Vec::new();
    while scheduler.len() > 0 {
        scheduler.step(&Script);
        for (n, caller) in callers.iter().enumerate() {
            order.extend(caller.events.try_iter().filter(|e| !matches!(e, Event::Token { .. })).map(|_| n));
        }
    }
    order
}

#[test]
fn higher_priorities_take_the_pages_of_lower_ones() {
    let mut scheduler = scheduler_of(limits(4));
    let low = add(&mut scheduler, generate((0..100).map(|i| i % 5).collect(), 100));
    (0..20).for_each(|_| scheduler.step(&Script));
    let before = low.events.try_iter().count();
    assert!(before > 0);
    let request = |priority| Request { priority, ..generate(vec![7; 150], 60) };
    let callers = [add(&mut scheduler, request(1)), add(&mut scheduler, request(2)), low];
    scheduler.step(&Script);
    scheduler.step(&Script);
    assert_eq!(callers[2].events.try_iter().count(), 0, "it waits");
    assert_eq!(scheduler.counts.preemptions, 1);
    assert_eq!(order(&mut scheduler, &callers), [1, 0, 2]);
}

#[test]
fn what_was_taken_is_saved_as_far_as_there_is_room_and_read_again_beyond() {
    // Without room the prompt and what was said are read twice, the scores among them are told once.
    for (saved, again) in [(4, 0), (1, 1)] {
        let mut scheduler = scheduler_of(Limits { saved, ..limits(4) });
        let prompt: Vec<u32> = (0..200).map(|i| i % 5).collect();
        let low = add(&mut scheduler, Request { priority: -1, ..Request::score(prompt, 50) });
        (0..2).for_each(|_| scheduler.step(&Script));
        let high = add(&mut scheduler, generate(vec![7; 200], 5));
        scheduler.step(&Script);
        assert_eq!((scheduler.counts.preemptions, scheduler.saved_pages()), (1, 2 * (1 - again)));
        while scheduler.len() > 0 {
            scheduler.step(&Script);
        }
        check(&low, false, "the one that waits");
        check(&high, false, "the one that goes first");
        assert_eq!(scheduler.counts.rows, (199 + 204 + 128 * again) as u64);
    }
}

#[test]
fn equals_go_in_the_order_in_which_they_came() {
    let mut scheduler = scheduler_of(limits(4));
    let callers: Vec<Caller> =
        (0..6).map(|n| add(&mut scheduler, generate(vec![n; 100 + n as usize], 90))).collect();
    assert_eq!(order(&mut scheduler, &callers), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn who_waits_for_long_is_not_passed_over_forever() {
    let mut scheduler = scheduler_of(limits(3));
    let low = add(&mut scheduler, Request { priority: -2, ..generate(vec![1; 100], 20) });
    // As soon as one of high priority ends, the next one is there.
    let (mut high, mut done) = (add(&mut scheduler, generate(vec![2; 100], 80)), 0);
    for _ in 0..2000 {
        scheduler.step(&Script);
        if high.events.try_iter().any(|event| matches!(event, Event::Done(_))) {
            high = add(&mut scheduler, generate(vec![2; 100], 80));
            done += 1;
        }
        if low.events.try_iter().any(|event| matches!(event, Event::Done(_))) {
            assert!(done > 2, "{done}");
            return;
        }
    }
    panic!("{done} others were done");
}

#[test]
fn long_prompts_do_not_hold_up_answers() {
    let mut scheduler = scheduler_of(Limits { rows: 16, ..limits(100) });
    let short = add(&mut scheduler, generate(vec![1, 2, 3], 30));
    scheduler.step(&Script);
    let long = add(&mut scheduler, generate((0..500).map(|i| i % 7).collect(), 5));
    for _ in 0..25 {
        short.events.try_iter().for_each(drop);
        scheduler.step(&Script);
        assert_eq!(short.events.try_iter().count(), 1, "a token in every pass");
        assert_eq!(long.events.try_iter().count(), 0);
    }
}

#[test]
fn leaving_frees_pages_at_once() {
    let mut scheduler = scheduler_of(limits(12));
    let callers: Vec<Caller> = (0..3).map(|n| add(&mut scheduler, generate(vec![n; 130], 100))).collect();
    (0..20).for_each(|_| scheduler.step(&Script));
    let before = scheduler.live_pages();
    callers[1].cancel.cancel();
    // Nobody listens to this one any more.
    let [first, _, third] = <[Caller; 3]>::try_from(callers).ok().unwrap();
    drop(third.events);
    scheduler.step(&Script);
    scheduler.step(&Script);
    assert!(
        scheduler.len() == 1 && scheduler.live_pages() <= before - 6,
        "{} {before}",
        scheduler.live_pages()
    );
    first.cancel.cancel();
    scheduler.step(&Script);
    assert_eq!((scheduler.len(), scheduler.live_pages()), (0, 0));
}

#[test]
fn what_was_read_is_not_read_again() {
    let mut scheduler = scheduler_of(Limits { idle: 20, ..limits(20) });
    let prompt: Vec<u32> = (0..200).map(|i| i % 9).collect();
    let mut rows = |request: Request| {
        let before = scheduler.counts.rows;
        let caller = add(&mut scheduler, request);
        while scheduler.len() > 0 {
            scheduler.step(&Script);
        }
        check(&caller, false, "alone");
        scheduler.counts.rows - before
    };
    assert_eq!(rows(generate(prompt.clone(), 1)), 200);
    assert_eq!(rows(generate(prompt.clone(), 1)), 1);
    // A part of a page is enough.
    let mut other = prompt.clone();
    other[150] = 10;
    assert_eq!(rows(generate(other, 1)), 50);
    assert_eq!(rows(generate(prompt[..100].to_vec(), 3)), 3);
    assert_eq!(rows(Request::score(prompt.clone(), 190)), 10);
}

#[test]
fn what_was_not_used_for_longest_is_given_up_first() {
    let mut scheduler = scheduler_of(Limits { idle: 4, ..limits(20) });
    let mut rows = |root: u32| {
        let before = scheduler.counts.rows;
        let caller = add(&mut scheduler, generate((1..129).map(|i| (i * root) % 11).collect(), 1));
        while scheduler.len() > 0 {
            scheduler.step(&Script);
        }
        check(&caller, false, "alone");
        scheduler.counts.rows - before
    };
    assert_eq!([1, 2, 1, 3].map(&mut rows), [128, 128, 1, 128]);
    assert_eq!([1, 3, 2].map(&mut rows), [1, 1, 128]);
}

/// Lets eight equal requests through and returns the most pages at a time and how often `read` was asked.
fn with_room(every: Duration, room: impl Fn(usize) -> Option<usize> + Send + 'static) -> (usize, usize) {
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    let read = move || room(count.fetch_add(1, Ordering::Relaxed));
    let mut scheduler = Scheduler::new(limits(100), Available::new(every, Box::new(read)));
    // Two pages each, of which no two are the same.
    let callers: Vec<Caller> = (0..8).map(|n| add(&mut scheduler, generate(vec![n; 100], 20))).collect();
    while scheduler.len() > 0 {
        scheduler.step(&Script);
    }
    for caller in &callers {
        check(caller, false, "with little memory");
    }
    (scheduler.counts.peak_pages, asked.load(Ordering::Relaxed))
}

#[test]
fn requests_wait_for_memory_that_is_there() {
    let always = Duration::ZERO;
    // Where the system does not tell, or has plenty, all go together.
    let most = with_room(always, |_| None).0;
    assert!(most >= 16, "{most}");
    assert_eq!(with_room(always, |_| Some(1000)).0, most);
    // Without any the first one goes on alone, and each of the others when it comes to be the first.
    assert_eq!(with_room(always, |_| Some(0)).0, 2);
    // What is not there at first may be there later.
    let later = with_room(always, |asked| Some(if asked < 30 { 0 } else { 1000 })).0;
    assert!((3..=most).contains(&later), "{later}");
    // A reading is good for some time, less what was taken since.
    let (peak, asked) = with_room(Duration::MAX, |_| Some(5));
    assert!(peak <= 7 && asked == 1, "{peak} pages, asked {asked} times");
}
