//! `llamero pull`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use globset::{Glob, GlobSet, GlobSetBuilder};

use super::print;
use crate::hub::{Fetched, Hub, RemoteFile, Repository};
use crate::progress::Progress;
use crate::report::format::bytes;

#[derive(Args)]
#[command(
    after_help = "Without `--include` it fetches safetensors, configuration, tokenizer and licence. The token for closed \
    models comes from `HF_TOKEN`, another hub's address from `HF_ENDPOINT`. A call that was cut off goes on where it was.\n\n\
    Examples:\n  \
    llamero pull HuggingFaceTB/SmolLM2-135M-Instruct\n  \
    llamero pull meta-llama/Llama-3.1-8B --include 'original/*' --dir llama\n  \
    llamero pull bartowski/SmolLM2-135M-Instruct-GGUF --include '*Q8_0.gguf'"
)]
pub(crate) struct PullArgs {
    /// The model, as ORG/MODEL.
    model: String,
    /// Branch, tag or commit.
    #[arg(long, default_value = "main")]
    revision: String,
    /// Fetch files whose path matches, e.g. `*.gguf`; may be given several times.
    #[arg(long)]
    include: Vec<String>,
    /// Leave out files whose path matches; may be given several times.
    #[arg(long)]
    exclude: Vec<String>,
    /// Folder for the files; the model's name when absent.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Endings of the files that a model is opened from, and its licence, in the repository's own folder.
const ENDINGS: [&str; 6] = [".safetensors", ".json", ".jinja", ".model", ".txt", ".md"];
/// Files without such an ending that belong to it.
const NAMES: [&str; 3] = ["LICENSE", "LICENCE", "NOTICE"];
/// Beside the shards some repositories hold the same weights once more, under this name.
const DOUBLE: &str = "consolidated";

pub(crate) fn pull(args: &PullArgs) -> Result<()> {
    let hub = Hub::from_env()?;
    let chosen = Choice::new(&args.include, &args.exclude)?;
    let repository = hub.repository(&args.model, &args.revision)?;
    let files: Vec<&RemoteFile> = repository.files.iter().filter(|file| chosen.takes(&file.name)).collect();
    chosen.check(&repository, &files)?;
    let dir = args.dir.clone().unwrap_or_else(|| args.model.rsplit('/').next().unwrap_or_default().into());
    let total: u64 = files.iter().map(|file| file.size).sum();
    say!("{} files, {}, commit {}, to `{}`", files.len(), bytes(total), repository.commit, dir.display());
    fetch_all(&hub, &repository, &files, &dir, total)?;
    print(dir.display())
}

fn fetch_all(
    hub: &Hub,
    repository: &Repository,
    files: &[&RemoteFile],
    dir: &std::path::Path,
    total: u64,
) -> Result<()> {
    let mut progress = Progress::new("pull", total, "bytes");
    let (mut done, mut there) = (0, 0);
    for file in files {
        let fetched = hub.fetch(repository, file, dir, &|length| progress.at(done + length, &file.name))?;
        done += file.size;
        if fetched == Fetched::There {
            // What was there says nothing about the speed of what is to come.
            there += file.size;
            progress = progress.from(there);
            progress.at(done, &file.name);
        }
    }
    progress.finish();
    Ok(())
}

/// Which files are wanted.
struct Choice {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Choice {
    fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let include = if include.is_empty() { None } else { Some(globs("include", include)?) };
        Ok(Self { include, exclude: globs("exclude", exclude)? })
    }

    fn takes(&self, name: &str) -> bool {
        let included = match &self.include {
            Some(globs) => globs.is_match(name),
            None => is_of_a_model(name),
        };
        included && !self.exclude.is_match(name)
    }

    /// Nothing, or nothing but descriptions, is not what anybody wants.
    fn check(&self, repository: &Repository, files: &[&RemoteFile]) -> Result<()> {
        let weights = |name: &str| [".safetensors", ".gguf", ".pth"].iter().any(|end| name.ends_with(end));
        let enough =
            if self.include.is_some() { !files.is_empty() } else { files.iter().any(|f| weights(&f.name)) };
        if enough {
            return Ok(());
        }
        let all = || repository.files.iter().map(|file| file.name.as_str());
        let mut some: Vec<&str> = all().filter(|name| weights(name)).collect();
        if some.is_empty() {
            some = all().collect();
        }
        let more = some.len().saturating_sub(12);
        some.truncate(12);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = if self.include.is_some() {
            "no file that is asked for"
        } else {
            "no safetensors in its own folder"
        };
        bail!(
            "`{}` has {what}; it has `{}`{more}. hint: choose with `--include`, e.g. `--include '*.gguf'`",
            repository.name,
            some.join("`, `")
        )
    }
}

fn globs(option: &str, patterns: &[String]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).with_context(|| format!("`--{option} {pattern}`"))?);
    }
    Ok(set.build()?)
}

fn is_of_a_model(name: &str) -> bool {
    let ends =
        ENDINGS.iter().any(|end| name.ends_with(end)) || NAMES.iter().any(|start| name.starts_with(start));
    ends && !name.contains('/') && !name.starts_with(DOUBLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_without_being_asked_for() {
        let choice = Choice::new(&[], &[]).unwrap();
        for name in [
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "merges.txt",
            "LICENSE",
            "LICENSE.txt",
        ] {
            assert!(choice.takes(name), "{name}");
        }
        for name in [
            "pytorch_model.bin",
            "original/consolidated.00.pth",
            "original/params.json",
            "onnx/model.onnx",
            "consolidated.safetensors",
            "model-Q4_K_M.gguf",
            ".gitattributes",
            "runs/events.json",
        ] {
            assert!(!choice.takes(name), "{name}");
        }
    }

    #[test]
    fn patterns_choose() {
        let choice = |include: &[&str], exclude: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            Choice::new(&own(include), &own(exclude))
        };
        let some = choice(&["*.gguf", "original/*"], &["*Q4*"]).unwrap();
        assert!(some.takes("a-Q8_0.gguf") && some.takes("original/params.json"));
        assert!(!some.takes("a-Q4_0.gguf") && !some.takes("config.json"));
        let most = choice(&[], &["*.md"]).unwrap();
        assert!(most.takes("config.json") && !most.takes("README.md"));
        let error = choice(&["[a"], &[]).err().unwrap();
        assert!(format!("{error:#}").contains("--include [a"), "{error:#}");
    }
}
