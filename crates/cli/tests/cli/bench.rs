//! Benchmarks on tiny shapes: what they print, and what they refuse. Figures are not judged here.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::world::{arg, llamero, names, shared, write};

/// Options that keep a measurement short.
const SHORT: [&str; 4] = ["--samples", "2", "--seconds", "0.001"];

/// A model of a few thousand parameters.
const TINY: &str =
    "--dim 16 --layers 2 --heads 2 --kv-heads 1 --ffn 32 --vocab 260 --seq 24 --batch 2 --lr 0.01";

fn bench(args: &str, more: &[&str]) -> crate::world::Said {
    llamero(["bench"].into_iter().chain(args.split_whitespace()).chain(more.iter().copied()))
}

/// Every named key is a finite number above zero.
fn positive(result: &Value, keys: &[&str]) {
    for key in keys {
        let value = result[key].as_f64();
        assert!(value.is_some_and(|v| v > 0.0 && v.is_finite()), "`{key}` of {result}");
    }
}

#[test]
fn machine_says_peaks_and_bandwidth() {
    let args = "machine --threads 2 --array-mib 64";
    let result = bench(args, &[&SHORT[..], &["--json"]].concat()).json();
    positive(&result, &["f32_gflops", "read_gb_per_s", "copy_gb_per_s"]);
    assert_eq!((&result["threads"], &result["array_bytes"]), (&2.into(), &(64 << 20).into()));
    let peaks = result["peaks"].as_array().unwrap();
    peaks.iter().for_each(|peak| positive(peak, &["gflops", "gflops_best"]));
    let has_bf16 = peaks.iter().any(|peak| peak["dtype"] == "bf16");
    assert_eq!(result["bf16_gflops"].is_number(), has_bf16, "{result}");
    let text = bench(args, &SHORT).ok();
    for word in ["f32 multiply-add", "bf16", "memory read", "memory copy", "GB/s"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn gemm_takes_every_product_in_both_dtypes() {
    for (op, dtype) in [("nt", "f32"), ("nn", "bf16"), ("tn", "f32"), ("tn", "bf16")] {
        let args = format!("gemm --m 5 --n 33 --k 17 --op {op} --dtype {dtype} --threads 1 --json");
        let result = bench(&args, &SHORT).json();
        positive(&result, &["gflops", "gflops_best", "peak_gflops", "fraction_of_peak"]);
        let echoed = ["m", "n", "k", "samples", "threads"].map(|key| result[key].as_u64());
        assert_eq!(echoed, [5, 33, 17, 2, 1].map(Some));
        assert_eq!((&result["op"], &result["dtype"]), (&op.into(), &dtype.into()));
        assert!(result["path"].is_string() && result["peak_unit"].is_string(), "{result}");
        assert!(result["gflops_best"].as_f64() >= result["gflops"].as_f64());
    }
    let text = bench("gemm --m 5 --n 33 --k 17", &SHORT).ok();
    assert!(text.contains("m 5, n 33, k 17") && text.contains("share of peak"), "{text}");
}

#[test]
fn attention_divides_the_tokens() {
    let args = "attention --tokens 40 --documents 1,4,40 --heads 4 --kv-heads 2 --head-dim 8";
    let result = bench(args, &[&SHORT[..], &["--json"]].concat()).json();
    let divisions = result["divisions"].as_array().unwrap();
    let of = |key: &str| divisions.iter().map(|d| d[key].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("documents"), [1, 4, 40]);
    assert_eq!(of("sum_len_squared"), [1600, 400, 40]);
    let keys = ["forward_seconds", "backward_seconds", "seconds", "gflops", "relative_cost"];
    divisions.iter().for_each(|division| positive(division, &keys));
    assert_eq!(divisions[0]["relative_cost"], 1.0);
    let text = bench(args, &SHORT).ok();
    assert!(text.contains("Σ len²") && text.lines().count() == 5, "{text}");
}

#[test]
fn train_reports_speed_memory_and_loss() {
    let said = bench(&format!("train {TINY} --steps 4 --warmup 1 --dtype f32 --json"), &[]);
    assert!(said.err.contains("estimated memory: "), "{}", said.err);
    let result = said.json();
    let keys = [
        "tokens_per_s",
        "gflops",
        "peak_gflops",
        "mfu",
        "estimated_memory_bytes",
        "tensor_peak_bytes",
        "first_loss",
        "last_loss",
    ];
    positive(&result, &keys);
    if cfg!(target_os = "linux") {
        positive(&result, &["peak_memory_bytes"]);
    }
    // A block: wqkv 32×16, wo 16×16, w13 64×16, w2 16×32, two norms; then two tables and the last norm.
    let params = 2 * (32 * 16 + 16 * 16 + 64 * 16 + 16 * 32 + 2 * 16) + 2 * 260 * 16 + 16;
    assert_eq!(result["params"], params);
    assert_eq!((&result["steps"], &result["timed_steps"]), (&4.into(), &3.into()));
    let (tokens, gflops) = (result["tokens_per_s"].as_f64().unwrap(), result["gflops"].as_f64().unwrap());
    let per_token = (6 * (params - 260 * 16) + 6 * 2 * 24 * 16) as f64;
    assert!((gflops / (tokens * per_token / 1e9) - 1.0).abs() < 1e-9, "{result}");
    let text = bench(&format!("train {TINY} --steps 3"), &[]).ok();
    assert!(text.contains("tokens/s") && text.contains("share of peak"), "{text}");
}

fn losses(path: &Path) -> Vec<f64> {
    fs::read_to_string(path).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn train_learns_a_text_whatever_the_threads_and_micro_batches() {
    let tmp = tempfile::tempdir().unwrap();
    let (text, curve) = (tmp.path().join("text.txt"), tmp.path().join("losses.txt"));
    write(&text, "abcd".repeat(50));
    let run = |more: &[&str]| {
        let files = ["--text", arg(&text), "--losses", arg(&curve), "--json"];
        let result = bench(&format!("train {TINY} --steps 30"), &[&files, more].concat()).json();
        let losses = losses(&curve);
        assert_eq!(losses.first().copied(), result["first_loss"].as_f64());
        assert_eq!(losses.last().copied(), result["last_loss"].as_f64());
        losses
    };
    let first = run(&[]);
    assert_eq!(first.len(), 30);
    // Near ln 260 before anything is learned; four letters in turn are soon known.
    assert!((first[0] - 5.56).abs() < 0.5 && first[29] < 0.8 * first[0], "{first:?}");
    for more in [&["--recompute", "blocks"][..], &["--micro-batch", "1"], &["--threads", "3"]] {
        assert_eq!(run(more), first, "{more:?}");
    }
}

#[test]
fn a_dump_holds_what_a_peer_needs() {
    let tmp = tempfile::tempdir().unwrap();
    let (f32, bf16) = (tmp.path().join("f32"), tmp.path().join("bf16"));
    for (dtype, dir) in [("f32", &f32), ("bf16", &bf16)] {
        let more = ["--dtype", dtype, "--dump", arg(dir), "--json"];
        bench(&format!("train {TINY} --steps 3"), &more).json();
        let expected =
            ["config.json", "generation_config.json", "meta.json", "model.safetensors", "tokens.u32"];
        assert_eq!(names(dir), expected);
    }
    let bytes = |dir: &Path, name: &str| fs::read(dir.join(name)).unwrap();
    let tokens = bytes(&f32, "tokens.u32");
    assert_eq!(tokens.len(), 3 * 2 * (24 + 1) * 4);
    assert!(tokens.chunks(4).all(|id| u32::from_le_bytes(id.try_into().unwrap()) < 260));
    assert!(tokens == bytes(&bf16, "tokens.u32"));
    let meta: Value = serde_json::from_slice(&bytes(&f32, "meta.json")).unwrap();
    assert_eq!(meta["lr"].as_array().unwrap().len(), 3);
    positive(&meta, &["steps", "batch", "seq"]);
    positive(&meta["optimizer"], &["peak_lr", "beta1", "beta2", "eps", "weight_decay", "clip_norm"]);
    // Both dtypes start from the same weights: an f32 of the one is a bf16 of the other, and sixteen zeros.
    let data = |dir: &Path, width: usize| -> Vec<u32> {
        let file = bytes(dir, "model.safetensors");
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let upper = |x: &[u8]| u32::from(x[width - 2]) | u32::from(x[width - 1]) << 8;
        assert!(width == 2 || file[header..].chunks(4).all(|x| x[0] == 0 && x[1] == 0));
        file[header..].chunks(width).map(upper).collect()
    };
    assert!(data(&f32, 4) == data(&bf16, 2));
    assert_eq!(llamero(["inspect", arg(&bf16), "--json"]).json()["vocab"], 260);
}

#[test]
fn options_that_do_not_fit_are_wrong_usage() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["machine", "gemm", "attention", "train"]),
        ("gemm --m 0", &["--m", "1 to 1048576"]),
        ("gemm --dtype f16", &["f16", "bf16"]),
        ("gemm --op tt", &["tt", "nt"]),
        ("gemm --seconds -1", &["-1"]),
        ("machine --threads 0", &["--threads", "0"]),
        ("machine --samples none", &["--samples", "none"]),
        ("attention --tokens 8 --documents 1,9", &["--documents 9", "--tokens 8"]),
        ("attention --heads 6 --kv-heads 4", &["--kv-heads 4", "--heads 6"]),
        ("attention --head-dim 5", &["--head-dim 5", "even"]),
        ("train --shape 9b", &["9b", "125m"]),
        ("train --heads 5", &["--heads 5", "--dim 288"]),
        ("train --kv-heads 4", &["kv_heads", "divisor"]),
        ("train --steps 2", &["--warmup 2", "--steps 2"]),
        ("train --lr 2", &["peak_lr", "at most 1"]),
        ("train --recompute most", &["most", "blocks"]),
        ("train --vocab 100 --text x", &["--vocab 100", "256"]),
    ];
    for (args, phrases) in cases {
        bench(args, &[]).fails(2, phrases);
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let (short, missing) = (tmp.path().join("short.txt"), tmp.path().join("missing.txt"));
    write(&short, "abc");
    let train = format!("train {TINY} --steps 3");
    bench(&train, &["--text", arg(&short)]).fails(1, &["short.txt", "3 bytes", "25", "hint:"]);
    bench(&train, &["--text", arg(&missing)]).fails(1, &["missing.txt"]);
    let below = short.join("losses.txt");
    bench(&train, &["--losses", arg(&below)]).fails(1, &["losses.txt"]);
}

#[test]
fn every_benchmark_has_examples() {
    for name in ["machine", "gemm", "attention", "train"] {
        let help = llamero(["bench", name, "--help"]).ok();
        assert!(help.contains(&format!("llamero bench {name}")) && help.contains("Examples:"), "{help}");
    }
    assert!(llamero(["bench", "train", "--help"]).ok().contains("6·layers·seq·dim"));
}

#[test]
fn infer_says_how_fast_a_model_answers() {
    let model = arg(&shared().exported);
    let args = format!("infer {model} --prompt-tokens 70 --gen-tokens 12 --reps 2 --threads 2");
    let keys = [
        "load_s",
        "cold_ttft_s",
        "ttft_s",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "generated_tokens_per_s",
    ];
    for more in ["--concurrency 5", "--kv int8 --rows 16", "--dtype auto --kv-memory 1", "--lookup"] {
        let result = bench(&format!("{args} --json {more}"), &[]).json();
        positive(&result, &keys);
        positive(&result, &["params", "peak_kv_bytes", "peak_memory_bytes"]);
        assert_eq!(result["guessed_tokens"].is_number(), more == "--lookup", "{result}");
    }
    let int8 = bench(&format!("{args} --json --kv int8"), &[]).json();
    assert_eq!((&int8["kv"], &int8["prompt_tokens"], &int8["reps"]), (&"int8".into(), &70.into(), &2.into()));
    let text = bench(&format!("{args} --draft {model}"), &[]).ok();
    for word in ["first token", "prefill", "decode", "keys and values", "guessed right"] {
        assert!(text.contains(word), "{text}");
    }
    let too_long = format!("infer {model} --prompt-tokens 150 --gen-tokens 11");
    bench(&too_long, &[]).fails(2, &["161 tokens", "context of 160"]);
}
