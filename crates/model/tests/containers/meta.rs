//! Meta folders: everything that can be wrong with one is an error that names the file and the tensor, and nothing in a pickle
//! is ever run.

use std::path::Path;

use crate::common::{copy, golden, read_all};
use crate::torch::{TorchTensor, archive, checkpoint, global, integer, pickle, text, zip};
use llamero_model::meta::{FIRST_SHARD, PARAMS_FILE, parse_checkpoint, parse_pickle};
use llamero_model::weights::{self, Weights};
use llamero_model::{RopeScaling, WeightError};
use proptest::prelude::*;
use serde_json::{Value, json};

const SECOND_SHARD: &str = "consolidated.01.pth";

fn says(error: &WeightError, parts: &[&str]) {
    let error = error.to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} are not all in: {error}");
}

fn opened(path: &Path) -> Result<Box<dyn Weights>, WeightError> {
    weights::open(path)
}

fn refused(path: &Path, parts: &[&str]) {
    says(&read_all(path).unwrap_err(), parts);
}

fn with_params(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join(PARAMS_FILE);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// The smallest Llama, on one rank.
fn tiny() -> Vec<TorchTensor> {
    let tensor = |name: &str, rows: usize, cols: usize| {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32).sin()).collect();
        if rows == 1 {
            TorchTensor::new(name, &[cols], &values)
        } else {
            TorchTensor::new(name, &[rows, cols], &values)
        }
    };
    vec![
        tensor("tok_embeddings.weight", 6, 4),
        tensor("layers.0.attention_norm.weight", 1, 4),
        tensor("layers.0.attention.wq.weight", 4, 4),
        tensor("layers.0.attention.wk.weight", 4, 4),
        tensor("layers.0.attention.wv.weight", 4, 4),
        tensor("layers.0.attention.wo.weight", 4, 4),
        tensor("layers.0.ffn_norm.weight", 1, 4),
        tensor("layers.0.feed_forward.w1.weight", 12, 4),
        tensor("layers.0.feed_forward.w2.weight", 4, 12),
        tensor("layers.0.feed_forward.w3.weight", 12, 4),
        tensor("norm.weight", 1, 4),
        tensor("output.weight", 6, 4),
    ]
}

fn write(dir: &Path, bytes: &[u8]) {
    let params =
        json!({"dim": 4, "n_layers": 1, "n_heads": 1, "vocab_size": 6, "multiple_of": 4, "norm_eps": 1e-5});
    std::fs::write(dir.join(PARAMS_FILE), params.to_string()).unwrap();
    std::fs::write(dir.join(FIRST_SHARD), bytes).unwrap();
}

/// A folder with the smallest Llama after a change to a tensor.
fn changed(name: &str, change: impl FnOnce(&mut TorchTensor)) -> tempfile::TempDir {
    let mut tensors = tiny();
    change(tensors.iter_mut().find(|t| t.name == name).unwrap());
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &checkpoint(&tensors));
    dir
}

#[test]
fn archives_and_pickles_of_all_kinds_are_read() {
    let tensors = tiny();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &checkpoint(&tensors));
    let values = read_all(dir.path()).unwrap();
    // A module's state, and 64-bit sizes.
    write(dir.path(), &archive(&pickle(&tensors, true), &tensors));
    assert!(read_all(dir.path()).unwrap() == values);
    let mut entries = vec![("x/data.pkl".to_owned(), pickle(&tensors, false))];
    entries.extend(tensors.iter().enumerate().map(|(i, t)| (format!("x/data/{i}"), t.data.clone())));
    write(dir.path(), &zip(&entries, true));
    assert!(read_all(dir.path()).unwrap() == values);
    // A table that nothing needs, and an output that is the embedding.
    let mut more = tensors.clone();
    more.push(TorchTensor::new("rope.freqs", &[2], &[1.0, 0.5]));
    write(dir.path(), &checkpoint(&more));
    assert!(read_all(dir.path()).unwrap() == values);
    more.retain(|t| t.name != "output.weight");
    write(dir.path(), &checkpoint(&more));
    let tied = opened(dir.path()).unwrap();
    assert!(tied.config().tied && read_all(dir.path()).unwrap() == values[..values.len() - 1]);
    // A tensor in the middle of a larger storage.
    let dir = changed("norm.weight", |t| {
        t.data = [vec![0xff; 8], t.data.clone(), vec![0xff; 4]].concat();
        (t.offset, t.elements) = (2, 7);
    });
    assert!(read_all(dir.path()).unwrap() == values);
}

