//! The session cookie: its name, its attributes, and how it is found in a request (RFC 6265).

use std::time::Duration;

/// The beginning of the cookie's name.
const NAME: &str = "humphrey-broadcast";

/// Browsers accept a cookie with this prefix only over TLS, from the host itself, and for all its paths. So another host of
/// the same domain cannot replace it, and an attacker on the network cannot either.
const HOST_PREFIX: &str = "__Host-";

/// The number of cookies of the right name that are looked at. Each may be a guess, and a browser sends one.
const CANDIDATES_MAX: usize = 4;

/// Whether the browser speaks TLS with the server, or with a trusted proxy in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Tls,
    /// Without TLS, as far as the server knows.
    Plain,
}

/// The name of the cookie for requests to `host`, the `Host` header.
///
/// Browsers share cookies among all ports of a host. The name contains the port, so that two programs on one host do not
/// replace each other's sessions. It is the port that the browser sees: all nodes behind a load balancer use the same name.
pub(crate) fn name(host: Option<&str>, channel: Channel) -> String {
    let prefix = match channel {
        Channel::Tls => HOST_PREFIX,
        Channel::Plain => "",
    };
    match host.and_then(port) {
        Some(port) => format!("{prefix}{NAME}-{port}"),
        None => format!("{prefix}{NAME}"),
    }
}

/// The port in a `Host` header, if there is one.
fn port(host: &str) -> Option<&str> {
    let (name, port) = host.rsplit_once(':')?;
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    // Without brackets, this is the end of an IPv6 address.
    let is_name = !name.contains(':') || name.ends_with(']');
    (is_port && is_name).then_some(port)
}

/// The values of the cookies that may be a session, in the order in which they were sent. `lines` are the values of all
/// `Cookie` headers.
pub(crate) fn candidates<'a>(
    lines: impl Iterator<Item = &'a str>,
    host: Option<&str>,
    channel: Channel,
) -> Vec<&'a str> {
    let mut names = vec![name(host, Channel::Tls)];
    if channel == Channel::Plain {
        // A proxy may have ended TLS without saying so. Browsers send the other cookie over TLS only.
        names.push(name(host, Channel::Plain));
    }
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| names.iter().any(|known| known == name.trim()))
        .map(|(_, value)| unquoted(value.trim()))
        .filter(|value| !value.is_empty())
        .take(CANDIDATES_MAX)
        .collect()
}

fn unquoted(value: &str) -> &str {
    let inner = value.strip_prefix('"');
    inner
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

/// The `Set-Cookie` header that stores a session.
pub(crate) fn set(
    host: Option<&str>,
    channel: Channel,
    session: &str,
    lifetime: Duration,
) -> String {
    let secure = match channel {
        Channel::Tls => "; Secure",
        Channel::Plain => "",
    };
    format!(
        "{}={session}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}",
        name(host, channel),
        lifetime.as_secs()
    )
}

/// The `Set-Cookie` header that removes the session.
pub(crate) fn clear(host: Option<&str>, channel: Channel) -> String {
    set(host, channel, "", Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_contains_the_port_that_the_browser_sees() {
        for (host, expected) in [
            (Some("localhost:8080"), "humphrey-broadcast-8080"),
            (Some("192.0.2.1:80"), "humphrey-broadcast-80"),
            (Some("[::1]:8080"), "humphrey-broadcast-8080"),
            (Some("live.example.com"), "humphrey-broadcast"),
            (Some("[::1]"), "humphrey-broadcast"),
            (Some("::1"), "humphrey-broadcast"),
            (Some("a:"), "humphrey-broadcast"),
            (Some("a:8080; Domain=b"), "humphrey-broadcast"),
            (None, "humphrey-broadcast"),
        ] {
            assert_eq!(name(host, Channel::Plain), expected);
            assert_eq!(name(host, Channel::Tls), format!("__Host-{expected}"));
        }
    }

    #[test]
    fn cookie_is_found_among_others() {
        let found = |lines: &[&'static str], channel| {
            candidates(lines.iter().copied(), Some("a:81"), channel)
        };
        for line in [
            "humphrey-broadcast-81=x",
            "theme=dark; humphrey-broadcast-81=x",
            "a; =; humphrey-broadcast-80=y;humphrey-broadcast-81=x; b=c",
            " humphrey-broadcast-81 = \"x\" ;",
            "humphrey-broadcast=y; humphrey-broadcast-81=x",
            "Humphrey-Broadcast-81=y; humphrey-broadcast-81=x; humphrey-broadcast-81=",
        ] {
            assert_eq!(found(&[line], Channel::Plain), ["x"], "{line}");
            assert_eq!(found(&[line], Channel::Tls), [""; 0], "{line}");
        }
        let lines = ["__Host-humphrey-broadcast-81=x", "humphrey-broadcast-81=y"];
        assert_eq!(found(&lines, Channel::Plain), ["x", "y"]);
        assert_eq!(found(&lines, Channel::Tls), ["x"]);
        let many = "humphrey-broadcast-81=x; ".repeat(100);
        assert_eq!(
            candidates([&*many].into_iter(), Some("a:81"), Channel::Plain).len(),
            4
        );
        assert_eq!(
            found(&["", "; ;", "humphrey-broadcast-81"], Channel::Plain),
            [""; 0]
        );
    }

    #[test]
    fn attributes_keep_the_cookie_from_scripts_and_other_sites() {
        let day = Duration::from_secs(86_400);
        assert_eq!(
            set(Some("a:81"), Channel::Plain, "x.y", day),
            "humphrey-broadcast-81=x.y; Path=/; Max-Age=86400; HttpOnly; SameSite=Strict"
        );
        assert_eq!(
            set(Some("a"), Channel::Tls, "x.y", day),
            "__Host-humphrey-broadcast=x.y; Path=/; Max-Age=86400; HttpOnly; SameSite=Strict; Secure"
        );
        assert_eq!(
            clear(Some("a"), Channel::Tls),
            "__Host-humphrey-broadcast=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"
        );
    }
}
