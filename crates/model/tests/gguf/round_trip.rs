//! What is written is read back.

use std::collections::HashMap;
use std::path::PathBuf;

use llamero_model::gguf::{GgufFile, GgufModel, GgufTokenizer, GgufValue, Writer, stored_as};
use llamero_model::hf::{self, SaveOptions};
use llamero_model::weights;
use llamero_model::{Config, RopeScaling, StopTokens, Weights, half_split_rows, interleaved_rows};
use llamero_tensor::{DType, Encoding};
use safetensors::SafeTensors;

use super::{Memory, config, made_up, stored, vocabulary, write};

fn configs() -> [Config; 3] {
    let scaling =
        RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    [
        config(),
        Config { tied: true, ..config() },
        Config { rope_scaling: Some(scaling), context: 131_072, kv_heads: 4, ..config() },
    ]
}

#[test]
fn every_encoding_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for config in configs() {
        let memory = made_up(config.clone());
        for encoding in Encoding::ALL {
            write(&path, &memory, encoding).unwrap();
            let model = weights::open(&path).unwrap();
            assert_eq!(*model.config(), config, "{encoding}");
            let plain = matches!(encoding, Encoding::F32 | Encoding::F16);
            // An embedding of 32 columns is Q8_0 at worst, so it never gives way to F16.
            assert_eq!(model.dtype(), if plain { DType::F32 } else { DType::Bf16 }, "{encoding}");
            for spec in config.params() {
                let mut expected = Vec::new();
                let mut rest = memory.values(&spec, 0..spec.shape.rows).unwrap();
                for part in &spec.parts {
                    let tail = rest.split_off(part.rows * spec.shape.cols);
                    let name = part.hf_name.replace("lm_head", "output");
                    let name = name.replace("model.embed_tokens", "token_embd");
                    let kept = stored_as(&name, (part.rows, spec.shape.cols), config.tied, encoding);
                    expected.push((kept, kept.encode(&rest)));
                    rest = tail;
                }
                assert_eq!(stored(&*model, &spec), expected, "{encoding} {}", spec.name);
                // Any rows of it are those rows.
                let all = model.values(&spec, 0..spec.shape.rows).unwrap();
                for rows in [0..1, spec.shape.rows / 3..spec.shape.rows / 2 + 1] {
                    let some = &all[rows.start * spec.shape.cols..rows.end * spec.shape.cols];
                    assert_eq!(model.values(&spec, rows).unwrap(), some);
                }
            }
        }
    }
}

#[test]
fn encodings_give_way_where_rows_are_no_whole_blocks() {
    let kept = |name, cols, encoding| stored_as(name, (8, cols), false, encoding);
    assert_eq!(kept("blk.0.attn_q.weight", 512, Encoding::Q4K), Encoding::Q4K);
    assert_eq!(kept("blk.0.attn_q.weight", 576, Encoding::Q4K), Encoding::Q5_0);
    assert_eq!(kept("blk.0.attn_q.weight", 576, Encoding::Q5K), Encoding::Q5_1);
    assert_eq!(kept("blk.0.attn_q.weight", 576, Encoding::Q6K), Encoding::Q8_0);
    assert_eq!(kept("blk.0.attn_q.weight", 40, Encoding::Q6K), Encoding::F16);
    assert_eq!(kept("blk.0.attn_q.weight", 40, Encoding::Bf16), Encoding::Bf16);
    assert_eq!(kept("output.weight", 512, Encoding::Q4_0), Encoding::Q6K);
    assert_eq!(kept("output.weight", 512, Encoding::Q8_0), Encoding::Q8_0);
    assert_eq!(kept("token_embd.weight", 512, Encoding::Q4_0), Encoding::Q4_0);
    assert_eq!(stored_as("token_embd.weight", (8, 512), true, Encoding::Q4K), Encoding::Q6K);
    assert_eq!(stored_as("output_norm.weight", (1, 512), true, Encoding::Q4K), Encoding::F32);
}