#[test]
fn sizes_follow_from_few_numbers() {
    let meta = opened(&golden("meta")).unwrap();
    let scaling =
        RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    assert_eq!(meta.config().rope_scaling, Some(scaling));
    assert_eq!((meta.config().context, meta.config().ffn), (131_072, 56));
}

#[test]
fn configurations_of_other_models_are_refused_by_name() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 8] = [
        (|j| j["vision_chunk_size"] = json!(560), "`vision_chunk_size`; only models of the Llama family"),
        (|j| j["moe_args"] = json!({"num_experts": 16}), "`moe_args`"),
        (|j| j["quantization_args"] = json!({"scheme": "int8"}), "`quantization_args`"),
        (|j| j["vocab_size"] = json!(-7), "`vocab_size` is -7"),
        (|j| j["n_kv_heads"] = json!(3), "`kv_heads` is 3"),
        (|j| j["n_heads"] = json!(0), "`heads` is 0"),
        (|j| j["multiple_of"] = json!(0), "feed-forward"),
        (|j| drop(j.as_object_mut().unwrap().remove("dim")), "`dim`"),
    ];
    for (change, found) in changes {
        let dir = copy(&golden("meta"));
        with_params(dir.path(), change);
        refused(dir.path(), &[PARAMS_FILE, found]);
    }
}

#[test]
fn wrong_tensors_are_errors_that_name_file_and_tensor() {
    let name = "layers.0.attention.wk.weight";
    type Change = fn(&mut TorchTensor);
    let changes: [(Change, &str); 9] = [
        (|t| t.name = "extra".into(), "is missing"),
        (
            |t| (t.shape, t.stride) = (vec![2, 8], vec![8, 1]),
            "has shape [2, 8], but `params.json` asks for [4, 4]",
        ),
        (|t| t.stride = vec![1, 4], "has strides [1, 4]"),
        (|t| t.offset = 1, "from element 1, but its storage has 16"),
        (
            |t| (t.shape, t.stride) = (vec![1 << 40, 1 << 40], vec![1 << 40, 1]),
            "has shape [1099511627776, 1099511627776] from element 0",
        ),
        (|t| t.elements = 17, "a storage of 64 bytes, which should have 17 elements"),
        (|t| t.data.truncate(63), "a storage of 63 bytes"),
        (|t| t.data[8..12].copy_from_slice(&f32::NAN.to_le_bytes()), "holds NaN at element 2"),
        (|t| t.data[60..].copy_from_slice(&f32::INFINITY.to_le_bytes()), "holds inf at element 15"),
    ];
    for (change, found) in changes {
        let dir = changed(name, |t| {
            change(t);
            let dimensions = t.shape.len();
            t.stride.resize(dimensions, 1);
        });
        refused(dir.path(), &[FIRST_SHARD, name, found]);
    }
    let dir = changed("norm.weight", |t| t.name = name.into());
    refused(dir.path(), &[FIRST_SHARD, name, "is in it twice"]);
    let mut more = tiny();
    more.push(TorchTensor::new("layers.0.attention.wq.bias", &[4], &[0.0; 4]));
    write(dir.path(), &checkpoint(&more));
    refused(dir.path(), &[FIRST_SHARD, "layers.0.attention.wq.bias", "is not part of a Llama"]);
}

