//! `cargo xtask kills`: a real recipe through `kill -9` at random moments of every stage, compared with a run that was
//! left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const USAGE: &str =
    "--recipe FILE --run DIR [--kills N] [--seed S] [--reference DIR] [--seconds T] [--set K=V]…";

/// Stages in order, with their usual shares of a run's time; those of a reference are used where there is one.
const STAGES: [(&str, f64); 8] = [
    ("plan", 0.01),
    ("curate", 0.01),
    ("tokenizer", 0.01),
    ("instruct", 0.005),
    ("tokens", 0.01),
    ("pretrain", 0.75),
    ("sft", 0.15),
    ("evaluate", 0.055),
];

const POLL: Duration = Duration::from_millis(1);

/// What the command line asks for.
#[derive(Debug, PartialEq)]
struct Options {
    recipe: PathBuf,
    run: PathBuf,
    kills: usize,
    seed: u64,
    reference: Option<PathBuf>,
    /// Expected length of the run, for when there is no reference.
    seconds: f64,
    /// Passed on to `llamero run`.
    sets: Vec<String>,
}

impl Options {
    fn parse(args: &[&str]) -> Result<Self, String> {
        let (mut recipe, mut run, mut reference) = (None, None, None);
        let (mut kills, mut seed, mut seconds, mut sets) = (10, 1, 480.0, Vec::new());
        for pair in args.chunks(2) {
            let [key, value] = pair else { return Err(format!("`{}` has no value", pair[0])) };
            let number = || value.parse::<f64>().map_err(|_| format!("`{key} {value}` is not a number"));
            match *key {
                "--recipe" => recipe = Some(PathBuf::from(value)),
                "--run" => run = Some(PathBuf::from(value)),
                "--reference" => reference = Some(PathBuf::from(value)),
                "--kills" => kills = number()? as usize,
                "--seed" => seed = number()? as u64,
                "--seconds" => seconds = number()?,
                "--set" => sets.push((*value).to_owned()),
                _ => return Err(format!("unknown option `{key}`")),
            }
        }
        let (Some(recipe), Some(run)) = (recipe, run) else {
            return Err("`--recipe` and `--run` are needed".into());
        };
        Ok(Self { recipe, run, kills, seed, reference, seconds, sets })
    }
}

/// A kill: so long after its stage has begun.
#[derive(Debug, PartialEq)]
struct Moment {
    stage: &'static str,
    delay: Duration,
}

/// Runs the recipe to its end through the kills, and compares it with the reference.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<String, String> {
    let options = Options::parse(args).map_err(|e| format!("{e}\nusage: cargo xtask kills {USAGE}"))?;
    let reference = options.reference.as_deref();
    let seconds = STAGES.map(|(stage, share)| (stage, expected(stage, share, &options)));
    let binary = crate::binary::build(root)?;
    let (begun, mut killed) = (Instant::now(), 0);
    for moment in moments(&seconds, options.kills, options.seed) {
        let started = Instant::now();
        let Some(stage) = attempt(&binary, &options, &moment)? else { break };
        killed += 1;
        let (after, aim) = (started.elapsed().as_secs_f64(), moment.stage);
        eprintln!("kill {killed} of {}: after {after:.2} s, in {stage} (aimed at {aim})", options.kills);
    }
    let status = spawn(&binary, &options)?.wait().map_err(|e| e.to_string())?;
    if !status.success() {
        let log = fs::read_to_string(log_file(&options)).unwrap_or_default();
        return Err(format!("the run failed after the kills:\n{log}"));
    }
    let leftovers = leftovers(&options.run)?;
    if !leftovers.is_empty() {
        return Err(format!("kills: left over in `{}`: {}", options.run.display(), leftovers.join(", ")));
    }
    let took = begun.elapsed().as_secs_f64();
    let compared =
        reference.map_or(Ok("no reference to compare with".into()), |r| compare(r, &options.run))?;
    if killed < options.kills {
        return Err(format!("kills: only {killed} of {} fell before the end; {compared}", options.kills));
    }
    Ok(format!("kills: {killed}, finished in {took:.1} s; {compared}"))
}

/// Seconds that a stage takes without kills. Only a recipe with a budget has a plan.
fn expected(stage: &str, share: f64, options: &Options) -> f64 {
    let recipe = fs::read_to_string(&options.recipe).unwrap_or_default();
    if stage == "plan" && !recipe.lines().any(|line| line.starts_with("budget")) {
        return 0.0;
    }
    let measured = options.reference.as_deref().and_then(|run| manifest(&run.join(stage)).ok());
    match (&options.reference, measured) {
        (None, _) => share * options.seconds,
        (_, Some(manifest)) => manifest["provenance"]["wall_seconds"].as_f64().unwrap_or(0.0),
        (Some(_), None) => 0.0,
    }
}

