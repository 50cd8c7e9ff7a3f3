//! The `llamero` binary as its users run it: from a recipe to a report, through kills, and at its edges.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod bench;
#[cfg(feature = "ballista")]
mod cluster;
mod commands;
mod conversations;
mod convert;
mod curate;
mod curate_audit;
mod curate_models;
mod dry_run;
mod errors;
#[expect(dead_code, reason = "the unit tests of the hub use the rest")]
mod hub_server;
mod kills;
#[cfg(feature = "mpi")]
mod mpi;
mod pull;
mod ranks;
mod runs;
mod tokenizer;
mod tokenizer_train;
mod world;
