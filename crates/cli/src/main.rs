//! The `llamero` binary.
fn main() {}