#[test]
fn vocabulary_and_metadata_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write(&path, &made_up(config()), Encoding::Q4K).unwrap();
    let model = GgufModel::open(&path).unwrap();
    for (key, value) in vocabulary() {
        assert_eq!(model.file().metadata()[&key], value, "{key}");
    }
    let said = GgufTokenizer::of(model.file());
    assert_eq!((said.model().unwrap(), said.pre().unwrap()), ("gpt2", "llama-bpe"));
    assert!(said.merges().unwrap().unwrap().iter().eq(["a b", "ab c"]));
    assert_eq!(said.tokens().unwrap().iter().nth(20), Some("<|eot_id|>"));
    assert_eq!(said.token_types(21).unwrap()[17..19], [1, 3]);
    assert_eq!(["bos", "eos", "eot"].map(|role| said.id(role, 21).unwrap()), [Some(18), Some(19), None]);
    assert_eq!((said.add_bos().unwrap(), said.chat_template().unwrap()), (None, Some("{{ messages }} «é»")));
    assert_eq!(model.stop_tokens(), Some(StopTokens { begin_of_text: Some(18), stop: vec![19, 20] }));
    assert_eq!(model.file().metadata()["general.file_type"], GgufValue::U32(14));
    assert_eq!(model.tensors().iter().map(|t| t.bytes).sum::<u64>(), model.stored_bytes());
    // A copy in the same encoding is the same file; the metadata of one in another differs in the encoding alone.
    let again = dir.path().join("again.gguf");
    Writer::new(&model, Encoding::Q4K, 1).copy(model.file()).write(&again).unwrap();
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap());
    Writer::new(&model, Encoding::F32, 3).copy(model.file()).write(&again).unwrap();
    let mut copied = GgufFile::open(&again).unwrap().metadata().clone();
    copied.insert("general.file_type".into(), GgufValue::U32(14));
    assert_eq!(copied, *model.file().metadata());
}

#[test]
fn what_ends_a_text_is_kept_where_nothing_begins_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut vocabulary = vocabulary();
    vocabulary.remove("tokenizer.ggml.bos_token_id");
    Writer::new(&made_up(config()), Encoding::F32, 1).describe("x", vocabulary).write(&path).unwrap();
    let model = GgufModel::open(&path).unwrap();
    assert_eq!(model.stop_tokens(), Some(StopTokens { begin_of_text: None, stop: vec![19, 20] }));
    // A folder that is written from it says the same.
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    hf::save_weights(
        &folder,
        &model,
        SaveOptions { encoding: Encoding::F32, shard_bytes: None, tokens: None, threads: 2 },
    )
    .unwrap();
    assert_eq!(weights::open(&folder).unwrap().stop_tokens(), model.stop_tokens());
    for name in [hf::CONFIG_FILE, hf::GENERATION_FILE] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text.contains("eos_token_id") && !text.contains("bos_token_id"), "{name}: {text}");
    }
}

#[test]
fn quantized_models_compute_in_bf16_whatever_the_embedding_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let memory = made_up(Config { dim: 40, heads: 2, kv_heads: 1, ffn: 64, ..config() });
    let mut dtypes = Vec::new();
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16, Encoding::Q8_0] {
        write(&path, &memory, encoding).unwrap();
        let model = weights::open(&path).unwrap();
        let stored = |name: &str| model.tensors().into_iter().find(|t| t.name == name).unwrap().encoding;
        dtypes.push((stored("token_embd.weight"), stored("blk.0.ffn_down.weight"), model.dtype()));
    }
    let row =
        |embedding: Encoding, down: Encoding, dtype| (embedding.name().into(), down.name().into(), dtype);
    assert_eq!(
        dtypes,
        [
            row(Encoding::F32, Encoding::F32, DType::F32),
            row(Encoding::F16, Encoding::F16, DType::F32),
            row(Encoding::Bf16, Encoding::Bf16, DType::Bf16),
            // 40 columns are no whole blocks.
            row(Encoding::F16, Encoding::Q8_0, DType::Bf16),
        ]
    );
}

