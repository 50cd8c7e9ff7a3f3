//! `llamero generate`.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Result;
use clap::Args;
use llamero_infer::SamplingParams;
use llamero_tokenizer::StreamDecoder;

use super::{open, print, print_json};
use crate::ModelArgs;

/// How tokens are drawn.
#[derive(Args)]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token every time.
    #[arg(long, default_value_t = 0.6, allow_negative_numbers = true)]
    temperature: f64,
    /// Keep this many of the likeliest tokens.
    #[arg(long)]
    top_k: Option<usize>,
    /// Keep the likeliest tokens up to this total probability.
    #[arg(long, default_value_t = 0.9, allow_negative_numbers = true)]
    top_p: f64,
    /// Keep tokens at least this fraction as likely as the likeliest.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Most tokens to generate.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
}

impl SamplingArgs {
    /// As the engine takes them.
    pub(crate) fn params(&self, stop: Vec<u32>) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            max_tokens: self.max_tokens,
            stop,
        }
    }
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero generate runs/quickstart/pretrain --prompt 'pub fn new(' --max-tokens 40 --temperature 0\n  \
    llamero generate runs/quickstart/pretrain --prompt 'This crate' --json")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue; a begin-of-text token is put before it.
    #[arg(long)]
    prompt: String,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print prompt, ids, log-probabilities and text as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn generate(args: &GenerateArgs) -> Result<()> {
    let engine = open(&args.model)?;
    let mut prompt = Vec::from_iter(engine.tokenizer().special().begin_of_text);
    engine.tokenizer().encode_into(&args.prompt, &mut prompt);
    let params = args.sampling.params(engine.stop_tokens());
    if args.json {
        let generation = engine.generate(&prompt, &params, &mut |_| ControlFlow::Continue(()))?;
        let text = engine.tokenizer().decode(generation.content())?;
        return print_json(&serde_json::json!({
            "prompt_ids": prompt,
            "ids": generation.content(),
            "text": text,
            "logprobs": generation.logprobs,
            "finish": generation.finish,
        }));
    }
    let mut decoder = StreamDecoder::new(engine.tokenizer());
    let mut out = std::io::stdout();
    // The prompt comes with the first token: a call that fails before it prints nothing.
    let (mut before, mut written) = (args.prompt.as_str(), Ok(()));
    engine.generate(&prompt, &params, &mut |id| {
        written = write!(out, "{before}{}", decoder.push(id)).and_then(|()| out.flush());
        before = "";
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    print(format!("{before}{}", decoder.finish()))
}
