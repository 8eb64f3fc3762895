//! Tests with real parts: a real Postgres, the real program, real sockets. One file a subject.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod support;

mod exact;
mod explain;
mod live;
mod migrate;
mod smoke;
