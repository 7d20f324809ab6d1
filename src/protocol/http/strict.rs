//! What a request head must not have, although parsers let it pass: line ends, targets and repeated headers that two servers
//! in a row may read differently (RFC 9112 §2.2, §3.2, §11.2).

use super::super::percent::{Octet, Octets};
use super::{Head, HttpError, is_authority};

/// Headers that may stand in a request once only, and what a second one would be used for. None of them is a list
/// (RFC 9110 §5.3), so two of them mean that one was added on the way, and each reader may use another one.
///
/// `Host` and the body's framing have checks of their own in [`Head`]; the key and the version of a WebSocket have theirs in
/// `handshake`, with a refusal of their own. `Cookie` may be repeated: proxies from HTTP/2 split it (RFC 9113 §8.2.3).
const SINGLETONS: [(&str, &str); 12] = [
    // Credentials (RFC 9110 §11.6.2, §11.7.2): which of them counts must not depend on who reads.
    (
        "Authorization",
        "there is more than one Authorization header",
    ),
    (
        "Proxy-Authorization",
        "there is more than one Proxy-Authorization header",
    ),
    // Who asks (RFC 6454 §7.3; Fetch Metadata §2): what access is decided by.
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
    // What the body is (RFC 9110 §8.3): a proxy may check another type than the one that is used.
    ("Content-Type", "there is more than one Content-Type header"),
    // Where a replay begins (WHATWG HTML §9.2.4).
    (
        "Last-Event-ID",
        "there is more than one Last-Event-ID header",
    ),
    // Parts and conditions (RFC 9110 §13.1, §14.2), for routes that know them.
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

/// The head, or its beginning, has a line that does not end in CR LF. A recipient may take a bare LF for a line end
/// (RFC 9112 §2.2), and not all do: what is one header to a proxy could be two here.
pub(super) fn has_bare_line_end(head: &[u8]) -> bool {
    let mut before = 0;
    head.iter().any(|&byte| {
        let is_bare = (byte == b'\n') != (before == b'\r');
        before = byte;
        is_bare
    })
}

impl Head {
    /// No header is repeated that says one thing only.
    pub(super) fn check_singletons(&self) -> Result<(), HttpError> {
        for (name, refusal) in SINGLETONS {
            if self.header_values(name).nth(1).is_some() {
                return Err(HttpError::BadRequest(refusal));
            }
        }
        Ok(())
    }

    /// RFC 9112 §3.2: origin form as it is, absolute form reduced to it, `*` for OPTIONS only, and the authority form for
    /// CONNECT only.
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
        // RFC 9112 §3.2.4: OPTIONS without a path is for the server as a whole; §3.2.1: else an empty path is "/".
        self.target = match path {
            "" if self.method == "OPTIONS" => "*".to_owned(),
            _ if path.starts_with('/') => path.to_owned(),
            _ => format!("/{path}"),
        };
        Ok(())
    }

    /// RFC 9112 §3.2.2: the host of the target counts, that of the header is to be ignored.
    fn set_host(&mut self, authority: &str) {
        let mut hosts = self.headers.iter_mut();
        match hosts.find(|(name, _)| name.eq_ignore_ascii_case("Host")) {
            Some((_, value)) => authority.clone_into(value),
            // HTTP/1.0 may do without.
            None => self.headers.push(("Host".to_owned(), authority.to_owned())),
        }
    }
}

/// A path with its query, as RFC 3986 §3.3 and §3.4 allow them, and beyond that what browsers leave unencoded (WHATWG URL
/// §1.3). No fragment: it is never sent (RFC 9112 §3.2).
fn check_path_and_query(target: &str) -> Result<(), HttpError> {
    if target.contains('#') {
        return Err(HttpError::BadRequest(
            "the request target has a fragment ('#'), which clients keep to themselves",
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

/// No segment of the path is `.` or `..`, however it is encoded, and no NUL is in it. Clients resolve such segments before
/// they send (RFC 3986 §5.2.4); what is left of them is meant for a handler that opens files.
///
/// An encoded `/` or `\` separates segments here, since a handler that decodes the path would take it for a separator. Alone
/// they may stand in a path.
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
