//! Tests of dedup.
