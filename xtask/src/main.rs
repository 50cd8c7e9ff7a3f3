//! Repository checks: `cargo xtask layers`, `sizes` and `kills`; `fixtures`, which fetches what some tests need; `corpus`, which makes a large one; and `cargo xtask bench`, which measures us beside our peers.

mod bench;
mod binary;
mod corpus;
mod fixtures;
mod kills;
mod layers;
mod sizes;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND

  layers   fail on a dependency between workspace crates that the table of layers does not allow
  sizes    list source files that have grown too long
  fixtures fetch files for conformance tests with pip into `fixtures/` (or LLAMERO_FIXTURES); nothing to do when they are there
  kills    run a recipe through `kill -9` at random moments and compare it with a run that was left alone:
           --recipe FILE --run DIR [--kills N] [--seed S] [--reference DIR] [--seconds T] [--set K=V]…
  corpus   make a large corpus from real documents, repeated and changed:
           --text FILE.jsonl --out DIR --megabytes N [--file-megabytes N] [--seed S]
  bench    run our benchmarks and our peers' in turn and print the ratios as Markdown tables:
           [gemm|train|memory|curves|attention|infer|tokenizer|tokenizer-train|curate|all] --python PATH [--samples N] [--json FILE]; `bench --help` says more";

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["layers"] => layers::run(root),
        ["sizes"] => sizes::run(root),
        ["fixtures"] => fixtures::run(root),
        ["bench", .., "--help" | "-h"] => Ok(bench::USAGE.to_owned()),
        ["bench", ref options @ ..] => bench::run(root, options),
        ["corpus", ref options @ ..] => corpus::run(options),
        ["kills", ref options @ ..] => kills::run(root, options),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(report) => {
            eprintln!("{report}");
            ExitCode::SUCCESS
        }
        Err(report) => {
            eprintln!("{report}");
            ExitCode::FAILURE
        }
    }
}
