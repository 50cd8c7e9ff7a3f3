//! Files that are not as they should be.

use std::path::Path;

use llamero_model::WeightError;
use llamero_model::gguf::{Contents, GgufModel, parse_model};
use llamero_model::weights;
use llamero_tensor::Encoding;
use proptest::prelude::*;

use super::raw::{self, Raw};
use super::{config, made_up, write};

/// Opens a file of these bytes and reads all of it.
fn open(bytes: &[u8]) -> Result<(), WeightError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let model = weights::open(&path)?;
    for spec in model.config().params() {
        let values = model.values(&spec, 0..spec.shape.rows)?;
        assert!(values.iter().all(|x| x.is_finite()), "{}", spec.name);
        model.release(&spec);
    }
    Ok(())
}

fn message(change: impl FnOnce(&mut Raw)) -> String {
    let mut raw = Raw::llama();
    change(&mut raw);
    match open(&raw.bytes()) {
        Ok(()) => "opens".into(),
        Err(error) => error.to_string(),
    }
}

/// What is done to a file, in words and in fact, and what the error must say.
type Case<'a> = (&'a str, &'a dyn Fn(&mut Raw), &'a str);

fn check(cases: &[Case<'_>]) {
    for (what, change, expected) in cases {
        let found = message(change);
        assert!(found.contains(expected), "{what}: expected `{expected}`, found `{found}`");
        assert!(found == "opens" || found.contains("m.gguf"), "{what}: no file in `{found}`");
    }
}

#[test]
fn what_is_valid_opens() {
    check(&[
        ("as it is", &|_| (), "opens"),
        ("version 2", &|r| r.version = 2, "opens"),
        ("tied", &|r| r.tensors.retain(|t| t.name != "output.weight"), "opens"),
        ("64-bit sizes", &|r| r.set("llama.block_count", raw::any(10, &1u64.to_le_bytes())), "opens"),
        ("alignment 64 by luck of none", &|r| r.set("general.alignment", raw::u32(8)), "opens"),
        ("no experts", &|r| r.set("llama.expert_count", raw::u32(0)), "opens"),
        ("no scaling", &|r| r.set("llama.rope.scaling.type", raw::string("none")), "opens"),
        (
            "a factor that is not used",
            &|r| {
                r.set("llama.rope.scaling.type", raw::string("none"));
                r.set("llama.rope.scaling.factor", raw::f32(4.0));
                r.set("llama.rope.scale_linear", raw::f32(4.0));
            },
            "opens",
        ),
        (
            "a factor of one",
            &|r| {
                r.set("llama.rope.scaling.type", raw::string("linear"));
                r.set("llama.rope.scaling.factor", raw::f32(1.0));
                r.set("llama.rope.scaling.attn_factor", raw::f32(1.0));
            },
            "opens",
        ),
        ("no factor", &|r| r.set("llama.rope.scaling.factor", raw::f32(0.0)), "opens"),
        ("divisors of one", &|r| r.add("rope_freqs.weight", &[2]), "opens"),
        ("unknown keys", &|r| r.set("general.url", raw::string("x")), "opens"),
        ("empty arrays", &|r| r.set("general.tags", raw::array(8, 0, &[])), "opens"),
        ("an array of arrays", &|r| r.set("x", raw::array(9, 1, &[0; 12])), "opens"),
    ]);
}

#[test]
fn damaged_containers_are_named() {
    let huge = u64::MAX.to_le_bytes();
    let many: Vec<u8> =
        (0..6).flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()).collect();
    check(&[
        ("magic", &|r| r.magic = *b"GGML", "starts with \"GGML\", not with `GGUF`"),
        ("version 1", &|r| r.version = 1, "version 1 is not read"),
        ("big-endian", &|r| r.version = 3u32.swap_bytes(), "big-endian"),
        ("version 9", &|r| r.version = 9, "version is 9"),
        ("too many tensors", &|r| r.counts = Some((u64::MAX, 8)), "claims 18446744073709551615 tensors"),
        ("too many entries", &|r| r.counts = Some((12, 1 << 40)), "claims 1099511627776 metadata entries"),
        ("a tensor too many", &|r| r.counts = Some((13, 8)), "not a readable GGUF file"),
        (
            "a long string",
            &|r| r.set("x", raw::any(8, &huge)),
            "metadata key `x`: it ends inside of a string",
        ),
        ("a long array", &|r| r.set("x", raw::array(4, u64::MAX, &[])), "key `x`: it claims"),
        ("a long array of bytes", &|r| r.set("x", raw::array(0, u64::MAX, &[])), "key `x`: it claims"),
        ("a long array of truth", &|r| r.set("x", raw::array(7, 1 << 50, &[])), "key `x`: it ends inside"),
        ("a long array of strings", &|r| r.set("x", raw::array(8, 1 << 50, &[])), "key `x`: it claims"),
        ("a long array of arrays", &|r| r.set("x", raw::array(9, 1 << 50, &[])), "key `x`: it claims"),
        ("deep arrays", &|r| r.set("x", raw::array(9, 1, &many)), "nested deeper than 4"),
        ("type 13", &|r| r.set("x", raw::any(13, &[])), "key `x`: type 13"),
        ("an array of type 13", &|r| r.set("x", raw::array(13, 1, &[])), "key `x`: type 13"),
        ("truth 2", &|r| r.set("x", raw::any(7, &[2])), "2 is no truth value"),
        ("no UTF-8", &|r| r.set("x", raw::string([0xff])), "key `x`: a string at byte"),
        ("an empty key", &|r| r.set("", raw::u32(1)), "a metadata key has 0 bytes"),
        ("a key twice", &|r| r.entries.push(r.entries[1].clone()), "`llama.block_count`: appears twice"),
        ("alignment 12", &|r| r.set("general.alignment", raw::u32(12)), "`general.alignment` is 12"),
        ("alignment 0", &|r| r.set("general.alignment", raw::u32(0)), "`general.alignment` is 0"),
        (
            "alignment a text",
            &|r| r.set("general.alignment", raw::string("32")),
            "`general.alignment` is \"32\"",
        ),
    ]);
}

