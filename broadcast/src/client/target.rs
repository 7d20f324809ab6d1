//! The target of a client: a `ws://` or `wss://` URL and a room. The library parses the URL.

use std::fmt::{self, Write};
use std::str::FromStr;

use humphrey_ws::websocket_client::{InvalidUrl, ServerUrl};

use crate::room_name::RoomName;

/// The URL of a server, including path and query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target(ServerUrl);

/// Why a URL is invalid, in terms of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidTarget(InvalidUrl);

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(url: &str) -> Result<Self, InvalidTarget> {
        url.parse().map(Self).map_err(InvalidTarget)
    }
}

impl Target {
    pub(super) const fn url(&self) -> &ServerUrl {
        &self.0
    }

    /// Appends a room to the path.
    pub(super) fn with_room(&self, room: &RoomName) -> Self {
        let path = self.0.path();
        let slash = if path.ends_with('/') { "" } else { "/" };
        let path = format!("{path}{slash}{}", encode(room.as_str()));
        Self(self.0.with_request_target(&match self.0.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        }))
    }

    /// Sets parameters of the query, replacing those of the same names.
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

/// Printed without the query, which may contain secrets.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.with_request_target(self.0.path()))
    }
}

impl fmt::Display for InvalidTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            InvalidUrl::UserInfo => f.write_str(
                "the URL can't contain a user name or password: use --header 'Authorization: ...'",
            ),
            InvalidUrl::Fragment => {
                f.write_str("the URL can't contain '#': name the room with --room")
            }
            InvalidUrl::Tls => f.write_str(
                "wss:// needs TLS, which this program was built without: build it with its feature 'tls'",
            ),
            error => error.fmt(f),
        }
    }
}

impl std::error::Error for InvalidTarget {}

/// Percent-encodes everything but the unreserved characters (RFC 3986 §2.3). [`ServerUrl::with_request_target`] encodes only
/// what a request cannot contain: it would keep the `/`, `?` and `%` of a name.
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
    fn invalid_server_url_is_refused() {
        for (url, said) in [
            ("a:8080", "ws://"),
            #[cfg(not(feature = "tls"))]
            ("wss://a", "feature 'tls'"),
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
    fn room_is_appended_to_the_path_percent_encoded() {
        let path = |target: Target| target.url().path().to_owned();
        for room in ["news", "Gr\u{fc}ezi & mehr?", "a/b", "100%", "..."] {
            let name: RoomName = room.parse().unwrap();
            let asked = path(target("ws://a").with_room(&name));
            assert_eq!(RoomName::from_path(&asked), Ok(name), "{asked}");
        }
        let name: RoomName = "news".parse().unwrap();
        let asked = |url: &str| target(url).with_room(&name).url().request_target();
        assert_eq!(asked("ws://a/live?since=now"), "/live/news?since=now");
        assert_eq!(asked("ws://a/live/"), "/live/news");
    }

    #[test]
    fn parameters_replace_those_of_the_same_name() {
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
    fn display_omits_the_query() {
        assert_eq!(target("ws://a:81/b?token=x").to_string(), "ws://a:81/b");
    }
}
