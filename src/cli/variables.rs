//! Adds environment variables to the errors of clap, which name only flags.

use clap::error::{ContextKind, ContextValue};

use super::command;

/// Adds the environment variable to an error. clap names only the flag, but in a unit file people set the variable.
pub(super) fn with_variable(mut error: clap::Error) -> clap::Error {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => {
            // clap puts quotes around the whole string, so the inner ones are here.
            if let Some(variable) = variable_of(argument) {
                let both = format!("{argument}' or '{variable}");
                error.insert(ContextKind::InvalidArg, ContextValue::String(both));
            }
        }
        Some(ContextValue::Strings(missing)) => {
            let both = |argument: &String| match variable_of(argument) {
                Some(variable) => format!("{argument} or the environment variable {variable}"),
                None => argument.clone(),
            };
            let both = missing.iter().map(both).collect();
            error.insert(ContextKind::InvalidArg, ContextValue::Strings(both));
        }
        _ => {}
    }
    error
}

/// The environment variable of `--flag <VALUE>`.
fn variable_of(argument: &str) -> Option<String> {
    let flag = argument.split_whitespace().next().unwrap_or_default().trim_start_matches("--");
    let commands = command();
    let all = commands.get_subcommands().flat_map(clap::Command::get_arguments).chain(commands.get_arguments());
    let mut named = all.filter(|argument| argument.get_long() == Some(flag));
    named.find_map(|argument| Some(argument.get_env()?.to_string_lossy().into_owned()))
}
