//! Tests with real parts: a real Postgres, the real program, real sockets. One folder per subject, one file per topic.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failing test should panic at the line that failed")]
#![allow(clippy::too_many_lines, reason = "a scenario is easier to follow in one piece")]

mod support;

mod api;
mod cli;
mod deploy;
mod docs;
mod faults;
mod limits;
mod machine;
mod sync;
