//! The `ws://` or `wss://` URL of a server (RFC 6455 §3, RFC 3986).

use std::error::Error;
use std::fmt::{self, Write};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::protocol::percent;

/// A `ws://` or `wss://` URL, which consists of a server and a request target (RFC 6455 §3).
///
/// `wss://` (TLS) needs the feature `client-tls` or `client-tls-aws-lc`. `http://` and `https://` URLs are accepted, and treated
/// as `ws://` and `wss://`. Characters that are not allowed in a request are percent-encoded, and
/// existing percent-encoding is kept. An IPv6 address may have a zone, written `%25eth0` (RFC 6874) or `%eth0`. The zone is
/// used to connect and is never sent. The default port is 80, or with TLS 443.
///
/// ```
/// use humphrey_ws::websocket_client::ServerUrl;
///
/// let url: ServerUrl = "ws://[fe80::1%25eth0]:8080/Grüezi mit?a=b".parse()?;
/// assert_eq!(url.host_header(), "[fe80::1]:8080");
/// assert_eq!(url.request_target(), "/Gr%C3%BCezi%20mit?a=b");
/// # Ok::<(), humphrey_ws::websocket_client::InvalidUrl>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: Scheme,
    host: Host,
    port: u16,
    path: String,
    query: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Ws,
    /// Never parsed without the feature `client-tls` or `client-tls-aws-lc`.
    Wss,
}

impl Scheme {
    const fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// RFC 6455 §3.
    const fn default_port(self) -> u16 {
        match self {
            Self::Ws => 80,
            Self::Wss => 443,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Name(String),
    V4(Ipv4Addr),
    V6(Ipv6Addr, Option<String>),
}

/// The reason why a text is not the URL of a server that the client can connect to.
///
/// ```
/// use humphrey_ws::websocket_client::{InvalidUrl, ServerUrl};
///
/// assert_eq!("localhost".parse::<ServerUrl>(), Err(InvalidUrl::Scheme));
/// assert_eq!("ws://localhost:0/".parse::<ServerUrl>(), Err(InvalidUrl::Port));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidUrl {
    /// The URL does not begin with `ws://`, `wss://`, `http://` or `https://`.
    Scheme,
    /// The URL begins with `wss://` or `https://`, and the library was built without the features `client-tls` and
    /// `client-tls-aws-lc`.
    Tls,
    /// The URL has a user name or a password, which RFC 6455 §3 does not allow.
    UserInfo,
    /// The URL has a fragment, which RFC 6455 §3 forbids.
    Fragment,
    /// The URL contains a control character.
    Control,
    /// The URL has no host, or the host is neither a name nor an address. With `wss://`, the name has to be one that a
    /// certificate can contain.
    Host,
    /// The host name is not ASCII.
    HostNotAscii,
    /// The address in brackets is not an IPv6 address.
    Address,
    /// The zone of the address is empty or malformed.
    Zone,
    /// The port is not a number from 1 to 65535.
    Port,
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme => "the URL must begin with ws:// or wss://",
            Self::Tls => {
                "wss:// needs TLS, which this build lacks: enable the feature 'client-tls' of humphrey_ws"
            }
            Self::UserInfo => {
                "a WebSocket URL can't contain a user name or password: send the header 'Authorization' instead"
            }
            Self::Fragment => {
                "a WebSocket URL can't contain '#': write %23 if it belongs to the path"
            }
            Self::Control => "the URL contains a control character, such as a line break",
            Self::Host => "the URL has no valid host",
            Self::HostNotAscii => {
                "the host name is not ASCII: write it in Punycode, which begins with xn--"
            }
            Self::Address => "the text in brackets is not an IPv6 address",
            Self::Zone => "the zone of the IPv6 address is malformed: write it like %25eth0",
            Self::Port => "the port is not a number from 1 to 65535",
        })
    }
}

impl Error for InvalidUrl {}

