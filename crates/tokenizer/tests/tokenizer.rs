//! Encoding, decoding and files, with a small tokenizer that is trained here.

use llamero_tokenizer::{
    CHAT_TEMPLATE, MaskedDialog, Message, Release, Role, StreamDecoder, Tokenizer, Trainer,
};
use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

const TEXT: &str = "The llama (Lama glama) is a domesticated South American camelid, widely used as a meat and pack animal \
    by Andean cultures since the pre-Columbian era. Llamas are social animals and live with others as a herd. Their wool \
    is soft and contains only a small amount of lanolin. Llamas can learn simple tasks after a few repetitions. When using \
    a pack, they can carry about 25 to 30% of their body weight for 8 to 13 km.\n\nLe lama est un camélidé domestique \
    d'Amérique du Sud.\r\n\tfn main() {\n        println!(\"{}\", 1 + 1);\n    }\n大羊驼是大羊驼。It's the system, the user \
    and the assistant; they'll say it's 12345.\n\n";

static SMALL: LazyLock<Tokenizer> = LazyLock::new(|| {
    let (tokenizer, report) = Trainer { vocab_size: 512 + 150, min_frequency: 1, ..Trainer::new(0) }
        .train([TEXT].iter(), &mut |_, _| ())
        .expect("the sizes are in range");
    assert!(report.reached_size());
    tokenizer
});

/// Text of which part is made of learned tokens.
fn texts() -> impl Strategy<Value = String> {
    let words: Vec<&str> = TEXT.split_inclusive(' ').collect();
    let part = prop_oneof![
        proptest::sample::select(words).prop_map(str::to_owned),
        any::<String>(),
        Just("<|eot_id|>".to_owned()),
        "[ \n\r\t'a-c1-3]{0,6}",
    ];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn decode_undoes_encode(text in texts()) {
        let ids = SMALL.encode(&text);
        prop_assert!(ids.iter().all(|&id| !SMALL.special().contains(id)));
        prop_assert_eq!(SMALL.decode_bytes(&ids).unwrap(), text.as_bytes());
        prop_assert_eq!(SMALL.decode(&ids).unwrap(), text);
    }

    #[test]
    fn special_tokens_are_found_and_undone(text in texts()) {
        let ids = SMALL.encode_with_special(&text);
        prop_assert_eq!(SMALL.decode(&ids).unwrap(), text.as_str());
        let special = ids.iter().filter(|&&id| id == SMALL.special().eot).count();
        prop_assert_eq!(special, text.matches("<|eot_id|>").count());
    }

    #[test]
    fn batches_equal_single_texts(texts in proptest::collection::vec(texts(), 0..20)) {
        let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
        let single: Vec<Vec<u32>> = texts.iter().map(|text| SMALL.encode(text)).collect();
        prop_assert_eq!(SMALL.encode_batch(&borrowed), single);
    }

    #[test]
    fn streaming_equals_decoding_at_once(
        ids in proptest::collection::vec(0u32..662, 0..60),
        text in texts(),
    ) {
        for ids in [ids, SMALL.encode(&text)] {
            let mut decoder = StreamDecoder::new(&SMALL);
            let mut streamed: String = ids.iter().map(|&id| decoder.push(id)).collect();
            streamed += &decoder.finish();
            prop_assert_eq!(streamed, SMALL.decode(&ids).unwrap());
        }
    }
}

#[test]
fn a_folder_with_both_files_is_read_from_the_one_that_says_more() {
    let dir = tempfile::tempdir().unwrap();
    SMALL.save_model(dir.path().join("tokenizer.model")).unwrap();
    SMALL.save_hf(dir.path()).unwrap();
    let both = Tokenizer::load(dir.path()).unwrap();
    let ranks = Tokenizer::load(dir.path().join("tokenizer.model")).unwrap();
    for own in [&both, &ranks] {
        assert_eq!(own.fingerprint(), SMALL.fingerprint());
        assert_eq!(own.special().ends(), SMALL.special().ends());
        assert_eq!(own.chat_template(), SMALL.chat_template());
        assert!(own.encode_dialog_masked(&[Message::new(Role::User, "Hi")]).is_ok());
    }
    // What `tokenizer.model` cannot say: a template, and a word of another name.
    let config = dir.path().join("tokenizer_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["chat_template"] = "of its own".into();
    std::fs::write(&config, json.to_string()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("<|reserved_special_token_4|>", "<|eom_id|>")).unwrap();
    let both = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(both.chat_template(), Some("of its own"));
    assert!(both.special().ends().contains(&both.special().id("<|eom_id|>").unwrap()));
}

#[test]
fn a_release_names_the_special_tokens_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    SMALL.save_model(dir.path().join("tokenizer.model")).unwrap();
    let april = Tokenizer::load_of(dir.path(), Release::April2024).unwrap();
    let july = Tokenizer::load_of(dir.path(), Release::July2024).unwrap();
    assert_eq!(april.fingerprint(), SMALL.fingerprint());
    assert_ne!(july.fingerprint(), april.fingerprint());
    assert_eq!(july.special().eot, april.special().eot);
    assert_eq!(july.special().id("<|eom_id|>"), april.special().id("<|reserved_special_token_4|>"));
    // They outlive Hugging Face's file and GGUF.
    july.save_hf(dir.path()).unwrap();
    for again in
        [Tokenizer::load(dir.path()).unwrap(), Tokenizer::from_gguf(july.to_gguf().unwrap()).unwrap()]
    {
        assert_eq!(again.fingerprint(), july.fingerprint());
        assert_eq!(again.special().ends(), july.special().ends());
    }
}

