//! Where a client connects to: a `ws://` URL, and a room there.

use std::fmt::{self, Write};
use std::str::FromStr;

use humphrey_ws::websocket_client::{InvalidUrl, ServerUrl};

use crate::name::RoomName;

/// A server, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target(ServerUrl);

/// Why something is no such URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadUrl(InvalidUrl);

impl FromStr for Target {
    type Err = BadUrl;

    fn from_str(url: &str) -> Result<Self, BadUrl> {
        url.parse().map(Self).map_err(BadUrl)
    }
}

impl Target {
    pub(super) const fn url(&self) -> &ServerUrl {
        &self.0
    }

    /// The same server, and a room behind the path.
    pub(super) fn with_room(&self, room: &RoomName) -> Self {
        let path = self.0.path();
        let slash = if path.ends_with('/') { "" } else { "/" };
        let path = format!("{path}{slash}{}", encode(room.as_str()));
        Self(self.0.with_request_target(&match self.0.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        }))
    }

    /// The same, with these parameters of the query instead of what they were.
    pub(super) fn with_parameters(&self, parameters: &[(&str, String)]) -> Self {
        let kept = self
            .0
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'));
        let kept = kept.filter(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            !pair.is_empty() && parameters.iter().all(|(new, _)| name != *new)
        });
        let new = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)));
        let pairs: Vec<String> = kept.map(str::to_owned).chain(new).collect();
        let target = format!("{}?{}", self.0.path(), pairs.join("&"));
        Self(self.0.with_request_target(&target))
    }
}

/// As it is said to the user: without the query, which may have secrets.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.with_request_target(self.0.path()))
    }
}

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            InvalidUrl::UserInfo => f.write_str(
                "a name and a password can't stand in the URL: see --header 'Authorization: …'",
            ),
            InvalidUrl::Fragment => {
                f.write_str("a URL with '#' is none of a server's: rooms are named with --room")
            }
            error => error.fmt(f),
        }
    }
}

impl std::error::Error for BadUrl {}

/// Percent-encodes everything but the characters that never need it (RFC 3986 §2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
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
    fn what_is_no_url_of_a_server_is_refused() {
        for (url, said) in [
            ("a:8080", "ws://"),
            ("wss://a", "stunnel"),
            ("ws://a/#news", "--room"),
            ("ws://me:secret@a/", "--header"),
            ("ws://a:0", "65535"),
            ("ws://[fe80::1%25]/", "%25eth0"),
        ] {
            let error = url.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(said), "{url}: {error}");
        }
    }

    #[test]
    fn a_room_stands_behind_the_path_as_the_server_reads_it() {
        let path = |target: Target| target.url().path().to_owned();
        for room in ["news", "Gr\u{fc}ezi & mehr?", "a/b", "100%", "..."] {
            let name: RoomName = room.parse().unwrap();
            let asked = path(target("ws://a").with_room(&name));
            assert_eq!(RoomName::of_path(&asked), Ok(name), "{asked}");
        }
        let name: RoomName = "news".parse().unwrap();
        let asked = |url: &str| target(url).with_room(&name).url().request_target();
        assert_eq!(asked("ws://a/live?since=now"), "/live/news?since=now");
        assert_eq!(asked("ws://a/live/"), "/live/news");
    }

    #[test]
    fn parameters_take_the_place_of_those_of_their_name() {
        let asked = |url: &str| {
            let parameters = [("since", "ab-7".to_owned()), ("room_since", "c d".into())];
            target(url)
                .with_parameters(&parameters)
                .url()
                .request_target()
        };
        assert_eq!(asked("ws://a"), "/?since=ab-7&room_since=c%20d");
        assert_eq!(
            asked("ws://a/b?since=now&x=1&&sincere=y"),
            "/b?x=1&sincere=y&since=ab-7&room_since=c%20d"
        );
    }

    #[test]
    fn it_is_said_without_its_query() {
        assert_eq!(target("ws://a:81/b?token=x").to_string(), "ws://a:81/b");
    }
}
