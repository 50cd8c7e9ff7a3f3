//! Which workspace crate may depend on which.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The arrows of ARCHITECTURE.md: a crate, and those directly below it. A crate may use whatever it reaches.
const LAYERS: &[(&str, &[&str])] = &[
    ("artifact", &[]),
    ("tensor", &[]),
    ("tokenizer", &[]),
    ("comm", &["tensor"]),
    ("cpu", &["tensor"]),
    ("cuda", &["tensor", "comm"]),
    ("autograd", &["tensor", "comm"]),
    ("curate", &["artifact"]),
    ("data", &["artifact", "tokenizer"]),
    ("model", &["artifact", "autograd"]),
    ("train", &["artifact", "model", "data"]),
    ("infer", &["artifact", "model", "tokenizer"]),
    ("scaling", &["artifact"]),
    ("align", &["train", "infer"]),
    ("eval", &["artifact", "infer"]),
    ("guard", &["artifact", "infer"]),
    ("serve", &["infer", "guard"]),
];

/// Crates that sit above all others.
const TOP: &[&str] = &["cli", "xtask"];

/// Crates that only the top may name outside tests; they appear in no list above.
const BACKENDS: &[&str] = &["cpu", "cuda"];

const PREFIX: &str = "llamero-";

/// A workspace crate and the workspace crates its library or build script needs, by their short names.
#[derive(Debug)]
struct Package {
    name: String,
    needs: Vec<String>,
}

/// Checks the workspace at `root`.
pub(crate) fn run(root: &Path) -> Result<String, String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cannot run `cargo metadata`: {e}"))?;
    if !output.status.success() {
        return Err(format!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let metadata = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("`cargo metadata` did not print JSON: {e}"))?;
    let packages = packages(&metadata).ok_or("`cargo metadata` has no list of packages")?;
    let arrows: usize = packages.iter().map(|p| p.needs.len()).sum();
    let errors = check(&packages);
    if errors.is_empty() {
        return Ok(format!("layers: {} crates, {arrows} arrows, all point down", packages.len()));
    }
    let hint = "hint: the table is in xtask/src/layers.rs; change it only together with ARCHITECTURE.md";
    Err(format!("layers: {} not allowed\n  {}\n{hint}", errors.len(), errors.join("\n  ")))
}

/// The packages that `cargo metadata --no-deps` lists, which are those of the workspace. Dependencies of tests and
/// benches are left out: a test may bring a backend or whatever else it needs.
fn packages(metadata: &Value) -> Option<Vec<Package>> {
    let listed = metadata["packages"].as_array()?;
    let names: BTreeSet<&str> = listed.iter().filter_map(|p| p["name"].as_str()).collect();
    let package = |p: &Value| {
        let needs: BTreeSet<String> = p["dependencies"]
            .as_array()?
            .iter()
            .filter(|d| d["kind"].as_str() != Some("dev"))
            .filter_map(|d| d["name"].as_str())
            .filter(|name| names.contains(name))
            .map(short)
            .collect();
        Some(Package { name: short(p["name"].as_str()?), needs: needs.into_iter().collect() })
    };
    listed.iter().map(package).collect()
}

/// The name used in the table; the binary's own package has none in front.
fn short(name: &str) -> String {
    if name == "llamero" { "cli".to_owned() } else { name.strip_prefix(PREFIX).unwrap_or(name).to_owned() }
}

/// One line for each crate that the table does not know and each arrow that it does not allow.
fn check(packages: &[Package]) -> Vec<String> {
    let mut errors = Vec::new();
    for Package { name, needs } in packages {
        if TOP.contains(&name.as_str()) {
            continue;
        }
        if below(name).is_none() {
            errors.push(format!(
                "crate `{name}` is not in the table: add it, with the crates directly below it"
            ));
            continue;
        }
        let allowed = reachable(name);
        for need in needs.iter().filter(|need| !allowed.contains(need.as_str())) {
            let why = if BACKENDS.contains(&need.as_str()) {
                "only `cli` names a backend, others take `&dyn Backend`".to_owned()
            } else if allowed.is_empty() {
                format!("`{name}` stands on no other crate")
            } else {
                let allowed: Vec<&str> = allowed.iter().copied().collect();
                format!("`{name}` may use {}", allowed.join(", "))
            };
            errors.push(format!("{name} -> {need}: {why}"));
        }
    }
    errors
}

fn below(name: &str) -> Option<&'static [&'static str]> {
    LAYERS.iter().find(|(crate_name, _)| *crate_name == name).map(|(_, below)| *below)
}

fn reachable(name: &str) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut todo = below(name).unwrap_or_default().to_vec();
    while let Some(next) = todo.pop() {
        if found.insert(next) {
            todo.extend_from_slice(below(next).unwrap_or_default());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{LAYERS, Package, below, check, packages, reachable};
    use serde_json::json;

    fn package(name: &str, needs: &[&str]) -> Package {
        Package { name: name.into(), needs: needs.iter().map(|n| (*n).into()).collect() }
    }

    #[test]
    fn allowed_arrows_pass() {
        let good = [
            package("tensor", &[]),
            package("train", &["data", "tokenizer", "tensor", "autograd"]),
            package("cli", &["cpu", "train", "artifact"]),
            package("xtask", &["cli"]),
        ];
        assert_eq!(check(&good), Vec::<String>::new());
    }

    #[test]
    fn forbidden_arrows_are_named() {
        for (from, to) in
            [("tensor", "cpu"), ("model", "cpu"), ("infer", "train"), ("artifact", "model"), ("model", "cli")]
        {
            let errors = check(&[package(from, &[to])]);
            assert_eq!(errors.len(), 1, "{from} -> {to}");
            assert!(errors[0].starts_with(&format!("{from} -> {to}: ")), "{}", errors[0]);
        }
    }

    #[test]
    fn an_unknown_crate_says_what_to_do() {
        let errors = check(&[package("vision", &[])]);
        assert!(errors[0].contains("`vision`") && errors[0].contains("add it"), "{errors:?}");
    }

    #[test]
    fn the_table_has_no_loop_and_knows_every_name_in_it() {
        for (name, direct) in LAYERS {
            assert!(direct.iter().all(|d| below(d).is_some()), "{name} stands on an unknown crate");
            assert!(!reachable(name).contains(name), "{name} reaches itself");
        }
    }

    #[test]
    fn only_normal_and_build_dependencies_on_the_workspace_count() {
        let metadata = json!({ "packages": [
            { "name": "llamero-train", "dependencies": [
                { "name": "llamero-cpu", "kind": "dev" },
                { "name": "llamero-model", "kind": null },
                { "name": "llamero-tensor", "kind": "build" },
                { "name": "serde", "kind": null },
            ] },
            { "name": "llamero-cpu", "dependencies": [] },
            { "name": "llamero-model", "dependencies": [] },
            { "name": "llamero-tensor", "dependencies": [] },
        ] });
        let found = packages(&metadata).unwrap();
        assert_eq!(
            (found[0].name.as_str(), &found[0].needs[..]),
            ("train", &["model".into(), "tensor".into()][..])
        );
    }
}
