//! Tests of the filters: against datatrove's verdicts, and each rule by itself.

mod contamination;
mod datatrove;
mod others;
mod personal;
