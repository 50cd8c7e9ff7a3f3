//! Tokenizers that others made: GPT-2's and SmolLM2's, from GGUF and Hugging Face's files.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

mod common;

use llamero_tokenizer::{
    CHAT_TEMPLATE, ChatOptions, GgufVocabulary, Message, Role, Split, Tokenizer, Trainer,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

/// A vocabulary with special tokens in front, ids in another order than the merges, an added word and an unused id.
fn small() -> GgufVocabulary {
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).into();
    let mut token_types = vec![3; 3];
    let ascii = ('!'..='~').map(String::from);
    let others = ["Ġ", "Ċ", "Ã", "©", "Ġth", "he", "the", "Ġt", "in", "er", "Ġthe", "ing", "ĠĠ", "11"];
    tokens.extend(ascii.chain(others.map(String::from)));
    token_types.resize(tokens.len(), 1);
    tokens.extend(["New York", "<pad>"].map(String::from));
    token_types.extend([4, 5]);
    let merges = ["Ġ t", "h e", "i n", "e r", "Ġt h", "Ġt he", "t he", "in g", "Ġ Ġ", "1 1"];
    GgufVocabulary {
        model: "gpt2".into(),
        pre: "smollm".into(),
        tokens,
        token_types,
        merges: merges.map(String::from).into(),
        bos: Some(1),
        eos: Some(2),
        add_bos: Some(false),
        ..GgufVocabulary::default()
    }
}

fn read(change: impl FnOnce(&mut GgufVocabulary)) -> Result<Tokenizer, llamero_tokenizer::Error> {
    let mut vocabulary = small();
    change(&mut vocabulary);
    Tokenizer::from_gguf(vocabulary)
}

static SMALL: LazyLock<Tokenizer> = LazyLock::new(|| read(|_| ()).unwrap());

fn spelled(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap().escape_ascii().to_string()).collect()
}

#[test]
fn merges_come_in_their_order_and_special_tokens_from_anywhere() {
    let encode = |text: &str| spelled(&SMALL, &SMALL.encode(text)).join("|");
    // " t" comes before "he", and "the" before " the" is made of " t" and "he" only if the list says so.
    assert_eq!(encode("the thing there"), "the| th|ing| the|r|e");
    assert_eq!(encode("x11  11"), "x|1|1|  |1|1");
    assert_eq!(encode("in New York<|im_end|>"), "in| |New York|<|||i|m|_|e|n|d|||>");
    assert_eq!(encode("<pad>"), "<|p|a|d|>");
    // The tab and a byte of the second letter are no tokens.
    assert_eq!(encode("a\tbéè"), r"a|b|\xc3|\xa9|\xc3");
}

#[test]
fn special_tokens_are_those_of_the_file() {
    let special = SMALL.special();
    assert_eq!((special.begin_of_text, special.end_of_text, special.eot), (None, 0, 2));
    assert_eq!(special.ends(), [0, 2]);
    assert_eq!(special.iter().map(|(id, _)| id).collect::<Vec<_>>(), [0, 1, 2]);
    let ids = SMALL.encode_with_special("<|im_start|>the<|im_end|>");
    assert_eq!(spelled(&SMALL, &ids), ["<|im_start|>", "the", "<|im_end|>"]);
    assert_eq!(SMALL.decode(&ids).unwrap(), "<|im_start|>the<|im_end|>");
    assert_eq!((SMALL.vocab_size(), SMALL.num_ranks()), (small().tokens.len(), small().tokens.len() - 5));
    let begins = read(|v| v.add_bos = Some(true)).unwrap();
    assert_eq!(begins.special().begin_of_text, Some(1));
    assert_eq!(begins.fingerprint(), SMALL.fingerprint(), "the ids mean the same");
    assert_ne!(read(|v| v.pre = "gpt-2".into()).unwrap().fingerprint(), SMALL.fingerprint());
    assert_ne!(read(|v| v.merges.swap(0, 1)).unwrap().fingerprint(), SMALL.fingerprint());
}

