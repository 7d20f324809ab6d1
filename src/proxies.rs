//! Trusted proxies, and the client addresses that they forward.

use std::fmt;
#[cfg(unix)]
use std::net::SocketAddrV6;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// The proxies in front of an app whose forwarding header is trusted
/// ([`AsyncWebsocketApp::with_trusted_proxies`](crate::AsyncWebsocketApp::with_trusted_proxies)).
///
/// Any client can write any address into such a header. So it is trusted only from these addresses, and only the one
/// header that the proxies are known to set: a proxy that sets one header passes on the other as the client forged it.
/// The header is read from its end, hop by hop, as long as the hop is trusted.
///
/// A network is an address (`127.0.0.1`), has a prefix length (`10.0.0.0/8`, `fd00::/8`), or is the word `unix`: all that connects
/// to a Unix socket of the app ([`Listener::unix`](crate::Listener)).
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, TrustedProxies};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_trusted_proxies(TrustedProxies::x_forwarded_for(["127.0.0.1", "10.0.0.0/8"]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedProxies {
    header: ForwardingHeader,
    networks: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForwardingHeader {
    XForwardedFor,
    Forwarded,
}

impl TrustedProxies {
    /// Trusts proxies that set `X-Forwarded-For`, as most do.
    pub fn x_forwarded_for<T: Into<String>>(networks: impl IntoIterator<Item = T>) -> Self {
        Self::new(ForwardingHeader::XForwardedFor, networks)
    }

    /// Trusts proxies that set `Forwarded` (RFC 7239).
    pub fn forwarded<T: Into<String>>(networks: impl IntoIterator<Item = T>) -> Self {
        Self::new(ForwardingHeader::Forwarded, networks)
    }

    fn new<T: Into<String>>(
        header: ForwardingHeader,
        networks: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            header,
            networks: networks.into_iter().map(Into::into).collect(),
        }
    }

    pub(crate) fn resolve(&self) -> Result<Proxies, InvalidNetwork> {
        Ok(Proxies {
            header: self.header,
            networks: Networks::parse(&self.networks)?,
        })
    }
}

/// The address of all clients of Unix sockets. No client of TCP has it.
const UNIX: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// An address for the `n`th client of a Unix socket. It differs from those of all other clients.
#[cfg(unix)]
pub(crate) fn unix_peer(n: u64) -> SocketAddr {
    let (flowinfo, scope_id) = ((n >> 32) as u32, n as u32);
    SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, flowinfo, scope_id).into()
}

/// Whether an address is that of a client of a Unix socket.
pub(crate) fn is_unix_peer(address: IpAddr) -> bool {
    address == UNIX
}

/// A list entry that is not a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidNetwork(String);

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a network of proxies: it must look like 127.0.0.1, 10.0.0.0/8, fd00::/8 or unix",
            self.0
        )
    }
}

impl std::error::Error for InvalidNetwork {}

/// Trusted proxies with parsed networks.
#[derive(Debug, Clone)]
pub(crate) struct Proxies {
    header: ForwardingHeader,
    networks: Networks,
}

/// Networks of proxies, parsed.
#[derive(Debug, Clone)]
pub(crate) struct Networks(Vec<IpNet>);

