//! The URL of a Redis server.

use std::fmt;
use std::str::FromStr;

use crate::cluster::url::{Address, InvalidBrokerUrl, UrlParts, number};

const PORT: u16 = 6379;
/// The number of databases that a server can be configured to have.
const DATABASES_MAX: u32 = i32::MAX as u32;

/// A URL `redis://[user[:password]@]host[:port][/database][?app=prefix]`, or `rediss://` for TLS.
///
/// The user and the password are percent-encoded. They appear neither in `Debug` nor in `Display`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisUrl {
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
    pub(crate) server: Address,
    pub(crate) login: RedisLogin,
}

/// What a connection tells the server first, whichever server that is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisLogin {
    /// `None` for the user `default`.
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// The number of the database, 0 by default.
    pub(crate) database: u32,
    /// The prefix of all channels and keys.
    pub(crate) app: String,
}

impl RedisUrl {
    /// Returns the address of the server. Nodes that use different users, or TLS or not, on the same port, agree on it.
    pub(crate) fn identity(&self) -> String {
        self.server.to_string()
    }
}

impl fmt::Debug for RedisLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLogin")
            .field("database", &self.database)
            .field("app", &self.app)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let RedisLogin { database, app, .. } = &self.login;
        write!(f, "{scheme}://{}/{database}?app={app}", self.server)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidBrokerUrl;

    fn from_str(url: &str) -> Result<Self, InvalidBrokerUrl> {
        let parts = UrlParts::split(url, PORT)?;
        let tls = match &*parts.scheme {
            "redis" => false,
            "rediss" => true,
            _ => return Err(InvalidBrokerUrl::Scheme),
        };
        let Ok([server]) = <[Address; 1]>::try_from(parts.servers) else {
            return Err(InvalidBrokerUrl::Host);
        };
        Ok(Self {
            tls,
            server,
            login: RedisLogin {
                user: parts.user,
                password: parts.password,
                database: database_of(&parts.path)?,
                app: parts.app,
            },
        })
    }
}

