use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use super::*;

fn document(text: &str) -> Document {
    Document { text: text.to_owned(), ..Document::default() }
}

/// Answers by a word in the prompt, and counts how often it is asked.
struct Fake {
    asked: u32,
    fails_at: u32,
}

impl Judge for Fake {
    fn judge(&mut self, prompt: &str) -> Result<String, String> {
        self.asked += 1;
        if self.asked == self.fails_at {
            return Err("out of hay".to_owned());
        }
        Ok(match prompt {
            _ if prompt.contains("llama") => "Label: **Good**, as llamas are.".to_owned(),
            _ if prompt.contains("mule") => "I cannot say.".to_owned(),
            _ => "bad".to_owned(),
        })
    }
}

fn documents() -> Vec<Result<(String, String), CurateError>> {
    let texts = ["a llama", "a mule", "a stone", "another llama with a {labels} sign"];
    texts.iter().enumerate().map(|(at, text)| Ok((format!("d{at}"), (*text).to_owned()))).collect()
}

#[test]
fn labels_are_read_from_answers_and_a_stopped_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole.jsonl"), folder.path().join("labels.jsonl"));
    let task = LabelTask::default();
    let report = label(documents(), &task, &mut Fake { asked: 0, fails_at: 0 }, &whole).unwrap();
    assert_eq!(report, LabelReport { labelled: 3, present: 0, unreadable: 1 });

    let error = label(documents(), &task, &mut Fake { asked: 0, fails_at: 3 }, &out).unwrap_err().to_string();
    assert!(error.contains("`d2`") && error.contains("out of hay"), "{error}");
    // As a kill in the middle of a line leaves it.
    fs::OpenOptions::new().append(true).open(&out).unwrap().write_all(b"{\"id\":\"d2\",\"te").unwrap();
    let report = label(documents(), &task, &mut Fake { asked: 0, fails_at: 0 }, &out).unwrap();
    assert_eq!(report, LabelReport { labelled: 2, present: 1, unreadable: 1 });
    assert_eq!(fs::read(&whole).unwrap(), fs::read(&out).unwrap());
    let labels: Vec<_> = read_examples(&out).unwrap().into_iter().map(|example| example.label).collect();
    assert_eq!(labels, ["good", "bad", "good"]);
}

#[test]
fn prompts_hold_the_text_as_it_is() {
    let task = LabelTask { max_characters: 9, ..LabelTask::default() };
    let prompt = task.prompt_for("ä {labels} and more");
    assert!(prompt.contains("ä {labels\n") && prompt.contains("good, bad"), "{prompt}");
    assert_eq!(task.parse("Not goodness, but BAD."), Some("bad"));
    assert_eq!(task.parse("goodness"), None);
    assert!(LabelTask { prompt: "no place".to_owned(), ..task }.validate().is_err());
}

#[test]
fn a_classifier_tags_and_drops() {
    let examples: Vec<Example> = (0..30)
        .flat_map(|i| {
            let good = Example { text: format!("a careful study {i}"), label: "good".to_owned() };
            [good, Example { text: format!("cheap offers {i}"), label: "bad".to_owned() }]
        })
        .collect();
    let config =
        TrainConfig { dim: 8, buckets: 100, epochs: 20, learning_rate: 0.5, ..TrainConfig::default() };
    let model = train(&examples, &config, |_, _| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quality.bin");
    model.save(&path).unwrap();
    let settings = serde_json::json!({"model": path, "label": "good", "min_probability": 0.5, "tag": "good"});
    let rules = crate::filter::filter("quality", &settings).unwrap();
    let mut good = document("another careful study");
    assert_eq!(rules.apply(&mut good), None);
    assert!(good.tags["good"] > 0.5);
    assert_eq!(rules.apply(&mut document("cheap cheap offers")).unwrap().reason, "quality");
    let settings = serde_json::json!({"model": path, "label": "great"});
    let error = crate::filter::filter("quality", &settings).err().unwrap().to_string();
    assert!(error.contains("`great`") && error.contains("bad"), "{error}");

    let scores = cross_validate(&examples, "good", 5, &config).unwrap();
    assert!(roc_auc(&scores).unwrap().auc > 0.99);
}

#[test]
fn the_area_is_that_of_pairs() {
    let scores = [(0.1, false), (0.4, true), (0.4, false), (0.8, true), (0.35, false), (0.3, true)];
    let mut wins = 0.0;
    for (score, _) in scores.iter().filter(|(_, truth)| *truth) {
        for (other, _) in scores.iter().filter(|(_, truth)| !*truth) {
            wins += if score > other {
                1.0
            } else if score == other {
                0.5
            } else {
                0.0
            };
        }
    }
    let area = roc_auc(&scores).unwrap();
    assert!((area.auc - wins / 9.0).abs() < 1e-12);
    assert!(area.low <= area.auc && area.auc <= area.high);
    assert_eq!(roc_auc(&[(0.5, true)]), None);
}

#[test]
fn examples_that_are_none_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.jsonl");
    fs::write(&path, "{\"text\": \"a\", \"label\": 1}\n\n{\"text\": \"b\"}\n").unwrap();
    let error = read_examples(&path).unwrap_err().to_string();
    assert!(error.contains("labels.jsonl") && error.contains("line 3"), "{error}");
}

/// The 281 documents that people labelled for DCLM: cross-validation over them. What is trained never saw what it scores.
#[test]
fn people_and_classifiers_agree_on_quality() {
    let Some(root) = std::env::var_os("LLAMERO_TEST_DATA").map(PathBuf::from) else {
        eprintln!("skipped: LLAMERO_TEST_DATA is not set");
        return;
    };
    let path = root.join("corpora/dclm-human-quality/agreement_data.jsonl.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("labels.jsonl");
    fs::write(&plain, text).unwrap();
    let examples = read_examples(&plain).unwrap();
    assert_eq!(examples.len(), 281);
    let config =
        TrainConfig { epochs: 20, learning_rate: 0.3, dim: 16, buckets: 100_000, ..TrainConfig::default() };
    let scores = cross_validate(&examples, "1", 10, &config).unwrap();
    let area = roc_auc(&scores).unwrap();
    eprintln!(
        "10-fold cross-validation: ROC-AUC {:.3} (95 %: {:.3} to {:.3})",
        area.auc, area.low, area.high
    );
    assert!(area.low > 0.5, "{area:?}");
}