#[test]
fn ranks_that_do_not_belong_together_are_refused() {
    let dir = copy(&golden("meta"));
    let (first, second) = (dir.path().join(FIRST_SHARD), dir.path().join(SECOND_SHARD));
    std::fs::rename(&second, dir.path().join("consolidated.02.pth")).unwrap();
    refused(dir.path(), &[SECOND_SHARD, "is missing; the folder has 2 checkpoints", "hint"]);
    std::fs::remove_file(dir.path().join("consolidated.02.pth")).unwrap();
    refused(dir.path(), &[FIRST_SHARD, "tok_embeddings.weight", "has shape [32, 16]", "[64, 16]"]);

    // A norm of another model.
    let bytes = std::fs::read(&first).unwrap();
    let whole = opened(&golden("meta")).unwrap();
    let norm = whole.tensors().into_iter().find(|t| t.name == "norm.weight").unwrap();
    assert_eq!((norm.bytes, norm.shape.as_slice()), (32, [16].as_slice()));
    let spec = whole.config().params().into_iter().find(|s| s.name == "norm.weight").unwrap();
    let stored = whole.stored(&spec).unwrap();
    let at = bytes.windows(32).position(|w| w == &*stored[0].rows[0]).unwrap();
    let mut other = bytes.clone();
    other[at] ^= 1;
    std::fs::write(&second, &other).unwrap();
    refused(dir.path(), &[SECOND_SHARD, "norm.weight", "differs from the one in", FIRST_SHARD]);

    // As many rows as no number of ranks divides.
    std::fs::write(&second, &bytes).unwrap();
    std::fs::write(dir.path().join("consolidated.02.pth"), &bytes).unwrap();
    with_params(dir.path(), |json| json["vocab_size"] = json!(64));
    refused(dir.path(), &["tok_embeddings.weight", "64 rows", "3 files"]);
}

/// A checkpoint whose dict has one more value, made by `program`.
fn with_program(program: &[u8]) -> Vec<u8> {
    let tensors = tiny();
    let mut pickle = pickle(&tensors, false);
    assert_eq!(pickle.split_off(pickle.len() - 2), b"u.");
    text(&mut pickle, "zz");
    pickle.extend(program);
    pickle.extend(b"u.");
    archive(&pickle, &tensors)
}

fn program(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

#[test]
fn a_pickle_that_would_run_something_is_refused_by_name() {
    let call = |module: &str, name: &str| {
        program(|out| {
            global(out, module, name);
            text(out, "touch /tmp/owned");
            out.extend(b"\x85R");
        })
    };
    let stack_global = program(|out| {
        text(out, "builtins");
        text(out, "eval");
        out.extend(b"\x93");
    });
    let rebuild = program(|out| {
        global(out, "torch._utils", "_rebuild_tensor_v2");
        text(out, "x");
        out.extend(b"\x85R");
    });
    let build = program(|out| {
        out.extend(b"]}");
        text(out, "__class__");
        out.extend(b"Nsb");
    });
    let persistent = program(|out| {
        text(out, "module");
        out.extend(b"\x85Q");
    });
    let cases: [(Vec<u8>, &str); 16] = [
        (call("os", "system"), "`os.system`, which is refused"),
        (call("posix", "system"), "`posix.system`"),
        (call("builtins", "exec"), "`builtins.exec`"),
        (call("torch", "load"), "`torch.load`"),
        (call("torch._utils", "_rebuild_parameter"), "`torch._utils._rebuild_parameter`"),
        (call("torch", "LongStorage"), "`torch.LongStorage`"),
        (call("torch", "FloatStorage"), "calls Storage(F32)"),
        (call("collections", "OrderedDict"), "calls OrderedDict with 1"),
        (stack_global, "`builtins.eval`"),
        (b"(S'touch /tmp/owned'\nios\nsystem\n".to_vec(), "refused"),
        (b"(ios\nsystem\n".to_vec(), "INST"),
        (b")\x81".to_vec(), "NEWOBJ"),
        (b"\x82\x01".to_vec(), "EXT"),
        (rebuild, "a tensor of 1 arguments"),
        (build, "sets attributes of a list, which is refused"),
        (persistent, "a persistent id that is no storage"),
    ];
    for (program, found) in cases {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &with_program(&program));
        let error = opened(dir.path()).err().unwrap();
        assert!(matches!(error, WeightError::Container { .. }));
        says(&error, &[FIRST_SHARD, found]);
    }
}

