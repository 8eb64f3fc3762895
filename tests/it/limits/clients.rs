//! Clients that ask too often, whoever brings their requests; and pages of other origins. Both off unless set.

use crate::support::raw::Raw;
use crate::support::{Response, model_json, start_with_model_a};

/// Sends a request with further header lines.
fn ask(raw: &mut Raw, method: &str, path: &str, headers: &str) -> Response {
    raw.send(&format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n"));
    raw.response()
}

fn batch(raw: &mut Raw, headers: &str) -> Response {
    let body = r#"{"model_ids":["a"]}"#;
    ask(raw, "POST", "/api/models/batch", &format!("{headers}content-length: {}\r\n\r\n{body}", body.len()))
}

const BURST: usize = 10;
/// One in a second, so that a test on a busy machine sees few more than the burst.
const RATE: [(&str, &str); 2] = [("CATALOG_RATE_LIMIT", "1"), ("CATALOG_RATE_BURST", "10")];

/// Asks until it is refused; gives the number of answers and the refusal.
fn until_refused(mut ask: impl FnMut() -> Response) -> (usize, Response) {
    for answered in 0..BURST * 10 {
        let response = ask();
        if response.status == 429 {
            return (answered, response);
        }
    }
    panic!("never refused");
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
        let (answered, refusal) = until_refused(|| ask(&mut raw, "GET", path, headers));
        assert!((BURST..BURST + 5).contains(&answered), "{path}: {answered}");
        assert_eq!((refusal.header("retry-after"), refusal.revision().len()), ("1", 16), "{refusal:?}");
        assert_eq!(refusal.text(), r#"{"error":"too many requests from your address"}"#);
        // Neither operators nor other ports of the client's network are met by that.
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(server.get(path).await.status, 200, "{path}");
        }
        server.until("it may ask again", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
        let counted = server.get("/metrics").await.text();
        assert!(counted.lines().any(|line| line.contains("status=\"429\"") && !line.ends_with(" 0")), "{counted}");
    }
}

#[tokio::test]
async fn batch_counts_as_one_request() {
    let (_db, server) = start_with_model_a(&RATE).await;
    let mut raw = Raw::open(&server.address);
    let (answered, _) = until_refused(|| {
        let response = batch(&mut raw, "");
        let body = format!(r#"{{"models":[{}],"not_found":[]}}"#, model_json("a"));
        assert!(response.status == 429 || response.text() == body, "{response:?}");
        response
    });
    assert!((BURST..BURST + 5).contains(&answered), "{answered}");
}

#[tokio::test]
async fn trusted_proxy_header_sets_the_client_address() {
    let trusting = [RATE[0], RATE[1], ("CATALOG_TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.0/8")];
    let (_db, server) = start_with_model_a(&trusting).await;
    for headers in ["", "te: trailers\r\n"] {
        let mut raw = Raw::open(&server.address);
        // Each of many clients asks once; what they write in front of their own address makes no difference.
        for client in 0..BURST * 5 {
            let named = format!("{headers}x-forwarded-for: 192.0.2.{client}, 10.1.1.1\r\n");
            assert_eq!(ask(&mut raw, "GET", "/api/models/a", &named).status, 200, "{named}");
        }
        let last = if headers.is_empty() { 1 } else { 2 };
        let (answered, _) = until_refused(|| {
            let forged = fastrand::u32(..);
            let named = format!("{headers}X-Forwarded-For: {forged}.1.1.1, 198.51.100.{last}\r\n");
            ask(&mut raw, "GET", "/api/models/a", &named)
        });
        // One or two of the others may share its counter.
        assert!((BURST - 4..BURST + 5).contains(&answered), "{answered}");
    }
}

#[tokio::test]
async fn forwarded_header_of_an_untrusted_peer_is_ignored() {
    let (_db, server) = start_with_model_a(&[RATE[0], RATE[1], ("CATALOG_TRUSTED_PROXIES", "10.0.0.0/8")]).await;
    let mut raw = Raw::open(&server.address);
    let (answered, _) = until_refused(|| {
        let named = format!("x-forwarded-for: 192.0.2.{}\r\n", fastrand::u8(..));
        ask(&mut raw, "GET", "/api/models/a", &named)
    });
    assert!((BURST..BURST + 5).contains(&answered), "{answered}");
}

#[tokio::test]
async fn cors_is_disabled_by_default() {
    let (_db, server) = start_with_model_a(&[]).await;
    let mut raw = Raw::open(&server.address);
    let response = ask(&mut raw, "GET", "/api/models/a", "origin: https://example.org\r\n");
    assert_eq!(
        (response.status, response.header("access-control-allow-origin"), response.header("vary")),
        (200, "", "")
    );
    let preflight = "origin: https://example.org\r\naccess-control-request-method: GET\r\n";
    assert_eq!(ask(&mut raw, "OPTIONS", "/api/models/a", preflight).status, 405);
}

#[tokio::test]
async fn only_configured_origins_are_allowed() {
    let allowed = [("CATALOG_CORS_ALLOW_ORIGIN", "https://example.org, http://localhost:8080")];
    let (_db, server) = start_with_model_a(&allowed).await;
    let mut raw = Raw::open(&server.address);
    for (origin, may) in [
        ("https://example.org", true),
        ("http://localhost:8080", true),
        ("http://example.org", false),
        ("https://example.org.evil.example", false),
        ("null", false),
        ("*", false),
    ] {
        let header = format!("Origin: {origin}\r\n");
        let responses = [
            ask(&mut raw, "GET", "/api/models/a", &header),
            ask(&mut raw, "GET", "/api/models/absent", &header),
            ask(&mut raw, "GET", "/api/catalog", &header),
            ask(&mut raw, "GET", "/api/models", &header),
            batch(&mut raw, &header),
        ];
        for response in responses {
            let (origin, exposed) = if may { (origin, "etag, catalog-revision") } else { ("", "") };
            assert_eq!(response.header("access-control-allow-origin"), origin, "{response:?}");
            assert_eq!(response.header("access-control-expose-headers"), exposed, "{response:?}");
            assert_eq!(response.header("vary"), "Origin", "{response:?}");
        }
        let asks = format!("{header}access-control-request-method: POST\r\n");
        raw.send(&format!("OPTIONS /api/models/batch HTTP/1.1\r\nhost: x\r\n{asks}\r\n"));
        let preflight = raw.head();
        assert_eq!(preflight.status, 204);
        assert_eq!(preflight.header("access-control-allow-origin"), if may { origin } else { "" });
        assert_eq!(preflight.header("access-control-allow-methods"), "GET, HEAD, POST");
        assert_eq!(preflight.header("access-control-allow-headers"), "content-type, if-none-match");
    }
    // A cache keeps apart what is answered without an origin, too: plainly and by the library alike.
    for headers in ["", "te: trailers\r\n"] {
        let response = ask(&mut Raw::open(&server.address), "GET", "/api/models/a", headers);
        assert_eq!((response.header("vary"), response.text()), ("Origin", model_json("a")));
        assert_eq!(response.header("access-control-allow-origin"), "");
    }
}

#[tokio::test]
async fn wildcard_allows_every_origin() {
    let (_db, server) = start_with_model_a(&[("CATALOG_CORS_ALLOW_ORIGIN", "*")]).await;
    let mut raw = Raw::open(&server.address);
    assert_eq!(ask(&mut raw, "GET", "/api/models/a", "").header("access-control-allow-origin"), "");
    let response = ask(&mut raw, "GET", "/api/models/a", "origin: https://example.org\r\n");
    assert_eq!(
        (response.status, response.header("access-control-allow-origin"), response.header("vary")),
        (200, "*", "")
    );
    let operations = ask(&mut raw, "GET", "/metrics", "origin: https://example.org\r\n");
    assert_eq!(operations.header("access-control-allow-origin"), "");
}
