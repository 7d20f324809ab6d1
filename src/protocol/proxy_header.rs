//! The header with which a proxy names its client: the PROXY protocol, versions 1 and 2
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header of version 1, with its line end (§2.1).
const V1_BYTES_MAX: usize = 107;

/// What a header of version 2 begins with (§2.2).
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The bytes of a header of version 2 before its addresses.
const V2_FIXED_BYTES: usize = 16;

/// The longest rest of a header of version 2. Extensions such as a certificate's names take some hundred bytes.
const V2_REST_BYTES_MAX: usize = 4 << 10;

/// A complete header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProxyHeader {
    /// The client's address; `None` if the proxy speaks for itself, as in health checks, or knows no address.
    pub(crate) client: Option<SocketAddr>,
    /// The length of the header.
    pub(crate) bytes: usize,
}

/// Why the bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidProxyHeader {
    Missing,
    Malformed,
    TooLong,
}

impl fmt::Display for InvalidProxyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "it does not begin with a header of the PROXY protocol",
            Self::Malformed => "its header of the PROXY protocol is malformed",
            Self::TooLong => "its header of the PROXY protocol is too long",
        })
    }
}

/// Parses the header at the beginning of a connection. `None`: more bytes are needed.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, InvalidProxyHeader> {
    let begins_with = |start: &[u8]| {
        let len = bytes.len().min(start.len());
        bytes[..len] == start[..len]
    };
    if begins_with(V2_SIGNATURE) {
        parse_v2(bytes)
    } else if begins_with(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Err(InvalidProxyHeader::Missing)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, InvalidProxyHeader> {
    let searched = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = searched.windows(2).position(|two| two == b"\r\n") else {
        return match bytes.len() < V1_BYTES_MAX {
            true => Ok(None),
            false => Err(InvalidProxyHeader::TooLong),
        };
    };
    let line = std::str::from_utf8(&bytes[..end]).map_err(|_| InvalidProxyHeader::Malformed)?;
    let client = v1_client(line).ok_or(InvalidProxyHeader::Malformed)?;
    Ok(Some(ProxyHeader {
        client,
        bytes: end + 2,
    }))
}

/// The client of a line of version 1; the outer `None` if the line is malformed.
fn v1_client(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        // What follows is to be ignored.
        return Some(None);
    }
    let (client, server) = (words.next()?, words.next()?);
    let (client_port, server_port) = (words.next()?, words.next()?);
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        _ => None,
    };
    let port = |text: &str| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| is_number)
    };
    address(server)?;
    port(server_port)?;
    let client = SocketAddr::new(address(client)?, port(client_port)?);
    words.next().is_none().then_some(Some(client))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, InvalidProxyHeader> {
    let Some((fixed, rest)) = bytes.split_at_checked(V2_FIXED_BYTES) else {
        return Ok(None);
    };
    let [command, family, len @ ..] = [fixed[12], fixed[13], fixed[14], fixed[15]];
    let len = usize::from(u16::from_be_bytes(len));
    if len > V2_REST_BYTES_MAX {
        return Err(InvalidProxyHeader::TooLong);
    }
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(InvalidProxyHeader::Malformed),
    };
    let Some(rest) = rest.get(..len) else {
        return Ok(None);
    };
    let client = match family {
        _ if is_local => None,
        // AF_UNSPEC, and AF_UNIX: no address that could be used.
        0x00 | 0x31 => None,
        0x11 => Some(v2_client::<4>(rest).ok_or(InvalidProxyHeader::Malformed)?),
        0x21 => Some(v2_client::<16>(rest).ok_or(InvalidProxyHeader::Malformed)?),
        // Datagrams do not arrive over this connection.
        _ => return Err(InvalidProxyHeader::Malformed),
    };
    Ok(Some(ProxyHeader {
        client,
        bytes: V2_FIXED_BYTES + len,
    }))
}

