//! The commands as the documentation writes them: results on standard output, JSON that parses, the same answers from a
//! run, its artifacts and an exported folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::world::{Dice, arg, copy_dir, llamero, llamero_reading, manifest, names, prose, shared, write};

/// The fine-tuned model by each of its names.
fn models() -> [PathBuf; 3] {
    let shared = shared();
    [shared.run.clone(), shared.run.join("sft"), shared.exported.clone()]
}

/// The answer that every name of the model gives.
fn same_for_all(ask: impl Fn(&Path) -> String) -> String {
    let [run, artifact, exported] = models().map(|model| ask(&model));
    assert_eq!(run, artifact);
    assert_eq!(run, exported);
    run
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn presets_have_their_published_sizes() {
    for (preset, parameters) in
        [("8b", 8_030_261_248_u64), ("70b", 70_553_706_496), ("405b", 405_853_388_800)]
    {
        assert_eq!(llamero(["inspect", preset, "--json"]).json()["parameters"], parameters);
        assert!(llamero(["inspect", preset]).ok().contains(&parameters.to_string()));
    }
}

#[test]
fn inspect_counts_the_models_of_a_run() {
    let counts = models().map(|m| llamero(["inspect", arg(&m), "--json"]).json()["parameters"].as_u64());
    let trained = manifest(&shared().run.join("sft"))["metrics"]["parameters"].as_u64();
    assert!(trained > Some(300_000));
    assert_eq!(counts, [trained; 3]);
}

#[test]
fn generate_is_the_same_every_time_and_from_every_folder() {
    let (prompt, call) = ("# demo", ["--max-tokens", "12", "--temperature", "0"]);
    let ask = |model: &Path, more: &[&str]| {
        let mut args = vec!["generate", arg(model), "--prompt", prompt];
        args.extend(call.iter().chain(more));
        llamero(args)
    };
    let text = same_for_all(|model| ask(model, &[]).ok());
    assert!(text.starts_with(prompt) && text.ends_with('\n'), "{text:?}");
    assert_eq!(ask(&models()[0], &["--threads", "1"]).ok(), text);
    let answer = ask(&models()[0], &["--json"]).json();
    assert_eq!(
        keys(&answer),
        ["finish", "ids", "logprobs", "prompt_ids", "stop_id", "stop_logprob", "text", "timing"]
    );
    assert_eq!(format!("{prompt}{}\n", answer["text"].as_str().unwrap()), text);
    let ids = answer["ids"].as_array().unwrap().len();
    assert!((1..=12).contains(&ids), "{answer}");
    let note = "note: the text was cut after 1 tokens, at `--max-tokens`";
    let said = llamero(["generate", arg(&models()[0]), "--prompt", "- a list", "--max-tokens", "1"]);
    assert!(said.code == Some(0) && said.err.contains(note), "{}", said.err);
    // Draws depend on the seed alone.
    let model = models()[1].clone();
    let draw = |seed: &str| {
        let args =
            ["generate", arg(&model), "--prompt", prompt, "--max-tokens", "30", "--temperature", "1.5"];
        llamero(args.into_iter().chain(["--seed", seed])).ok()
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
    // The base model, too.
    let base = shared().run.join("pretrain");
    assert!(ask(&base, &[]).ok().starts_with(prompt));
}

#[test]
fn sampling_options_do_what_they_say() {
    let model = shared().run.join("pretrain");
    let ask = |more: &[&str]| {
        let args = ["generate", arg(&model), "--prompt", "# demo", "--max-tokens", "24", "--json"];
        llamero(args.into_iter().chain(more.iter().copied())).json()
    };
    let greedy = |more: &[&str]| ask(&[&["--temperature", "0"], more].concat());
    let ids = |answer: &Value| {
        answer["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    let plain = greedy(&[]);
    assert_eq!(ids(&ask(&["--temperature", "2", "--top-k", "1", "--seed", "5"])), ids(&plain));
    assert_eq!(ids(&ask(&["--temperature", "2", "--min-p", "1"])), ids(&plain));
    let first = ids(&plain)[0];
    for forbid in [format!("{first}=-100"), format!("{first}=-inf")] {
        let without = greedy(&["--logit-bias", &forbid, "--logit-bias", "3=1.5"]);
        assert!(!ids(&without).contains(&first), "{without}");
    }
    // Penalties make for more different tokens.
    let different = |answer: &Value| ids(answer).into_iter().collect::<std::collections::BTreeSet<_>>().len();
    let once = greedy(&["--presence-penalty", "2", "--frequency-penalty", "2", "--repetition-penalty", "10"]);
    assert!(different(&once) > different(&plain), "{once} {plain}");
    let window = greedy(&["--repetition-penalty", "10", "--penalty-window", "1"]);
    assert!(ids(&window).windows(2).all(|pair| pair[0] != pair[1]), "{window}");
    // A stop string ends the text, wherever the tokens lie.
    let text = plain["text"].as_str().unwrap();
    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[middle..].chars().take(3).collect();
    let before = &text[..text.find(&stop).unwrap()];
    let stopped = greedy(&["--stop", "never in this text", "--stop", &stop]);
    assert_eq!((stopped["text"].as_str().unwrap(), &stopped["finish"]), (before, &json!("stop")));
    assert_eq!(ids(&stopped), ids(&plain)[..ids(&stopped).len()]);
    let args = ["generate", arg(&model), "--prompt", "# demo", "--max-tokens", "24", "--temperature", "0"];
    assert_eq!(llamero(args.into_iter().chain(["--stop", &stop])).ok(), format!("# demo{before}\n"));
    // In a wider dtype the same weights say nearly the same.
    let wide = greedy(&["--dtype", "f32"]);
    let logprob = |answer: &Value| answer["logprobs"][0].as_f64().unwrap();
    assert!((logprob(&wide) - logprob(&plain)).abs() < 0.1, "{wide} {plain}");
    assert!(wide["timing"]["ttft_s"].as_f64() <= wide["timing"]["total_s"].as_f64(), "{wide}");
}

#[test]
fn guesses_change_nothing_and_are_counted() {
    let model = shared().run.join("pretrain");
    let ask = |more: &[&str]| {
        let args =
            ["generate", arg(&model), "--prompt", "# demo # demo # demo", "--max-tokens", "60", "--json"];
        llamero(args.into_iter().chain(["--temperature", "0.3"]).chain(more.iter().copied())).json()
    };
    let plain = ask(&[]);
    assert!(plain["guessed_tokens"].is_null());
    for more in [&["--lookup"][..], &["--draft", arg(&model)]] {
        let guessed = ask(more);
        assert_eq!((&guessed["ids"], &guessed["logprobs"]), (&plain["ids"], &plain["logprobs"]), "{more:?}");
        assert!(guessed["accepted_tokens"].as_u64() <= guessed["guessed_tokens"].as_u64(), "{guessed}");
    }
    // The model itself is always right.
    let right = ask(&["--draft", arg(&model)]);
    assert!(right["accepted_tokens"].as_u64() > Some(30), "{right}");
}

/// The shared model with other sizes in its configuration; nothing of it is trained for them.
fn with_sizes(model: &Path, change: impl FnOnce(&mut Value)) {
    copy_dir(&shared().exported, model);
    let config = model.join("config.json");
    let mut sizes: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    change(&mut sizes);
    write(&config, sizes.to_string());
}

#[test]
fn memory_for_keys_and_values_is_named_by_its_option() {
    let tmp = tempfile::tempdir().unwrap();
    let model = tmp.path().join("long");
    with_sizes(&model, |sizes| sizes["max_position_embeddings"] = 100_000.into());
    let ask = |kib: &str| {
        llamero(["generate", arg(&model), "--prompt", "# demo", "--max-tokens", "90000", "--kv-memory", kib])
    };
    let said = ask("1")
        .fails(1, &["`--kv-memory 1`", "`--max-tokens`", "MiB", "hint: give `--kv-memory ", "--kv int8"]);
    // What it asks for is enough to begin with, and one less is not.
    let wanted: u64 =
        said.split("give `--kv-memory ").nth(1).unwrap().split('`').next().unwrap().parse().unwrap();
    ask(&(wanted - 1).to_string()).fails(1, &[&format!("give `--kv-memory {wanted}`")]);
    let chat = ["chat", arg(&model), "--kv-memory", "1", "--max-tokens", "90000"];
    let said = llamero_reading(chat, "Hello\n");
    assert!(said.code == Some(1) && said.err.contains("`--kv-memory 1`"), "{said:?}");
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let tmp = tempfile::tempdir().unwrap();
    let (file, text) = (tmp.path().join("prompt.txt"), "# demo3\n\nA graph\n");
    write(&file, text);
    let model = &shared().run;
    let call = ["generate", arg(model), "--temperature", "0", "--max-tokens", "6"];
    let ask = |more: &[&str], input: &str| llamero_reading(call.iter().chain(more), input).ok();
    let expected = ask(&["--prompt", text], "");
    assert!(expected.starts_with(text));
    assert_eq!(ask(&["--prompt", "-"], text), expected);
    assert_eq!(ask(&["--prompt-file", arg(&file)], ""), expected);
    assert_eq!(ask(&["--prompt-file", "-"], text), expected);
}

#[test]
fn the_token_that_ends_an_answer_is_told_apart() {
    let model = shared().run.join("sft");
    let call = ["generate", arg(&model), "--prompt", "# demo", "--temperature", "0", "--json"];
    // The likeliest first token ends the answer at once.
    let first = llamero(call.iter().chain(&["--max-tokens", "1"])).json();
    let ends: Value =
        serde_json::from_slice(&fs::read(shared().exported.join("generation_config.json")).unwrap()).unwrap();
    let end = ends["eos_token_id"][0].as_u64().unwrap();
    assert!(first["stop_id"].is_null() && first["stop_logprob"].is_null(), "{first}");
    let bias = format!("{end}=100");
    let stopped = llamero(call.iter().chain(&["--logit-bias", bias.as_str()])).json();
    assert_eq!((&stopped["finish"], &stopped["stop_id"]), (&"stop".into(), &end.into()));
    assert_eq!((&stopped["ids"], &stopped["logprobs"]), (&json!([]), &json!([])));
    assert!(stopped["stop_logprob"].as_f64() < Some(0.0), "{stopped}");
    for answer in [&first, &stopped] {
        assert_eq!(answer["ids"].as_array().unwrap().len(), answer["logprobs"].as_array().unwrap().len());
    }
}

#[test]
fn a_text_longer_than_the_context_is_said_to_be_read_in_windows() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("text.txt");
    let score = |text: &str| {
        write(&file, text);
        llamero(["score", arg(&models()[0]), "--text", arg(&file), "--json"])
    };
    let short = score("The graph of a tree.");
    assert!(!short.err.contains("windows"), "{}", short.err);
    let short = short.json();
    assert_eq!((&short["windows"], &short["context"]), (&1.into(), &160.into()));
    assert_eq!(short["bytes"], short["text_bytes"]);
    let long = score(&prose(&mut Dice(3), 6));
    let err = long.err.clone();
    let long = long.json();
    let windows = long["windows"].as_u64().unwrap();
    // The first one scores 160 tokens, and each of the others 80.
    assert_eq!(windows, 1 + (long["tokens"].as_u64().unwrap() - 160).div_ceil(80));
    for phrase in
        ["note: ", "longer than the context of 160 tokens", &format!("{windows} windows"), "80 tokens after"]
    {
        assert!(err.contains(phrase), "no `{phrase}` in {err}");
    }
}

#[test]
fn bits_per_byte_are_those_of_the_predicted_tokens() {
    let tmp = tempfile::tempdir().unwrap();
    let (gguf, file) = (tmp.path().join("a.gguf"), tmp.path().join("text.txt"));
    llamero(["convert", arg(&shared().exported), arg(&gguf)]).ok();
    // The same model, of which the file says that texts do not begin with a token.
    let mut bytes = fs::read(&gguf).unwrap();
    let key = b"tokenizer.ggml.add_bos_token";
    let at = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len() + 4;
    assert_eq!(std::mem::replace(&mut bytes[at], 0), 1);
    write(&gguf, bytes);
    write(&file, "The graph of a tree.");
    let ask =
        |model: &Path| llamero(["score", arg(model), "--text", arg(&file), "--json", "--tokens"]).json();
    let (with, without) = (ask(&shared().exported), ask(&gguf));
    let ids = |score: &Value| score["ids"].as_array().unwrap().clone();
    assert_eq!(ids(&without), ids(&with)[1..]);
    let first = llamero_reading(
        ["tokenizer", "decode", "--tokenizer", arg(&shared().exported)],
        &ids(&with)[0].to_string(),
    );
    let (text, rest) = (with["text_bytes"].as_u64().unwrap(), without["bytes"].as_u64().unwrap());
    assert_eq!((with["bytes"].as_u64(), without["text_bytes"].as_u64()), (Some(text), Some(text)));
    assert_eq!(rest, text - first.ok().len() as u64);
    let bits = without["nll"].as_f64().unwrap() / std::f64::consts::LN_2 / rest as f64;
    assert!((without["bits_per_byte"].as_f64().unwrap() / bits - 1.0).abs() < 1e-12, "{without}");
}

#[test]
fn score_says_tokens_nll_and_bits_per_byte() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("text.txt");
    let text = prose(&mut Dice(11), 4);
    write(&file, &text);
    // All but how long it took.
    let timeless = |mut score: Value| {
        assert!(score["seconds"].take().as_f64() > Some(0.0));
        score.to_string()
    };
    let line =
        same_for_all(|model| timeless(llamero(["score", arg(model), "--text", arg(&file), "--json"]).json()));
    let score: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        keys(&score),
        ["bits_per_byte", "bytes", "context", "nll", "seconds", "text_bytes", "tokens", "windows"]
    );
    assert_eq!(score["bytes"], text.len());
    let bits = score["nll"].as_f64().unwrap() / std::f64::consts::LN_2 / text.len() as f64;
    assert!((score["bits_per_byte"].as_f64().unwrap() / bits - 1.0).abs() < 1e-12, "{score}");
    // Words of the training text, so far better than nothing learned, which is 8 bits.
    assert!(bits < 4.0, "{score}");
    let piped = llamero_reading(["score", arg(&models()[0]), "--text", "-", "--json"], &text);
    assert_eq!(timeless(piped.json()), line);
    let each = llamero(["score", arg(&models()[0]), "--text", arg(&file), "--json", "--tokens"]).json();
    let logprobs: Vec<f64> =
        each["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(
        (each["ids"].as_array().unwrap().len(), logprobs.len()),
        (logprobs.len(), score["tokens"].as_u64().unwrap() as usize)
    );
    let (sum, nll) = (-logprobs.iter().sum::<f64>(), score["nll"].as_f64().unwrap());
    assert!((sum / nll - 1.0).abs() < 1e-6 && each["nll"] == score["nll"], "{sum} {nll}");
    let words = llamero(["score", arg(&models()[0]), "--text", arg(&file)]).ok();
    assert!(words.contains("bits per byte"), "{words}");
}

#[test]
fn tokenizer_encodes_decodes_and_trains() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let folder = shared.run.join("tokenizer");
    let texts = ["pub fn demo() {}\n", "Ünïcode — 🦙\n\n  two  spaces", "", "<|eot_id|> is text"];
    let lines: String = texts.iter().map(|t| json!({ "text": t }).to_string() + "\n").collect();
    let files = [folder.clone(), folder.join("tokenizer.model"), folder.join("tokenizer.json")];
    let encoded = files.map(|path| {
        llamero_reading(["tokenizer", "encode", "--tokenizer", arg(&path), "--jsonl"], &lines).ok()
    });
    assert_eq!(encoded[0], encoded[1]);
    assert_eq!(encoded[0], encoded[2]);
    for (line, text) in encoded[0].lines().zip(texts) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(keys(&line), ["ids"]);
        assert_eq!(line["ids"].as_array().unwrap().is_empty(), text.is_empty());
    }
    let tokenizer = arg(&folder);
    let back =
        llamero_reading(["tokenizer", "decode", "--tokenizer", tokenizer, "--jsonl"], &encoded[0]).ok();
    assert_eq!(back, lines);
    // Ids as plain numbers, from a file.
    let file = tmp.path().join("text.txt");
    write(&file, texts[1]);
    let ids = llamero(["tokenizer", "encode", "--tokenizer", tokenizer, arg(&file)]).ok();
    assert!(ids.split_whitespace().all(|id| id.parse::<u32>().is_ok()), "{ids}");
    assert_eq!(llamero_reading(["tokenizer", "decode", "--tokenizer", tokenizer], &ids).ok(), texts[1]);
    // One of one's own.
    let (input, out) = (tmp.path().join("input.txt"), tmp.path().join("own"));
    write(&input, prose(&mut Dice(5), 20));
    let train = ["tokenizer", "train", "--input", arg(&input), "--vocab-size", "600", "--out", arg(&out)];
    let report = llamero(train.into_iter().chain(["--json"])).json();
    assert_eq!(report["vocab_size"], 600);
    assert_eq!(names(&out), ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]);
    let ids = llamero_reading(["tokenizer", "encode", "--tokenizer", arg(&out)], "the model").ok();
    assert_eq!(llamero_reading(["tokenizer", "decode", "--tokenizer", arg(&out)], &ids).ok(), "the model");
}