#[test]
fn bad_gguf_vocabularies_are_refused_with_the_key() {
    let refused = |expected: &str, change: &dyn Fn(&mut GgufVocabulary)| {
        let error = read(change).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    };
    refused("`tokenizer.ggml.model`: found `llama`", &|v| v.model = "llama".into());
    refused("`tokenizer.ggml.pre`: found `default`", &|v| v.pre = "default".into());
    refused("`tokenizer.ggml.pre`: found ``", &|v| v.pre.clear());
    refused("`tokenizer.ggml.token_type`: `3` types", &|v| v.token_types.truncate(3));
    refused("`tokenizer.ggml.token_type`: token `4`, `\"`, has type `6`", &|v| v.token_types[4] = 6);
    refused("`tokenizer.ggml.tokens`: token `3`, `日`", &|v| v.tokens[3] = "日".into());
    refused("`3` and `4` are the same token", &|v| v.tokens[4] = "!".into());
    refused("added token `<|im_end|>` occurs twice", &|v| v.tokens[0] = "<|im_end|>".into());
    refused("`tokenizer.ggml.merges`: merge `2`, `in`", &|v| v.merges[2] = "in".into());
    refused("`tokenizer.ggml.merges`: it is missing or empty", &|v| v.merges.clear());
    refused("merge `0`, `z z`: `zz` is not a token", &|v| v.merges[0] = "z z".into());
    refused("`tokenizer.ggml.eos_token_id`: `4000`", &|v| v.eos = Some(4000));
    refused("no token ends a text", &|v| (v.eos, v.tokens[0]) = (None, "x0".into()));
}

fn chat_vocabulary(template: &str) -> Tokenizer {
    let bytes: Vec<String> =
        Tokenizer::from_ranks((0..=255).map(|byte| vec![byte]).collect()).unwrap().to_gguf().unwrap().tokens;
    let names = ["<|begin|>", "<|end|>", "<|start|>"].map(String::from);
    Tokenizer::from_gguf(GgufVocabulary {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens: bytes[..256].iter().cloned().chain(names).collect(),
        token_types: [vec![1; 256], vec![3; 3]].concat(),
        bos: Some(256),
        eos: Some(257),
        chat_template: Some(template.into()),
        ..GgufVocabulary::default()
    })
    .unwrap()
}

#[test]
fn chat_templates_give_what_transformers_gives() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/chat_templates.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let template = golden["templates"][case["template"].as_str().unwrap()].as_str().unwrap();
        let dialog = golden["dialogs"][case["dialog"].as_str().unwrap()].as_array().unwrap();
        let role = |name: &Value| serde_json::from_value::<Role>(name.clone()).unwrap();
        let messages: Vec<Message> =
            dialog.iter().map(|m| Message::new(role(&m[0]), m[1].as_str().unwrap())).collect();
        let options = ChatOptions {
            generation_prompt: case["generation_prompt"] == true,
            date: (case["date"] == true).then(|| llamero_tokenizer::Date::new(2026, 3, 9).unwrap()),
        };
        let tokenizer = chat_vocabulary(template);
        let found = tokenizer.encode_chat(&messages, options);
        match (&case["text"], found) {
            (Value::String(text), Ok(ids)) => assert_eq!(&tokenizer.decode(&ids).unwrap(), text, "{case}"),
            (_, Err(error)) => {
                let expected = case["error"].as_str().unwrap_or_else(|| panic!("{error}: {case}"));
                assert!(error.to_string().contains(expected), "{error}: {case}");
            }
            (_, Ok(ids)) => panic!("{:?}: {case}", tokenizer.decode(&ids)),
        }
    }
}

/// Pieces of which hostile contents are made.
#[rustfmt::skip]
const HOSTILE: &[&str] = &[
    "<|end|>", "<|start|>", "<|begin|>", "<|", "|>", "<|en", "d|>", "start", "a", " ", "\n", "<x>", "\u{f0000}", "\u{f0001}",
    "\u{f0002}", "\u{f17ff}", "\u{100000}", "\u{100001}", "é",
];