#[test]
fn streams_only_whole_characters() {
    let mut decoder = StreamDecoder::new(&SMALL);
    let bytes: Vec<u32> = "🦙"
        .bytes()
        .map(|byte| (0..256).find(|&id| SMALL.token_bytes(id) == Some(&[byte])).unwrap())
        .collect();
    assert_eq!(bytes.iter().map(|&id| decoder.push(id)).collect::<Vec<_>>(), ["", "", "", "🦙"]);
    decoder.push(bytes[0]);
    assert_eq!(decoder.finish(), "\u{fffd}");
    assert_eq!(decoder.push(SMALL.special().eot), "<|eot_id|>");
    assert_eq!(decoder.push(u32::MAX), "\u{fffd}");
}

#[test]
fn ids_are_where_they_belong() {
    assert_eq!((SMALL.num_ranks(), SMALL.vocab_size()), (406, 662));
    assert_eq!(SMALL.special().begin_of_text, Some(406));
    assert_eq!(SMALL.token_bytes(0), Some(b"!".as_slice()), "bytes have the order of Llama 3's file");
    assert_eq!(SMALL.token_bytes(406), Some(b"<|begin_of_text|>".as_slice()));
    assert_eq!(SMALL.token_bytes(662), None);
    let error = SMALL.decode(&[0, 662]).unwrap_err().to_string();
    assert!(error.starts_with("token id `662` is not below the vocabulary size `662`"), "{error}");
}

#[test]
fn learns_to_compress() {
    assert!(SMALL.encode(TEXT).len() * 2 < TEXT.len());
}

#[test]
fn a_megabyte_of_one_letter_is_encoded() {
    for unit in ["a", " ", "\n", "🦙", "ab", "'", "1"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = SMALL.encode(&text);
        assert_eq!(SMALL.decode(&ids).unwrap(), text);
    }
}

fn same(a: &Tokenizer, b: &Tokenizer) {
    assert_eq!(a.fingerprint(), b.fingerprint());
    assert_eq!(a.encode(TEXT), b.encode(TEXT));
    assert_eq!(a.special().eot, b.special().eot);
}

