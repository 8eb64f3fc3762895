//! model-catalog: a Postgres table of models, served from memory, live.
//!
//! Data flows one way: `postgres` → `loader` → `catalog` → `http`. A request never touches Postgres, a lock or a row
//! decoder.

pub mod app;
mod atomic_file;
pub mod catalog;
pub mod check;
pub mod cli;
pub mod export;
pub mod health;
pub mod http;
pub mod import;
pub mod loader;
pub mod metrics;
pub mod postgres;
