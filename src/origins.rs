//! Allowed origins: the `Origin` of a handshake (RFC 6455 §10.2, RFC 6454 §7).

use std::fmt;

use crate::authority::{host_and_port, is_same_host};

/// The origins whose pages may open a WebSocket
/// ([`AsyncWebsocketApp::with_allowed_origins`](crate::AsyncWebsocketApp::with_allowed_origins)).
///
/// A browser sends the origin of the page that opens a connection in the header `Origin`. Nothing else keeps a page of
/// any site from connecting, with the visitor's cookies, to a server that the visitor can reach. Clients that send no
/// `Origin` are not browsers and pass, since they could send any value. Pages that may not connect get 403.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Origins};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_allowed_origins(Origins::list(["https://example.com"]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origins {
    /// Allow every origin.
    Any,
    /// Allow the origin whose host and port are those of the request's `Host` header. If the app's own listener has TLS,
    /// the origin's scheme must be `https`; otherwise the scheme is not compared, since a proxy in front may end TLS.
    /// `null`, the origin of files and sandboxed frames, is never allowed.
    ///
    /// A proxy in front must forward `Host` unchanged. This does not prevent DNS rebinding, in which a page's own host
    /// name is made to resolve to this server; a list does, and so do [allowed
    /// hosts](crate::AsyncWebsocketApp::with_allowed_hosts).
    Same,
    /// Allow these origins only, each as a browser sends it: `https://example.com`, with the port if it is not the
    /// scheme's default. `null` stands for files and sandboxed frames. `file://` stands for files in old web views, and
    /// for the WebSocket library of Arduino.
    List(Vec<String>),
    /// Allow the origins that [`Same`](Self::Same) allows, and these.
    SameOrList(Vec<String>),
}

/// A list entry that no browser would send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidOrigin(String);

impl fmt::Display for InvalidOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an origin: it must look like https://example.com or http://localhost:8080, without a path; 'null' \
             and 'file://' are origins, too",
            self.0
        )
    }
}

impl std::error::Error for InvalidOrigin {}

impl Origins {
    /// Creates a [`List`](Self::List).
    pub fn list<T: Into<String>>(origins: impl IntoIterator<Item = T>) -> Self {
        Self::List(origins.into_iter().map(Into::into).collect())
    }

    /// Creates a [`SameOrList`](Self::SameOrList).
    pub fn same_or_list<T: Into<String>>(origins: impl IntoIterator<Item = T>) -> Self {
        Self::SameOrList(origins.into_iter().map(Into::into).collect())
    }

    /// Returns whether a client with these headers may connect. An app checks this itself; call it in a server without
    /// an app, such as a Humphrey app's WebSocket route with [`websocket_handler`](crate::websocket_handler).
    ///
    /// Origins are compared, not strings: a path after the origin, as some clients send it, is ignored.
    ///
    /// ```
    /// use humphrey_ws::Origins;
    ///
    /// assert!(Origins::Same.allows(Some("http://localhost:8080"), Some("localhost:8080")));
    /// assert!(Origins::Same.allows(Some("https://example.com/chat"), Some("example.com")));
    /// assert!(!Origins::Same.allows(Some("https://example.org"), Some("example.com")));
    /// assert!(!Origins::Same.allows(Some("null"), Some("example.com")));
    /// assert!(Origins::Same.allows(None, Some("example.com")));
    /// ```
    pub fn allows(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        origin.is_none_or(|origin| self.allows_page(origin, host, false))
    }

