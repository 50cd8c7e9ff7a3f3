//! Encoding beside `toktok-rs`, which has cl100k's ranks and not Llama 3's; both get cl100k's, whose pattern is Llama 3's.
//!
//! ```text
//! cargo run --profile speed --manifest-path tests/differential/Cargo.toml --bin toktok -- cl100k_base.tiktoken texts.jsonl 1
//! ```
//!
//! The ranks are in the sources of the crate `tiktoken-rs`, in `assets`. The texts are a document a line, `{"text": …}`; the last
//! number is that of threads. Both remember pieces between texts, so there are two figures: of the first round, in which every text is
//! new, and the median of five more, in turn, with the same texts.

use llamero_tokenizer::Tokenizer;
use rayon::prelude::*;
use std::error::Error;
use std::time::Instant;

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [ranks, texts, threads] = arguments.as_slice() else {
        return Err("three arguments are needed: ranks, texts and threads".into());
    };
    let (ours, theirs) = (Tokenizer::load(ranks)?, toktok::Tokenizer::builtin("cl100k_base")?);
    let document = |line: &str| -> Result<String, Box<dyn Error + Send + Sync>> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        Ok(value["text"].as_str().ok_or("a line has no `text`")?.to_owned())
    };
    let documents: Vec<String> =
        std::fs::read_to_string(texts)?.lines().map(document).collect::<Result<_, _>>()?;
    let bytes: usize = documents.iter().map(String::len).sum();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build()?;
    let timed = |encode: &(dyn Fn(&String) -> Vec<u32> + Sync)| {
        let begun = Instant::now();
        let ids: Vec<Vec<u32>> = pool.install(|| documents.par_iter().map(encode).collect());
        (bytes as f64 / 1e6 / begun.elapsed().as_secs_f64(), ids)
    };
    let ((first, own_ids), (their_first, their_ids)) =
        (timed(&|text| ours.encode(text)), timed(&|text| theirs.encode(text.as_bytes())));
    let differ = own_ids.iter().zip(&their_ids).filter(|(own, their)| own != their).count();
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        rates[0].push(timed(&|text| ours.encode(text)).0);
        rates[1].push(timed(&|text| theirs.encode(text.as_bytes())).0);
    }
    let [ours, theirs] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    });
    println!("{} documents, {bytes} bytes, {threads} threads; {differ} differ", documents.len());
    for (what, ours, theirs) in [("texts seen first", first, their_first), ("seen before", ours, theirs)] {
        println!("{what}: llamero {ours:.1} MB/s, toktok {theirs:.1} MB/s: {:.2}", ours / theirs);
    }
    Ok(())
}
