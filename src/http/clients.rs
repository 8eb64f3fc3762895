//! Who asks: how many connections each address may have, and how often each client may ask.
//!
//! Where nothing of that is limited, nobody's address is asked for.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::header::HeaderName;
use ipnet::IpNet;

use super::rate::Rate;

/// What is limited for each client. The default is nothing.
#[derive(Debug, Default)]
pub struct Settings {
    /// Connections of one address.
    pub max_connections: Option<NonZeroUsize>,
    /// Requests of one client.
    pub rate: Option<Rate>,
    /// Networks of load balancers, whose connections are those of many clients.
    pub trusted: Vec<IpNet>,
    /// Where these say whose request it is, the last one last.
    pub header: Option<HeaderName>,
}

/// The clients there are, as far as anything of theirs is limited.
#[derive(Debug, Default)]
pub struct Clients {
    settings: Settings,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// Whom a connection comes from.
pub type Peer = Option<IpAddr>;

impl Clients {
    /// Nobody yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, open: Mutex::default() }
    }

    /// Whose connection it is, where anything depends on it.
    ///
    /// # Errors
    /// The client has gone.
    pub fn peer(&self, stream: &TcpStream) -> io::Result<Peer> {
        if self.settings.max_connections.is_none() && self.settings.rate.is_none() {
            return Ok(None);
        }
        stream.peer_addr().map(|address| Some(address.ip().to_canonical()))
    }

    /// Lets a connection in, if its address has fewer than it may have.
    pub fn admit(self: &Arc<Self>, peer: Peer) -> Admission {
        let (Some(max), Some(peer)) = (self.settings.max_connections, peer) else { return Admission::Free };
        if self.is_trusted(peer) {
            return Admission::Free;
        }
        let client = client_of(peer);
        let mut open = self.open();
        let count = open.entry(client).or_default();
        if *count >= max.get() {
            return Admission::Refused;
        }
        *count += 1;
        Admission::Counted(Guest { clients: Arc::clone(self), client })
    }

    /// Counts a request of the client that `peer` sent it for; `forwarded` gives the values of a header.
    ///
    /// # Errors
    /// The client asks too often; gives the seconds until it may ask again.
    pub fn may_ask<'a, V>(&self, peer: Peer, forwarded: impl FnOnce(&HeaderName) -> V) -> Result<(), u64>
    where
        V: IntoIterator<Item = &'a [u8], IntoIter: DoubleEndedIterator>,
    {
        let (Some(rate), Some(peer)) = (&self.settings.rate, peer) else { return Ok(()) };
        let client = match &self.settings.header {
            Some(header) if self.is_trusted(peer) => self.sender(peer, forwarded(header)),
            _ => peer,
        };
        rate.count(client_of(client))
    }

    /// The nearest to us whom nobody trusted vouches for. Whatever stands further left, the client may have written.
    fn sender<'a, V>(&self, peer: IpAddr, forwarded: V) -> IpAddr
    where
        V: IntoIterator<Item = &'a [u8], IntoIter: DoubleEndedIterator>,
    {
        let mut nearest = peer;
        for value in forwarded.into_iter().rev() {
            for hop in value.rsplit(|byte| *byte == b',') {
                let Some(address) = std::str::from_utf8(hop).ok().and_then(hop_address) else { return nearest };
                nearest = address;
                if !self.is_trusted(address) {
                    return nearest;
                }
            }
        }
        nearest
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.settings.trusted.iter().any(|network| network.contains(&address))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // A panic can't leave it half-changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address with a port or without.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let with_port = || SocketAddr::from_str(hop).ok().map(|address| address.ip());
    IpAddr::from_str(hop).ok().or_else(with_port).map(|address| address.to_canonical())
}

/// One client's address. Of IPv6 the network: a host has all of a /64 to choose from.
fn client_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// Whether a connection is let in.
#[derive(Debug)]
pub enum Admission {
    /// It counts for nobody.
    Free,
    /// It counts as long as this lives.
    Counted(Guest),
    /// Its address has as many as it may have.
    Refused,
}

/// A connection that counts for its address, until it is dropped.
#[derive(Debug)]
pub struct Guest {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut open = self.clients.open();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// Says to a new connection why it ends. It is all that is said: a client that is over its limit costs little.
pub fn refuse(mut stream: TcpStream) {
    const REFUSAL: &str = concat!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n",
        "connection: close\r\ncontent-length: 54\r\n\r\n",
        r#"{"error":"your address has too many connections open"}"#
    );
    // What is not read makes the end a reset, which may overtake the answer.
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write(REFUSAL.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_sender_is_the_nearest_that_is_not_trusted() {
        let trusted = vec![network("10.0.0.0/8"), network("fd00::/8")];
        let clients = Clients::new(Settings { trusted, ..Settings::default() });
        for (values, sender) in [
            (&["192.0.2.1"][..], "192.0.2.1"),
            (&["198.51.100.1, 192.0.2.1"], "192.0.2.1"),
            (&["198.51.100.1, 192.0.2.1 ,10.1.1.1"], "192.0.2.1"),
            (&["198.51.100.1", "192.0.2.1", "10.1.1.1,10.1.1.2"], "192.0.2.1"),
            (&["192.0.2.1:4711"], "192.0.2.1"),
            (&["[2001:db8::1]:4711, fd00::1"], "2001:db8::1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1, unknown, 10.1.1.1"], "10.1.1.1"),
            (&["192.0.2.1, "], "10.9.9.9"),
            (&["10.1.1.1"], "10.1.1.1"),
            (&[], "10.9.9.9"),
        ] {
            let found = clients.sender(IpAddr::from([10, 9, 9, 9]), values.iter().map(|value| value.as_bytes()));
            assert_eq!(found.to_string(), sender, "{values:?}");
        }
    }

    #[test]
    fn connections_are_counted_by_client() {
        let (max_connections, trusted) = (NonZeroUsize::new(2), vec![network("10.0.0.0/8")]);
        let clients = Arc::new(Clients::new(Settings { max_connections, trusted, ..Settings::default() }));
        let admit = |address: &str| clients.admit(address.parse().ok());
        let first = admit("2001:db8::1");
        let _second = admit("2001:db8::2");
        assert!(matches!(admit("2001:db8::3"), Admission::Refused));
        assert!(matches!(admit("2001:db8:0:1::3"), Admission::Counted(_)));
        drop(first);
        assert!(matches!(admit("2001:db8::3"), Admission::Counted(_)));
        let balancer: Vec<_> = (0..3).map(|_| admit("10.1.2.3")).collect();
        assert!(balancer.iter().all(|admission| matches!(admission, Admission::Free)));
        let _both = [admit("192.0.2.1"), admit("192.0.2.1")];
        assert!(matches!(admit("192.0.2.1"), Admission::Refused));
        assert!(matches!(admit("192.0.2.2"), Admission::Counted(_)));
        assert_eq!(clients.open().len(), 2, "an address without connections takes memory");
    }

    #[test]
    fn nobody_is_counted_where_nothing_is_limited() {
        let clients = Arc::new(Clients::default());
        assert!(matches!(clients.admit("192.0.2.1".parse().ok()), Admission::Free));
        assert!(clients.open().is_empty());
    }
}
