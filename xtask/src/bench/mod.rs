//! `cargo xtask bench`: our benchmarks and PyTorch's in turn in one run, as Markdown tables of medians and ratios.
//!
//! Machines drift by tens of per cent within minutes, so only what was measured in turn is compared: in round `i` first
//! ours, then every variant of the peer, each in a process of its own.

mod attention;
mod curate;
mod curves;
mod gemm;
mod infer;
mod options;
mod session;
mod table;
mod tokenizer;
mod train;
mod train_tokenizer;

use std::path::Path;

use options::{Options, What};
use session::Session;

pub(crate) const USAGE: &str = "usage: cargo xtask bench [gemm|train|memory|curves|attention|infer|tokenizer|tokenizer-train|curate|all] OPTIONS

  gemm       bf16 and f32 products of the layers of a 125M and a 1B model, and small and odd ones
  train      tokens per second of whole training steps, against the best variant of the peer
  memory     peak resident memory of the same, against the leanest variant; and 8,192 tokens with Llama 3's vocabulary
  curves     losses from the same weights and tokens: ours in bf16 and f32, the peer's in bf16
  attention  ours alone: whether time follows the sum of the squared lengths
  infer      reading prompts, decoding, and eight requests at once, against llama.cpp and transformers on the same weights
  tokenizer  encoding text with Llama 3's ranks, against quicktok, tiktoken and tokenizers on the same documents
  tokenizer-train  learning a vocabulary, against tokenizers and rustbpe on the same text
  curate     filters and MinHash deduplication on one core, against datatrove on the same documents
  all        everything but `infer`, `curate` and the tokenizer's, in this order but `memory` with `train` (the default)

  --python PATH    a Python that has benches/peers/requirements.txt; not needed for `attention`, and for
                   `infer` only with `--hf`
  --llamero PATH   our binary; built when absent
  --samples N      rounds; medians are over them (5)
  --threads N      threads of both sides; all cores when absent. tokenizer: several, e.g. `1,2`
  --json FILE      write every single result there
  --filter TEXT    gemm: only rows whose name contains this, e.g. `bf16` or `125M w13 nt`; tokenizer: only such peers;
                   curate: only such stages
  --shape A,B      train, memory: only these of 8m, 56m, 125m
  --steps N        train: steps of a process, two of them warm-up; curves: steps (200)
  --ours ARGS      more options for our `bench train`, e.g. `--ours '--recompute blocks'`
  --model A,B      infer: GGUF files; the targets go by the encoding in the file's name
  --llamacpp DIR   infer: a folder with `llama-bench` and `llama-server`
  --hf FOLDER      infer: the bf16 weights as a Hugging Face folder, for transformers beside files of bf16
  --tokenizer FILE tokenizer: a `tokenizer.model`
  --text FILE      tokenizer: what to encode, a document in each line of a `.jsonl`;
                   curves: what to train on; the Rust sources of this repository when absent;
                   tokenizer-train: JSONL with a `text` in each line, or plain text
                   curate: JSONL with an `id` and a `text` in each line (benches/peers/curate_documents.py makes some)
  --text FILE      curves: what to train on; the Rust sources of this repository when absent; tokenizer-train: JSONL
                   with a `text` in each line, or plain text
  --vocab-size N   tokenizer-train: ids to learn, the 256 special tokens included (32768)

Examples:
  cargo xtask bench gemm --python peers/bin/python --filter bf16
  cargo xtask bench train --python peers/bin/python --shape 125m --json train.json
  cargo xtask bench infer --model m.Q4_1.gguf,m.BF16.gguf --llamacpp llama.cpp/build/bin --threads 2
  cargo xtask bench tokenizer --python peers/bin/python --tokenizer tokenizer.model --text texts.jsonl --threads 1,2
  cargo xtask bench curate --python peers/bin/python --text documents.jsonl --samples 3";

/// Measures what the options ask for and prints each table when it is done.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<String, String> {
    let options = Options::parse(args).map_err(|e| format!("{e}\n\n{USAGE}"))?;
    let json = options.json.clone();
    let what = options.what;
    let mut session = Session::new(root, options)?;
    println(&session.machine())?;
    type Part = fn(&mut Session) -> Result<String, String>;
    let parts: &[Part] = match what {
        What::Gemm => &[gemm::run],
        What::Train => &[train::speed],
        What::Memory => &[train::memory],
        What::Curves => &[curves::run],
        What::Attention => &[attention::run],
        What::Infer => &[infer::run],
        What::Tokenizer => &[tokenizer::run],
        What::TrainTokenizer => &[train_tokenizer::run],
        What::Curate => &[curate::run],
        What::All => &[gemm::run, train::both, curves::run, attention::run],
    };
    for part in parts {
        let tables = part(&mut session);
        // What was measured before a failure is kept, too.
        if let Some(path) = &json {
            session.write_json(path)?;
        }
        println(&tables?)?;
    }
    Ok(format!(
        "bench: {} results{}",
        session.results(),
        json.map_or(String::new(), |p| format!(" in `{}`", p.display()))
    ))
}

/// Text on standard output.
fn println(text: &str) -> Result<(), String> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").map_err(|e| format!("cannot write to standard output: {e}"))
}
