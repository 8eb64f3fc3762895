//! Cross-origin requests, which are refused unless `CATALOG_CORS_ALLOW_ORIGIN` allows them.

use crate::support::raw::Raw;
use crate::support::{model_json, start_with_model_a};

#[tokio::test]
async fn cors_is_disabled_by_default() {
    let (_db, server) = start_with_model_a(&[]).await;
    let mut raw = Raw::open(&server.address);
    let response = raw.request("GET", "/api/models/a", "origin: https://example.org\r\n");
    assert_eq!(
        (response.status, response.header("access-control-allow-origin"), response.header("vary")),
        (200, "", "")
    );
    let preflight = "origin: https://example.org\r\naccess-control-request-method: GET\r\n";
    assert_eq!(raw.request("OPTIONS", "/api/models/a", preflight).status, 405);
}

#[tokio::test]
async fn only_configured_origins_are_allowed() {
    let settings = [("CATALOG_CORS_ALLOW_ORIGIN", "https://example.org, http://localhost:8080")];
    let (_db, server) = start_with_model_a(&settings).await;
    let mut raw = Raw::open(&server.address);
    for (origin, allowed) in [
        ("https://example.org", true),
        ("http://localhost:8080", true),
        ("http://example.org", false),
        ("https://example.org.evil.example", false),
        ("null", false),
        ("*", false),
    ] {
        let header = format!("Origin: {origin}\r\n");
        let responses = [
            raw.request("GET", "/api/models/a", &header),
            raw.request("GET", "/api/models/absent", &header),
            raw.request("GET", "/api/catalog", &header),
            raw.request("GET", "/api/models", &header),
            raw.batch(&header),
        ];
        for response in responses {
            let (origin, exposed) = if allowed { (origin, "etag, catalog-revision, retry-after") } else { ("", "") };
            assert_eq!(response.header("access-control-allow-origin"), origin, "{response:?}");
            assert_eq!(response.header("access-control-expose-headers"), exposed, "{response:?}");
            assert_eq!(response.header("vary"), "Origin", "{response:?}");
        }
        let preflight_headers = format!("{header}access-control-request-method: POST\r\n");
        raw.send(&format!("OPTIONS /api/models/batch HTTP/1.1\r\nhost: x\r\n{preflight_headers}\r\n"));
        let preflight = raw.head();
        assert_eq!(preflight.status, 204);
        assert_eq!(preflight.header("access-control-allow-origin"), if allowed { origin } else { "" });
        assert_eq!(preflight.header("access-control-allow-methods"), "GET, HEAD, POST");
        assert_eq!(preflight.header("access-control-allow-headers"), "content-type, if-none-match");
    }
    let snapshot = format!("{:?}", raw.request("GET", "/api/snapshot", "accept-encoding: gzip\r\n")).to_lowercase();
    assert!(
        snapshot.contains("origin") && snapshot.contains("\"accept-encoding\""),
        "{}",
        snapshot.chars().take(600).collect::<String>()
    );
    // Responses to requests without an origin vary, too, or a shared cache would mix them up.
    for headers in ["", "te: trailers\r\n"] {
        let response = Raw::open(&server.address).request("GET", "/api/models/a", headers);
        assert_eq!((response.header("vary"), response.text()), ("Origin", model_json("a")));
        assert_eq!(response.header("access-control-allow-origin"), "");
    }
}

#[tokio::test]
async fn wildcard_allows_every_origin() {
    let (_db, server) = start_with_model_a(&[("CATALOG_CORS_ALLOW_ORIGIN", "*")]).await;
    let mut raw = Raw::open(&server.address);
    assert_eq!(raw.request("GET", "/api/models/a", "").header("access-control-allow-origin"), "");
    let response = raw.request("GET", "/api/models/a", "origin: https://example.org\r\n");
    assert_eq!(
        (response.status, response.header("access-control-allow-origin"), response.header("vary")),
        (200, "*", "")
    );
    let metrics = raw.request("GET", "/metrics", "origin: https://example.org\r\n");
    assert_eq!(metrics.header("access-control-allow-origin"), "");
}
