//! The `application_name` of a replica's session, by which DBAs see the fleet: its name, the revision it serves and the
//! position it has read up to. `migrations/V2__fleet.sql` and `V6__restores.sql` document the format.

use std::net::SocketAddr;

use crate::postgres::position::Position;

/// Maximum length of an application name in Postgres: NAMEDATALEN - 1.
const MAX_APPLICATION_NAME_BYTES: usize = 63;
/// Maximum length of a replica name; it leaves room for a transaction id of 10 digits with the tag of its history and a
/// running transaction. With longer ids, the front of the name is cut.
const MAX_NAME_BYTES: usize = 16;
/// Default port of the API; any other port is part of the name, to distinguish replicas on one host.
const DEFAULT_PORT: u16 = 3000;

/// Validates a configured name.
///
/// # Errors
/// Says what is accepted.
pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    let fits = (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits {
        Ok(text.into())
    } else {
        Err(format!("write 1 to {MAX_NAME_BYTES} ASCII characters without a space, such as gpu-eu-1"))
    }
}

/// The name of a replica for which none is configured: the application name of the database URL, otherwise the host
/// name, with the port unless it is the default. Names that are too long are cut at the front, because the end
/// distinguishes pods.
pub(crate) fn default_name(application_name: Option<&str>, address: SocketAddr) -> String {
    let own = application_name.filter(|name| *name != env!("CARGO_PKG_NAME"));
    if let Some(name) = own.map(|name| suffix(name, MAX_NAME_BYTES)).filter(|name| !name.is_empty()) {
        return name;
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().split('.').next().filter(|host| !host.is_empty()).unwrap_or("replica");
    let port = Some(address.port()).filter(|port| *port != DEFAULT_PORT).map(|port| format!(":{port}"));
    let port = port.unwrap_or_default();
    suffix(host, MAX_NAME_BYTES - port.len()) + &port
}

/// The end of a text, with characters that a name may not contain replaced.
fn suffix(text: &str, bytes: usize) -> String {
    let ascii: String = text.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).collect();
    ascii[ascii.len().saturating_sub(bytes)..].trim_start_matches(['-', '.']).to_owned()
}

/// The application name of a replica that serves this revision as of this position; `None` before its first read.
/// Positions of a standby do not list the running transactions, so only those below xmin are known to be served.
pub(crate) fn application_name(name: &str, served: Option<(u64, &Position)>) -> String {
    const PROGRAM: &str = env!("CARGO_PKG_NAME");
    let Some((revision, position)) = served else { return format!("{PROGRAM} {name}") };
    let xmax = if position.is_standby() { position.xmin() } else { position.xmax() };
    let running = position.running();

    let omitted = |count: usize| if count > 0 { format!("+{count}") } else { String::new() };
    let mut remaining = running.len();
    let served = format!("{revision:016x} {xmax}{}", position.history_tag().unwrap_or_default());
    let space = MAX_APPLICATION_NAME_BYTES - PROGRAM.len() - 2 - served.len() - omitted(remaining).len();
    let mut text = format!("{PROGRAM} {} {served}", &name[name.len().saturating_sub(space)..]);
    // Newest first: their differences are the shortest, and they are the most likely to have ended when a DBA looks.
    for xid in running.iter().rev() {
        let difference = format!("-{}", xmax.saturating_sub(*xid));
        if text.len() + difference.len() + omitted(remaining - 1).len() > MAX_APPLICATION_NAME_BYTES {
            break;
        }
        text += &difference;
        remaining -= 1;
    }
    text + &omitted(remaining)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_name_lists_running_transactions_while_there_is_room() {
        let shown = |name: &str, snapshot: &str| {
            application_name(name, Some((0xd45, &Position::new("1/00000001/5/1/16390.16400", snapshot))))
        };
        let start = "model-catalog gpu-eu-1 0000000000000d45";
        assert_eq!(application_name("gpu-eu-1", None), "model-catalog gpu-eu-1");
        let without_tables = application_name("gpu-eu-1", Some((0xd45, &Position::new("1/00000001/5/1", "60:70:60"))));
        assert_eq!(without_tables, format!("{start} 70-10"));
        assert_eq!(shown("gpu-eu-1", "70:70:"), format!("{start} 70whm"));
        assert_eq!(shown("gpu-eu-1", "60:70:60,68"), format!("{start} 70whm-2-10"));
        let long = "1000000000:1234567890:1000000000,1234567880,1234567889";
        assert_eq!(shown("gpu-eu-1", long), format!("{start} 1234567890whm-1-10+1"));
        let many = (1..=120).map(|number| (1_000 + number).to_string()).collect::<Vec<_>>().join(",");
        for length in 1..=MAX_NAME_BYTES {
            let text = shown(&"n".repeat(length), &format!("1001:1200:{many}"));
            let (listed, older) = text.rsplit_once('+').expect(&text);
            assert_eq!(listed.matches('-').count() - 1 + older.parse::<usize>().expect(&text), 120, "{text}");
            assert!((60..=MAX_APPLICATION_NAME_BYTES).contains(&text.len()), "{text}");
        }
        let name = "n".repeat(MAX_NAME_BYTES);
        let text = shown(&name, "1000000000:1234567890:1000000000");
        assert!(text.ends_with(" 1234567890whm+1") && text.len() <= MAX_APPLICATION_NAME_BYTES, "{text}");
        assert!(text.contains(&name), "{text}");
        let far = "1000000000000000000:1000000000000000009:1000000000000000000";
        let text = shown(&name, far);
        assert!(text.ends_with("nn 0000000000000d45 1000000000000000009whm-9"), "{text}");
        assert_eq!(text.len(), MAX_APPLICATION_NAME_BYTES);
    }

    #[test]
    fn default_names_are_valid_and_distinguish_replicas() {
        let default_port = SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT));
        let other_port = SocketAddr::from(([127, 0, 0, 1], 65_123));
        assert_eq!(default_name(Some("night shift/ß"), default_port), "night-shift/-");
        assert_eq!(default_name(Some("model-catalog-7f9c6d5b4-x2x8v"), default_port), "7f9c6d5b4-x2x8v");
        let (host, with_port) = (default_name(Some("model-catalog"), default_port), default_name(None, other_port));
        assert!(!host.contains(':') && with_port.ends_with(":65123"), "{host} {with_port}");
        assert_eq!((parse_name(&host), parse_name(&with_port)), (Ok(host), Ok(with_port)));
        for bad in ["", "a b", "größe", "a\nb", "seventeen-letters"] {
            assert!(parse_name(bad).expect_err(bad).contains("1 to 16 ASCII"), "{bad}");
        }
    }
}
