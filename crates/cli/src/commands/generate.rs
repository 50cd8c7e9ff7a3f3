//! `llamero generate`.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{ArgGroup, Args};
use llamero_infer::{Engine, Finish, Generation, SamplingParams, StopText};
use llamero_tokenizer::StreamDecoder;

use super::engine::EngineArgs;
use super::sampling::{Clock, SamplingArgs};
use super::score::read_text;
use super::{open_with, print, print_json, warn_of_text};
use crate::ModelArgs;

#[derive(Args)]
#[group(skip)]
#[command(group(ArgGroup::new("text").args(["prompt", "prompt_file"]).required(true)))]
#[command(after_help = "Examples:\n  \
    llamero generate runs/quickstart/pretrain --prompt 'pub fn new(' --max-tokens 40 --temperature 0\n  \
    llamero generate runs/quickstart --prompt 'This crate' --top-k 50 --top-p 1 --min-p 0.05 --seed 7\n  \
    llamero generate runs/quickstart --prompt 'A list:' --repetition-penalty 1.1 --penalty-window 64 --stop $'\\n\\n'\n  \
    llamero generate runs/quickstart --prompt 'Yes or no?' --logit-bias 13=-100 --logit-bias 42=2.5\n  \
    llamero generate model.gguf --prompt 'This crate' --dtype f32 --json\n  \
    llamero generate model.gguf --prompt-file chapter.txt --max-tokens 500\n  \
    git log --oneline | llamero generate model.gguf --prompt -\n  \
    llamero generate model.gguf --prompt 'This crate' --draft small.gguf --kv int8")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue, or `-` for standard input; the token that begins texts is put before it, where the model has one. Names
    /// of special tokens in it are ordinary text.
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to continue, in UTF-8. All of it counts, a newline at its end, too.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one object of JSON: `prompt_ids`; `ids` and `text` of the answer, and in `logprobs` the log-probability in nats of each
    /// of `ids`; `finish` (stop, length, context); `stop_id` and `stop_logprob` of the token that ended it, which is in neither list,
    /// null where none did; `timing`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn generate(args: &GenerateArgs) -> Result<()> {
    // What is wrong with the options is said before gigabytes are read.
    let stop = args.sampling.validate()?;
    let text = args.text()?;
    let opening = Clock::start();
    let engine = open_with(&args.model, &args.engine)?;
    let load = opening.seconds();
    let mut prompt = Vec::from_iter(engine.tokenizer().special().begin_of_text);
    engine.tokenizer().encode_into(&text, &mut prompt);
    warn_of_text(engine.tokenizer(), &text);
    let params = args.sampling.params(engine.stop_tokens());
    if args.json {
        let mut answer = String::new();
        let mut clock = Clock::start();
        let streamed = stream(&engine, &prompt, (&params, stop), &mut |piece| {
            clock.token();
            answer.push_str(piece);
            Ok(())
        });
        let (generation, finish) = streamed.map_err(|error| args.engine.explain(error, "--max-tokens"))?;
        let mut timing = clock.json(generation.ids.len());
        timing["load_s"] = load.into();
        let ids = generation.content();
        let (logprobs, of_stop) = generation.logprobs.split_at(ids.len());
        let mut answer = serde_json::json!({
            "prompt_ids": prompt,
            "ids": ids,
            "text": answer,
            "logprobs": logprobs,
            "stop_id": generation.ids.get(ids.len()),
            "stop_logprob": of_stop.first(),
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
    let mut before = text.as_str();
    let streamed = stream(&engine, &prompt, (&params, stop), &mut |piece| {
        write!(out, "{before}{piece}")?;
        before = "";
        out.flush()
    });
    let (generation, finish) = streamed.map_err(|error| args.engine.explain(error, "--max-tokens"))?;
    print(before)?;
    if let Some(limit) = limit(finish) {
        say!("note: the text was cut after {} tokens, at {limit}", generation.ids.len());
    }
    Ok(())
}

impl GenerateArgs {
    /// The text to continue.
    fn text(&self) -> Result<String> {
        match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) if prompt != "-" => Ok(prompt.clone()),
            (_, Some(file)) => read_text(file),
            _ => read_text(Path::new("-")),
        }
    }
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
