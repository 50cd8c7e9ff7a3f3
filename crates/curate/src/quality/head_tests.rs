//! Classifiers on top of a model that is a fake: its vectors are counts of letters.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::encoder::{Embed, Encoder, model_hash};
use crate::item::FILTERS;
use crate::plan::Step;

/// Counts of eight letters; fails at an exclamation mark, and knows no digits.
struct Letters;

impl Embed for Letters {
    fn embed(&self, text: &str) -> Result<Option<Vec<f32>>, CurateError> {
        if text.contains('!') {
            return Err(CurateError::Record { what: "a text", problem: "it shouts".to_owned() });
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(None);
        }
        let mut counts = vec![0.0; 8];
        text.bytes()
            .filter(u8::is_ascii_lowercase)
            .for_each(|byte| counts[usize::from(byte - b'a') % 8] += 1.0);
        Ok(Some(counts))
    }
}

/// Vectors of three classes that overlap.
fn labelled(count: usize) -> Labelled {
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let classes: Vec<usize> = (0..count).map(|at| at % 3).collect();
    let vector = |&class: &usize| -> Vec<f32> {
        (0..8)
            .map(|at| draw() * 3.0 + if at == class { 1.0 } else { 0.0 } + if at == 7 { 100.0 } else { 0.0 })
            .collect()
    };
    let vectors = classes.iter().map(vector).collect();
    let labels: Vec<String> = classes.iter().map(|class| format!("c{class}")).collect();
    Labelled::new(vectors, &labels).unwrap()
}

fn encoder() -> Encoder {
    Encoder { hash: Some("f".repeat(64)), ..Encoder::new(Path::new("letters")) }
}

/// Mean log-loss and penalty of a head, from its definition.
fn objective(head: &Head, examples: &Labelled) -> f64 {
    let count = examples.vectors.len() as f64;
    let column = |at: usize| examples.vectors.iter().map(move |vector| f64::from(vector[at]));
    let mut sum = 0.0;
    for (vector, &class) in examples.vectors.iter().zip(&examples.classes) {
        sum -= head.probabilities(vector)[class].ln() / count;
    }
    for at in 0..8 {
        let mean = column(at).sum::<f64>() / count;
        let variance = column(at).map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
        // Weights of standardised vectors are those of vectors as they are, times the deviation.
        sum += head.weights.iter().map(|row| row[at] * row[at] * variance).sum::<f64>() * head.l2 / 2.0;
    }
    sum
}

#[test]
fn what_is_trained_is_the_minimum() {
    let examples = labelled(700);
    for l2 in [0.01, 1.0] {
        let head = train_head(&encoder(), &examples, Some(l2)).unwrap();
        let least = objective(&head, &examples);
        assert!(least < 1.0986, "no better than knowing nothing: {least}");
        for row in 0..3 {
            for at in 0..9 {
                for step in [-1e-3, 1e-3] {
                    let mut other = head.clone();
                    other.weights[row][at] += step;
                    let there = objective(&other, &examples);
                    assert!(there >= least - 1e-10, "row {row}, number {at}: {there} is less than {least}");
                }
            }
        }
    }
}

#[test]
fn threads_change_nothing_and_the_penalty_is_chosen() {
    let examples = labelled(900);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let scores = cross_validate_head(&examples, "c1", 3, Some(0.1)).unwrap();
            (train_head(&encoder(), &examples, None).unwrap(), scores)
        })
    };
    let (one, three) = (on(1), on(3));
    assert_eq!(one, three);
    assert!([10.0, 1.0, 0.1, 0.01, 0.001].contains(&one.0.l2));
    let area = roc_auc(&one.1).unwrap();
    assert_eq!((area.positives, area.negatives), (300, 600));
    assert!(area.low > 0.55, "{area:?}");
    // Labels dealt out blindly cannot be told.
    let blind: Vec<String> = (0..900).map(|at| format!("c{}", at / 3 % 3)).collect();
    let blind = Labelled::new(examples.vectors.clone(), &blind).unwrap();
    let area = roc_auc(&cross_validate_head(&blind, "c1", 3, None).unwrap()).unwrap();
    assert!((0.42..0.58).contains(&area.auc), "{area:?}");
}

