//! Tests with real parts: a real Postgres, the real program, real sockets. One folder per subject, one file per topic.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failing test should panic at the line that failed")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the test harness captures what is printed")]
#![allow(clippy::disallowed_methods, reason = "output of a test that is not captured")]
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