impl FromStr for ServerUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidUrl::Scheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => Scheme::Ws,
            "wss" | "https" if cfg!(feature = "__client-tls") => Scheme::Wss,
            "wss" | "https" => return Err(InvalidUrl::Tls),
            _ => return Err(InvalidUrl::Scheme),
        };
        if rest.contains('#') {
            return Err(InvalidUrl::Fragment);
        }
        if rest.contains(char::is_control) {
            return Err(InvalidUrl::Control);
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(InvalidUrl::UserInfo);
        }
        let (host, port) = split_port(authority)?;
        let (path, query) = split_target(target);
        let host: Host = host.parse()?;
        #[cfg(feature = "__client-tls")]
        if scheme == Scheme::Wss {
            host.tls_name()?;
        }
        Ok(Self {
            scheme,
            host,
            port: port_of(port, scheme)?,
            path,
            query,
        })
    }
}

/// Splits an authority into the host and the text after the port's colon, which is empty if there is no port.
fn split_port(authority: &str) -> Result<(&str, &str), InvalidUrl> {
    if authority.starts_with('[') {
        let (_, after) = authority.split_once(']').ok_or(InvalidUrl::Address)?;
        let host = &authority[..authority.len() - after.len()];
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if after.is_empty() => Ok((host, "")),
            None => Err(InvalidUrl::Host),
        };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(InvalidUrl::Host),
        Some((host, port)) => Ok((host, port)),
        None => Ok((authority, "")),
    }
}

fn port_of(text: &str, scheme: Scheme) -> Result<u16, InvalidUrl> {
    if text.is_empty() {
        return Ok(scheme.default_port());
    }
    // `parse` would accept a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidUrl::Port);
    }
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(InvalidUrl::Port),
    }
}

/// Splits a request target into path and query, and percent-encodes both.
fn split_target(target: &str) -> (String, Option<String>) {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(encode(query, Component::Query))),
        None => (target, None),
    };
    // RFC 6455 §3: an empty path is "/".
    let slash = if path.starts_with('/') { "" } else { "/" };
    (format!("{slash}{}", encode(path, Component::Path)), query)
}

impl FromStr for Host {
    type Err = InvalidUrl;

    fn from_str(host: &str) -> Result<Self, InvalidUrl> {
        if let Some(address) = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            let (address, zone) = match address.split_once('%') {
                None => (address, None),
                // RFC 6874 encodes the percent sign, but addresses copied from system tools have it unencoded.
                Some((address, zone)) => {
                    let zone = zone.strip_prefix("25").unwrap_or(zone);
                    (address, Some(decode_zone(zone)?))
                }
            };
            let address = address.parse().map_err(|_| InvalidUrl::Address)?;
            return Ok(Self::V6(address, zone));
        }
        if let Ok(address) = host.parse() {
            return Ok(Self::V4(address));
        }
        if !host.is_ascii() {
            return Err(InvalidUrl::HostNotAscii);
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_name) {
            return Err(InvalidUrl::Host);
        }
        Ok(Self::Name(host.to_owned()))
    }
}

/// Decodes a zone into the system's name for it (RFC 6874 §2: unreserved characters, or percent-encoded).
fn decode_zone(zone: &str) -> Result<String, InvalidUrl> {
    let decoded = percent::decode(zone).ok_or(InvalidUrl::Zone)?;
    let is_legal = |byte: u8| byte.is_ascii_graphic() && !b"%[]/".contains(&byte);
    if decoded.is_empty() || !decoded.bytes().all(is_legal) {
        return Err(InvalidUrl::Zone);
    }
    Ok(decoded)
}

#[cfg(feature = "__client-tls")]
impl Host {
    /// Returns the name or address that the server's certificate has to contain, without a zone.
    fn tls_name(&self) -> Result<rustls::pki_types::ServerName<'static>, InvalidUrl> {
        match self {
            Self::Name(name) => name.clone().try_into().map_err(|_| InvalidUrl::Host),
            Self::V4(address) => Ok(IpAddr::V4(*address).into()),
            Self::V6(address, _) => Ok(IpAddr::V6(*address).into()),
        }
    }
}

