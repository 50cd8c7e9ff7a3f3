//! The command line of `cargo xtask bench`.

use std::path::PathBuf;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Gemm,
    Train,
    Memory,
    Curves,
    Attention,
    Infer,
    Tokenizer,
    TrainTokenizer,
    Curate,
    All,
}

#[derive(Debug)]
pub(super) struct Options {
    pub(super) what: What,
    pub(super) python: Option<PathBuf>,
    pub(super) llamero: Option<PathBuf>,
    pub(super) samples: usize,
    pub(super) threads: Option<usize>,
    /// tokenizer: each is measured.
    pub(super) thread_counts: Vec<usize>,
    pub(super) json: Option<PathBuf>,
    pub(super) filter: String,
    pub(super) shapes: Vec<String>,
    pub(super) steps: Option<usize>,
    pub(super) ours: Vec<String>,
    pub(super) text: Option<PathBuf>,
    pub(super) models: Vec<PathBuf>,
    pub(super) llamacpp: Option<PathBuf>,
    pub(super) hf: Option<PathBuf>,
    pub(super) tokenizer: Option<PathBuf>,
    pub(super) vocab_size: usize,
}

impl Options {
    pub(super) fn parse(args: &[&str]) -> Result<Self, String> {
        let (what, rest) = match args {
            [name, rest @ ..] if !name.starts_with("--") => (what(name)?, rest),
            _ => (What::All, args),
        };
        let mut options = Self {
            what,
            python: None,
            llamero: None,
            samples: 5,
            threads: None,
            thread_counts: Vec::new(),
            json: None,
            filter: String::new(),
            shapes: Vec::new(),
            steps: None,
            ours: Vec::new(),
            text: None,
            models: Vec::new(),
            llamacpp: None,
            hf: None,
            tokenizer: None,
            vocab_size: 32_768,
        };
        for pair in rest.chunks(2) {
            let [key, value] = pair else { return Err(format!("`{}` has no value", pair[0])) };
            options.set(key, value)?;
        }
        options.check()?;
        Ok(options)
    }

    fn check(&mut self) -> Result<(), String> {
        if self.what == What::Infer {
            if self.models.is_empty() || self.llamacpp.is_none() {
                return Err("`--model` and `--llamacpp` are needed (benches/peers/README.md)".into());
            }
            if self.hf.is_none() {
                // llama.cpp's script needs the standard library only.
                self.python.get_or_insert("python3".into());
            }
        }
        if self.what == What::Curate && self.thread_counts.is_empty() {
            // The peer's worker has one.
            self.thread_counts = vec![1];
        }
        if self.what == What::Tokenizer {
            if self.tokenizer.is_none() || self.text.is_none() {
                return Err("`--tokenizer` and `--text` are needed".into());
            }
            if self.thread_counts.is_empty() {
                self.thread_counts = vec![1, std::thread::available_parallelism().map_or(1, usize::from)];
                self.thread_counts.dedup();
            }
        } else if let [first, rest @ ..] = self.thread_counts.as_slice() {
            if !rest.is_empty() {
                return Err("only `tokenizer` takes more than one number of `--threads`".into());
            }
            self.threads = Some(*first);
        }
        if matches!(self.what, What::TrainTokenizer | What::Curate)
            && (self.text.is_none() || self.python.is_none())
        {
            return Err("`--text` and `--python` are needed (benches/peers/README.md)".into());
        }
        if self.python.is_none() && self.what != What::Attention {
            return Err("`--python` is needed: a Python that has the peers (benches/peers/README.md)".into());
        }
        Ok(())
    }

