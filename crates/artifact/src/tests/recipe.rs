//! Every recipe error names its file, line, column and key, or its `--set`.

use crate::recipe::{load, load_str, to_toml};
use crate::{ArtifactError, RecipeError};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    seed: u64,
    run: Run,
    train: Train,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    dir: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    lr: f64,
    #[serde(default)]
    opt: Opt,
    #[serde(default)]
    sources: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Opt {
    beta: Option<f64>,
}

const GOOD: &str = "seed = 1\n\n[run]\ndir = \"x\"\n\n[train]\nlr = 0.5\nopt.beta = 0.9\n";

fn read(text: &str, sets: &[&str]) -> Result<Recipe, RecipeError> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    load_str(text, "r.toml", &sets)
}

#[test]
fn errors_in_the_file() {
    let cases = [
        (
            "lr = 0.5",
            "lr = \"é\"",
            "line 7, column 6, key `train.lr`: invalid type: string \"é\", expected f64",
        ),
        (
            "lr = 0.5",
            "lr = 1\nstepz = 3",
            "line 8, column 1, key `train.stepz`: unknown field `stepz`, expected one of `lr`, `opt`, `sources`",
        ),
        (
            "opt.beta",
            "opt.opt",
            "line 8, column 5, key `train.opt.opt`: unknown field `opt`, expected `beta`",
        ),
        (
            "seed = 1",
            "sed = 1",
            "line 1, column 1, key `sed`: unknown field `sed`, expected one of `seed`, `run`",
        ),
        ("seed = 1", "seed = -1", "line 1, column 8, key `seed`: invalid value: integer `-1`, expected u64"),
        ("lr = 0.5", "", "line 6, column 1, key `train.lr`: missing field `lr`"),
        ("dir = \"x\"", "dir = é é", "line 4, column 7"),
        ("dir = \"x\"", "dir = \"ü\" x", "line 4, column 11"),
        ("seed = 1", "seed = 1\nseed = 2", "line 2, column 1: duplicate key"),
    ];
    for (good, bad, says) in cases {
        let error = read(&GOOD.replace(good, bad), &[]).unwrap_err().to_string();
        assert!(error.starts_with("`r.toml` ") && error.contains(says), "{bad}: {error}");
        // A `--set` of something else changes nothing about that.
        if good != "seed = 1" {
            assert_eq!(read(&GOOD.replace(good, bad), &["seed=2"]).unwrap_err().to_string(), error);
        }
    }
}

#[test]
fn errors_in_a_set() {
    let cases = [
        ("train.lrr=3", "key `train.lrr`: unknown field `lrr`, expected one of `lr`, `opt`, `sources`"),
        ("train.opt.opt=3", "key `train.opt.opt`: unknown field `opt`, expected `beta`"),
        ("foo.bar=3", "key `foo`: unknown field `foo`, expected one of `seed`, `run`, `train`"),
        ("train.lr=x", "key `train.lr`: invalid type: string \"x\", expected f64"),
        ("train.lr.x=3", "key `train.lr`: it is of type float, not a table"),
        ("seed=-1", "key `seed`: invalid value: integer `-1`, expected u64"),
        ("run.dir=3", "to pass it as text write --set run.dir='\"3\"'"),
        ("seed", "expected `key=value`"),
        ("=3", "the key must be names"),
        ("a..b=3", "the key must be names"),
        ("train.sources=[a", "the value is not TOML"),
    ];
    for (set, says) in cases {
        // The culprit is named among others, whatever their order.
        for sets in [vec![set], vec!["seed=7", set], vec![set, "train.opt.beta=0.5"]] {
            let error = read(GOOD, &sets).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`--set {set}`")) && error.contains(says),
                "{sets:?}: {error}"
            );
        }
    }
}

#[test]
fn sets_change_the_recipe_in_order() {
    let sets = [
        "train.lr=2",
        "run.dir=8m",
        "train.sources=[\"a\", \"b\"]",
        "seed=1",
        "seed=2",
        "run.dir=2026-11-23",
    ];
    let recipe = read(GOOD, &sets).unwrap();
    assert_eq!((recipe.seed, recipe.train.lr, recipe.run.dir.as_str()), (2, 2.0, "2026-11-23"));
    assert_eq!(recipe.train.sources, ["a", "b"]);
    assert_eq!(read(GOOD, &["run.dir=a=b c"]).unwrap().run.dir, "a=b c");
}

#[test]
fn a_set_supplies_what_the_file_leaves_out() {
    let text = GOOD.replace("seed = 1", "");
    assert_eq!(read(&text, &["seed=3"]).unwrap().seed, 3);
    // And is not to blame for something else that is missing, nor the file for a bad `--set`.
    let error = read(&text, &["run.dir=y"]).unwrap_err().to_string();
    assert!(error.starts_with("`r.toml` ") && error.contains("missing field `seed`"), "{error}");
    let error = read(&text, &["seed=3", "train.lr=x"]).unwrap_err().to_string();
    assert!(error.starts_with("`--set train.lr=x`"), "{error}");
}

#[test]
fn from_a_file() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("recipe.toml");
    let error = load::<Recipe>(&path, &[]).unwrap_err();
    assert!(
        matches!(error, ArtifactError::Io { .. }) && error.to_string().contains("recipe.toml"),
        "{error}"
    );
    std::fs::write(&path, GOOD).unwrap();
    assert_eq!(load::<Recipe>(&path, &[]).unwrap(), read(GOOD, &[]).unwrap());
}

#[test]
fn out_of_range_names_key_value_and_range() {
    let error = ArtifactError::from(RecipeError::out_of_range("train.lr", -1.5, "more than 0"));
    assert_eq!(error.to_string(), "recipe key `train.lr` is `-1.5`, allowed is more than 0");
}

proptest! {
    #[test]
    fn a_written_recipe_reads_back(
        seed in 0..=i64::MAX as u64,
        dir in any::<String>(),
        lr in any::<f64>().prop_filter("finite", |x| x.is_finite()),
        beta in prop::option::of(0.0..1.0f64),
        sources in prop::collection::vec(any::<String>(), 0..4),
    ) {
        let recipe = Recipe { seed, run: Run { dir }, train: Train { lr, opt: Opt { beta }, sources } };
        let text = to_toml(&recipe).unwrap();
        prop_assert_eq!(read(&text, &[]).unwrap(), recipe);
    }
}
