//! Everything that speaks to Postgres: connecting, listening, the statements in `sql/`, and what their rows mean.
//! It knows what a model is, but neither snapshots nor HTTP.

pub mod address;
pub mod migrate;
pub mod position;
pub mod private;
pub mod rows;
pub mod session;
pub mod tls;
