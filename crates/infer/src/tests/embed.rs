//! Texts as vectors.

use llamero_tensor::{DType, Segments};

use super::{CONTEXT, backend, bits, config, engine, engine_on, model};
use crate::testing::byte_tokenizer;
use crate::{EmbedOptions, Engine, InferError, Pooling};

fn texts() -> Vec<String> {
    let text =
        |length: usize| (0..length).map(|at| char::from(b'a' + ((at * at + length) % 26) as u8)).collect();
    [1, 5, 40, 158, 159, 160, 500, 1_500, 3].map(text).to_vec()
}

#[test]
fn a_vector_depends_on_its_text_alone() {
    let texts = texts();
    let all: Vec<&str> = texts.iter().map(String::as_str).collect();
    for dtype in [DType::F32, DType::Bf16] {
        let (one, four) = (engine_on(1, &config(), dtype), engine_on(4, &config(), dtype));
        for pooling in [Pooling::Mean, Pooling::Last] {
            for window in [7, 64, 10_000] {
                let options = EmbedOptions { pooling, window, max_tokens: None };
                let together = one.embed(&all, &options).unwrap();
                let backwards: Vec<&str> = all.iter().rev().copied().collect();
                let mut backwards = four.embed(&backwards, &options).unwrap();
                backwards.reverse();
                for ((text, vector), other) in all.iter().zip(&together).zip(&backwards) {
                    let alone = four.embed(&[text], &options).unwrap().remove(0).unwrap();
                    assert_eq!(
                        bits(vector.as_ref().unwrap()),
                        bits(&alone),
                        "{dtype:?} {pooling:?} {window} {text}"
                    );
                    assert_eq!(bits(other.as_ref().unwrap()), bits(&alone));
                }
            }
        }
    }
}

#[test]
fn vectors_are_means_of_hidden_states() {
    let engine = engine();
    let begin = engine.tokenizer().special().begin_of_text.unwrap();
    let text = "pooled by hand";
    let windows =
        [&text[..7], &text[7..]].map(|part| [vec![begin], engine.tokenizer().encode(part)].concat());
    let hidden = windows.map(|ids| {
        let hidden = engine.hidden(&ids, &Segments::documents([ids.len()])).unwrap();
        engine.backend().download(&hidden)
    });
    let width = engine.config().dim;
    let embed = |pooling| {
        let options = EmbedOptions { pooling, window: 7, max_tokens: None };
        engine.embed(&[text], &options).unwrap().remove(0).unwrap()
    };
    let (mean, last) = (embed(Pooling::Mean), embed(Pooling::Last));
    for at in 0..width {
        let column =
            |hidden: &[f32]| hidden.iter().skip(at).step_by(width).map(|&x| f64::from(x)).collect::<Vec<_>>();
        let columns = [column(&hidden[0]), column(&hidden[1])];
        let all: f64 = columns.iter().flat_map(|column| &column[1..]).sum::<f64>() / 14.0;
        let ends: f64 = columns.iter().map(|column| column[7]).sum::<f64>() / 2.0;
        assert!((f64::from(mean[at]) - all).abs() < 1e-6 && (f64::from(last[at]) - ends).abs() < 1e-6);
    }
}

#[test]
fn the_end_of_a_text_can_be_left_out_and_no_text_has_no_vector() {
    let engine = engine();
    let options = EmbedOptions { max_tokens: Some(10), ..EmbedOptions::default() };
    let whole = EmbedOptions::default();
    let found = engine.embed(&["ten letters and more", "", "ten letter"], &options).unwrap();
    assert_eq!(found[0], found[2]);
    assert_eq!(found[1], None);
    assert_ne!(engine.embed(&["ten letters and more"], &whole).unwrap()[0], found[0]);
    // A window is never longer than what the model can read.
    let long = "x".repeat(CONTEXT * 2);
    assert!(engine.embed(&[&long], &EmbedOptions { window: CONTEXT * 2, ..whole }).unwrap()[0].is_some());
    let error = engine.embed(&["a"], &EmbedOptions { window: 0, ..whole }).unwrap_err();
    assert!(matches!(error, InferError::Parameter { key: "window", .. }), "{error}");
}

#[test]
fn what_is_no_number_is_said() {
    let backend = backend();
    let mut model = model(&config(), &*backend, DType::F32, 1);
    for param in model.params_mut().filter(|param| param.name == "norm.weight") {
        let shape = param.value.shape();
        param.value = backend.upload(&vec![f32::NAN; shape.elements()], shape, DType::F32);
    }
    let engine = Engine::new(model, byte_tokenizer(), backend).unwrap();
    let error = engine.embed(&["abc"], &EmbedOptions::default()).unwrap_err();
    assert!(matches!(error, InferError::NonFinite { position: 1, .. }), "{error}");
}
