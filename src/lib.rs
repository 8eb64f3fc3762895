//! model-catalog serves a Postgres table of models from memory and follows its changes.
//!
//! Data flows one way: `postgres` → `loader` → `catalog` → `http`. A request never uses Postgres, a lock or a row
//! decoder. `fetch` downloads files to GPU machines. `cli` declares the settings, `cmd` runs the commands, and `app`
//! connects the two. `atomic_file`, `error_chain`, `http_client`, `stderr` and `supervisor` know nothing about models.

pub mod app;
mod atomic_file;
pub mod catalog;
mod cli;
mod cmd;
pub mod error_chain;
mod fetch;
pub mod http;
mod http_client;
pub mod loader;
pub mod metrics;
pub mod postgres;
pub mod snapshot_file;
mod stderr;
mod supervisor;
pub mod sync;
