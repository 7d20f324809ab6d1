//! A host with an optional port, as `Host` and `Origin` name it (RFC 3986 §3.2), and when two hosts are the same.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Splits `example.com`, `example.com:8080` or `[::1]:8080` into host and port (RFC 3986 §3.2). `None` for anything else: a user,
/// a path or a blank.
pub(crate) fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
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
        // RFC 3986 §3.2.3 allows an empty port.
        Some("") => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok()?)
        }
        Some(_) => return None,
    };
    is_host.then_some((host, port))
}

/// Whether both are the same host: the same name, or the same address however it is written.
pub(crate) fn is_same_host(one: &str, other: &str) -> bool {
    without_dot(one).eq_ignore_ascii_case(without_dot(other))
        || matches!((ipv6(one), ipv6(other)), (Some(one), Some(other)) if one == other)
}

/// The name without the final dot of a fully qualified one (RFC 1034 §3.1).
pub(crate) fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn ipv6(host: &str) -> Option<Ipv6Addr> {
    let address = host.strip_prefix('[')?.strip_suffix(']')?;
    // A zone is of meaning to the client only (RFC 6874 §1).
    let address = address
        .split_once('%')
        .map_or(address, |(address, _)| address);
    address.parse().ok()
}

/// Whether the host is an IP address; one of version 6 stands in brackets.
pub(crate) fn is_address(host: &str) -> bool {
    ipv6(host).is_some() || without_dot(host).parse::<Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_split_into_host_and_port() {
        for (authority, expected) in [
            ("example.com", ("example.com", None)),
            ("example.com:8080", ("example.com", Some(8080))),
            ("example.com:", ("example.com", None)),
            ("[::1]:80", ("[::1]", Some(80))),
        ] {
            assert_eq!(host_and_port(authority), Some(expected), "{authority}");
        }
        for authority in [
            "", ":80", "a b", "a/b", "u@a", "a:+1", "a:65536", "[::1", "[::1]x",
        ] {
            assert_eq!(host_and_port(authority), None, "{authority}");
        }
    }

    #[test]
    fn host_is_the_same_however_it_is_written() {
        for (one, other) in [
            ("a.example", "A.example."),
            ("[::1]", "[0:0::1]"),
            ("[fe80::1%25eth0]", "[fe80::1]"),
        ] {
            assert!(is_same_host(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("a", "b"),
            ("[::1]", "::1"),
            ("[::1]", "[::2]"),
            ("a..", "a"),
        ] {
            assert!(!is_same_host(one, other), "{one} {other}");
        }
    }
}
