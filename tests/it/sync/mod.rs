//! The catalog follows the database exactly: changes, deltas, audits, the snapshot file, the fleet.

mod audit;
mod bad_rows;
mod changes;
mod delta_correctness;
pub mod delta_plan;
mod examples;
mod fleet;
pub mod snapshot_file;
mod sources;
mod standby;
mod transactions;
