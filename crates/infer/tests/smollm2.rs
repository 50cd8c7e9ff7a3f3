//! A real model against numbers that were computed apart from llamero: SmolLM2-135M-Instruct as a Q4_1 GGUF file.
//!
//! `smollm2.json` is made by `smollm2_golden.py`. The model is fetched by `cargo xtask fixtures`; without it the tests print why
//! they are skipped.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llamero_cpu::Cpu;
use llamero_infer::{ChatSession, Engine, Finish, SamplingParams};
use llamero_tensor::DType;
use llamero_tokenizer::{Message, Role};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    #[serde(alias = "wikitext2_test_head")]
    text: Text,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
    first_top20: Vec<(u32, f64)>,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
    mean_nll: f64,
}

/// The model's file, or a printed reason.
fn model() -> Option<PathBuf> {
    let root = std::env::var_os("LLAMERO_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures"), PathBuf::from);
    let path = root.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("skipped: no `{}`; `cargo xtask fixtures` fetches it", path.display());
        return None;
    }
    Some(path)
}

fn open(dtype: DType) -> Option<Engine> {
    let engine = Engine::open(&model()?, Arc::new(Cpu::new(2).unwrap()), dtype).unwrap();
    assert_eq!((engine.config().vocab, engine.config().layers, engine.context()), (49_152, 30, 8192));
    Some(engine)
}

/// Our golden numbers, and others of the same form where the test data has them.
fn goldens() -> Vec<(PathBuf, Golden)> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = std::env::var_os("LLAMERO_TEST_DATA").map(PathBuf::from);
    let theirs = data.map(|data| data.join("models/smollm2_golden.json"));
    let paths = [here.join("tests/smollm2.json")].into_iter().chain(theirs);
    let read = |path: PathBuf| {
        let golden = std::fs::read(&path).ok()?;
        Some((path, serde_json::from_slice(&golden).unwrap()))
    };
    let goldens: Vec<_> = paths.filter_map(read).collect();
    assert!(!goldens.is_empty(), "our own is always there");
    goldens
}

fn greedy(engine: &Engine, prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let stop = vec![engine.tokenizer().special().eot];
    let params = SamplingParams { temperature: 0.0, max_tokens, stop, ..SamplingParams::default() };
    engine.generate(prompt, &params, &mut |_| ControlFlow::Continue(())).unwrap().ids
}

/// The largest relative error of the differences between the first logits and the largest of them: log-probabilities have
/// those differences, and not the constant that is in all logits.
fn error_of_top(engine: &Engine, case: &Case) -> f64 {
    let choices: Vec<Vec<u32>> = case.first_top20.iter().map(|&(id, _)| vec![id]).collect();
    let found = engine.choose(&case.ids, &choices).unwrap();
    let scale = case.first_top20[0].1.abs();
    let expected = case.first_top20.iter().map(|&(_, logit)| logit - case.first_top20[0].1);
    let found = found.iter().map(|log_prob| log_prob - found[0]);
    found.zip(expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f64::max)
}

/// The ids of the 20 largest of the first logits, each found after those before it are forbidden.
fn top20(engine: &Engine, case: &Case) -> Vec<u32> {
    let mut params = SamplingParams::greedy(1);
    for _ in 0..20 {
        let said = engine.generate(&case.ids, &params, &mut |_| ControlFlow::Continue(())).unwrap();
        params.logit_bias.insert(said.ids[0], -100.0);
    }
    params.logit_bias.into_keys().collect()
}

fn error_of_nll(engine: &Engine, text: &Text) -> f64 {
    let nll = engine.score_tokens(&text.ids).unwrap();
    assert_eq!(nll.len(), text.ids.len() - 1);
    let mean = nll.iter().map(|&x| f64::from(x)).sum::<f64>() / nll.len() as f64;
    (mean - text.mean_nll).abs() / text.mean_nll
}

#[test]
fn in_f32_the_model_says_and_scores_what_the_reference_does() {
    let Some(engine) = open(DType::F32) else { return };
    for (path, golden) in goldens() {
        assert_eq!(golden.cases.len(), 5);
        let mut worst = 0.0f64;
        for case in &golden.cases {
            let tokenizer = engine.tokenizer();
            assert_eq!(tokenizer.encode_with_special(&case.prompt), case.ids, "{:?}", case.prompt);
            let mut found = greedy(&engine, &case.ids, 24);
            if found.last() == Some(&tokenizer.special().eot) {
                found.pop();
            }
            assert_eq!(found, case.greedy_ids, "{:?}: {:?}", case.prompt, tokenizer.decode(&found));
            assert_eq!(tokenizer.decode(&found).unwrap(), case.greedy_text);
            let error = error_of_top(&engine, case);
            assert!(error < 1e-3, "{:?}: {error:.2e}", case.prompt);
            let mut expected: Vec<u32> = case.first_top20.iter().map(|&(id, _)| id).collect();
            expected.sort_unstable();
            assert_eq!(top20(&engine, case), expected, "{:?}", case.prompt);
            worst = worst.max(error);
        }
        let nll = error_of_nll(&engine, &golden.text);
        assert!(nll < 1e-3, "{nll:.2e}");
        println!(
            "f32, `{}`: logits differ by at most {worst:.1e}, mean NLL by {nll:.1e}, relative",
            path.display()
        );
    }
}

#[test]
fn in_bf16_it_is_near() {
    let Some(engine) = open(DType::Bf16) else { return };
    for (path, golden) in goldens() {
        let worst = golden.cases.iter().map(|case| error_of_top(&engine, case)).fold(0.0, f64::max);
        let same = |case: &Case| {
            let found = greedy(&engine, &case.ids, case.greedy_ids.len());
            found.iter().zip(&case.greedy_ids).take_while(|(a, b)| a == b).count()
        };
        let same: Vec<usize> = golden.cases.iter().map(same).collect();
        let nll = error_of_nll(&engine, &golden.text);
        println!(
            "bf16, `{}`: logits differ by at most {worst:.1e}, mean NLL by {nll:.1e}, relative; greedy tokens until the first \
             that differs: {same:?}",
            path.display()
        );
        assert!(worst < 0.1 && nll < 0.02, "{worst:.2e} {nll:.2e}");
    }
}

#[test]
fn it_chats_in_the_format_of_its_file() {
    let Some(engine) = open(DType::Bf16) else { return };
    assert_eq!(engine.stop_tokens(), [0, 2]);
    let params = SamplingParams { temperature: 0.0, max_tokens: 64, ..SamplingParams::default() };
    let mut chat = ChatSession::new(&engine, params, Some("Answer in one word.")).unwrap();
    let question = "What is the capital of France?";
    let reply = chat.reply(question, &mut |_| ControlFlow::Continue(())).unwrap();
    let messages = [Message::new(Role::System, "Answer in one word."), Message::new(Role::User, question)];
    let prompt = engine.tokenizer().encode_dialog_prompt(&messages).unwrap();
    assert_eq!(reply.prompt_tokens, prompt.len());
    assert!(engine.tokenizer().decode(&prompt).unwrap().ends_with("<|im_end|>\n<|im_start|>assistant\n"));
    assert_eq!(reply.finish, Finish::Stop, "{}", reply.text);
    assert!(reply.text.contains("Paris"), "{}", reply.text);
}