#[test]
fn threads_do_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = [1, 2, 7].map(|threads| {
        let path = dir.path().join(format!("{threads}.gguf"));
        let memory = made_up(config());
        let writer = Writer::new(&memory, Encoding::Q5K, threads).describe("x", vocabulary());
        writer.write(&path).unwrap();
        std::fs::read(&path).unwrap()
    });
    assert!(bytes[0] == bytes[1] && bytes[0] == bytes[2]);
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write(&path, &made_up(config()), Encoding::F16).unwrap();
    let before = std::fs::read(&path).unwrap();
    let large = Memory {
        config: config(),
        values: |spec: &llamero_model::ParamSpec, rows: std::ops::Range<usize>| {
            vec![
                if spec.name.contains("layers.1.feed_forward.w2") { 1e6 } else { 1.0 };
                rows.len() * spec.shape.cols
            ]
        },
    };
    let error = write(&path, &large, Encoding::Q8_0).unwrap_err().to_string();
    assert!(
        error.contains("tensor `blk.1.ffn_down.weight` holds 1000000, but F16 reaches to 65504 only"),
        "{error}"
    );
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(dir.path().read_dir().unwrap().count(), 1, "a temporary file is left");
    write(&path, &large, Encoding::Bf16).unwrap();
    assert!(write(&dir.path().join("absent/m.gguf"), &large, Encoding::F32).is_err());
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name)
}

/// The file that llama.cpp's Python package made of the golden model: read, it is that model; written by us, it is that file.
#[test]
fn the_references_file_is_ours() {
    let reference = GgufModel::open(&golden("llama_tiny.gguf")).unwrap();
    let bytes = std::fs::read(golden("llama_tiny.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut values = HashMap::new();
    for spec in reference.config().params() {
        let data = spec.parts.iter().flat_map(|p| tensors.tensor(&p.hf_name).unwrap().data().to_vec());
        let data: Vec<u8> = data.collect();
        let floats: Vec<f32> = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        values.insert(spec.name.clone(), floats);
    }
    let hf = Memory {
        config: reference.config().clone(),
        values: |spec: &llamero_model::ParamSpec, rows: std::ops::Range<usize>| {
            values[&spec.name][rows.start * spec.shape.cols..rows.end * spec.shape.cols].to_vec()
        },
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    Writer::new(&hf, Encoding::Q8_0, 2).copy(reference.file()).write(&path).unwrap();
    let written = GgufModel::open(&path).unwrap();
    for spec in hf.config.params() {
        let (ours, theirs) = (stored(&written, &spec), stored(&reference, &spec));
        assert_eq!(ours, theirs, "{}", spec.name);
        let error = reference.values(&spec, 0..spec.shape.rows).unwrap().into_iter().zip(&values[&spec.name]);
        let (far, largest) =
            error.fold((0.0f32, 0.0f32), |(far, most), (a, b)| (far.max((a - b).abs()), most.max(b.abs())));
        assert!(far <= largest / 127.0, "{}: {far} of {largest}", spec.name);
    }
    let sizes = |file: &GgufFile| {
        let all = file.metadata().iter().filter(|(key, _)| key.starts_with("llama."));
        all.map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
    };
    let fresh = dir.path().join("fresh.gguf");
    write(&fresh, &hf, Encoding::Q8_0).unwrap();
    assert_eq!(sizes(&GgufFile::open(&fresh).unwrap()), sizes(reference.file()));
}

/// The rows of a head, in the file, are pairs that follow each other.
#[test]
fn queries_lie_interleaved_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let memory = made_up(config());
    write(&path, &memory, Encoding::F32).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let spec = &config().params()[2];
    let (rows, cols, head_dim) = (spec.parts[0].rows, spec.shape.cols, config().head_dim);
    let queries = memory.values(spec, 0..rows).unwrap();
    let interleaved = interleaved_rows(&queries, head_dim, cols);
    assert_eq!(half_split_rows(&interleaved, head_dim, cols), queries);
    let needle = Encoding::F32.encode(&interleaved);
    assert!(bytes.windows(needle.len()).any(|w| w == needle));
}
