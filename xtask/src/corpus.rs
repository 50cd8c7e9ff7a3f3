//! `cargo xtask corpus`: a corpus as large as asked from real documents, repeated and changed, the same for the same documents.
//!
//! A tenth of it are documents as they are, two tenths near copies (every 33rd word is another), the rest is new: nearly every
//! third word of letters is another one of the documents' own words, so that hardly a run of words and hardly a line is left.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub(crate) const USAGE: &str = "--text FILE.jsonl --out DIR --megabytes N [--file-megabytes N] [--seed S]";

#[derive(Debug, PartialEq)]
struct Options {
    text: PathBuf,
    out: PathBuf,
    bytes: u64,
    file_bytes: u64,
    seed: u64,
}

impl Options {
    fn parse(args: &[&str]) -> Result<Self, String> {
        let (mut text, mut out, mut megabytes, mut file_megabytes, mut seed) = (None, None, None, 64, 1);
        for pair in args.chunks(2) {
            let [key, value] = pair else { return Err(format!("`{}` has no value", pair[0])) };
            let number = || match value.parse::<u64>() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(format!("`{key} {value}` is not a number above 0")),
            };
            match *key {
                "--text" => text = Some(PathBuf::from(value)),
                "--out" => out = Some(PathBuf::from(value)),
                "--megabytes" => megabytes = Some(number()?),
                "--file-megabytes" => file_megabytes = number()?,
                "--seed" => seed = number()?,
                _ => return Err(format!("unknown option `{key}`")),
            }
        }
        let (Some(text), Some(out), Some(megabytes)) = (text, out, megabytes) else {
            return Err("`--text`, `--out` and `--megabytes` are needed".into());
        };
        let size = |megabytes: u64| megabytes.saturating_mul(1_000_000);
        Ok(Self { text, out, bytes: size(megabytes), file_bytes: size(file_megabytes), seed })
    }
}

/// Writes `part-00000.jsonl` and so on.
pub(crate) fn run(args: &[&str]) -> Result<String, String> {
    let options = Options::parse(args).map_err(|e| format!("{e}\nusage: cargo xtask corpus {USAGE}"))?;
    let texts = read(&options.text)?;
    let cannot = |e: std::io::Error| format!("cannot write in `{}`: {e}", options.out.display());
    fs::create_dir_all(&options.out).map_err(cannot)?;
    let mut maker = Maker::new(&texts, options.seed);
    let (mut documents, mut bytes, mut files) = (0_u64, 0_u64, 0);
    while bytes < options.bytes {
        let path = options.out.join(format!("part-{files:05}.jsonl"));
        let mut file = BufWriter::new(File::create(path).map_err(cannot)?);
        let end = options.bytes.min(bytes + options.file_bytes);
        while bytes < end {
            let text = maker.document();
            bytes += text.len() as u64;
            let line = json!({ "id": format!("{documents:09}"), "text": text });
            writeln!(file, "{line}").map_err(cannot)?;
            documents += 1;
        }
        file.flush().map_err(cannot)?;
        files += 1;
    }
    Ok(format!("corpus: {documents} documents, {bytes} bytes of text in {files} files"))
}

fn read(path: &Path) -> Result<Vec<String>, String> {
    let cannot = |e: &dyn std::fmt::Display| format!("cannot read `{}`: {e}", path.display());
    let mut texts = Vec::new();
    for (line, number) in BufReader::new(File::open(path).map_err(|e| cannot(&e))?).lines().zip(1..) {
        let value: Value = serde_json::from_str(&line.map_err(|e| cannot(&e))?)
            .map_err(|e| cannot(&format!("line {number}: {e}")))?;
        let text = value["text"].as_str().ok_or_else(|| cannot(&format!("line {number} has no `text`")))?;
        texts.push(text.to_owned());
    }
    if texts.is_empty() { Err(cannot(&"it has no lines")) } else { Ok(texts) }
}

struct Maker<'a> {
    texts: &'a [String],
    /// Words of letters, as often as they come in a sample of the texts.
    words: Vec<&'a str>,
    state: u64,
}

impl<'a> Maker<'a> {
    fn new(texts: &'a [String], seed: u64) -> Self {
        let words = texts.iter().step_by(1 + texts.len() / 2000).flat_map(|text| text.split(' '));
        let words = words.filter(|word| is_word(word)).collect();
        Self { texts, words, state: seed }
    }

    fn below(&mut self, limit: usize) -> usize {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * limit as u128) >> 64) as usize
    }

    fn document(&mut self) -> String {
        let texts = self.texts;
        let text = &texts[self.below(texts.len())];
        let changed_in_thousand = match self.below(10) {
            0 => return text.clone(),
            1 | 2 => 30,
            _ => 350,
        };
        let mut made = String::with_capacity(text.len() + text.len() / 8);
        for (at, word) in text.split(' ').enumerate() {
            if at > 0 {
                made.push(' ');
            }
            let is_other = is_word(word) && self.below(1000) < changed_in_thousand && !self.words.is_empty();
            let number = self.below(self.words.len().max(1));
            made.push_str(if is_other { self.words[number] } else { word });
        }
        made
    }
}

fn is_word(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_the_same_for_a_seed_and_mostly_new() {
        let texts = vec!["one two three four five six seven eight nine ten. ".repeat(20)];
        let make = |seed| {
            let mut maker = Maker::new(&texts, seed);
            (0..400).map(|_| maker.document()).collect::<Vec<_>>()
        };
        let (first, again, other) = (make(1), make(1), make(2));
        assert!(first == again && first != other);
        let same = first.iter().filter(|text| **text == texts[0]).count();
        assert!((20..=60).contains(&same), "{same}");
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let left =
            |text: &String| words(text).iter().zip(words(&texts[0])).filter(|(a, b)| **a == *b).count();
        let near = first.iter().filter(|text| (180..200).contains(&left(text))).count();
        assert!((50..=110).contains(&near), "{near}");
    }

    #[test]
    fn files_hold_as_much_as_was_asked() {
        let folder = std::env::temp_dir().join(format!("llamero-xtask-corpus-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (text, out) = (folder.join("text.jsonl"), folder.join("out"));
        fs::write(&text, json!({ "text": "some words ".repeat(1000) }).to_string()).unwrap();
        let shown = |path: &Path| path.to_string_lossy().into_owned();
        let (text, out) = (shown(&text), shown(&out));
        run(&["--text", &text, "--out", &out, "--megabytes", "3", "--file-megabytes", "1"]).unwrap();
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
        for entry in fs::read_dir(&out).unwrap() {
            let size = entry.unwrap().metadata().unwrap().len();
            assert!((1_000_000..1_100_000).contains(&size), "{size}");
        }
        fs::remove_dir_all(&folder).unwrap();
        assert!(run(&["--text", &text]).unwrap_err().contains("--megabytes"));
        assert!(Options::parse(&["--megabytes", "0"]).unwrap_err().contains("above 0"));
    }
}
