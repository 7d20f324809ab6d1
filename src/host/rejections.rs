//! Rejections as responses of mounted routes. Humphrey's `StatusCode` lacks some statuses, such as 429.
//!
//! The status is in a header of the `Response`, which the route removes.

use humphrey::http::{Response, StatusCode};

use crate::request::Reject;

/// The header for a status that Humphrey lacks.
pub(super) const STATUS_HEADER: &str = "X-Humphrey-Ws-Status";

/// Converts a rejection into the response of a handler of a [mounted route](crate::AsyncWebsocketApp::with_routes), with any
/// status. In a Humphrey app, a status that Humphrey's `StatusCode` lacks becomes 400 or, from 500 on, 500.
///
/// ```
/// use humphrey::SubApp;
/// use humphrey::http::{Request, Response};
/// use humphrey_ws::{AsyncWebsocketApp, Reject};
///
/// fn handler(_: Request) -> Response {
///     Reject::new(429).with_header("Retry-After", "60").with_body("too many requests\n").into()
/// }
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_routes(SubApp::new().with_stateless_route("/search", handler));
/// ```
impl From<Reject> for Response {
    fn from(reject: Reject) -> Self {
        let reject = reject.checked();
        let response = match StatusCode::try_from(reject.status()) {
            Ok(status) => Self::new(status, reject.body()),
            Err(_) => {
                let status = match reject.status() {
                    ..500 => StatusCode::BadRequest,
                    500.. => StatusCode::InternalError,
                };
                Self::new(status, reject.body())
                    .with_header(STATUS_HEADER, reject.status().to_string())
            }
        };
        let headers = reject.all_headers().into_iter();
        headers.fold(response, |response, (name, value)| {
            response.with_header(name, value)
        })
    }
}
