//! Expansion of `curate.sources` into candidate files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use walkdir::{DirEntry, WalkDir};

use crate::rules::is_notice;
use crate::version::split_crate;
use crate::{CurateConfig, CurateError};

/// The word in `curate.sources` that stands for the sources of the crates that cargo has unpacked:
/// `$CARGO_HOME/registry/src/*/`, with `CARGO_HOME` defaulting to `$HOME/.cargo`.
pub const REGISTRY: &str = "cargo-registry";

/// A candidate file, found but not yet read.
pub(crate) struct Found {
    /// Where it lies on this machine.
    pub(crate) path: PathBuf,
    /// Path below its source, with `/` between components.
    pub(crate) relative: String,
    /// Size that the file system states; only a forecast.
    pub(crate) bytes: u64,
    /// Whether it comes from the cargo registry.
    pub(crate) registry: bool,
    /// Why it (or the folder) could not be examined.
    pub(crate) problem: Option<String>,
}

/// What a walk over one folder saw.
#[derive(Default)]
struct Walk {
    files: Vec<Found>,
    /// Regular files that the source's pattern does not take.
    unmatched: u64,
    /// Symbolic links and special files, which are never read.
    links: u64,
    /// Hidden entries and build folders, which are not entered.
    hidden: BTreeSet<PathBuf>,
}

impl Walk {
    /// What there was instead of candidate files.
    fn describe(&self) -> String {
        let counts = [
            (self.unmatched, "files of other names"),
            (self.links, "symbolic links or special files, which are never read"),
            (self.hidden.len() as u64, "hidden entries or build folders, which are skipped"),
        ];
        let seen: Vec<_> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{what} ({count})"))
            .collect();
        if seen.is_empty() { "it is empty".to_owned() } else { format!("it has only {}", seen.join("; ")) }
    }
}

/// What is passed over, as reports call it.
const LINKS: &str = "symbolic links or special files";
const HIDDEN: &str = "hidden entries or build folders";

/// All candidate files of all sources, in no particular order.
///
/// With them goes what was passed over, by what it is: [`CurateReport::passed`](crate::CurateReport::passed).
pub(crate) fn expand(
    config: &CurateConfig,
    cargo_home: Option<&Path>,
) -> Result<(Vec<Found>, BTreeMap<String, u64>), CurateError> {
    let (mut found, mut passed) = (Vec::new(), BTreeMap::new());
    for entry in &config.sources {
        let walk = if entry == REGISTRY {
            registry(cargo_home, config.crates.as_deref())?
        } else {
            let path = Path::new(entry);
            match path.metadata() {
                Ok(meta) if meta.is_dir() => walk(path, false, &|_| true),
                Ok(meta) if meta.is_file() => single_file(path, meta.len()),
                Ok(_) => return Err(bad(entry, "is neither a folder nor a regular file")),
                Err(_) if entry.contains(GLOB_CHARACTERS) => glob(entry)?,
                Err(error) => return Err(bad(entry, &format!("cannot be opened: {error}"))),
            }
        };
        if let Some(root) = walk.files.iter().find(|file| file.relative.is_empty()) {
            let cause = root.problem.as_deref().unwrap_or("unknown cause");
            return Err(bad(entry, &format!("cannot be listed: {cause}")));
        }
        if walk.files.is_empty() {
            return Err(CurateError::NoMatch {
                entry: entry.clone(),
                found: walk.describe(),
                hint: "point `curate.sources` at a folder, file or glob with text or source code".to_owned(),
            });
        }
        for (count, what) in [(walk.links, LINKS), (walk.hidden.len() as u64, HIDDEN)] {
            // Every crate has hidden files of cargo's.
            if count > 0 && entry != REGISTRY {
                *passed.entry(what.to_owned()).or_default() += count;
            }
        }
        found.extend(walk.files);
    }
    Ok((found, passed))
}

fn bad(entry: &str, problem: &str) -> CurateError {
    CurateError::BadSource {
        entry: entry.to_owned(),
        problem: problem.to_owned(),
        hint: format!(
            "`curate.sources` takes folders, files, globs such as `docs/**/*.md`, and `{REGISTRY}`; relative paths start in the \
             folder that llamero is run in"
        ),
    }
}

fn single_file(path: &Path, bytes: u64) -> Walk {
    // A path that is a file has a last component; `..` and `/` are folders.
    let relative = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = Found { path: path.to_path_buf(), relative, bytes, registry: false, problem: None };
    Walk { files: vec![file], ..Walk::default() }
}

/// Characters that make a source a glob.
pub(crate) const GLOB_CHARACTERS: [char; 4] = ['*', '?', '[', '{'];

/// Splits a glob at its first component with a pattern, and walks the folder before it.
fn glob(entry: &str) -> Result<Walk, CurateError> {
    let pattern_start = entry.find(GLOB_CHARACTERS).unwrap_or(entry.len());
    let (base, pattern) = match entry[..pattern_start].rfind('/') {
        Some(0) => ("/", &entry[1..]),
        Some(slash) => (&entry[..slash], &entry[slash + 1..]),
        None => (".", entry),
    };
    let matcher: GlobMatcher = GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|error| bad(entry, &format!("is not a valid glob: {}", error.kind())))?
        .compile_matcher();
    if !Path::new(base).is_dir() {
        return Err(bad(entry, &format!("starts at `{base}`, which is not a folder")));
    }
    Ok(walk(Path::new(base), false, &|relative| matcher.is_match(relative)))
}

