//! `POST /publish` and `POST /publish/ROOM`, authorised with a bearer token.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use humphrey::SubApp;
use humphrey::http::headers::HeaderType;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{Message, Reject, RequestHead, SendErrorReason};
use subtle::ConstantTimeEq;

use crate::page::with_security_headers;
use crate::room_name::RoomName;
use crate::rooms::Rooms;

/// Longest token, in bytes; detects that the option names the wrong file.
const TOKEN_BYTES_MAX: usize = 4096;

/// The token that authorises publishing.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    /// Validates a token. The error does not contain it.
    pub(crate) fn new(token: &str) -> Result<Self, &'static str> {
        let is_visible = |byte: &u8| byte.is_ascii_graphic();
        match token.len() {
            0 => Err("the token for publishing is empty"),
            n if n > TOKEN_BYTES_MAX => Err("the token for publishing is longer than 4096 bytes"),
            _ if token.as_bytes().iter().all(is_visible) => Ok(Self(token.to_owned())),
            _ => Err("the token for publishing contains spaces or non-ASCII characters"),
        }
    }

    /// Reads the token from a file; surrounding whitespace is ignored.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            let what = format!("--publish-token-file {}: {error}", path.display());
            io::Error::new(error.kind(), what)
        };
        // Bounded, since the path may name an endless device.
        let bytes_max = TOKEN_BYTES_MAX as u64 + 3;
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(bytes_max).read_to_string(&mut text))
            .map_err(named)?;
        Self::new(text.trim())
            .map_err(|error| named(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Whether an `Authorization` header carries the token (RFC 6750 §2.1). The comparison takes constant time for
    /// tokens of the same length.
    fn matches_header(&self, authorization: &str) -> bool {
        let Some((scheme, token)) = authorization.split_once(' ') else {
            return false;
        };
        let is_same = token.trim().as_bytes().ct_eq(self.0.as_bytes());
        scheme.eq_ignore_ascii_case("Bearer") && bool::from(is_same)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Routes `/publish` and `/publish/ROOM`.
pub(crate) fn routes(rooms: Rooms, token: Token) -> SubApp<()> {
    let to_everyone = (rooms.clone(), token.clone());
    SubApp::new()
        .with_stateless_route("/publish", move |request: Request| {
            let (rooms, token) = &to_everyone;
            publish(&request, RoomName::EVERYONE_PATH, rooms, token)
        })
        .with_stateless_route("/publish/*", move |request: Request| {
            let path = request.uri.strip_prefix("/publish");
            publish(&request, path.unwrap_or_default(), &rooms, &token)
        })
}

/// Rejects unauthorised requests before their body is read. Requests without a body are checked by the routes.
pub(crate) fn guard(request: &RequestHead, token: &Token) -> Result<(), Reject> {
    let path = request.path();
    match path == "/publish" || path.starts_with("/publish/") {
        true => authorize(request.header("Authorization"), token),
        false => Ok(()),
    }
}

/// Checks an `Authorization` header.
fn authorize(authorization: Option<&str>, token: &Token) -> Result<(), Reject> {
    if !authorization.is_some_and(|value| token.matches_header(value)) {
        let challenge = match authorization {
            Some(_) => "Bearer realm=\"publish\", error=\"invalid_token\"",
            None => "Bearer realm=\"publish\"",
        };
        let why = "publishing needs the header 'Authorization: Bearer TOKEN' with the token of --publish-token or --publish-token-file";
        return Err(reject(401, why).with_header("WWW-Authenticate", challenge));
    }
    Ok(())
}

fn reject(status: u16, why: &str) -> Reject {
    Reject::new(status)
        .with_body(format!("{why}\n"))
        .with_header("Content-Type", "text/plain; charset=utf-8")
        .with_header("Cache-Control", "no-store")
}

fn publish(request: &Request, path: &str, rooms: &Rooms, token: &Token) -> Response {
    let authorization = request.headers.get(HeaderType::Authorization);
    if let Err(reject) = authorize(authorization, token) {
        return reject_response(&reject);
    }
    let room = match RoomName::from_path(path) {
        Ok(room) => room,
        Err(error) => return error_response(StatusCode::BadRequest, &error.to_string()),
    };
    let body = request.content.as_deref().unwrap_or_default();
    let message = if is_binary(request) {
        Message::new_binary(body)
    } else if std::str::from_utf8(body).is_ok() {
        Message::new(body)
    } else {
        let why = "the body is not UTF-8: send it with Content-Type: application/octet-stream";
        return error_response(StatusCode::BadRequest, why);
    };
    let members = rooms.members(&room);
    if let Err(reason) = rooms.channel(&room).publish_confirmed(message) {
        return not_published(reason);
    }
    let json = format!(
        "{{\"members\": {}{}}}\n",
        members.count,
        members.nodes_json()
    );
    with_security_headers(Response::new(StatusCode::OK, json))
        .with_header("Content-Type", "application/json")
        .with_header("Cache-Control", "no-store")
}

/// The response if a room did not keep a message.
fn not_published(reason: SendErrorReason) -> Response {
    let why = match reason {
        SendErrorReason::Rooms => {
            "the server has as many occupied rooms as --max-rooms allows, so this room cannot keep the message: retry later, or raise --max-rooms"
        }
        SendErrorReason::TooLarge => {
            let why = "the message is longer than a message between the nodes of a cluster may be";
            return error_response(StatusCode::RequestEntityTooLarge, why);
        }
        #[cfg(feature = "cluster")]
        SendErrorReason::Broker => {
            "the broker of the cluster can't be reached, so it is not known whether the message was kept: retry later"
        }
        _ => "the server is stopping: retry later",
    };
    error_response(StatusCode::ServiceUnavailable, why).with_header("Retry-After", "5")
}

/// Converts a rejection into the response of a route.
fn reject_response(reject: &Reject) -> Response {
    let status = StatusCode::try_from(reject.status()).unwrap_or(StatusCode::BadRequest);
    let response = with_security_headers(Response::new(status, reject.body()));
    let mut headers = reject.headers();
    headers.by_ref().fold(response, |response, (name, value)| {
        response.with_header(name, value)
    })
}

fn is_binary(request: &Request) -> bool {
    let content_type = request.headers.get(HeaderType::ContentType);
    let media_type = content_type.and_then(|value| value.split(';').next());
    media_type.is_some_and(|media_type| {
        media_type
            .trim()
            .eq_ignore_ascii_case("application/octet-stream")
    })
}

fn error_response(status: StatusCode, why: &str) -> Response {
    with_security_headers(Response::new(status, format!("{why}\n")))
        .with_header("Content-Type", "text/plain; charset=utf-8")
        .with_header("Cache-Control", "no-store")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_must_be_visible_ascii_and_is_never_printed() {
        let token = Token::new("s3cret-._~+/=").unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        for bad in ["", "two words", "Zürich", "line\n", &"x".repeat(4097)] {
            let error = Token::new(bad).unwrap_err();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn authorization_requires_the_whole_bearer_token() {
        let token = Token::new("s3cret").unwrap();
        for good in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret "] {
            assert!(token.matches_header(good), "{good}");
        }
        for bad in [
            "",
            "s3cret",
            "Bearer",
            "Bearer ",
            "Bearer s3cre",
            "Bearer s3crets",
            "Bearer S3CRET",
            "Basic s3cret",
            "Bearer s3cret s3cret",
        ] {
            assert!(!token.matches_header(bad), "{bad}");
        }
    }
}
