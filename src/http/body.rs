//! The body of a request: all of it, within the limits of one request and of all together.

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::Body;
use hyper::header::{HeaderValue, RETRY_AFTER};

use super::answer::{self, Answer};
use super::memory::Share;

/// The whole body, if it stays within the limit; nothing more than the limit is ever read.
///
/// # Errors
/// The answer that says what is wrong.
pub async fn read<B>(body: B, limit: usize, share: &mut Share) -> Result<Vec<u8>, Answer>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let message = format!("the body is larger than the limit of {limit} bytes: ask in several batches");
        answer::error(StatusCode::PAYLOAD_TOO_LARGE, &message)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let (mut body, mut whole) = (std::pin::pin!(Limited::new(body, limit)), Vec::new());
    while let Some(frame) = body.frame().await {
        let Some(data) = frame.map(|frame| frame.into_data().ok()).map_err(|error| {
            let broken = || answer::error(StatusCode::BAD_REQUEST, "the body broke off");
            if error.is::<LengthLimitError>() { too_large() } else { broken() }
        })?
        else {
            continue;
        };
        whole.extend_from_slice(&data);
        if !share.hold(whole.capacity()) {
            return Err(no_memory());
        }
    }
    Ok(whole)
}

/// 503: large requests and answers of all clients take what they may.
pub fn no_memory() -> Answer {
    let message = "too many large requests at once: try again in a second";
    let mut answer = answer::error(StatusCode::SERVICE_UNAVAILABLE, message);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}
