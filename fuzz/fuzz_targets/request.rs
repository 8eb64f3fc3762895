//! The first bytes of a connection, through a real socket: what is answered plainly is whole answers of 200, and what
//! is left for the library is the untouched rest of what came.
#![no_main]

mod catalog;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use model_catalog::http::Handler;
use model_catalog::http::plain::Plain;
use socket2::SockRef;
use tokio::runtime::Runtime;

struct Place {
    handler: Handler,
    listener: TcpListener,
    runtime: Runtime,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| Place {
    handler: catalog::handler(),
    listener: TcpListener::bind("127.0.0.1:0").expect("a port"),
    runtime: tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime"),
});

fuzz_target!(|input: &[u8]| {
    // More than this is read in several parts.
    if input.is_empty() || input.len() > 4096 {
        return;
    }
    let Place { handler, listener, runtime } = &*PLACE;
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (server, _) = listener.accept().expect("a connection");
    client.write_all(input).expect("room for it");
    // No port waits for stragglers.
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("linger");
    let _inside = runtime.enter();
    let mut rest = Vec::new();
    let mut peer = server.try_clone().expect("a second handle");
    server.set_nonblocking(true).expect("nonblocking");
    if let Some(plain) = Plain::greet(server, None, handler).expect("it is taken") {
        rest = plain.into_parts().1;
    }
    assert!(input.ends_with(&rest), "the rest is not of the input");
    peer.flush().expect("sent");
    peer.shutdown(std::net::Shutdown::Write).ok();
    drop(peer);
    let mut answers = Vec::new();
    client.read_to_end(&mut answers).ok();
    let mut left = &answers[..];
    while !left.is_empty() {
        let text = String::from_utf8_lossy(left).into_owned();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        let (head, _) = text.split_once("\r\n\r\n").expect("a whole head");
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let body = &left[head.len() + 4..][..length.parse().expect("a number")];
        serde_json::from_slice::<serde_json::Value>(body).expect("JSON");
        left = &left[head.len() + 4 + body.len()..];
    }
});
