//! Any bytes as `tokenizer.json`: read or refused; what is read encodes and decodes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llamero_tokenizer::Tokenizer;

fuzz_target!(|contents: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json(contents) {
        let ids = tokenizer.encode_with_special("The thing's <|eot_id|> 123\n\n  é🦙");
        assert!(tokenizer.decode(&ids).is_ok());
    }
});