proptest! {
    #[test]
    fn contents_never_become_special_tokens(
        parts in proptest::collection::vec(proptest::sample::select(HOSTILE), 0..12),
    ) {
        let content = parts.concat();
        for (template, around) in [
            // All of it, ends trimmed, without a part, cut into pieces that are joined.
            ("{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}", 2),
            ("{% for m in messages %}{{ bos_token + m.content.strip() + eos_token }}{% endfor %}", 2),
            ("{% for m in messages %}<|start|>{{ m.content.replace('<x>', '') }}{% endfor %}", 1),
            ("{% for m in messages %}{{ m.content.split('a') | join('') }}<|end|>{% endfor %}", 1),
            ("{% for m in messages %}<|start|>{{ m.content }}|>{% endfor %}", 1),
        ] {
            let tokenizer = chat_vocabulary(template);
            match tokenizer.encode_dialog(&[Message::new(Role::User, content.as_str())]) {
                Ok(ids) => {
                    let special = ids.iter().filter(|&&id| tokenizer.special().contains(id)).count();
                    prop_assert_eq!(special, around, "{:?}", tokenizer.decode(&ids));
                }
                // Only where the template joins what makes a name is the dialog refused.
                Err(error) => {
                    prop_assert!(error.to_string().contains("from parts"), "{}", error);
                    let joins = ["replace", "join", "}|>"].iter().any(|part| template.contains(part));
                    prop_assert!(joins, "{}", template);
                }
            }
        }
        let tokenizer = chat_vocabulary("{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}");
        let ids = tokenizer.encode_dialog(&[Message::new(Role::User, content.as_str())]).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids[1..ids.len() - 1]).unwrap(), content);
    }
}

#[test]
fn markers_that_are_not_called_special_are_text_in_contents() {
    let names = ["<|user|>", "[INST]", "<think>", "</think>", "New York", "<|unused|>"];
    let template = "{{ '<|user|>[INST] New York ' }}{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}\
        {{ eos_token }}{# <think> #}";
    let mut vocabulary = chat_vocabulary(template).to_gguf().unwrap();
    // What ends a text is no word either, though the template does not name it.
    vocabulary.token_types[257] = 4;
    vocabulary.tokens.extend(names.map(String::from));
    vocabulary.token_types.extend([4; 6]);
    let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
    let content = "gone</think><|user|>[INST]<think>New York<|unused|><|end|>";
    let ids = tokenizer.encode_dialog(&[Message::new(Role::User, content)]).unwrap();
    let added = |id: &&u32| **id >= 256;
    let text = tokenizer.decode(&ids).unwrap();
    assert!(text.starts_with("<|user|>[INST] New York ") && text.ends_with("<|end|>"), "{text}");
    // The template's two markers and its word; of the content the words; the end.
    let [user, inst, think, word, unused, end] = [259, 260, 261, 263, 264, 257];
    let found: Vec<u32> = ids.iter().filter(added).copied().collect();
    assert_eq!(found, [user, inst, word, think, word, unused, end]);
    // Elsewhere the file's word counts.
    assert_eq!(tokenizer.encode("<|user|>"), [user]);
}

#[test]
fn bytes_without_a_token_are_told() {
    let missing = SMALL.missing_bytes();
    assert!(missing.contains(&b'\t') && missing.contains(&0xC2) && missing.contains(&0xF4));
    assert!(!missing.contains(&b'a') && !missing.contains(&0xC3));
    // These are in no text.
    assert!(!missing.iter().any(|byte| matches!(byte, 0xC0 | 0xC1 | 0xF5..)));
    // Every other byte does reach an id.
    for c in '\0'..='\u{7f}' {
        let left_out = SMALL.encode(&c.to_string()).is_empty();
        assert_eq!(left_out, missing.contains(&(c as u8)), "{c:?}");
    }
    assert!(byte_tokenizer("gpt-2").missing_bytes().is_empty());
}

#[test]
fn templates_that_cannot_be_used_say_so() {
    let error = |template: &str| {
        let tokenizer = chat_vocabulary(template);
        assert_eq!(tokenizer.encode("a").len(), 1, "text can still be encoded");
        tokenizer.encode_dialog(&[Message::new(Role::User, "Hi")]).unwrap_err().to_string()
    };
    let text = error("a\n{% if %}");
    assert!(text.starts_with("chat template: line 2: "), "{text}");
    let text = error("{{ '<|' + 'start' + '|>' }}");
    assert!(text.contains("`<|start|>` from parts") && text.contains("hint"), "{text}");
    let text = error("{{ raise_exception('no ' + messages[0].role) }}");
    assert_eq!(text, "chat template: line 1: no user");
    let text = error("{{ messages[0].content.frobnicate() }}");
    assert!(text.contains("frobnicate"), "{text}");

    let none = SMALL.encode_dialog(&[]).unwrap_err().to_string();
    assert!(none.contains("no chat template"), "{none}");
    assert!(SMALL.chat_template().is_none());
}

