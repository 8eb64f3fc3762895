//! The program: read the command line, set up logging, run one command.

use std::process::ExitCode;

use model_catalog::{app, cli};

/// glibc's allocator grows a thread's heap by many small system calls, which a full load and a storm of connections
/// both feel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = cli::parse();
    app::run(command)
}
