//! Which web pages may connect: the `Origin` of a handshake (RFC 6455 §10.2, RFC 6454 §7).

use std::fmt;

/// The pages whose scripts may open a WebSocket
/// ([`AsyncWebsocketApp::with_allowed_origins`](crate::AsyncWebsocketApp::with_allowed_origins)).
///
/// A browser names, in the header `Origin`, the site whose page opens a connection; nothing else keeps a page of any
/// site from connecting to a server that its visitor can reach, with the visitor's cookies. Clients that send no
/// `Origin` are not browsers and pass: they could as well send any. An app answers pages that may not connect with 403.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Origins};
///
/// let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
///     .with_allowed_origins(Origins::list(["https://example.com"]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origins {
    /// Any page.
    Any,
    /// Pages of the host and port that the client has connected to: those of its `Host` header. `null`, the origin of
    /// files and sandboxed frames, never is.
    ///
    /// A proxy in front must hand on `Host` as it came. This does not stop a page whose own name was made to lead here
    /// (DNS rebinding); a list does.
    Same,
    /// These origins and no others, each as a browser writes it: `https://example.com`, with the port if it is not the
    /// scheme's. `null` stands for files and sandboxed frames.
    List(Vec<String>),
    /// Those that [`Same`](Self::Same) allows, and these.
    SameOrList(Vec<String>),
}

/// An entry of a list that no browser would send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidOrigin(String);

impl fmt::Display for InvalidOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an origin: it must look like https://example.com or http://localhost:8080, without a path",
            self.0
        )
    }
}

impl std::error::Error for InvalidOrigin {}

impl Origins {
    /// A [`List`](Self::List).
    pub fn list<T: Into<String>>(origins: impl IntoIterator<Item = T>) -> Self {
        Self::List(origins.into_iter().map(Into::into).collect())
    }

    /// A [`SameOrList`](Self::SameOrList).
    pub fn same_or_list<T: Into<String>>(origins: impl IntoIterator<Item = T>) -> Self {
        Self::SameOrList(origins.into_iter().map(Into::into).collect())
    }

    /// Whether a client with these headers may connect: for hosts of your own, as a Humphrey app's WebSocket route with
    /// [`websocket_handler`](crate::websocket_handler), which knows no app. An app checks by itself.
    ///
    /// ```
    /// use humphrey_ws::Origins;
    ///
    /// assert!(Origins::Same.allows(Some("http://localhost:8080"), Some("localhost:8080")));
    /// assert!(Origins::Same.allows(Some("https://example.com"), Some("example.com")));
    /// assert!(!Origins::Same.allows(Some("https://example.org"), Some("example.com")));
    /// assert!(!Origins::Same.allows(Some("null"), Some("example.com")));
    /// assert!(Origins::Same.allows(None, Some("example.com")));
    /// ```
    pub fn allows(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        let Some(origin) = origin else {
            return true;
        };
        match self {
            Self::Any => true,
            Self::Same => is_same(origin, host),
            Self::List(list) => is_listed(origin, list),
            Self::SameOrList(list) => is_same(origin, host) || is_listed(origin, list),
        }
    }

    /// Finds what can't be meant in a list.
    pub(crate) fn check(&self) -> Result<(), InvalidOrigin> {
        let list = match self {
            Self::Any | Self::Same => return Ok(()),
            Self::List(list) | Self::SameOrList(list) => list,
        };
        match list
            .iter()
            .find(|entry| *entry != "null" && Origin::parse(entry).is_none())
        {
            Some(entry) => Err(InvalidOrigin(entry.clone())),
            None => Ok(()),
        }
    }
}

fn is_same(origin: &str, host: Option<&str>) -> bool {
    let (Some(origin), Some((host, port))) = (Origin::parse(origin), host.and_then(host_and_port))
    else {
        return false;
    };
    // Whether a proxy has ended TLS in front can't be known here, so a host without a port has the origin's usual one.
    let usual = origin.usual_port();
    usual.is_some()
        && origin.host.eq_ignore_ascii_case(host)
        && origin.port.or(usual) == port.or(usual)
}

fn is_listed(origin: &str, list: &[String]) -> bool {
    match Origin::parse(origin) {
        None => origin == "null" && list.iter().any(|entry| entry == "null"),
        Some(origin) => list
            .iter()
            .filter_map(|entry| Origin::parse(entry))
            .any(|entry| origin.is(&entry)),
    }
}