/// One kill in every stage as far as they go, the others by the stages' lengths. Kills of one stage share its time, so
/// that it is not over before the last of them.
fn moments(stages: &[(&'static str, f64)], kills: usize, seed: u64) -> Vec<Moment> {
    let mut dice = Dice(seed);
    let mut by_length: Vec<&(&str, f64)> = stages.iter().filter(|(_, seconds)| *seconds > 0.0).collect();
    by_length.sort_by(|a, b| b.1.total_cmp(&a.1));
    let total: f64 = stages.iter().map(|(_, seconds)| seconds).sum();
    let mut picked: Vec<&str> = by_length.iter().take(kills).map(|(stage, _)| *stage).collect();
    while picked.len() < kills && total > 0.0 {
        let mut at = dice.unit() * total;
        let stage = stages.iter().find(|(_, seconds)| {
            at -= seconds;
            at < 0.0
        });
        picked.extend(stage.map(|(stage, _)| *stage));
    }
    let mut all = Vec::new();
    for &(stage, seconds) in stages {
        let number = picked.iter().filter(|p| **p == stage).count();
        let most = seconds / number.max(1) as f64;
        all.extend((0..number).map(|_| Moment { stage, delay: Duration::from_secs_f64(dice.unit() * most) }));
    }
    all
}

/// Numbers that look random and depend on the seed alone.
struct Dice(u64);

impl Dice {
    /// A number from 0 to below 1.
    fn unit(&mut self) -> f64 {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Beside the run folder, so that the folder holds only what llamero made.
fn log_file(options: &Options) -> PathBuf {
    let mut name = options.run.clone().into_os_string();
    name.push(".log");
    name.into()
}

fn spawn(binary: &Path, options: &Options) -> Result<Child, String> {
    let path = log_file(options);
    let log = fs::File::create(&path).map_err(|e| format!("cannot create `{}`: {e}", path.display()))?;
    Command::new(binary)
        .arg("run")
        .arg(&options.recipe)
        .arg("--set")
        .arg(format!("run.dir={}", options.run.display()))
        .args(options.sets.iter().flat_map(|set| ["--set", set]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| format!("cannot run `{}`: {e}", binary.display()))
}

/// One process and its kill. Returns the stage that it hit, or nothing when the run ended first.
fn attempt(binary: &Path, options: &Options, moment: &Moment) -> Result<Option<String>, String> {
    let partial = |stage: &str| options.run.join(format!("{stage}.partial")).exists();
    // A later stage will do: the one that was aimed at may be done, or not be part of this recipe.
    let wanted = STAGES.iter().map(|(stage, _)| *stage).skip_while(|stage| *stage != moment.stage);
    let wanted: Vec<(&str, bool)> = wanted.map(|stage| (stage, partial(stage))).collect();
    let mut child = spawn(binary, options)?;
    let log = log_file(options);
    let has_begun = || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        wanted.iter().any(|(stage, resumes)| {
            let says = |what: &str| said.contains(&format!("{stage} {what}"));
            (!resumes && partial(stage)) || says("resuming") || says("done in") || says("already there")
        })
    };
    let mut kill_at = None;
    loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return if status.success() { Ok(None) } else { Err(format!("the run failed:\n{said}")) };
        }
        if kill_at.is_none() && has_begun() {
            kill_at = Some(Instant::now() + moment.delay);
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            break;
        }
        std::thread::sleep(POLL);
    }
    child.kill().and_then(|()| child.wait()).map_err(|e| format!("cannot kill the run: {e}"))?;
    let hit = STAGES.iter().find(|(stage, _)| options.run.join(format!("{stage}.partial")).exists());
    Ok(Some(hit.map_or("no stage".into(), |(stage, _)| (*stage).to_owned())))
}

/// Names of what an unfinished piece of work leaves, anywhere in a run folder.
fn leftovers(dir: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).map_err(|e| format!("cannot list `{}`: {e}", dir.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("cannot list `{}`: {e}", dir.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if [".partial", ".old", ".tmp"].iter().any(|end| name.ends_with(end)) || name == "resume" {
            found.push(name);
        } else if path.is_dir() {
            found.extend(leftovers(&path)?);
        }
    }
    Ok(found)
}

fn manifest(artifact: &Path) -> Result<Value, String> {
    let path = artifact.join("manifest.json");
    let text = fs::read(&path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("`{}`: {e}", path.display()))
}

/// Compares every stage's id and the bytes of every file, but the plan, which holds times.
fn compare(reference: &Path, run: &Path) -> Result<String, String> {
    let (mut files, mut bytes) = (0, 0);
    for (stage, _) in STAGES.iter().filter(|(stage, _)| *stage != "plan") {
        let (one, other) = (reference.join(stage), run.join(stage));
        let (first, second) = (manifest(&one)?, manifest(&other)?);
        if first["id"] != second["id"] {
            return Err(format!("kills: `{stage}` has id {}, the reference {}", second["id"], first["id"]));
        }
        let names = |manifest: &Value| -> Vec<String> {
            let listed = manifest["files"].as_array().into_iter().flatten();
            listed.filter_map(|file| file["path"].as_str().map(str::to_owned)).collect()
        };
        if names(&first) != names(&second) || names(&first).is_empty() {
            return Err(format!("kills: `{stage}` has other files than the reference"));
        }
        for name in names(&first) {
            let read =
                |path: &Path| fs::read(path).map_err(|e| format!("cannot read `{}`: {e}", path.display()));
            let (expected, found) = (read(&one.join(&name))?, read(&other.join(&name))?);
            if expected != found {
                return Err(format!("kills: `{stage}/{name}` differs from the reference"));
            }
            files += 1;
            bytes += found.len();
        }
    }
    Ok(format!("all ids and {files} files ({bytes} bytes, weights included) equal the reference"))
}

#[cfg(test)]
mod tests {
    use super::{Duration, Options, STAGES, compare, leftovers, moments};
    use std::fs;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--recipe", "r.toml", "--run", "d", "--kills", "3"]).unwrap();
        assert_eq!((options.kills, options.seed, options.reference), (3, 1, None));
        for (args, says) in [
            (&["--run", "d"][..], "--recipe"),
            (&["--recipe"], "no value"),
            (&["--kill", "3"], "unknown option `--kill`"),
            (&["--kills", "x"], "not a number"),
        ] {
            let error = Options::parse(args).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn every_stage_gets_a_kill_and_long_ones_more() {
        let stages = STAGES.map(|(stage, share)| (stage, 100.0 * share));
        let all = moments(&stages, 20, 3);
        assert_eq!(all.len(), 20);
        assert_eq!(all, moments(&stages, 20, 3));
        assert_ne!(all, moments(&stages, 20, 4));
        for (stage, seconds) in stages {
            let kills: Vec<_> = all.iter().filter(|m| m.stage == stage).collect();
            let total: Duration = kills.iter().map(|m| m.delay).sum();
            assert!(!kills.is_empty() && total.as_secs_f64() <= seconds, "{stage}");
        }
        assert!(all.iter().filter(|m| m.stage == "pretrain").count() > 6);
        assert_eq!(moments(&stages, 2, 1).iter().map(|m| m.stage).collect::<Vec<_>>(), ["pretrain", "sft"]);
    }

    #[test]
    fn differences_and_leftovers_are_named() {
        let root = std::env::temp_dir().join(format!("llamero-kills-{}", std::process::id()));
        for run in ["a", "b"] {
            for (stage, _) in STAGES {
                let dir = root.join(run).join(stage);
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join("manifest.json"), r#"{"id": "x", "files": [{"path": "w"}]}"#).unwrap();
                fs::write(dir.join("w"), "same").unwrap();
            }
        }
        let (a, b) = (root.join("a"), root.join("b"));
        let same = compare(&a, &b);
        fs::write(b.join("sft/w"), "else").unwrap();
        let bytes = compare(&a, &b);
        fs::write(b.join("tokens/manifest.json"), r#"{"id": "y", "files": []}"#).unwrap();
        let id = compare(&a, &b);
        fs::create_dir_all(b.join("sft.old")).unwrap();
        fs::write(b.join("sft/.w.tmp"), "").unwrap();
        let (clean, left) = (leftovers(&a), leftovers(&b));
        fs::remove_dir_all(&root).unwrap();
        assert!(same.unwrap().contains("7 files"));
        assert!(bytes.unwrap_err().contains("`sft/w` differs"));
        assert!(id.unwrap_err().contains("`tokens` has id"));
        let mut left = left.unwrap();
        left.sort();
        assert_eq!((clean.unwrap(), left), (vec![], vec![".w.tmp".into(), "sft.old".into()]));
    }
}