fn byte_tokenizer(pre: &str) -> Tokenizer {
    let ranks = Trainer { vocab_size: 600, min_frequency: 1, ..Trainer::new(0) };
    let (tokenizer, _) = ranks.train(["the thin thing in there, it's 1999"].iter(), &mut |_, _| ()).unwrap();
    let mut vocabulary = tokenizer.to_gguf().unwrap();
    vocabulary.pre = pre.into();
    Tokenizer::from_gguf(vocabulary).unwrap()
}

#[test]
fn files_keep_everything() {
    let dir = tempfile::tempdir().unwrap();
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}";
    let templated = read(|v| v.chat_template = Some(template.into())).unwrap();
    let begins = read(|v| v.add_bos = Some(true)).unwrap();
    for tokenizer in [&*SMALL, &templated, &begins, &byte_tokenizer("gpt-2"), &byte_tokenizer("llama-bpe")] {
        let again = Tokenizer::from_gguf(tokenizer.to_gguf().unwrap()).unwrap();
        assert_eq!(again.fingerprint(), tokenizer.fingerprint());
        assert_eq!(again.to_gguf().unwrap(), tokenizer.to_gguf().unwrap());

        // An unused id becomes a word there.
        if tokenizer.split() != Split::SmolLm {
            tokenizer.save_hf(dir.path()).unwrap();
            let again = Tokenizer::load(dir.path()).unwrap();
            assert_eq!(again.fingerprint(), tokenizer.fingerprint());
            assert_eq!(again.special().ends(), tokenizer.special().ends());
            assert_eq!(again.special().begin_of_text, tokenizer.special().begin_of_text);
            assert_eq!(again.chat_template(), tokenizer.chat_template());
        }
    }
    let error = SMALL.save_model(dir.path().join("tokenizer.model")).unwrap_err().to_string();
    assert!(error.contains("not ranks") && !dir.path().join("tokenizer.model").exists(), "{error}");
}

#[test]
fn ranks_survive_a_list_of_merges() {
    let (tokenizer, _) = Trainer { vocab_size: 600, min_frequency: 1, ..Trainer::new(0) }
        .train(["the thin thing in there, it's 1999"].iter(), &mut |_, _| ())
        .unwrap();
    let again = Tokenizer::from_gguf(tokenizer.to_gguf().unwrap()).unwrap();
    assert!(again.has_ranks());
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
}

#[test]
fn a_hugging_face_file_may_have_any_of_the_known_forms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    byte_tokenizer("gpt-2").save_hf(dir.path()).unwrap();
    let good: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let load = |change: &dyn Fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
        Tokenizer::load(&path)
    };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let gpt2 = json!({
        "type": "Split", "pattern": { "Regex": llamero_tokenizer::GPT2_PATTERN }, "behavior": "Isolated", "invert": false,
    });
    let raw = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false });
    let sequence = |steps: &[&Value]| json!({ "type": "Sequence", "pretokenizers": steps });
    for (pre, split) in [
        (bytes.clone(), Split::Gpt2),
        (sequence(&[&bytes]), Split::Gpt2),
        (sequence(&[&gpt2, &raw]), Split::Gpt2),
        (sequence(&[&digits, &bytes]), Split::SmolLm),
    ] {
        let tokenizer = load(&|json| json["pre_tokenizer"] = pre.clone()).unwrap();
        assert_eq!(tokenizer.split(), split, "{pre}");
    }
    for pre in [
        json!(null),
        json!({ "type": "ByteLevel", "add_prefix_space": true }),
        json!({ "type": "ByteLevel" }),
        json!({ "type": "Metaspace", "replacement": "▁" }),
        sequence(&[&digits, &raw]),
        sequence(&[&json!({ "type": "Digits", "individual_digits": false }), &bytes]),
        sequence(&[&bytes, &bytes]),
    ] {
        let error = load(&|json| json["pre_tokenizer"] = pre.clone()).unwrap_err().to_string();
        assert!(error.contains("`pre_tokenizer`: found `"), "{error}");
    }

    // A sequence of post-processors; a token of the vocabulary that is special; a word that is no special token.
    let changed = load(&|json| {
        let old = json["post_processor"].take();
        json["post_processor"] = json!({ "type": "Sequence", "processors": [bytes.clone(), old] });
        json["normalizer"] = json!({ "type": "Sequence", "normalizers": [] });
        json["added_tokens"][20]["special"] = false.into();
        json["added_tokens"][20]["content"] = "New York".into();
    })
    .unwrap();
    let vocab = changed.vocab_size() as u32;
    assert_eq!(changed.special().begin_of_text, Some(vocab - 256));
    assert!(changed.encode("in New York").contains(&(vocab - 236)));
    assert!(!changed.special().contains(vocab - 236));
}

