//! The bytes of a connection, through hyper and the handler: whatever comes in, what goes out is whole responses, and a
//! refusal is the last of them.
#![no_main]

mod catalog;

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use model_catalog::http::Handler;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

static HANDLER: LazyLock<Arc<Handler>> = LazyLock::new(catalog::handler);
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));

fuzz_target!(|input: &[u8]| {
    let responses = RUNTIME.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        if input.len() > 64 * 1024 {
            return Vec::new();
        }
        client.write_all(input).await.expect("room for it");
        client.shutdown().await.expect("the other end is open");
        let service = service_fn(|request| async {
            Ok::<_, Infallible>(HANDLER.handle(request, None, std::time::Instant::now()).await.response.map(BodyExt::boxed))
        });
        let served = http1::Builder::new().half_close(true).max_buf_size(32 * 1024).serve_connection(TokioIo::new(server), service);
        let mut responses = Vec::new();
        let _ = tokio::join!(served, client.read_to_end(&mut responses));
        responses
    });
    let mut left = &responses[..];
    while !left.is_empty() {
        let text = String::from_utf8_lossy(left).into_owned();
        let (head, _) = text.split_once("\r\n\r\n").expect("a whole head");
        let status: u16 = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
        // Responses to HEAD, 100 and 304 have no body, and what follows is the next response.
        let length = length.map_or(0, |length| length.parse::<usize>().expect("a number"));
        left = &left[head.len() + 4..];
        let body = left.get(..length).filter(|body| !body.starts_with(b"HTTP/1."));
        if let Some(body) = body {
            if head.contains("application/json") {
                serde_json::from_slice::<serde_json::Value>(body).expect("JSON");
            }
            left = &left[length..];
        }
        assert!(status != 400 || !head.contains("connection: close") || left.is_empty(), "{text}");
    }
});
