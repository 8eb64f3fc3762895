//! How many connections there are: one budget that the files share, and fewer to a host that refuses more.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Time after which a host that refused a connection may get one more than it has.
const RAISE_AFTER: Duration = Duration::from_secs(10);

/// The connections of a pull.
#[derive(Debug)]
pub(super) struct Connections {
    /// Maximum for all files together. Files that begin while others have more than their share exceed it until
    /// those finish a segment.
    budget: usize,
    /// Whether a file may have more than one.
    several: bool,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Connections that receive bytes.
    receiving: usize,
    /// Files that can use several connections.
    divisible_files: usize,
    hosts: HashMap<String, Host>,
}

#[derive(Debug)]
struct Host {
    connections: usize,
    max: usize,
    changed: Instant,
}

impl Host {
    fn admit(&mut self) -> bool {
        if self.connections >= self.max {
            if self.changed.elapsed() < RAISE_AFTER {
                return false;
            }
            (self.max, self.changed) = (self.connections + 1, Instant::now());
        }
        self.connections += 1;
        true
    }
}

impl Connections {
    /// `parallel` files at a time with `per_file` connections each; fewer files get more.
    pub(super) fn new(parallel: usize, per_file: usize) -> Self {
        Self { budget: parallel * per_file, several: per_file > 1, state: Mutex::default(), ended: Notify::new() }
    }

    /// Maximum number for a file that is alone.
    pub(super) fn most_per_file(&self) -> usize {
        if self.several { self.budget } else { 1 }
    }

    /// Waits until `host` may get another connection.
    pub(super) async fn connect(&self, host: &str) -> Connection<'_> {
        loop {
            // Created before the check, so that no wake-up is lost.
            let ended = self.ended.notified();
            if let Some(connection) = self.try_connect(host) {
                return connection;
            }
            // Woken by time as well: then the host may get one more.
            let _ = tokio::time::timeout(RAISE_AFTER, ended).await;
        }
    }

    fn try_connect(&self, host: &str) -> Option<Connection<'_>> {
        let mut state = self.state.lock();
        let new = || Host { connections: 0, max: usize::MAX, changed: Instant::now() };
        let admitted = state.hosts.entry(host.to_owned()).or_insert_with(new).admit();
        admitted.then(|| Connection { all: self, host: host.to_owned(), receives: false })
    }

    /// Counts a file that can use several connections, until the share is dropped.
    pub(super) fn share(&self) -> Share<'_> {
        self.state.lock().divisible_files += 1;
        Share(self)
    }
}

/// The right to have one connection. Dropping it returns it.
#[derive(Debug)]
pub(super) struct Connection<'a> {
    all: &'a Connections,
    host: String,
    receives: bool,
}

impl Connection<'_> {
    /// Counts it against the budget: a host that does not respond must not slow down others.
    pub(super) fn receives(mut self) -> Self {
        if !std::mem::replace(&mut self.receives, true) {
            self.all.state.lock().receiving += 1;
        }
        self
    }

    /// The host refused this connection: it gets no more than it had without it.
    pub(super) fn refused(&self) {
        if let Some(host) = self.all.state.lock().hosts.get_mut(&self.host) {
            (host.max, host.changed) = ((host.connections - 1).max(1), Instant::now());
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state.lock();
        state.receiving -= usize::from(self.receives);
        if let Some(host) = state.hosts.get_mut(&self.host) {
            host.connections -= 1;
        }
        drop(state);
        self.all.ended.notify_waiters();
    }
}

/// The part of the budget for one file.
#[derive(Debug)]
pub(super) struct Share<'a>(&'a Connections);

impl Share<'_> {
    /// Number of connections that this file should have.
    pub(super) fn size(&self) -> usize {
        if self.0.several { (self.0.budget / self.0.state.lock().divisible_files.max(1)).max(1) } else { 1 }
    }

    /// One more connection to `host` for this file, which has `connections`.
    pub(super) fn add(&self, connections: usize, host: &str) -> Option<Connection<'_>> {
        let free = self.0.state.lock().receiving < self.0.budget;
        let connection = (free && connections < self.size()).then(|| self.0.try_connect(host)).flatten();
        connection.map(Connection::receives)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.0.state.lock().divisible_files -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_share_one_budget() {
        let all = Connections::new(4, 4);
        let connect = || all.try_connect("host").expect("no limit").receives();
        let (first, _connection) = (all.share(), connect());
        let mut extra: Vec<_> = (1..).map_while(|count| first.add(count, "host")).collect();
        assert_eq!((first.size(), extra.len()), (16, 15));
        let second = all.share();
        assert_eq!((first.size(), second.size()), (8, 8));
        assert!(second.add(1, "host").is_none(), "the budget was exceeded");
        extra.truncate(7);
        assert!(second.add(1, "host").is_some() && first.add(8, "host").is_none());
        drop(second);
        assert_eq!(first.size(), 16);
        let one = Connections::new(4, 1);
        assert!(one.share().add(1, "host").is_none(), "a file got a second connection");
    }

    #[test]
    fn host_that_refuses_connections_gets_no_more_than_it_accepted() {
        let all = Connections::new(4, 4);
        let mut connections: Vec<_> = (0..16).map(|_| all.try_connect("busy").expect("no limit")).collect();
        // It accepts three.
        while connections.len() > 3 {
            connections.pop().iter().for_each(Connection::refused);
        }
        assert!(all.try_connect("busy").is_none() && all.try_connect("other").is_some());
        connections.pop();
        assert!(all.try_connect("busy").is_some());
        all.state.lock().hosts.get_mut("busy").expect("known").changed -= RAISE_AFTER;
        connections.push(all.try_connect("busy").expect("there were three"));
        connections.push(all.try_connect("busy").expect("a fourth after some time"));
        assert!(all.try_connect("busy").is_none());
    }
}
