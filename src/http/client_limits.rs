//! Limits of one client: open connections per address, and requests per second.
//!
//! Without limits, peer addresses are not looked up.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr;
use std::sync::Arc;

use governor::clock::{Clock, MonotonicClock};
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use hyper::header::HeaderName;
use ipnet::IpNet;
use parking_lot::Mutex;

/// The configured limits. The default is none.
#[derive(Default)]
pub(crate) struct ClientSettings {
    /// Open connections per address.
    pub(crate) max_connections: Option<NonZeroUsize>,
    /// Requests per second and client.
    pub(crate) rate: Option<RateLimit>,
    /// Networks of load balancers, whose connections carry the requests of many clients.
    pub(crate) trusted: Vec<IpNet>,
    /// The header in which load balancers append the client's address.
    pub(crate) header: Option<HeaderName>,
}

/// Requests per second of each client.
pub(crate) struct RateLimit(RateLimiter<IpAddr, Cells, MonotonicClock>);

/// Half a MiB, however many clients there are. Two clients in one cell share its allowance; which ones do cannot be
/// found out from outside.
const CELLS: usize = 1 << 16;

impl RateLimit {
    /// `per_second` requests, `burst` of them at once.
    pub(crate) fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let cells = (0..CELLS).map(|_| InMemoryState::default()).collect();
        let cells = Cells { cells, hasher: RandomState::new() };
        Self(RateLimiter::new(Quota::per_second(per_second).allow_burst(burst), cells, MonotonicClock))
    }

    /// Counts a request.
    ///
    /// # Errors
    /// Too many requests; gives the seconds until the next one is allowed.
    fn check(&self, client: IpAddr) -> Result<(), u64> {
        self.0.check_key(&client).map_err(|until| {
            let wait = until.wait_time_from(MonotonicClock.now());
            u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
        })
    }
}

/// A fixed number of cells: the crate's own stores grow with the number of keys.
struct Cells {
    cells: Box<[InMemoryState]>,
    hasher: RandomState,
}

impl StateStore for Cells {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, client: &IpAddr, decide: F) -> Result<T, E>
    where
        F: Fn(Option<governor::nanos::Nanos>) -> Result<(T, governor::nanos::Nanos), E>,
    {
        let cell = self.hasher.hash_one(client) as usize % CELLS;
        self.cells[cell].measure_and_replace(&NotKeyed::NonKey, decide)
    }
}

/// Enforces [`ClientSettings`]; shared by all worker threads.
#[derive(Default)]
pub(crate) struct ClientLimits {
    settings: ClientSettings,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// The address of a connection's other end, if any limit depends on it.
pub(crate) type Peer = Option<IpAddr>;

impl ClientLimits {
    /// No connection is open yet.
    pub(crate) fn new(settings: ClientSettings) -> Self {
        Self { settings, open: Mutex::default() }
    }

    /// The address of a connection's other end, if any limit depends on it.
    pub(crate) fn peer(&self, stream: &TcpStream) -> io::Result<Peer> {
        if self.settings.max_connections.is_none() && self.settings.rate.is_none() {
            return Ok(None);
        }
        stream.peer_addr().map(|address| Some(address.ip().to_canonical()))
    }

    /// Admits a connection if its address has fewer than the limit. Without a permit it is not counted.
    pub(crate) fn admit(self: &Arc<Self>, peer: Peer) -> Result<Option<ConnectionPermit>, TooManyConnections> {
        let (Some(max), Some(peer)) = (self.settings.max_connections, peer) else { return Ok(None) };
        if self.is_trusted(peer) {
            return Ok(None);
        }
        let client = rate_limit_key(peer);
        let mut open = self.open.lock();
        let count = open.entry(client).or_default();
        if *count >= max.get() {
            return Err(TooManyConnections);
        }
        *count += 1;
        Ok(Some(ConnectionPermit { limits: Arc::clone(self), client }))
    }

    /// Counts a request of the client that `peer` sent it for; `forwarded` gives the values of a header.
    ///
    /// # Errors
    /// The client is over its rate limit; gives the seconds until its next request is allowed.
    pub(crate) fn check_rate<'a, V>(&self, peer: Peer, forwarded: impl FnOnce(&HeaderName) -> V) -> Result<(), u64>
    where
        V: IntoIterator<Item = &'a [u8], IntoIter: DoubleEndedIterator>,
    {
        let (Some(rate), Some(peer)) = (&self.settings.rate, peer) else { return Ok(()) };
        let client = match &self.settings.header {
            Some(header) if self.is_trusted(peer) => self.client_ip(peer, forwarded(header)),
            _ => peer,
        };
        rate.check(rate_limit_key(client))
    }

