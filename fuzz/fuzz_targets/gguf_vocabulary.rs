//! Any vocabulary as a GGUF file holds it: read or refused; what is read encodes and decodes, and is written as it was read.
#![no_main]

use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};
use llamero_tokenizer::{GgufVocabulary, Tokenizer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut some = Unstructured::new(bytes);
    let Ok(vocabulary) = vocabulary(&mut some) else { return };
    if let Ok(tokenizer) = Tokenizer::from_gguf(vocabulary) {
        let ids = tokenizer.encode_with_special("The thing's <|eot_id|> 123\n\n  é🦙");
        assert!(tokenizer.decode(&ids).is_ok());
        if let Ok(written) = tokenizer.to_gguf() {
            let again = Tokenizer::from_gguf(written).map(|again| again.fingerprint());
            assert_eq!(again.ok(), Some(tokenizer.fingerprint()));
        }
    }
});

/// Mostly printable ASCII as tokens, so that something can be read.
fn vocabulary(some: &mut Unstructured<'_>) -> libfuzzer_sys::arbitrary::Result<GgufVocabulary> {
    let mut tokens: Vec<String> =
        if bool::arbitrary(some)? { ('!'..='~').map(String::from).collect() } else { Vec::new() };
    let mut token_types = vec![1; tokens.len()];
    let mut merges = Vec::new();
    for _ in 0..some.int_in_range(0..=12)? {
        if bool::arbitrary(some)? && !tokens.is_empty() {
            let (left, right) = (some.choose(&tokens)?.clone(), some.choose(&tokens)?.clone());
            merges.push(format!("{left} {right}"));
            tokens.push(left + &right);
            token_types.push(1);
        } else {
            tokens.push(String::arbitrary(some)?);
            token_types.push(some.int_in_range(0..=6)?);
        }
    }
    if bool::arbitrary(some)? {
        merges.push(String::arbitrary(some)?);
    }
    Ok(GgufVocabulary {
        model: "gpt2".into(),
        pre: (*some.choose(&["llama-bpe", "gpt-2", "smollm", ""])?).into(),
        tokens,
        token_types,
        merges,
        bos: Option::arbitrary(some)?,
        eos: Option::arbitrary(some)?,
        add_bos: Option::arbitrary(some)?,
        ..GgufVocabulary::default()
    })
}
