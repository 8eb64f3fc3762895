//! Limits on clients, memory and file descriptors, and requests intended to break the server.

mod connection_limit;
mod connections_per_address;
mod exhaustion;
mod fairness;
mod rate_limit;
mod request_size;
mod slow_clients;
mod smuggling;
