//! `llamero tokenizer decode`.

use std::io::{BufRead, BufWriter, Stdout, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use llamero_tokenizer::{Error, Tokenizer};

use super::{IdsLine, Source, TextLine, TokenizerArg};

/// No id has more digits; what is longer is cut in messages.
const LONGEST: usize = 40;

#[derive(Args)]
#[command(
    after_help = "Ids are decoded as they are read, to exactly the bytes that they stand for. With --jsonl, bytes that are no UTF-8 become \
    U+FFFD, for JSON cannot hold them.\n\n\
    Examples:\n  \
    echo '9906 1917' | llamero tokenizer decode --tokenizer tokenizer.model\n  \
    llamero tokenizer decode --tokenizer tokenizer.model --skip-special ids.txt\n  \
    llamero tokenizer decode --tokenizer tokenizer.model --jsonl < ids.jsonl"
)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    tokenizer: TokenizerArg,
    /// Read lines {"ids": […]} and write lines {"text": …}.
    #[arg(long)]
    jsonl: bool,
    /// Leave special tokens out; without it they give their names.
    #[arg(long)]
    skip_special: bool,
    /// Files with ids between white space; standard input when absent.
    files: Vec<PathBuf>,
}

pub(super) fn decode(args: &DecodeArgs) -> Result<()> {
    let decoder = Decoder { tokenizer: args.tokenizer.load()?, skip_special: args.skip_special };
    let mut out = BufWriter::new(std::io::stdout());
    for file in Source::check(&args.files)? {
        let source = Source::open(&file)?;
        if args.jsonl { decoder.lines(source, &mut out) } else { decoder.words(source, &mut out) }?;
    }
    Ok(out.flush()?)
}

struct Decoder {
    tokenizer: Tokenizer,
    skip_special: bool,
}

impl Decoder {
    /// The bytes of an id; none for a special token that is left out.
    fn bytes(&self, id: u32) -> Result<&[u8], Error> {
        if self.skip_special && self.tokenizer.special().contains(id) {
            return Ok(&[]);
        }
        let unknown = Error::UnknownId { id, vocab_size: self.tokenizer.vocab_size() };
        self.tokenizer.token_bytes(id).ok_or(unknown)
    }

    fn lines(&self, source: Source, out: &mut BufWriter<Stdout>) -> Result<()> {
        let name = source.name.clone();
        source.for_lines(r#"{"ids": […]}"#, |IdsLine { ids }, line, _| {
            let bytes = ids.iter().map(|&id| self.bytes(id)).collect::<Result<Vec<&[u8]>, _>>();
            let bytes = bytes.with_context(|| format!("line {line} of {name}"))?.concat();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            serde_json::to_writer(&mut *out, &TextLine { text })?;
            Ok(out.write_all(b"\n")?)
        })
    }

    fn words(&self, source: Source, out: &mut BufWriter<Stdout>) -> Result<()> {
        let Source { name, mut reader } = source;
        let (mut word, mut line) = (Vec::new(), 1_usize);
        loop {
            let bytes = reader.fill_buf().with_context(|| name.clone())?;
            let (len, ended) = (bytes.len(), bytes.is_empty());
            for &byte in if ended { b" ".as_slice() } else { bytes } {
                if !byte.is_ascii_whitespace() {
                    // One more than is shown, so that it is too long.
                    if word.len() <= LONGEST {
                        word.push(byte);
                    }
                    continue;
                }
                if !word.is_empty() {
                    self.word(&word, out).with_context(|| format!("line {line} of {name}"))?;
                    word.clear();
                }
                line += usize::from(byte == b'\n');
            }
            if ended {
                return Ok(());
            }
            reader.consume(len);
        }
    }

    fn word(&self, word: &[u8], out: &mut BufWriter<Stdout>) -> Result<()> {
        let id = std::str::from_utf8(word).ok().and_then(|word| word.parse().ok());
        let Some(id) = id else {
            let shown = String::from_utf8_lossy(&word[..word.len().min(LONGEST)]);
            bail!(
                "`{shown}` is not a token id. hint: give whole numbers between white space, or lines with --jsonl"
            );
        };
        Ok(out.write_all(self.bytes(id)?)?)
    }
}
