//! Models in the containers that other programs write.

mod agree;
mod common;
mod meta;
mod shards;
mod torch;
