//! `llamero bench infer`.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use llamero_infer::{Engine, EngineOptions, Event, Logprobs, Request, SamplingParams, Service};
use llamero_tensor::Backend;
use serde::Serialize;

use super::{CommonArgs, hash, median, print_rows, size, usage};
use crate::DtypeArg;
use crate::commands::engine::EngineArgs;
use crate::commands::sampling::seed;
use crate::commands::{no_preset, print_json};
use crate::progress::Progress;
use crate::report::format::{count, precise_bytes};

#[derive(Args)]
#[command(
    after_help = "A request has --prompt-tokens made-up tokens, and generates --gen-tokens, the likeliest every time; no token \
    ends it. `ttft_s` is the time to its first token, `prefill_tokens_per_s` the prompt over that time, `decode_tokens_per_s` the \
    tokens after the first over the time after it, all of one request alone. `generated_tokens_per_s` is that of --concurrency \
    requests together, each with a prompt of its own, prefill included. Medians over --reps.\n\n\
    `load_s` is the time that opening the model took, `cold_ttft_s` that and the first token of the first request. \
    `peak_memory_bytes` is the largest resident memory of the process.\n\n\
    Examples:\n  \
    llamero bench infer model.gguf --prompt-tokens 512 --gen-tokens 128\n  \
    llamero bench infer runs/quickstart --prompt-tokens 128 --gen-tokens 64 --concurrency 8 --json"
)]
pub(crate) struct InferArgs {
    /// A GGUF file, a Hugging Face or Meta folder, a run folder (its fine-tuned model), or an artifact folder such as
    /// RUN/pretrain.
    model: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 512, value_parser = size)]
    prompt_tokens: usize,
    /// Tokens to generate.
    #[arg(long, default_value_t = 128, value_parser = size)]
    gen_tokens: usize,
    /// Requests at the same time, 1 to 4096.
    #[arg(long, default_value_t = 1, value_parser = requests)]
    concurrency: usize,
    /// Timed repetitions; the median counts.
    #[arg(long, default_value_t = 3, value_parser = size)]
    reps: usize,
    /// What it computes in. `auto` is the dtype of the weights, but f32 for F16, in which nothing computes; blocks of quantised
    /// files stay blocks unless it is `f32`.
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    dtype: DtypeArg,
    #[command(flatten)]
    engine: EngineArgs,
    /// Rows of a pass over prompts, about.
    #[arg(long, default_value_t = EngineOptions::default().rows, value_parser = size)]
    rows: usize,
    /// Seed of the prompts, 0 to 2^64-1.
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    seed: u64,
}

/// A number of requests on the command line: more than this are a typing error, and prompts of theirs would fill the memory.
fn requests(text: &str) -> Result<usize, String> {
    let requests = text.parse().ok().filter(|n| (1..=4096).contains(n));
    requests.ok_or_else(|| "it is not a whole number from 1 to 4096".to_owned())
}

#[derive(Serialize)]
struct Report {
    params: u64,
    backend: String,
    dtype: &'static str,
    kv: &'static str,
    threads: usize,
    prompt_tokens: usize,
    gen_tokens: usize,
    concurrency: usize,
    reps: usize,
    load_s: f64,
    cold_ttft_s: f64,
    ttft_s: f64,
    prefill_tokens_per_s: f64,
    /// Absent where one token is generated.
    decode_tokens_per_s: Option<f64>,
    generated_tokens_per_s: f64,
    /// Keys and values at their peak.
    peak_kv_bytes: u64,
    /// Absent where the system does not tell.
    peak_memory_bytes: Option<u64>,
    /// Absent where nothing was guessed.
    guessed_tokens: Option<u64>,
    accepted_tokens: Option<u64>,
}

pub(super) fn infer(args: &InferArgs) -> Result<()> {
    let report = run(args).map_err(|error| args.engine.explain(error, "--gen-tokens"))?;
    if args.common.json {
        return print_json(&report);
    }
    let rate = |x: f64| format!("{x:.1} tokens/s");
    let rows = [
        ("parameters", count(report.params)),
        ("backend", report.backend),
        ("load", format!("{:.3} s", report.load_s)),
        ("load and first token", format!("{:.3} s", report.cold_ttft_s)),
        ("first token", format!("{:.3} s", report.ttft_s)),
        ("prefill", rate(report.prefill_tokens_per_s)),
        ("decode", report.decode_tokens_per_s.map_or("none".into(), rate)),
        ("generated", format!("{} x{}", rate(report.generated_tokens_per_s), report.concurrency)),
        ("keys and values", format!("{} ({})", precise_bytes(report.peak_kv_bytes), report.kv)),
        ("largest resident memory", report.peak_memory_bytes.map_or("unknown".into(), precise_bytes)),
    ];
    let mut rows = rows.map(|(name, value)| (name.to_owned(), value)).to_vec();
    if let (Some(guessed), Some(accepted)) = (report.guessed_tokens, report.accepted_tokens) {
        rows.push(("guessed right".into(), format!("{accepted} of {guessed}")));
    }
    print_rows(&rows)
}