#[test]
fn examples_that_cannot_be_learned_from_are_refused() {
    let refused = |vectors: Vec<Vec<f32>>, labels: &[&str], part: &str| {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let error = Labelled::new(vectors, &labels).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(vec![vec![1.0]; 2], &["a", "a"], "two labels");
    refused(vec![vec![1.0], vec![1.0, 2.0]], &["a", "b"], "example 1 has a vector of 2 numbers");
    let examples = labelled(9);
    let error = train_head(&encoder(), &examples, Some(0.0)).unwrap_err().to_string();
    assert!(error.contains("above 0"), "{error}");
    let error = cross_validate_head(&examples, "c9", 3, None).unwrap_err().to_string();
    assert!(error.contains("`c9`") && error.contains("c0, c1, c2"), "{error}");
}

/// A folder with a head, and a model file of any bytes that it is for.
fn folder() -> (tempfile::TempDir, QualityConfig) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("letters.gguf");
    fs::write(&model, "letters").unwrap();
    let texts = ["aaa b", "bb bba", "aab c", "bab b", "aa cc", "bbbc"];
    let vectors = texts.iter().map(|text| Letters.embed(text).unwrap().unwrap()).collect();
    let labels: Vec<String> = (0..6).map(|at| ["good", "bad"][at % 2].to_owned()).collect();
    let examples = Labelled::new(vectors, &labels).unwrap();
    let encoder = Encoder { hash: Some(model_hash(&model).unwrap()), ..Encoder::new(&model) };
    let head = train_head(&encoder, &examples, Some(0.01)).unwrap();
    fs::create_dir(folder.path().join("head")).unwrap();
    fs::write(folder.path().join("head/classifier.json"), head.to_json().unwrap()).unwrap();
    assert_eq!(Head::open(&folder.path().join("head")).unwrap(), head);
    let config =
        serde_json::json!({"model": folder.path().join("head"), "label": "good", "min_probability": 0.5});
    (folder, serde_json::from_value(config).unwrap())
}

fn open(encoder: &Encoder) -> Result<Arc<dyn Embed>, CurateError> {
    encoder.check(&model_hash(&encoder.model)?)?;
    Ok(Arc::new(Letters))
}

#[test]
fn a_head_tags_and_drops_as_a_fasttext_model_does() {
    let (_folder, config) = folder();
    let rules = Quality::open(&config, &open).unwrap();
    let document =
        |text: &str| Document { text: text.to_owned(), domain: "prose".to_owned(), ..Document::default() };
    let mut good = document("aaaa");
    assert_eq!(rules.try_apply(&mut good).unwrap(), None);
    assert!(good.tags["quality"] > 0.5);
    let dropped = rules.try_apply(&mut document("bbbb")).unwrap().unwrap();
    assert_eq!(dropped.reason, "quality");
    assert!(dropped.detail.contains("`good` with 0."), "{}", dropped.detail);
    // What the model knows nothing of has no probability.
    let mut digits = document("123");
    assert_eq!(rules.try_apply(&mut digits).unwrap().unwrap().reason, "quality");
    assert_eq!(digits.tags["quality"], 0.0);
    // Other domains are not asked.
    let code = QualityConfig { domains: vec!["code".to_owned()], ..config.clone() };
    assert_eq!(Quality::open(&code, &open).unwrap().try_apply(&mut document("bbbb")).unwrap(), None);
    // A model that fails ends a run; where nothing can end, it is a reason of its own.
    assert!(rules.try_apply(&mut document("aa!")).unwrap_err().to_string().contains("shouts"));
    assert_eq!(rules.apply(&mut document("aa!")).unwrap().reason, "quality_failed");
    let mut registry = crate::registry();
    registry.encoders(open);
    let filters = Step::with(FILTERS, &[Step::with("quality", &config).unwrap()]).unwrap();
    let map = registry.build_map(&filters, &[]).unwrap();
    let item =
        |text: &str| crate::Value::Item(Box::new(crate::Item::new(document(text), 3))).encode().unwrap();
    assert_eq!(crate::plan::collect(&*map, b"id", &item("aaa")).unwrap().len(), 1);
    assert!(crate::plan::collect(&*map, b"id", &item("a!")).unwrap_err().to_string().contains("shouts"));
}

#[test]
fn a_head_is_of_one_model() {
    let (folder, config) = folder();
    let refused = |config: &QualityConfig, parts: &[&str]| {
        let error = Quality::open(config, &open).err().unwrap().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "`{part}` is not in: {error}"));
    };
    // Elsewhere is no matter, another one is.
    let (model, other) = (folder.path().join("letters.gguf"), folder.path().join("other.gguf"));
    fs::rename(&model, &other).unwrap();
    refused(&config, &["head", "letters.gguf", "is not there", "encoder"]);
    let moved = QualityConfig { encoder: Some(other.clone()), ..config.clone() };
    Quality::open(&moved, &open).unwrap();
    let hash = model_hash(&other).unwrap();
    fs::write(&other, "Letters").unwrap();
    refused(&moved, &["head", "other.gguf", &hash, &model_hash(&other).unwrap(), "encoder"]);
    fs::write(&other, "letters").unwrap();
    // No program without models.
    let error = Quality::new(&moved).err().unwrap().to_string();
    assert!(error.contains("no language models"), "{error}");
    // A damaged file, a label that is none, an encoder for what needs none.
    refused(&QualityConfig { label: "great".to_owned(), ..moved.clone() }, &["great", "bad, good"]);
    let file = folder.path().join("head/classifier.json");
    let text = fs::read_to_string(&file).unwrap();
    for (from, to, part) in [
        ("\"format\": 1", "\"format\": 2", "format 2"),
        ("\"good\"", "\"good\", \"fair\"", "3 labels, 2 rows"),
        ("}", "", "classifier.json"),
    ] {
        assert!(text.contains(from));
        fs::write(&file, text.replace(from, to)).unwrap();
        refused(&moved, &[part, "train it again"]);
    }
    fs::remove_file(&file).unwrap();
    refused(&moved, &["quality.encoder", "absent"]);
}
