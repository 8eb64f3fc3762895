//! The program.

use std::process::ExitCode;

use model_catalog::app;

/// glibc's allocator grows the heap of a thread by many small system calls, which slows down full reads and bursts of
/// connections.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::main()
}