/// A `tokenizer.json` of the merges `h e`, `l l`, `ll o` and `he llo`, in which `added` are found by their names.
fn json_with_added(added: &Value) -> Value {
    let ascii = ('!'..='~').map(String::from);
    let tokens = ascii.chain(["Ġ", "Ã", "©", "he", "ll", "llo", "hello"].map(String::from));
    let mut vocab: serde_json::Map<String, Value> =
        tokens.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
    vocab.insert("<|endoftext|>".into(), vocab.len().into());
    json!({
        "added_tokens": added,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "decoder": { "type": "ByteLevel" },
        "model": {
            "type": "BPE", "vocab": vocab, "unk_token": null,
            "merges": ["h e", "l l", "ll o", "he llo"],
        },
    })
}

#[test]
fn a_word_of_the_vocabulary_that_is_added_too_is_not_lost() {
    let plain = json_with_added(&json!([{ "id": 101, "content": "<|endoftext|>", "special": true }]));
    let id = |token: &str| plain["model"]["vocab"][token].as_u64().unwrap() as u32;
    let (bang, hello, space_e, end) = (id("!"), id("hello"), id("©"), id("<|endoftext|>"));
    assert_eq!(end, 101);
    let read = |json: &Value| Tokenizer::from_json(&serde_json::to_vec(json).unwrap()).unwrap();
    let before = read(&plain);
    let added = json!([
        // As `pad_token = "!"` does it, and `add_tokens(["hello", "©"])`; the last one is spelled as a byte is.
        { "id": bang, "content": "!", "special": true },
        { "id": hello, "content": "hello", "special": false },
        { "id": space_e, "content": "©", "special": true },
        { "id": end, "content": "<|endoftext|>", "special": true },
    ]);
    let tokenizer = read(&json_with_added(&added));
    assert_eq!(tokenizer.num_ranks(), before.num_ranks());
    for text in ["a!b", "hello!", "xhello hellox é", "<|endoftext|>!", "héllo"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text)).unwrap(), text);
    }
    for text in ["a!b", "hello! é", "<|endoftext|>!"] {
        assert_eq!(tokenizer.encode(text), before.encode(text), "{text}");
    }
    assert_eq!(tokenizer.encode("a!b")[1], bang);
    assert_eq!(tokenizer.encode("othello").last(), Some(&hello));
    assert_eq!(tokenizer.special().id("!"), Some(bang));
    assert_ne!(tokenizer.fingerprint(), before.fingerprint());
    // Both formats keep it.
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save_hf(dir.path()).unwrap();
    for again in
        [Tokenizer::load(dir.path()).unwrap(), Tokenizer::from_gguf(tokenizer.to_gguf().unwrap()).unwrap()]
    {
        assert_eq!(again.fingerprint(), tokenizer.fingerprint());
        assert_eq!(again.encode("a!b hello é"), tokenizer.encode("a!b hello é"));
    }
    // Ranks stay ranks.
    let ranks = Tokenizer::from_ranks((0..=255).map(|byte| vec![byte]).collect()).unwrap();
    ranks.save_hf(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let pad = json!({ "id": 33, "content": "!", "special": true });
    json["added_tokens"].as_array_mut().unwrap().push(pad);
    let padded = read(&json);
    assert!(padded.has_ranks() && padded.fingerprint() != ranks.fingerprint());
    assert_eq!(padded.encode("a!b"), ranks.encode("a!b"));
}

