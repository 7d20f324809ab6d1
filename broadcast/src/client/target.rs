//! Where a client connects to: a `ws://` URL.

use std::fmt::{self, Write};
use std::str::FromStr;

use crate::name::RoomName;

/// A server, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// A name or an address, without the brackets that an IPv6 address has in a URL.
    pub(super) host: String,
    pub(super) port: u16,
    /// As it stands in the URL: what the server is called in the handshake.
    pub(super) authority: String,
    path: String,
    query: Option<String>,
}

/// Why something is no such URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadUrl {
    Scheme,
    Tls,
    Userinfo,
    Fragment,
    Host,
    Port,
}

impl FromStr for Target {
    type Err = BadUrl;

    fn from_str(url: &str) -> Result<Self, BadUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(BadUrl::Scheme)?;
        match scheme.to_ascii_lowercase().as_str() {
            // The page's address is as good.
            "ws" | "http" => {}
            "wss" | "https" => return Err(BadUrl::Tls),
            _ => return Err(BadUrl::Scheme),
        }
        if rest.contains('#') {
            return Err(BadUrl::Fragment);
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = host_and_port(authority)?;
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(encode(query, is_visible))),
            None => (rest, None),
        };
        let path = match path {
            "" => "/".to_owned(),
            path => encode(path, is_visible),
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            authority: authority.to_owned(),
            path,
            query,
        })
    }
}

fn host_and_port(authority: &str) -> Result<(&str, u16), BadUrl> {
    if authority.contains('@') {
        return Err(BadUrl::Userinfo);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(BadUrl::Host)?;
            match port.strip_prefix(':') {
                None if !port.is_empty() => return Err(BadUrl::Host),
                port => (host, port),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() || !host.bytes().all(is_visible) {
        return Err(BadUrl::Host);
    }
    match port {
        None | Some("") => Ok((host, 80)),
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => Ok((host, port)),
            _ => Err(BadUrl::Port),
        },
    }
}

impl Target {
    /// The same server, and a room behind the path.
    pub(super) fn with_room(&self, room: &RoomName) -> Self {
        let slash = if self.path.ends_with('/') { "" } else { "/" };
        let room = encode(room.as_str(), is_unreserved);
        Self {
            path: format!("{}{slash}{room}", self.path),
            ..self.clone()
        }
    }

    /// What stands behind `GET` in the handshake.
    pub(super) fn request_target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    /// The same, with these parameters of the query instead of what they were.
    pub(super) fn request_target_with(&self, parameters: &[(&str, String)]) -> String {
        let kept = self.query.iter().flat_map(|query| query.split('&'));
        let kept = kept.filter(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            !pair.is_empty() && parameters.iter().all(|(new, _)| name != *new)
        });
        let new = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value, is_unreserved)));
        let pairs: Vec<String> = kept.map(str::to_owned).chain(new).collect();
        format!("{}?{}", self.path, pairs.join("&"))
    }
}

/// As it is said to the user.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ws://{}{}", self.authority, self.path)
    }
}

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme => "a server's URL begins with ws://",
            Self::Tls => {
                "wss:// is not supported: let a tunnel such as stunnel speak TLS, and connect to it with ws://"
            }
            Self::Userinfo => {
                "a name and a password can't stand in the URL: see --header 'Authorization: …'"
            }
            Self::Fragment => "a URL with '#' is none of a server's: rooms are named with --room",
            Self::Host => "the URL has no host that could be connected to",
            Self::Port => "a port is a number from 1 to 65535",
        })
    }
}

impl std::error::Error for BadUrl {}

/// What can stand in a request line, and is not encoded again.
fn is_visible(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn encode(text: &str, stays: fn(u8) -> bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if stays(byte) {
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

    fn target(url: &str) -> Target {
        url.parse().unwrap()
    }

    #[test]
    fn a_url_says_where_and_what() {
        for (url, host, port, authority, asked) in [
            ("ws://a", "a", 80, "a", "/"),
            ("WS://a:8080/", "a", 8080, "a:8080", "/"),
            (
                "http://127.0.0.1:1/b/c?d=e",
                "127.0.0.1",
                1,
                "127.0.0.1:1",
                "/b/c?d=e",
            ),
            ("ws://[::1]:9/x", "::1", 9, "[::1]:9", "/x"),
            ("ws://[::1]", "::1", 80, "[::1]", "/"),
            ("ws://a?b", "a", 80, "a", "/?b"),
            (
                "ws://a/Gr\u{fc}ezi mit?\u{fc}",
                "a",
                80,
                "a",
                "/Gr%C3%BCezi%20mit?%C3%BC",
            ),
            ("ws://a/%20", "a", 80, "a", "/%20"),
        ] {
            let target = target(url);
            assert_eq!(
                (target.host.as_str(), target.port, target.authority.as_str()),
                (host, port, authority)
            );
            assert_eq!(target.request_target(), asked, "{url}");
        }
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        for (url, why) in [
            ("a:8080", BadUrl::Scheme),
            ("ftp://a", BadUrl::Scheme),
            ("wss://a", BadUrl::Tls),
            ("HTTPS://a", BadUrl::Tls),
            ("ws://a/#news", BadUrl::Fragment),
            ("ws://me:secret@a/", BadUrl::Userinfo),
            ("ws://", BadUrl::Host),
            ("ws:///news", BadUrl::Host),
            ("ws://:80", BadUrl::Host),
            ("ws://a b/", BadUrl::Host),
            ("ws://[::1", BadUrl::Host),
            ("ws://[::1]80", BadUrl::Host),
            ("ws://a:b", BadUrl::Port),
            ("ws://a:0", BadUrl::Port),
            ("ws://a:65536", BadUrl::Port),
            ("ws://::1/", BadUrl::Host),
        ] {
            assert_eq!(url.parse::<Target>(), Err(why), "{url}");
        }
    }

    #[test]
    fn a_room_stands_behind_the_path_as_the_server_reads_it() {
        for room in ["news", "Gr\u{fc}ezi & mehr?", "a/b", "100%", "..."] {
            let name: RoomName = room.parse().unwrap();
            let asked = target("ws://a").with_room(&name).request_target();
            assert_eq!(RoomName::of_path(&asked), Ok(name), "{asked}");
        }
        let name: RoomName = "news".parse().unwrap();
        let asked = |url: &str| target(url).with_room(&name).request_target();
        assert_eq!(asked("ws://a/live?since=now"), "/live/news?since=now");
        assert_eq!(asked("ws://a/live/"), "/live/news");
    }

    #[test]
    fn parameters_take_the_place_of_those_of_their_name() {
        let asked = |url: &str| {
            let parameters = [("since", "ab-7".to_owned()), ("room_since", "c d".into())];
            target(url).request_target_with(&parameters)
        };
        assert_eq!(asked("ws://a"), "/?since=ab-7&room_since=c%20d");
        assert_eq!(
            asked("ws://a/b?since=now&x=1&&sincere=y"),
            "/b?x=1&sincere=y&since=ab-7&room_since=c%20d"
        );
    }
}
