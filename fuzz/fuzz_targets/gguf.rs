//! A GGUF file: container, metadata, sizes, vocabulary, table of tensors. A good first input: `tests/goldens/llama_tiny.gguf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = llamero_model::gguf::parse_model(bytes);
});
