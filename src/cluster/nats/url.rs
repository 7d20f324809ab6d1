//! The URL of a NATS server, or of the servers of one NATS cluster.

use std::fmt;
use std::str::FromStr;

use crate::cluster::url::{Address, InvalidBrokerUrl, UrlParts};

const PORT: u16 = 4222;

/// A URL `nats://[user:password@|token@]host[:port][,host[:port]…][?app=prefix]`, or `tls://` for TLS.
///
/// The user, the password and the token are percent-encoded. They appear neither in `Debug` nor in `Display`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct NatsUrl {
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
    /// The servers of one NATS cluster, at least one. A node is connected to one of them at a time.
    pub(crate) servers: Vec<Address>,
    /// Without a password, it is a token.
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// The prefix of all subjects.
    pub(crate) app: String,
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "tls://" } else { "nats://" })?;
        for (at, server) in self.servers.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{server}")?;
        }
        write!(f, "?app={}", self.app)
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NatsUrl({self})")
    }
}

impl FromStr for NatsUrl {
    type Err = InvalidBrokerUrl;

    fn from_str(url: &str) -> Result<Self, InvalidBrokerUrl> {
        // Every server may be given as a URL of its own, as other clients of NATS want it.
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let repeated = format!(",{scheme}://");
        let servers: Vec<&str> = url.split(',').map(str::trim).collect();
        let parts = UrlParts::split(&servers.join(",").replace(&repeated, ","), PORT)?;
        let tls = match &*parts.scheme {
            "nats" => false,
            "tls" => true,
            _ => return Err(InvalidBrokerUrl::Scheme),
        };
        if !matches!(&*parts.path, "" | "/") {
            return Err(match parts.path.starts_with("//") {
                true => InvalidBrokerUrl::Mixed,
                false => InvalidBrokerUrl::Path,
            });
        }
        if parts.app.split('.').any(str::is_empty) {
            return Err(InvalidBrokerUrl::Subject);
        }
        Ok(Self {
            tls,
            servers: parts.servers,
            user: parts.user,
            password: parts.password,
            app: parts.app,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> NatsUrl {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn url_of_one_server_has_the_defaults() {
        for url in [
            "nats://localhost",
            "NATS://LocalHost:4222/",
            "nats://@localhost?",
        ] {
            let url = parse(url);
            assert_eq!(url.to_string(), "nats://localhost:4222?app=humphrey_ws");
            assert_eq!((url.user, url.password), (None, None));
        }
    }

    #[test]
    fn servers_of_a_cluster_are_listed_in_either_way() {
        for url in [
            "tls://me:p%2C@a,[::1]:4223,b:1?app=x.y",
            "tls://me:p%2C@a,tls://[::1]:4223,tls://b:1?app=x.y",
            "tls://me:p%2C@a, tls://[::1]:4223, b:1?app=x.y",
        ] {
            let url = parse(url);
            assert_eq!(url.to_string(), "tls://a:4222,[::1]:4223,b:1?app=x.y");
            let both = (url.user.as_deref(), url.password.as_deref());
            assert_eq!(both, (Some("me"), Some("p,")));
        }
    }

    #[test]
    fn invalid_url_is_rejected_with_its_reason() {
        use InvalidBrokerUrl as Invalid;

        for (url, error) in [
            ("redis://localhost", Invalid::Scheme),
            ("localhost", Invalid::Scheme),
            ("nats://a,", Invalid::Host),
            ("nats://a,tls://b", Invalid::Mixed),
            ("nats://a,redis://b", Invalid::Mixed),
            ("nats://a:1,u:p@b", Invalid::Credentials),
            ("nats://a/1", Invalid::Path),
            ("nats://a?app=.x", Invalid::Subject),
            ("nats://a?app=x..y", Invalid::Subject),
            ("nats://a?app=x.", Invalid::Subject),
            ("nats://a?app=x>", Invalid::App),
            ("nats://a?x=y", Invalid::Parameter),
        ] {
            assert_eq!(url.parse::<NatsUrl>(), Err(error), "{url}");
        }
    }

    #[test]
    fn secrets_appear_in_no_text() {
        for url in ["nats://mallory:hunter2@host:1", "nats://hunter2@host:1"] {
            let url = parse(url);
            for text in [url.to_string(), format!("{url:?}"), format!("{url:#?}")] {
                assert!(
                    !text.contains("hunter2") && !text.contains("mallory"),
                    "{text}"
                );
                assert!(text.contains("host:1"), "{text}");
            }
        }
    }
}