#[test]
fn damaged_tensors_are_named() {
    let at = |name: &'static str, change: fn(&mut raw::Tensor)| move |r: &mut Raw| change(r.tensor(name));
    let (q, down) = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight");
    check(&[
        ("no dimensions", &at(q, |t| t.dims.clear()), "tensor `blk.0.attn_q.weight` has 0 dimensions"),
        ("five dimensions", &at(q, |t| t.dims = vec![1; 5]), "has 5 dimensions"),
        ("a dimension of 0", &at(q, |t| t.dims[1] = 0), "tensor `blk.0.attn_q.weight` has shape [0, 8]"),
        ("too large", &at(q, |t| t.dims[1] = 1 << 62), "which no file can hold"),
        ("beyond the file", &at(q, |t| t.dims[1] = 1 << 40), "but the file ends at"),
        ("an offset beyond the file", &at(q, |t| t.offset = 1 << 40), "the file ends at"),
        ("an offset beyond all", &at(q, |t| t.offset = !31), "`blk.0.attn_q.weight` begins"),
        ("a crooked offset", &at(q, |t| t.offset += 4), "which is no multiple of 32"),
        ("one over another", &at(down, |t| t.offset = 0), "over `"),
        (
            "another shape",
            &at(q, |t| t.dims = vec![4, 16]),
            "has shape [16, 4], but `llama.*` asks for [8, 8]",
        ),
        ("Q2_K", &at(q, |t| t.kind = 10), "`blk.0.attn_q.weight` is stored as Q2_K, which is not read here"),
        ("type 99", &at(q, |t| t.kind = 99), "is stored as type number 99"),
        ("integers", &at(q, |t| t.kind = 26), "is stored as I32"),
        ("no whole blocks", &at(q, |t| t.kind = 8), "has rows of 8, which are no whole blocks of Q8_0 (32"),
        ("twice", &|r| r.add("output.weight", &[8, 5]), "tensor `output.weight` appears twice"),
        ("a bias", &|r| r.add("blk.0.attn_q.bias", &[8]), "`blk.0.attn_q.bias` is not part of a Llama"),
        ("a second layer", &|r| r.add("blk.1.attn_q.weight", &[8, 8]), "`blk.1.attn_q.weight` is not part"),
        (
            "none",
            &|r| r.tensors.retain(|t| t.name != "output_norm.weight"),
            "`output_norm.weight` is missing",
        ),
        ("no embedding", &|r| r.tensors.remove(0).offset = 0, "`token_embd.weight` is missing"),
        ("NaN", &|r| r.data[4..8].copy_from_slice(&f32::NAN.to_le_bytes()), "holds NaN at element 1"),
        ("truncated", &|r| r.data.truncate(900), "but the file ends at"),
        (
            "divisors of another model",
            &|r| r.add("rope_freqs.weight", &[3]),
            "`rope_freqs.weight` is F32 [3]",
        ),
    ]);
}