fn run(args: &InferArgs) -> Result<Report> {
    no_preset(&args.model)?;
    let backend: Arc<dyn Backend> = Arc::new(crate::device(Some(args.common.threads()))?);
    let begun = Instant::now();
    let engine = Engine::open(&args.model, Arc::clone(&backend), args.dtype.dtype())?;
    // No two prompts begin alike, so none is kept.
    let options = EngineOptions { prefix_bytes: Some(0), rows: args.rows, ..args.engine.options() };
    let engine = args.engine.draft(engine.with_options(options), &backend)?;
    let service = Service::start(Arc::new(engine))?;
    let load_s = begun.elapsed().as_secs_f64();
    let engine = service.engine();
    let (tokens, context) = (args.prompt_tokens + args.gen_tokens, engine.context());
    if tokens > context {
        return Err(usage(format!("{tokens} tokens do not fit the model's context of {context}")));
    }
    let prompt = |request: usize| prompt(engine, args, request);
    let together_tokens = if args.concurrency == 1 { 0 } else { args.concurrency * args.gen_tokens };
    let total = 1 + args.reps * (args.gen_tokens + together_tokens);
    let progress =
        Generated { progress: Progress::new("bench", total as u64, "tokens"), tokens: Cell::new(0) };
    let cold = first(engine, &prompt(0), args.gen_tokens, &progress)?;
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for rep in 0..args.reps {
        let first = 1 + rep * args.concurrency;
        let prompts: Vec<Vec<u32>> = (first..first + args.concurrency).map(prompt).collect();
        let single = one(engine, &prompts[0], args.gen_tokens, &progress)?;
        together.push(match args.concurrency {
            1 => single.all,
            _ => all(&service, prompts, args.gen_tokens, &progress)?,
        });
        alone.push(single);
    }
    progress.progress.finish();
    let ttft_s = median(&alone.iter().map(|t| t.first).collect::<Vec<_>>());
    let decode: Vec<f64> = alone.iter().map(|t| (args.gen_tokens - 1) as f64 / (t.last - t.first)).collect();
    let guessed = args.engine.guessed(engine.counts());
    Ok(Report {
        params: engine.config().num_params(),
        backend: backend.name(),
        dtype: engine.dtype().name(),
        kv: args.engine.kv_name(),
        threads: args.common.threads(),
        prompt_tokens: args.prompt_tokens,
        gen_tokens: args.gen_tokens,
        concurrency: args.concurrency,
        reps: args.reps,
        load_s,
        cold_ttft_s: load_s + cold,
        ttft_s,
        prefill_tokens_per_s: args.prompt_tokens as f64 / ttft_s,
        decode_tokens_per_s: (args.gen_tokens > 1).then(|| median(&decode)),
        generated_tokens_per_s: (args.concurrency * args.gen_tokens) as f64 / median(&together),
        peak_kv_bytes: engine.peak_kv_bytes(),
        peak_memory_bytes: crate::machine::peak_memory(),
        guessed_tokens: guessed.map(|[guessed, _]| guessed),
        accepted_tokens: guessed.map(|[_, accepted]| accepted),
    })
}

/// Made-up ids of one request.
fn prompt(engine: &Engine, args: &InferArgs, request: usize) -> Vec<u32> {
    let vocab = engine.tokenizer().vocab_size() as u64;
    let first = (request * args.prompt_tokens) as u64;
    (first..first + args.prompt_tokens as u64).map(|i| (hash(args.seed, i) % vocab) as u32).collect()
}

/// Tokens that were generated so far.
struct Generated {
    progress: Progress,
    tokens: Cell<usize>,
}

impl Generated {
    fn add(&self, tokens: usize, what: &str) {
        self.tokens.set(self.tokens.get() + tokens);
        self.progress.at(self.tokens.get() as u64, what);
    }
}

/// Seconds from the beginning of a request to its first and its last token, and to its end.
struct Times {
    first: f64,
    last: f64,
    all: f64,
}

/// Seconds to the first token of a request that ends there. It asks for as many as the others, so that a lack of memory shows at
/// once.
fn first(engine: &Engine, prompt: &[u32], gen_tokens: usize, progress: &Generated) -> Result<f64> {
    let begun = Instant::now();
    let mut took = 0.0;
    engine.continue_with(prompt, &SamplingParams::greedy(gen_tokens), Logprobs::Off, &mut |_| {
        took = begun.elapsed().as_secs_f64();
        ControlFlow::Break(())
    })?;
    progress.add(1, "one request");
    Ok(took)
}

/// One request alone, in this thread.
fn one(engine: &Engine, prompt: &[u32], gen_tokens: usize, progress: &Generated) -> Result<Times> {
    let mut times = Vec::with_capacity(gen_tokens);
    let begun = Instant::now();
    engine.continue_with(prompt, &SamplingParams::greedy(gen_tokens), Logprobs::Off, &mut |_| {
        times.push(begun.elapsed().as_secs_f64());
        ControlFlow::Continue(())
    })?;
    let all = begun.elapsed().as_secs_f64();
    // After the time is taken.
    progress.add(times.len(), "one request");
    Ok(Times { first: times[0], last: times[times.len() - 1], all })
}

/// Seconds that all requests together take.
fn all(service: &Service, prompts: Vec<Vec<u32>>, gen_tokens: usize, progress: &Generated) -> Result<f64> {
    let begun = Instant::now();
    let submit = |prompt| service.submit(Request::generate(prompt, SamplingParams::greedy(gen_tokens)));
    let handles = prompts.into_iter().map(submit).collect::<Result<Vec<_>, _>>()?;
    for handle in handles {
        match handle.last() {
            Some(Event::Done(generation)) => progress.add(generation.ids.len(), "requests together"),
            Some(Event::Failed(error)) => return Err(error.into()),
            other => bail!("a request ended with {other:?}"),
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}