#[test]
fn why_tells_where_a_model_came_from() {
    let shared = shared();
    let id = |stage: &str| manifest(&shared.run.join(stage))["id"].as_str().unwrap().to_owned();
    let text = llamero(["why", arg(&shared.run.join("sft"))]).ok();
    for stage in ["curate", "tokenizer", "instruct", "tokens", "pretrain", "sft"] {
        assert!(text.contains(&id(stage)), "no {stage}: {text}");
    }
    let lineage = llamero(["why", arg(&shared.run.join("pretrain")), "--json"]).json();
    assert_eq!(lineage["id"], id("pretrain"));
    // A run folder means its last stage.
    let last = llamero(["why", arg(&shared.run), "--json"]).json();
    assert_eq!(last["id"], id("evaluate"));
}

#[test]
fn export_writes_a_model_folder() {
    let shared = shared();
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&shared.exported), expected);
    let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(&shared.exported) == weights(&shared.run.join("sft")));
    let config: Value =
        serde_json::from_slice(&fs::read(shared.exported.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["LlamaForCausalLM"]));
    // An exported folder is a model like any other.
    let (tmp, again) = (tempfile::tempdir().unwrap(), "again");
    let out = tmp.path().join(again);
    llamero(["export", arg(&shared.exported), "--out", arg(&out)]).ok();
    assert_eq!(names(&out), expected);
    assert_eq!(names(tmp.path()), [again]);
}

