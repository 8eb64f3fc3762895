//! Commands, settings and their messages.

pub mod check;
mod configuration_errors;
mod connection_settings;
mod demo;
mod examples;
mod export;
mod health;
pub mod import;
mod logs;
mod migrate;
mod outputs;
mod secrets;
mod settings;
mod smoke;
mod versions;
pub mod workflow;
