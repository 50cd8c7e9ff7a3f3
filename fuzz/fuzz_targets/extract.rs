//! A web page: whatever it is, extraction gives a text or nothing.
#![no_main]

use llamero_curate::{Article, Extract};

libfuzzer_sys::fuzz_target!(|html: &str| {
    let _ = Article::default().extract(html, Some("http://example.com/a"));
});
