//! Losses from the same weights, tokens and settings: ours in both dtypes, the peer's in bf16.

use std::fs;
use std::path::{Path, PathBuf};

use super::session::{Label, Session, words};
use super::table::{against, markdown};

/// Largest learning rate. At three times this f32 and bf16 part by 4 % here, ours as well as the peer's (LOG.md).
const RATE: &str = "1e-4";

/// Steps unless others are asked for.
const STEPS: usize = 200;
/// Largest relative difference of final losses.
const CLOSE: f64 = 0.005;
/// The final loss is the mean over so many last steps: a single batch says little.
const LAST: usize = 10;

pub(super) fn run(session: &mut Session) -> Result<String, String> {
    let folder = std::env::temp_dir().join(format!("llamero-curves-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|e| format!("cannot create `{}`: {e}", folder.display()))?;
    let curves = curves(session, &folder);
    fs::remove_dir_all(&folder).map_err(|e| format!("cannot remove `{}`: {e}", folder.display()))?;
    report(&curves?)
}

/// Names and losses; the first is what the others are compared with.
fn curves(session: &mut Session, folder: &Path) -> Result<Vec<(&'static str, Vec<f64>)>, String> {
    let text = match &session.options.text {
        Some(path) => path.clone(),
        None => sources(&session.root, folder)?,
    };
    let steps = session.options.steps.unwrap_or(STEPS);
    let (start, path) = (folder.join("start"), |name: &str| folder.join(name));
    let argument = |path: &Path| path.display().to_string();
    let mut all = Vec::new();
    for (name, dtype) in [("ours bf16", "bf16"), ("ours f32", "f32")] {
        let losses = path(dtype);
        let mut args =
            words(&format!("train --shape 8m --steps {steps} --warmup 0 --lr {RATE} --dtype {dtype}"));
        args.extend(["--text".into(), argument(&text), "--losses".into(), argument(&losses)]);
        if dtype == "bf16" {
            args.extend(["--dump".into(), argument(&start)]);
        }
        args.extend(session.options.ours.iter().cloned());
        session.ours(&Label { bench: "curves", case: "8m", by: name, round: 0 }, &args)?;
        all.push((name, read(&losses)?));
    }
    let (name, losses) = ("PyTorch bf16", path("torch"));
    let mut args = vec![argument(&start)];
    args.extend(words("--dtype bf16 --losses"));
    args.push(argument(&losses));
    session.peer(&Label { bench: "curves", case: "8m", by: name, round: 0 }, "curve_torch.py", &args)?;
    all.push((name, read(&losses)?));
    for (name, losses) in &all {
        let label = Label { bench: "curves", case: "losses", by: name, round: 0 };
        session.record(&label, &losses.clone().into());
    }
    Ok(all)
}

/// The Rust sources of this repository as one file: text that is always at hand.
fn sources(root: &Path, folder: &Path) -> Result<PathBuf, String> {
    let mut files = Vec::new();
    crate::sizes::rust_files(&root.join("crates"), &mut files)?;
    files.sort();
    let mut text = Vec::new();
    for path in files {
        text.extend(fs::read(&path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))?);
    }
    let path = folder.join("sources.txt");
    fs::write(&path, text).map_err(|e| format!("cannot write `{}`: {e}", path.display()))?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<f64>, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))?;
    text.lines().map(|line| line.parse().map_err(|_| format!("`{line}` is not a loss"))).collect()
}

/// Mean of the last few.
fn last(losses: &[f64]) -> f64 {
    let end = &losses[losses.len().saturating_sub(LAST)..];
    end.iter().sum::<f64>() / end.len() as f64
}

fn report(curves: &[(&str, Vec<f64>)]) -> Result<String, String> {
    let Some((_, first)) = curves.first().filter(|(_, losses)| !losses.is_empty()) else {
        return Err("curves: no losses".into());
    };
    let (steps, reference) = (first.len(), last(first));
    let at = |losses: &[f64], step: usize| losses.get(step).map_or("–".into(), |loss| format!("{loss:.4}"));
    let rows: Vec<Vec<String>> = curves
        .iter()
        .map(|(name, losses)| {
            let off = last(losses) / reference - 1.0;
            vec![
                (*name).to_owned(),
                at(losses, 0),
                at(losses, steps / 4),
                at(losses, steps / 2),
                format!("{:.4}", last(losses)),
                format!("{:+.2} %", 100.0 * off),
                against("within 0.5 %".into(), off.abs() <= CLOSE),
            ]
        })
        .collect();
    let quarter = format!("after {}", steps / 4);
    let half = format!("after {}", steps / 2);
    let end = format!("mean of the last {}", LAST.min(steps));
    let header = ["run", "first loss", &quarter, &half, &end, "against ours bf16", "target"];
    Ok(format!("### Loss curves, {steps} steps\n\n{}", markdown(&header, &rows)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_losses_are_compared() {
        let falling = |end: f64| (0..40).map(|step| end + f64::from((30 - step).max(0))).collect::<Vec<_>>();
        let report = report(&[("a", falling(2.0)), ("b", falling(2.008)), ("c", falling(1.98))]).unwrap();
        assert!(report.contains("| a | 32.0000 | 22.0000 | 12.0000 | 2.0000 | +0.00 % |"), "{report}");
        assert!(report.contains("+0.40 % | within 0.5 % ✓"), "{report}");
        assert!(report.contains("-1.00 % | within 0.5 % ✗"), "{report}");
        assert!(super::report(&[]).is_err());
    }
}
