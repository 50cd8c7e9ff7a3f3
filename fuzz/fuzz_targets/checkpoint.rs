//! A whole `.pth` file: the archive, its pickle, and where that says that tensors are. Good first inputs: the files in
//! `tests/goldens/containers/meta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = llamero_model::meta::parse_checkpoint(bytes);
});