    /// `is_tls`: whether the app itself has received the request over TLS. Its own pages are of `https` then.
    fn allows_page(&self, origin: &str, host: Option<&str>, is_tls: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Same => is_same(origin, host, is_tls),
            Self::List(_) => self.lists(origin),
            Self::SameOrList(_) => is_same(origin, host, is_tls) || self.lists(origin),
        }
    }

    /// Returns whether a request may be answered, by all headers in which browsers identify the page that sent it.
    /// `header` looks up a header of the request by name. An app checks this itself.
    ///
    /// Browsers omit `Origin` for embedded resources (`<img>`, `<iframe>`, `fetch` with `no-cors`), but
    /// `Sec-Fetch-Site` says whether the page is of another site ([Fetch
    /// Metadata](https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header)). Such a request passes only if its
    /// `Referer` names a listed origin.
    ///
    /// ```
    /// use humphrey_ws::{Origins, RequestHead};
    ///
    /// let embedded = RequestHead::new("/events")
    ///     .with_header("Host", "localhost:8080")
    ///     .with_header("Sec-Fetch-Site", "cross-site");
    /// assert!(!Origins::Same.allows_request(|name| embedded.header(name)));
    /// ```
    pub fn allows_request<'a>(&self, header: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.allows_request_over(false, header)
    }

    /// Returns the same for a request that the app itself has received over TLS, if `is_tls`.
    pub(crate) fn allows_request_over<'a>(
        &self,
        is_tls: bool,
        header: impl Fn(&str) -> Option<&'a str>,
    ) -> bool {
        let host = header("Host");
        if let Some(origin) = header("Origin") {
            return self.allows_page(origin, host, is_tls);
        }
        let Some(site) = header("Sec-Fetch-Site") else {
            return true;
        };
        let lists_referer = || header("Referer").is_some_and(|referer| self.lists(referer));
        match (self, site) {
            // "none": the user has entered the address, or opened a bookmark.
            (Self::Any, _) | (_, "none") => true,
            (Self::Same | Self::SameOrList(_), "same-origin") => true,
            // With DNS rebinding, an attacker's page is of the same origin, too.
            (Self::List(_), "same-origin") => {
                let is_listed = |scheme: &str| {
                    host.is_some_and(|host| self.lists(&format!("{scheme}://{host}")))
                };
                is_listed("https") || !is_tls && is_listed("http") || lists_referer()
            }
            _ => lists_referer(),
        }
    }

    /// Returns an error for a list entry that no browser would send.
    pub(crate) fn check(&self) -> Result<(), InvalidOrigin> {
        let is_origin = |entry: &str| listable(entry) == Some(entry);
        match self.listed().iter().find(|entry| !is_origin(entry)) {
            Some(entry) => Err(InvalidOrigin(entry.clone())),
            None => Ok(()),
        }
    }

    fn listed(&self) -> &[String] {
        match self {
            Self::Any | Self::Same => &[],
            Self::List(list) | Self::SameOrList(list) => list,
        }
    }

    /// The hosts of the listed origins, without ports.
    pub(crate) fn listed_hosts(&self) -> impl Iterator<Item = &str> {
        let hosts = self
            .listed()
            .iter()
            .filter_map(|entry| Origin::parse(entry));
        hosts
            .map(|origin| origin.host)
            .filter(|host| !host.is_empty())
    }

    fn lists(&self, origin: &str) -> bool {
        match Origin::parse(origin) {
            None => origin == "null" && self.listed().iter().any(|entry| entry == "null"),
            Some(origin) => self
                .listed()
                .iter()
                .filter_map(|entry| Origin::parse(entry))
                .any(|entry| origin.is(&entry)),
        }
    }
}

/// Returns the origin as it must be listed, without a path; `None` if it is not an origin.
pub(crate) fn listable(origin: &str) -> Option<&str> {
    if origin == "null" {
        return Some(origin);
    }
    Origin::parse(origin)?;
    let (scheme, rest) = origin.split_once("://")?;
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    origin.get(..scheme.len() + "://".len() + authority)
}

fn is_same(origin: &str, host: Option<&str>, is_tls: bool) -> bool {
    let (Some(origin), Some((host, port))) = (Origin::parse(origin), host.and_then(host_and_port))
    else {
        return false;
    };
    // A proxy in front may end TLS, so a host without a port has the default port of the origin's scheme.
    let usual = origin.usual_port();
    let is_scheme = !is_tls || origin.scheme.eq_ignore_ascii_case("https");
    is_scheme
        && usual.is_some()
        && is_same_host(origin.host, host)
        && origin.port.or(usual) == port.or(usual)
}

