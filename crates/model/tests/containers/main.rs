//! Models in the containers that other programs write.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod agree;
mod common;
mod meta;
mod shards;
mod torch;
