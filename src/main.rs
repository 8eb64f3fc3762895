//! The program: parses the command line and runs one command.

use std::process::ExitCode;

use model_catalog::{app, cli};

/// glibc's allocator grows the heap of a thread by many small system calls, which slows down full loads and bursts of
/// connections.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::parse() {
        Ok(cli) => app::run(cli),
        Err(message) => app::print_usage(&message),
    }
}