/// The parts of a serialised origin (RFC 6454 §6.2).
struct Origin<'a> {
    scheme: &'a str,
    /// Empty for files.
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    /// `null`, several origins and anything else that names no single site are none. A path behind it is ignored: some
    /// clients send the URL of their page, or one that they were given.
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        // Of another authority nothing is known: "a, b" or "a b" may be two.
        let is_path = |rest: &str| {
            rest.bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b',')
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if !is_path(path) {
            return None;
        }
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let (host, port) = match authority {
            "" if scheme.eq_ignore_ascii_case("file") => ("", None),
            authority => host_and_port(authority)?,
        };
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
            && is_same_host(self.host, other.host)
            && self.port.or(self.usual_port()) == other.port.or(other.usual_port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_host_and_port_is_the_same_origin() {
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
    fn list_allows_listed_origins_only() {
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
        // Not even the server's own pages, which prevents DNS rebinding.
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
    fn invalid_origin_entry_is_named_in_the_error() {
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

    #[test]
    fn path_after_an_origin_is_ignored() {
        let list = Origins::list(["https://example.com"]);
        for path in ["/", "/chat", "/a/b?c=d", "?q", "#f", "/user@host"] {
            let origin = format!("https://EXAMPLE.com{path}");
            assert!(list.allows(Some(&origin), None), "{origin}");
            let origin = format!("http://localhost:8080{path}");
            let host = Some("localhost:8080");
            assert!(Origins::Same.allows(Some(&origin), host), "{origin}");
        }
        for origin in [
            "https://evil.example/https://example.com",
            "https://evil.example?https://example.com",
            "https://example.com/ https://evil.example",
            "https://example.com/, https://evil.example",
            "https://example.com@evil.example/",
            "https:///example.com",
            "/https://example.com",
        ] {
            assert!(!list.allows(Some(origin), Some("example.com")), "{origin}");
        }
    }

    #[test]
    fn opaque_and_file_origins_are_listed_exactly() {
        let list = Origins::list(["file://"]);
        assert!(list.check().is_ok());
        for origin in [
            "file://",
            "FILE://",
            "file:///",
            "file:///android_asset/index.html",
        ] {
            assert!(list.allows(Some(origin), None), "{origin}");
            assert!(
                !Origins::Same.allows(Some(origin), Some("localhost")),
                "{origin}"
            );
            assert!(
                !Origins::list(["null"]).allows(Some(origin), None),
                "{origin}"
            );
        }
        for origin in [
            "null",
            "",
            "file",
            "file:",
            "http://",
            "https://example.com",
            "file://host",
        ] {
            assert!(!list.allows(Some(origin), None), "{origin}");
        }
        for scheme in ["chrome-extension://abc", "capacitor://localhost", "app://."] {
            let list = Origins::list([scheme]);
            assert!(
                list.check().is_ok() && list.allows(Some(scheme), None),
                "{scheme}"
            );
            assert!(
                !Origins::list(["null"]).allows(Some(scheme), None),
                "{scheme}"
            );
        }
    }

    #[test]
    fn ip_addresses_are_equal_however_they_are_written() {
        let list = Origins::list(["http://[2001:DB8::1]"]);
        assert!(list.allows(Some("http://[2001:db8:0:0:0:0:0:1]:80"), None));
        assert!(!list.allows(Some("http://[2001:db8::2]"), None));
        assert!(Origins::Same.allows(Some("http://[::1]:8080"), Some("[0:0::1]:8080")));
    }

    /// Checks a request without `Origin`.
    fn embedded(origins: &Origins, site: &str, host: &str, referer: Option<&str>) -> bool {
        origins.allows_request(|name| match name {
            "Host" => Some(host),
            "Sec-Fetch-Site" => Some(site),
            "Referer" => referer,
            _ => None,
        })
    }

    #[test]
    fn cross_site_embed_is_refused_unless_listed() {
        let list = Origins::same_or_list(["https://good.example"]);
        let host = "localhost:8080";
        for site in ["cross-site", "same-site", "something-new", ""] {
            assert!(embedded(&Origins::Any, site, host, None), "{site}");
            assert!(!embedded(&Origins::Same, site, host, None), "{site}");
            assert!(!embedded(&list, site, host, None), "{site}");
            let good = Some("https://good.example/page");
            assert!(embedded(&list, site, host, good), "{site}");
            assert!(!embedded(&Origins::Same, site, host, good), "{site}");
            let evil = Some("https://evil.example/https://good.example");
            assert!(!embedded(&list, site, host, evil), "{site}");
        }
        for site in ["same-origin", "none"] {
            assert!(embedded(&Origins::Same, site, host, None), "{site}");
            assert!(embedded(&list, site, host, None), "{site}");
        }
        // A client that sends neither header is not a browser.
        assert!(Origins::Same.allows_request(|_| None));
        // `Origin` takes precedence.
        let from = |origin| {
            list.allows_request(move |name| match name {
                "Origin" => Some(origin),
                "Sec-Fetch-Site" => Some("cross-site"),
                _ => None,
            })
        };
        assert!(from("https://good.example") && !from("https://evil.example"));
    }

    #[test]
    fn list_refuses_rebound_pages_without_origin() {
        let list = Origins::list(["https://example.com"]);
        assert!(embedded(&list, "same-origin", "example.com", None));
        assert!(!embedded(&list, "same-origin", "evil.example", None));
        let referer = Some("https://example.com/page");
        assert!(embedded(&list, "same-origin", "backend:8080", referer));
    }
}
