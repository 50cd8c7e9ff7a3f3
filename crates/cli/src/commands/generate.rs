//! `llamero generate`.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Result;
use clap::Args;
use llamero_infer::{Engine, Finish, Generation, SamplingParams, StopText};
use llamero_tokenizer::StreamDecoder;

use super::engine::EngineArgs;
use super::sampling::{Clock, SamplingArgs};
use super::{open_with, print, print_json};
use crate::ModelArgs;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero generate runs/quickstart/pretrain --prompt 'pub fn new(' --max-tokens 40 --temperature 0\n  \
    llamero generate runs/quickstart --prompt 'This crate' --top-k 50 --top-p 1 --min-p 0.05 --seed 7\n  \
    llamero generate runs/quickstart --prompt 'A list:' --repetition-penalty 1.1 --penalty-window 64 --stop $'\\n\\n'\n  \
    llamero generate runs/quickstart --prompt 'Yes or no?' --logit-bias 13=-100 --logit-bias 42=2.5\n  \
    llamero generate model.gguf --prompt 'This crate' --dtype f32 --json\n  \
    llamero generate model.gguf --prompt 'This crate' --draft small.gguf --kv int8")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue; the token that begins texts is put before it, where the model has one. Names of special tokens in it are
    /// ordinary text.
    #[arg(long, allow_hyphen_values = true)]
    prompt: String,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print prompt, ids, log-probabilities, text and times as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn generate(args: &GenerateArgs) -> Result<()> {
    // What is wrong with the options is said before gigabytes are read.
    let stop = args.sampling.validate()?;
    let opening = Clock::start();
    let engine = open_with(&args.model, &args.engine)?;
    let load = opening.seconds();
    let mut prompt = Vec::from_iter(engine.tokenizer().special().begin_of_text);
    engine.tokenizer().encode_into(&args.prompt, &mut prompt);
    let params = args.sampling.params(engine.stop_tokens());
    if args.json {
        let mut text = String::new();
        let mut clock = Clock::start();
        let (generation, finish) = stream(&engine, &prompt, (&params, stop), &mut |piece| {
            clock.token();
            text.push_str(piece);
            Ok(())
        })?;
        let mut timing = clock.json(generation.ids.len());
        timing["load_s"] = load.into();
        let mut answer = serde_json::json!({
            "prompt_ids": prompt,
            "ids": generation.content(),
            "text": text,
            "logprobs": generation.logprobs,
            "finish": finish,
            "timing": timing,
        });
        if let Some([guessed, accepted]) = args.engine.guessed(engine.counts()) {
            (answer["guessed_tokens"], answer["accepted_tokens"]) = (guessed.into(), accepted.into());
        }
        return print_json(&answer);
    }
    let mut out = std::io::stdout();
    // The prompt comes with the first token: a call that fails before it prints nothing.
    let mut before = args.prompt.as_str();
    let (generation, finish) = stream(&engine, &prompt, (&params, stop), &mut |piece| {
        write!(out, "{before}{piece}")?;
        before = "";
        out.flush()
    })?;
    print(before)?;
    if let Some(limit) = limit(finish) {
        say!("note: the text was cut after {} tokens, at {limit}", generation.ids.len());
    }
    Ok(())
}

/// The limit at which an answer ended, if at one.
pub(super) fn limit(finish: Finish) -> Option<&'static str> {
    match finish {
        Finish::Length => Some("`--max-tokens`"),
        Finish::Context => Some("the end of the model's context"),
        Finish::Stop | Finish::Cancelled => None,
    }
}

/// Continues `prompt`, and gives `say` the text of every token, held back where it may be part of a character or of a stop
/// string. `say` is called once at least.
fn stream(
    engine: &Engine,
    prompt: &[u32],
    (params, mut stop): (&SamplingParams, StopText),
    say: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> Result<(Generation, Finish)> {
    let mut decoder = StreamDecoder::new(engine.tokenizer());
    let mut said = Ok(());
    let generation = engine.generate(prompt, params, &mut |id| {
        said = say(&stop.push(&decoder.push(id)));
        if said.is_ok() && !stop.found() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    said?;
    let last = stop.push(&decoder.finish());
    let finish = if stop.found() { Finish::Stop } else { generation.finish };
    say(&(last + &stop.finish()))?;
    Ok((generation, finish))
}
