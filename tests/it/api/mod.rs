//! The HTTP contract, over real sockets.

mod batch;
mod catalog;
mod cors;
mod dependencies;
mod early_responses;
mod list;
mod openapi;
mod ops;
mod page;
mod properties;
mod requests;
mod revision;
mod shutdown;
mod single;
mod snapshot;
mod statuses;
