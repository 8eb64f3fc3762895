//! `model-catalog generate`: the man pages and shell completions of packages.

use std::path::Path;

use clap_complete::Shell;

use super::CommandResult;
use crate::cli;

/// Runs the command.
pub(crate) fn run(directory: &Path) -> CommandResult {
    let generate = || {
        clap_mangen::generate_to(cli::command(), directory)?;
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            clap_complete::generate_to(shell, &mut cli::command(), "model-catalog", directory)?;
        }
        Ok(())
    };
    generate().map_err(|error: std::io::Error| format!("cannot write to {}: {error}", directory.display()).into())
}
