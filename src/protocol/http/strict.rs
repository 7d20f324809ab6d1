//! Checks of request heads that httparse does not make: line ends, targets and repeated headers that a proxy and this server
//! may interpret differently (RFC 9112 §2.2, §3.2, §11.2).

use super::super::percent::{Octet, Octets};
use super::{Head, HttpError, is_authority};

/// Headers that a request may contain only once, with the message if there is a second one. None of them is a list
/// (RFC 9110 §5.3), so a second one was probably injected, and a proxy and this server may use different ones.
///
/// [`Head`] checks `Host` and the body's framing separately, and `handshake` checks the WebSocket key and version. `Cookie`
/// may be repeated because HTTP/2 proxies split it (RFC 9113 §8.2.3).
const SINGLETONS: [(&str, &str); 12] = [
    // Credentials (RFC 9110 §11.6.2, §11.7.2): a proxy and this server must use the same ones.
    (
        "Authorization",
        "there is more than one Authorization header",
    ),
    (
        "Proxy-Authorization",
        "there is more than one Proxy-Authorization header",
    ),
    // The origin of the request (RFC 6454 §7.3; Fetch Metadata §2), on which access decisions depend.
    ("Origin", "there is more than one Origin header"),
    ("Referer", "there is more than one Referer header"),
    (
        "Sec-Fetch-Site",
        "there is more than one Sec-Fetch-Site header",
    ),
    (
        "Sec-Fetch-Mode",
        "there is more than one Sec-Fetch-Mode header",
    ),
    (
        "Sec-Fetch-Dest",
        "there is more than one Sec-Fetch-Dest header",
    ),
    // The type of the body (RFC 9110 §8.3): a proxy must not check a different type than the handler uses.
    ("Content-Type", "there is more than one Content-Type header"),
    // The position from which a replay begins (WHATWG HTML §9.2.4).
    (
        "Last-Event-ID",
        "there is more than one Last-Event-ID header",
    ),
    // Ranges and conditions (RFC 9110 §13.1, §14.2), for routes that support them.
    ("Range", "there is more than one Range header"),
    (
        "If-Modified-Since",
        "there is more than one If-Modified-Since header",
    ),
    (
        "If-Unmodified-Since",
        "there is more than one If-Unmodified-Since header",
    ),
];

/// Whether a complete or partial head has a line that does not end in CR LF. Some recipients accept a bare LF as a line end
/// (RFC 9112 §2.2) and some do not, so one header for a proxy could be two here.
pub(super) fn has_bare_line_end(head: &[u8]) -> bool {
    let mut before = 0;
    head.iter().any(|&byte| {
        let is_bare = (byte == b'\n') != (before == b'\r');
        before = byte;
        is_bare
    })
}

impl Head {
    /// Checks that none of the [`SINGLETONS`] is repeated.
    pub(super) fn check_singletons(&self) -> Result<(), HttpError> {
        for (name, refusal) in SINGLETONS {
            if self.header_values(name).nth(1).is_some() {
                return Err(HttpError::BadRequest(refusal));
            }
        }
        Ok(())
    }

    /// Checks the request target and stores it (RFC 9112 §3.2): the origin form as it is, the absolute form reduced to the
    /// origin form, `*` for OPTIONS only, and the authority form for CONNECT only.
    pub(super) fn set_target(&mut self, target: &str) -> Result<(), HttpError> {
        if self.method == "CONNECT" {
            let port = target.rsplit_once(':').map_or("", |(_, port)| port);
            let has_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            if !has_port || !is_authority(target) {
                return Err(HttpError::BadRequest(
                    "the target of CONNECT is a host with its port",
                ));
            }
            target.clone_into(&mut self.target);
            return Ok(());
        }
        if target.starts_with('/') || (target == "*" && self.method == "OPTIONS") {
            check_path_and_query(target)?;
            target.clone_into(&mut self.target);
            return Ok(());
        }
        let absolute = target.split_once("://").filter(|(scheme, _)| {
            ["http", "https", "ws", "wss"]
                .iter()
                .any(|known| known.eq_ignore_ascii_case(scheme))
        });
        let Some((_, rest)) = absolute else {
            return Err(HttpError::BadRequest("the request target is not a path"));
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.is_empty() || !is_authority(authority) {
            return Err(HttpError::BadRequest(
                "the request target does not name a host",
            ));
        }
        check_path_and_query(path)?;
        self.set_host(authority);
        // RFC 9112 §3.2.4: OPTIONS without a path addresses the whole server. §3.2.1: otherwise an empty path is "/".
        self.target = match path {
            "" if self.method == "OPTIONS" => "*".to_owned(),
            _ if path.starts_with('/') => path.to_owned(),
            _ => format!("/{path}"),
        };
        Ok(())
    }

    /// Replaces the `Host` header with the target's host, which takes precedence (RFC 9112 §3.2.2).
    fn set_host(&mut self, authority: &str) {
        let mut hosts = self.headers.iter_mut();
        match hosts.find(|(name, _)| name.eq_ignore_ascii_case("Host")) {
            Some((_, value)) => authority.clone_into(value),
            // HTTP/1.0 requests may have no `Host`.
            None => self.headers.push(("Host".to_owned(), authority.to_owned())),
        }
    }
}

/// Checks a path and query against RFC 3986 §3.3 and §3.4, plus the characters that browsers leave unencoded (WHATWG URL
/// §1.3). Rejects a fragment, which clients must not send (RFC 9112 §3.2).
fn check_path_and_query(target: &str) -> Result<(), HttpError> {
    if target.contains('#') {
        return Err(HttpError::BadRequest(
            "the request target has a fragment ('#'), which clients must not send",
        ));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let may_stand = |byte: u8, others: &[u8]| {
        byte.is_ascii_alphanumeric()
            || b"-._~!$&'()*+,;=:@/?%[]^|".contains(&byte)
            || others.contains(&byte)
    };
    if !path.bytes().all(|byte| may_stand(byte, b""))
        || !query.bytes().all(|byte| may_stand(byte, b"{}`\\"))
    {
        return Err(HttpError::BadRequest(
            "the request target has a character that must be percent-encoded",
        ));
    }
    check_segments(path)
}

/// Rejects paths with a `.` or `..` segment in any encoding, or with a NUL. Clients resolve such segments before they send
/// (RFC 3986 §5.2.4), so the remaining ones are an attempt at path traversal.
///
/// An encoded `/` or `\` also separates segments, because a handler that decodes the path would treat it as a separator.
/// Otherwise paths may contain them.
fn check_segments(path: &str) -> Result<(), HttpError> {
    let mut decoded = Octets::new(path);
    let mut dots = Some(0);
    loop {
        let byte = decoded.next().map(Octet::lenient);
        dots = match (byte, dots) {
            (Some(0), _) => {
                return Err(HttpError::BadRequest("the path has a NUL in it"));
            }
            (None | Some(b'/' | b'\\'), Some(1 | 2)) => {
                return Err(HttpError::BadRequest(
                    "the path has a segment '.' or '..', which clients resolve before they send",
                ));
            }
            (None, _) => return Ok(()),
            (Some(b'/' | b'\\'), _) => Some(0),
            (Some(b'.'), Some(dots)) => Some(dots + 1),
            (Some(_), _) => None,
        };
    }
}
