//! The responses of the server's routes: their headers, and explanations and data that are not cached.

use humphrey::http::{Response, StatusCode};

/// Adds headers that forbid MIME sniffing, framing and embedding in other sites.
pub(crate) fn with_security_headers(response: Response) -> Response {
    response
        .with_header("X-Content-Type-Options", "nosniff")
        .with_header("Cross-Origin-Resource-Policy", "same-origin")
        .with_header("Content-Security-Policy", "frame-ancestors 'none'")
}

/// A response with security headers that is not cached.
pub(crate) fn uncached(status: StatusCode, content: String, media_type: &str) -> Response {
    with_security_headers(Response::new(status, content))
        .with_header("Content-Type", media_type)
        .with_header("Cache-Control", "no-store")
}

/// An explanation for people.
pub(crate) fn text_response(status: StatusCode, text: &str) -> Response {
    uncached(status, format!("{text}\n"), "text/plain; charset=utf-8")
}

/// Data for programs.
pub(crate) fn json_response(json: String) -> Response {
    uncached(StatusCode::OK, json, "application/json")
}
