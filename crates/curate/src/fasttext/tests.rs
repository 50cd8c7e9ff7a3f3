use super::*;

/// Two kinds of text that differ in words and in their order.
fn examples() -> Vec<Example> {
    let mut examples = Vec::new();
    for i in 0..40 {
        let good = format!("the study of herd {i} shows that llamas prefer high ground {}", i % 7);
        let bad = format!("buy cheap blankets now {i} click here for offers {}", i % 5);
        examples.push(Example { text: good, label: "good".to_owned() });
        examples.push(Example { text: bad, label: "bad".to_owned() });
    }
    examples
}

fn config() -> TrainConfig {
    TrainConfig { dim: 8, buckets: 500, epochs: 10, learning_rate: 0.5, ..TrainConfig::default() }
}

#[test]
fn training_learns_and_gives_the_same_bytes_again() {
    let mut losses = Vec::new();
    let model = train(&examples(), &config(), |_, loss| losses.push(loss)).unwrap();
    assert_eq!(losses.len(), 10);
    assert!(losses[9] < losses[0] / 3.0, "{losses:?}");
    assert_eq!(model.predict("llamas prefer the study", 1)[0].label, "good");
    assert!(model.probability("click here now", "bad").unwrap() > 0.9);
    assert_eq!(model.probability("click here now", "ugly"), None);
    assert_eq!(model.to_bytes(), train(&examples(), &config(), |_, _| ()).unwrap().to_bytes());
    let other = train(&examples(), &TrainConfig { seed: 1, ..config() }, |_, _| ()).unwrap();
    assert_ne!(model.to_bytes(), other.to_bytes());
}

#[test]
fn a_written_model_is_the_same_when_it_is_read() {
    let model = train(&examples(), &config(), |_, _| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quality.bin");
    model.save(&path).unwrap();
    let read = FastText::open(&path).unwrap();
    for text in ["the study of offers", "llamas buy blankets", "", "nothing known"] {
        assert_eq!(model.predict(text, 2), read.predict(text, 2), "{text}");
    }
    assert_eq!(model.to_bytes(), read.to_bytes());
}

#[test]
fn every_damage_is_an_error_and_never_a_panic() {
    let bytes =
        train(&examples(), &TrainConfig { buckets: 20, dim: 2, ..config() }, |_, _| ()).unwrap().to_bytes();
    // fastText's own files end where the checksum begins.
    let body = bytes.len() - 8 - blake3::OUT_LEN;
    assert!(FastText::from_bytes(&bytes[..body]).is_ok());
    for end in (0..bytes.len()).filter(|&end| end != body) {
        assert!(FastText::from_bytes(&bytes[..end]).is_err(), "cut at {end}");
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x80;
        assert!(FastText::from_bytes(&damaged).is_err(), "damage at {at}");
        // Without the checksum, what is wrong may still be a model, which must then work.
        if let Ok(model) = FastText::from_bytes(&damaged[..body]) {
            assert!(model.predict("the study of herds", 2).len() <= 2);
        }
    }
}

#[test]
fn bad_training_is_refused() {
    let says = |examples: &[Example], config: &TrainConfig| {
        train(examples, config, |_, _| ()).err().unwrap().to_string()
    };
    assert!(says(&examples()[..1], &config()).contains("two labels"));
    let spaced = [Example { text: "a".to_owned(), label: "very good".to_owned() }];
    assert!(says(&spaced, &config()).contains("very good"));
    assert!(says(&examples(), &TrainConfig { dim: 0, ..config() }).contains("`dim` is `0`"));
}

#[test]
fn the_tree_shares_all_of_the_probability() {
    for counts in [vec![5], vec![3, 3], vec![9, 4, 4, 2, 1, 1, 0], vec![1; 33]] {
        let tree = tree::Tree::new(&counts).unwrap();
        let scores = tree.log_probabilities(counts.len(), |node| (node as f32 - 3.0) * 0.4);
        let total: f32 = scores.iter().map(|score| score.exp()).sum();
        assert!((total - 1.0).abs() < 2e-3, "{counts:?}: {total}");
    }
    assert!(tree::Tree::new(&[1, 2]).is_err());
}
