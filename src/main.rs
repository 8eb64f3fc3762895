//! The program: read the command line, set up logging, run one command.

use std::process::ExitCode;

use model_catalog::{app, cli};

fn main() -> ExitCode {
    let command = cli::parse();
    app::run(command)
}
