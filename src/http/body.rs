//! The body of a request: all of it, within the limit of one request and the memory budget of all.

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::Body;

use super::memory_budget::Reservation;
use super::response::{self, Response};

/// The whole body, if it stays within the limit; nothing beyond the limit is read. A body of one frame is a part of the
/// connection's own buffer, so it is neither copied nor counted.
///
/// # Errors
/// The response that says what is wrong.
pub(crate) async fn read<B>(body: &mut B, limit: usize, reservation: &mut Reservation) -> Result<Bytes, Response>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let message = format!("the body is larger than the limit of {limit} bytes: split the request");
        response::error(StatusCode::PAYLOAD_TOO_LARGE, &message)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut body = Limited::new(body, limit);
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return too_large();
            }
            response::error(StatusCode::BAD_REQUEST, "the request body ended early")
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
        if !reservation.try_resize(whole.capacity()) {
            return Err(response::out_of_memory());
        }
    }
    Ok(whole.into())
}