/// The source address and port, of which the destination's are beside each.
fn v2_client<const N: usize>(rest: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let address: [u8; N] = rest.get(..N)?.try_into().ok()?;
    let ports = rest.get(2 * N..2 * N + 4)?;
    Some(SocketAddr::new(
        address.into(),
        u16::from_be_bytes([ports[0], ports[1]]),
    ))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::fuzz::dice::Dice;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &len, rest].concat()
    }

    /// Source 192.0.2.7:4711, destination 10.0.0.1:443, and an extension.
    const REST_V4: &[u8] = &[
        192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 0x01, 0xBB, 4, 0, 1, 9,
    ];

    fn rest_v6() -> Vec<u8> {
        let source = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets();
        [&source[..], &[0; 16], &[0x12, 0x67, 0x01, 0xBB]].concat()
    }

    #[test]
    fn header_at_any_split_names_the_client() {
        let v4 = Some("192.0.2.7:4711".parse().unwrap());
        let v6 = Some("[2001:db8::7]:4711".parse().unwrap());
        for (header, client) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n".to_vec(), v4),
            (b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n".to_vec(), v6),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), None),
            (v2(0x21, 0x11, REST_V4), v4),
            (v2(0x21, 0x21, &rest_v6()), v6),
            (v2(0x20, 0x11, REST_V4), None),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x31, &[b'x'; 216]), None),
        ] {
            let bytes = header.len();
            let followed = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            for len in 0..followed.len() {
                let expected = (len >= bytes).then_some(ProxyHeader { client, bytes });
                assert_eq!(parse(&followed[..len]), Ok(expected), "{len} {header:?}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused_as_soon_as_it_is_known() {
        use InvalidProxyHeader::{Malformed, Missing, TooLong};
        for (bytes, why) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), Missing),
            (b"\x16\x03\x01".to_vec(), Missing),
            (b"PROXX".to_vec(), Missing),
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 4711\r\n".to_vec(),
                Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443 x\r\n".to_vec(),
                Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 +711 443\r\n".to_vec(),
                Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 70000 443\r\n".to_vec(),
                Malformed,
            ),
            (b"PROXY TCP4 ::1 ::1 4711 443\r\n".to_vec(), Malformed),
            (b"PROXY TCP6 192.0.2.7 ::1 4711 443\r\n".to_vec(), Malformed),
            (
                b"PROXY SCTP4 192.0.2.7 10.0.0.1 4711 443\r\n".to_vec(),
                Malformed,
            ),
            (
                b"PROXY TCP4  192.0.2.7 10.0.0.1 4711 443\r\n".to_vec(),
                Malformed,
            ),
            (b"PROXY \xFF\r\n".to_vec(), Malformed),
            ([&b"PROXY "[..], &[b'x'; V1_BYTES_MAX]].concat(), TooLong),
            (v2(0x22, 0x11, REST_V4), Malformed),
            (v2(0x11, 0x11, REST_V4), Malformed),
            (v2(0x21, 0x12, REST_V4), Malformed),
            (v2(0x21, 0x11, &REST_V4[..11]), Malformed),
            (v2(0x21, 0x21, REST_V4), Malformed),
            (
                v2(0x21, 0x11, &[0; V2_REST_BYTES_MAX + 1])[..16].to_vec(),
                TooLong,
            ),
        ] {
            assert_eq!(parse(&bytes), Err(why), "{bytes:?}");
        }
    }

    #[test]
    fn random_bytes_never_panic_and_a_header_is_within_them() {
        let mut dice = Dice::from_seed(7);
        let headers = [
            v2(0x21, 0x11, REST_V4),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n".to_vec(),
        ];
        for round in 0..20_000 {
            let mut bytes = headers[round % 2].clone();
            for _ in 0..dice.below(4) {
                let at = dice.below(bytes.len());
                bytes[at] = dice.below(256) as u8;
            }
            bytes.truncate(dice.below(bytes.len() + 1));
            if let Ok(Some(header)) = parse(&bytes) {
                assert!(header.bytes <= bytes.len());
            }
        }
    }
}
