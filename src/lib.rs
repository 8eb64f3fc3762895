//! model-catalog: a Postgres table of models, served from memory, live.
//!
//! Data flows one way: `postgres` → `loader` → `catalog` → `http`. A request never touches Postgres, a lock or a row
//! decoder.

pub mod anchor;
pub mod app;
pub mod catalog;
pub mod check;
pub mod cli;
pub mod cmd;
pub mod descriptors;
pub mod export;
pub mod health;
pub mod http;
pub mod import;
pub mod loader;
pub mod metrics;
pub mod missing;
pub mod ops;
pub mod outage;
pub mod postgres;
pub mod replica;
pub mod saver;