#[test]
fn export_touches_no_folder_but_its_own() {
    let (shared, tmp) = (shared(), tempfile::tempdir().unwrap());
    let out = tmp.path().join("out");
    let mine = ["out.partial", "out.old"].map(|name| tmp.path().join(name).join("thesis.txt"));
    mine.iter().for_each(|path| write(path, "years of work"));
    fs::create_dir(&out).unwrap();
    llamero(["export", arg(&shared.exported), "--out", arg(&out)]).ok();
    assert_eq!(names(&out), names(&shared.exported));
    assert_eq!(names(tmp.path()), ["out", "out.old", "out.partial"]);
    assert!(mine.iter().all(|path| fs::read(path).unwrap() == b"years of work"));
    // A file is no folder, and nothing is left of an export that fails.
    let file = tmp.path().join("file");
    write(&file, "mine");
    llamero(["export", arg(&shared.exported), "--out", arg(&file)])
        .fails(1, &["is a file", "hint:", "--out"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let half = tmp.path().join("half");
    fs::create_dir(&half).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(shared.exported.join(name), half.join(name)).unwrap();
    }
    let nowhere = tmp.path().join("nowhere");
    llamero(["export", arg(&half), "--out", arg(&nowhere)]).fails(1, &["tokenizer.json"]);
    // Nor of one that fails halfway: the last weight is no number.
    fs::copy(shared.exported.join("tokenizer.json"), half.join("tokenizer.json")).unwrap();
    let weights = half.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].fill(0xff);
    fs::write(&weights, bytes).unwrap();
    llamero(["export", arg(&half), "--out", arg(&nowhere)]).fails(1, &["model.safetensors", "NaN"]);
    assert_eq!(names(tmp.path()), ["file", "half", "out", "out.old", "out.partial"]);
}

