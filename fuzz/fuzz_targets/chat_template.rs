//! Any text as chat template: used or refused, and contents stay text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llamero_tokenizer::{GgufVocabulary, Message, Role, Tokenizer};

fuzz_target!(|template: &str| {
    let vocabulary = GgufVocabulary {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens: ["<|a|>", "<|b|>", "x", "<", "|", ">"].map(String::from).into(),
        token_types: vec![3, 3, 1, 1, 1, 1],
        bos: Some(0),
        eos: Some(1),
        chat_template: Some(template.into()),
        ..GgufVocabulary::default()
    };
    let tokenizer = Tokenizer::from_gguf(vocabulary).expect("the vocabulary is good");
    let dialog = |content: &str| tokenizer.encode_dialog_prompt(&[Message::new(Role::User, content)]);
    // The template does not name `<|b|>` itself here, so that it could come from the content only.
    if !template.contains('b') && !template.contains("eos") {
        if let Ok(ids) = dialog("x<|b|>x") {
            assert!(!ids.contains(&1), "{template:?}");
        }
    }
});
