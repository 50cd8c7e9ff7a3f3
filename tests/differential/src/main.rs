//! Compares our tokenizer's ids with those of `tokenizers` and `tiktoken-rs`, on every text of some folders and on random
//! Unicode. It ends with 1 where any differ.
//!
//! ```text
//! cargo run --release --manifest-path tests/differential/Cargo.toml -- [--model tokenizer.model] [--random MB] FOLDER…
//! ```
//!
//! Without `--model` the ranks are learned from the texts themselves. `tokenizers` reads the `tokenizer.json` that we write; and
//! with the merges of these ranks, GPT-2's and SmolLM2's splits are compared, too.

use flate2::read::GzDecoder;
use llamero_tokenizer::{PATTERN, Split, Tokenizer, Trainer};
use rayon::prelude::*;
use std::collections::HashMap;
use std::error::Error;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tiktoken_rs::CoreBPE;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Longer files are cut: some peers take time that grows with the square of a text's runs.
const LONGEST: usize = 1 << 20;

/// One peer's ids of a text.
type Encode = Box<dyn Fn(&str) -> Result<Vec<u32>> + Send + Sync>;

struct Peer {
    name: String,
    ours: Tokenizer,
    encode: Encode,
}

struct Options {
    model: Option<PathBuf>,
    random: usize,
    folders: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let options = options(std::env::args().skip(1))?;
    let mut texts = Vec::new();
    for folder in &options.folders {
        read(folder, &mut texts)?;
    }
    texts.sort_unstable();
    texts.dedup();
    let found: usize = texts.iter().map(String::len).sum();
    if found == 0 {
        return Err("the folders hold no text in UTF-8".into());
    }
    texts.extend(random(options.random * 1_000_000));
    let bytes: usize = texts.iter().map(String::len).sum();
    println!("{} texts, {bytes} bytes, of which {} random", texts.len(), bytes - found);

    let llama3 = match &options.model {
        Some(path) => Tokenizer::load(path)?,
        None => {
            let some = texts.iter().take(200).map(String::as_str);
            Trainer::new(4096).train(some, &mut |_, _| ())?.0
        }
    };
    let mut peers = vec![tiktoken(&llama3)?, tokenizers(&llama3)?];
    for pre in ["gpt-2", "smollm"] {
        let mut vocabulary = llama3.to_gguf()?;
        vocabulary.pre = pre.into();
        peers.push(tokenizers(&Tokenizer::from_gguf(vocabulary)?)?);
    }
    let mut same = true;
    for peer in peers {
        let begun = std::time::Instant::now();
        let differ: Vec<(&String, String)> =
            texts.par_iter().filter_map(|text| difference(&peer, text).map(|why| (text, why))).collect();
        let took = begun.elapsed().as_secs_f64();
        println!("{}: {} of {} texts differ ({took:.1} s)", peer.name, differ.len(), texts.len());
        for (text, why) in differ.iter().take(5) {
            println!("  {why} in a text that begins {:?}", text.chars().take(60).collect::<String>());
        }
        same &= differ.is_empty();
    }
    Ok(same)
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { model: None, random: 1, folders: Vec::new() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("`{arg}` has no value"));
        match arg.as_str() {
            "--model" => options.model = Some(value()?.into()),
            "--random" => options.random = value()?.parse()?,
            _ => options.folders.push(arg.into()),
        }
    }
    if options.folders.is_empty() {
        return Err("name the folders whose texts shall be compared".into());
    }
    Ok(options)
}

/// Where the ids first differ, with what surrounds it.
fn difference(peer: &Peer, text: &str) -> Option<String> {
    let ours = peer.ours.encode(text);
    let theirs = match (peer.encode)(text) {
        Ok(ids) => ids,
        Err(error) => return Some(format!("they fail: {error}")),
    };
    if ours == theirs {
        return match peer.ours.decode(&ours) {
            Ok(decoded) if decoded == text => None,
            _ => Some("the ids decode to another text".into()),
        };
    }
    let at = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
    let show = |ids: &[u32]| {
        let ids = &ids[at.min(ids.len())..(at + 6).min(ids.len())];
        let bytes = peer.ours.decode_bytes(ids).unwrap_or_default();
        format!("{ids:?} `{}`", bytes.escape_ascii())
    };
    Some(format!("token {at}: ours {}, theirs {}", show(&ours), show(&theirs)))
}

fn tiktoken(ours: &Tokenizer) -> Result<Peer> {
    let ranks = (0..ours.num_ranks() as u32).filter_map(|id| Some((ours.token_bytes(id)?.to_vec(), id)));
    let bpe = CoreBPE::new(ranks.collect(), HashMap::default(), PATTERN)?;
    let encode: Encode = Box::new(move |text| Ok(bpe.encode_ordinary(text)));
    Ok(Peer { name: "tiktoken-rs, Llama 3's split".into(), ours: ours.clone(), encode })
}

/// Reads the `tokenizer.json` that we write.
fn tokenizers(ours: &Tokenizer) -> Result<Peer> {
    let folder = tempfile::tempdir()?;
    ours.save_hf(folder.path())?;
    let mut theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json"))?;
    // Names of special tokens are text.
    theirs.set_encode_special_tokens(true);
    let split = match ours.split() {
        Split::Llama3 => "Llama 3's",
        Split::Gpt2 => "GPT-2's",
        Split::SmolLm => "SmolLM2's",
    };
    let encode: Encode = Box::new(move |text| Ok(theirs.encode_fast(text, false)?.get_ids().to_vec()));
    Ok(Peer { name: format!("tokenizers, {split} split"), ours: ours.clone(), encode })
}

/// Every file below `path` that is UTF-8, packed by gzip or not.
fn read(path: &Path, texts: &mut Vec<String>) -> Result<()> {
    let kind = std::fs::symlink_metadata(path).map_err(|e| format!("`{}`: {e}", path.display()))?;
    if kind.is_dir() {
        let mut entries =
            std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
        entries.sort_unstable();
        return entries.iter().try_for_each(|entry| read(entry, texts));
    }
    if !kind.is_file() {
        return Ok(());
    }
    let mut contents = std::fs::read(path)?;
    if path.extension().is_some_and(|extension| extension == "gz") {
        let mut unpacked = Vec::new();
        if GzDecoder::new(contents.as_slice()).read_to_end(&mut unpacked).is_err() {
            return Ok(());
        }
        contents = unpacked;
    }
    let Ok(text) = String::from_utf8(contents) else { return Ok(()) };
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.floor_char_boundary(LONGEST));
        texts.push(part.to_owned());
        rest = after;
    }
    Ok(())
}

/// Random texts: any characters, those of one block, and those between which patterns tell.
fn random(bytes: usize) -> Vec<String> {
    const TELLING: &str = " \u{20}\n\r\t\u{b}\u{85}\u{a0}\u{2028}\u{3000}''’sStTreEvVmMlLdDſKxé字ا\u{301}\u{94d}Ⅷ12٣½²〇.!_-€🦙\u{200d}\0";
    let telling: Vec<char> = TELLING.chars().collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 32) as u32) % below
    };
    let (mut texts, mut total) = (Vec::new(), 0);
    while total < bytes {
        let (kind, len, block) = (next(4), 1 + next(400), next(0x11_00));
        let text: String = (0..len)
            .filter_map(|_| match kind {
                0 => char::from_u32(next(0x11_0000)),
                1 => char::from_u32(block << 8 | next(0x100)),
                2 => char::from_u32(next(0x3000)),
                _ => Some(telling[next(telling.len() as u32) as usize]),
            })
            .collect();
        total += text.len();
        texts.push(text);
    }
    texts
}