#[test]
fn other_models_are_refused_by_name() {
    let set = |key: &'static str, value: raw::Value| move |r: &mut Raw| r.set(key, value.clone());
    let without = |key: &'static str| move |r: &mut Raw| r.entries.retain(|(k, _)| k != key);
    check(&[
        ("qwen2", &set("general.architecture", raw::string("qwen2")), "`general.architecture` is \"qwen2\""),
        ("no kind", &without("general.architecture"), "`general.architecture` is missing"),
        ("no kind but a number", &set("general.architecture", raw::u32(7)), "`general.architecture` is 7"),
        ("experts", &set("llama.expert_count", raw::u32(8)), "`llama.expert_count` is 8; such a model"),
        ("a window", &set("llama.attention.sliding_window", raw::u32(4096)), "sliding_window` is 4096"),
        (
            "yarn",
            &set("llama.rope.scaling.type", raw::string("yarn")),
            "`llama.rope.scaling.type` is \"yarn\"",
        ),
        ("stretched", &set("llama.rope.scale_linear", raw::f32(2.0)), "`llama.rope.scale_linear` is 2"),
        (
            "stretched without a type",
            &set("llama.rope.scaling.factor", raw::f32(4.0)),
            "`llama.rope.scaling.factor` is 4; such a model is not computed here",
        ),
        (
            "stretched by name",
            &|r| {
                r.set("llama.rope.scaling.type", raw::string("linear"));
                r.set("llama.rope.scaling.factor", raw::f32(4.0));
            },
            "`llama.rope.scaling.factor` is 4",
        ),
        (
            "louder attention",
            &set("llama.rope.scaling.attn_factor", raw::f32(1.5)),
            "`llama.rope.scaling.attn_factor` is 1.5",
        ),
        ("not causal", &set("llama.attention.causal", raw::any(7, &[0])), "attention.causal` is not true"),
        ("parts", &set("split.count", raw::any(2, &[3, 0])), "one of 3 parts (`split.count`)"),
        (
            "half a head",
            &set("llama.rope.dimension_count", raw::u32(2)),
            "dimension_count` is 2, but heads are 4",
        ),
        (
            "heads by layer",
            &set("llama.attention.head_count", raw::array(4, 1, &[2, 0, 0, 0])),
            "is [1 × u32]",
        ),
        ("no width", &without("llama.embedding_length"), "`llama.embedding_length` is missing"),
        ("no epsilon", &without("llama.attention.layer_norm_rms_epsilon"), "rms_epsilon` is missing"),
        (
            "width -8",
            &set("llama.embedding_length", raw::any(5, &(-8i32).to_le_bytes())),
            "is -8; it must be",
        ),
        ("no heads", &set("llama.attention.head_count", raw::u32(0)), "`heads` is 0"),
        (
            "layers",
            &set("llama.block_count", raw::u32(60_000)),
            "`llama.block_count` is 60000, but there are 12",
        ),
        ("absurd layers", &set("llama.block_count", raw::u32(u32::MAX)), "`layers` is 4294967295"),
        (
            "another vocabulary",
            &set("llama.vocab_size", raw::u32(6)),
            "is 6, but `token_embd.weight` has 5 rows",
        ),
        ("a base of NaN", &set("llama.rope.freq_base", raw::f32(f32::NAN)), "`rope_theta` is NaN"),
        (
            "tokens",
            &set("tokenizer.ggml.tokens", raw::array(8, 6, &[0; 48])),
            "`tokenizer.ggml.tokens` has 6",
        ),
        ("tokens of numbers", &set("tokenizer.ggml.tokens", raw::array(0, 5, &[0; 5])), "array of strings"),
    ]);
    let mut raw = Raw::llama();
    raw.set("tokenizer.ggml.tokens", raw::array(8, 5, &[0; 40]));
    for (key, value) in [("bos_token_id", raw::u32(5)), ("token_type", raw::array(5, 1, &[1, 0, 0, 0]))] {
        let mut raw = raw.clone();
        raw.set(&format!("tokenizer.ggml.{key}"), value);
        let error = open(&raw.bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("`tokenizer.ggml.{key}` is")), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = Raw::llama().bytes();
    open(&bytes).unwrap();
    // The last tensor ends where padding begins.
    let end = bytes.len() - bytes.iter().rev().take_while(|b| **b == 0).count();
    for len in 0..end {
        assert!(Contents::parse(Path::new("x"), &bytes[..len]).is_err(), "{len}");
    }
}

/// A small file of ours with quantised tensors and a vocabulary.
fn valid() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write(&path, &made_up(config()), Encoding::Q4K).unwrap();
    std::fs::read(&path).unwrap()
}

/// Anything but a panic will do; what opens has finite values.
fn survives(bytes: &[u8]) {
    drop(open(bytes));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(parse_model(&bytes));
        drop(parse_model(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat()));
    }

    #[test]
    fn changed_files_are_read_or_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        words in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u64>(), Just(u64::MAX), Just(1 << 31), Just(0), 0u64..64,
        ]), 0..3),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = valid();
        // Most changes belong into what comes before the tensors.
        let head = 2600.min(bytes.len() - 8);
        for (at, value) in changes {
            bytes[at.index(head)] = value;
        }
        for (at, value) in words {
            let at = at.index(head);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if cut {
            bytes.truncate(len.index(bytes.len()));
        }
        survives(&bytes);
    }
}

#[test]
fn a_vocabulary_alone_is_no_model() {
    let mut raw = Raw::llama();
    raw.tensors.clear();
    raw.data.clear();
    raw.set("tokenizer.ggml.tokens", raw::array(8, 1, &raw::prefixed(b"a")));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, raw.bytes()).unwrap();
    let file = llamero_model::gguf::GgufFile::open(&path).unwrap();
    assert!(llamero_model::gguf::GgufTokenizer::of(&file).tokens().unwrap().iter().eq(["a"]));
    let error = GgufModel::new(file).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("a file of a vocabulary alone is no model"), "{error}");
}
