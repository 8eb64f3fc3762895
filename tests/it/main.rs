//! Tests with real parts: a real Postgres, the real program, real sockets. One file a subject.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod hostile;
mod proxy;
mod raw;
mod support;
mod witness;

mod audit;
mod check;
mod cli;
mod contract_batch;
mod contract_catalog;
mod contract_dependencies;
mod contract_ops;
mod contract_revision;
mod contract_single;
mod contract_stop;
mod demo;
mod deploy;
mod exact;
mod examples;
mod explain;
mod export;
mod failover;
mod faults;
mod fleet;
mod health;
mod import;
mod live;
mod machine;
mod migrate;
mod openapi;
mod panics;
mod plain;
mod pooler;
mod prometheus;
mod properties;
mod readme;
mod secrets;
mod skew;
mod smoke;
mod snapshot_file;
mod soak;
mod tls;
