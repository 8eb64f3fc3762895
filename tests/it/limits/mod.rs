//! Limits of clients, memory and descriptors, and requests made to break the server.

mod clients;
mod resources;
pub mod slow_clients;
mod smuggling;
