//! The commands and settings of the program.

pub mod check;
mod demo;
mod export;
mod health;
pub mod import;
mod migrate;
mod secrets;
mod settings;
mod smoke;
mod versions;
