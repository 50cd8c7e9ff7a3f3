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

#[test]
#[should_panic(expected = "square: gradient of x, element 1")]
fn a_wrong_gradient_is_caught() {
    let x = gradcheck::Checked { name: "x", values: vec![1.0, 2.0], gradient: vec![2.0, 4.000001] };
    gradcheck::check("square", &[x], |at| at[0].iter().map(|x| x * x).sum());
}