    /// The right-most address outside the trusted networks; anything further left can be forged.
    fn client_ip<'a, V>(&self, peer: IpAddr, forwarded: V) -> IpAddr
    where
        V: IntoIterator<Item = &'a [u8], IntoIter: DoubleEndedIterator>,
    {
        let mut nearest = peer;
        for value in forwarded.into_iter().rev() {
            for hop in value.rsplit(|byte| *byte == b',') {
                let Some(address) = std::str::from_utf8(hop).ok().and_then(parse_forwarded_addr) else {
                    return nearest;
                };
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
}

/// An address with or without a port.
fn parse_forwarded_addr(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let with_port = || SocketAddr::from_str(hop).ok().map(|address| address.ip());
    IpAddr::from_str(hop).ok().or_else(with_port).map(|address| address.to_canonical())
}

/// The key by which clients are counted: an IPv4 address, or the /64 network of an IPv6 address, because a host may use
/// all of it.
fn rate_limit_key(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// The address of a connection has as many as it may have.
pub(crate) struct TooManyConnections;

/// Counts a connection for its address until it is dropped.
pub(crate) struct ConnectionPermit {
    limits: Arc<ClientLimits>,
    client: IpAddr,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.limits.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// Rejects a connection over the limit of its client with 429, as cheaply as possible.
pub(crate) fn reject_connection(mut stream: TcpStream) {
    const RESPONSE: &str = concat!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n",
        "connection: close\r\ncontent-length: 54\r\n\r\n",
        r#"{"error":"your address has too many connections open"}"#
    );
    // Closing with unread input resets the connection, and the reset may overtake the response.
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write(RESPONSE.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_client_is_the_nearest_untrusted_hop() {
        let trusted = vec![network("10.0.0.0/8"), network("fd00::/8")];
        let limits = ClientLimits::new(ClientSettings { trusted, ..ClientSettings::default() });
        for (values, client) in [
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
            let found = limits.client_ip(IpAddr::from([10, 9, 9, 9]), values.iter().map(|value| value.as_bytes()));
            assert_eq!(found.to_string(), client, "{values:?}");
        }
    }

    #[test]
    fn connections_are_counted_per_client() {
        let (max_connections, trusted) = (NonZeroUsize::new(2), vec![network("10.0.0.0/8")]);
        let limits =
            Arc::new(ClientLimits::new(ClientSettings { max_connections, trusted, ..ClientSettings::default() }));
        let admit = |address: &str| limits.admit(address.parse().ok());
        let first = admit("2001:db8::1");
        let _second = admit("2001:db8::2");
        assert!(matches!(admit("2001:db8::3"), Err(TooManyConnections)));
        assert!(matches!(admit("2001:db8:0:1::3"), Ok(Some(_))));
        drop(first);
        assert!(matches!(admit("2001:db8::3"), Ok(Some(_))));
        let balancer: Vec<_> = (0..3).map(|_| admit("10.1.2.3")).collect();
        assert!(balancer.iter().all(|admission| matches!(admission, Ok(None))));
        let _both = [admit("192.0.2.1"), admit("192.0.2.1")];
        assert!(matches!(admit("192.0.2.1"), Err(TooManyConnections)));
        assert!(matches!(admit("192.0.2.2"), Ok(Some(_))));
        assert_eq!(limits.open.lock().len(), 2, "an address without connections takes memory");
    }

    #[test]
    fn nothing_is_counted_without_a_limit() {
        let limits = Arc::new(ClientLimits::default());
        assert!(matches!(limits.admit("192.0.2.1".parse().ok()), Ok(None)));
        assert!(limits.open.lock().is_empty());
    }

    #[test]
    fn each_client_has_its_own_burst() {
        let rate = RateLimit::new(NonZeroU32::MIN, NonZeroU32::MIN.saturating_add(2));
        let client = |last: u8| IpAddr::from([192, 0, 2, last]);
        for _ in 0..3 {
            assert_eq!(rate.check(client(1)), Ok(()));
        }
        assert_eq!(rate.check(client(1)), Err(1));
        // Two of three clients share a cell with a chance of one in ten thousand; not all of ten.
        assert!((2..12).any(|last| rate.check(client(last)).is_ok()));
    }
}
