//! The password file of libpq.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

const FIELDS: usize = 5;

/// Like libpq, this program ignores such a file.
pub(super) struct ReadableByOthers;

/// The password of the first matching line of the file at `path`.
pub(super) fn password(path: &Path, config: &Config) -> Result<Option<String>, ReadableByOthers> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(None) };
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(ReadableByOthers);
    }
    Ok(std::fs::read_to_string(path).ok().and_then(|text| find(&text, config)))
}

fn find(text: &str, config: &Config) -> Option<String> {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        _ => "localhost".into(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let user = config.get_user().unwrap_or_default();
    let expected = [host.as_str(), &port, config.get_dbname().unwrap_or(user), user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = fields(line);
        let mut pairs = fields.iter().zip(expected);
        let matches = fields.len() == FIELDS && pairs.all(|(field, expected)| field == "*" || field == expected);
        matches.then(|| fields.pop()).flatten()
    })
}

/// Splits a line into its five fields at the colons. `\` escapes a colon or a backslash.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut escaped = false;
    for c in line.chars() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ':' if !escaped && fields.len() < FIELDS => fields.push(String::new()),
            c => fields.last_mut().into_iter().for_each(|field| field.push(c)),
        }
        escaped = false;
    }
    fields
}