pub(super) fn database_of(path: &str) -> Result<u32, InvalidBrokerUrl> {
    match path.strip_prefix('/').unwrap_or(path) {
        "" => Ok(0),
        database => number(database)
            .filter(|&database| database < DATABASES_MAX)
            .ok_or(InvalidBrokerUrl::Database),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> RedisUrl {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn url_with_a_host_alone_has_the_defaults() {
        let expected = RedisUrl {
            tls: false,
            server: Address {
                host: "localhost".into(),
                port: 6379,
            },
            login: RedisLogin {
                user: None,
                password: None,
                database: 0,
                app: "humphrey_ws".into(),
            },
        };
        for url in [
            "redis://localhost",
            "redis://localhost/",
            "redis://localhost:6379/0",
            "REDIS://LocalHost:",
            "redis://localhost?",
            "redis://@localhost",
            "redis://:@localhost",
            "redis://localhost/?app=humphrey_ws",
            "redis://localhost/000",
        ] {
            assert_eq!(parse(url), expected, "{url}");
        }
    }

    #[test]
    fn url_with_all_parts_is_parsed() {
        let url = parse("rediss://me:p%40ss%3A%2f%C3%BC:x@[2001:DB8::0:1]:7000/15?app=My-app_1.0");
        assert!(url.tls);
        assert_eq!((&*url.server.host, url.server.port), ("2001:db8::1", 7000));
        let login = &url.login;
        assert_eq!(login.user.as_deref(), Some("me"));
        assert_eq!(login.password.as_deref(), Some("p@ss:/ü:x"));
        assert_eq!((login.database, &*login.app), (15, "My-app_1.0"));
        assert_eq!(url.identity(), "[2001:db8::1]:7000");
    }

    #[test]
    fn user_and_password_may_be_given_alone() {
        let both = |url| {
            let login = parse(url).login;
            (login.user, login.password)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(both("redis://:secret@host"), (None, some("secret")));
        assert_eq!(both("redis://me@host"), (some("me"), None));
        assert_eq!(both("redis://me:@host"), (some("me"), None));
        assert_eq!(both("redis://me:a@b@host"), (some("me"), some("a@b")));
        assert_eq!(both("redis://:+%20@host"), (None, some("+ ")));
    }

    #[test]
    fn same_server_has_the_same_identity() {
        for url in [
            "redis://a:b@Redis.example",
            "rediss://redis.example:6379/3?app=x",
        ] {
            assert_eq!(parse(url).identity(), "redis.example:6379");
        }
    }

    #[test]
    fn invalid_url_is_rejected_with_its_reason() {
        use InvalidBrokerUrl as Invalid;

        for (url, error) in [
            ("", Invalid::Scheme),
            ("localhost:6379", Invalid::Scheme),
            ("redis:localhost", Invalid::Scheme),
            ("redis+sentinel://localhost", Invalid::Scheme),
            ("nats://localhost", Invalid::Scheme),
            ("redis://local host", Invalid::Control),
            ("redis://localhost\n", Invalid::Control),
            ("redis://:a/b@localhost", Invalid::Credentials),
            ("redis://:a?b@localhost", Invalid::Credentials),
            ("redis://:a#b@localhost", Invalid::Credentials),
            ("redis://:50%@localhost", Invalid::Encoding),
            ("redis://:%ff@localhost", Invalid::Encoding),
            ("redis://%zz:a@localhost", Invalid::Encoding),
            ("redis://localhost#a", Invalid::Fragment),
            ("redis://localhost/0#a", Invalid::Fragment),
            ("redis://", Invalid::Host),
            ("redis:///0", Invalid::Host),
            ("redis://:6379", Invalid::Host),
            ("redis://a:b@", Invalid::Host),
            ("redis://höst", Invalid::Host),
            ("redis://h%6fst", Invalid::Host),
            ("redis://[::1]x", Invalid::Host),
            ("redis://[::1", Invalid::Address),
            ("redis://[localhost]", Invalid::Address),
            ("redis://[fe80::1%25eth0]", Invalid::Address),
            ("redis://::1", Invalid::Brackets),
            ("redis://fe80::1:6379", Invalid::Brackets),
            ("redis://localhost:0", Invalid::Port),
            ("redis://localhost:65536", Invalid::Port),
            ("redis://localhost:+1", Invalid::Port),
            ("redis://localhost:a", Invalid::Port),
            ("redis://localhost/a", Invalid::Database),
            ("redis://localhost/-1", Invalid::Database),
            ("redis://localhost/0/", Invalid::Database),
            ("redis://localhost/2147483647", Invalid::Database),
            ("redis://localhost/99999999999", Invalid::Database),
            ("redis://localhost?db=1", Invalid::Parameter),
            ("redis://localhost?app", Invalid::Parameter),
            ("redis://localhost?app=a&app=b", Invalid::Parameter),
            ("redis://localhost?app=", Invalid::App),
            ("redis://localhost?app=a:b", Invalid::App),
            ("redis://localhost?app={a}", Invalid::App),
            ("redis://localhost?app=a%20b", Invalid::App),
            (
                &format!("redis://localhost?app={}", "a".repeat(65)),
                Invalid::App,
            ),
        ] {
            assert_eq!(url.parse::<RedisUrl>(), Err(error), "{url}");
        }
    }

    #[test]
    fn password_appears_in_no_text() {
        let url = parse("redis://mallory:hunter2@host:1/2?app=x");
        for text in [
            url.to_string(),
            format!("{url:?}"),
            format!("{url:#?}"),
            url.identity(),
        ] {
            assert!(
                !text.contains("hunter2") && !text.contains("mallory"),
                "{text}"
            );
            assert!(text.contains("host:1"), "{text}");
        }
        for broken in [
            "hunter2",
            "redis://:hunter2/@host",
            "redis://:%hunter2@host",
            "redis://:hunter2@",
            "redis://:hunter2@host:x",
            "redis://host?password=hunter2",
            "redis://host/hunter2",
            "redis://host?app=:hunter2",
            "redis://host:hunter2",
        ] {
            let error = broken.parse::<RedisUrl>().unwrap_err();
            let texts = format!("{error} {error:?}");
            assert!(!texts.contains("hunter2"), "{broken}: {texts}");
        }
    }
}
