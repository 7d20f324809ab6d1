//! What the URLs of all brokers have in common.

use std::error::Error;
use std::fmt;
use std::net::Ipv6Addr;

use crate::protocol::percent;

/// The prefix of names on the broker if the URL has no `?app=`.
const APP: &str = "humphrey_ws";
const APP_BYTES_MAX: usize = 64;

/// A name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// IPv6 addresses have no brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The parts of `scheme://[user[:password]@]host[:port][,host[:port]…][/path][?app=prefix]`. The user and the password are
/// percent-encoded.
pub(super) struct UrlParts {
    /// In lower case.
    pub(super) scheme: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// At least one.
    pub(super) servers: Vec<Address>,
    /// With the slash; empty if there is none.
    pub(super) path: String,
    pub(super) app: String,
}

/// The reason why a text is not the URL of a broker. It never contains parts of the text, which may have a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidBrokerUrl {
    Scheme,
    /// URLs of several servers are of different kinds.
    Mixed,
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
    /// The name that Sentinels give a primary.
    Primary,
    /// A NATS server has no databases.
    Path,
    Parameter,
    App,
    /// A prefix that can't begin a subject of NATS.
    Subject,
}

impl fmt::Display for InvalidBrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme => {
                "the URL of a broker must begin with redis://, rediss:// or redis+sentinel:// (Redis, Valkey), or with nats:// or \
                 tls:// (NATS); a comma in a password is written %2C"
            }
            Self::Mixed => {
                "the URLs of several brokers must all begin with redis:// or rediss://; servers of one NATS cluster are listed \
                 as in nats://first:4222,second:4222"
            }
            Self::Control => "the URL of a broker contains a space or a control character",
            Self::Credentials => {
                "in the user and the password of a broker's URL, '/' is written %2F, '?' %3F, '#' %23 and ',' %2C; they stand \
                 in front of the first server"
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
            Self::Primary => {
                "the URL of Sentinels needs the name of the primary, as in redis+sentinel://first:26379,second:26379/mymaster: letters (a \
                 to z, A to Z), digits, '_', '-' and '.'"
            }
            Self::Path => "the URL of a NATS server has no path",
            Self::Parameter => {
                "the URL of a broker has an unknown or repeated parameter: the only one is 'app', as in ?app=prefix"
            }
            Self::App => {
                "the parameter 'app' in the URL of a broker must consist of 1 to 64 letters (a to z, A to Z), digits, \
                 '_', '-' and '.'"
            }
            Self::Subject => {
                "the parameter 'app' in the URL of a NATS server can't begin or end with '.', or contain '..'"
            }
        })
    }
}

impl Error for InvalidBrokerUrl {}

impl UrlParts {
    /// Splits a URL. `port` is the default one.
    pub(super) fn split(url: &str, port: u16) -> Result<Self, InvalidBrokerUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidBrokerUrl::Scheme)?;
        if rest.contains(|char: char| char.is_control() || char == ' ') {
            return Err(InvalidBrokerUrl::Control);
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if target.contains('@') {
            return Err(InvalidBrokerUrl::Credentials);
        }
        if target.contains('#') {
            return Err(InvalidBrokerUrl::Fragment);
        }
        // As browsers do: the last '@' ends the password.
        let (user, password, servers) = match authority.rsplit_once('@') {
            Some((credentials, servers)) => {
                let (user, password) = split_credentials(credentials)?;
                (user, password, servers)
            }
            None => (None, None, authority),
        };
        let servers = servers.split(',');
        let servers = servers.map(|server| split_port(server, port));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            servers: servers.collect::<Result<_, _>>()?,
            path: path.to_owned(),
            app: app_of(query)?,
        })
    }
}

/// Returns the user and the password. Both are `None` if they are empty.
fn split_credentials(
    credentials: &str,
) -> Result<(Option<String>, Option<String>), InvalidBrokerUrl> {
    if credentials.contains(',') {
        return Err(InvalidBrokerUrl::Credentials);
    }
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let decode = |text| {
        let text = percent::decode(text).ok_or(InvalidBrokerUrl::Encoding)?;
        Ok((!text.is_empty()).then_some(text))
    };
    Ok((decode(user)?, decode(password)?))
}

fn split_port(server: &str, default: u16) -> Result<Address, InvalidBrokerUrl> {
    if let Some(server) = server.strip_prefix('[') {
        let (address, after) = server.split_once(']').ok_or(InvalidBrokerUrl::Address)?;
        let address: Ipv6Addr = address.parse().map_err(|_| InvalidBrokerUrl::Address)?;
        let port = match after.strip_prefix(':') {
            Some(port) => port,
            None if after.is_empty() => "",
            None => return Err(InvalidBrokerUrl::Host),
        };
        return Ok(Address {
            host: address.to_string(),
            port: port_of(port, default)?,
        });
    }
    let (host, port) = server.split_once(':').unwrap_or((server, ""));
    if port.contains(':') {
        return Err(InvalidBrokerUrl::Brackets);
    }
    if !is_plain(host) {
        return Err(InvalidBrokerUrl::Host);
    }
    Ok(Address {
        host: host.to_ascii_lowercase(),
        port: port_of(port, default)?,
    })
}

fn port_of(text: &str, default: u16) -> Result<u16, InvalidBrokerUrl> {
    if text.is_empty() {
        return Ok(default);
    }
    match number(text).and_then(|port| u16::try_from(port).ok()) {
        Some(port) if port > 0 => Ok(port),
        _ => Err(InvalidBrokerUrl::Port),
    }
}

/// Whether a text consists of letters, digits, '-', '.' and '_', and is not empty.
pub(super) fn is_plain(text: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !text.is_empty() && text.bytes().all(is_legal)
}

/// A decimal number; `parse` would accept a sign.
pub(super) fn number(text: &str) -> Option<u32> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn app_of(query: &str) -> Result<String, InvalidBrokerUrl> {
    if query.is_empty() {
        return Ok(APP.to_owned());
    }
    // Another '&' or '=' is a further parameter, or not legal in a prefix.
    let app = query
        .strip_prefix("app=")
        .ok_or(InvalidBrokerUrl::Parameter)?;
    if app.contains('&') {
        return Err(InvalidBrokerUrl::Parameter);
    }
    // A colon would let the names of one app be those of another, and braces would be taken for a hash tag.
    match app.len() <= APP_BYTES_MAX && is_plain(app) {
        true => Ok(app.to_owned()),
        false => Err(InvalidBrokerUrl::App),
    }
}
