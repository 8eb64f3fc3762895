//! One module per route, or per group of routes.

pub(crate) mod batch;
pub(crate) mod catalog;
pub(crate) mod models;
pub(crate) mod ops;
pub(crate) mod page;
pub(crate) mod single;
pub(crate) mod snapshot;

/// The description of all routes, served at `/openapi.json`; tests hold it against them.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");