#[test]
fn files_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("holds neither `tokenizer.model` nor `tokenizer.json`"), "{error}");

    SMALL.save_hf(dir.path()).unwrap();
    same(&SMALL, &Tokenizer::load(dir.path()).unwrap());
    same(&SMALL, &Tokenizer::load(dir.path().join("tokenizer.json")).unwrap());

    let model = dir.path().join("tokenizer.model");
    SMALL.save_model(&model).unwrap();
    same(&SMALL, &Tokenizer::load(&model).unwrap());
    same(&SMALL, &Tokenizer::load(dir.path()).unwrap());

    let again = tempfile::tempdir().unwrap();
    Tokenizer::load(dir.path()).unwrap().save_hf(again.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert_eq!(read(dir.path()), read(again.path()), "{name}");
    }
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = SMALL.save_model(dir.path().join("none/tokenizer.model")).unwrap_err().to_string();
    assert!(error.starts_with("cannot write `") && error.contains("none/tokenizer.model"), "{error}");
    let error = Tokenizer::load(dir.path().join("absent")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read `") && error.contains("absent"), "{error}");

    let model = dir.path().join("tokenizer.model");
    std::fs::write(&model, "YQ== 0\nYg== 1\n").unwrap();
    let error = Tokenizer::load(&model).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer.model:2: the ranks end here, and the byte `0x00` is no token"),
        "{error}"
    );
    std::fs::write(&model, b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x03\xe2\x96\x81\xff").unwrap();
    let error = Tokenizer::load(&model).unwrap_err().to_string();
    assert!(error.contains("tokenizer.model:1: this is a SentencePiece model"), "{error}");
}

#[test]
fn foreign_hugging_face_files_are_refused_with_the_key() {
    let dir = tempfile::tempdir().unwrap();
    SMALL.save_hf(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let refused = |key: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed = good.clone();
        change(&mut changed);
        assert_ne!(changed, good, "{key}");
        std::fs::write(&path, serde_json::to_vec(&changed).unwrap()).unwrap();
        let error = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
    };
    refused("model.type", &|json| json["model"]["type"] = "Unigram".into());
    refused("model.dropout", &|json| json["model"]["dropout"] = 0.1.into());
    refused("model.byte_fallback", &|json| json["model"]["byte_fallback"] = true.into());
    refused("model.end_of_word_suffix", &|json| json["model"]["end_of_word_suffix"] = "</w>".into());
    refused("decoder", &|json| json["decoder"] = serde_json::json!({ "type": "Metaspace" }));
    refused("post_processor", &|json| {
        json["post_processor"] = serde_json::json!({ "type": "RobertaProcessing" })
    });
    refused("post_processor.single", &|json| {
        json["post_processor"]["single"].as_array_mut().unwrap().reverse();
    });
    refused("added_tokens[3].lstrip", &|json| json["added_tokens"][3]["lstrip"] = true.into());
    refused("normalizer", &|json| json["normalizer"] = serde_json::json!({ "type": "NFC" }));
    refused("pre_tokenizer", &|json| {
        json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,2}".into();
    });
    refused("model.merges[7]", &|json| json["model"]["merges"][7] = "ab".into());
    refused("model.vocab.\"", &|json| json["model"]["vocab"]["!"] = 7.into());
    refused("model.vocab.a b", &|json| json["model"]["vocab"]["a b"] = 406.into());
    refused("added_tokens", &|json| json["added_tokens"][0]["id"] = 405.into());
    refused("<|eot_id|>", &|json| json["added_tokens"][9]["content"] = "<|other|>".into());
    refused("zz", &|json| json["model"]["merges"][0] = "z z".into());

    std::fs::write(&path, "{\n\"model\": 1 ").unwrap();
    let error = Tokenizer::load(&path).unwrap_err().to_string();
    assert!(error.contains("cannot parse") && error.contains("line 2"), "{error}");
}

#[test]
fn merges_may_be_pairs_and_names_of_another_release() {
    let dir = tempfile::tempdir().unwrap();
    SMALL.save_hf(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for merge in json["model"]["merges"].as_array_mut().unwrap() {
        *merge = merge.as_str().unwrap().split(' ').collect::<Vec<_>>().into();
    }
    json["added_tokens"][8]["content"] = "<|eom_id|>".into();
    std::fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
    let read = Tokenizer::load(&path).unwrap();
    assert_eq!(read.encode(TEXT), SMALL.encode(TEXT));
    assert_eq!(read.special().id("<|eom_id|>"), Some(406 + 8));
    assert_ne!(read.fingerprint(), SMALL.fingerprint());
}

#[test]
fn dialogs_have_the_published_form() {
    let messages = [
        Message::new(Role::System, " \n\u{1f}Be kind.\u{3000}\n"),
        Message::new(Role::User, "Say <|eot_id|>!"),
        Message::new(Role::Assistant, "  No. "),
        Message::new(Role::Ipython, " {\"a\": 4}\n"),
        Message::new(Role::Assistant, ""),
    ];
    let MaskedDialog { ids, assistant } = SMALL.encode_dialog_masked(&messages).unwrap();
    assert_eq!(ids, SMALL.encode_dialog(&messages).unwrap());
    let text = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\nSay <|eot_id|>!<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|>\
        <|start_header_id|>ipython<|end_header_id|>\n\n{\"a\": 4}<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\n<|eot_id|>";
    assert_eq!(SMALL.decode(&ids).unwrap(), text);

    let special = SMALL.special();
    assert_eq!(ids.iter().filter(|&&id| id == special.eot).count(), 5, "content is never a special token");
    assert_eq!(ids.iter().filter(|&&id| Some(id) == special.start_header).count(), 5);
    let said: Vec<u32> = ids.iter().zip(&assistant).filter(|(_, said)| **said).map(|(id, _)| *id).collect();
    assert_eq!(SMALL.decode(&said).unwrap(), "No.<|eot_id|><|eot_id|>");
    assert_eq!(assistant.len(), ids.len());

    let prompt = SMALL.encode_dialog_prompt(&messages).unwrap();
    assert!(prompt.starts_with(&ids));
    assert_eq!(
        SMALL.decode(&prompt[ids.len()..]).unwrap(),
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(SMALL.encode_with_special(&text.replace("Say <|eot_id|>!", "Hi")).len(), {
        let mut plain = messages.clone();
        plain[1].content = "Hi".into();
        SMALL.encode_dialog(&plain).unwrap().len()
    });
    assert!(CHAT_TEMPLATE.contains("| trim"));
}

#[test]
fn messages_are_plain_json() {
    let message = Message::new(Role::Assistant, "Yes.");
    let json = r#"{"role":"assistant","content":"Yes."}"#;
    assert_eq!(serde_json::to_string(&message).unwrap(), json);
    assert_eq!(serde_json::from_str::<Message>(json).unwrap(), message);
    // Two names of one role.
    for name in ["ipython", "tool"] {
        let json = format!(r#"{{"role":"{name}","content":"4"}}"#);
        assert_eq!(serde_json::from_str::<Message>(&json).unwrap(), Message::new(Role::Ipython, "4"));
    }
    let json = serde_json::to_string(&Message::new(Role::Ipython, "4")).unwrap();
    assert_eq!(json, r#"{"role":"ipython","content":"4"}"#);
    assert!(serde_json::from_str::<Message>(r#"{"role":"robot","content":""}"#).is_err());
}

#[test]
fn tokenizers_are_shared_between_threads() {
    fn shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    shared(&*SMALL);
}
