//! Clients that ask too often, whoever brings their requests; and pages of other origins. Both off unless set.

use crate::support::raw::Raw;
use crate::support::{Response, model_json, start_with_model_a};

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
        let (answered, refusal) = until_refused(|| raw.request("GET", path, headers));
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
        let response = raw.batch("");
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
            assert_eq!(raw.request("GET", "/api/models/a", &named).status, 200, "{named}");
        }
        let last = if headers.is_empty() { 1 } else { 2 };
        let (answered, _) = until_refused(|| {
            let forged = fastrand::u32(..);
            let named = format!("{headers}X-Forwarded-For: {forged}.1.1.1, 198.51.100.{last}\r\n");
            raw.request("GET", "/api/models/a", &named)
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
        raw.request("GET", "/api/models/a", &named)
    });
    assert!((BURST..BURST + 5).contains(&answered), "{answered}");
}
