//! `llamero chat`.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::Result;
use clap::Args;
use llamero_infer::{ChatSession, Finish};

use super::generate::SamplingArgs;
use super::{open, print};
use crate::ModelArgs;

#[derive(Args)]
#[command(
    after_help = "Type a message and press Enter. `/clear` starts over, `/quit` or end of input leaves.\n\n\
    Examples:\n  \
    llamero chat runs/quickstart\n  \
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
}

pub(crate) fn chat(args: &ChatArgs) -> Result<()> {
    let engine = open(&args.model)?;
    let mut session = ChatSession::new(&engine, args.sampling.params(vec![]), args.system.as_deref())?;
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
            if matches!(reply.finish, Finish::Length | Finish::Context) {
                say!("note: the answer was cut after {} tokens", reply.tokens);
            }
        }
        Err(error) => say!("error: {error}"),
    }
    Ok(())
}
