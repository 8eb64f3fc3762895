//! Tests with real parts: a real Postgres, the real program, real sockets. One folder per subject, one file per topic.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod support;

mod api;
mod cli;
mod deploy;
mod docs;
mod faults;
mod limits;
mod machine;
mod sync;
