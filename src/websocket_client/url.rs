//! Where a client connects to: a `ws://` URL (RFC 6455 §3, RFC 3986).

use std::error::Error;
use std::fmt::{self, Write};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::protocol::percent;

const DEFAULT_PORT: u16 = 80;

/// A `ws://` URL: which server to connect to, and what to ask it for (RFC 6455 §3).
///
/// `http://` means the same: the address of a page is as good. Characters that may not stand in a request are
/// percent-encoded; what is percent-encoded already stays as it is. An IPv6 address may name a zone, as `%25eth0` (RFC 6874)
/// or `%eth0`: it is used to connect, and never sent.
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
    host: Host,
    port: u16,
    path: String,
    query: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Name(String),
    V4(Ipv4Addr),
    V6(Ipv6Addr, Option<String>),
}

/// Why something is not the URL of a server that can be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidUrl {
    /// It does not begin with `ws://` or `http://`.
    Scheme,
    /// It begins with `wss://` or `https://`.
    Tls,
    /// It has a user name or a password, which RFC 6455 §3 does not provide for.
    UserInfo,
    /// It has a fragment (RFC 6455 §3: there must be none).
    Fragment,
    /// It has a control character.
    Control,
    /// It has no host, or one that can't be a name or an address.
    Host,
    /// The host's name is not ASCII.
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
            Self::Scheme => "a server's URL begins with ws://",
            Self::Tls => {
                "wss:// is not supported: let a tunnel such as stunnel speak TLS, and connect to it with ws://"
            }
            Self::UserInfo => {
                "a user name and a password can't stand in a ws:// URL: send the header 'Authorization' instead"
            }
            Self::Fragment => "a ws:// URL has no '#': write %23 for one that belongs to the path",
            Self::Control => "the URL has a control character, such as a line break",
            Self::Host => "the URL has no host that could be connected to",
            Self::HostNotAscii => {
                "the host's name is not ASCII: write it in the form that begins with xn--"
            }
            Self::Address => "what stands in brackets is not an IPv6 address",
            Self::Zone => "the zone of an IPv6 address looks like %25eth0",
            Self::Port => "a port is a number from 1 to 65535",
        })
    }
}

impl Error for InvalidUrl {}

impl FromStr for ServerUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidUrl::Scheme)?;
        match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => {}
            "wss" | "https" => return Err(InvalidUrl::Tls),
            _ => return Err(InvalidUrl::Scheme),
        }
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
        Ok(Self {
            host: host.parse()?,
            port: port_of(port)?,
            path,
            query,
        })
    }
}

/// Host, and what stands behind the colon.
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

fn port_of(text: &str) -> Result<u16, InvalidUrl> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    // `parse` alone would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidUrl::Port);
    }
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(InvalidUrl::Port),
    }
}

/// Path and query, encoded as they may stand in a request line.
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
                // RFC 6874 has the percent sign encoded; without that it is what people copy from their system.
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

/// A zone as the system calls it (RFC 6874 §2: unreserved characters, or percent-encoded).
fn decode_zone(zone: &str) -> Result<String, InvalidUrl> {
    let decoded = percent::decode(zone).ok_or(InvalidUrl::Zone)?;
    let is_legal = |byte: u8| byte.is_ascii_graphic() && !b"%[]/".contains(&byte);
    if decoded.is_empty() || !decoded.bytes().all(is_legal) {
        return Err(InvalidUrl::Zone);
    }
    Ok(decoded)
}

impl ServerUrl {
    /// The host: a name, or an address without brackets and zone.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Name(name) => name.clone(),
            Host::V4(address) => address.to_string(),
            Host::V6(address, _) => address.to_string(),
        }
    }

    /// The port; 80 where the URL names none.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The value of the header `Host`: with the port unless that is 80 (RFC 6455 §4.1), and without a zone, which means
    /// nothing on another machine (RFC 6874 §4).
    pub fn host_header(&self) -> String {
        let mut value = match &self.host {
            Host::V6(address, _) => format!("[{address}]"),
            _ => self.host(),
        };
        if self.port != DEFAULT_PORT {
            let _ = write!(value, ":{}", self.port);
        }
        value
    }

    /// The path, percent-encoded; it begins with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What stands behind the `?`, percent-encoded.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Path and query as they stand in the request line.
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

    /// The addresses of the server, in the order in which they are to be tried. Asks the system's resolver, and waits for it,
    /// unless the URL names an address.
    ///
    /// # Errors
    ///
    /// Those of the resolver: there is no such name, the resolver can't be reached, or this machine has no such zone.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let name = match &self.host {
            Host::V4(address) => return Ok(vec![(IpAddr::V4(*address), self.port).into()]),
            Host::V6(address, None) => return Ok(vec![(IpAddr::V6(*address), self.port).into()]),
            // The system knows the numbers of its interfaces.
            Host::V6(address, Some(zone)) => format!("{address}%{zone}"),
            Host::Name(name) => name.clone(),
        };
        let found: Vec<SocketAddr> = (name.as_str(), self.port).to_socket_addrs()?.collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
        }
        Ok(found)
    }
}

/// As a URL, with its zone if it has one, and without a default port.
impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::V6(address, Some(zone)) => write!(f, "ws://[{address}%25{zone}]")?,
            Host::V6(address, None) => write!(f, "ws://[{address}]")?,
            _ => write!(f, "ws://{}", self.host())?,
        }
        if self.port != DEFAULT_PORT {
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

/// Percent-encodes what may not stand in a path, or in a query (RFC 3986 §3.3, §3.4). A percent sign with two
/// hexadecimal digits behind it stays, any other is encoded.
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
    fn url_says_where_and_what() {
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
    fn characters_that_may_not_be_sent_are_encoded_once() {
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
            // What was encoded is not encoded again.
            assert_eq!(url(&first.to_string()), first);
        }
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        for (text, why) in [
            ("", InvalidUrl::Scheme),
            ("a:8080", InvalidUrl::Scheme),
            ("localhost", InvalidUrl::Scheme),
            ("ftp://a", InvalidUrl::Scheme),
            ("wss://a", InvalidUrl::Tls),
            ("HTTPS://a", InvalidUrl::Tls),
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

    #[test]
    fn zone_is_kept_for_the_connection_and_never_sent() {
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
    fn addresses_of_literals_need_no_resolver() {
        let first = |text: &str| url(text).addresses().unwrap()[0].to_string();
        assert_eq!(first("ws://127.0.0.1"), "127.0.0.1:80");
        assert_eq!(first("ws://[::1]:8080"), "[::1]:8080");
        // Every system has an interface of its own with the number 1.
        let SocketAddr::V6(zoned) = url("ws://[fe80::1%251]").addresses().unwrap()[0] else {
            panic!("not IPv6");
        };
        assert_eq!(zoned.scope_id(), 1);
        assert!(url("ws://[fe80::1%25no-such-zone]").addresses().is_err());
    }
}