    /// Modules that the Python must have.
    pub(super) fn modules(&self) -> Option<&'static str> {
        match (self.what, &self.hf) {
            (What::Attention | What::Tokenizer | What::TrainTokenizer | What::Curate, _)
            | (What::Infer, None) => None,
            (What::Infer, Some(_)) => Some("torch, transformers"),
            (What::Curves | What::All, _) => Some("torch, numpy, safetensors"),
            (What::Gemm | What::Train | What::Memory, _) => Some("torch"),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || positive(key, value);
        let list =
            |separator: char| value.split(separator).filter(|s| !s.is_empty()).map(str::to_owned).collect();
        match key {
            "--python" => self.python = Some(value.into()),
            "--llamero" => self.llamero = Some(value.into()),
            "--samples" => self.samples = number()?,
            "--threads" => self.thread_counts = counts(key, value)?,
            "--json" => self.json = Some(value.into()),
            "--vocab-size" => self.vocab_size = number()?,
            "--filter" => self.filter = value.to_owned(),
            "--shape" => self.shapes = list(','),
            "--steps" => self.steps = Some(number()?),
            "--ours" => self.ours = list(' '),
            "--text" => self.text = Some(value.into()),
            "--model" => {
                self.models = value.split(',').filter(|s| !s.is_empty()).map(PathBuf::from).collect()
            }
            "--llamacpp" => self.llamacpp = Some(value.into()),
            "--hf" => self.hf = Some(value.into()),
            "--tokenizer" => self.tokenizer = Some(value.into()),
            _ => return Err(format!("unknown option `{key}`")),
        }
        Ok(())
    }
}

fn positive(key: &str, value: &str) -> Result<usize, String> {
    match value.parse::<usize>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("`{key} {value}` is not a number above 0")),
    }
}

fn counts(key: &str, value: &str) -> Result<Vec<usize>, String> {
    value.split(',').map(|one| positive(key, one)).collect()
}

fn what(name: &str) -> Result<What, String> {
    Ok(match name {
        "gemm" => What::Gemm,
        "train" => What::Train,
        "memory" => What::Memory,
        "curves" => What::Curves,
        "attention" => What::Attention,
        "infer" => What::Infer,
        "tokenizer" => What::Tokenizer,
        "tokenizer-train" => What::TrainTokenizer,
        "curate" => What::Curate,
        "all" => What::All,
        _ => return Err(format!("unknown benchmark `{name}`")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options =
            Options::parse(&["train", "--python", "py", "--shape", "8m,125m", "--ours", "--dtype f32"]);
        let options = options.unwrap();
        assert_eq!((options.what, options.samples), (What::Train, 5));
        assert_eq!(options.shapes, ["8m", "125m"]);
        assert_eq!(options.ours, ["--dtype", "f32"]);
        assert_eq!(Options::parse(&["--python", "py"]).unwrap().what, What::All);
        assert!(Options::parse(&["attention"]).is_ok());
        let infer = ["infer", "--model", "a.gguf,b.gguf", "--llamacpp", "bin"];
        let alone = Options::parse(&infer).unwrap();
        assert_eq!((alone.models.len(), alone.python, alone.what), (2, Some("python3".into()), What::Infer));
        let beside = Options::parse(&[&infer[..], &["--hf", "folder", "--python", "py"]].concat()).unwrap();
        assert_eq!(beside.modules(), Some("torch, transformers"));
        assert!(
            Options::parse(&[&infer[..], &["--hf", "folder"]].concat()).unwrap_err().contains("--python")
        );
        let tokenizer = [
            "tokenizer",
            "--python",
            "py",
            "--tokenizer",
            "t.model",
            "--text",
            "t.jsonl",
            "--threads",
            "1,3",
        ];
        let tokenizer = Options::parse(&tokenizer).unwrap();
        assert_eq!((tokenizer.thread_counts, tokenizer.threads), (vec![1, 3], None));
        assert_eq!(Options::parse(&["attention", "--threads", "3"]).unwrap().threads, Some(3));
        let curate = Options::parse(&["curate", "--python", "py", "--text", "d.jsonl"]).unwrap();
        assert_eq!((curate.threads, curate.modules()), (Some(1), None));
        for (args, says) in [
            (&["infer", "--model", "a.gguf"][..], "`--llamacpp`"),
            (&["tokenizer-train", "--python", "py"], "`--text`"),
            (&["curate", "--python", "py"], "`--text`"),
            (&["gemm"], "--python"),
            (&["gemm", "--python", "py", "--threads", "1,2"], "only `tokenizer`"),
            (&["tokenizer", "--python", "py", "--text", "t.jsonl"], "`--tokenizer`"),
            (&["tokenizer", "--python", "py", "--threads", "1,0"], "`--threads 0`"),
            (&["gems", "--python", "py"], "`gems`"),
            (&["gemm", "--python"], "no value"),
            (&["gemm", "--python", "py", "--samples", "0"], "above 0"),
            (&["gemm", "--pyton", "py"], "unknown option `--pyton`"),
        ] {
            let error = Options::parse(args).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