#[test]
fn pickles_that_make_no_sense_are_refused() {
    let cases: [(&[u8], &str); 13] = [
        (b"", "cut off"),
        (b"\x80\x02", "cut off"),
        (b"\x80\x00.", "protocol 0"),
        (b"\x80\x02.", "not there"),
        (b"\x80\x02N.", "it holds None, not a dict"),
        (b"\x80\x02}(NNu.", "a key of its dict is None"),
        (b"\x80\x02}(X\x01\x00\x00\x00aNu.", "`a` in it is None, not a tensor"),
        (b"\x80\x02}(Nu.", "a key without a value"),
        (b"\x80\x02}u.", "a mark that is not there"),
        (b"\x80\x02}(\x85.", "not there"),
        (b"\x80\x02h\x05.", "recalls value 5"),
        (b"\x80\x02X\xff\xff\xff\xffab.", "cut off: 4294967295 bytes"),
        (b"\x80\x02\x8a\x09123456789.", "an integer of 9 bytes"),
    ];
    for (pickle, found) in cases {
        let error = parse_pickle(pickle).unwrap_err();
        assert!(error.contains(found), "`{found}` is not in: {error}");
    }
    // Bounds: a stack, values and a memo that grow without end, without a long file for each value.
    let endless: [(&[u8], &[u8]); 4] = [(b"N", b"N"), (b"Nq\x00", b"h\x00"), (b"", b"("), (b"N", b"\x94")];
    for (start, again) in endless {
        let mut pickle = [b"\x80\x02", start].concat();
        pickle.extend(again.repeat(1_100_000));
        let error = parse_pickle(&pickle).unwrap_err();
        assert!(error.contains("more than 1048576"), "{error}");
    }
    let long = [b"\x80\x02X\x01\x10\x00\x00".as_slice(), &[b'a'; 4097], b"."].concat();
    assert!(parse_pickle(&long).unwrap_err().contains("a str of 4097 bytes"));
    // Two bytes that recall a name, and two that recall a tensor, make no second copy of either.
    let whole = pickle(&tiny(), false);
    let mut again = whole[..whole.len() - 2].to_vec();
    text(&mut again, &"n".repeat(4096));
    again.extend(b"q\xf0N");
    again.extend(b"h\xf0N".repeat(100_000));
    again.extend(b"u.");
    assert!(parse_pickle(&again).unwrap_err().contains("is None, not a tensor"));
    // Nor is a long row walked through for each tensor that is said to have it as its shape.
    let mut row = b"\x80\x02(".to_vec();
    row.extend(b"K\x01".repeat(500_000));
    row.extend(b"tq\x00");
    global(&mut row, "torch", "FloatStorage");
    row.extend(b"q\x01");
    text(&mut row, "storage");
    text(&mut row, "0");
    row.extend(b"h\x00h\x00tQ");
    assert!(parse_pickle(&row).is_err());
    // A value that holds itself is none that anybody walks through.
    assert!(
        parse_pickle(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.")
            .unwrap_err()
            .contains("a dict, not a tensor")
    );
}

#[test]
fn archives_that_are_none_or_damaged_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = tiny();
    let entry = |name: &str, data: &[u8]| (name.to_owned(), data.to_vec());
    let pickled = pickle(&tensors, false);
    let mut compressed = zip(&[entry("c/data.pkl", &pickled)], false);
    let central = compressed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    compressed[central + 10] = 8;
    let cases: [(Vec<u8>, &str); 9] = [
        (Vec::new(), "no zip archive"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "no zip archive"),
        (zip(&[], false), "does not hold just one `data.pkl`"),
        (zip(&[entry("a/data.pkl", &pickled), entry("b/data.pkl", &pickled)], false), "just one `data.pkl`"),
        (zip(&[entry("a/x", b""), entry("a/x", b"")], false), "entry `a/x` is there twice"),
        (compressed, "`c/data.pkl` is compressed"),
        (
            zip(&[entry("c/data.pkl", &pickled), entry("c/byteorder", b"big")], false),
            "byte order is not little",
        ),
        (zip(&[entry("c/data.pkl", &pickled)], false), "storage `3`, which is missing"),
        (zip(&[entry("c/data.pkl", &vec![b'N'; (16 << 20) + 1])], false), "at most 16777216 are read"),
    ];
    for (bytes, found) in cases {
        write(dir.path(), &bytes);
        refused(dir.path(), &[FIRST_SHARD, found]);
    }
}

