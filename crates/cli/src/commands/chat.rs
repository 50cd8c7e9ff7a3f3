//! `llamero chat`.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use clap::Args;
use llamero_infer::{ChatSession, Finish, Reply};
use llamero_tokenizer::{Message, Role, Tokenizer};
use serde_json::Value;

use super::engine::EngineArgs;
use super::generate::limit;
use super::sampling::{Clock, SamplingArgs};
use super::{open_with, print, print_json, warn_of_text};
use crate::processes::Quiet;
use crate::termination::Termination;
use crate::{ModelArgs, failure};

#[derive(Args)]
#[command(
    after_help = "Type a message and press Enter. `/clear` starts over, `/quit` or end of input leaves; any other single \
    word that begins with `/` is an error, and longer lines that do are messages. Ctrl-C ends the answer that is \
    being made; at the prompt it leaves.\n\n\
    Messages may be piped in, one a line. A line without an answer is an error that says why, the conversation goes on without it, \
    and the exit code is 1.\n\n\
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
    /// Print each answer as a line of JSON when it is done: `text`, token counts, why it ended, times; or `error` and `line` where
    /// there is no answer to a line of the input.
    #[arg(long)]
    json: bool,
}

pub(crate) fn chat(args: &ChatArgs) -> Result<()> {
    let stop = args.sampling.validate()?;
    let engine = open_with(&args.model, &args.engine)?;
    let session = ChatSession::new(&engine, args.sampling.params(vec![]), args.system.as_deref())?;
    let stdin = std::io::stdin();
    let asks = stdin.is_terminal();
    if let Some(system) = &args.system {
        warn_of_text(engine.tokenizer(), system);
        let first = [Message::new(Role::System, system), Message::new(Role::User, "Hello")];
        let (tokens, context) = (engine.tokenizer().encode_dialog_prompt(&first)?.len(), engine.context());
        if tokens >= context {
            bail!(
                "`--system` and a message take {tokens} tokens, but the model's context has {context}\nhint: say less"
            );
        }
    }
    let mut chat = Chat {
        tokenizer: engine.tokenizer(),
        session: session.with_stop_text(stop),
        args,
        interrupts: asks.then(Termination::listen_to_interrupts).transpose()?,
    };
    if asks {
        say!(
            "{} (context {} tokens). /clear starts over, Ctrl-C ends an answer, /quit leaves.",
            args.model.model.display(),
            engine.context()
        );
    }
    let (mut input, mut failed) = (stdin.lock(), false);
    for number in 1.. {
        if asks {
            let mut err = std::io::stderr();
            drop(write!(err, "> ").and_then(|()| err.flush()));
        }
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line).context("standard input")? == 0 {
            break;
        }
        match chat.line(&line)? {
            Next::Go => {}
            Next::Quit => break,
            Next::Failed(problem) => {
                failed = true;
                say!("error: line {number}: {problem}");
                if args.json {
                    print_json(&serde_json::json!({ "error": problem, "line": number }))?;
                }
            }
        }
    }
    // Somebody at a terminal has seen it; whatever pipes messages in looks at the exit code.
    if failed && !asks { Err(Quiet.into()) } else { Ok(()) }
}

/// What to do after a line.
enum Next {
    Go,
    Quit,
    /// The line has no answer. The conversation is as it was before, and goes on.
    Failed(String),
}

struct Chat<'e> {
    tokenizer: &'e Tokenizer,
    session: ChatSession<'e>,
    args: &'e ChatArgs,
    /// Listens where somebody types.
    interrupts: Option<Termination>,
}

impl Chat<'_> {
    fn line(&mut self, line: &[u8]) -> Result<Next> {
        let line = match std::str::from_utf8(line) {
            Ok(line) => line.trim(),
            Err(error) => {
                return Ok(Next::Failed(format!("not UTF-8: an invalid byte at {}", error.valid_up_to())));
            }
        };
        match line {
            "" => {}
            "/quit" | "/exit" => return Ok(Next::Quit),
            "/clear" => self.session.clear(),
            word if word.starts_with('/') && !word.contains(' ') => {
                return Ok(Next::Failed(format!("unknown command `{word}`; there are /clear and /quit")));
            }
            text => return self.turn(text),
        }
        Ok(Next::Go)
    }

    /// One turn, which Ctrl-C ends early.
    fn turn(&mut self, text: &str) -> Result<Next> {
        let end = self.interrupts.as_ref().map(|interrupts| {
            interrupts.forget();
            interrupts.hold()
        });
        warn_of_text(self.tokenizer, text);
        let json = self.args.json;
        let mut out = std::io::stdout();
        let (mut clock, mut written) = (Clock::start(), Ok(()));
        let mut on_text = |piece: &str| {
            clock.token();
            if !json {
                written = write!(out, "{piece}").and_then(|()| out.flush());
            }
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let reply = self.session.reply_until(text, end.as_ref(), &mut on_text);
        if let Some(interrupts) = &self.interrupts {
            interrupts.release();
        }
        written?;
        match reply {
            Ok(reply) if json => print_json(&answer(&reply, &clock))?,
            Ok(reply) => show(&reply)?,
            Err(error) => {
                return Ok(Next::Failed(failure::text(
                    &self.args.engine.explain(error.into(), "--max-tokens"),
                    false,
                )));
            }
        }
        Ok(Next::Go)
    }
}

/// What there is to say after the text of an answer.
fn show(reply: &Reply) -> Result<()> {
    print("")?;
    if let Some(notice) = &reply.notice {
        say!("note: {notice}");
    }
    if reply.finish == Finish::Cancelled {
        say!("note: the answer was ended after {} tokens", reply.tokens);
    }
    if let Some(limit) = limit(reply.finish) {
        say!("note: the answer was cut after {} tokens, at {limit}", reply.tokens);
    }
    Ok(())
}

fn answer(reply: &Reply, clock: &Clock) -> Value {
    serde_json::json!({
        "text": reply.text,
        "finish": reply.finish,
        "tokens": reply.tokens,
        "prompt_tokens": reply.prompt_tokens,
        "cached_tokens": reply.cached_tokens,
        "notice": reply.notice,
        "timing": clock.json(reply.tokens),
    })
}
