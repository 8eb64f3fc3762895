//! The id in a path: invalid percent-encoding or UTF-8 returns 400; otherwise the id is exactly the decoded segment.
#![no_main]

mod catalog;

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Uri};
use libfuzzer_sys::fuzz_target;
use model_catalog::http::Handler;
use serde_json::Value;

static HANDLER: LazyLock<Arc<Handler>> = LazyLock::new(catalog::handler);

fuzz_target!(|segment: &[u8]| {
    let Ok(uri) = Uri::try_from([b"/api/models/", segment].concat()) else { return };
    let path = uri.path().to_owned();
    let request = Request::builder().uri(uri).body(Full::<Bytes>::default()).expect("a request");
    let response = HANDLER.handle(request, None, std::time::Instant::now()).now_or_never().expect("nothing to wait for").response;
    let status = response.status().as_u16();
    let body = response.into_body().collect().now_or_never().expect("it is there").expect("whole").to_bytes();
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let segment = path.strip_prefix("/api/models/").unwrap_or_default();
    if segment.is_empty() || segment.contains('/') {
        assert_eq!(status, 404, "{path}");
        return;
    }
    let hex = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let well_formed = segment.split('%').skip(1).all(|rest| rest.get(..2).is_some_and(hex));
    let decoded = percent_encoding::percent_decode_str(segment).decode_utf8();
    match (status, decoded) {
        (200, Ok(id)) if well_formed => assert_eq!(body["id"], *id),
        (404, Ok(id)) if well_formed => assert_eq!(body["model_id"], *id),
        (400, decoded) => assert!(!well_formed || decoded.is_err(), "{path}"),
        (status, decoded) => panic!("{path} is {decoded:?} and got {status}: {body}"),
    }
});
