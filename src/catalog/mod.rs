//! The catalog as plain data: what a model is, the immutable snapshot that requests read, and how a new snapshot is
//! built and published. This module depends on neither tokio, hyper nor Postgres, so it is tested without a runtime.

pub(crate) mod dependencies;
pub(crate) mod entry;
pub(crate) mod hash;
pub(crate) mod index;
pub mod model;
pub mod refresh;
pub(crate) mod row_error;
mod rules;
pub(crate) mod search;
pub(crate) mod size;
pub mod snapshot;
pub mod store;
pub(crate) mod url_rules;
