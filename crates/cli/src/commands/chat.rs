//! `llamero chat`.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::Result;
use clap::Args;
use llamero_infer::ChatSession;

use super::engine::EngineArgs;
use super::generate::limit;
use super::sampling::{Clock, SamplingArgs};
use super::{open_with, print, print_json};
use crate::ModelArgs;

#[derive(Args)]
#[command(
    after_help = "Type a message and press Enter. `/clear` starts over, `/quit` or end of input leaves.\n\n\
    Examples:\n  \
    llamero chat runs/quickstart\n  \
    llamero chat model.gguf --system 'Answer in one line.' --stop $'\\n' --repetition-penalty 1.1 --seed 7\n  \
    echo 'What is the crate serde for?' | llamero chat runs/quickstart --temperature 0"
)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Instructions for the whole conversation.
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print each answer as a line of JSON when it is done: text, token counts, why it ended, times.
    #[arg(long)]
    json: bool,
}

pub(crate) fn chat(args: &ChatArgs) -> Result<()> {
    let stop = args.sampling.validate()?;
    let engine = open_with(&args.model, &args.engine)?;
    let session = ChatSession::new(&engine, args.sampling.params(vec![]), args.system.as_deref())?;
    let mut session = session.with_stop_text(stop);
    let stdin = std::io::stdin();
    let asks = stdin.is_terminal();
    if asks {
        say!(
            "{} (context {} tokens). /clear starts over, /quit leaves.",
            args.model.model.display(),
            engine.context()
        );
    }
    let mut lines = stdin.lock().lines();
    loop {
        if asks {
            eprint!("> ");
        }
        let Some(line) = lines.next().transpose()? else { break };
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/clear" => session.clear(),
            word if word.starts_with('/') && !word.contains(' ') => {
                say!("unknown command `{word}`; there are /clear and /quit");
            }
            text if args.json => say_json(&mut session, text)?,
            text => say(&mut session, text)?,
        }
    }
    Ok(())
}

/// One turn. A message that cannot be answered is said and does not end the conversation.
fn say(session: &mut ChatSession<'_>, text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    let mut written = Ok(());
    let reply = session.reply(text, &mut |piece| {
        written = write!(out, "{piece}").and_then(|()| out.flush());
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    written?;
    match reply {
        Ok(reply) => {
            print("")?;
            if let Some(notice) = reply.notice {
                say!("note: {notice}");
            }
            if let Some(limit) = limit(reply.finish) {
                say!("note: the answer was cut after {} tokens, at {limit}", reply.tokens);
            }
        }
        Err(error) => say!("error: {error}"),
    }
    Ok(())
}

/// One turn as JSON. A message that cannot be answered is said and does not end the conversation.
fn say_json(session: &mut ChatSession<'_>, text: &str) -> Result<()> {
    let mut clock = Clock::start();
    let reply = session.reply(text, &mut |_| {
        clock.token();
        ControlFlow::Continue(())
    });
    match reply {
        Ok(reply) => print_json(&serde_json::json!({
            "text": reply.text,
            "finish": reply.finish,
            "tokens": reply.tokens,
            "prompt_tokens": reply.prompt_tokens,
            "cached_tokens": reply.cached_tokens,
            "notice": reply.notice,
            "timing": clock.json(reply.tokens),
        })),
        Err(error) => {
            say!("error: {error}");
            Ok(())
        }
    }
}
