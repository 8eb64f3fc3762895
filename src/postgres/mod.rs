//! Everything that talks to Postgres: connecting, listening, the statements in `sql/` and the meaning of their rows.
//! It knows the columns of a model, but neither snapshots nor HTTP.

pub mod config;
mod connection_string;
pub mod copy;
mod encoding;
pub mod ephemeral;
pub mod error;
pub mod migrate;
mod passfile;
pub mod position;
pub mod read;
pub mod rows;
pub mod session;
pub mod temp_dir;
pub mod tls;