impl ServerUrl {
    /// Returns whether the URL begins with `wss://` or `https://`, so that the connection needs TLS.
    pub const fn is_tls(&self) -> bool {
        matches!(self.scheme, Scheme::Wss)
    }

    /// Returns the name or address that the server's certificate has to contain.
    #[cfg(feature = "__client-tls")]
    pub(super) fn tls_name(&self) -> Result<rustls::pki_types::ServerName<'static>, InvalidUrl> {
        self.host.tls_name()
    }

    /// Returns the host: a name, or an address without brackets and zone.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Name(name) => name.clone(),
            Host::V4(address) => address.to_string(),
            Host::V6(address, _) => address.to_string(),
        }
    }

    /// Returns the port, which by default is 80, or with TLS 443.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the value of the `Host` header. It contains the port unless that is the scheme's default (RFC 6455 §4.1), and never a
    /// zone, which is valid only on the local machine (RFC 6874 §4).
    pub fn host_header(&self) -> String {
        let mut value = match &self.host {
            Host::V6(address, _) => format!("[{address}]"),
            _ => self.host(),
        };
        if self.port != self.scheme.default_port() {
            let _ = write!(value, ":{}", self.port);
        }
        value
    }

    /// Returns the percent-encoded path, which begins with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the percent-encoded query without the `?`, or `None` if the URL has no `?`.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Returns path and query as the request line contains them.
    pub fn request_target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    /// Returns a URL of this server with another path, optionally followed by `?` and a query. Both are percent-encoded
    /// like those of a parsed URL.
    ///
    /// ```
    /// use humphrey_ws::websocket_client::ServerUrl;
    ///
    /// let url: ServerUrl = "ws://localhost/chat".parse()?;
    /// assert_eq!(url.with_request_target("/a b?c").to_string(), "ws://localhost/a%20b?c");
    /// # Ok::<(), humphrey_ws::websocket_client::InvalidUrl>(())
    /// ```
    #[must_use]
    pub fn with_request_target(&self, target: &str) -> Self {
        let (path, query) = split_target(target);
        Self {
            path,
            query,
            ..self.clone()
        }
    }

    /// Returns the server's addresses in the order in which to try them. Blocks on the system's resolver unless the URL contains
    /// an IP address without a zone.
    ///
    /// # Errors
    ///
    /// The resolver's error if the name does not exist, the resolver can't be reached, or this machine has no such zone.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let name = match &self.host {
            Host::V4(address) => return Ok(vec![(IpAddr::V4(*address), self.port).into()]),
            Host::V6(address, None) => return Ok(vec![(IpAddr::V6(*address), self.port).into()]),
            // The system's resolver maps the zone to the number of an interface.
            Host::V6(address, Some(zone)) => format!("{address}%{zone}"),
            Host::Name(name) => name.clone(),
        };
        let found: Vec<SocketAddr> = (name.as_str(), self.port).to_socket_addrs()?.collect();
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            ));
        }
        Ok(found)
    }
}

/// Writes the URL with its zone, if any, and without the default port.
impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.name())?;
        match &self.host {
            Host::V6(address, Some(zone)) => write!(f, "[{address}%25{zone}]")?,
            Host::V6(address, None) => write!(f, "[{address}]")?,
            _ => f.write_str(&self.host())?,
        }
        if self.port != self.scheme.default_port() {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.request_target())
    }
}

/// A part of a URL that is percent-encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Component {
    Path,
    Query,
}