/// The parts of a serialised origin (RFC 6454 §6.2).
struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    /// `null`, several origins and anything else that names no single site are none.
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let (host, port) = host_and_port(authority)?;
        is_scheme.then_some(Self { scheme, host, port })
    }

    fn usual_port(&self) -> Option<u16> {
        if self.scheme.eq_ignore_ascii_case("http") {
            Some(80)
        } else if self.scheme.eq_ignore_ascii_case("https") {
            Some(443)
        } else {
            None
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.scheme.eq_ignore_ascii_case(other.scheme)
            && self.host.eq_ignore_ascii_case(other.host)
            && self.port.or(self.usual_port()) == other.port.or(other.usual_port())
    }
}

/// `example.com`, `example.com:8080`, `[::1]:8080` (RFC 3986 §3.2). Nothing else: no user, no path, no blank.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(end);
    let is_host = !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/?#@\\\"<>,*".contains(&byte));
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok()?)
        }
        Some(_) => return None,
    };
    is_host.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_host_and_port_is_the_same_origin() {
        for (origin, host) in [
            ("http://localhost:8080", "localhost:8080"),
            ("http://LOCALHOST:8080", "localhost:8080"),
            ("http://example.com", "example.com"),
            ("http://example.com", "example.com:80"),
            ("https://example.com", "example.com"),
            ("https://example.com:443", "example.com"),
            ("https://example.com", "example.com:443"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("http://127.0.0.1", "127.0.0.1"),
        ] {
            assert!(
                Origins::Same.allows(Some(origin), Some(host)),
                "{origin} {host}"
            );
        }
    }

    #[test]
    fn everything_else_is_another_origin() {
        for (origin, host) in [
            ("null", "null"),
            ("null", "localhost:8080"),
            ("", "localhost:8080"),
            ("", ""),
            ("http://", ""),
            ("http://:80", ":80"),
            ("http://localhost:8081", "localhost:8080"),
            ("http://localhost", "localhost:8080"),
            ("https://example.com", "example.com:80"),
            ("http://example.com.evil.example", "example.com"),
            ("http://evil.example", "example.com"),
            ("http://example.com@evil.example", "example.com"),
            ("http://evil.example/example.com", "example.com"),
            (
                "http://example.com http://evil.example",
                "example.com http://evil.example",
            ),
            (
                "http://evil.example, http://example.com",
                "evil.example, http://example.com",
            ),
            ("file://localhost", "localhost"),
            ("chrome-extension://abc", "abc"),
            ("//localhost:8080", "localhost:8080"),
            ("http://localhost:8080x", "localhost:8080x"),
            ("http://localhost:+8080", "localhost:+8080"),
            ("http://localhost:99999", "localhost:99999"),
            ("http://[::1:8080", "[::1:8080"),
            ("http://exam\u{212a}.com", "examk.com"),
        ] {
            assert!(
                !Origins::Same.allows(Some(origin), Some(host)),
                "{origin} {host}"
            );
        }
        assert!(!Origins::Same.allows(Some("http://localhost"), None));
    }

    #[test]
    fn a_list_allows_what_it_names_and_nothing_else() {
        let list = Origins::list(["https://example.com", "http://localhost:3000"]);
        assert!(list.check().is_ok());
        assert!(list.allows(Some("https://example.com"), Some("api.example.com")));
        assert!(list.allows(Some("https://example.com:443"), None));
        assert!(list.allows(Some("http://localhost:3000"), None));
        assert!(list.allows(None, None));
        for origin in [
            "http://example.com",
            "https://example.com:8443",
            "https://sub.example.com",
            "http://localhost:3001",
            "null",
            "",
        ] {
            assert!(!list.allows(Some(origin), Some("example.com")), "{origin}");
        }
        // Not even the server's own pages: that is what keeps rebinding out.
        assert!(!list.allows(Some("http://evil.example"), Some("evil.example")));
        let both = Origins::SameOrList(vec!["https://example.com".into()]);
        assert!(both.allows(Some("http://localhost:8080"), Some("localhost:8080")));
        assert!(both.allows(Some("https://example.com"), Some("localhost:8080")));
        assert!(!both.allows(Some("https://example.org"), Some("localhost:8080")));
    }

    #[test]
    fn null_must_be_named() {
        let list = Origins::list(["null"]);
        assert!(list.check().is_ok());
        assert!(list.allows(Some("null"), None));
        assert!(!list.allows(Some("https://example.com"), None));
    }

    #[test]
    fn an_entry_that_no_browser_sends_is_found_and_named() {
        for entry in [
            "example.com",
            "https://example.com/",
            "https://",
            "*",
            "https://*.example.com/",
            "",
            "https://user@example.com",
        ] {
            let error = Origins::list(["https://example.com", entry])
                .check()
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("{entry:?}")), "{error}");
        }
    }
}
