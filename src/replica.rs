//! What a replica says of itself to DBAs, in the `application_name` of its session: its name, the revision it serves
//! and the moment it is in step with. `migrations/V2__fleet.sql` reads it and says why it is made so.

use std::net::SocketAddr;

use crate::postgres::position::Position;

/// What Postgres keeps of an application's name: NAMEDATALEN - 1.
const APPLICATION_NAME_BYTES: usize = 63;
/// So long a name leaves room for a transaction id of 13 digits and a word on those that are running.
const NAME_BYTES: usize = 16;
/// Where the API stands by default; another port tells replicas of one host apart.
const USUAL_PORT: u16 = 3000;

/// Checks a name that somebody chose.
///
/// # Errors
/// What would do.
pub fn name(text: &str) -> Result<String, String> {
    let fits = (1..=NAME_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits {
        Ok(text.into())
    } else {
        Err(format!("write 1 to {NAME_BYTES} ASCII characters without a space, such as gpu-eu-1"))
    }
}

/// The name of a replica to whom nobody gave one: what the address of the database calls the application, else the
/// host, with its port if that is not the usual one. Of what is too long the end is kept, which tells pods apart.
#[must_use]
pub fn default_name(application_name: Option<&str>, address: SocketAddr) -> String {
    let own = application_name.filter(|name| *name != env!("CARGO_PKG_NAME"));
    if let Some(name) = own.map(|name| last(name, NAME_BYTES)).filter(|name| !name.is_empty()) {
        return name;
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().split('.').next().filter(|host| !host.is_empty()).unwrap_or("replica");
    let port = Some(address.port()).filter(|port| *port != USUAL_PORT).map(|port| format!(":{port}"));
    let port = port.unwrap_or_default();
    last(host, NAME_BYTES - port.len()) + &port
}

/// The end of a text, made of characters that a name may have.
fn last(text: &str, bytes: usize) -> String {
    let ascii: String = text.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).collect();
    ascii[ascii.len().saturating_sub(bytes)..].trim_start_matches(['-', '.']).to_owned()
}

/// The name of the session of a replica that serves `revision` as of `position`; `None` = it has read nothing yet.
#[must_use]
pub fn application_name(name: &str, served: Option<(u64, &Position)>) -> String {
    let alone = format!("{} {name}", env!("CARGO_PKG_NAME"));
    let Some((revision, position)) = served else { return alone };
    let xmax = position.xmax();
    let running = position.snapshot.rsplit(':').next().unwrap_or_default();
    let running: Vec<u64> = running.split(',').filter_map(|xid| xid.parse().ok()).collect();

    let unnamed = |count: usize| if count > 0 { format!("+{count}") } else { String::new() };
    let mut text = format!("{alone} {revision:016x} {xmax}");
    let mut older = running.len();
    // The youngest are the shortest to write, and most likely to have ended when somebody asks.
    for xid in running.iter().rev() {
        let one = format!("-{}", xmax.saturating_sub(*xid));
        if text.len() + one.len() + unnamed(older - 1).len() > APPLICATION_NAME_BYTES {
            break;
        }
        text += &one;
        older -= 1;
    }
    text += &unnamed(older);
    // Postgres would cut it, and a number that was cut is another number.
    if text.len() > APPLICATION_NAME_BYTES { alone } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_shown_whole_as_long_as_there_is_room() {
        let shown = |name: &str, snapshot: &str| {
            let position = Position { history: String::new(), snapshot: snapshot.into() };
            application_name(name, Some((0xd45, &position)))
        };
        let start = "model-catalog gpu-eu-1 0000000000000d45";
        assert_eq!(application_name("gpu-eu-1", None), "model-catalog gpu-eu-1");
        assert_eq!(shown("gpu-eu-1", "70:70:"), format!("{start} 70"));
        assert_eq!(shown("gpu-eu-1", "60:70:60,68"), format!("{start} 70-2-10"));
        let long = "1000000000:1234567890:1000000000,1234567880,1234567889";
        assert_eq!(shown("gpu-eu-1", long), format!("{start} 1234567890-1-10+1"));
        let many = (1..=120).map(|number| (1_000 + number).to_string()).collect::<Vec<_>>().join(",");
        for length in 1..=NAME_BYTES {
            let text = shown(&"n".repeat(length), &format!("1001:1200:{many}"));
            let (listed, older) = text.rsplit_once('+').expect(&text);
            assert_eq!(listed.matches('-').count() - 1 + older.parse::<usize>().expect(&text), 120, "{text}");
            assert!((60..=APPLICATION_NAME_BYTES).contains(&text.len()), "{text}");
        }
        let name = "n".repeat(NAME_BYTES);
        let text = shown(&name, "1000000000:1234567890:1000000000");
        assert!(text.ends_with(" 1234567890+1") && text.len() <= APPLICATION_NAME_BYTES, "{text}");
        let far = "1000000000000000000:1000000000000000009:1000000000000000000";
        assert_eq!(shown(&name, far), format!("model-catalog {name}"));
    }

    #[test]
    fn names_that_nobody_chose_fit_and_tell_apart() {
        let usual = SocketAddr::from(([127, 0, 0, 1], USUAL_PORT));
        let other = SocketAddr::from(([127, 0, 0, 1], 65_123));
        assert_eq!(default_name(Some("night shift/ß"), usual), "night-shift/-");
        assert_eq!(default_name(Some("model-catalog-7f9c6d5b4-x2x8v"), usual), "7f9c6d5b4-x2x8v");
        let (host, with_port) = (default_name(Some("model-catalog"), usual), default_name(None, other));
        assert!(!host.contains(':') && with_port.ends_with(":65123"), "{host} {with_port}");
        assert_eq!((name(&host), name(&with_port)), (Ok(host), Ok(with_port)));
        for bad in ["", "a b", "größe", "a\nb", "seventeen-letters"] {
            assert!(name(bad).expect_err(bad).contains("1 to 16 ASCII"), "{bad}");
        }
    }
}
