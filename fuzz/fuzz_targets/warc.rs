//! A WARC file, plain, gzip or zstd: every record or flaw of it, with and without checks of digests.
#![no_main]

use llamero_curate::read::{Input, ReadConfig};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for check_digests in [false, true] {
        let config = ReadConfig { check_digests, max_record_bytes: 1 << 16, ..ReadConfig::default() };
        let input = Input::memory("a.warc", bytes.to_vec());
        // Each record and each flaw takes at least a byte, so more of them would be a reader that stands still.
        assert!(input.records(&config).take(bytes.len() + 2).count() <= bytes.len() + 1);
    }
});