#[test]
fn the_unknown_token_outlives_files() {
    let end = json!([{ "id": 101, "content": "<|endoftext|>", "special": true }]);
    let read = |unknown: Value| {
        let mut json = json_with_added(&end);
        json["model"]["unk_token"] = unknown;
        Tokenizer::from_json(&serde_json::to_vec(&json).unwrap()).unwrap()
    };
    let (none, end, other) = (read(Value::Null), read("<|endoftext|>".into()), read("?".into()));
    assert_eq!(
        (none.encode("a\tb").len(), end.encode("a\tb")[1], other.decode(&other.encode("a\tb")).unwrap()),
        (2, 101, "a?b".into())
    );
    assert!(none.fingerprint() != end.fingerprint() && end.fingerprint() != other.fingerprint());
    let dir = tempfile::tempdir().unwrap();
    for tokenizer in [none, end, other] {
        tokenizer.save_hf(dir.path()).unwrap();
        let again = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(again.fingerprint(), tokenizer.fingerprint());
        assert_eq!(again.encode("a\tb"), tokenizer.encode("a\tb"));
        // Who reads GGUF leaves such bytes out.
        let gguf = tokenizer.to_gguf().map_err(|error| error.to_string());
        match tokenizer.missing_bytes().is_empty() {
            true => assert!(gguf.unwrap_err().contains("`tokenizer.ggml.unknown_token_id`")),
            false => assert!(gguf.is_ok()),
        }
    }
}

#[test]
fn ids_that_are_not_used_become_special_tokens_of_hugging_faces_file() {
    let dir = tempfile::tempdir().unwrap();
    SMALL.save_hf(dir.path()).unwrap();
    let again = Tokenizer::load(dir.path()).unwrap();
    let pad = SMALL.vocab_size() as u32 - 1;
    assert_eq!((again.special().name(pad), again.vocab_size()), (Some("<pad>"), SMALL.vocab_size()));
    assert_eq!((again.num_ranks(), again.encode("<pad>")), (SMALL.num_ranks(), SMALL.encode("<pad>")));
    assert_ne!(again.fingerprint(), SMALL.fingerprint());
    let twice = read(|v| {
        v.tokens.push("<pad>".into());
        v.token_types.push(5);
    });
    let error = twice.unwrap().save_hf(dir.path()).unwrap_err().to_string();
    assert!(error.contains("`<pad>` is empty or occurs twice"), "{error}");
}

#[test]
fn results_of_tools_have_the_name_that_the_template_knows() {
    let dialog = [Message::new(Role::User, "2+2"), Message::new(Role::Ipython, "4")];
    let said = |condition: &str| {
        let template = format!(
            "{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content }}}}{{% if {condition} %}}!{{% endif %}}{{% endfor %}}"
        );
        let tokenizer = chat_vocabulary(&template);
        tokenizer.decode(&tokenizer.encode_dialog(&dialog).unwrap()).unwrap()
    };
    assert_eq!(said("m.role == 'tool'"), "user: 2+2tool: 4!");
    assert_eq!(said("m.role == 'tool' or m.role == 'ipython'"), "user: 2+2ipython: 4!");
}

#[test]
fn names_of_private_use_characters_end() {
    let mut vocabulary = small();
    // The character that is put inside of names is part of one.
    vocabulary.tokens[1] = "\u{F17FF}\u{F17FF}".into();
    vocabulary.chat_template = Some("{% for m in messages %}{{ m.content }}{% endfor %}".into());
    let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
    let ids = tokenizer.encode_dialog(&[Message::new(Role::User, "a\u{F17FF}\u{F17FF}b<|im_end|>")]).unwrap();
    assert!(!ids.contains(&1) && !ids.contains(&2));
}