/// The crate folders of the cargo registry, sorted: what `cargo-registry` stands for now.
///
/// # Errors
/// There is no registry on this machine.
pub fn registry_crates() -> Result<Vec<String>, CurateError> {
    Ok(registry_folders(cargo_home().as_deref())?.into_iter().map(|(name, _)| name).collect())
}

/// `$CARGO_HOME`, or `$HOME/.cargo`.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CARGO_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
}

fn registry_failure(problem: String) -> CurateError {
    CurateError::BadSource {
        entry: REGISTRY.to_owned(),
        problem,
        hint: "run `cargo fetch` in any Rust project first, or set `CARGO_HOME`, or point `curate.sources` at a folder \
               of text"
            .to_owned(),
    }
}

/// Name and path of every crate folder below every index folder, sorted. Of the folders of one name, which hold the same
/// crate, there is only the first, so that the number of indexes does not show.
fn registry_folders(cargo_home: Option<&Path>) -> Result<Vec<(String, PathBuf)>, CurateError> {
    let home =
        cargo_home.ok_or_else(|| registry_failure("needs `CARGO_HOME` or `HOME` to be set".to_owned()))?;
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        entries.map_err(|error| registry_failure(format!("cannot be listed at `{}`: {error}", dir.display())))
    };
    let mut folders = Vec::new();
    for index in list(&home.join("registry").join("src"))? {
        if !index.path().is_dir() {
            continue;
        }
        for entry in list(&index.path())? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if split_crate(&name).is_some() && entry.path().is_dir() {
                folders.push((name, entry.path()));
            }
        }
    }
    folders.sort();
    folders.dedup_by(|later, first| later.0 == first.0);
    Ok(folders)
}

/// The crate folders of every index, merged: paths start at the crate folder, so the index name does not show.
fn registry(cargo_home: Option<&Path>, crates: Option<&[String]>) -> Result<Walk, CurateError> {
    let folders = registry_folders(cargo_home)?;
    if let Some(missing) = crates.into_iter().flatten().find(|c| !folders.iter().any(|(name, _)| name == *c))
    {
        return Err(CurateError::BadSource {
            entry: REGISTRY.to_owned(),
            problem: format!("has no crate `{missing}`, which `curate.crates` names"),
            hint: "run `cargo fetch --locked` in the llamero checkout that made the recipe, or drop `curate.crates` to \
                   learn from the crates that are here"
                .to_owned(),
        });
    }
    let mut all = Walk::default();
    for (name, path) in folders {
        if crates.is_some_and(|crates| !crates.contains(&name)) {
            continue;
        }
        let part = walk(&path, true, &registry_wants);
        all.files.extend(part.files.into_iter().map(|file| {
            let relative =
                if file.relative.is_empty() { name.clone() } else { format!("{name}/{}", file.relative) };
            Found { relative, ..file }
        }));
        all.unmatched += part.unmatched;
        all.links += part.links;
        all.hidden.extend(part.hidden);
    }
    Ok(all)
}

/// Markdown, Rust, the manifest that cargo wrote, and licence-like files of a crate folder.
fn registry_wants(relative: &Path) -> bool {
    let Some(name) = relative.file_name().map(OsStr::to_string_lossy) else { return false };
    let known = relative.extension().is_some_and(|extension| {
        extension.eq_ignore_ascii_case("md") || extension.eq_ignore_ascii_case("rs")
    });
    known || name == "Cargo.toml" || is_notice(&name)
}

/// Walks `root` without following links. An entry that cannot be examined becomes a candidate with a problem, so that
/// it is listed as dropped rather than lost.
fn walk(root: &Path, registry: bool, wants: &dyn Fn(&Path) -> bool) -> Walk {
    let mut seen = Walk::default();
    let mut hidden = BTreeSet::new();
    let entries = WalkDir::new(root).into_iter().filter_entry(|entry| {
        let enter = entry.depth() == 0 || !is_hidden(entry);
        if !enter {
            hidden.insert(entry.path().to_path_buf());
        }
        enter
    });
    for entry in entries {
        let (path, problem) = match &entry {
            Ok(entry) if entry.file_type().is_dir() => continue,
            Ok(entry) if !entry.file_type().is_file() => {
                seen.links += 1;
                continue;
            }
            Ok(entry) => (entry.path(), None),
            Err(error) => {
                let cause =
                    error.io_error().map_or_else(|| "cannot be walked".to_owned(), ToString::to_string);
                (error.path().unwrap_or(root), Some(cause))
            }
        };
        let relative = path.strip_prefix(root).unwrap_or(path);
        if problem.is_none() && !wants(relative) {
            seen.unmatched += 1;
            continue;
        }
        let bytes = entry.as_ref().ok().and_then(|entry| entry.metadata().ok()).map_or(0, |meta| meta.len());
        let relative: Vec<_> = relative.iter().map(OsStr::to_string_lossy).collect();
        let file = Found { path: path.to_path_buf(), relative: relative.join("/"), bytes, registry, problem };
        seen.files.push(file);
    }
    seen.hidden = hidden;
    seen
}

/// Dot files and dot folders, and cargo's build folders: a `target` beside a `Cargo.toml` or tagged as a cache.
/// A module that happens to be called `target` is read.
fn is_hidden(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    if name.as_encoded_bytes().starts_with(b".") {
        return true;
    }
    name == "target"
        && entry.file_type().is_dir()
        && (entry.path().join("CACHEDIR.TAG").exists() || entry.path().with_file_name("Cargo.toml").exists())
}