impl Networks {
    pub(crate) fn parse(networks: &[String]) -> Result<Self, InvalidNetwork> {
        let network = |text: &String| match text.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address)),
            Err(_) if text == "unix" => Ok(IpNet::from(UNIX)),
            Err(_) => text.parse().map_err(|_| InvalidNetwork(text.clone())),
        };
        let networks: Result<_, _> = networks.iter().map(network).collect();
        networks.map(Self)
    }

    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl Proxies {
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.networks.contain(address)
    }

    /// Returns the client for which a peer has sent these headers: the peer itself, unless it is trusted and names
    /// another. If a hop can't be parsed, the trusted proxy that wrote it is the last known address.
    pub(crate) fn client<'a>(
        &self,
        peer: IpAddr,
        headers: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        let name = match self.header {
            ForwardingHeader::XForwardedFor => "X-Forwarded-For",
            ForwardingHeader::Forwarded => "Forwarded",
        };
        let values: Vec<&str> = headers
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect();
        let hops = values
            .into_iter()
            .rev()
            .flat_map(|value| match self.header {
                ForwardingHeader::XForwardedFor => Hops::unquoted(value),
                ForwardingHeader::Forwarded => Hops::quoted(value),
            });
        let mut client = peer;
        for hop in hops {
            let said = match self.header {
                ForwardingHeader::XForwardedFor => address(hop),
                ForwardingHeader::Forwarded => forwarded_for(hop).and_then(address),
            };
            let Some(said) = said else {
                break;
            };
            client = said;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

/// The comma-separated parts of a header, last first. Each proxy appends its part, so what a client has written before
/// it, such as an unclosed quote, must not change how it is read.
struct Hops<'a> {
    rest: Option<&'a str>,
    /// Commas in quoted strings do not separate parts (RFC 7239 §4).
    quotes: bool,
}

impl<'a> Hops<'a> {
    fn unquoted(value: &'a str) -> Self {
        Self {
            rest: Some(value),
            quotes: false,
        }
    }

    fn quoted(value: &'a str) -> Self {
        Self {
            rest: Some(value),
            quotes: true,
        }
    }
}

impl<'a> Iterator for Hops<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest.take()?;
        let mut within = false;
        let comma = rest.bytes().enumerate().rev().find(|&(at, byte)| {
            let escapes = rest.as_bytes()[..at].iter().rev();
            let escaped = || escapes.take_while(|&&byte| byte == b'\\').count() % 2 == 1;
            if self.quotes && byte == b'"' && !(within && escaped()) {
                within = !within;
            }
            byte == b',' && !within
        });
        let hop = match comma {
            Some((at, _)) => {
                self.rest = Some(&rest[..at]);
                &rest[at + 1..]
            }
            None => rest,
        };
        Some(hop.trim_matches([' ', '\t']))
    }
}

/// Splits at a separator, except in quoted strings.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |c: char| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => escaped = true,
            _ => return c == separator && !quoted,
        }
        false
    })
    .map(|part| part.trim_matches([' ', '\t']))
}

/// Returns the `for` parameter of a `Forwarded` element (RFC 7239 §5.2).
fn forwarded_for(element: &str) -> Option<&str> {
    split(element, ';')
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("for"))
        .map(|(_, value)| {
            value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'))
                .unwrap_or(value)
        })
}

