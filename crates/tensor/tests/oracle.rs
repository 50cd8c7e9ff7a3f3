//! The oracle against finite differences and against the op suite.

use llamero_tensor::testing::{Oracle, gradcheck, suite};

#[test]
fn backward_ops_of_the_oracle_are_the_gradients_of_the_forward_ops() {
    gradcheck::run();
}

#[test]
fn the_rounding_oracle_passes_the_suite() {
    suite::run(&Oracle::rounding());
}

#[test]
fn fingerprints_repeat() {
    let first = suite::fingerprint(&Oracle::rounding());
    assert_eq!(first, suite::fingerprint(&Oracle::rounding()));
}
