//! A stored HTTP response: its head, its chunks, its content encodings.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(response) = llamero_curate::read::Response::parse(bytes, 1 << 16) {
        assert!(response.body.len() <= bytes.len().max(1 << 16));
    }
});
