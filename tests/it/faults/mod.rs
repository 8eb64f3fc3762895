//! Faults of Postgres, the network, the clock and the program itself, during which requests must be served.

pub mod clock_skew;
mod database;
mod failover;
mod listen;
mod outputs;
mod panics;
mod pooler;
mod reconnect;
mod restores;
mod shutdown;
mod soak;
mod threads;
mod tls;
