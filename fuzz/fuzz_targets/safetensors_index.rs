//! `model.safetensors.index.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(map) = llamero_model::hf::parse_index(text) {
        assert!(map.values().all(|file| !file.contains(['/', '\\']) && file != ".."));
    }
});