/// Parts of which templates are made, good and bad.
#[rustfmt::skip]
const JINJA: &[&str] = &[
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if loop.last %}", "{% else %}",
    "{% endif %}", "{% set x = ", "namespace(a=1)", " %}", "{{ x", " | trim", " * 99999", " + 'a'", "[1:]", ".split('a')",
    " }}", "{%- macro f(a) -%}", "{% endmacro %}", "{{ f(f) }}", "{{ range(99999999) | list }}", "{{ messages | tojson }}",
    "{# ", " #}", "<|end|>", "{{ raise_exception(1) }}", "\n", "é",
];

proptest! {
    #[test]
    fn llama_3s_format_is_that_of_its_template(
        contents in proptest::collection::vec("[ \n\u{1c}\u{3000}a<]{0,3}(<\\|eot_id\\|>)?[a-z ]{0,4}\\PC{0,2}[ \t]{0,2}", 0..4),
    ) {
        let own = Tokenizer::from_ranks((0..=255).map(|byte| vec![byte]).collect()).unwrap();
        let mut vocabulary = own.to_gguf().unwrap();
        // Another text, so that it is not taken for the one that is built in.
        vocabulary.chat_template = Some(format!("{CHAT_TEMPLATE}{{# rendered #}}"));
        let rendered = Tokenizer::from_gguf(vocabulary).unwrap();
        let roles = [Role::System, Role::User, Role::Assistant].into_iter().cycle();
        let messages: Vec<Message> = roles.zip(contents).map(|(role, text)| Message::new(role, text)).collect();
        for generation_prompt in [false, true] {
            let options = ChatOptions { generation_prompt, date: None };
            prop_assert_eq!(rendered.encode_chat(&messages, options).unwrap(), own.encode_chat(&messages, options).unwrap());
        }
    }

    #[test]
    fn any_template_is_used_or_refused(parts in proptest::collection::vec(proptest::sample::select(JINJA), 0..14)) {
        let tokenizer = chat_vocabulary(&parts.concat());
        match tokenizer.encode_dialog_prompt(&[Message::new(Role::User, "Hi <|end|>")]) {
            Ok(ids) => prop_assert!(tokenizer.decode(&ids).is_ok()),
            Err(error) => prop_assert!(error.to_string().starts_with("chat template: "), "{}", error),
        }
    }

    #[test]
    fn damaged_files_are_read_or_refused(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), 0usize..12, "[\\[\\]{}\",:0-9a-z]{0,6}"), 1..4),
    ) {
        let mut contents = SMALL_JSON.clone();
        for (at, len, new) in damage {
            let at = at.index(contents.len());
            let end = contents.len().min(at + len);
            contents.splice(at..end, new.bytes());
        }
        match Tokenizer::from_json(&contents) {
            Ok(tokenizer) => {
                let ids = tokenizer.encode_with_special("the thing <|im_end|> in 11");
                prop_assert!(tokenizer.decode(&ids).is_ok());
            }
            Err(error) => prop_assert!(error.to_string().contains("tokenizer.json"), "{}", error),
        }
    }

    #[test]
    fn damaged_vocabularies_are_read_or_refused(
        changes in proptest::collection::vec((0usize..6, any::<proptest::sample::Index>(), any::<u32>(), ".{0,3}"), 1..4),
    ) {
        let mut vocabulary = small();
        for (what, at, number, text) in changes {
            match what {
                0 => vocabulary.tokens[at.index(100)] = text,
                1 => vocabulary.token_types[at.index(100)] = number as i32 % 8,
                2 => vocabulary.merges[at.index(10)] = text,
                3 => vocabulary.bos = Some(number % 200),
                4 => vocabulary.eos = Some(number % 200),
                _ => vocabulary.tokens.truncate(at.index(100) + 100),
            }
        }
        if let Ok(tokenizer) = Tokenizer::from_gguf(vocabulary) {
            let ids = tokenizer.encode_with_special("the thing <|im_end|> in 11");
            prop_assert!(tokenizer.decode(&ids).is_ok());
        }
    }
}

/// A small `tokenizer.json` that is good.
static SMALL_JSON: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    read(|v| v.chat_template = Some("x".into())).unwrap().save_hf(dir.path()).unwrap();
    std::fs::read(dir.path().join("tokenizer.json")).unwrap()
});

