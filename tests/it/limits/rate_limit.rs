//! Request rate limits per client, directly and through a trusted proxy.

use crate::support::raw::Raw;
use crate::support::{Response, model_json, start_with_model_a};

const BURST: usize = 10;
/// One request per second, so that a test on a busy machine sees few more than the burst.
const RATE: [(&str, &str); 2] = [("CATALOG_RATE_LIMIT", "1"), ("CATALOG_RATE_BURST", "10")];

/// Sends requests until one gets a 429; returns the number of earlier responses and the 429.
fn until_limited(mut send: impl FnMut() -> Response) -> (usize, Response) {
    for answered in 0..BURST * 10 {
        let response = send();
        if response.status == 429 {
            return (answered, response);
        }
    }
    panic!("no request was limited");
}

#[tokio::test]
async fn excess_requests_return_429_with_retry_after() {
    for (path, headers) in [
        ("/api/models/a", ""),
        ("/api/models/a", "te: trailers\r\n"),
        ("/api/models/absent", ""),
        ("/api/models", ""),
        ("/api/catalog", ""),
    ] {
        let (_db, server) = start_with_model_a(&RATE).await;
        let mut raw = Raw::open(&server.address);
        let (answered, limited) = until_limited(|| raw.request("GET", path, headers));
        assert!((BURST..BURST + 5).contains(&answered), "{path}: {answered}");
        assert_eq!((limited.header("retry-after"), limited.revision().len()), ("1", 16), "{limited:?}");
        assert_eq!(limited.text(), r#"{"error":"too many requests from your address"}"#);
        // Ops routes are not limited.
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(server.get(path).await.status, 200, "{path}");
        }
        server
            .until("requests are accepted again", |s| async move { s.get("/api/models/a").await.status == 200 })
            .await;
        let counted = server.get("/metrics").await.text();
        assert!(counted.lines().any(|line| line.contains("status=\"429\"") && !line.ends_with(" 0")), "{counted}");
    }
}

#[tokio::test]
async fn batch_counts_as_one_request() {
    let (_db, server) = start_with_model_a(&RATE).await;
    let mut raw = Raw::open(&server.address);
    let (answered, _) = until_limited(|| {
        let response = raw.batch("");
        let body = format!(r#"{{"models":[{}],"not_found":[]}}"#, model_json("a"));
        assert!(response.status == 429 || response.text() == body, "{response:?}");
        response
    });
    assert!((BURST..BURST + 5).contains(&answered), "{answered}");
}

#[tokio::test]
async fn trusted_proxy_header_sets_the_client_address() {
    let settings = [RATE[0], RATE[1], ("CATALOG_TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.0/8")];
    let (_db, server) = start_with_model_a(&settings).await;
    for headers in ["", "te: trailers\r\n"] {
        let mut raw = Raw::open(&server.address);
        // Many clients send one request each. The right-most address outside the trusted networks counts.
        for client in 0..BURST * 5 {
            let header = format!("{headers}x-forwarded-for: 192.0.2.{client}, 10.1.1.1\r\n");
            assert_eq!(raw.request("GET", "/api/models/a", &header).status, 200, "{header}");
        }
        let last = if headers.is_empty() { 1 } else { 2 };
        let (answered, _) = until_limited(|| {
            let forged = fastrand::u32(..);
            let header = format!("{headers}X-Forwarded-For: {forged}.1.1.1, 198.51.100.{last}\r\n");
            raw.request("GET", "/api/models/a", &header)
        });
        // One or two of the other clients may share its counter.
        assert!((BURST - 4..BURST + 5).contains(&answered), "{answered}");
    }
}

#[tokio::test]
async fn forwarded_header_of_an_untrusted_peer_is_ignored() {
    let (_db, server) = start_with_model_a(&[RATE[0], RATE[1], ("CATALOG_TRUSTED_PROXIES", "10.0.0.0/8")]).await;
    let mut raw = Raw::open(&server.address);
    let (answered, _) = until_limited(|| {
        let header = format!("x-forwarded-for: 192.0.2.{}\r\n", fastrand::u8(..));
        raw.request("GET", "/api/models/a", &header)
    });
    assert!((BURST..BURST + 5).contains(&answered), "{answered}");
}
