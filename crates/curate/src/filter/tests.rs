//! Tests of the filters: against datatrove's verdicts, and each rule by itself.

mod datatrove;
mod others;