#[test]
fn the_configuration_beside_a_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = byte_tokenizer("gpt-2");
    tokenizer.save_hf(dir.path()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let load = || Tokenizer::load(dir.path());
    write("tokenizer_config.json", r#"{"eos_token": {"content": "!"}, "chat_template": "one"}"#);
    assert_eq!(load().unwrap().chat_template(), Some("one"));
    assert!(load().unwrap().special().ends().contains(&0));
    let named = |names: [&str; 2]| {
        let all = names.map(|name| json!({ "name": name, "template": format!("of {name}") }));
        write("tokenizer_config.json", &json!({ "chat_template": all }).to_string());
    };
    named(["tool_use", "default"]);
    assert_eq!(load().unwrap().chat_template(), Some("of default"));
    named(["tool_use", "rag"]);
    let error = load().unwrap_err().to_string();
    assert!(
        error.contains("tokenizer_config.json`: key `chat_template`: none of `tool_use`, `rag`"),
        "{error}"
    );
    named(["tool_use", "default"]);
    write("chat_template.jinja", "file");
    assert_eq!(load().unwrap().chat_template(), Some("file"));
    write("tokenizer_config.json", r#"{"eos_token": "<nowhere>"}"#);
    let error = load().unwrap_err().to_string();
    assert!(error.contains("key `eos_token`: `<nowhere>` is not in the vocabulary"), "{error}");
}

#[test]
fn gpt2s_vectors_of_llama_cpp_are_exact() {
    let path = common::data().join("llama.cpp-vectors/ggml-vocab-gpt-2.gguf");
    let (Some(path), Some(vectors)) = (common::present(path), common::vectors("gpt-2")) else { return };
    let tokenizer = Tokenizer::from_gguf(common::vocabulary(&path)).unwrap();
    assert_eq!((tokenizer.split(), tokenizer.vocab_size()), (Split::Gpt2, 50_257));
    for (text, expected) in vectors {
        assert_eq!(tokenizer.encode(&text), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text);
    }
}

/// See `tests/goldens/make_tokenizer_golden.py`.
#[test]
fn short_texts_have_the_ids_of_tiktoken_and_tokenizers() {
    let golden: Vec<Value> =
        serde_json::from_str(include_str!("../../../tests/goldens/tokenizer_ids.json")).unwrap();
    assert_eq!(golden.len(), 336);
    let check = |tokenizer: &Tokenizer, key: &str| {
        for entry in &golden {
            let text = entry["text"].as_str().unwrap();
            assert_eq!(json!(tokenizer.encode(text)), entry[key], "{key}: {text:?}");
        }
    };
    if let Some(path) = common::present(common::fixture("tokenizer.model")) {
        check(&Tokenizer::load(path).unwrap(), "llama3");
    }
    if let Some(path) = common::present(common::fixture("SmolLM2-135M-Instruct.Q4_1.gguf")) {
        let vocabulary = common::vocabulary(&path);
        check(&Tokenizer::from_gguf(vocabulary.clone()).unwrap(), "smollm2");
        let gpt2 = GgufVocabulary { pre: "gpt-2".into(), ..vocabulary };
        check(&Tokenizer::from_gguf(gpt2).unwrap(), "gpt2_split");
    }
}

#[test]
fn smollm2s_real_file_is_read() {
    let Some(path) = common::present(common::fixture("SmolLM2-135M-Instruct.Q4_1.gguf")) else { return };
    let tokenizer = Tokenizer::from_gguf(common::vocabulary(&path)).unwrap();
    assert_eq!((tokenizer.split(), tokenizer.vocab_size()), (Split::SmolLm, 49_152));
    let special = tokenizer.special();
    assert_eq!((special.begin_of_text, special.end_of_text, special.eot), (None, 0, 2));
    assert_eq!(tokenizer.encode("The capital of France is"), [504, 3575, 282, 4649, 314]);
    // Six control characters and the planes that nobody uses.
    assert_eq!(tokenizer.missing_bytes(), [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2]);
    let messages = [Message::new(Role::User, "Say <|im_end|>")];
    let ids = tokenizer.encode_dialog_prompt(&messages).unwrap();
    assert_eq!(
        tokenizer.decode(&ids).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nSay <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 2);
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save_hf(dir.path()).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().fingerprint(), tokenizer.fingerprint());
}