/// Percent-encodes the characters that are not allowed in a path or query (RFC 3986 §3.3, §3.4). Keeps a percent sign that is
/// followed by two hexadecimal digits, and encodes any other.
fn encode(text: &str, component: Component) -> String {
    let bytes = text.as_bytes();
    let mut encoded = String::with_capacity(text.len());
    for (at, &byte) in bytes.iter().enumerate() {
        let stays = match byte {
            b'%' => {
                matches!(bytes.get(at + 1..at + 3), Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
            }
            b'?' => component == Component::Query,
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte),
        };
        if stays {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ServerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn url_is_parsed_into_host_port_and_target() {
        for (text, host, port, header, target) in [
            ("ws://a", "a", 80, "a", "/"),
            ("WS://a:8080/", "a", 8080, "a:8080", "/"),
            ("ws://a:80/x", "a", 80, "a", "/x"),
            ("ws://a:/x", "a", 80, "a", "/x"),
            (
                "http://127.0.0.1:1/b/c?d=e",
                "127.0.0.1",
                1,
                "127.0.0.1:1",
                "/b/c?d=e",
            ),
            ("ws://[::1]:9/x", "::1", 9, "[::1]:9", "/x"),
            ("ws://[::1]", "::1", 80, "[::1]", "/"),
            ("ws://[0:0::1]:80", "::1", 80, "[::1]", "/"),
            ("ws://a?b", "a", 80, "a", "/?b"),
            ("ws://a/?", "a", 80, "a", "/?"),
            (
                "ws://my_host.local/",
                "my_host.local",
                80,
                "my_host.local",
                "/",
            ),
        ] {
            let url = url(text);
            assert_eq!((url.host().as_str(), url.port()), (host, port), "{text}");
            assert_eq!(url.host_header(), header, "{text}");
            assert_eq!(url.request_target(), target, "{text}");
        }
    }

    #[test]
    fn disallowed_characters_are_encoded_once() {
        for (text, target) in [
            ("ws://a/Gr\u{fc}ezi mit?\u{fc}", "/Gr%C3%BCezi%20mit?%C3%BC"),
            ("ws://a/%20%2f", "/%20%2f"),
            ("ws://a/100%", "/100%25"),
            ("ws://a/%zz?%2", "/%25zz?%252"),
            ("ws://a/\"<>\\^`{|}[]", "/%22%3C%3E%5C%5E%60%7B%7C%7D%5B%5D"),
            ("ws://a/x?a[]=1?/", "/x?a%5B%5D=1?/"),
            ("ws://a/a;b=c,d!e$f&g'h(i)*+@:", "/a;b=c,d!e$f&g'h(i)*+@:"),
        ] {
            let first = url(text);
            assert_eq!(first.request_target(), target);
            // Parsing the result again does not encode it twice.
            assert_eq!(url(&first.to_string()), first);
        }
    }

    #[test]
    fn invalid_url_is_refused_with_its_reason() {
        for (text, why) in [
            ("", InvalidUrl::Scheme),
            ("a:8080", InvalidUrl::Scheme),
            ("localhost", InvalidUrl::Scheme),
            ("ftp://a", InvalidUrl::Scheme),
            ("ws://a/#news", InvalidUrl::Fragment),
            ("ws://a#", InvalidUrl::Fragment),
            ("ws://me:secret@a/", InvalidUrl::UserInfo),
            ("ws://@a/", InvalidUrl::UserInfo),
            ("ws://a/x\r\nHost: b", InvalidUrl::Control),
            ("ws://a\t/", InvalidUrl::Control),
            ("ws://", InvalidUrl::Host),
            ("ws:///news", InvalidUrl::Host),
            ("ws://:80", InvalidUrl::Host),
            ("ws://a b/", InvalidUrl::Host),
            ("ws://a\\b/", InvalidUrl::Host),
            ("ws://z\u{fc}rich/", InvalidUrl::HostNotAscii),
            ("ws://::1/", InvalidUrl::Host),
            ("ws://[::1", InvalidUrl::Address),
            ("ws://[a]", InvalidUrl::Address),
            ("ws://[1.2.3.4]", InvalidUrl::Address),
            ("ws://[v1.a]", InvalidUrl::Address),
            ("ws://[::1]80", InvalidUrl::Host),
            ("ws://a:b", InvalidUrl::Port),
            ("ws://a:0", InvalidUrl::Port),
            ("ws://a:+80", InvalidUrl::Port),
            ("ws://a:65536", InvalidUrl::Port),
            ("ws://[fe80::1%25]", InvalidUrl::Zone),
            ("ws://[fe80::1%]", InvalidUrl::Zone),
            ("ws://[fe80::1%25a%2Fb]", InvalidUrl::Zone),
            ("ws://[fe80::1%25a%]", InvalidUrl::Zone),
        ] {
            assert_eq!(text.parse::<ServerUrl>(), Err(why), "{text}");
            assert!(!why.to_string().is_empty());
        }
    }

    #[cfg(not(feature = "__client-tls"))]
    #[test]
    fn tls_url_without_the_feature_names_it() {
        for text in ["wss://a", "HTTPS://a"] {
            let error = text.parse::<ServerUrl>().unwrap_err();
            assert_eq!(error, InvalidUrl::Tls);
            assert!(error.to_string().contains("'client-tls'"), "{error}");
        }
    }

    #[cfg(feature = "__client-tls")]
    #[test]
    fn tls_url_has_port_443_and_a_name_for_the_certificate() {
        for (text, port, header, display, name) in [
            ("wss://a", 443, "a", "wss://a/", "a"),
            ("HTTPS://a.b:443/c", 443, "a.b", "wss://a.b/c", "a.b"),
            ("wss://a:80", 80, "a:80", "wss://a:80/", "a"),
            ("wss://a./", 443, "a.", "wss://a./", "a"),
            ("wss://1.2.3.4", 443, "1.2.3.4", "wss://1.2.3.4/", "1.2.3.4"),
            ("wss://[::1]:9", 9, "[::1]:9", "wss://[::1]:9/", "::1"),
            (
                "wss://[fe80::1%25eth0]",
                443,
                "[fe80::1]",
                "wss://[fe80::1%25eth0]/",
                "fe80::1",
            ),
        ] {
            let url = url(text);
            assert!(url.is_tls());
            assert_eq!(url.port(), port, "{text}");
            assert_eq!(url.host_header(), header, "{text}");
            assert_eq!(url.to_string(), display, "{text}");
            // Versions of rustls differ in whether they keep the dot, which certificates never have.
            let tls_name = url.tls_name().unwrap();
            assert_eq!(tls_name.to_str().trim_end_matches('.'), name, "{text}");
        }
        assert!(!url("ws://a:443").is_tls());
        // No certificate can contain these names.
        for text in ["wss://a~b/", "wss://-a/", "wss://a..b/", "wss://1.2.3.4.5/"] {
            assert_eq!(text.parse::<ServerUrl>(), Err(InvalidUrl::Host), "{text}");
        }
    }

    #[test]
    fn zone_is_used_to_connect_and_never_sent() {
        for (text, zone) in [
            ("ws://[fe80::1%25eth0]:81/", "eth0"),
            ("ws://[fe80::1%eth0]:81/", "eth0"),
            ("ws://[fe80::1%252]:81/", "2"),
            ("ws://[fe80::1%25en%2D1]:81/", "en-1"),
        ] {
            let url = url(text);
            let address = "fe80::1".parse().unwrap();
            assert_eq!(url.host, Host::V6(address, Some(zone.into())), "{text}");
            assert_eq!(url.host_header(), "[fe80::1]:81");
            assert_eq!(url.to_string(), format!("ws://[fe80::1%25{zone}]:81/"));
        }
    }

    #[test]
    fn ip_literals_are_not_resolved() {
        let first = |text: &str| url(text).addresses().unwrap()[0].to_string();
        assert_eq!(first("ws://127.0.0.1"), "127.0.0.1:80");
        assert_eq!(first("ws://[::1]:8080"), "[::1]:8080");
        // Interface number 1 exists on every system.
        let SocketAddr::V6(zoned) = url("ws://[fe80::1%251]").addresses().unwrap()[0] else {
            panic!("not IPv6");
        };
        assert_eq!(zoned.scope_id(), 1);
        assert!(url("ws://[fe80::1%25no-such-zone]").addresses().is_err());
    }
}
