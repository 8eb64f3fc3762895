//! The catalog follows the database exactly: statements, transactions, deltas, audits, the snapshot file, the fleet.

mod audit;
mod delta_correctness;
pub mod delta_plan;
mod edge_files;
mod edge_positions;
mod edge_upstreams;
mod edge_waiters;
mod edges;
pub mod encodings;
mod example_schemas;
mod fleet;
mod large_changes;
mod rejected_rows;
pub mod snapshot_file;
mod snapshot_file_rules;
mod source_tables;
mod standby;
mod statements;
mod strict;
mod structure;
mod transactions;
mod unknown_ids;
mod writers;
