//! Files that were cut short or changed are refused with their name, or mean exactly what they say.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use llamero_tokenizer::{GgufVocabulary, Split, Tokenizer, Trainer};
use std::fs;
use std::path::Path;

fn trained() -> Tokenizer {
    let trainer = Trainer { vocab_size: 540, min_frequency: 1, ..Trainer::new(0) };
    trainer.train(["the thin thing in there, it's 1999"].iter(), &mut |_, _| ()).unwrap().0
}

fn refused(path: &Path) -> String {
    let error = Tokenizer::load(path).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "no name of the file in: {error}");
    error
}

#[test]
fn a_model_file_cut_anywhere_is_refused_or_has_fewer_ranks() {
    let (tokenizer, dir) = (trained(), tempfile::tempdir().unwrap());
    let path = dir.path().join("tokenizer.model");
    tokenizer.save_model(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    for end in 0..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        let ranks = whole[..end].iter().filter(|&&byte| byte == b'\n').count();
        let ends_a_line = end > 0 && whole[end - 1] == b'\n';
        if ends_a_line && ranks >= 256 {
            let read = Tokenizer::load(&path).unwrap();
            assert_eq!(read.num_ranks(), ranks);
            for id in 0..ranks as u32 {
                assert_eq!(read.token_bytes(id), tokenizer.token_bytes(id));
            }
        } else {
            let said = refused(&path);
            assert!(
                ends_a_line || end == 0 || said.contains("ends in the middle of a line"),
                "{end}: {said}"
            );
        }
    }
}

#[test]
fn hugging_face_files_cut_anywhere_are_refused() {
    let (tokenizer, dir) = (trained(), tempfile::tempdir().unwrap());
    tokenizer.save_hf(dir.path()).unwrap();
    for (name, step) in [("tokenizer.json", 97), ("tokenizer_config.json", 1)] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        let text = whole.trim_ascii_end().len();
        for end in (0..text).step_by(step) {
            fs::write(&path, &whole[..end]).unwrap();
            let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("line"), "{end}: {error}");
        }
        // A byte that is not UTF-8, in a string.
        let mut bad = whole.clone();
        let quote = bad.iter().position(|&byte| byte == b'"').unwrap();
        bad[quote + 1] = 0xFF;
        fs::write(&path, bad).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("line"), "{error}");
        fs::write(&path, whole).unwrap();
    }
    assert!(Tokenizer::load(dir.path()).is_ok());
}

#[test]
fn ranks_must_be_there_once_and_hold_every_byte() {
    let (tokenizer, dir) = (trained(), tempfile::tempdir().unwrap());
    let path = dir.path().join("tokenizer.model");
    tokenizer.save_model(&path).unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let with = |changed: &dyn Fn(&mut Vec<String>)| {
        let mut lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        changed(&mut lines);
        fs::write(&path, lines.join("\n") + "\n").unwrap();
    };
    with(&|lines| lines[17] = "#### 17".into());
    assert!(refused(&path).contains(":18: bad base64"));
    with(&|lines| lines[17] = lines[16].clone());
    assert!(refused(&path).contains(":18: rank `16` occurs twice"));
    with(&|lines| drop(lines.remove(17)));
    assert!(refused(&path).contains(":18: rank `18` is here, but rank `17` is nowhere"));
    with(&|lines| lines[17] = lines[16].replace(" 16", " 17"));
    assert!(refused(&path).contains(":18: the token `1` is in line 17, too"));
    with(&|lines| lines[17] = "enp6eg== 17".into());
    let said = refused(&path);
    assert!(said.contains(&format!(":{}: ", lines.len())) && said.contains("the byte `0x32`"), "{said}");
    with(&|lines| lines.swap(17, 20));
    assert!(
        refused(&path).contains(":18: rank `20` is here, but rank `17` in line 21: ranks must be in order")
    );
}

#[test]
fn every_split_survives_both_formats_with_words_and_template() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<end>{% endfor %}";
    let vocabulary = trained().to_gguf().unwrap();
    for (pre, split) in [("llama-bpe", Split::Llama3), ("gpt-2", Split::Gpt2), ("smollm", Split::SmolLm)] {
        let mut vocabulary = GgufVocabulary { pre: pre.into(), ..vocabulary.clone() };
        for (word, kind) in [("New York", 4), ("<end>", 3), ("  ", 4)] {
            vocabulary.tokens.push(word.into());
            vocabulary.token_types.push(kind);
        }
        vocabulary.chat_template = Some(template.into());
        let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
        assert_eq!(tokenizer.split(), split);
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save_hf(dir.path()).unwrap();
        let text = "it's in New York  and\n\n  1999<end>";
        for again in [
            Tokenizer::load(dir.path()).unwrap(),
            Tokenizer::from_gguf(tokenizer.to_gguf().unwrap()).unwrap(),
        ] {
            assert_eq!(again.fingerprint(), tokenizer.fingerprint());
            assert_eq!(again.split(), split);
            assert_eq!(again.encode(text), tokenizer.encode(text));
            assert_eq!(again.encode_with_special(text), tokenizer.encode_with_special(text));
            assert_eq!(again.chat_template(), Some(template));
        }
        assert_ne!(tokenizer.encode(text), tokenizer.encode_with_special(text));
    }
}