/// Parses an address with or without a port; IPv6 with or without brackets (RFC 7239 §6, and what proxies send).
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse()
        .or_else(|_| text.parse().map(|address: SocketAddr| address.ip()))
        .ok()
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &TrustedProxies, peer: &str, headers: &[(&str, &str)]) -> String {
        proxies
            .resolve()
            .unwrap()
            .client(peer.parse().unwrap(), headers.iter().copied())
            .to_string()
    }

    #[test]
    fn untrusted_peer_is_not_believed() {
        let proxies = TrustedProxies::x_forwarded_for(["10.0.0.0/8"]);
        let said = [("X-Forwarded-For", "1.2.3.4")];
        assert_eq!(client(&proxies, "192.0.2.1", &said), "192.0.2.1");
        // As a dual-stack socket reports it; the address must not depend on whether proxies are trusted.
        let mapped = "::ffff:192.0.2.1";
        assert_eq!(client(&proxies, mapped, &said), mapped);
        assert_eq!(client(&proxies, "10.1.1.1", &said), "1.2.3.4");
        assert_eq!(client(&proxies, "::ffff:10.1.1.1", &said), "1.2.3.4");
    }

    #[test]
    fn forged_front_of_a_header_is_ignored() {
        let proxies = TrustedProxies::x_forwarded_for(["10.0.0.0/8"]);
        for (said, of) in [
            ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"),
            ("6.6.6.6,", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(
                client(&proxies, "10.0.0.1", &[("x-forwarded-for", said)]),
                of,
                "{said}"
            );
        }
        let lines = [
            ("X-Forwarded-For", "6.6.6.6"),
            ("X-Forwarded-For", "1.2.3.4"),
        ];
        assert_eq!(client(&proxies, "10.0.0.1", &lines), "1.2.3.4");
    }

    #[test]
    fn unclosed_quote_of_a_client_hides_no_hop() {
        for said in [
            "\", 1.2.3.4",
            "a\"b, 1.2.3.4",
            "\"\\, 1.2.3.4",
            "\"x\"\", 1.2.3.4",
        ] {
            let proxies = TrustedProxies::x_forwarded_for(["127.0.0.1"]);
            let headers = [("X-Forwarded-For", said)];
            assert_eq!(client(&proxies, "127.0.0.1", &headers), "1.2.3.4", "{said}");
            let said = said.replace("1.2.3.4", "for=\"1.2.3.4:80\";by=\"a,b\"");
            let proxies = TrustedProxies::forwarded(["127.0.0.1"]);
            let headers = [("Forwarded", &*said)];
            assert_eq!(client(&proxies, "127.0.0.1", &headers), "1.2.3.4", "{said}");
        }
    }

    #[test]
    fn header_that_the_proxy_does_not_set_is_ignored() {
        let headers = [("Forwarded", "for=6.6.6.6"), ("X-Forwarded-For", "1.2.3.4")];
        let by = |proxies| client(&proxies, "127.0.0.1", &headers);
        assert_eq!(
            by(TrustedProxies::x_forwarded_for(["127.0.0.1"])),
            "1.2.3.4"
        );
        assert_eq!(by(TrustedProxies::forwarded(["127.0.0.1"])), "6.6.6.6");
    }

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        let proxies = TrustedProxies::forwarded(["127.0.0.1", "fd00::/8"]);
        for (said, of) in [
            ("for=192.0.2.43", "192.0.2.43"),
            ("For=\"192.0.2.43:4711\";proto=http", "192.0.2.43"),
            (
                "proto=http;for=\"[2001:db8:cafe::17]:4711\"",
                "2001:db8:cafe::17",
            ),
            ("for=\"[2001:db8:cafe::17]\"", "2001:db8:cafe::17"),
            (
                "for=6.6.6.6, for=192.0.2.43;by=\"a,b;for=7.7.7.7\"",
                "192.0.2.43",
            ),
            ("for=192.0.2.43, for=\"[fd00::1]\"", "192.0.2.43"),
            ("for=192.0.2.43, for=unknown", "127.0.0.1"),
            ("for=192.0.2.43, for=_hidden", "127.0.0.1"),
            ("for=192.0.2.43, by=10.0.0.1", "127.0.0.1"),
            ("for=\"192.0.2.43", "127.0.0.1"),
            ("for=6.6.6.6, for=\"a\\\", for=7.7.7.7\"", "127.0.0.1"),
            ("for=\"a\\\", for=192.0.2.43", "192.0.2.43"),
        ] {
            assert_eq!(
                client(&proxies, "127.0.0.1", &[("Forwarded", said)]),
                of,
                "{said}"
            );
        }
        let proxies = TrustedProxies::x_forwarded_for(["127.0.0.1"]);
        for (said, of) in [
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("192.0.2.43:80", "192.0.2.43"),
        ] {
            assert_eq!(
                client(&proxies, "127.0.0.1", &[("X-Forwarded-For", said)]),
                of
            );
        }
    }

    #[test]
    fn invalid_network_is_named_in_the_error() {
        for network in ["localhost", "10.0.0.0/33", "", "10.0.0"] {
            let error = TrustedProxies::forwarded(["10.0.0.0/8", network])
                .resolve()
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("{network:?}")), "{error}");
        }
    }
}
