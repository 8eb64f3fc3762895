//! model-catalog serves a Postgres table of models from memory and follows its changes.
//!
//! Data flows one way: `postgres` → `loader` → `catalog` → `http`. A request never uses Postgres, a lock or a row
//! decoder. `fetch` downloads files to GPU machines. `cli` declares the settings, `cmd` runs the commands, and `app`
//! connects the two. `base` knows nothing about models.

pub mod app;
pub mod base;
pub mod catalog;
mod cli;
mod cmd;
mod fetch;
pub mod http;
pub mod loader;
pub mod metrics;
pub mod postgres;
pub mod snapshot_file;
pub mod sync;
