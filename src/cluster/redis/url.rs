//! The URL of a Redis server.

use std::error::Error;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::protocol::percent;

/// The prefix of channels and keys if the URL has no `?app=`.
const APP: &str = "humphrey_ws";
const APP_BYTES_MAX: usize = 64;
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
    /// A name, or an address. IPv6 addresses have no brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
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
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let Self { database, app, .. } = self;
        write!(f, "{scheme}://{}/{database}?app={app}", self.identity())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

/// The reason why a text is not the URL of a Redis server. It never contains parts of the text, which may have a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidRedisUrl {
    Scheme,
    Control,
    /// A character of the user or the password has to be percent-encoded.
    Credentials,
    /// A percent sign of the user or the password does not begin an encoded character.
    Encoding,
    Fragment,
    Host,
    Address,
    Brackets,
    Port,
    Database,
    Parameter,
    App,
}

impl fmt::Display for InvalidRedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme => {
                "the URL of a broker must begin with redis:// or rediss:// (a comma in a password is written %2C)"
            }
            Self::Control => "the URL of a broker contains a space or a control character",
            Self::Credentials => {
                "in the user and the password of a broker's URL, '/' is written %2F, '?' %3F and '#' %23"
            }
            Self::Encoding => {
                "in the user and the password of a broker's URL, '%' is written %25; encoded characters must be UTF-8"
            }
            Self::Fragment => "the URL of a broker can't contain '#'",
            Self::Host => {
                "the URL of a broker needs the name or the address of a host, as in redis://localhost:6379"
            }
            Self::Address => "the text in brackets in the URL of a broker is not an IPv6 address",
            Self::Brackets => "an IPv6 address in the URL of a broker must be in brackets, as in redis://[::1]:6379",
            Self::Port => "the port in the URL of a broker is not a number from 1 to 65535",
            Self::Database => {
                "the path in the URL of a broker must be the number of a database, as in redis://localhost/0"
            }
            Self::Parameter => {
                "the URL of a broker has an unknown or repeated parameter: the only one is 'app', as in ?app=prefix"
            }
            Self::App => {
                "the parameter 'app' in the URL of a broker must consist of 1 to 64 letters (a to z, A to Z), digits, \
                 '_', '-' and '.'"
            }
        })
    }
}

impl Error for InvalidRedisUrl {}

impl FromStr for RedisUrl {
    type Err = InvalidRedisUrl;

    fn from_str(url: &str) -> Result<Self, InvalidRedisUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidRedisUrl::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "redis" => false,
            "rediss" => true,
            _ => return Err(InvalidRedisUrl::Scheme),
        };
        if rest.contains(|char: char| char.is_control() || char == ' ') {
            return Err(InvalidRedisUrl::Control);
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if target.contains('@') {
            return Err(InvalidRedisUrl::Credentials);
        }
        if target.contains('#') {
            return Err(InvalidRedisUrl::Fragment);
        }
        // As browsers do: the last '@' ends the password.
        let (user, password, server) = match authority.rsplit_once('@') {
            Some((credentials, server)) => {
                let (user, password) = split_credentials(credentials)?;
                (user, password, server)
            }
            None => (None, None, authority),
        };
        let (host, port) = split_port(server)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Self {
            tls,
            host,
            port,
            user,
            password,
            database: database_of(path)?,
            app: app_of(query)?,
        })
    }
}

/// Returns the user and the password. Both are `None` if they are empty.
fn split_credentials(
    credentials: &str,
) -> Result<(Option<String>, Option<String>), InvalidRedisUrl> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let decode = |text| {
        let text = percent::decode(text).ok_or(InvalidRedisUrl::Encoding)?;
        Ok((!text.is_empty()).then_some(text))
    };
    Ok((decode(user)?, decode(password)?))
}

fn split_port(server: &str) -> Result<(String, u16), InvalidRedisUrl> {
    if let Some(server) = server.strip_prefix('[') {
        let (address, after) = server.split_once(']').ok_or(InvalidRedisUrl::Address)?;
        let address: Ipv6Addr = address.parse().map_err(|_| InvalidRedisUrl::Address)?;
        let port = match after.strip_prefix(':') {
            Some(port) => port,
            None if after.is_empty() => "",
            None => return Err(InvalidRedisUrl::Host),
        };
        return Ok((address.to_string(), port_of(port)?));
    }
    let (host, port) = server.split_once(':').unwrap_or((server, ""));
    if port.contains(':') {
        return Err(InvalidRedisUrl::Brackets);
    }
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.is_empty() || !host.bytes().all(is_legal) {
        return Err(InvalidRedisUrl::Host);
    }
    Ok((host.to_ascii_lowercase(), port_of(port)?))
}

fn port_of(text: &str) -> Result<u16, InvalidRedisUrl> {
    if text.is_empty() {
        return Ok(PORT);
    }
    match number(text).and_then(|port| u16::try_from(port).ok()) {
        Some(port) if port > 0 => Ok(port),
        _ => Err(InvalidRedisUrl::Port),
    }
}

fn database_of(path: &str) -> Result<u32, InvalidRedisUrl> {
    match path.strip_prefix('/').unwrap_or(path) {
        "" => Ok(0),
        database => number(database)
            .filter(|&database| database < DATABASES_MAX)
            .ok_or(InvalidRedisUrl::Database),
    }
}

/// `parse` would accept a sign.
fn number(text: &str) -> Option<u32> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn app_of(query: &str) -> Result<String, InvalidRedisUrl> {
    if query.is_empty() {
        return Ok(APP.to_owned());
    }
    // Another '&' or '=' is a further parameter, or not legal in a prefix.
    let app = query
        .strip_prefix("app=")
        .ok_or(InvalidRedisUrl::Parameter)?;
    if app.contains('&') {
        return Err(InvalidRedisUrl::Parameter);
    }
    // A colon would let the names of one app be those of another, and braces would be taken for a hash tag.
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match app.len() {
        1..=APP_BYTES_MAX if app.bytes().all(is_legal) => Ok(app.to_owned()),
        _ => Err(InvalidRedisUrl::App),
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
            host: "localhost".into(),
            port: 6379,
            user: None,
            password: None,
            database: 0,
            app: "humphrey_ws".into(),
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
        assert_eq!((&*url.host, url.port), ("2001:db8::1", 7000));
        assert_eq!(url.user.as_deref(), Some("me"));
        assert_eq!(url.password.as_deref(), Some("p@ss:/ü:x"));
        assert_eq!((url.database, &*url.app), (15, "My-app_1.0"));
        assert_eq!(url.identity(), "[2001:db8::1]:7000");
    }

    #[test]
    fn user_and_password_may_be_given_alone() {
        let both = |url| {
            let url = parse(url);
            (url.user, url.password)
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
        use InvalidRedisUrl as Invalid;

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
