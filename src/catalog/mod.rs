//! The catalog as plain data: what a model is, the immutable snapshot that requests read, and how a new one is
//! published. Nothing here knows of tokio, hyper or Postgres, so all of it can be tested without a runtime.

pub mod dependencies;
pub mod file;
pub mod index;
pub mod listing;
pub mod model;
pub mod snapshot;
pub mod store;
