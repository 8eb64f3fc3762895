//! One module per route, or per group of routes.

pub mod batch;
pub mod catalog;
pub mod models;
pub mod ops;
pub mod page;
pub mod single;
pub mod snapshot;

/// The description of all routes, served at `/openapi.json`; tests hold it against them.
pub const OPENAPI: &str = include_str!("openapi.json");
