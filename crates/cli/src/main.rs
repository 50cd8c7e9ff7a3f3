//! The `llamero` binary: raises a small Llama 3 from raw text, and uses it or the weights of others.
//!
//! `main` parses the command line and hands over to one module per command; errors end with exit code 1 and the whole
//! chain of causes on stderr, wrong usage with 2.

/// A line on stderr. Unlike `eprintln!` it does not panic when nobody listens any more.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        drop(writeln!(std::io::stderr(), $($arg)*));
    }};
}

mod commands;
mod encoders;
mod failure;
mod hub;
mod machine;
mod pipeline;
mod processes;
mod progress;
mod ranks;
mod recipe;
mod report;
mod termination;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use llamero_cpu::Cpu;
use llamero_tensor::DType;
use llamero_train::Kernels;

/// Raises a Llama 3 from raw text to a chat model, and runs the models of others, in one program.
#[derive(Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
    llamero run recipes/quickstart.toml\n  \
    llamero run recipes/quickstart.toml --set run.dir=runs/mine --set 'curate.sources=[\"/home/me/notes\"]'\n  \
    llamero chat runs/quickstart\n  \
    llamero pull HuggingFaceTB/SmolLM2-135M-Instruct\n  \
    llamero chat SmolLM2-135M-Instruct\n  \
    llamero convert SmolLM2-135M-Instruct smol.gguf --encoding Q8_0"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a recipe: curate, tokenizer, pre-train, fine-tune, evaluate, report.
    Run(commands::run::RunArgs),
    /// Pre-train the model of a recipe on one rank or many, supervised if asked.
    Pretrain(commands::pretrain::PretrainArgs),
    /// Talk to a model: one of a run, a GGUF file, a Hugging Face or Meta folder.
    Chat(commands::chat::ChatArgs),
    /// Continue a prompt.
    Generate(commands::generate::GenerateArgs),
    /// How likely a model finds a text.
    Score(commands::score::ScoreArgs),
    /// Sizes, tensors, metadata and memory of a model or preset.
    Inspect(commands::inspect::InspectArgs),
    /// Make a corpus of crawls and files, look back at it, or try single steps of that.
    #[command(subcommand)]
    Curate(commands::curate::CurateCommand),
    /// Train a tokenizer, or encode and decode with one.
    #[command(subcommand)]
    Tokenizer(commands::tokenizer::TokenizerCommand),
    /// Where an artifact came from.
    Why(commands::why::WhyArgs),
    /// Write a model as a Hugging Face folder, as it is stored.
    Export(commands::export::ExportArgs),
    /// Write a model in another format or encoding: GGUF or a Hugging Face folder.
    Convert(commands::convert::ConvertArgs),
    /// Fetch a model from the Hugging Face hub.
    Pull(commands::pull::PullArgs),
    /// Measure this machine, the kernels and training steps.
    #[command(subcommand)]
    Bench(commands::bench::BenchCommand),
}

/// A model and the threads to run it with.
#[derive(Args)]
struct ModelArgs {
    /// A GGUF file, a Hugging Face or Meta folder, a run folder (its fine-tuned model), or an artifact folder such as
    /// RUN/pretrain.
    model: PathBuf,
    /// Threads; all cores when absent.
    #[arg(long, value_parser = machine::parse_threads)]
    threads: Option<usize>,
    /// What it computes in. `auto` is the dtype of the weights, but f32 for F16, in which nothing computes; blocks of quantised
    /// files stay blocks unless it is `f32`.
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    dtype: DtypeArg,
}

/// A dtype to compute in.
#[derive(Clone, Copy, ValueEnum)]
enum DtypeArg {
    Auto,
    F32,
    Bf16,
}

impl DtypeArg {
    /// As the engine takes it.
    fn dtype(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::Bf16),
        }
    }
}

impl Command {
    /// Whether the same command goes on where it was stopped.
    fn resumes(&self) -> bool {
        let resumes = matches!(self, Self::Run(_) | Self::Pretrain(_) | Self::Pull(_));
        resumes || matches!(self, Self::Curate(commands::curate::CurateCommand::Run(_)))
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let resumes = command.resumes();
    match dispatch(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<processes::Quiet>() => ExitCode::FAILURE,
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(usage) => {
                drop(usage.print());
                ExitCode::from(2)
            }
            Err(error) => {
                say!("error: {}", failure::text(&error, resumes));
                ExitCode::FAILURE
            }
        },
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => commands::run::run(&args),
        Command::Pretrain(args) => commands::pretrain::pretrain(&args),
        Command::Chat(args) => commands::chat::chat(&args),
        Command::Generate(args) => commands::generate::generate(&args),
        Command::Score(args) => commands::score::score(&args),
        Command::Inspect(args) => commands::inspect::inspect(&args),
        Command::Curate(command) => commands::curate::curate(&command),
        Command::Tokenizer(command) => commands::tokenizer::tokenizer(&command),
        Command::Why(args) => commands::why::why(&args),
        Command::Export(args) => commands::export::export(&args),
        Command::Convert(args) => commands::convert::convert(&args),
        Command::Pull(args) => commands::pull::pull(&args),
        Command::Bench(command) => commands::bench::bench(&command),
    }
}

/// The CPU with this many threads, or all cores.
fn device(threads: Option<usize>) -> Result<Cpu> {
    Ok(Cpu::new(threads.unwrap_or_else(machine::threads))?)
}

/// What the work space of this backend's kernels depends on.
fn kernels(cpu: &Cpu) -> Kernels {
    Kernels { threads: cpu.threads(), pairs: cpu.packs_pairs() }
}

/// `llamero … | head` ends early, which is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}