#[test]
fn chat_answers_what_is_piped_in() {
    let model = &models()[0];
    let chat = |input: &str| {
        let args = ["chat", arg(model), "--temperature", "0", "--max-tokens", "16"];
        let said = llamero_reading(args, input);
        assert!(!said.err.contains("error"), "{}", said.err);
        said.ok()
    };
    let one = chat("What is the crate demo3 for?\n");
    assert!(one.ends_with('\n') && !one.contains('>') && !one.contains("<|"), "{one:?}");
    assert_eq!(chat("What is the crate demo3 for?\n\n/quit\nmore\n"), one);
    // Starting over gives the first answer again; going on need not.
    let twice = chat("What is the crate demo3 for?\n/clear\nWhat is the crate demo3 for?\n");
    assert_eq!(twice, format!("{one}{one}"));
    let more = chat("What is the crate demo3 for?\nAnd demo4?\n");
    assert!(more.starts_with(&one) && more.len() > one.len(), "{more:?}");
    assert_eq!(chat(""), "");
    let said = llamero_reading(
        ["chat", arg(model), "--temperature", "0", "--max-tokens", "16", "--json"],
        "What is the crate demo3 for?\n",
    );
    let answer = said.json();
    assert_eq!(format!("{}\n", answer["text"].as_str().unwrap()), one);
    assert!(
        answer["tokens"].as_u64().unwrap() <= 16 && answer["prompt_tokens"].as_u64() > Some(10),
        "{answer}"
    );
}

#[test]
fn help_and_version_are_results() {
    assert!(llamero(["--version"]).ok().starts_with("llamero "));
    for command in
        ["run", "chat", "generate", "score", "inspect", "tokenizer", "why", "export", "convert", "bench"]
    {
        let help = llamero([command, "--help"]).ok();
        assert!(help.contains("Usage: llamero"), "{help}");
        assert!(llamero(["--help"]).ok().contains(command));
    }
}