#[test]
fn cut_files_are_errors_at_every_length() {
    let dir = copy(&golden("meta"));
    for file in [FIRST_SHARD, SECOND_SHARD, PARAMS_FILE] {
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        for length in (0..whole.len() - 1).step_by((whole.len() / 97).max(1)) {
            std::fs::write(&path, &whole[..length]).unwrap();
            says(&read_all(dir.path()).unwrap_err(), &[file]);
        }
        std::fs::write(&path, &whole).unwrap();
    }
    read_all(dir.path()).unwrap();
}

#[test]
fn sizes_without_end_are_errors() {
    let mut wide = zip(&[("c/data.pkl".to_owned(), pickle(&tiny(), false))], true);
    let dir = tempfile::tempdir().unwrap();
    let central = wide.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let extra = central + 46 + "c/data.pkl".len() + 4;
    wide[extra..extra + 16].fill(0xff);
    write(dir.path(), &wide);
    refused(dir.path(), &[FIRST_SHARD, "18446744073709551615", "cut off or damaged"]);
    // Elements beyond any file.
    let program = program(|out| {
        global(out, "torch._utils", "_rebuild_tensor_v2");
        out.extend(b"((");
        text(out, "storage");
        global(out, "torch", "HalfStorage");
        text(out, "0");
        text(out, "cpu");
        integer(out, usize::MAX >> 1);
        out.extend(b"tQK\x00(");
        integer(out, usize::MAX >> 1);
        integer(out, usize::MAX >> 1);
        out.extend(b"t(K\x01K\x01t\x89NtR");
    });
    write(dir.path(), &with_program(&program));
    refused(dir.path(), &[FIRST_SHARD, "`zz`", "a storage of"]);
}

/// Bytes that overwrite others at some places.
fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

fn edited(mut bytes: Vec<u8>, edits: Vec<(prop::sample::Index, u8)>) -> Vec<u8> {
    for (at, byte) in edits {
        let at = at.index(bytes.len());
        bytes[at] = byte;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse_checkpoint(&bytes).is_err());
        // An empty dict may come up, never a tensor.
        prop_assert!(parse_pickle(&bytes).map_or(true, |tensors| tensors.is_empty()));
        let inside = parse_checkpoint(&archive(&bytes, &tiny()));
        prop_assert!(inside.map_or(true, |tensors| tensors.is_empty()));
    }

    #[test]
    fn instructions_in_any_order_are_read_without_a_panic(
        opcodes in prop::collection::vec(prop::sample::select(b"}(])\x85\x86\x87tasuqhcRQbNKXJ.\x88\x8a0\x93\x94ctorch\nFloatStorage\n".to_vec()), 0..200)
    ) {
        let pickle = [b"\x80\x02".as_slice(), &opcodes].concat();
        // Whatever it makes, no name comes out of thin air.
        if let Ok(tensors) = parse_pickle(&pickle) {
            prop_assert!(tensors.is_empty());
        }
    }

    #[test]
    fn damaged_pickles_are_read_without_a_panic(edits in edits()) {
        let damaged = edited(pickle(&tiny(), true), edits);
        if let Ok(tensors) = parse_pickle(&damaged) {
            prop_assert!(tensors.len() <= tiny().len());
        }
    }

    #[test]
    fn damaged_archives_are_read_without_a_panic(edits in edits(), wide in any::<bool>()) {
        let tensors = tiny();
        let mut entries = vec![("x/data.pkl".to_owned(), pickle(&tensors, false))];
        entries.extend(tensors.iter().enumerate().map(|(i, t)| (format!("x/data/{i}"), t.data.clone())));
        if let Ok(tensors) = parse_checkpoint(&edited(zip(&entries, wide), edits)) {
            prop_assert!(tensors.len() <= entries.len());
        }
    }

    #[test]
    fn damaged_folders_are_read_without_a_panic(edits in edits(), params in any::<bool>()) {
        let dir = copy(&golden("meta"));
        let file = if params { PARAMS_FILE } else { FIRST_SHARD };
        let path = dir.path().join(file);
        std::fs::write(&path, edited(std::fs::read(&path).unwrap(), edits)).unwrap();
        match read_all(dir.path()) {
            Ok(values) => prop_assert!(values.iter().flatten().all(|x| x.is_finite())),
            Err(error) => prop_assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}"),
        }
    }
}
