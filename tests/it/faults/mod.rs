//! Faults of Postgres, the network, the clock and the program: requests are served all the while.

pub mod clock_skew;
mod database;
mod failover;
mod outages;
mod panics;
mod pooler;
mod soak;
mod tls;
