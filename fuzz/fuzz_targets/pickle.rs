//! The pickle of a `.pth` file. Good first inputs: `data.pkl` of the files in `tests/goldens/containers/meta`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = llamero_model::meta::parse_pickle(bytes);
});
