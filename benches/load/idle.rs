//! Memory of idle keep-alive connections that have been used once.

use crate::Result;
use crate::client::{connect, exchange};
use crate::peers::{Load, Peer};
use crate::wrk::Bench;

/// Resident bytes per connection that `count` idle connections add to `peer`, without kernel buffers.
pub fn bytes_per_connection(bench: &Bench<'_>, peer: &Peer, count: usize) -> Result<f64> {
    let request = Load::Batch10.request(bench.sample).bytes(peer.port(Load::Batch10), "keep-alive");
    let before = peer.process.memory("VmRSS")?;
    let mut connections = Vec::with_capacity(count);
    for number in 0..count {
        let open = || -> Result<_> {
            let mut stream = connect(peer.port(Load::Batch10))?;
            let response = exchange(&mut stream, &request)?;
            if response.is(bench.bodies.body(Load::Batch10)) { Ok(stream) } else { Err("a wrong response".into()) }
        };
        connections.push(open().map_err(|error| format!("idle connection {number} of {count}: {error}"))?);
    }
    let added = peer.process.memory("VmRSS")?.saturating_sub(before);
    Ok(added as f64 / count as f64)
}
